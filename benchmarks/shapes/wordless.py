"""Does a model without words draw shapes? `python -m benchmarks.shapes.wordless DIR --number 64` prints one JSON line.

DIR is what `python -m trainers unconditional` made. The judge reads each picture back as one object on a background; that reading is
drawn again, and `agreement` is the mean share of pixels whose nearest palette colours are the same. A picture counts as `recognisable`
if the judge finds one object and 95 % agree: so do 93 % of rendered pictures of 64 pixels, and no noise.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from PIL import Image

from benchmarks.shapes.render import render
from benchmarks.shapes.world import COLOURS, Scene, Thing
from trainers.scorers.reading import judge

ENOUGH = 0.95


def agreement(picture: np.ndarray) -> float:
    """Return the share of pixels that a picture has in common with what the judge reads in it.

    Args:
        picture: (S, S, 3) uint8 RGB, S a multiple of 32 from 64 on.

    Returns:
        0 to 1; 0 if it does not show one object.
    """
    seen = judge(picture)
    if len(seen.things) != 1:
        return 0.0
    one = seen.things[0]
    scene = Scene((Thing(one.colour, one.shape, one.x, one.y, one.radius),), seen.background, one.style)
    again = render(scene, random.Random(0), len(picture))
    return float((_palette(picture) == _palette(again)).mean())


def _palette(picture: np.ndarray) -> np.ndarray:
    """Return the place of each pixel's nearest colour of the world, (H, W)."""
    colours = np.array(list(COLOURS.values()), float)
    return np.linalg.norm(picture[:, :, None].astype(float) - colours, axis=3).argmin(axis=2)


def drawn(folder: Path, number: int, steps: int) -> list[np.ndarray]:
    """Draw pictures with seeds 0, 1, …, (S, S, 3) uint8 each."""
    pipe: Any = DDIMPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    pictures: list[np.ndarray] = []
    for start in range(0, number, 16):
        seeds = [torch.Generator().manual_seed(seed) for seed in range(start, min(start + 16, number))]
        made = pipe(batch_size=len(seeds), generator=seeds, num_inference_steps=steps)
        pictures += [np.array(picture.convert("RGB")) for picture in made.images]
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sheet", type=Path, help="PNG of the first 16")
    flags = parser.parse_args()
    pictures = drawn(flags.folder, flags.number, flags.steps)
    if flags.sheet:
        rows = [np.hstack(pictures[start : start + 4]) for start in range(0, min(16, len(pictures) // 4 * 4), 4)]
        Image.fromarray(np.vstack(rows)).save(flags.sheet)
    found = [agreement(picture) for picture in pictures]
    told = {"recognisable": mean(one >= ENOUGH for one in found), "agreement": mean(found)}
    print(json.dumps({"number": len(found)} | {name: round(value, 3) for name, value in told.items()}))


if __name__ == "__main__":
    main()
