"""Does inpainting replace a shape? `python -m benchmarks.shapes.replace --number 100` prints one JSON line.

A rendered picture of one object is masked around it; the prompt asks for another shape of another colour there, on the same
background. The judge reads the result, and what lies outside of the softened mask must be what it was, to the byte.
"""

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

import cv2
import numpy as np

from benchmarks.shapes.judge import shown
from benchmarks.shapes.product import Product
from benchmarks.shapes.render import render
from benchmarks.shapes.world import COLOURS, HELD_OUT, SHAPES, Scene, draw_scene, plain_caption

MARGIN = 0.04  # of the side, around the object
BLUR = 2
REACH = 6  # pixels beyond the mask that the blur can touch: 2.5 sigma and rounding


def other_scene(scene: Scene, rng: random.Random) -> Scene:
    """Return the same scene with another shape of another colour."""
    thing = scene.things[0]
    while True:
        colour, shape = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
        fresh = colour not in (thing.colour, scene.background) and shape != thing.shape
        if fresh and (colour, shape) not in HELD_OUT:
            return replace(scene, things=(replace(thing, colour=colour, shape=shape),), size="", position="")


def object_mask(scene: Scene, side: int) -> np.ndarray:
    """Return a box around the object, (side, side) of 0 and 255."""
    thing = scene.things[0]
    mask = np.zeros((side, side), np.uint8)
    reach = thing.radius + MARGIN
    left, right = (round(max(0.0, min(1.0, thing.x + sign * reach)) * side) for sign in (-1, 1))
    top, bottom = (round(max(0.0, min(1.0, thing.y + sign * reach)) * side) for sign in (-1, 1))
    mask[top:bottom, left:right] = 255
    return mask


def replaced(number: int, folder: Path) -> list[dict[str, bool]]:
    """Replace `number` objects; return what the judge says of each, and whether the surroundings stayed."""
    product, results = Product(folder), []
    for index in range(number):
        rng = random.Random(f"replace-{index}")
        scene = draw_scene(rng, "plain")
        before, wanted = render(scene, rng), other_scene(scene, rng)
        mask = object_mask(scene, before.shape[0])
        after = product.draw(
            prompt=plain_caption(wanted),
            seed=index,
            image=product.picture(before),
            mask_image=product.picture(np.repeat(mask[..., None], 3, axis=2)),
            mask_blur=BLUR,
            masked_content="fill",
            strength=1.0,
        )
        far = cv2.dilate(mask, np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)) == 0
        facts = shown(after, wanted)
        results.append(
            {name: facts[name] for name in ("colour", "shape", "background")}
            | {"surroundings": bool(np.array_equal(after[far], before[far]))}
        )
    return results


def shares(results: list[dict[str, bool]]) -> dict[str, float]:
    """Return how often each held, and how often all did."""
    each = {name: round(mean(facts[name] for facts in results), 3) for name in results[0]}
    return each | {"all": round(mean(all(facts.values()) for facts in results), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"number": flags.number} | shares(replaced(flags.number, Path(folder)))))


if __name__ == "__main__":
    main()
