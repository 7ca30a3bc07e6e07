"""What the server adds to each picture: a served job of eight pictures of one step against eight bare calls, in turns.

Per picture and in milliseconds:
`overhead_ms` = (wall of the served job - the sum of the eight bare `pipe(…)` calls of the same seeds) / 8. The served wall is that of
`benchmarks.txt2img`: from before the POST to the news that the job is done. So it has all in it that is not the pipeline's own work:
the eighth part of submit, journal, claim, end and the state route's tick, and for each picture events, pipe, scheduler set-up, the
preview of its step, PNG, text, fsync and index. The bare calls encode the prompt and turn the picture into 8 bits, as the worker
does for each picture too; they save no PNG, which therefore counts as overhead.
`steady_ms` = the time from one picture to the next inside the job (from `created` in the PNGs, so without submit, end and the client)
- the bare call: what a picture more costs.
`fsync_ms` = what waiting for the disk has in it: a picture's commit and the eighth part of a job's journal, each measured with fsync
minus without it in the same data root.

The goal holds for `overhead_ms` without `fsync_ms`. The worker shares the cores with the app and with this client: on a busy machine,
or with one core, their CPU time is in the difference. A difference of two large times is noisy: look at the spread.
"""

import argparse
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.bare import Bare, bare
from benchmarks.disk import commit_costs
from benchmarks.served import Served, served
from benchmarks.txt2img import DISK_RUNS, WARM_UPS, assert_same, pipeline_values, resolved
from benchmarks.txt2img import add_flags as add_drawing_flags
from studio.records import ImageRecord
from studio.spec import GenerationRequest

GOALS = {"overhead_without_fsync_ms": ("<=", 15.0)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_drawing_flags(parser)
    parser.set_defaults(steps=1)
    parser.add_argument("--images", type=int, default=8, help="pictures of a job")


def period_ms(app: Served, images: list[str]) -> float:
    """Return the mean time from one picture of a job to the next."""
    first, last = (datetime.fromisoformat(app.record(image)["created"]) for image in (images[0], images[-1]))
    return 1000 * (last - first).total_seconds() / (len(images) - 1)


def pair(app: Served, pipe: Bare, request: GenerationRequest, seed: int, path: Path) -> dict[str, float]:
    """Draw one job on each side, check the last picture, and return figures a picture."""
    number, values = request.num_images_per_prompt, pipeline_values(request)
    drawn = app.draw(model=request.model, seed=seed, num_images_per_prompt=number, **values)
    made = [pipe.draw(path, seed=seed + i, **values) for i in range(number)]
    assert_same(app, drawn.images[-1], path)
    pipeline = 1000 * sum(one.pipeline for one in made) / number
    return {
        "overhead_ms": 1000 * drawn.seconds / number - pipeline,
        "steady_ms": period_ms(app, drawn.images) - pipeline,
        "served_ms": 1000 * drawn.seconds / number,
        "bare_pipeline_ms": pipeline,
        "bare_save_ms": 1000 * sum(one.save for one in made) / number,
        "submit_ms": 1000 * drawn.submit,
    }


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure pairs.

    Raises:
        ValueError: if a job has fewer than two pictures.
    """
    if flags.images < 2:
        raise ValueError(f"images={flags.images} must be at least 2")
    request, model = resolved(flags, flags.steps)
    request = request.model_copy(update={"num_images_per_prompt": flags.images})
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        folder = Path(name)
        with (
            served(folder / "data", flags.model, flags.extra_models, flags.cpu_threads) as app,
            bare(model, folder / "bare", flags.cpu_threads) as pipe,
        ):
            path = folder / "bare.png"
            pairs = [pair(app, pipe, request, 100 * i, path) for i in range(WARM_UPS + flags.runs)][WARM_UPS:]
            image = app.draw(model=flags.model, seed=1, **pipeline_values(request)).images[0]
            png, record = app.picture(image), ImageRecord.model_validate(app.record(image))
        disk = measure.report(commit_costs(folder / "data" / "disk", png, record, DISK_RUNS), {})["median"]
    columns = {key: [one[key] for one in pairs] for key in pairs[0]}
    commit, journal = (disk[f"{name}_ms"] - disk[f"{name}_no_fsync_ms"] for name in ("commit", "journal"))
    fsync = commit + journal / flags.images
    columns["overhead_without_fsync_ms"] = [value - fsync for value in columns["overhead_ms"]]
    shape = f"{flags.images} pictures, {request.width}x{request.height}, {request.num_inference_steps} steps"
    return {"work": shape, "fsync_ms": measure.short(fsync), "disk": disk} | measure.report(columns, GOALS)
