"""DiT, which draws classes, as the engine calls pipelines: diffusers' own takes no size, no start and no callback."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.dit import pipeline_dit
from diffusers.utils.torch_utils import randn_tensor

from studio.engine.wordless import AfterStep, step_options
from studio.errors import InvalidRequest

NO_CLASS = 1000  # what diffusers' pipeline asks for in place of a class, whatever the number of classes is


class DiTPipeline(pipeline_dit.DiTPipeline):
    """Draws a class in the latents of an autoencoder (Peebles and Xie 2022, arXiv:2212.09748).

    Args:
        transformer: the denoiser.
        vae: for its latents.
        scheduler: of any kind that the network's own noise allows.
        id2label: place of a class -> its names, with commas between.
    """

    no_class = NO_CLASS

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        vae: AutoencoderKL,
        scheduler: Any,
        id2label: dict[Any, str] | None = None,
    ) -> None:
        super().__init__(transformer, vae, scheduler, id2label)
        self.register_to_config(id2label=id2label)  # else what is built over the same parts has no classes
        self.vae_scale_factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.num_timesteps = 0
        self._guidance_scale = 1.0

    @torch.no_grad()
    def __call__(  # noqa: PLR0913  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        class_labels: torch.Tensor,
        width: int,
        height: int,
        num_inference_steps: int,
        generator: Sequence[torch.Generator],
        callback_on_step_end: AfterStep,
        negative_class_labels: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        **_: Any,
    ) -> None:
        """Draw one picture a generator; `callback_on_step_end` sees their latents as they become.

        Args:
            class_labels: places of the classes, (B,).
            width: in pixels.
            height: in pixels.
            num_inference_steps: of the scheduler.
            generator: one a picture.
            callback_on_step_end: may answer with other `class_labels`, which count from then on.
            negative_class_labels: where guidance leads away from, (B,); None is without guidance.
            guidance_scale: above 1, how strictly the classes are followed.
            latents: what to begin with, (B, C, h, w); None draws noise.
            eta: for schedulers that know it.

        Raises:
            InvalidRequest: if the picture shall be no square, which diffusers' network cannot draw.
        """
        if width != height:
            raise InvalidRequest("width", f"width={width} and height={height} must be the same: a DiT draws squares")
        place = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=place)
        if latents is None:
            side = [size // self.vae_scale_factor for size in (height, width)]
            shape = (len(generator), self.transformer.config["in_channels"], *side)
            latents = randn_tensor(shape, generator=list(generator), device=place, dtype=self.transformer.dtype)
        x, given = latents * getattr(self.scheduler, "init_noise_sigma", 1.0), class_labels.to(place)
        if negative_class_labels is not None:
            given = torch.cat([negative_class_labels.to(place), given])
        self._guidance_scale, self.num_timesteps = guidance_scale, len(self.scheduler.timesteps)
        told = step_options(self.scheduler, generator, eta)
        for step, timestep in enumerate(self.scheduler.timesteps):
            said = self._said(self.scheduler.scale_model_input(x, timestep), timestep, given)
            x = self.scheduler.step(said, timestep, x, return_dict=False, **told)[0]
            answer = callback_on_step_end(self, step, timestep, {"latents": x})
            given = answer.get("class_labels", given)

    def _said(self, seen: torch.Tensor, timestep: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Ask the network about latents (B, C, h, w), with guidance if there are twice as many classes; its variance is left out."""
        halves = len(given) // len(seen)
        when = timestep.reshape(1).expand(len(given))
        said = self.transformer(torch.cat([seen] * halves), timestep=when, class_labels=given, return_dict=False)[0]
        said = said[:, : seen.shape[1]]
        if halves == 1:
            return said
        without, asked = said.chunk(2)
        return without + self._guidance_scale * (asked - without)
