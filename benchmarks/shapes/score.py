"""Measure what the embedded model understands: `python -m benchmarks.shapes.score [--model presets/models/shapes]`.

Draws fresh scenes, asks the model for their plainest captions, reads the pictures back with `judge` and prints the share of facts
that are right, by kind of scene. `--sweep` compares guidance scales and step counts instead, `--sheet` saves pictures to look at.
"""

import argparse
import json
import random
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from benchmarks.shapes.judge import shown
from benchmarks.shapes.text import LENGTH
from benchmarks.shapes.world import Scene, caption, draw_scene, plain_caption
from studio.engine.prompts import chunk_tokens, encode_chunks

FACTS = {
    "background": "background",
    "colour": "colour",
    "shape": "shape",
    "count": "exactly n objects",
    "size": "size",
    "position": "position",
    "order": "order",
    "style": "style",
}
GUIDANCES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
STEPS = (8, 12, 16, 20)
SWEEP_PROMPTS = 100
SHEET = 64
COLUMNS = 8


@dataclass(frozen=True)
class Sampling:
    """How pictures are made. Picture `i` of a set starts from the noise of `seed + i`, whatever the batch."""

    steps: int
    guidance: float
    seed: int
    batch: int


@dataclass(frozen=True)
class Judged:
    """One prompt, its picture (H, W, 3) uint8, and which of the prompt's facts the picture shows."""

    prompt: str
    picture: np.ndarray
    facts: dict[str, bool]


def _one(rng: random.Random, *, style: str = "flat", held_out: bool = False) -> Scene:
    return draw_scene(rng, rng.choice(("single", "plain")), style=style, held_out=held_out)


def _big(rng: random.Random) -> Scene:
    while True:
        scene = draw_scene(rng, "single")
        if scene.size == "big":
            return scene


SETS: dict[str, Callable[[random.Random], Scene]] = {
    "one object": _one,
    "held-out pairs": lambda rng: _one(rng, held_out=True),
    "big": _big,
    "two objects": lambda rng: draw_scene(rng, "pair"),
    "counts": lambda rng: draw_scene(rng, "count"),
    "outline": lambda rng: _one(rng, style="outline"),
    "striped": lambda rng: _one(rng, style="striped"),
    "pixel art": lambda rng: _one(rng, style="pixel art"),
    "long prompts": lambda rng: draw_scene(rng, "single"),
}


def asked(name: str, number: int, seed: int) -> list[tuple[Scene, str]]:
    """Draw the scenes of one set with their prompts; the first n of a longer draw are those of a shorter one."""
    rng = random.Random(f"score-{seed}-{name}")
    scenes = (SETS[name](rng) for _ in range(number))
    return [
        (scene, caption(scene, rng, long=1.0) if name == "long prompts" else plain_caption(scene)) for scene in scenes
    ]


def _prompt_arguments(pipe: StableDiffusionPipeline, prompts: list[str], chunks: torch.Tensor) -> dict:
    """Return the pipeline's text arguments: it would cut long prompts off, so those are encoded here, chunk by chunk."""
    if chunks.shape[1] == 1:
        return {"prompt": prompts}
    empty = encode_chunks(pipe.text_encoder, chunk_tokens(pipe.tokenizer, [""]))
    return {
        "prompt_embeds": encode_chunks(pipe.text_encoder, chunks),
        "negative_prompt_embeds": empty.repeat(len(prompts), chunks.shape[1], 1),
    }


@torch.no_grad()
def generate(pipe: StableDiffusionPipeline, prompts: list[str], sampling: Sampling) -> list[np.ndarray]:
    """Make one picture a prompt, (H, W, 3) uint8 each.

    Prompts of the same number of chunks share a batch: an empty chunk added for a neighbour's sake would change a picture.
    """
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(chunk_tokens(pipe.tokenizer, [prompt]).shape[1], []).append(index)
    made: dict[int, np.ndarray] = {}
    for indices in groups.values():
        for start in range(0, len(indices), sampling.batch):
            part = indices[start : start + sampling.batch]
            texts = [prompts[index] for index in part]
            images = pipe(
                **_prompt_arguments(pipe, texts, chunk_tokens(pipe.tokenizer, texts)),
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                generator=[torch.Generator().manual_seed(sampling.seed + index) for index in part],
                output_type="np",
            ).images  # (B, H, W, 3) in [0, 1]
            made |= dict(zip(part, (images * 255).round().astype(np.uint8), strict=True))
    return [made[index] for index in range(len(prompts))]


def judged(pipe: StableDiffusionPipeline, name: str, number: int, sampling: Sampling) -> list[Judged]:
    """Generate one set and judge every picture. A background that a prompt leaves unsaid is no fact of it."""
    wanted = asked(name, number, sampling.seed)
    pictures = generate(pipe, [prompt for _, prompt in wanted], sampling)
    result = []
    for (scene, prompt), picture in zip(wanted, pictures, strict=True):
        facts = shown(picture, scene)
        if scene.background not in prompt.replace(",", " ").split():
            del facts["background"]
        result.append(Judged(prompt, picture, facts))
    return result


