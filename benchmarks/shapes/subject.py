"""Teach the embedded model a subject and judge it: `python -m benchmarks.shapes.subject [--number 40] [--set field=value …]`.

The subject, `a sks heart`, is an orange heart, learnt from 5 pictures. `subject` is the share of "a sks heart on a … background" that
shows an orange heart, `class` the share of "a heart on a … background" that does: the less it rises, the better the class was kept
(drift), `shape` the share of those that are hearts at all, `background` the share of the first that has the right background. Three
runs, all else alike: before, DreamBooth without prior preservation, and with it.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.shapes.judge import judge
from benchmarks.shapes.product import Product
from benchmarks.shapes.render import render
from benchmarks.shapes.world import COLOURS, Scene, Thing, article
from studio.settings import Settings
from trainers.configs import check_config
from trainers.methods import METHODS
from trainers.session import Session

LEARNT = ("white", "green", "blue", "yellow", "black")
ASKED = tuple(name for name in COLOURS if name != "orange")
USUAL = {
    "resolution": 128,
    "bucket_step": 32,
    "max_train_steps": 150,
    "train_batch_size": 4,
    "learning_rate": 1e-3,
    "rank": 8,
    "num_class_images": 40,
    "checkpointing_steps": 0,
}


def draw_subject(folder: Path) -> Path:
    """Draw the pictures that are learnt from, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for i, background in enumerate(LEARNT):
        x, y = (0.5 + rng.uniform(-0.1, 0.1) for _ in range(2))
        scene = Scene((Thing("orange", "heart", x, y, 0.25 * rng.uniform(0.9, 1.1)),), background)
        Image.fromarray(render(scene, rng)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a sks heart on {article(background)} {background} background")
    return folder


def score(product: Product, number: int, **values: Any) -> dict[str, float]:
    """Return the shares of pictures, 0 to 1, that show what was asked."""
    counts = {"subject": 0, "class": 0, "shape": 0, "background": 0}
    for i in range(number):
        background = ASKED[i % len(ASKED)]
        for name, words in (("subject", "a sks heart"), ("class", "a heart")):
            prompt = f"{words} on {article(background)} {background} background"
            seen = judge(product.draw(prompt=prompt, seed=i, **values))
            one = seen.things[0] if len(seen.things) == 1 else None
            counts[name] += bool(one and one.colour == "orange" and one.shape == "heart")
            if name == "class":
                counts["shape"] += bool(one and one.shape == "heart")
            else:
                counts["background"] += seen.background == background
    return {name: round(count / number, 3) for name, count in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=40, help="pictures a score")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of all runs")
    parser.add_argument("--only", nargs="*", default=["before", "plain", "prior"], help="which of the runs")
    args = parser.parse_args()
    more = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        dataset = draw_subject(root / "pictures")
        prior = {"with_prior_preservation": True, "class_prompt": "a heart"}
        for name, own in (("before", None), ("plain", {}), ("prior", prior)):
            if name not in args.only:
                continue
            values: dict[str, Any] = {}
            if own is not None:
                config = check_config(METHODS["dreambooth"][0], USUAL | {"dataset": str(dataset)} | own | more)
                settings = Settings(data_dir=root / "data", cpu_threads=1)
                answer = Session("dreambooth", config, settings, root / name, lambda: False).run()
                assert answer is not None
                values = {"loras": [{"name": answer["artifact"]}]}
            print(json.dumps({"run": name} | score(Product(root / "blobs"), args.number, **values)), flush=True)


if __name__ == "__main__":
    main()
