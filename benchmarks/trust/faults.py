"""Faults at the n-th system call of `os`, and what a disk holds after the power went.

SIGKILL does not model a power cut: the page cache survives it. `PowerCut` remembers what was synced, file by file and folder by
folder, and `left` says what a disk may hold if all else is lost.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

from studio.store.writer import PART

CALLS = ("open", "write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "close")
CALLS_MAX = 500
DEAD = 2**30  # no process has this number


@contextlib.contextmanager
def before_calls(wrap: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Stand in front of `CALLS` of `os` for the length of the block; `wrap` is told the name and the call itself."""
    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(patch.object(os, name, wrap(name, getattr(os, name))))
        yield


class Faults:
    """Fails the n-th system call of `os`, as SQLite's tests do.

    Args:
        nth: 1 is the first.
        error: number of the error.
        short: write half of what was asked instead of failing.
    """

    def __init__(self, nth: int, error: int = errno.EIO, *, short: bool = False) -> None:
        self._nth, self._error, self._short = nth, error, short
        self.count, self.fired = 0, False

    @contextlib.contextmanager
    def active(self) -> Iterator["Faults"]:
        """Stand in front of `os` for the length of the block."""
        with before_calls(self._wrap):
            yield self

    def _wrap(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self._nth:
                self.fired = True
                return self.fail(name, real, args)
            return real(*args, **kwargs)

        return call

    def fail(self, name: str, real: Callable, args: tuple) -> object:
        """Do what goes wrong instead of a call."""
        if self._short and name == "write":
            return real(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
        if name == "close":
            real(*args)
        raise OSError(self._error, os.strerror(self._error))


class Dark(BaseException):
    """The power is gone: nothing after this happened."""


class PowerCut:
    """Cuts the power before the n-th call under a folder, and knows what was synced until then.

    Args:
        root: what lies below it when the block begins is on the disk.
        nth: 1 is the first call; 0 lets all be done.
    """

    def __init__(self, root: Path, nth: int) -> None:
        self._root, self._nth = root, nth
        self.count, self.fired = 0, False
        self._data: dict[int, bytes] = {}  # inode -> content as synced
        self._names: dict[int, dict[str, int]] = {}  # folder's inode -> its names as synced
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            self._names[folder.stat().st_ino] = _names(folder)
        self._data |= {path.stat().st_ino: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    @contextlib.contextmanager
    def active(self) -> Iterator["PowerCut"]:
        """Follow `os` for the length of the block; `Dark` goes through whatever cleans up."""
        with before_calls(self._wrap):
            yield self

    def _wrap(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            self.count += 1
            if self.fired:
                raise Dark
            if self.count == self._nth:
                self.fired = True
                self._kept = self._copy()
                raise Dark
            done = real(*args, **kwargs)
            if name == "fsync":
                self._synced(args[0])
            elif name == "open" and args[1] & os.O_EXCL:
                self._data.pop(os.fstat(done).st_ino, None)  # an inode may come back as another file
            elif name == "mkdir":
                self._names[os.stat(args[0]).st_ino] = {}
            return done

        return call

    def _synced(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").resolve()
        if path.is_dir():
            self._names[path.stat().st_ino] = _names(path)
        else:
            self._data[path.stat().st_ino] = path.read_bytes()

    def _copy(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        return dict(self._durable(self._root.stat().st_ino, "")), dict(self._eager())

    def _durable(self, folder: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        for name, inode in self._names.get(folder, {}).items():
            if inode in self._names:
                yield from self._durable(inode, f"{prefix}{name}/")
            else:
                yield f"{prefix}{name}", self._data.get(inode, b"")

    def _eager(self) -> Iterator[tuple[str, bytes]]:
        for path in self._root.rglob("*"):
            if path.is_file():
                yield path.relative_to(self._root).as_posix(), self._data.get(path.stat().st_ino, b"")

    def left(self, target: Path, *, eager: bool) -> None:
        """Write what the disk holds afterwards into an empty folder.

        Args:
            target: for it.
            eager: names reached the disk before they were synced, contents did not: the zero-length files of real crashes. Else
                nothing that was not synced did.
        """
        durable, names = self._kept if self.fired else self._copy()
        for name, content in (names if eager else durable).items():
            path = target / name.replace(
                f"{PART}{os.getpid()}-", f"{PART}{DEAD}-"
            )  # whoever wrote it is not there any more
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _names(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def every_fault(work: Callable[[], object], check: Callable[[bool], None], error: int, *, short: bool = False) -> int:
    """Run `work` with call 1, 2, 3 … failing until none fails; `check(done)` after each. Return how many calls there were."""
    for nth in range(1, CALLS_MAX):
        with Faults(nth, error, short=short).active() as faults:
            try:
                work()
                done = True
            except OSError:
                done = False
        check(done)
        if not faults.fired:
            if not done:
                raise AssertionError("it fails without a fault")
            return nth - 1
    raise AssertionError("the loop did not end")
