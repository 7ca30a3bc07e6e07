"""Processes that a benchmark starts: free ports, CPU seconds, and a sure end for them and their children."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from studio.settings import ROOT

PATIENCE = 15.0  # seconds from asking a process to end until it is killed
LINGER = 3.0  # seconds that its children may outlive it: they see their pipe close


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(folder: Path) -> dict[str, str]:
    """Return an environment with nothing to fetch, no telemetry, no STUDIO_* settings, and a lease folder of its own.

    The own leases keep a Studio that runs on this machine from being waited for, and from waiting.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("STUDIO_", "GRADIO_"))}
    quiet = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return inherited | quiet | {"STUDIO_LEASE_DIR": str(folder / "leases")}


@contextmanager
def started(command: list[str], folder: Path, *, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """Run a process until the end of the block. Its output goes to `folder/log.txt`, its stdout to us if we talk to it.

    Args:
        command: program and arguments.
        folder: for its log and its leases; made if it is not there.
        stdin: `subprocess.PIPE` to talk to it in lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    talking = stdin == subprocess.PIPE
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE if talking else log,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=environment(folder),
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End a process and every process below it, also those that made a session of their own; returns when all are gone."""
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    _, alive = psutil.wait_procs(below, timeout=LINGER)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(alive, timeout=PATIENCE)


def children(pid: int) -> list[int]:
    """Return the ids of all processes below one."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Return the user and system seconds that a process, without its children, has used so far."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def log_end(folder: Path) -> str:
    """Return the last lines of a process's log, for an error message."""
    return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
