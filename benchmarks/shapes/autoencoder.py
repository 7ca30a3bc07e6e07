"""Stages `vae` and `decoder`: an AutoencoderKL for 128 px, f = 8, four latent channels, so that the denoiser sees 16 x 16 x 4."""

import logging
import random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from benchmarks.shapes.render import render, render_doodle
from benchmarks.shapes.world import training_scene

logger = logging.getLogger(__name__)

SIDE = 128
CROP = 64
KL_WEIGHT = 2e-4
FULL_PICTURES_FROM = (
    0.6  # GroupNorm's statistics differ between crops and whole pictures: the last part sees whole ones
)


def new_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder with a small posterior variance, so that it starts as a plain autoencoder."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
        force_upcast=False,
        scaling_factor=1.0,
    )
    vae.quant_conv.weight.data[4:] = 0
    vae.quant_conv.bias.data[4:] = -5
    return vae.to(memory_format=torch.channels_last)


def pictures(rng: random.Random, number: int, *, doodles: float = 0.25) -> torch.Tensor:
    """Draw `number` training pictures, (N, 3, 128, 128) in [-1, 1]."""
    drawn = [
        render_doodle(rng, SIDE) if rng.random() < doodles else render(training_scene(rng), rng, SIDE)
        for _ in range(number)
    ]
    return to_tensor(np.stack(drawn))


def to_tensor(drawn: np.ndarray) -> torch.Tensor:
    """From (N, H, W, 3) uint8 to (N, 3, H, W) float in [-1, 1]."""
    return (torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )


def crops(whole: torch.Tensor, rng: random.Random, each: int = 2) -> torch.Tensor:
    """Cut `each` random squares of `CROP` px out of every picture, (N * each, 3, CROP, CROP)."""
    cut = []
    for picture in whole:
        for _ in range(each):
            top, left = rng.randint(0, SIDE - CROP), rng.randint(0, SIDE - CROP)
            cut.append(picture[:, top : top + CROP, left : left + CROP])
    return torch.stack(cut).contiguous(memory_format=torch.channels_last)


def difference(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + half the L1 of the horizontal and vertical differences, which keeps edges sharp."""
    gradient = (made.diff(dim=-1) - wanted.diff(dim=-1)).abs().mean() + (
        made.diff(dim=-2) - wanted.diff(dim=-2)
    ).abs().mean()
    return F.l1_loss(made, wanted) + F.mse_loss(made, wanted) + 0.5 * gradient


def autoencoder_loss(vae: AutoencoderKL, fraction: float, rng: random.Random, scale: int = 1) -> torch.Tensor:
    """One step of the joint stage: crops first, whole pictures at the end; `scale` multiplies their number."""
    x = crops(pictures(rng, 4 * scale), rng) if fraction < FULL_PICTURES_FROM else pictures(rng, 3 * scale)
    x = x.to(vae.device)
    posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(rng.getrandbits(63)))
    made = vae.decode(posterior.mean + posterior.std * noise.to(x.device)).sample
    return difference(made, x) + KL_WEIGHT * 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()


def decoder_loss(vae: AutoencoderKL, rng: random.Random, scale: int = 1) -> torch.Tensor:
    """One step of the decoder-alone stage: the latents stay as they are, slightly noisy as a denoiser's are."""
    x = pictures(rng, 3 * scale, doodles=0.2).to(vae.device)
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean
    z = z + 0.03 * torch.randn(z.shape, generator=torch.Generator().manual_seed(rng.getrandbits(63))).to(z.device)
    return difference(vae.decode(z).sample, x)


@torch.no_grad()
def psnr(vae: AutoencoderKL, number: int = 64) -> dict[str, float]:
    """Measure the reconstruction of fresh pictures in dB: {"scenes": …, "doodles": …}."""
    result = {}
    for name, doodles in (("scenes", 0.0), ("doodles", 1.0)):
        x = pictures(random.Random(f"psnr-{name}"), number, doodles=doodles).to(vae.device)
        made = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(16)]).clamp(-1, 1)
        errors = ((made - x) / 2).square().mean(dim=(1, 2, 3))
        result[name] = float((-10 * errors.log10()).mean())
    return result


@torch.no_grad()
def fold_whitening(vae: AutoencoderKL, number: int = 1024) -> None:
    """Give the latents of training pictures zero mean and unit variance a channel, exactly, inside the two 1 x 1 convolutions.

    Stable Diffusion pipelines know a scaling factor but no shift, so both go into `quant_conv` and `post_quant_conv`.
    """
    x = pictures(random.Random("whitening"), number, doodles=0.0).to(vae.device)
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(32)])  # (N, 4, 16, 16)
    mean, scale = z.mean(dim=(0, 2, 3)), 1 / z.std(dim=(0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= scale.view(4, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) * scale
    into.bias[4:] += 2 * scale.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= scale.view(1, 4, 1, 1)
    logger.info("latents whitened: mean %s, scale %s", mean.tolist(), scale.tolist())
