"""Too little memory, raised where a device raises it: the job says what would need less, and the next one works."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from studio.engine.latents import denoiser
from studio.engine.memory import too_little
from studio.errors import DeviceError
from studio.spec import parse_request
from tests.conftest import Made

Draw = Callable[..., Made]
SMALL: dict[str, Any] = {"prompt": "a red circle", "seed": 3, "num_inference_steps": 3, "width": 64, "height": 64}


def test_a_job_that_does_not_fit_lets_go_of_everything_and_the_next_one_works(draw: Draw, engine: Any) -> None:
    before = draw(**SMALL)
    held: list[weakref.ref[torch.Tensor]] = []

    def full(module: Any, given: tuple[Any, ...]) -> None:
        """Refuse a batch of two, as a device does whose memory is full, while the step's tensors are alive."""
        if (
            given and getattr(given[0], "ndim", 0) == 4 and len(given[0]) == 4
        ):  # two pictures, with and without the prompt
            held.append(weakref.ref(given[0]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(full)
    try:
        with pytest.raises(
            DeviceError, match=r"64 x 64, 2 at once; less is needed with batch size 1 instead of 2, or VAE"
        ):
            draw(**SMALL, num_images_per_prompt=2, batch_size=2)
        gc.collect()
        assert len(held) == 2, "the job was tried once more, with nothing else in memory"
        assert [one() for one in held] == [None, None], "nothing of the step is left, though its error was kept"
        assert draw(**SMALL).pictures == before.pictures, "while the device is as full as before"
    finally:
        hook.remove()
    together = draw(**SMALL, num_images_per_prompt=2, batch_size=2)
    assert together.finished.images == 2
    loaded = next(iter(engine.pipelines._loaded.values()))
    assert not denoiser(loaded.base)._forward_pre_hooks


def test_what_would_need_less_is_what_the_request_has() -> None:
    large = parse_request({"width": 1024, "height": 768, "hires_scale": 2, "vae_tiling": True})
    said = too_little("A card", large, 1)
    assert said.startswith(
        "A card has too little memory for 2048 x 1536; less is needed with Upscale by less than 2, or 1024 x 768"
    )
    assert "VAE tiling" not in said
    assert "batch" not in said
    tiny = parse_request({"width": 64, "height": 64, "vae_tiling": True})
    assert too_little("A card", tiny, 1).endswith("needed with the denoiser's weights in float8")
    tiny = parse_request(tiny.model_dump() | {"weights": "float8"})
    assert too_little("A card", tiny, 1).endswith("needed with another model")
