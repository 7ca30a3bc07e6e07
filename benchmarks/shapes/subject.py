"""Teach the embedded model a subject and judge it: `python -m benchmarks.shapes.subject [--number 40] [--set field=value …]`.

`--pictures DIR` only draws the subject's pictures, with captions.

The subject, `a sks heart`, is a green heart, learnt from 5 pictures. `subject` is the share of "a sks heart on a … background" that
shows a green heart, `class` the share of "a heart on a … background" that does: the less it rises, the better the class was kept
(drift), `shape` the share of those that are hearts at all, `background` the share of the first that has the right background. Three
runs: before, DreamBooth as `presets/train/dreambooth-shapes.yaml` says but without prior preservation, and with it.

A run scores its own samples of the same prompts and seeds; `scores` is what it says, each checkpoint of `--set
checkpointing_steps=…` for itself, and `recommended` what it recommends. `same` tells whether its subject agrees to the last picture.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from benchmarks.shapes.product import Product
from benchmarks.shapes.render import render
from benchmarks.shapes.world import COLOURS, Scene, Thing, article
from studio.settings import ROOT, Settings
from trainers.config_files import check_config
from trainers.methods import METHODS
from trainers.scorers.reading import judge
from trainers.session import Session

LEARNT = ("white", "orange", "blue", "yellow", "black")
ASKED = tuple(name for name in COLOURS if name != "green")
PRIOR = ("with_prior_preservation", "class_prompt", "num_class_images")


def draw_subject(folder: Path) -> Path:
    """Draw the pictures that are learnt from, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for i, background in enumerate(LEARNT):
        x, y = (0.5 + rng.uniform(-0.1, 0.1) for _ in range(2))
        scene = Scene((Thing("green", "heart", x, y, 0.25 * rng.uniform(0.9, 1.1)),), background)
        Image.fromarray(render(scene, rng)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a sks heart on {article(background)} {background} background")
    return folder


def asked(words: str, place: int) -> str:
    """Return a prompt for something on one of the backgrounds in turn."""
    background = ASKED[place % len(ASKED)]
    return f"{words} on {article(background)} {background} background"


def own_scores(run: Path) -> dict[str, Any]:
    """Return what a run says of its checkpoints."""
    told = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / "scores").iterdir())]
    recommended = json.loads((run / "recommendation.json").read_text(encoding="utf-8"))
    return {"scores": {one["step"]: one["scores"] for one in told}, "recommended": recommended["reason"]}


def score(product: Product, number: int, **values: Any) -> dict[str, float]:
    """Return the shares of pictures, 0 to 1, that show what was asked."""
    counts = {"subject": 0, "class": 0, "shape": 0, "background": 0}
    for i in range(number):
        background = ASKED[i % len(ASKED)]
        for name, words in (("subject", "a sks heart"), ("class", "a heart")):
            prompt = asked(words, i)
            seen = judge(product.draw(prompt=prompt, seed=i, **values))
            one = seen.things[0] if len(seen.things) == 1 else None
            counts[name] += bool(one and one.colour == "green" and one.shape == "heart")
            if name == "class":
                counts["shape"] += bool(one and one.shape == "heart")
            else:
                counts["background"] += seen.background == background
    return {name: round(count / number, 3) for name, count in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=40, help="pictures a score")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs there")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of all runs")
    parser.add_argument("--only", nargs="*", default=["before", "plain", "prior"], help="which of the runs")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the subject's pictures there, and end")
    args = parser.parse_args()
    if args.pictures:
        draw_subject(args.pictures)
        return
    more = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    with tempfile.TemporaryDirectory() as place:
        root = args.keep or Path(place)
        dataset = draw_subject(root / "pictures")
        preset = yaml.safe_load((ROOT / "presets" / "train" / "dreambooth-shapes.yaml").read_text(encoding="utf-8"))
        plain = {name: value for name, value in preset.items() if name not in PRIOR}
        for name, own in (("before", None), ("plain", plain), ("prior", preset)):
            if name not in args.only:
                continue
            values: dict[str, Any] = {}
            told: dict[str, Any] = {}
            if own is not None:
                prompts = [asked("a sks heart", i) for i in range(args.number)]
                usual = {"checkpointing_steps": 0, "trigger_word": "sks", "validation_prompts": prompts}
                config = check_config(METHODS["dreambooth"][0], own | {"dataset": str(dataset)} | usual | more)
                settings = Settings(data_dir=root / "data", cpu_threads=1)
                answer = Session("dreambooth", config, settings, root / name, lambda: False).run()
                assert answer is not None
                values = {"loras": [{"name": answer["artifact"]}]}
                told = own_scores(root / name)
            shares = score(Product(root / "blobs"), args.number, **values)
            if told:
                last = list(told["scores"].values())[-1]
                told["same"] = abs(last["subject"] - shares["subject"]) < 0.5 / args.number
            print(json.dumps({"run": name} | shares | told), flush=True)


if __name__ == "__main__":
    main()
