"""A denoiser that is run in another way draws the same to the eye, and afterwards it is run as before, to the last bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from studio.engine.latents import denoiser
from studio.errors import InvalidRequest
from tests.conftest import Made, pixels

Draw = Callable[..., Made]
SMALL: dict[str, Any] = {"prompt": "a red circle", "seed": 3, "num_inference_steps": 2, "width": 64, "height": 64}


def far(one: Made, other: Made) -> int:
    """Return how many levels two pictures are apart."""
    return int(np.abs(pixels(one.pictures[0]).astype(int) - pixels(other.pictures[0])).max())


def test_another_kernel_of_attention_draws_the_same(draw: Draw, engine: Any) -> None:
    before = draw(**SMALL)
    seen: list[bool] = []
    layer = denoiser(next(reversed(engine.pipelines._loaded.values())).base).mid_block
    hook = layer.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    try:
        made = draw(**SMALL, attention="math")
    finally:
        hook.remove()
    assert seen and not any(seen), "while the denoiser runs, no other kernel is allowed"
    assert torch.backends.cuda.flash_sdp_enabled()
    assert made.records[0].request.attention == "math"
    assert far(made, before) <= 2
    assert draw(**SMALL).pictures == before.pictures


def test_a_kernel_that_is_not_here_is_refused_and_the_next_job_works(draw: Draw) -> None:
    before = draw(**SMALL)
    with pytest.raises(InvalidRequest, match="attention='cudnn' has no kernel for this model on this device"):
        draw(**SMALL, attention="cudnn")
    assert draw(**SMALL).pictures == before.pictures
