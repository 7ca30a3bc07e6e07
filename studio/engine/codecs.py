"""Autoencoders by class: how each is called, and what a denoiser makes of its latents. A new class is a line in `CODECS`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Statistics = tuple[Any, Any, float]  # mean and deviation (numbers, or (1, C, 1, 1)) and scale


def _encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return vae.encode(pixels).latent_dist.mode()


def _decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents, return_dict=False)[0]


def _encode_frame(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encode with an autoencoder of films: a picture is a film of one frame."""
    return vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]


def _decode_frame(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]


def _from_config(vae: Any, like: torch.Tensor) -> Statistics:
    config = vae.config
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    scale = config.get("scaling_factor", 1.0)
    if mean is None or deviation is None:
        return config.get("shift_factor") or 0.0, 1.0, scale
    return _row(mean, like), _row(deviation, like), scale


def _from_norm(vae: Any, like: torch.Tensor) -> Statistics:
    deviation = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    return _row(vae.bn.running_mean, like), _row(deviation, like), 1.0


def _no_change(vae: Any, like: torch.Tensor) -> Statistics:
    return 0.0, 1.0, 1.0


def _row(numbers: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(numbers).to(device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Codec:
    """One class of autoencoders.

    Attributes:
        encode: from pixels (B, 3, H, W) in [-1, 1] to its own latents (B, C, h, w), the mean where it has a distribution.
        decode: the way back.
        statistics: of its latents, of all `patch` x `patch` cells together.
        patch: cells a side that the denoiser sees as one.
        raw: whether pipelines that take latents for a picture want them as the autoencoder makes them.
    """

    encode: Callable[[Any, torch.Tensor], torch.Tensor] = _encode
    decode: Callable[[Any, torch.Tensor], torch.Tensor] = _decode
    statistics: Callable[[Any, torch.Tensor], Statistics] = _from_config
    patch: int = 1
    raw: bool = False


CODECS = {
    "AutoencoderKLFlux2": Codec(statistics=_from_norm, patch=2, raw=True),
    "AutoencoderKLQwenImage": Codec(_encode_frame, _decode_frame),
    "AutoencoderDC": Codec(encode=lambda vae, pixels: vae.encode(pixels).latent),
    "Pixels": Codec(lambda vae, pixels: pixels, lambda vae, latents: latents, _no_change),
    "VQModel": Codec(
        encode=lambda vae, pixels: vae.encode(pixels).latents,
        decode=lambda vae, latents: vae.decode(latents, force_not_quantize=True).sample,
        statistics=_no_change,  # its `scaling_factor` is a default that Kandinsky's pipelines never use
    ),
}
USUAL = Codec()


def codec_of(vae: Any) -> Codec:
    """Return how an autoencoder is called."""
    return CODECS.get(type(vae).__name__, USUAL)


def channels_of(vae: Any) -> int:
    """Return how many channels an autoencoder's own latents have."""
    return vae.config.get("latent_channels") or vae.config.z_dim
