"""Where diffusers' modules lie in a single file of a whole checkpoint, so that a LoRA can be merged into one."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

Rows = tuple[int, int] | None  # of a tensor that holds several modules; None: all of it
Places = dict[tuple[str, str], tuple[str, Rows]]

_UNET = "model.diffusion_model."
_CLIP = {  # prefix of a text encoder in transformers' names -> the network that it is
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
}
_OPEN_CLIP = {"conditioner.embedders.1.model.": "text_encoder_2", "cond_stage_model.model.": "text_encoder"}
_OPEN_LAYERS = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_OPEN_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.*?)[._]?weight$")


def single_names(shapes: Mapping[str, tuple[int, ...]]) -> Places:
    """Return the network and path of every module with a matrix, in diffusers' names -> its tensor and the rows there.

    Args:
        shapes: of a Stable Diffusion 1.x, 2.x or XL checkpoint's tensors, by name; {} is returned for others.
    """
    matrices = {name: shape for name, shape in shapes.items() if name.endswith("weight") and len(shape) > 1}
    places: Places = {}
    for name, shape in matrices.items():
        for prefix, network in _CLIP.items():
            if name.startswith(prefix):
                places[network, name.removeprefix(prefix).removesuffix(".weight")] = name, None
        for prefix, network in _OPEN_CLIP.items():
            if name.startswith(prefix):
                places |= {(network, path): (name, rows) for path, rows in _open_clip(name.removeprefix(prefix), shape)}
    return places | _unet(shapes, matrices)


def _unet(shapes: Mapping[str, tuple[int, ...]], matrices: Collection[str]) -> Places:
    """Let diffusers rename the UNet's tensors, each of which is its number."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    downs = [
        int(at[1]) for name in matrices if (at := re.match(rf"{re.escape(_UNET)}input_blocks\.(\d+)\.0\.op\.", name))
    ]
    if not downs:
        return {}
    config: dict[str, Any] = {"layers_per_block": min(downs) - 1, "class_embed_type": None}
    if f"{_UNET}label_emb.0.0.weight" in matrices:
        config["addition_embed_type"] = "text_time"
    every = [name for name in shapes if name.startswith(_UNET)]
    found = convert_ldm_unet_checkpoint({name: torch.tensor(number) for number, name in enumerate(every)}, config)
    names = {key: every[int(mark)] for key, mark in found.items()}
    return {("unet", key.removesuffix(".weight")): (name, None) for key, name in names.items() if name in matrices}


def _open_clip(name: str, shape: tuple[int, ...]) -> list[tuple[str, Rows]]:
    """Return transformers' modules in one of OpenCLIP's tensors; query, key and value are one there."""
    found = _OPEN_BLOCK.match(name)
    if not found:
        return []
    layer = f"text_model.encoder.layers.{found[1]}."
    if found[2] == "attn.in_proj":
        side = shape[0] // 3
        return [(f"{layer}self_attn.{part}_proj", (i * side, (i + 1) * side)) for i, part in enumerate("qkv")]
    return [(layer + _OPEN_LAYERS[found[2]], None)] if found[2] in _OPEN_LAYERS else []
