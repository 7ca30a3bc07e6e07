"""Does img2img at full strength obey, does outpainting show? `python -m benchmarks.shapes.editing --number 60` prints one JSON line.

`text2image` and `strength_1`: shares of facts that are right for the same prompts and seeds, drawn from nothing and from a picture of
something else. `outpaint`: a picture grows by a quarter on one side; `background` is how often what was added has its background's
colour, `seam` the step between the last old and the first new line of pixels, in levels of 255 (median), `inside` the same two lines
further in, where nothing was joined.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.shapes.judge import shown
from benchmarks.shapes.product import Product
from benchmarks.shapes.render import render
from benchmarks.shapes.world import COLOURS, draw_scene, plain_caption

ADDED = 32  # pixels
SIDES = ("left", "right", "top", "bottom")


def obeyed(product: Product, number: int, *, image: bool) -> dict[str, float]:
    """Return the share of each fact that is right, with or without a picture of something else to start from."""
    found: dict[str, list[bool]] = {}
    for index in range(number):
        rng = random.Random(f"editing-{index}")
        wanted, other = draw_scene(rng, "plain"), draw_scene(rng, "plain")
        more: dict[str, Any] = {"image": product.picture(render(other, rng)), "strength": 1.0} if image else {}
        drawn = product.draw(prompt=plain_caption(wanted), seed=index, **more)
        for name, right in shown(drawn, wanted).items():
            found.setdefault(name, []).append(right)
    return {name: round(mean(values), 3) for name, values in found.items()}


def outpainted(product: Product, number: int) -> dict[str, float]:
    """Grow pictures and look at what was added."""
    seams, inside, right = [], [], []
    for index in range(number):
        rng = random.Random(f"outpaint-{index}")
        scene, side = draw_scene(rng, "plain"), SIDES[index % 4]
        picture = product.picture(render(scene, rng))
        values: dict[str, Any] = {"image": picture, "strength": 1.0, f"extend_{side}": ADDED}
        drawn = product.draw(prompt=plain_caption(scene), seed=index, **values)
        turned = np.rot90(drawn, {"right": 0, "bottom": 1, "left": 2, "top": 3}[side]).astype(
            int
        )  # what is new is right
        old = turned.shape[1] - ADDED
        step = np.abs(np.diff(turned, axis=1)).mean(axis=(0, 2))
        seams.append(step[old - 1])
        inside.append(step[8])
        added = turned[:, old:].reshape(-1, 3).mean(axis=0)
        nearest = min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - added).sum()))
        right.append(nearest == scene.background)
    return {
        "background": round(mean(right), 3),
        "seam": round(float(median(seams)), 2),
        "inside": round(float(median(inside)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        product = Product(Path(folder))
        result: dict[str, Any] = {"number": flags.number}
        for name, image in (("text2image", False), ("strength_1", True)):
            result[name] = obeyed(product, flags.number, image=image)
        result["outpaint"] = outpainted(product, flags.number)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
