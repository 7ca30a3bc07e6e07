"""How well an autoencoder keeps a picture: encode, decode, compare."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import pixel_unshuffle

from studio.engine.canvas import fit
from studio.engine.codecs import codec_of
from studio.engine.latents import Notice, decode_unscaled, encode_unscaled
from studio.engine.passes import to_pixels
from studio.engine.previews import encode_png
from studio.spec import SIZE_MAX

GAIN = 4  # the difference picture shows errors this much stronger


class Passed(NamedTuple):
    """A picture that went through an autoencoder.

    Attributes:
        given: (H, W, 3) uint8, as it was encoded.
        decoded: what came back, the same shape.
        latents: as the denoiser sees them, (C, h, w) float32.
    """

    given: np.ndarray
    decoded: np.ndarray
    latents: torch.Tensor

    @property
    def error(self) -> np.ndarray:
        """The difference in levels, (H, W, 3) int32."""
        return self.decoded.astype(np.int32) - self.given

    @property
    def difference(self) -> np.ndarray:
        """The difference as a picture, (H, W, 3) uint8: grey where nothing is lost."""
        return np.clip(128 + self.error * GAIN, 0, 255).astype(np.uint8)


def pass_through(vae: Any, picture: np.ndarray, notice: Notice) -> Passed:
    """Encode a picture (H, W, 3) uint8, cropped to whole cells and made smaller if a side is too long, and decode it again.

    Raises:
        ModelError: if the result is no picture.
    """
    codec = codec_of(vae)
    cell = 2 ** (len(vae.config.block_out_channels) - 1) * codec.patch
    scale = min(1.0, SIZE_MAX / max(picture.shape[:2]))
    height, width = (max(cell, int(side * scale) // cell * cell) for side in picture.shape[:2])
    given = fit(picture, width, height, "crop")
    latents = encode_unscaled(vae, given, notice)  # (1, C, h, w)
    decoded = to_pixels((decode_unscaled(vae, latents, notice) / 2 + 0.5).clamp(0, 1))[0]
    patches = pixel_unshuffle(latents, codec.patch)
    mean, deviation, factor = codec.statistics(vae, patches)
    return Passed(given, decoded, ((patches - mean) * factor / deviation)[0].float())


def psnr(error: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of an error in levels of 255, in dB; 100 if nothing is lost."""
    mean_square = float((error.astype(np.float64) ** 2).mean())
    return round(min(100.0, 10 * math.log10(255**2 / mean_square)) if mean_square else 100.0, 2)


def check_vae(vae: Any, picture: np.ndarray) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Encode a picture and decode it again.

    Args:
        vae: an autoencoder of diffusers.
        picture: (H, W, 3) uint8; cropped to whole cells of latents, made smaller if a side is too long.

    Returns:
        `notes`: sentences about how it was decoded. Numbers: `psnr` in dB (100 if nothing is lost), `worst` of 255 levels, size, and of
        each latent channel, as the denoiser sees it, mean and standard deviation. Pictures as PNG: `given`, `decoded` and `difference`,
        which is grey where nothing is lost.

    Raises:
        ModelError: if the result is no picture.
    """
    notes: list[str] = []
    passed = pass_through(vae, picture, notes.append)
    values = {
        "notes": notes,
        "psnr": psnr(passed.error),
        "worst": int(np.abs(passed.error).max()),
        "width": passed.given.shape[1],
        "height": passed.given.shape[0],
        "latents": list(passed.latents.shape),
        "means": [round(value, 3) for value in passed.latents.mean(dim=(1, 2)).tolist()],
        "deviations": [round(value, 3) for value in passed.latents.std(dim=(1, 2)).tolist()],
    }
    shown = {"given": passed.given, "decoded": passed.decoded, "difference": passed.difference}
    return values, {name: encode_png(one) for name, one in shown.items()}
