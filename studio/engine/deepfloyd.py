"""DeepFloyd IF as the engine calls pipelines: UNets of pixels that hear T5 (after Saharia et al. 2022, arXiv:2205.11487).

A first stage draws 64 pixels a side, a second one four times as many from what the first drew. A model's folder also names a safety
checker, its feature extractor and a watermarker: no class here takes them, so that nothing of them is loaded, no picture becomes
black, and none is marked. What the licence of the weights asks of those who publish pictures is theirs to keep.
"""

import inspect
import itertools
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if import pipeline_if as drawing
from diffusers.pipelines.deepfloyd_if import pipeline_if_img2img as redrawing
from diffusers.pipelines.deepfloyd_if import pipeline_if_inpainting as inpainting
from diffusers.pipelines.deepfloyd_if import pipeline_if_superresolution as enlarging
from PIL import Image

from studio.engine.wordless import AfterStep, Pixels


class Stage:
    """What diffusers' pipelines for IF lack: the words of the others for steps, and an autoencoder that changes nothing.

    Their own `__init__` asks for parts that are not loaded here, so it is not called.

    Attributes:
        num_timesteps: steps of the call at hand.
        noise: that it begins with, if some was given.
    """

    def __init__(self, **parts: Any) -> None:
        self.register_modules(**parts)  # type: ignore[attr-defined]
        self.vae, self.vae_scale_factor = Pixels(parts["unet"]), 1
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self.num_timesteps = 0
        self.noise: torch.Tensor | None = None

    def __call__(
        self,
        *,
        num_inference_steps: int,
        callback_on_step_end: AfterStep,
        latents: torch.Tensor | None = None,
        strength: float | None = None,
        **told: Any,
    ) -> None:
        """Draw pictures; `callback_on_step_end` sees them, (B, 3, H, W) in [-1, 1], as they become.

        Args:
            num_inference_steps: of the whole way.
            callback_on_step_end: called after each; what it saw last is the result.
            latents: noise to begin with, (B, 3, H, W); None is for the generators' own.
            strength: the part of the steps that is gone through, where there is a picture to begin with.
            told: further arguments, of which diffusers' pipelines take what they have: some take no size.
        """
        call = super().__call__  # type: ignore[misc]
        wanted = inspect.signature(call).parameters
        told = {name: value for name, value in (told | {"strength": strength}).items() if name in wanted}
        self.noise = latents
        self.num_timesteps = int(num_inference_steps * (1 if strength is None else strength))
        done = itertools.count()  # diffusers 0.42 counts a step of second order twice

        def after_step(_: int, timestep: Any, pictures: torch.Tensor) -> None:
            callback_on_step_end(self, next(done), timestep, {"latents": pictures})

        steps = {"num_inference_steps": num_inference_steps, "callback": after_step}
        call(**told | steps | {"output_type": "pt"})  # of diffusers' types the one that costs no further work


class FirstStage(Stage):
    """Reads prompts and draws small pictures."""

    def __init__(self, tokenizer: Any, text_encoder: Any, unet: UNet2DConditionModel, scheduler: Any) -> None:
        super().__init__(tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=scheduler)


class IFPipeline(FirstStage, drawing.IFPipeline):
    """Draws from text."""

    def prepare_intermediate_images(self, *told: Any) -> torch.Tensor:
        """Return what to begin with, (B, 3, H, W): given noise, for which diffusers 0.42 has no argument, or the generators'."""
        if self.noise is None:
            return super().prepare_intermediate_images(*told)
        return self.noise * self.scheduler.init_noise_sigma


class IFImg2ImgPipeline(FirstStage, redrawing.IFImg2ImgPipeline):
    """Draws from text and a picture."""


class IFInpaintingPipeline(FirstStage, inpainting.IFInpaintingPipeline):
    """Repaints a part of a picture, whose size counts."""

    def preprocess_mask_image(self, mask_image: Image.Image) -> torch.Tensor:
        """Return a mask as (1, 1, H, W); diffusers would bring it to the network's own size."""
        return torch.from_numpy(np.asarray(mask_image.convert("L")) > 127)[None, None]


class IFSuperResolutionPipeline(Stage, enlarging.IFSuperResolutionPipeline):
    """Draws a first stage's pictures anew and larger; the first stage's T5 has read the prompt."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: Any, image_noising_scheduler: Any) -> None:
        super().__init__(unet=unet, scheduler=scheduler, image_noising_scheduler=image_noising_scheduler)
        self.text_encoder = None  # type: ignore[assignment] - else it tells the number format of the prompt
