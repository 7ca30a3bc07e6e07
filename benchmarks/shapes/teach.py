"""Teach the demo model something new and judge what it learnt: `python -m benchmarks.shapes.teach --method textual-inversion`.

Five pictures of an orange heart are called `<toy>`. Twenty pictures that should show one are judged before (with the words that the
new one begins as) and after training: the share whose only thing is orange, a heart, and both.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.shapes.product import Product
from benchmarks.shapes.render import render
from benchmarks.shapes.world import COLOURS, Scene, Thing, article
from studio.settings import ROOT, Settings
from trainers.config_files import read_config
from trainers.methods import METHODS
from trainers.scorers.reading import judge
from trainers.session import Session

COLOUR, SHAPE = "orange", "heart"
PICTURES, JUDGED = 5, 20
SEED = 100
PRESETS = {"textual-inversion": "textual-inversion-shapes"}  # method -> preset


def backgrounds(number: int) -> list[str]:
    """Return backgrounds in turn, none of them of the subject's colour."""
    names = [name for name in COLOURS if name != COLOUR]
    return [names[i % len(names)] for i in range(number)]


def draw_lesson(folder: Path, word: str, seed: int = 0) -> Path:
    """Write the pictures of the subject, each with its caption."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, background in enumerate(backgrounds(PICTURES)):
        x, y = (0.5 + rng.uniform(-0.05, 0.05) for _ in range(2))
        scene = Scene((Thing(COLOUR, SHAPE, x, y, 0.25 * rng.uniform(0.94, 1.06)),), background)
        Image.fromarray(render(scene, rng)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(asked(word, background), encoding="utf-8")
    return folder


def asked(word: str, background: str) -> str:
    """Return the prompt for a word on a background."""
    return f"a {word} on {article(background)} {background} background"


def score(pictures: list[np.ndarray]) -> dict[str, float]:
    """Return the share of pictures with one thing that is of the subject's colour, of its shape, and both."""
    found = [[(thing.colour == COLOUR, thing.shape == SHAPE) for thing in judge(one).things] for one in pictures]
    single = [things[0] if len(things) == 1 else (False, False) for things in found]
    shares = {"colour": [one[0] for one in single], "shape": [one[1] for one in single], "subject": map(all, single)}
    return {name: sum(values) / len(pictures) for name, values in shares.items()}


def teach(method: str, work: Path, overrides: list[str]) -> dict[str, object]:
    """Train and judge; return the scores before and after, and the seconds of training.

    Args:
        method: with a preset for the demo model.
        work: folder for the pictures and the run; the run's may not exist yet.
        overrides: `field=value`.
    """
    preset = ROOT / "presets" / "train" / f"{PRESETS[method]}.yaml"
    config = read_config(METHODS[method][0], preset, overrides)
    word, known = getattr(config, "placeholder_token"), getattr(config, "initializer_token")  # noqa: B009
    prompts = [asked(word, background) for background in backgrounds(JUDGED)]
    told = {
        "dataset": str(draw_lesson(work / "pictures", word)),
        "validation_prompts": tuple(prompts),
        "validation_seed": SEED,
    }
    config = type(config).model_validate(config.model_dump() | told)
    product = Product(work)
    before = [
        product.draw(prompt=prompt.replace(word, known), model=config.model, seed=SEED + place)
        for place, prompt in enumerate(prompts)
    ]
    settings = Settings(data_dir=work / "data", cpu_threads=1)
    began = time.monotonic()
    answer = Session(method, config, settings, work / "run", lambda: False).run()
    seconds = time.monotonic() - began
    assert answer is not None
    made = [work / "run" / "samples" / f"step-{config.max_train_steps:06d}-{place}-0.png" for place in range(JUDGED)]
    after = [np.array(Image.open(path).convert("RGB")) for path in made]
    return {"method": method, "before": score(before), "after": score(after), "seconds": round(seconds, 1), **answer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(PRESETS), required=True)
    parser.add_argument("--work", type=Path, help="folder for pictures and run (default: a temporary one)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="replace a field")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(teach(flags.method, flags.work or Path(folder), flags.set), indent=1))


if __name__ == "__main__":
    main()
