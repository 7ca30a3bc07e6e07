"""Memory that stays behind when the model is switched: the worker's engine draws with one model after another, with a LoRA each time.

More models than are kept in memory, so that each switch loads one and lets one go. `mb_a_switch` is the slope of a straight line
through what the process holds (RSS, after the first round) over the switches; the goal is that it is flat.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measure
from studio.settings import ROOT

GOALS = {"mb_a_switch": ("<=", 0.5)}
MODELS = 3
WARM_UPS = 8


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--runs", type=int, default=40, help="switches")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure switches."""
    from studio.engine.devices import open_device
    from studio.engine.engine import Engine, Watch
    from studio.records import Job
    from studio.spec import parse_request
    from studio.store.gallery import new_image_id, utc_now
    from studio.store.jobs import new_job_id
    from studio.store.library import Library

    engine, process = Engine(open_device("cpu", 1), utc_now, new_image_id), psutil.Process()
    held: list[float] = []
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        for number in range(MODELS):
            folder = Path(name) / f"model{number}"
            shutil.copytree(ROOT / "presets" / "models" / "shapes", folder)
            (folder / "model_index.json").open("a").write("\n" * number)  # another content is another model
        library = Library((Path(name),), part_roots=(ROOT / "presets",))
        for number in range(WARM_UPS + flags.runs):
            values = {"model": f"model{number % MODELS}", "prompt": "a red circle", "num_inference_steps": 1, "seed": 1}
            wanted = parse_request(values | {"loras": [{"name": "red-to-blue", "weight": 0.5}]})
            request, model = library.resolve(wanted, 1)
            job = Job(id=new_job_id(), request=request, model=model, parts=library.parts_of(request))
            engine.generate(job, lambda *_: None, lambda *_: "", Watch(lambda event: None, lambda: ""))
            if number >= WARM_UPS:
                held.append(process.memory_info().rss / 2**20)
    slope = statistics.linear_regression(range(len(held)), held).slope if len(held) > 1 else 0.0
    result = measure.report({"mb_a_switch": [slope], "mb": held}, GOALS)
    return {
        "ratio": result["median"]["mb_a_switch"],
        "work": f"{len(held)} switches between {MODELS} models, a LoRA each",
    } | result
