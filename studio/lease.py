"""One arbiter per device: an OS file lock in a per-user folder of this machine, so that every Studio process meets there.

The lock is freed by the system when its holder dies, however it dies. Who waits holds a `.want` file, so that a holder which can
yield (a training run, between two steps) knows that it should.
"""

import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from studio.errors import StudioError

POLL = 0.05  # seconds between two attempts


def lease_folder() -> Path:
    """Return the per-user folder of all leases, made with access for this user only."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(os.environ.get("STUDIO_LEASE_DIR") or Path(tempfile.gettempdir()) / f"studio-leases-{user}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


class DeviceLease:
    """The right to compute on one device.

    Args:
        device: key of the device: a GPU's UUID, or `cpu`.
    """

    def __init__(self, device: str, folder: Path | None = None) -> None:
        self._path = (folder or lease_folder()) / re.sub(r"[^\w-]", "_", device)
        self._lock = FileLock(self._path.with_suffix(".lock"))

    @contextmanager
    def held(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Wait for the device and hold it; yields False, without holding it, if `should_stop` became true first."""
        want = self._path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.want")
        try:
            mine = self._try()
            while not mine and not should_stop():
                want.touch()
                time.sleep(POLL)
                mine = self._try()
            want.unlink(missing_ok=True)
            yield mine
        finally:
            want.unlink(missing_ok=True)
            self._lock.release()

    def _try(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def wanted(self) -> bool:
        """Whether somebody else, who is alive, waits for the device."""
        return any(_alive(path) for path in self._path.parent.glob(f"{self._path.name}.*.want"))


def _alive(want: Path) -> bool:
    pid = int(want.name.removesuffix(".want").rsplit(".", 1)[1].split("-")[0])
    if psutil.pid_exists(pid):
        return True
    want.unlink(missing_ok=True)
    return False


class FolderLock:
    """Keeps a second app away from a data root, whose journal and queue have one owner.

    Raises:
        StudioError: if another app holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "app.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StudioError(
                f"another Studio runs on {folder}; open its page, stop it, or choose another --data-dir"
            ) from None

    def release(self) -> None:
        """Let the next one in."""
        self._lock.release()
