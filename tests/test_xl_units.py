"""Control units with Stable Diffusion XL, whose networks also read sizes and a pooled prompt: what diffusers' own pipelines draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from PIL import Image
from transformers import CLIPImageProcessor

from studio.errors import InvalidRequest
from studio.store.blobs import BlobStore, encode
from studio.store.library import Library
from tests.conftest import drawer, pixels
from tests.test_units import near, noise_picture, save_ip_adapter

PROMPT, NEGATIVE, SIDE = "a red star", "a green circle", 64
FIRST, SECOND = noise_picture(1, SIDE), noise_picture(2, SIDE)
Draw = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def folder(tiny_library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random unit of each kind for the tiny XL model."""
    pipe, folder = load(StableDiffusionXLPipeline, tiny_library), tmp_path_factory.mktemp("xl")
    torch.manual_seed(0)
    network: Any = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    adapter: Any = T2IAdapter(3, [8, 16], 1, 16, "full_adapter_xl")
    for part in (network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding):
        for weight in part.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    network.save_pretrained(folder / "controlnets" / "net")
    adapter.save_pretrained(folder / "controlnets" / "sketch")
    save_ip_adapter(folder / "controlnets" / "seen", pipe.unet)
    return folder / "controlnets"


@pytest.fixture(scope="module")
def draw(engine: Any, tiny_library: Library, blobs: BlobStore, folder: Path) -> Draw:
    run = drawer(engine, Library(tiny_library.folders, part_roots=(folder.parent,)), blobs)
    words = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": 3.0}
    small = {"model": "sdxl", "width": SIDE, "height": SIDE, "num_inference_steps": 3, "seed": 5}
    return lambda **values: pixels(run(**words | small | values).pictures[0])


def load(pipeline: Any, library: Library, **more: Any) -> Any:
    pipe = pipeline.from_pretrained(library.get("sdxl").path, add_watermarker=False, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bare(pipe: Any, **more: Any) -> np.ndarray:
    made = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=3.0,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(5),
        width=SIDE,
        height=SIDE,
        output_type="np",
        **more,
    ).images[0]
    return (made * 255).round().astype(np.uint8)


def test_controlnets_are_those_of_diffusers(draw: Draw, tiny_library: Library, folder: Path) -> None:
    network = ControlNetModel.from_pretrained(folder / "net")
    pipe = load(StableDiffusionXLControlNetPipeline, tiny_library, controlnet=[network, network])
    wanted = bare(
        pipe, image=[FIRST, SECOND], controlnet_conditioning_scale=[0.7, 0.4], control_guidance_end=[1.0, 0.5]
    )
    units = [
        {"model": "net", "image": encode(FIRST), "weight": 0.7},
        {"model": "net", "image": encode(SECOND), "weight": 0.4, "end": 0.5},
    ]
    made = draw(controls=units)
    assert near(made, wanted) and not near(made, draw(controls=units[:1])) and not near(made, draw())


def test_a_t2i_adapter_is_that_of_diffusers(draw: Draw, tiny_library: Library, folder: Path) -> None:
    pipe = load(StableDiffusionXLAdapterPipeline, tiny_library, adapter=T2IAdapter.from_pretrained(folder / "sketch"))
    made = draw(t2i_adapters=[{"model": "sketch", "image": encode(FIRST), "weight": 0.6}])
    assert near(made, bare(pipe, image=FIRST, adapter_conditioning_scale=0.6)) and not near(made, draw())


def test_an_ip_adapter_is_that_of_diffusers(draw: Draw, tiny_library: Library, folder: Path) -> None:
    pipe = load(StableDiffusionXLPipeline, tiny_library)
    pipe.register_modules(feature_extractor=CLIPImageProcessor(size=32, crop_size=32))
    pipe.load_ip_adapter(
        str(folder / "seen"), subfolder="", weight_name="ip-adapter.safetensors", local_files_only=True
    )
    pipe.set_ip_adapter_scale(0.8)
    unit = {"model": "seen", "images": [encode(FIRST), encode(SECOND)], "scale": 0.8}
    made = draw(ip_adapters=[unit])
    assert near(made, bare(pipe, ip_adapter_image=[[FIRST, SECOND]])) and not near(made, draw())


def test_what_is_under_transparent_parts_is_not_seen(draw: Draw) -> None:
    hidden, plain = SECOND.convert("RGBA"), Image.new("RGB", SECOND.size, "white")
    hidden.putalpha(0)
    one, other = (draw(ip_adapters=[{"model": "seen", "images": [encode(shown)]}]) for shown in (hidden, plain))
    assert np.array_equal(one, other)


def test_a_depth_model_takes_no_ip_adapter(draw: Draw) -> None:
    unit = {"model": "seen", "images": [encode(FIRST)]}
    with pytest.raises(
        InvalidRequest, match=r"ip_adapters do not work with Stable Diffusion 2.x \(depth\), which takes"
    ):
        draw(model="depth", image=encode(FIRST), ip_adapters=[unit])
