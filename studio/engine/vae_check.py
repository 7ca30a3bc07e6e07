"""How well an autoencoder keeps a picture: encode, decode, compare."""

import math
from typing import Any

import numpy as np

from studio.engine.canvas import fit
from studio.engine.latents import decode_unscaled, encode_unscaled
from studio.engine.passes import to_pixels
from studio.engine.previews import encode_png
from studio.spec import SIZE_MAX

GAIN = 4  # the difference picture shows errors this much stronger


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
    cell = 2 ** (len(vae.config.block_out_channels) - 1)
    scale = min(1.0, SIZE_MAX / max(picture.shape[:2]))
    height, width = (max(cell, int(side * scale) // cell * cell) for side in picture.shape[:2])
    given = fit(picture, width, height, "crop")
    notes: list[str] = []
    latents = encode_unscaled(vae, given, notes.append)  # (1, C, h, w)
    colours = decode_unscaled(vae, latents, notes.append)
    decoded = to_pixels((colours / 2 + 0.5).clamp(0, 1))[0]
    error = decoded.astype(np.int32) - given
    mean_square = float((error.astype(np.float64) ** 2).mean())
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    seen = ((latents - shift) * vae.config.scaling_factor).float()
    values = {
        "notes": notes,
        "psnr": round(min(100.0, 10 * math.log10(255**2 / mean_square)) if mean_square else 100.0, 2),
        "worst": int(np.abs(error).max()),
        "width": width,
        "height": height,
        "latents": list(seen.shape[1:]),
        "means": [round(value, 3) for value in seen.mean(dim=(0, 2, 3)).tolist()],
        "deviations": [round(value, 3) for value in seen.std(dim=(0, 2, 3)).tolist()],
    }
    difference = np.clip(128 + error * GAIN, 0, 255).astype(np.uint8)
    shown = {"given": given, "decoded": decoded, "difference": difference}
    return values, {name: encode_png(one) for name, one in shown.items()}
