"""Denoisers in files of their own, of families that nothing but the denoiser is published for in one file.

Their shapes say which model they belong to. What no shape says (the noise schedule, how positions turn), and all other parts, are those
of a diffusers folder whose denoiser has the same configuration. Names are the published ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from studio.families import FAMILIES
from studio.layouts import count

Shapes = Mapping[str, Sequence[int]]
PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")  # that another model gives


class Lone(NamedTuple):
    """A family's denoiser.

    Attributes:
        network: its class in diffusers.
        marks: what names begin with, all of them.
        told: entries of its configuration, by its shapes.
    """

    network: str
    marks: tuple[str, ...]
    told: Callable[[Shapes], dict[str, Any]]


def _streams(shapes: Shapes) -> dict[str, Any]:
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    return {
        **_joint(shapes, head),
        "num_layers": count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(shapes, r"single_blocks\.(\d+)\."),
    }


def _joint(shapes: Shapes, head: int) -> dict[str, Any]:
    width, channels = shapes["img_in.weight"]
    return {
        "in_channels": channels,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
    }


def _qwen(shapes: Shapes) -> dict[str, Any]:
    joint = _joint(shapes, shapes["transformer_blocks.0.attn.norm_q.weight"][0])
    return joint | {"num_layers": count(shapes, r"transformer_blocks\.(\d+)\.")}


def _z_image(shapes: Shapes) -> dict[str, Any]:
    width, patch = shapes["x_embedder.weight"]
    return {
        "in_channels": patch // 4,  # 2 x 2 cells
        "dim": width,
        "n_heads": width // shapes["layers.0.attention.q_norm.weight"][0],
        "n_layers": count(shapes, r"layers\.(\d+)\."),
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
    }


LONE: dict[str, Lone] = {
    "chroma": Lone(
        "ChromaTransformer2DModel",
        ("distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.norm.", "single_blocks.0.", "img_in.weight"),
        _streams,
    ),
    "flux2-klein": Lone(
        "Flux2Transformer2DModel",
        ("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.norm.", "single_blocks.0.", "img_in.weight"),
        _streams,
    ),
    "z-image": Lone(
        "ZImageTransformer2DModel",
        ("cap_pad_token", "cap_embedder.1.weight", "noise_refiner.0.", "layers.0.attention.q_norm.weight", "x_embedder.weight"),
        _z_image,
    ),
    "qwen-image": Lone(
        "QwenImageTransformer2DModel",
        ("transformer_blocks.0.img_mod.", "transformer_blocks.0.attn.norm_q.weight", "txt_norm.weight", "img_in.weight"),
        _qwen,
    ),
}  # fmt: skip


def lone_family(shapes: Shapes) -> str:
    """Name the family whose denoiser a file holds, by names without a prefix; "" if it is none of `LONE`."""
    fitting = (name for name, one in LONE.items() if all(any(n.startswith(m) for n in shapes) for m in one.marks))
    return next(fitting, "")


def lone_denoiser(shapes: Shapes, others: int = 0) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return a lone denoiser's family, the beginning of its configuration, and those entries of it that its shapes tell.

    Args:
        shapes: of its tensors, by names without a prefix.
        others: how many tensors the file holds besides.

    Raises:
        ValueError: if there are others, which would not be used, or if it is a model that is not supported.
    """
    family = lone_family(shapes)
    if others:
        raise ValueError(
            f"it holds other parts of {FAMILIES[family].title} beside the denoiser, which are not read from such a file; "
            "get the denoiser alone, or the model in diffusers' folder format"
        )
    if "guidance_in.in_layer.weight" in shapes:
        raise ValueError("it is Flux.2 dev, which is not supported; choose a Flux.2 klein model")
    told = LONE[family].told(shapes)
    return family, {"_class_name": LONE[family].network} | told, told
