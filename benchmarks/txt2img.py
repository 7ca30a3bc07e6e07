"""Served txt2img against the bare diffusers pipeline that saves a PNG: same model, prompt, seed, size, steps and threads, in turns.

Served is `app.py`, really launched, with its worker process and previews on. The clock starts before the POST to the public endpoint
`txt2img`, and stops when `GET /studio/state?since=` has said that the job is done; by then the picture is on disk for good, with its
text and its row in the index. So the time has in it: a request to Gradio, the job journal, the worker's pipe, a preview a step,
PNG, text, fsync, index, and the state route with its clock tick. Bare is a process of its own that has the pipeline loaded, draws
with `pipe(…).images[0].save(png)`, and waits for no disk; its time runs from the question to the answer through a pipe.

Pixels must be the same before anything is timed. `ratio` is bare / served: 1 means that serving is free; `ratio_no_fsync` leaves out
what waiting for the disk costs (`disk`: picture and journal), and has the goal. `call_s` is a served picture
by `wait=True` (the endpoint answers when it is there), made in the same turns. `worker_cpu_ratio` is bare / worker in CPU seconds: it
holds on a busy machine too; `app_cpu_s` comes on top of it, on another core if there is one. `disk` tells what fsync costs in the
data root, see `disk.commit_costs`.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.bare import Bare, bare
from benchmarks.disk import commit_costs
from benchmarks.served import Served, pixels, served
from studio.records import ImageRecord
from studio.settings import ROOT
from studio.spec import GenerationRequest, parse_request
from studio.store.library import Library

PROMPT = "a red circle on a blue background"
WARM_UPS = 2
DISK_RUNS = 15
GOALS = {"ratio_no_fsync": (">=", 0.95)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options that all benchmarks have which draw."""
    parser.add_argument("--runs", type=int, default=10, help="pairs")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--extra-models", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--cpu-threads", type=int, default=1, help="of both sides")
    parser.add_argument("--steps", type=int, help="default: the model's own")


def resolved(flags: argparse.Namespace, steps: int | None) -> tuple[GenerationRequest, Path]:
    """Return the request with the model's own defaults, and the model's folder.

    Bare diffusers samples as the model's scheduler file says; a `studio.yaml` that says otherwise fails the comparison of pixels.
    """
    library = Library((ROOT / "presets" / "models", *flags.extra_models))
    request, model = library.resolve(
        parse_request({"prompt": PROMPT, "model": flags.model, "num_inference_steps": steps}), seed=1
    )
    return request, Path(model.path)


def pipeline_values(request: GenerationRequest) -> dict[str, Any]:
    """Return what the pipeline and the endpoint are both told."""
    names = ("prompt", "width", "height", "num_inference_steps", "guidance_scale")
    return {name: getattr(request, name) for name in names}


def assert_same(app: Served, image_id: str, path: Path) -> None:
    """Compare two pictures.

    Raises:
        RuntimeError: if one pixel differs; then no time means anything.
    """
    one, other = pixels(app.picture(image_id)), pixels(path.read_bytes())
    if not np.array_equal(one, other):
        raise RuntimeError(f"served and bare differ by up to {np.abs(one.astype(int) - other).max()} of 255 levels")


def pair(app: Served, pipe: Bare, request: GenerationRequest, seed: int, path: Path) -> dict[str, float]:
    """Draw one picture on each side, and check that it is the same."""
    values = pipeline_values(request) | {"seed": seed}
    app_before, worker_before, bare_before = *app.cpu, pipe.cpu
    drawn = app.draw(model=request.model, **values)
    app_after, worker_after = app.cpu
    made = pipe.draw(path, **values)
    bare_after = pipe.cpu
    assert_same(app, drawn.images[0], path)
    return {
        "served_s": drawn.seconds,
        "bare_s": made.seconds,
        "call_s": app.call(model=request.model, **values),
        "submit_s": drawn.submit,
        "app_cpu_s": app_after - app_before,
        "worker_cpu_s": worker_after - worker_before,
        "bare_cpu_s": bare_after - bare_before,
    }


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure pairs."""
    request, model = resolved(flags, flags.steps)
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        folder = Path(name)
        path = folder / "bare.png"
        with (
            served(folder / "data", flags.model, flags.extra_models, flags.cpu_threads) as app,
            bare(model, folder / "bare", flags.cpu_threads) as pipe,
        ):
            pairs = [pair(app, pipe, request, 100 + i, path) for i in range(WARM_UPS + flags.runs)][WARM_UPS:]
            image = app.draw(model=flags.model, **pipeline_values(request), seed=1).images[0]
            png, record = app.picture(image), ImageRecord.model_validate(app.record(image))
        disk = commit_costs(folder / "data" / "disk", png, record, DISK_RUNS)
    columns = {key: [one[key] for one in pairs] for key in pairs[0]}
    waited = sum(
        statistics.median(disk[f"{name}_ms"]) - statistics.median(disk[f"{name}_no_fsync_ms"])
        for name in ("commit", "journal")
    )
    no_fsync = [seconds - waited / 1000 for seconds in columns["served_s"]]
    columns["ratio_no_fsync"] = measure.pairwise(columns["bare_s"], no_fsync)
    columns["ratio"] = measure.pairwise(columns["bare_s"], columns["served_s"])
    columns["call_ratio"] = measure.pairwise(columns["bare_s"], columns["call_s"])
    columns["worker_cpu_ratio"] = measure.pairwise(columns["bare_cpu_s"], columns["worker_cpu_s"])
    result = measure.report(columns, GOALS)
    shape = f"{request.width}x{request.height}, {request.num_inference_steps} steps"
    return {"ratio": result["median"]["ratio"], "work": shape, "disk": measure.report(disk, {})["median"]} | result
