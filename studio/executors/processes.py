"""Trainers as processes: started, found, waited for."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from studio.errors import StudioError
from studio.settings import ROOT, without_secrets

ESTIMATE_SECONDS = 600.0
LOOK = 0.1  # seconds between two looks at an estimate
Child = subprocess.Popen[Any] | psutil.Process  # the latter: of an earlier app, or of a person's shell


def start_trainer(words: list[str], log: Path) -> subprocess.Popen[Any]:
    """Start the command that a person would type; it lives on when this process ends."""
    alone: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        alone = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # pyright: ignore[reportAttributeAccessIssue]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "trainers", *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env=without_secrets(os.environ), **alone,
        )  # fmt: skip


def is_over(child: Child) -> bool:
    """Whether a process has ended."""
    if isinstance(child, psutil.Process):
        try:
            return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
    return child.poll() is not None


def process_of(folder: Path) -> psutil.Process | None:
    """Return a trainer that was started for a run's folder by somebody else."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()  # pyright: ignore[reportAttributeAccessIssue]
        if "trainers" in words and str(folder) in words and not is_over(process):
            return process
    return None


def awaited(child: subprocess.Popen[bytes], cancelled: Callable[[], bool]) -> bool:
    """Wait for an estimate; False if it was cancelled. Nothing is left of it: all that it writes is a cache.

    Raises:
        StudioError: if it takes too long.
    """
    until = time.monotonic() + ESTIMATE_SECONDS
    try:
        while child.poll() is None:
            if cancelled():
                return False
            if time.monotonic() > until:
                raise StudioError("the estimate did not end in time; the device may be busy with another run")
            time.sleep(LOOK)
        return True
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
