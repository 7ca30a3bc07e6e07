"""IP-Adapters at work: a denoiser attends to pictures for a while, and is afterwards as it was."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import ImageProjection
from PIL import Image

from studio.engine.parts import IPWeights
from studio.engine.pipelines import first_line, rebuilt
from studio.engine.places import place_of
from studio.errors import ModelError


class Look(NamedTuple):
    """One IP-Adapter at work: its id, how strongly it counts, its weights, and what it looks at."""

    model: str
    scale: float
    weights: IPWeights
    pictures: list[Image.Image]


@contextlib.contextmanager
def unet_sees(pipe: Any, looks: Sequence[Look]) -> Iterator[list[torch.Tensor]]:
    """Let a UNet attend to pictures; yield them encoded, (2, pictures, …) an adapter.

    The first row is for the unconditional half. The UNet's own attention is put back afterwards.
    """
    names, first = [""] * len(looks), looks[0].weights
    loader = rebuilt(pipe, image_encoder=first.encoder, feature_extractor=first.processor)
    try:
        with torch.inference_mode(False):
            loader.load_ip_adapter([look.weights.state for look in looks], names, names, image_encoder_folder=None)
        loader.set_ip_adapter_scale([look.scale for look in looks])
        layers = pipe.unet.encoder_hid_proj.image_projection_layers
        yield [_encoded(pipe, *one) for one in zip(looks, layers, strict=True)]
    finally:
        loader.unload_ip_adapter()


def _encoded(pipe: Any, look: Look, layer: Any) -> torch.Tensor:
    """Encode one IP-Adapter's pictures with its own encoder, (2, pictures, …): each adapter may have another."""
    own = rebuilt(pipe, image_encoder=look.weights.encoder, feature_extractor=look.weights.processor)
    hidden = not isinstance(layer, ImageProjection)
    positive, negative = own.encode_image(look.pictures, place_of(pipe.unet), 1, hidden)
    return torch.stack([negative, positive])


@contextlib.contextmanager
def joint_sees(pipe: Any, looks: Sequence[Look]) -> Iterator[list[torch.Tensor]]:
    """Let the transformer of Stable Diffusion 3 attend to one IP-Adapter's pictures; yield them encoded, (2, pictures, tokens, width).

    The first row is for the unconditional half. The very processors that the transformer had are put back afterwards: diffusers'
    `unload_ip_adapter` would make new ones.

    Raises:
        ModelError: if weights are missing, or have the wrong size.
    """
    (look,) = looks
    transformer, weights = pipe.transformer, look.weights
    processors = dict(transformer.attn_processors)
    own = rebuilt(pipe, image_encoder=weights.encoder, feature_extractor=weights.processor)
    try:
        try:
            with torch.inference_mode(False):
                own.load_ip_adapter(weights.state)
        except torch.OutOfMemoryError:  # a RuntimeError, too, and the engine's to tell
            raise
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(f"IP-Adapter {look.model} does not fit: {first_line(error)}; copy it again") from error
        added = [one for one in transformer.named_parameters() if "image_proj." in one[0] or ".processor." in one[0]]
        missing = [name for name, weight in added if weight.is_meta]
        if missing:  # diffusers leaves what is not in the file without a value
            raise ModelError(f"IP-Adapter {look.model} lacks {len(missing)} weights ({missing[0]}); copy it again")
        own.set_ip_adapter_scale(look.scale)
        seen = own.encode_image(look.pictures, place_of(transformer))  # (pictures, tokens, width)
        yield [torch.stack([torch.zeros_like(seen), seen])]
    finally:
        # first: as long as it is there, its attention counts as the transformer's
        if hasattr(transformer, "image_proj"):
            del transformer.image_proj
        transformer.set_attn_processor(processors)
