"""`unconditional`: a UNet learns from scratch to draw what a folder shows, without words; or a DiT, by classes."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from trainers.data import Batch
from trainers.denoisers import Told
from trainers.dit import DitMethod
from trainers.losses import Process
from trainers.method import Rate
from trainers.models import Pixels, earlier_network
from trainers.preconditioning import preconditioning_of
from trainers.sheet import draw_grid
from trainers.unconditional_configs import UnconditionalConfig
from trainers.wordless import WordlessMethod

GROUPS = 32  # of normalisation, or the most that divide every level's channels


class UnconditionalMethod(WordlessMethod):
    """A UNet on pixels, in float32; with bf16 it is cast for each computation only."""

    def __init__(self, config: UnconditionalConfig, parts: Pixels) -> None:
        super().__init__(config, cast(Any, parts))
        torch.manual_seed(config.seed)
        self._way = preconditioning_of(config)
        new: Any = UNet2DModel(**shape_of(config), **self._way.shape)
        self.network: Any = (
            earlier_network(Path(config.init_from), "unet", new, self._way.scheduler) if config.init_from else new
        )
        self.network.to(parts.device.place).train()
        if config.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()

    def rates(self) -> list[Rate]:
        learning = [p for p in self.network.parameters() if p.requires_grad]  # Fourier features stay as they were drawn
        return [Rate("unet", learning, self.config.learning_rate)]

    def process(self, latents: torch.Tensor) -> Process:
        return self._way.process

    def clean(self, batch: Batch) -> torch.Tensor:
        pixels = batch.latents.to(self.parts.device.place)
        return (pixels + 1) / 2 if self._way.zero_one else pixels

    def told(self, batch: Batch) -> Told:
        return {}

    def predict(self, noisy: torch.Tensor, steps: torch.Tensor, told: Told, batch: Batch) -> torch.Tensor:
        """Ask the network, (B, 3, H, W) each way."""
        return self.network(noisy, steps, return_dict=False)[0]

    def save(self, folder: Path, name: str, facts: dict[str, str]) -> Path:
        """Write a pipeline folder that diffusers loads."""
        usual = {"scheduler": "DDIM"} if self.config.preconditioning == "ddpm" else {}
        pipe = self._way.saved(unet=self.network, scheduler=self._way.scheduler)
        return self.saved(pipe, folder / name, facts, **usual)

    def draw(self, artifact: Path, picture: Path) -> bool:
        """Draw a grid with the saved pipeline; for DDPM by DDIM (Song et al. 2020, arXiv:2010.02502)."""
        return draw_grid(self._way.drawn, artifact, picture, self.config, self.parts.device.place)

    def usage(self) -> str:
        return "Choose it in Generate; it reads no prompt."

    def code(self, prompt: str) -> str:
        name = self._way.saved.__name__
        return "\n".join(
            [
                f"from diffusers import {name}",
                "",
                f"pipe = {name}.from_pretrained({self.config.output_name!r})",
                f'pipe(num_inference_steps={self.config.num_inference_steps}).images[0].save("picture.png")',
            ]
        )


def shape_of(config: UnconditionalConfig) -> dict[str, Any]:
    """Return how the network is built."""
    side, levels = config.resolution[0], len(config.channels)
    attends = [side // 2**level <= config.attention_from for level in range(levels)]
    return {
        "sample_size": side,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple("AttnDownBlock2D" if one else "DownBlock2D" for one in attends),
        "up_block_types": tuple("AttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)),
        "add_attention": config.attention_from > 0,
        "norm_num_groups": math.gcd(GROUPS, *config.channels),
    }


def unconditional(config: UnconditionalConfig) -> type[WordlessMethod]:
    """Return the class of the method for a config."""
    return DitMethod if config.architecture == "dit" else UnconditionalMethod
