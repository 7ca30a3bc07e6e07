"""Upscalers: networks that enlarge a picture by a fixed factor, run tile by tile so that memory does not grow with the picture."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from studio.engine.canvas import Box, fit
from studio.engine.devices import Device
from studio.engine.passes import to_pixels
from studio.errors import ModelError

TILE = 256  # pixels of the small picture a side that one call of a network answers for
OVERLAP = 32  # what it sees beyond them and is cut off again: convolutions that matter reach less far
RUNS_MAX = 3  # as in A1111: then the rest is resampled


def load_upscaler(path: Path, device: Device) -> Any:
    """Load a file of weights as `spandrel.ImageModelDescriptor`, which knows its network by its tensors.

    Raises:
        ModelError: if it is none that makes an RGB picture of an RGB picture.
    """
    import spandrel

    try:
        network = spandrel.ModelLoader().load_from_state_dict(load_file(path))
    except spandrel.UnsupportedModelError:
        raise ModelError("its network is of no kind that is known here") from None
    if not isinstance(network, spandrel.ImageModelDescriptor) or network.purpose == "FaceSR":
        raise ModelError("it needs more than a picture, or works on faces only")
    if (network.input_channels, network.output_channels) != (3, 3):
        raise ModelError(f"it reads {network.input_channels} and makes {network.output_channels} channels, not RGB")
    half = device.dtype != torch.float32 and network.supports_half  # bfloat16 has steps of 1/256 in bright parts
    network.to(device.place, torch.float16 if half else torch.float32).eval()
    network.model.requires_grad_(False)
    return network


def enlarge(picture: np.ndarray, width: int, height: int, network: Any, told: Callable[[int, int], None]) -> np.ndarray:
    """Enlarge a picture to a size: by the network's factor as often as it takes, then resampled, as A1111 does.

    Args:
        picture: (H, W, 3) uint8.
        width: wanted, in pixels.
        height: likewise.
        network: an `ImageModelDescriptor`; None is Lanczos.
        told: hears (done, all) of each tile; may raise to stop.

    Returns:
        (height, width, 3) uint8.
    """
    if network is None:
        return fit(picture, width, height, "stretch")
    rows, columns = picture.shape[:2]
    runs = runs_needed(network.scale, width / columns, height / rows)
    total = sum(len(cut(columns * factor, rows * factor)) for factor in (network.scale**n for n in range(runs)))
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        told(done, total)

    for run in range(runs):
        picture = run_tiled(network, picture, width if run == runs - 1 else None, one_more)
    return fit(picture, width, height, "stretch")


def runs_needed(scale: int, *factors: float) -> int:
    """Return how often a network of a scale is run to reach all factors; at least once, at most `RUNS_MAX` times."""
    runs = 1
    while scale > 1 and runs < RUNS_MAX and scale**runs < max(factors):
        runs += 1
    return runs


def run_tiled(network: Any, picture: np.ndarray, width: int | None, one_more: Callable[[], None]) -> np.ndarray:
    """Run a network over a picture, band by band.

    Args:
        network: an `ImageModelDescriptor`.
        picture: (H, W, 3) uint8.
        width: to which each band is resampled at once, so that a large factor takes no memory; None keeps the network's.
        one_more: called after each tile.

    Returns:
        (H * scale, width or W * scale, 3) uint8.
    """
    rows, columns = picture.shape[:2]
    bands: dict[int, list[np.ndarray]] = {}
    finished = []
    for box in cut(columns, rows):
        _, top, right, bottom = box
        bands.setdefault(top, []).append(run_tile(network, picture, box))
        if right == columns:
            band = np.concatenate(bands.pop(top), axis=1)
            finished.append(fit(band, width, (bottom - top) * network.scale, "stretch") if width else band)
        one_more()
    return np.concatenate(finished)


def run_tile(network: Any, picture: np.ndarray, box: Box) -> np.ndarray:
    """Run a network over a box of a picture (H, W, 3) and what surrounds it; return the box alone, enlarged.

    Raises:
        ModelError: if the network makes numbers that are no colours.
    """
    rows, columns = picture.shape[:2]
    left, top, right, bottom = box
    x, y = max(0, left - OVERLAP), max(0, top - OVERLAP)
    seen = torch.from_numpy(picture[y : min(rows, bottom + OVERLAP), x : min(columns, right + OVERLAP)].copy())
    values = seen.permute(2, 0, 1)[None].to(network.device).float() / 255  # (1, 3, h, w)
    made = network(values.to(network.dtype))
    if not torch.isfinite(made).all():
        raise ModelError("the upscaler made numbers that are no colours (NaN); choose another one")
    scale = network.scale
    inner = made[..., (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale]
    return to_pixels(inner)[0]


def cut(width: int, height: int) -> list[Box]:
    """Cut a picture into boxes of at most `TILE` pixels a side, row by row, of nearly equal size."""
    across, down = (edges(side) for side in (width, height))
    return [(left, top, right, bottom) for top, bottom in down for left, right in across]


def edges(length: int) -> list[tuple[int, int]]:
    """Cut a line into nearly equal parts of at most `TILE`."""
    number = -(-length // TILE)
    places = [length * i // number for i in range(number + 1)]
    return list(pairwise(places))
