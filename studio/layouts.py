"""What a single file of weights holds, told by the names and shapes of its tensors: no configuration comes with it.

Names are turned into diffusers' own first; the configuration follows from the shapes. Reads no file and loads nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Shapes = Mapping[str, Sequence[int]]
Rules = tuple[tuple[str, str], ...]

WHOLE_MODEL = ("model.diffusion_model.", "conditioner.", "cond_stage_model.")
VAE_PREFIXES = ("first_stage_model.", "vae.", "")
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
VAE_RULES: Rules = (  # latent-diffusion's names, and those of diffusers before 0.15
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"(attentions\.0)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.0)\.(?:q|query)\.", r"\1.to_q."),
    (r"(attentions\.0)\.(?:k|key)\.", r"\1.to_k."),
    (r"(attentions\.0)\.(?:v|value)\.", r"\1.to_v."),
    (r"(attentions\.0)\.(?:proj_out|proj_attn)\.", r"\1.to_out.0."),
)
RESNET = r"resnets\.\d+\.(?:norm1|norm2|conv1|conv2|conv_shortcut)"
VAE_NAME = re.compile(
    r"(?:post_)?quant_conv\.\w+|(?:en|de)coder\.(?:conv_in|conv_out|conv_norm_out|"
    rf"(?:down|up)_blocks\.\d+\.(?:{RESNET}|(?:down|up)samplers\.0\.conv)|"
    rf"mid_block\.(?:{RESNET}|attentions\.0\.(?:group_norm|to_q|to_k|to_v|to_out\.0)))\.(?:weight|bias)"
)


def count(shapes: Shapes, pattern: str) -> int:
    """Return how many numbers, from 0 on without a gap, a pattern with one group finds in the names."""
    numbers = {int(at[1]) for name in shapes if (at := re.match(pattern, name))}
    return next(number for number in range(len(numbers) + 1) if number not in numbers)


def renamed(name: str, rules: Rules) -> str:
    """Return a tensor's name after all rules, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Return the name in a file -> the name in AutoencoderKL, for every tensor of an autoencoder.

    Raises:
        ValueError: saying what the file is instead.
    """
    every = list(names)
    if any(name.startswith(WHOLE_MODEL) for name in every):
        raise ValueError("it is a whole checkpoint and not a VAE; copy the file of the VAE alone")
    prefix = next(one for one in VAE_PREFIXES if not one or any(name.startswith(one) for name in every))
    found = {name: name.removeprefix(prefix) for name in every if name.removeprefix(prefix).startswith(VAE_PARTS)}
    if any(re.match(r"(?:(?:en|de)coder\.)?(?:layers\.)?\d+\.", one) for one in (*every, *found.values())):
        raise ValueError(f"it is a {TINY}")
    levels = [int(at[1]) for one in found.values() if (at := re.match(r"decoder\.up\.(\d+)\.", one))]
    if levels:  # latent-diffusion counts a decoder's levels from the picture's side, diffusers from the other
        last = max(levels)
        found = {
            name: re.sub(r"^decoder\.up\.(\d+)\.", lambda at: f"decoder.up.{last - int(at[1])}.", one)
            for name, one in found.items()
        }
    found = {name: renamed(one, VAE_RULES) for name, one in found.items()}
    if not {"encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_out.weight"} <= set(found.values()):
        raise ValueError("it holds no whole autoencoder (encoder and decoder); copy a VAE's file")
    if strange := next((name for name, one in found.items() if not VAE_NAME.fullmatch(one)), None):
        raise ValueError(f"it is an autoencoder of another build ({strange}); only AutoencoderKL's can be used")
    return found


TINY = "TAESD (AutoencoderTiny), which does not say for which family it was made; copy the family's full VAE"


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Return AutoencoderKL's configuration as far as shapes, under its own names, tell it.

    Raises:
        ValueError: if it is no autoencoder of pictures in three colours.
    """
    first, last = shapes["encoder.conv_in.weight"], shapes["decoder.conv_out.weight"]
    if len(first) != 4 or (first[1], last[0]) != (3, 3):
        raise ValueError("it is no autoencoder of pictures in three colours; copy the VAE of an image model")
    levels, layers = 0, 0
    while f"encoder.down_blocks.{levels}.resnets.0.conv1.weight" in shapes:
        levels += 1
    while f"encoder.down_blocks.0.resnets.{layers}.conv1.weight" in shapes:
        layers += 1
    if not levels:
        raise ValueError("it holds no whole autoencoder (encoder and decoder); copy a VAE's file")
    return {
        "block_out_channels": [shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": layers,
        "latent_channels": shapes["encoder.conv_out.weight"][0] // 2,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


CONTROL_PREFIX = "control_model."
NO_CONTROLNET = (  # the first that a tensor's name matches says what the file is instead
    (
        r"lllite_",
        "it is a ControlNet-LLLite, which changes the model's own layers and is not supported; copy a ControlNet",
    ),
    (
        r"lora_controlnet$|(?:input_blocks|middle_block|down_blocks|mid_block)\..*\.(?:up|down|lora_up|lora_down)(?:\.weight)?$",
        "it is a Control-LoRA, which is only a part of a ControlNet; copy the full ControlNet",
    ),
    (r"difference$", "it holds only the difference to a model (an extracted ControlNet); copy the full ControlNet"),
    (
        r"(?:image_proj|ip_adapter)\.",
        "it is an IP-Adapter; put it into a folder of its own, with `image_encoder` beside it",
    ),
    (
        r"(?:adapter\.)?(?:body|conv_in|unshuffle)\.\d+\.|(?:adapter\.)?body\.",
        "it is a T2I-Adapter in one file; copy its diffusers folder (config.json and weights)",
    ),
    (
        r"(?:controlnet_blocks|transformer_blocks|single_transformer_blocks|double_blocks)\.",
        "it is a ControlNet for a transformer (SD3, Flux) in one file; copy its diffusers folder (config.json and weights)",
    ),
)
RESNET_RULES: Rules = (
    (r"^in_layers\.0\.", "norm1."),
    (r"^in_layers\.2\.", "conv1."),
    (r"^emb_layers\.1\.", "time_emb_proj."),
    (r"^out_layers\.0\.", "norm2."),
    (r"^out_layers\.3\.", "conv2."),
    (r"^skip_connection\.", "conv_shortcut."),
)
CONTROL_RULES: Rules = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^label_emb\.0\.0\.", "add_embedding.linear_1."),
    (r"^label_emb\.0\.2\.", "add_embedding.linear_2."),
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^zero_convs\.(\d+)\.0\.", r"controlnet_down_blocks.\1."),
    (r"^middle_block_out\.0\.", "controlnet_mid_block."),
)
CONTROL_PARTS = (
    "conv_in.",
    "time_embedding.linear_",
    "add_embedding.linear_",
    "controlnet_cond_embedding.",
    "controlnet_down_blocks.",
    "controlnet_mid_block.",
    "down_blocks.",
    "mid_block.",
)


def controlnet_names(names: Iterable[str]) -> dict[str, str]:
    """Return the name in a file -> the name in ControlNetModel.

    Raises:
        ValueError: saying what the file is instead.
    """
    every = list(names)
    inside = [name for name in every if name.startswith(CONTROL_PREFIX)] or every
    bare = {name: name.removeprefix(CONTROL_PREFIX) for name in inside}
    for pattern, reason in NO_CONTROLNET:
        if any(re.match(pattern, one) for one in (*every, *bare.values())):
            raise ValueError(reason)
    found = bare
    if "input_hint_block.0.weight" in bare.values():
        prefixes = _control_prefixes(set(bare.values()))
        found = {name: _control_name(one, prefixes) for name, one in bare.items()}
    if "controlnet_cond_embedding.conv_in.weight" not in found.values():
        raise ValueError("it holds no ControlNet; copy a ControlNet's file")
    if strange := next((name for name, one in found.items() if not one.startswith(CONTROL_PARTS)), None):
        raise ValueError(f"it is a ControlNet of another build ({strange}), such as a Union, which is not supported")
    return found


def _control_prefixes(names: set[str]) -> dict[str, str]:
    """Return latent-diffusion's place of each block of a ControlNet -> diffusers'."""
    made = {"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0"}
    made["middle_block.2"] = "mid_block.resnets.1"
    block = layer = 0
    number = 1
    while any(name.startswith(f"input_blocks.{number}.") for name in names):
        if f"input_blocks.{number}.0.op.weight" in names:
            made[f"input_blocks.{number}.0.op"] = f"down_blocks.{block}.downsamplers.0.conv"
            block, layer = block + 1, 0
        else:
            made[f"input_blocks.{number}.0"] = f"down_blocks.{block}.resnets.{layer}"
            made[f"input_blocks.{number}.1"] = f"down_blocks.{block}.attentions.{layer}"
            layer += 1
        number += 1
    hints = sorted({int(at[1]) for name in names if (at := re.match(r"input_hint_block\.(\d+)\.", name))})
    embedded = ["conv_in", *(f"blocks.{place}" for place in range(len(hints) - 2)), "conv_out"]
    return made | {
        f"input_hint_block.{hint}": f"controlnet_cond_embedding.{one}"
        for hint, one in zip(hints, embedded, strict=False)
    }


def _control_name(name: str, prefixes: dict[str, str]) -> str:
    """Return diffusers' name of one of a ControlNet's tensors."""
    parts = name.split(".")
    for length in (4, 3, 2):
        if place := prefixes.get(".".join(parts[:length])):
            return f"{place}.{renamed('.'.join(parts[length:]), RESNET_RULES)}"
    return renamed(name, CONTROL_RULES)


def controlnet_config(shapes: Shapes) -> dict[str, Any]:
    """Return ControlNetModel's configuration as far as shapes, under its own names, tell it.

    Raises:
        ValueError: if it is no ControlNet that reads the text.
    """
    steps, embedding = 1, "controlnet_cond_embedding."
    widths = [shapes[f"{embedding}conv_in.weight"][0]]
    while f"{embedding}blocks.{steps}.weight" in shapes:
        widths.append(shapes[f"{embedding}blocks.{steps}.weight"][0])
        steps += 2
    told = {
        "conditioning_channels": shapes[f"{embedding}conv_in.weight"][1],
        "conditioning_embedding_out_channels": widths,
    }
    try:
        return told | downward_config(shapes)
    except ValueError:
        raise ValueError("it is no ControlNet that reads the text; copy a ControlNet's file") from None


def downward_config(shapes: Shapes) -> dict[str, Any]:
    """Return what shapes, under diffusers' names, tell of a UNet's way down and its middle.

    Raises:
        ValueError: if no layer of it reads the text.
    """
    levels, layers = 0, 0
    while f"down_blocks.{levels}.resnets.0.conv1.weight" in shapes:
        levels += 1
    while f"down_blocks.0.resnets.{layers}.conv1.weight" in shapes:
        layers += 1
    context = next((shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")), None)
    inner = next((shape for name, shape in shapes.items() if name.endswith(".attentions.0.proj_in.weight")), None)
    if not levels or context is None or inner is None:
        raise ValueError("it holds no denoiser that reads the text")
    middle = _depth(shapes, "mid_block")
    depths = [_depth(shapes, f"down_blocks.{level}") for level in range(levels)]
    config: dict[str, Any] = {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "layers_per_block": layers,
        "transformer_layers_per_block": [depth or 1 for depth in depths[:-1]] + [depths[-1] or middle or 1],
        "cross_attention_dim": context,
        "use_linear_projection": len(inner) == 2,
    }
    if "add_embedding.linear_1.weight" in shapes:
        width = shapes["add_embedding.linear_1.weight"][1]
        config |= {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": width}
    return config


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Return UNet2DConditionModel's configuration as far as shapes, under latent-diffusion's names, tell it.

    Raises:
        ValueError: if no layer of it reads the text.
    """
    prefixes = _control_prefixes(set(shapes))
    config = downward_config({_control_name(name, prefixes): shape for name, shape in shapes.items()})
    ups = ["CrossAttnUpBlock2D" if "CrossAttn" in name else "UpBlock2D" for name in config["down_block_types"]]
    return config | {"up_block_types": ups[::-1], "out_channels": shapes["out.2.weight"][0]}


def _depth(shapes: Shapes, block: str) -> int:
    """Return how many transformer layers the first attention of a block has; 0 without attention."""
    depth = 0
    while f"{block}.attentions.0.transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    return depth