def shares(results: list[Judged]) -> dict[str, float]:
    """Return, for each fact that any prompt says, the share of the pictures asked for it that show it."""
    said = {fact: [each.facts[fact] for each in results if fact in each.facts] for fact in FACTS}
    return {fact: sum(values) / len(values) for fact, values in said.items() if values}


def sheet(results: list[Judged]) -> Image.Image:
    """Lay pictures out with their prompts under them, and under those in red what is wrong."""
    height, width = results[0].picture.shape[:2]
    cell, text = max(width, 128) + 8, 78
    rows = -(-len(results) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * cell, rows * (height + text)), "white")
    pen = ImageDraw.Draw(page)
    for number, each in enumerate(results):
        x, y = number % COLUMNS * cell + 4, number // COLUMNS * (height + text)
        page.paste(Image.fromarray(each.picture), (x, y + 4))
        wrong = ", ".join(fact for fact, right in each.facts.items() if not right)
        lines = textwrap.wrap(each.prompt, cell // 6, max_lines=3, placeholder=" …")
        pen.multiline_text((x, y + height + 6), "\n".join(lines), fill="black", font_size=10, spacing=1)
        pen.multiline_text(
            (x, y + height + 42), "\n".join(textwrap.wrap(wrong, cell // 6)), fill="red", font_size=10, spacing=1
        )
    return page


def table(rows: list[list[str]]) -> str:
    """Return a markdown table; the first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def sweep(pipe: StableDiffusionPipeline, sampling: Sampling) -> dict[str, dict[str, float]]:
    """Return the mean of all verdicts on one-object prompts: {guidance: {steps: share}}."""
    result: dict[str, dict[str, float]] = {}
    for guidance in GUIDANCES:
        result[str(guidance)] = {}
        for steps in STEPS:
            results = judged(pipe, "one object", SWEEP_PROMPTS, replace(sampling, guidance=guidance, steps=steps))
            verdicts = [right for each in results for right in each.facts.values()]
            result[str(guidance)][str(steps)] = sum(verdicts) / len(verdicts)
    return result


def load(model: Path) -> StableDiffusionPipeline:
    """Load the model's folder in float32, with the scheduler that its own config names."""
    pipe = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.tokenizer.model_max_length == LENGTH
    return pipe


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("presets/models/shapes"), help="folder of the model")
    parser.add_argument(
        "--prompts", type=int, default=500, help="prompts of `one object`; the other sets take a fifth, at least 50"
    )
    parser.add_argument("--steps", type=int, help="sampling steps; the model's own default if left out")
    parser.add_argument("--guidance", type=float, help="guidance scale; the model's own default if left out")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, and of the first picture's noise")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1, help="of torch; two on busy cores are slower than one")
    parser.add_argument(
        "--sweep",
        "--scheduler-steps-sweep",
        action="store_true",
        help="compare guidance scales and step counts instead",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    parser.add_argument("--sheet", type=Path, help=f"save {SHEET} pictures with their prompts here")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    defaults = yaml.safe_load((options.model / "studio.yaml").read_text())["defaults"]
    sampling = Sampling(
        steps=options.steps or defaults["num_inference_steps"],
        guidance=defaults["guidance_scale"] if options.guidance is None else options.guidance,
        seed=options.seed,
        batch=options.batch,
    )
    pipe = load(options.model)
    start = time.monotonic()
    if options.sweep:
        found = sweep(pipe, sampling)
        rows = [["guidance", *(f"{steps} steps" for steps in STEPS)]]
        rows += [
            [guidance, *(f"{100 * share:.1f}" for share in by_steps.values())] for guidance, by_steps in found.items()
        ]
        print(
            json.dumps({"model": str(options.model), "seed": sampling.seed, "sweep": found})
            if options.json
            else table(rows)
        )
        return
    numbers = {name: options.prompts if name == "one object" else max(50, options.prompts // 5) for name in SETS}
    results = {name: judged(pipe, name, number, sampling) for name, number in numbers.items()}
    found = {name: shares(each) for name, each in results.items()}
    if options.json:
        facts = {name: {"n": numbers[name], **found[name]} for name in SETS}
        print(
            json.dumps(
                {
                    "model": str(options.model),
                    "steps": sampling.steps,
                    "guidance": sampling.guidance,
                    "seed": sampling.seed,
                    "sets": facts,
                }
            )
        )
    else:
        rows = [["set", "n", *FACTS.values()]]
        rows += [
            [
                name,
                str(numbers[name]),
                *(f"{100 * found[name][fact]:.1f}" if fact in found[name] else "-" for fact in FACTS),
            ]
            for name in SETS
        ]
        seconds = (time.monotonic() - start) / sum(numbers.values())
        how = f"{sampling.steps} steps, guidance {sampling.guidance}, seed {sampling.seed}"
        print(f"{how}; {seconds:.2f} s a picture in batches of {sampling.batch}\n")
        print(table(rows))
    if options.sheet:
        turns = [each[turn] for turn in range(SHEET) for each in results.values() if turn < len(each)]
        sheet(turns[:SHEET]).save(options.sheet)


if __name__ == "__main__":
    main()
