"""Between pictures and latents, for every family: the autoencoder's scale, shift and statistics, and latents in patches."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def safe_precision(vae: Any) -> Iterator[None]:
    """Let an autoencoder compute in float32 if half precision makes NaN of what it does (SDXL's)."""
    dtype = vae.dtype
    overflows = dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    if overflows:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if overflows:
            vae.to(dtype)


def encode_picture(pipe: Any, picture: np.ndarray, *, shifted: bool = True) -> torch.Tensor:
    """Encode a picture (H, W, 3) uint8, (1, C, h, w): the mean, so that no random number is used up.

    Args:
        pipe: with the autoencoder.
        picture: to encode.
        shifted: whether the latents' own mean is taken away, as a denoiser wants it.
    """
    vae, dtype = pipe.vae, pipe.vae.dtype
    with safe_precision(vae):
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(vae.device, vae.dtype) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.mode()
    mean, deviation, scale = _statistics(vae, latents)
    return ((latents - mean if shifted else latents) * scale / deviation).to(dtype)


def decode_latents(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents (B, C, h, w) to pictures (B, 3, H, W) in [0, 1]."""
    mean, deviation, scale = _statistics(pipe.vae, latents)
    pictures = pipe.vae.decode(latents * deviation / scale + mean, return_dict=False)[0]
    return pipe.image_processor.postprocess(pictures, output_type="pt")


def _statistics(vae: Any, like: torch.Tensor) -> tuple[Any, Any, float]:
    """Return mean, deviation (numbers, or (1, C, 1, 1)) and scale of an autoencoder's latents."""
    config = vae.config
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and deviation is not None:
        row = {"device": like.device, "dtype": like.dtype}
        shape = (1, -1, 1, 1)
        return (
            torch.tensor(mean, **row).view(shape),
            torch.tensor(deviation, **row).view(shape),
            config["scaling_factor"],
        )
    return config.get("shift_factor") or 0.0, 1.0, config["scaling_factor"]


def noise_shape(pipe: Any, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the shape of one picture's latents, (1, C, h, w), for a size in pixels."""
    scale = pipe.vae_scale_factor
    return 1, pipe.vae.config.latent_channels, height // scale, width // scale


def packed(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Arrange latents (B, C, h, w) as the pipeline wants them: (B, h/2 * w/2, 4 C) if it works on patches."""
    return pipe._pack_latents(latents, *latents.shape) if hasattr(pipe, "_pack_latents") else latents


def unpacked(pipe: Any, latents: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Arrange a pipeline's latents as (B, C, h, w); `size` is the width and height in pixels, needed for patches."""
    if latents.ndim == 4:
        return latents
    assert size is not None
    return pipe._unpack_latents(latents, size[1], size[0], pipe.vae_scale_factor)


def denoiser(pipe: Any) -> Any:
    """Return the network that is run at every step."""
    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
