"""One device shared by a training run and pictures, and a run watched by many pages.

A LoRA learns on the embedded model while the app draws with the run's newest checkpoint: what a picture waits for before its first step
(beyond what it waits for while nothing is trained) against one training step; and what 20 open pages that watch the run cost the app's
process and the run. The run is started as a person would from a shell, in the app's data root.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import report
from benchmarks.processes import started
from benchmarks.served import Served, served
from studio.store.runs import Runs

PAGES, WATCH = 20, 20.0  # open pages, and seconds that they are watched
POLLED = 2.0  # seconds between two looks of a page that shows a run
RUN = "shared"
GOALS = {"wait_beyond_a_step": ("<=", 1.0), "pages_core": ("<=", 0.05), "steps_ratio": (">=", 0.95)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--runs", type=int, default=7, help="pictures with and without a run (default 7)")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure."""
    from benchmarks.shapes.subject import draw_subject

    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        draw_subject(data / "datasets" / "hearts")
        with served(data, "shapes", (), 1) as app:
            first_step(app, [])
            alone = [first_step(app, []) for _ in range(flags.runs)]
            with training(data) as runs:
                wait_for(lambda: runs.story(RUN).checkpoints)
                step = seconds_a_step(runs, 5.0)
                shared = [first_step(app, [{"name": newest(runs)}]) for _ in range(flags.runs)]
                idle_cpu, quiet = watched(app, runs, 0)
                busy_cpu, loud = watched(app, runs, PAGES)
        columns = {
            "first_step_alone": alone,
            "first_step_shared": shared,
            "wait_beyond_a_step": [max(0.0, one - statistics.median(alone) - step) for one in shared],
            "pages_core": [busy_cpu - idle_cpu],
            "steps_ratio": [quiet / loud],
        }
        return {"step": step} | report(columns, GOALS)


@contextmanager
def training(data: Path) -> Iterator[Runs]:
    """Let a run go on until the block ends."""
    config = data / "run.yaml"
    told = {
        "dataset": "hearts",
        "resolution": 128,
        "bucket_step": 32,
        "max_train_steps": 100_000,
        "checkpointing_steps": 25,
    }
    config.write_text(json.dumps(told | {"model": "shapes", "instance_prompt": "a sks heart", "train_batch_size": 4}))
    words = ["--config", str(config), "--run-dir", str(data / "runs" / RUN), "--data-dir", str(data)]
    command = [sys.executable, "-m", "trainers", "lora", *words, "--device", "cpu", "--cpu-threads", "1"]
    with started(command, data):
        runs = Runs(data / "runs")
        wait_for(lambda: (data / "runs" / RUN / "config.yaml").exists())
        yield runs


def newest(runs: Runs) -> str:
    """Return the name of the newest checkpoint."""
    return f"{RUN}-{max(runs.results(RUN)):06d}"


def first_step(app: Served, loras: list[dict[str, Any]]) -> float:
    """Return the seconds from a submit to the news of its first step."""
    began, seen = time.perf_counter(), []
    thread = threading.Thread(target=lambda: app.draw(prompt="a red circle on a blue background", loras=loras))
    with httpx.Client(base_url=app.client.base_url, timeout=60, trust_env=False) as client:
        thread.start()
        version = -1
        while not seen:
            state = client.get("/studio/state", params={"since": version}).json()
            version = state["version"]
            seen = [
                job for job in state["jobs"] if job["state"] == "running" and (job.get("progress") or {}).get("step")
            ]
    seconds = time.perf_counter() - began
    thread.join()
    return seconds


def seconds_a_step(runs: Runs, during: float) -> float:
    """Return how long a training step takes."""
    first, began = runs.story(RUN).step, time.perf_counter()
    time.sleep(during)
    wait_for(lambda: runs.story(RUN).step > first)
    return (time.perf_counter() - began) / (runs.story(RUN).step - first)


def watched(app: Served, runs: Runs, pages: int) -> tuple[float, float]:
    """Return the cores that the app's process used while pages were open, and the seconds of a training step."""
    stop = threading.Event()
    threads = [threading.Thread(target=look, args=(str(app.client.base_url), stop)) for _ in range(pages)]
    for thread in threads:
        thread.start()
    before, began = app.cpu[0], time.perf_counter()
    step = seconds_a_step(runs, WATCH)
    used = (app.cpu[0] - before) / (time.perf_counter() - began)
    stop.set()
    for thread in threads:
        thread.join()
    return used, step


def look(address: str, stop: threading.Event) -> None:
    """Do what an open page does that shows a run."""
    version, looked = -1, 0.0
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        while not stop.is_set():
            with suppress(httpx.TransportError):
                version = client.get("/studio/state", params={"since": version}).json()["version"]
                if time.monotonic() - looked >= POLLED:
                    client.get(f"/studio/run/{RUN}")
                    looked = time.monotonic()


def wait_for(done: Callable[[], Any], limit: float = 300.0) -> None:
    """Return when something has happened.

    Raises:
        RuntimeError: if it does not.
    """
    end = time.monotonic() + limit
    while not done():
        if time.monotonic() > end:
            raise RuntimeError("the run does not come to what was waited for")
        time.sleep(0.02)
