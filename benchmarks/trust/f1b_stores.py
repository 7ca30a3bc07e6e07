"""Faults at every n-th call of every write path, and power cuts that lose what was not synced: whole, or absent, and the next works."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest.mock import patch

from benchmarks.trust.faults import CALLS_MAX, Dark, Faults, PowerCut
from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.stores import CASES, EXPECTED, Case
from studio.store import writer

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
GOAL = "every call of every path"


def naive_stream(path: Path, chunks: Iterable[bytes | memoryview], *, replace: bool = True, mode: int = 0o644) -> None:
    """Write as most programs do: in place, and never synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        for chunk in chunks:
            os.write(handle, chunk)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naive(mutant: bool) -> Iterator[None]:
    """Put the naive writer in the place of ours."""
    with patch.object(writer, "write_stream", naive_stream) if mutant else contextlib.nullcontext():
        yield


def faults(tally: Tally, name: str, case: Case, error: str, *, short: bool) -> None:
    """Fail every call of a path in turn."""
    for nth in range(1, CALLS_MAX):
        with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
            root = Path(folder)
            case.prepare(root)
            done, fault = True, Faults(nth, ERRORS[error], short=short)
            with tally.case(f"{name}: {'half of a write' if short else error} at call {nth}"):
                with fault.active():
                    try:
                        case.work(root)
                    except EXPECTED:
                        done = False
                case.check(root, done)
            if not fault.fired:
                return


def cuts(tally: Tally, name: str, case: Case) -> None:
    """Cut the power before every call of a path in turn, and after the last."""
    for nth in range(1, CALLS_MAX):
        with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
            root = Path(folder) / "before"
            root.mkdir()
            case.prepare(root)
            cut, done = PowerCut(root, nth), True
            with cut.active():
                try:
                    case.work(root)
                except Dark:
                    done = False
            for eager in (False, True):
                with tally.case(f"{name}: power cut before call {nth}, {'names kept' if eager else 'nothing kept'}"):
                    after = Path(folder) / f"after-{eager}"
                    after.mkdir()
                    cut.left(after, eager=eager)
                    for database in after.glob("studio.db*"):  # SQLite's own promise; here the files alone must do
                        database.unlink()
                    case.check(after, done)
            if not cut.fired:
                return


def run(full: bool, mutant: bool = False, only: Iterable[str] = ()) -> Figure:
    """Go through the write paths; without `full` with one error and power cuts."""
    tally = Tally()
    with naive(mutant):
        for name in only or CASES:
            for error in ERRORS if full else ("ENOSPC",):
                faults(tally, name, CASES[name], error, short=False)
            if full:
                faults(tally, name, CASES[name], "EIO", short=True)
            if os.name == "posix" and Path("/proc/self/fd").is_dir():
                cuts(tally, name, CASES[name])
    return tally.figure("F1b", __doc__ or "", GOAL, paths=list(only or CASES))
