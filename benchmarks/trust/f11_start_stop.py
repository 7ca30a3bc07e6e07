"""From a cold start to the first picture, and from SIGTERM to the end of the app and of all that it started."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.processes import children, started
from benchmarks.served import served
from benchmarks.trust.drawing import SMALL
from benchmarks.trust.figure import Figure, Tally

START_MAX, STOP_MAX = 25.0, 10.0  # seconds
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def stop(process: subprocess.Popen[str]) -> float:
    """Ask a process to end; return seconds until it and all below it are gone.

    Raises:
        AssertionError: if it does not in time.
    """
    below = [psutil.Process(pid) for pid in children(process.pid)]
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_MAX)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it did not end in {STOP_MAX:g} seconds") from None
    _, alive = psutil.wait_procs(below, timeout=max(0.1, STOP_MAX - (time.monotonic() - began)))
    assert not alive, f"{len(alive)} processes outlived it"
    return time.monotonic() - began


def run(full: bool, mutant: bool = False) -> Figure:
    """Start, draw and stop ten times, or twice; the mutant does not listen."""
    tally = Tally()
    starts: list[float] = []
    stops: list[float] = []
    for number in range(1 if mutant else 10 if full else 2):
        with tempfile.TemporaryDirectory(prefix="studio-trust-", ignore_cleanup_errors=True) as folder:
            if mutant:
                with started([sys.executable, "-c", STUBBORN], Path(folder)) as process, tally.case("stop"):
                    time.sleep(1)
                    stops.append(stop(process))
                continue
            began = time.monotonic()
            with served(Path(folder) / "data", "shapes", [], 1) as app:
                with tally.case(f"start {number}"):
                    app.draw(**SMALL)
                    starts.append(time.monotonic() - began)
                    assert starts[-1] < START_MAX, f"{starts[-1]:.1f} s until the first picture"
                with tally.case(f"stop {number}"):
                    stops.append(stop(app.process))
    goal = f"a picture in {START_MAX:g} s, the end in {STOP_MAX:g} s"
    told = {"start_s": [round(one, 1) for one in starts], "stop_s": [round(one, 1) for one in stops]}
    return tally.figure("F11", __doc__ or "", goal, **told)
