"""A day in small: one job after the other, and what the app holds afterwards: memory, open files, threads, files in the cache."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.target import Target, files_below, target

SECONDS = {True: 3600.0, False: 150.0}
WARM = 0.3  # part of the run that is not judged: caches fill
PAUSE = {True: 2.0, False: 0.2}
MEMORY_AN_HOUR = 2e6  # bytes that the app may grow, full size
MEMORY_A_JOB = 150e3  # likewise in a run of minutes, where caches still fill
HELD = 8  # files or threads more at the end than after the warm-up
GOAL = "memory flat (below 2 MB an hour, or 150 kB a job in minutes), open files and threads flat, no leftovers"


def look(one: Target) -> tuple[float, int, int, int]:
    """Return memory in bytes, open files and threads of the app, and files in its cache and among half-written ones."""
    process = psutil.Process(one.process.pid)
    left = [path for path in files_below(one.data) if "previews" in path.parts or ".part" in path.name]
    return process.memory_info().rss, process.num_fds(), process.num_threads(), len(left)


def slope(times: list[float], values: list[float]) -> tuple[float, float]:
    """Return the least-squares slope, and half of its 95 % interval."""
    x, y = np.array(times) - np.mean(times), np.array(values) - np.mean(values)
    along = float((x * y).sum() / (x * x).sum())
    spread = float(np.sqrt(((y - along * x) ** 2).sum() / max(1, len(x) - 2) / (x * x).sum()))
    return along, 1.96 * spread


def run(full: bool, mutant: bool = False, seconds: float = 0.0) -> Figure:
    """Draw for a while; the mutant keeps memory and an open file for every job."""
    tally, seconds = Tally(), seconds or SECONDS[full]
    rows: list[tuple[float, float, int, int, int]] = []
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
        with target("local", Path(folder), mutant="leaks" if mutant else "none") as one:
            one.draw()
            began, number = time.monotonic(), 0
            while time.monotonic() - began < seconds:
                with tally.case(f"job {number}"):
                    one.draw(seed=number)
                for path in ("/", "/studio/gallery", "/studio/state?since=-1"):
                    one.raw("GET", path)
                number += 1
                rows.append((time.monotonic() - began, *look(one)))
                time.sleep(PAUSE[full])
    judged = rows[int(len(rows) * WARM) :]
    times, memory, files, threads, left = (list(column) for column in zip(*judged, strict=True))
    growth, error = slope(times, memory)
    per_job = growth * seconds / max(1, number)
    details: dict[str, Any] = {
        "jobs": number,
        "bytes an hour": round(growth * 3600),
        "plus or minus": round(error * 3600),
    }
    details |= {
        "bytes a job": round(per_job),
        "open files": [files[0], files[-1]],
        "threads": [threads[0], threads[-1]],
    }
    surely = max(0.0, growth - error)
    with tally.case("memory"):
        held = surely * 3600 < MEMORY_AN_HOUR if full else surely * seconds / max(1, number) < MEMORY_A_JOB
        assert held, f"{growth * 3600 / 1e6:.1f} MB an hour, {per_job / 1e3:.0f} kB a job"
    for what, values in (("open files", files), ("threads", threads), ("leftovers", left)):
        with tally.case(what):
            assert values[-1] - values[0] <= HELD, f"{values[0]} to {values[-1]}"
    return tally.figure("F7", __doc__ or "", GOAL, **details)
