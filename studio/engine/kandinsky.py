"""Kandinsky 2.2's decoders together with the prior that reads their prompts, as the engine calls pipelines.

diffusers 0.42 has the two apart, or in one pipeline whose decoder takes no other scheduler, and calls the autoencoder `movq`.
"""

from typing import Any

from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2 as drawing
from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2_img2img as redrawing
from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2_inpainting as inpainting
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_prior import KandinskyV22PriorPipeline


class Prompted:
    """What makes a decoder read prompts: its prior, and its autoencoder under the name that other pipelines have for it.

    Attributes:
        prior: makes the embedding of a picture from words.
    """

    def __init__(  # noqa: PLR0913 - diffusers reads the components' names off it
        self,
        unet: UNet2DConditionModel,
        scheduler: Any,
        movq: VQModel,
        prior_prior: PriorTransformer,
        prior_image_encoder: Any,
        prior_text_encoder: Any,
        prior_tokenizer: Any,
        prior_scheduler: Any,
        prior_image_processor: Any,
    ) -> None:
        super().__init__(unet=unet, scheduler=scheduler, movq=movq)  # type: ignore[call-arg]
        parts = {
            "prior": prior_prior,
            "image_encoder": prior_image_encoder,
            "text_encoder": prior_text_encoder,
            "tokenizer": prior_tokenizer,
            "scheduler": prior_scheduler,
            "image_processor": prior_image_processor,
        }
        self.register_modules(**{f"prior_{name}": part for name, part in parts.items()})  # type: ignore[attr-defined]
        self.prior = KandinskyV22PriorPipeline(**parts)
        self.prior.set_progress_bar_config(disable=True)
        self.vae_scale_factor = 2 ** (len(movq.config["block_out_channels"]) - 1)
        # Pictures come in their size: diffusers 0.42 would bring them to one whose sides are swapped.
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_resize=False)

    @property
    def vae(self) -> Any:
        """The autoencoder, which diffusers calls `movq` here."""
        return self.movq

    @vae.setter
    def vae(self, autoencoder: Any) -> None:
        self.movq = autoencoder


class KandinskyV22Pipeline(Prompted, drawing.KandinskyV22Pipeline):
    """Draws from text."""


class KandinskyV22Img2ImgPipeline(Prompted, redrawing.KandinskyV22Img2ImgPipeline):
    """Draws from text and a picture."""


class KandinskyV22InpaintPipeline(Prompted, inpainting.KandinskyV22InpaintPipeline):
    """Repaints a part of a picture."""
