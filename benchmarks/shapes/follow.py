"""Does the shapes ControlNet obey? `python -m benchmarks.shapes.follow --number 100` prints one JSON line.

Each control picture shows one object of a known size at a known place; the prompt names colour, shape and background only. Edges of
what was drawn are compared with those of the control picture, with the ControlNet and without (`edges.py`), and judged.
"""

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.shapes.edges import edge_f_score
from benchmarks.shapes.judge import judge, verdict
from benchmarks.shapes.product import Product
from benchmarks.shapes.render import render
from benchmarks.shapes.world import Scene, draw_scene, plain_caption

UNIT = {"model": "shapes-canny", "preprocessor": "canny"}


def followed(number: int, units: list[dict[str, Any]], folder: Path) -> list[tuple[np.ndarray, np.ndarray, Scene]]:
    """Draw `number` pictures.

    Args:
        number: of pictures.
        units: ControlNet units, without their picture.
        folder: for the control pictures.

    Returns:
        Control picture, drawn picture, and the scene of the control picture, for each.
    """
    product, results = Product(folder), []
    for index in range(number):
        rng = random.Random(f"follow-{index}")
        scene = placed_scene(rng)
        control = render(scene, rng)
        picture = product.picture(control)
        drawn = product.draw(
            prompt=plain_caption(replace(scene, size="", position="")),
            seed=index,
            controls=[unit | {"image": picture} for unit in units],
        )
        results.append((control, drawn, scene))
    return results


def placed_scene(rng: random.Random) -> Scene:
    """Draw one object that is small or big, or not in the middle: what its prompt does not say."""
    while True:
        scene = draw_scene(rng, "single")
        if scene.size or scene.position:
            return scene


def scores(results: list[tuple[np.ndarray, np.ndarray, Scene]]) -> dict[str, float]:
    """Return the mean edge F-score, and how often the judge finds what the prompt said."""
    said = [verdict(judge(drawn), replace(scene, size="", position="")) for _, drawn, scene in results]
    return {
        "edge_f": round(mean(edge_f_score(drawn, control) for control, drawn, _ in results), 3),
        **{
            name: round(mean(facts[name] for facts in said if name in facts), 3)
            for name in ("colour", "background", "shape")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--sheet", type=Path, help="PNG: control picture, with, without")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with_unit = followed(flags.number, [UNIT], Path(folder))
        without = followed(flags.number, [], Path(folder))
    if flags.sheet:
        rows = [np.hstack([c, d, other[1]]) for (c, d, _), other in zip(with_unit[:12], without, strict=False)]
        Image.fromarray(np.vstack(rows)).save(flags.sheet)
    print(json.dumps({"number": flags.number, "with": scores(with_unit), "without": scores(without)}))


if __name__ == "__main__":
    main()
