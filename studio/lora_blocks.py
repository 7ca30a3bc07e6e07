"""Weights of a LoRA block by block, as A1111's LoRA Block Weight writes them: which numbers a model takes, and what each is for.

A UNet's blocks are counted as Stable Diffusion's first code does: IN00 (what comes before the first block), IN01 …, M00, OUT00 …; a
transformer's from the picture's side. The first number of a list (BASE) is that of the text encoders.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

COARSE = 3  # down, mid, up: for any UNet
_UNET = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")
_TRANSFORMER = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.")
_LAST = ("conv_norm_out.", "conv_out.", "norm_out.", "proj_out.")


class Blocks(NamedTuple):
    """The blocks of a denoiser.

    Attributes:
        layers: residual layers a level of a UNet, without the one more on the way up; 0 for a transformer.
        doubles: of a transformer's blocks those that come before its single ones; 0 for a UNet.
        names: of all blocks, from the input to the output.
        attending: of those that have attention, in which an ordinary LoRA has weights.
    """

    layers: int
    doubles: int
    names: tuple[str, ...]
    attending: tuple[str, ...]

    @property
    def counts(self) -> list[int]:
        """How many numbers a list may have."""
        counts = {len(self.attending) + 1, len(self.names) + 1} | ({COARSE} if self.layers else set())
        return sorted(counts)


def blocks_of(config: Mapping[str, Any]) -> Blocks | None:
    """Return the blocks of a denoiser, told by its configuration; None if it is built in another way."""
    down, up, layers = config.get("down_block_types"), config.get("up_block_types"), config.get("layers_per_block")
    if down and up and isinstance(layers, int):
        levels, each = len(down), layers + 1
        places = [
            ("IN", 1 + level * each + i) for level in range(levels) if "Attn" in down[level] for i in range(layers)
        ]
        places += [("M", 0)]
        places += [("OUT", level * each + i) for level in range(levels) if "Attn" in up[level] for i in range(each)]
        every = [("IN", i) for i in range(levels * each)] + [("M", 0)] + [("OUT", i) for i in range(levels * each)]
        return Blocks(layers, 0, *(tuple(f"{side}{number:02}" for side, number in some) for some in (every, places)))
    if config.get("num_layers"):
        names = [f"B{number:02}" for number in range(config["num_layers"] + (config.get("num_single_layers") or 0))]
        return Blocks(0, config["num_layers"], tuple(names), tuple(names))
    return None


def block_of(module: str, blocks: Blocks) -> str:
    """Return the block of a denoiser that a module, by its dotted name, belongs to."""
    path = f"{module}."
    if found := _TRANSFORMER.match(path):
        return blocks.names[int(found[2]) + (blocks.doubles if found[1].startswith("single") else 0)]
    if path.startswith("mid_block."):
        return "M00"
    if found := _UNET.match(path):
        side, level, kind, number = found[1], int(found[2]), found[3], int(found[4])
        start = level * (blocks.layers + 1)
        if side == "down_blocks":
            return f"IN{start + 1 + (blocks.layers if kind == 'downsamplers' else number):02}"
        return f"OUT{start + (blocks.layers if kind == 'upsamplers' else number):02}"
    return blocks.names[-1] if path.startswith(_LAST) else blocks.names[0]


def block_weights(numbers: Sequence[float], blocks: Blocks | None) -> dict[str, float]:
    """Return the weight of every block by its name, and of the text encoders by BASE; a block that a list does not name has 0.

    Args:
        numbers: down, mid and up; or BASE and one for each block that attends; or BASE and one for each block.
        blocks: of the denoiser.

    Raises:
        ValueError: if that many numbers do not fit.
    """
    if problem := blocks_problem(numbers, blocks):
        raise ValueError(problem)
    assert blocks is not None
    if len(numbers) == COARSE and blocks.layers:
        sides = dict(zip("IMO", numbers, strict=True))
        return {"BASE": 1.0} | {name: sides[name[0]] for name in blocks.names}
    named = blocks.attending if len(numbers) == len(blocks.attending) + 1 else blocks.names
    return dict.fromkeys(blocks.names, 0.0) | dict(zip(("BASE", *named), numbers, strict=True))


def blocks_problem(numbers: Sequence[float], blocks: Blocks | None) -> str:
    """Say why a list of block weights does not fit a denoiser; "" if it does."""
    if blocks is None:
        return "block weights work with no model of this build; leave them out"
    if len(numbers) in blocks.counts:
        return ""
    told = {COARSE: "down, mid, up"} if blocks.layers else {}
    told[len(blocks.attending) + 1] = f"BASE, {', '.join(blocks.attending[:2])} … {blocks.attending[-1]}"
    told[len(blocks.names) + 1] = f"BASE, {', '.join(blocks.names[:2])} … {blocks.names[-1]}"
    allowed = " or ".join(f"{count} ({told[count]})" for count in blocks.counts)
    return f"{len(numbers)} block weights do not fit this model, which takes {allowed}"
