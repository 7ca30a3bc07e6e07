"""Between pictures and latents, for every family: the autoencoder's scale, shift and statistics, and latents in patches."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from studio.engine.codecs import channels_of, codec_of
from studio.engine.places import place_of
from studio.errors import ModelError

NO_NUMBERS = "the model's latents are no numbers (NaN) in {dtype}; try another sampling method or a lower CFG Scale"
NO_COLOURS = "the VAE makes numbers that are no colours (NaN) even in float32; choose another SD VAE"
NO_LATENTS = "the VAE makes numbers that are no latents (NaN) of the picture even in float32; choose another SD VAE"
DECODED = "The VAE made NaN in half precision; it was decoded in float32"
ENCODED = "The VAE made NaN of the picture in half precision; it was encoded in float32"

Notice = Callable[[str], None]


@contextlib.contextmanager
def in_precision(vae: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let an autoencoder compute in a number format; its own is put back."""
    own = vae.dtype
    if own != dtype:
        vae.to(dtype)
    try:
        yield
    finally:
        if own != dtype:
            vae.to(own)


def working_dtype(vae: Any) -> torch.dtype:
    """Return the number format for an autoencoder: float32 if it says that half precision makes NaN of what it does (SDXL's)."""
    return torch.float32 if vae.dtype == torch.float16 and vae.config.get("force_upcast") else vae.dtype


def safe_precision(vae: Any) -> contextlib.AbstractContextManager[None]:
    """Let an autoencoder compute in its `working_dtype`."""
    return in_precision(vae, working_dtype(vae))


def encode_picture(pipe: Any, picture: np.ndarray, notice: Notice, *, shifted: bool = True) -> torch.Tensor:
    """Encode a picture (H, W, 3) uint8, (1, C, h, w), scaled for a denoiser; see `encode_unscaled`.

    Args:
        pipe: with the autoencoder.
        picture: to encode.
        notice: told if half precision was not enough.
        shifted: whether the latents' own mean is taken away, as a denoiser wants it.
    """
    codec = codec_of(pipe.vae)
    latents = pixel_unshuffle(encode_unscaled(pipe.vae, picture, notice), codec.patch)
    mean, deviation, scale = codec.statistics(pipe.vae, latents)
    return ((latents - mean if shifted else latents) * scale / deviation).to(pipe.vae.dtype)


def encode_unscaled(vae: Any, picture: np.ndarray, notice: Notice) -> torch.Tensor:
    """Encode a picture (H, W, 3) uint8, (1, C, h, w): the mean, so that no random number is used up.

    If half precision makes NaN or infinity of it (of one plain colour, for example), it is encoded once more in float32, and
    `notice` is told.

    Raises:
        ModelError: if there is NaN even in float32.
    """

    def encoded() -> torch.Tensor:
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(place_of(vae), vae.dtype) / 127.5 - 1
        return codec_of(vae).encode(vae, pixels)

    return _finite(vae, encoded, (NO_LATENTS, ENCODED), notice)


def decode_latents(pipe: Any, latents: torch.Tensor, notice: Notice) -> torch.Tensor:
    """Decode latents (B, C, h, w) as a denoiser makes them to pictures (B, 3, H, W) in [0, 1].

    Args:
        pipe: has the autoencoder.
        latents: scaled.
        notice: told if half precision was not enough.

    Raises:
        ModelError: if there is NaN in the latents, or in the pictures even in float32.
    """
    if not torch.isfinite(latents).all():
        raise ModelError(NO_NUMBERS.format(dtype=str(latents.dtype).removeprefix("torch.")))
    latents = latents.to(working_dtype(pipe.vae))
    pictures = decode_unscaled(pipe.vae, in_cells(pipe, unscaled(pipe, latents)), notice)
    return pipe.image_processor.postprocess(pictures, output_type="pt")


def decode_unscaled(vae: Any, latents: torch.Tensor, notice: Notice) -> torch.Tensor:
    """Decode latents (B, C, h, w) as the autoencoder makes them to pictures (B, 3, H, W) in [-1, 1].

    If half precision makes NaN or infinity of them, they are decoded once more in float32, and `notice` is told.

    Raises:
        ModelError: if there is NaN even in float32.
    """
    return _finite(vae, lambda: codec_of(vae).decode(vae, latents.to(vae.dtype)), (NO_COLOURS, DECODED), notice)


def _finite(vae: Any, compute: Callable[[], torch.Tensor], sentences: tuple[str, str], notice: Notice) -> torch.Tensor:
    """Compute with an autoencoder, once more in float32 if that is needed; `sentences` are the error and the notice."""
    with safe_precision(vae):
        made = compute()
    if not torch.isfinite(made).all() and made.dtype != torch.float32:
        with in_precision(vae, torch.float32):
            made = compute()
        notice(sentences[1])
    if not torch.isfinite(made).all():
        raise ModelError(sentences[0])
    return made


def unscaled(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Turn a denoiser's latents (B, C, h, w) into those of the autoencoder, in the same patches."""
    mean, deviation, scale = codec_of(pipe.vae).statistics(pipe.vae, latents)
    return latents * deviation / scale + mean


def in_cells(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Lay the patches of a denoiser's latents out as the autoencoder's cells, (B, C, h, w)."""
    return pixel_shuffle(latents, codec_of(pipe.vae).patch)


def as_picture(pipe: Any, latents: Any) -> Any:
    """Return a denoiser's latents (B, C, h, w) as its pipeline takes them in place of a picture; pictures stay what they are."""
    return unscaled(pipe, latents) if codec_of(pipe.vae).raw else latents


def cell_size(pipe: Any) -> int:
    """Return how many pixels a side one cell of a denoiser's latents stands for."""
    return pipe.vae_scale_factor * codec_of(pipe.vae).patch


def noise_shape(pipe: Any, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the shape of one picture's latents, (1, C, h, w), for a size in pixels."""
    cell = cell_size(pipe)
    return 1, channels_of(pipe.vae) * codec_of(pipe.vae).patch ** 2, height // cell, width // cell


def packed(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Arrange latents (B, C, h, w) as the pipeline wants them: (B, h/2 * w/2, 4 C) if it works on rows of patches.

    Where the autoencoder's latents are patches already, the pipeline makes rows of them itself.
    """
    rows = hasattr(pipe, "_pack_latents") and codec_of(pipe.vae).patch == 1
    return pipe._pack_latents(latents, *latents.shape) if rows else latents


def unpacked(pipe: Any, latents: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Arrange a pipeline's latents as (B, C, h, w); `size` is the width and height in pixels, needed for rows of patches."""
    if latents.ndim == 4:
        return latents
    assert size is not None
    if codec_of(pipe.vae).patch > 1:
        _, channels, rows, columns = noise_shape(pipe, *size)
        return latents.permute(0, 2, 1).reshape(-1, channels, rows, columns)
    made = pipe._unpack_latents(latents, size[1], size[0], pipe.vae_scale_factor)
    return made[:, :, 0] if made.ndim == 5 else made  # a picture is a film of one frame


def denoiser(pipe: Any) -> Any:
    """Return the network that is run at every step."""
    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
