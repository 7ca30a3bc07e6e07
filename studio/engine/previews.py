"""Cheap pictures of half-made latents: a linear map to colour, never a decode."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import torch

from studio.engine.latents import encode_picture, in_cells

SQUARES, SQUARE = 8, 64  # of the picture that a map to colours is found with: a side, and their own size in pixels


def preview_png(latents: torch.Tensor, factors: Sequence[Sequence[float]] | np.ndarray, noise_scale: float) -> bytes:
    """Draw the first latent of a batch.

    Args:
        latents: (B, C, h, w), any float type.
        factors: (C + 1, 3) map to RGB in [-1, 1]; the last row is the constant.
        noise_scale: divides the latents first, because some schedulers keep them at the scale of their noise.

    Returns:
        A PNG of h x w pixels; the browser enlarges it.
    """
    plane = (latents[0].detach().float() / noise_scale).permute(1, 2, 0).cpu().numpy()  # (h, w, C)
    weights = np.asarray(factors, dtype=np.float32)
    colours = plane @ weights[:-1] + weights[-1]
    return encode_png(np.clip(colours * 127.5 + 127.5, 0, 255).astype(np.uint8))


class ColourMaps:
    """Maps from latents to colour that were found with an autoencoder, each found once."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, np.ndarray] = WeakKeyDictionary()

    def of(self, pipe: Any) -> np.ndarray:
        """Return the map for a pipeline's autoencoder, see `fitted_rgb`."""
        if pipe.vae not in self._known:
            self._known[pipe.vae] = fitted_rgb(pipe)
        return self._known[pipe.vae]


def fitted_rgb(pipe: Any) -> np.ndarray:
    """Find the linear map from latents, as a denoiser sees them, to colour: (C + 1, 3), the last row the constant.

    One picture of coloured squares is encoded; the least squares from colours to latents, turned round (Moore-Penrose), have the
    colours at the scale that they came from however many channels say the same.
    """
    colours = np.random.default_rng(0).integers(0, 256, (SQUARES, SQUARES, 3), dtype=np.uint8)
    picture = np.kron(colours, np.ones((SQUARE, SQUARE, 1), np.uint8))
    plane = in_cells(pipe, encode_picture(pipe, picture, lambda notice: None))[0].float()  # (C, h, w)
    means = torch.nn.functional.adaptive_avg_pool2d(plane, SQUARES).flatten(1).T.cpu().numpy()  # (squares, C)
    known = np.concatenate([colours.reshape(-1, 3) / 127.5 - 1, np.ones((SQUARES**2, 1))], axis=1)
    forward = np.linalg.lstsq(known, means, rcond=None)[0]  # (4, C)
    back = np.linalg.pinv(forward[:3], rcond=1e-3)  # (C, 3)
    return np.concatenate([back, -forward[3:] @ back])


def noise_scale(scheduler: object, step: int) -> float:
    """Return by how much a scheduler's latents after `step` (0-based) are larger than unit-variance ones.

    Schedulers that follow Karras et al. (2022) keep x = signal + sigma * noise; the others keep the variance at one.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or float(getattr(scheduler, "init_noise_sigma", 1.0)) <= 1.5:
        return 1.0
    sigma = float(sigmas[min(step + 1, len(sigmas) - 1)])
    return (sigma**2 + 1) ** 0.5


def encode_png(picture: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 RGB; OpenCV's own settings cost a seventh of Pillow's time at 9 % more bytes."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()
