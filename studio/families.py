"""Model families as data: which diffusers classes do which task, and what is usual for them. No torch is imported here."""

from dataclasses import dataclass, field
from typing import Any

from studio.errors import ModelError


@dataclass(frozen=True)
class ModelFamily:
    """One family.

    Attributes:
        title: as people call it.
        pipelines: task -> diffusers class name.
        defaults: generation values for a model that has no `studio.yaml`.
        latent_rgb: (5, 3) linear map from latents to colour: one row a channel, then a constant.
    """

    title: str
    pipelines: dict[str, str]
    defaults: dict[str, Any]
    latent_rgb: tuple[tuple[float, float, float], ...]
    cross_attention_dims: frozenset[int] = field(default_factory=frozenset)


# The map for the Stable Diffusion 1/2 autoencoder that A1111 and ComfyUI use for cheap previews.
SD_LATENT_RGB = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
    (0.0, 0.0, 0.0),
)

SD_PIPELINES = {
    "text2image": "StableDiffusionPipeline",
    "image2image": "StableDiffusionImg2ImgPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}
KINDS = {4: "", 9: "inpaint"}  # input channels of a denoiser -> ModelRef.kind
FAMILIES: dict[str, ModelFamily] = {
    "sd1": ModelFamily(
        "Stable Diffusion 1.x",
        SD_PIPELINES,
        {"width": 512, "height": 512, "num_inference_steps": 20, "guidance_scale": 7.0, "scheduler": "Euler a"},
        SD_LATENT_RGB,
    ),
    "sd2": ModelFamily(
        "Stable Diffusion 2.x",
        SD_PIPELINES,
        {"width": 768, "height": 768, "num_inference_steps": 25, "guidance_scale": 7.5, "scheduler": "Euler a"},
        SD_LATENT_RGB,
        frozenset({1024}),
    ),
}


def detect_family(index: dict[str, Any], unet: dict[str, Any]) -> tuple[str, str]:
    """Name the family and the kind of a diffusers folder.

    Args:
        index: content of `model_index.json`.
        unet: content of the denoiser's `config.json`.

    Raises:
        ModelError: if no family has this pipeline, or the denoiser is of a kind that cannot be used.
    """
    class_name = index.get("_class_name")
    known = {name for family in FAMILIES.values() for name in family.pipelines.values()}
    if class_name not in known:
        raise ModelError(f"pipeline {class_name!r} is not supported yet; supported: {', '.join(sorted(known))}")
    channels = unet.get("in_channels")
    if channels not in KINDS:
        raise ModelError(
            f"the denoiser has {channels} input channels (5: depth, 8: instructions), which is not supported yet; "
            "4 (text to image) and 9 (inpainting) are"
        )
    dim = unet.get("cross_attention_dim")
    family = next((name for name, family in FAMILIES.items() if dim in family.cross_attention_dims), "sd1")
    return family, KINDS[channels]


def task_problem(family: str, kind: str, task: str) -> str | None:
    """Say why a model cannot do a task; None if it can."""
    title = FAMILIES[family].title
    if kind == "inpaint" and task != "inpaint":
        return f"this {title} model can only inpaint; give an image and a mask, or choose another model"
    if task not in FAMILIES[family].pipelines:
        return f"{title} cannot do {task}; it can: {', '.join(FAMILIES[family].pipelines)}"
    return None
