"""GGUF: a file of a denoiser draws what bare diffusers draws with the numbers that its blocks stand for, and a bad one is refused by name."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

from studio.engine.checkpoints import look_at
from studio.engine.latents import denoiser
from studio.engine.places import bytes_of
from studio.errors import InvalidRequest, ModelError
from studio.store.library import Library
from tests import original, test_checkpoints, tiny
from tests.conftest import drawer, pixels

State = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {"prompt": "a red circle on a blue background", "width": 64, "height": 64, "seed": 3}
SMALL |= {"num_inference_steps": 2}
MADE: dict[str, Callable[[], Any]] = {
    "sd3": test_checkpoints.sd3, "flux": test_checkpoints.flux, "chroma": tiny.chroma, "flux2-klein": tiny.flux2_klein,
    "z-image": tiny.z_image, "qwen-image": tiny.qwen_image,
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library with a folder of each family, and its denoiser in GGUF below `files`."""
    folder = tmp_path_factory.mktemp("gguf")
    for number, (name, build) in enumerate(MADE.items()):
        torch.manual_seed(number)
        pipe = build()
        pipe.save_pretrained(folder / name)
        state = original.LONE[name](pipe.transformer.state_dict())
        original.save_gguf(state, folder / "files" / f"{name}.gguf")
    return Library((folder,), part_roots=(folder,))


@pytest.fixture(scope="module")
def draw(engine: Any, here: Library, blobs: Any) -> Callable[..., Any]:
    return drawer(engine, here, blobs)


@pytest.mark.parametrize("name", list(MADE))
def test_a_file_draws_what_its_numbers_draw(
    here: Library, draw: Callable[..., Any], engine: Any, name: str
) -> None:
    file = here.get(f"files/{name}")
    assert (file.family, file.dtype, file.problem) == (name, "q8_0", "")
    made = draw(**SMALL, model=file.id)
    network = denoiser(engine.pipelines._weights(here.reference(file)).base)
    whole = type(network).from_config(network.config)
    numbers = {key: dequantize_gguf_tensor(one).float() for key, one in network.state_dict().items()}
    whole.load_state_dict(numbers)
    kept = [layer for layer in network.modules() if isinstance(layer, GGUFLinear)]
    assert len(kept) > len([layer for layer in whole.modules() if isinstance(layer, torch.nn.Linear)]) / 2
    assert bytes_of(network) < bytes_of(whole) / 2
    own = diffusers.DiffusionPipeline.from_pretrained(here.get(name).path).transformer.state_dict()
    assert own.keys() == numbers.keys()
    assert all(torch.allclose(own[key], one, atol=0.02 * own[key].abs().max().item() + 1e-6) for key, one in numbers.items())
