"""`unconditional`: a UNet learns from scratch to draw what a folder shows, without words (Ho et al. 2020, arXiv:2006.11239)."""

import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from studio.errors import DeviceError, InvalidRequest
from studio.spec import GenerationRequest
from studio.store import writer
from trainers.data import Batch
from trainers.denoisers import Told
from trainers.losses import Diffusion, Process
from trainers.method import Method, Rate
from trainers.models import Pixels
from trainers.network_configs import UnconditionalConfig
from trainers.sheet import grid

GROUPS = 32  # of normalisation, or the most that divide every level's channels


class UnconditionalMethod(Method):
    """A UNet on pixels, in float32; with bf16 it is cast for each computation only."""

    half = False

    def __init__(self, config: UnconditionalConfig, parts: Pixels) -> None:
        super().__init__(config, cast(Any, parts))
        torch.manual_seed(config.seed)
        new: Any = UNet2DModel(**shape_of(config))
        self.network: Any = loaded(Path(config.init_from), new) if config.init_from else new
        self.network.to(parts.device.place).requires_grad_(True).train()
        if config.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        zero = config.rescale_betas_zero_snr
        self.scheduler: Any = DDPMScheduler(
            num_train_timesteps=config.ddpm_num_steps,
            beta_schedule=config.beta_schedule,
            prediction_type=config.prediction_type,
            rescale_betas_zero_snr=zero,
            timestep_spacing="trailing" if zero else "leading",  # pure noise must be asked about (arXiv:2305.08891)
        )
        self._process = Diffusion(
            self.scheduler.alphas_cumprod,
            config.prediction_type,
            "uniform" if config.timestep_sampling == "automatic" else config.timestep_sampling,
            mean=config.logit_mean,
            std=config.logit_std,
            snr_gamma=config.snr_gamma,
        )

    @property
    def averaged(self) -> float | None:
        return self.config.ema_decay if self.config.use_ema else None

    def rates(self) -> list[Rate]:
        return [Rate("unet", list(self.network.parameters()), self.config.learning_rate)]

    def process(self, latents: torch.Tensor) -> Process:
        return self._process

    def clean(self, batch: Batch) -> torch.Tensor:
        return batch.latents.to(self.parts.device.place)

    def told(self, batch: Batch) -> Told:
        return {}

    def predict(self, noisy: torch.Tensor, steps: torch.Tensor, told: Told, batch: Batch) -> torch.Tensor:
        """Ask the network, (B, 3, H, W) each way."""
        return self.network(noisy, steps, return_dict=False)[0]

    def save(self, folder: Path, name: str, facts: dict[str, str]) -> Path:
        """Write a pipeline folder that `DDPMPipeline.from_pretrained` loads."""
        made = folder / name
        DDPMPipeline(unet=self.network, scheduler=self.scheduler).save_pretrained(made, safe_serialization=True)
        (made / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return made

    def request_of(self, artifact: Path, request: GenerationRequest) -> GenerationRequest:
        raise InvalidRequest("model", "a model without words has no requests; its samples are grids")

    def draw(self, artifact: Path, picture: Path) -> bool:
        """Draw a grid with the saved pipeline, by DDIM (Song et al. 2020, arXiv:2010.02502), each picture from its own seed."""
        number = self.config.validation_pictures
        if number and not picture.exists():  # it may be there from before a crash, drawn from the same checkpoint
            pipe: Any = DDIMPipeline.from_pretrained(artifact, local_files_only=True, use_safetensors=True)
            pipe.set_progress_bar_config(disable=True)
            seeds = range(self.config.validation_seed, self.config.validation_seed + number)
            try:
                pipe.to(self.parts.device.place)
                drawn = pipe(
                    batch_size=number,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    num_inference_steps=self.config.num_inference_steps,
                ).images
            except torch.OutOfMemoryError as error:
                raise DeviceError("the samples do not fit into memory; lower validation_pictures") from error
            writer.write_file(picture, grid(drawn))
        return number > 0

    @property
    def asked(self) -> list[Any]:
        return [self.network]

    @property
    def scored(self) -> frozenset[str]:
        return frozenset()

    def usage(self) -> str:
        return "It reads no prompt, so the Generate tab does not offer it."

    def code(self, prompt: str) -> str:
        return "\n".join(
            [
                "from diffusers import DDPMPipeline",
                "",
                f"pipe = DDPMPipeline.from_pretrained({self.config.output_name!r})",
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


def loaded(path: Path, wanted: Any) -> Any:
    """Load the network of an earlier result of the same shape as `wanted`.

    Raises:
        InvalidRequest: if there is none, or it has another shape.
    """
    if not (path / "unet" / "config.json").is_file():
        raise InvalidRequest(
            "init_from", f"init_from={str(path)!r} has no unet/config.json; choose a folder that unconditional made"
        )
    try:
        found: Any = UNet2DModel.from_pretrained(path / "unet", local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidRequest("init_from", f"init_from={str(path)!r} cannot be loaded ({reason})") from None
    for name, here in wanted.config.items():
        there = found.config.get(name)
        if not name.startswith("_") and json.dumps(there) != json.dumps(here):
            raise InvalidRequest(
                "init_from",
                f"init_from={path.name!r} has another shape than this run: {name} is {there} there and {here} here",
            )
    return found
