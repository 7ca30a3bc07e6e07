"""Parts: models beside the main one, as data: what kinds there are, where their files lie, and which main model each fits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.lora_blocks import blocks_of
from studio.upscalers import BUILT_IN


@dataclass(frozen=True)
class PartKind:
    """One kind of part.

    Attributes:
        title: as people call it.
        folder: below `models/` in the data root, and below `presets/`.
        others: what other tools call that folder.
        classes: `_class_name` in the `config.json` of a diffusers folder -> the config's entries that must equal the main model's,
            by the main model's name for them.
        deep: whether people sort its files into folders.
        beside: whether its folder may also lie beside a folder called `models`, as A1111 has it.
    """

    title: str
    folder: str
    classes: dict[str, dict[str, str]]
    others: tuple[str, ...] = ()
    deep: bool = False
    beside: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """The names that the folder may have."""
        return self.folder, *self.others


UNET_SHAPE = {"cross_attention_dim": "cross_attention_dim", "block_out_channels": "block_out_channels"}
JOINT_NAMES = (
    "in_channels",
    "num_attention_heads",
    "attention_head_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
)
JOINT_SHAPE = {
    name: name for name in JOINT_NAMES
}  # Flux and Stable Diffusion 3 differ in the channels, if in nothing else
SD3_TEXT = ("joint_attention_dim", "caption_projection_dim")
SD3_SHAPE = JOINT_SHAPE | {name: name for name in SD3_TEXT}
VAE = "AutoencoderKL"
CONTROLNET_FOLDERS = ("ControlNet", "controlnet")
KINDS = {
    "controlnet": PartKind(
        "ControlNet",
        "controlnets",
        {"ControlNetModel": UNET_SHAPE, "SD3ControlNetModel": SD3_SHAPE, "FluxControlNetModel": JOINT_SHAPE},
        CONTROLNET_FOLDERS,
    ),
    "t2i_adapter": PartKind(
        "T2I-Adapter", "controlnets", {"T2IAdapter": {"channels": "block_out_channels"}}, CONTROLNET_FOLDERS
    ),
    "ip_adapter": PartKind("IP-Adapter", "controlnets", {}, CONTROLNET_FOLDERS),
    "upscaler": PartKind("upscaler", "upscalers", {}),
    "lora": PartKind("LoRA", "loras", {}, ("Lora", "LoRA", "lora", "LyCORIS"), deep=True),
    "vae": PartKind("VAE", "vae", {VAE: {}}, ("VAE",)),
    "embedding": PartKind("embedding", "embeddings", {}, ("Embeddings", "models/embeddings"), deep=True, beside=True),
}
UNIT_KINDS = {"controls": "controlnet", "t2i_adapters": "t2i_adapter", "ip_adapters": "ip_adapter"}
OWN_VAE = "own"  # the VAE of the model's own files, where its `studio.yaml` names another
RESERVED = {"upscaler": BUILT_IN, "vae": (OWN_VAE,)}


@dataclass(frozen=True)
class Part:
    """A part on disk.

    Attributes:
        shape: what the main model must have, by `shape_of`'s names.
        preprocessor: of the control pictures that a ControlNet was trained on, "" if it does not say.
        names: what calls an embedding in a prompt.
        problem: why it cannot be used, in one sentence; "" if it can.
    """

    kind: str
    id: str
    path: Path
    shape: dict[str, Any]
    preprocessor: str = ""
    names: tuple[str, ...] = ()
    problem: str = ""


PROMPT_WIDTHS: dict[Any, str] = {
    768: " (Stable Diffusion 1.x)",
    1024: " (Stable Diffusion 2.x)",
    2048: " (Stable Diffusion XL)",
}

TEXT_WIDTHS: dict[Any, str] = {
    (768,): " (Stable Diffusion 1.x)",
    (1024,): " (Stable Diffusion 2.x)",
    (768, 1280): " (Stable Diffusion XL)",
}
TOLD = {"cross_attention_dim": PROMPT_WIDTHS, "text_widths": TEXT_WIDTHS}  # what people call a value


def shape_of(denoiser: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    """Return what parts must agree with, from the `config.json` of a denoiser and of an autoencoder.

    Besides entries of the config: `denoiser`, its class; `inner_dim`, the width of a transformer; `attention_layers`, how often a
    transformer attends, which an IP-Adapter must have weights for; `single_blocks`, whether blocks see text and picture as one;
    `blocks`, which a LoRA's block weights must fit. A model that reads embeddings has `text_widths` too.
    """
    names = dict.fromkeys((*UNET_SHAPE, *SD3_SHAPE))
    shape = {name: denoiser[name] for name in names if denoiser.get(name) is not None}
    shape["denoiser"], shape["blocks"] = denoiser.get("_class_name"), blocks_of(denoiser)
    if "joint_attention_dim" in denoiser:
        shape["inner_dim"] = denoiser.get("num_attention_heads", 0) * denoiser.get("attention_head_dim", 0)
    if denoiser.get("num_single_layers"):
        shape["single_blocks"] = True
    if denoiser.get("num_layers") is not None:
        shape["attention_layers"] = denoiser["num_layers"] + len(denoiser.get("dual_attention_layers") or ())
    return shape | vae_shape(vae)


def vae_shape(config: dict[str, Any]) -> dict[str, Any]:
    """Return what two autoencoders of a family have in common; what an old `config.json` leaves out is AutoencoderKL's default."""
    channels = config.get("latent_channels", config.get("z_dim", 4))
    kind = config.get("_class_name", VAE)
    return {
        "latent_channels": channels if kind == VAE else f"{channels} ({kind})",  # no other class can stand in for it
        "scaling_factor": config.get("scaling_factor", 0.18215),
        "downscale_factor": 2 ** (len(config.get("block_out_channels", (64,))) - 1),
    }


def shape_problem(part: Part, shape: dict[str, Any]) -> str:
    """Say why a part does not fit a model of a shape; "" if it does."""
    for name, wanted in part.shape.items():
        if shape.get(name) != wanted:
            there, here = (_told(name, value) for value in (wanted, shape.get(name, "none")))
            return f"it was made for another family: {name} is {there} there and {here} in this model"
    return ""


def _told(name: str, value: Any) -> str:
    value = tuple(value) if isinstance(value, list) else value
    words = " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return words + TOLD.get(name, {}).get(value, "")


def encoder_kind(config: dict[str, Any]) -> str:
    """Return the kind of an image encoder, `clip` or `siglip`, from its `config.json`; "" for another."""
    kind = str(config.get("model_type", "")).removesuffix("_vision_model")
    return kind if kind in ("clip", "siglip") else ""
