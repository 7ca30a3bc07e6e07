"""Models that draw without words, as the engine calls pipelines: diffusers' own take no size, no start and no callback.

A UNet on pixels (Ho et al. 2020, arXiv:2006.11239) has no autoencoder: its latents are the picture, between -1 and 1.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

AfterStep = Callable[[Any, int, Any, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def step_options(scheduler: Any, generator: Sequence[torch.Generator], eta: float) -> dict[str, Any]:
    """Return what a scheduler's steps are told besides; some draw no noise."""
    wanted = inspect.signature(scheduler.step).parameters
    return {name: told for name, told in {"generator": list(generator), "eta": eta}.items() if name in wanted}


class Pixels:
    """Stands where other pipelines have an autoencoder, and changes nothing.

    Args:
        network: whose pictures, number format and place are meant.
    """

    def __init__(self, network: UNet2DModel | UNet2DConditionModel) -> None:
        self._network = network
        self.config = {"latent_channels": 3}  # red, green, blue; a network may see another picture besides

    @property
    def dtype(self) -> torch.dtype:
        return self._network.dtype

    @property
    def device(self) -> torch.device:
        return self._network.device

    def to(self, *_: Any) -> "Pixels":
        """Stay: there are no weights."""
        return self


class DDPMPipeline(DiffusionPipeline):
    """Draws from noise.

    Args:
        unet: sees pictures (B, 3, H, W).
        scheduler: of any kind that the network's own noise allows.
    """

    def __init__(self, unet: UNet2DModel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.vae = Pixels(unet)
        self.vae_scale_factor = 1
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self.num_timesteps = 0

    @torch.no_grad()
    def __call__(
        self,
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        generator: Sequence[torch.Generator],
        callback_on_step_end: AfterStep,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        **_: Any,
    ) -> None:
        """Draw one picture a generator; `callback_on_step_end` sees them as they become."""
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        noise = self._noise(generator, height, width) if latents is None else latents
        scale = getattr(self.scheduler, "init_noise_sigma", 1.0)
        self._denoise(noise * scale, self.scheduler.timesteps, generator, eta, callback_on_step_end)

    def _noise(self, generator: Sequence[torch.Generator], height: int, width: int) -> torch.Tensor:
        shape = (len(generator), self.unet.config["in_channels"], height, width)
        return randn_tensor(shape, generator=list(generator), device=self._execution_device, dtype=self.unet.dtype)

    def _denoise(
        self,
        pictures: torch.Tensor,
        timesteps: torch.Tensor,
        generator: Sequence[torch.Generator],
        eta: float,
        after_step: AfterStep,
    ) -> None:
        """Go through the timesteps."""
        told = step_options(self.scheduler, generator, eta)
        self.num_timesteps = len(timesteps)
        for step, timestep in enumerate(timesteps):
            seen = self.scheduler.scale_model_input(pictures, timestep)
            said = self.unet(seen, timestep, return_dict=False)[0]
            pictures = self.scheduler.step(said, timestep, pictures, return_dict=False, **told)[0]
            after_step(self, step, timestep, {"latents": pictures})


class ScoreSdeVePipeline(DDPMPipeline):
    """Draws with a score model by predictor and corrector (Song et al. 2021, arXiv:2011.13456, algorithm 2).

    Its network knows pictures between 0 and 1, and noise that becomes as large as `sigma_max`.
    """

    def _denoise(
        self,
        pictures: torch.Tensor,
        timesteps: torch.Tensor,
        generator: Sequence[torch.Generator],
        eta: float,
        after_step: AfterStep,
    ) -> None:
        """Go through the noise levels, each picture for itself: the corrector's step is as long as a batch's mean says."""
        self.scheduler.set_sigmas(len(timesteps))
        self.num_timesteps = len(timesteps)
        rows = list(pictures.split(1))
        for step, (timestep, sigma) in enumerate(zip(timesteps, self.scheduler.sigmas, strict=True)):
            means = []
            for place, source in enumerate(generator):
                for _ in range(self.scheduler.config["correct_steps"]):
                    told = self._score(rows[place], sigma)
                    rows[place] = self.scheduler.step_correct(told, rows[place], generator=source).prev_sample
                told = self._score(rows[place], sigma)
                rows[place], mean = self.scheduler.step_pred(
                    told, timestep, rows[place], generator=source, return_dict=False
                )
                means.append(mean)
            after_step(self, step, timestep, {"latents": torch.cat(means) * 2 - 1})

    def _score(self, picture: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Ask for the gradient of the log density, (1, 3, H, W)."""
        return self.unet(picture, sigma.expand(1).to(picture.device), return_dict=False)[0]


class DDPMImg2ImgPipeline(DDPMPipeline):
    """Draws from a picture that noise is added to (SDEdit: Meng et al. 2021, arXiv:2108.01073)."""

    @torch.no_grad()
    def __call__(
        self,
        *,
        image: torch.Tensor,
        strength: float,
        num_inference_steps: int,
        generator: Sequence[torch.Generator],
        callback_on_step_end: AfterStep,
        eta: float = 0.0,
        **_: Any,
    ) -> None:
        """Draw from pictures (B, 3, H, W) in [-1, 1], or one for all; `strength` is the part of the steps that is gone."""
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        left = num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps)
        begin = left * self.scheduler.order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        timesteps = self.scheduler.timesteps[begin:]
        noise = self._noise(generator, *image.shape[-2:])
        start = image.to(noise).expand_as(noise)
        noisy = self.scheduler.add_noise(start, noise, timesteps[:1].repeat(len(noise)))
        self._denoise(noisy, timesteps, generator, eta, callback_on_step_end)
