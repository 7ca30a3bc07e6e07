"""Do the shipped units obey? `python -m benchmarks.shapes.follow --unit controlnet --number 100` prints one JSON line.

Each control picture shows one object of a known size at a known place. `controlnet` and `t2i`: the prompt names colour, shape and
background only; edges of what was drawn are compared with those of the control picture, with the unit and without (`edges.py`), and
judged. `ip`: there is no prompt at all, and the judge looks for what the picture showed.
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
from benchmarks.shapes.judge import shown
from benchmarks.shapes.product import Product
from benchmarks.shapes.render import render
from benchmarks.shapes.world import Scene, draw_scene, plain_caption

UNITS: dict[str, tuple[str, dict[str, Any]]] = {  # the request's field, and the unit without its picture
    "controlnet": ("controls", {"model": "shapes-canny", "preprocessor": "canny"}),
    "t2i": ("t2i_adapters", {"model": "shapes-canny-t2i", "preprocessor": "canny"}),
    "ip": ("ip_adapters", {"model": "shapes-ip", "scale": 1.0}),
}


def followed(
    number: int, kind: str, folder: Path, *, on: bool = True, model: str = ""
) -> list[tuple[np.ndarray, np.ndarray, Scene]]:
    """Draw `number` pictures.

    Args:
        number: of pictures.
        kind: key of `UNITS`.
        folder: for the control pictures.
        on: whether the unit works.
        model: of the unit, a path (with a slash) or a name; "" is the shipped one.

    Returns:
        Control picture, drawn picture, and the scene of the control picture, for each.
    """
    product, results, (field, unit) = Product(folder), [], UNITS[kind]
    for index in range(number):
        rng = random.Random(f"follow-{index}")
        scene = placed_scene(rng)
        control = render(scene, rng)
        picture = product.picture(control)
        given = (
            unit | ({"model": model} if model else {}) | ({"images": [picture]} if kind == "ip" else {"image": picture})
        )
        prompt = "" if kind == "ip" else plain_caption(replace(scene, size="", position=""))
        drawn = product.draw(prompt=prompt, seed=index, **({field: [given]} if on else {}))
        results.append((control, drawn, scene))
    return results


def placed_scene(rng: random.Random) -> Scene:
    """Draw one object that is small or big, or not in the middle: what its prompt does not say."""
    while True:
        scene = draw_scene(rng, "single")
        if scene.size or scene.position:
            return scene


def scores(results: list[tuple[np.ndarray, np.ndarray, Scene]], kind: str) -> dict[str, float]:
    """Return the mean edge F-score, and how often the judge finds what the prompt (or, without one, the picture) said."""
    told = [scene if kind == "ip" else replace(scene, size="", position="") for _, _, scene in results]
    said = [shown(drawn, scene) for (_, drawn, _), scene in zip(results, told, strict=True)]
    facts = ("colour", "background", "shape", *(("size", "position") if kind == "ip" else ()))
    found = {name: [one[name] for one in said if name in one] for name in facts}
    edges = mean(edge_f_score(drawn, control) for control, drawn, _ in results)
    return {"edge_f": round(edges, 3), **{name: round(mean(values), 3) for name, values in found.items() if values}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", choices=list(UNITS), default="controlnet")
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument(
        "--model", default="", help="another ControlNet: its folder, such as ./data/runs/NAME/final/trained"
    )
    parser.add_argument("--sheet", type=Path, help="PNG: control picture, with, without")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with_unit = followed(flags.number, flags.unit, Path(folder), model=flags.model)
        without = followed(flags.number, flags.unit, Path(folder), on=False)
    if flags.sheet:
        rows = [np.hstack([c, d, other[1]]) for (c, d, _), other in zip(with_unit[:12], without, strict=False)]
        Image.fromarray(np.vstack(rows)).save(flags.sheet)
    result = {"unit": flags.unit, "number": flags.number, "with": scores(with_unit, flags.unit)}
    print(json.dumps(result | {"without": scores(without, flags.unit)}))


if __name__ == "__main__":
    main()
