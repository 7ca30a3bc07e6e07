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
