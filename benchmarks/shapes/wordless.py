"""Does a model without words draw shapes? `python -m benchmarks.shapes.wordless DIR --number 64` prints one JSON line.

DIR is what `python -m trainers unconditional` made: by DDPM, VE or EDM, or a DiT, which is asked for its classes in turn, and whose
`obedience` is the share of pictures that show one object of the class's shape. The judge reads each picture back as one object on a
background; that reading is drawn again, and `agreement` is the mean share of pixels whose nearest palette colours are the same. A
picture counts as `recognisable` if the judge finds one object and 95 % agree: so do 93 % of rendered pictures of 64 pixels, and no
noise.
"""

import argparse
import json
import random
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
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


def labels_of(folder: Path, number: int) -> list[str]:
    """Return the class that each picture is asked for; [] of a model without classes."""
    classes = DiffusionPipeline.load_config(folder).get("id2label") or {}
    return list(islice(cycle(classes.values()), number)) if classes else []


def drawn(folder: Path, number: int, steps: int, guidance: float = 2.0) -> list[np.ndarray]:
    """Draw pictures with seeds 0, 1, …, (S, S, 3) uint8 each; `guidance` is for classes."""
    saved = DiffusionPipeline.load_config(folder)["_class_name"]
    kind = DDIMPipeline if saved == "DDPMPipeline" else DiffusionPipeline
    pipe: Any = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    labels = labels_of(folder, number)
    pictures: list[np.ndarray] = []
    for start in range(0, number, 16):
        seeds = [torch.Generator().manual_seed(seed) for seed in range(start, min(start + 16, number))]
        if labels:
            asked = pipe.get_label_ids(labels[start : start + len(seeds)])
            what = {"class_labels": asked, "guidance_scale": guidance}
        else:
            what = {"batch_size": len(seeds)}
        made = pipe(**what, generator=seeds, num_inference_steps=steps)
        pictures += [np.array(picture.convert("RGB")) for picture in made.images]
    return pictures


def obedience(pictures: list[np.ndarray], labels: list[str]) -> float:
    """Return the share of pictures that show one object, of their class's shape."""
    shapes = [[thing.shape for thing in judge(picture).things] for picture in pictures]
    return mean(shape == [label] for shape, label in zip(shapes, labels, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.0, help="of a DiT")
    parser.add_argument("--sheet", type=Path, help="PNG of the first 16")
    flags = parser.parse_args()
    pictures = drawn(flags.folder, flags.number, flags.steps, flags.guidance)
    if flags.sheet:
        rows = [np.hstack(pictures[start : start + 4]) for start in range(0, min(16, len(pictures) // 4 * 4), 4)]
        Image.fromarray(np.vstack(rows)).save(flags.sheet)
    found = [agreement(picture) for picture in pictures]
    told = {"recognisable": mean(one >= ENOUGH for one in found), "agreement": mean(found)}
    if labels := labels_of(flags.folder, len(pictures)):
        told["obedience"] = obedience(pictures, labels)
    print(json.dumps({"number": len(found)} | {name: round(value, 3) for name, value in told.items()}))


if __name__ == "__main__":
    main()
