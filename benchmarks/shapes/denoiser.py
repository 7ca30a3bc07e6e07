"""Stage `unet`: v-prediction on cached latents, text states made on the fly so that a picture is described anew each time."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.shapes.autoencoder import to_tensor
from benchmarks.shapes.fit import processes, rank
from benchmarks.shapes.render import render
from benchmarks.shapes.text import LONG_BATCHES, WIDTH
from benchmarks.shapes.world import Scene, caption, training_scene
from studio.engine.prompts import chunk_tokens, encode_chunks

logger = logging.getLogger(__name__)

BATCH = 32
EMPTY_PROMPTS = 0.1
NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
}


def new_unet() -> UNet2DConditionModel:
    """Build the untrained denoiser for 16 x 16 x 4 latents."""
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 160),
        layers_per_block=1,
        attention_head_dim=4,  # diffusers reads it as the number of heads
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )
    return unet.to(memory_format=torch.channels_last)


def scene_of(index: int) -> Scene:
    """Return the scene of the cached picture number `index`."""
    return training_scene(random.Random(f"unet-{index}"))


def picture_of(index: int) -> np.ndarray:
    """Draw the cached picture number `index`, (128, 128, 3) uint8, always the same."""
    return render(scene_of(index), random.Random(f"colours-{index}"))


@torch.no_grad()
def cache_latents(vae: AutoencoderKL, number: int, work: Path) -> torch.Tensor:
    """Draw and encode `number` pictures once, this process its share of them; return all, (N, 4, 16, 16) float16."""
    mine = work / f"latents-{number}-{rank()}of{processes()}.safetensors"
    if not mine.exists():
        parts = []
        for start in range(rank(), number, processes() * 64):
            indices = range(start, min(number, start + processes() * 64), processes())
            drawn = np.stack([picture_of(i) for i in indices])
            parts.append(vae.encode(to_tensor(drawn).to(vae.device)).latent_dist.mean.half().cpu().contiguous())
        save_file({"latents": torch.cat(parts)}, mine.with_suffix(".part"))
        mine.with_suffix(".part").replace(mine)
        logger.info("cached %s", mine.name)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    latents = torch.empty(number, 4, 16, 16, dtype=torch.float16)
    for other in range(processes()):
        latents[other :: processes()] = load_file(work / f"latents-{number}-{other}of{processes()}.safetensors")[
            "latents"
        ]
    return latents


def timesteps(rng: random.Random, number: int) -> torch.Tensor:
    """Draw timesteps, (N,): stratified, half uniform and half logit-normal, because shapes are decided in the middle.

    Logit-normal sampling: Esser et al. 2024, arXiv:2403.03206, section 3.1.
    """
    even = [(i + rng.random()) / number for i in range(number)]
    rng.shuffle(even)
    normal = torch.special.ndtri(torch.tensor(even, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)).sigmoid()
    fractions = [float(normal[i]) if i % 2 else even[i] for i in range(number)]
    return (torch.tensor(fractions) * 1000).long().clamp(0, 999)


class DenoiserLoss:
    """The loss of one step: v-prediction (Salimans and Ho 2022, arXiv:2202.00512, appendix D) under classifier-free dropout."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        latents: torch.Tensor,
        scale: int = 1,
    ) -> None:
        self.unet, self.text_encoder, self.tokenizer, self.latents = unet, text_encoder, tokenizer, latents
        self.batch, self.schedule = BATCH * scale, DDPMScheduler(**NOISE)

    def __call__(self, fraction: float, rng: random.Random) -> torch.Tensor:
        indices = [rng.randrange(len(self.latents)) for _ in range(self.batch)]
        states = self.described(indices, rng, EMPTY_PROMPTS)
        return self.loss(indices, states, rng, lambda noisy, t: {})

    def described(self, indices: list[int], rng: random.Random, empty: float) -> torch.Tensor:
        """Describe pictures anew, (B, length, WIDTH); a share of `empty` is left without words."""
        long = rng.random() < LONG_BATCHES / 2
        texts = [caption(scene_of(i), rng, long=float(long)) for i in indices]
        texts = ["" if rng.random() < empty else text for text in texts]
        with torch.no_grad():
            return encode_chunks(self.text_encoder, chunk_tokens(self.tokenizer, texts))

    def loss(
        self,
        indices: list[int],
        states: torch.Tensor,
        rng: random.Random,
        more: Callable[[torch.Tensor, torch.Tensor], dict[str, Any]],
    ) -> torch.Tensor:
        """Noise the pictures and compare velocities; `more` gives the denoiser's other arguments for (noisy latents, t)."""
        device = self.unet.device
        z = self.latents[indices].to(device).float().contiguous(memory_format=torch.channels_last)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(rng.getrandbits(63))).to(device)
        t = timesteps(rng, self.batch).to(device)
        noisy = self.schedule.add_noise(z, noise, t)
        made = self.unet(noisy, t, states, return_dict=False, **more(noisy, t))[0]
        return F.mse_loss(made, self.schedule.get_velocity(z, noise, t))
