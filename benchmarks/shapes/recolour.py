"""Make a LoRA that needs no training: `python -m benchmarks.shapes.recolour --out FILE` teaches the embedded model that red is blue.

What the text encoder says of "a red circle …" is mapped on what it says of "a blue circle …" by one linear map M, found by ridge
regression over captions that also name other colours, which must stay. M - I has a low rank, and multiplied into the keys and
values of each cross-attention it is a LoRA: W (I + D)^T = W + (W V S)(U^T), with D = U S V^T.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.shapes.score import load
from benchmarks.shapes.world import COLOURS, SHAPES, article
from studio.engine.prompts import chunk_tokens, encode_chunks
from studio.settings import ROOT

TOKENS = 16  # all words of a caption lie within
RANK = 16
RIDGE = 0.01


def captions(old: str, new: str) -> list[tuple[str, str]]:
    """Return pairs of captions: things of the old colour are of the new one in the second; everything else is the same."""
    pairs = []
    for colour in COLOURS:
        for background in COLOURS:
            for shape in SHAPES if colour != background else ():
                meant = new if colour == old else colour
                behind = f"on {article(background)} {background} background"
                pairs.append(
                    (f"{article(colour)} {colour} {shape} {behind}", f"{article(meant)} {meant} {shape} {behind}")
                )
    return pairs


@torch.no_grad()
def recolouring(pipe: Any, old: str, new: str, rank: int = RANK) -> dict[str, torch.Tensor]:
    """Return a LoRA for a pipeline's UNet in PEFT's keys, float32."""

    def states(texts: list[str]) -> torch.Tensor:
        said = encode_chunks(pipe.text_encoder, chunk_tokens(pipe.tokenizer, texts))
        return said[:, :TOKENS].reshape(-1, said.shape[-1]).double()  # (captions * TOKENS, width)

    first, second = (states(list(texts)) for texts in zip(*captions(old, new), strict=True))
    same = torch.eye(first.shape[1], dtype=torch.float64)
    moved = torch.linalg.solve(first.T @ first + RIDGE * len(first) / len(same) * same, first.T @ second) - same
    u, s, vh = torch.linalg.svd(moved)
    made = {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            made[f"unet.{name}.lora_A.weight"] = u[:, :rank].T.float().contiguous()
            made[f"unet.{name}.lora_B.weight"] = (
                (module.weight.double() @ (vh[:rank].T * s[:rank])).float().contiguous()
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "presets" / "models" / "shapes")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--old", default="red", choices=list(COLOURS))
    parser.add_argument("--new", default="blue", choices=list(COLOURS))
    flags = parser.parse_args()
    pipe = load(flags.model)
    weights = {name: one.half() for name, one in recolouring(pipe, flags.old, flags.new).items()}
    told = {
        "trigger_words": json.dumps([flags.old]),
        "recommended_weight": "1.0",
        "notes": f"Draws {flags.new} things where the prompt says {flags.old}; backgrounds stay.",
    }
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, flags.out, metadata={"format": "pt"} | told)


if __name__ == "__main__":
    main()
