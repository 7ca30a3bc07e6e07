"""Draw a folder of captioned pictures of the embedded model's world: `python -m benchmarks.shapes.pictures DIR --number 300`.

What `python -m trainers` learns from: `0.png` with `0.txt` beside it, and so on, one object each.
"""

import argparse
import random
from pathlib import Path

from PIL import Image

from benchmarks.shapes.render import render
from benchmarks.shapes.world import draw_scene, plain_caption


def draw_folder(folder: Path, number: int, side: int = 128) -> None:
    """Draw `number` pictures of `side` pixels a side."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        rng = random.Random(f"pictures-{index}")
        scene = draw_scene(rng, "single")
        Image.fromarray(render(scene, rng, side)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(plain_caption(scene), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--side", type=int, default=128)
    flags = parser.parse_args()
    draw_folder(flags.folder, flags.number, flags.side)


if __name__ == "__main__":
    main()
