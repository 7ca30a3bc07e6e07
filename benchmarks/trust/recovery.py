"""What the recovery classes work with: an engine here, a queue with a worker that can be hurt, and the picture that must come out."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.trust.drawing import SMALL, Drawing
from studio.executors.dispatcher import Dispatcher
from studio.executors.worker import WorkerExecutor
from studio.settings import Settings
from studio.spec import parse_request
from studio.store.blobs import decode
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.store.jobs import Entry, JobStore

PATIENCE = 180.0  # seconds


class Hurt(WorkerExecutor):
    """The executor of the app, with a worker whose faults are in its prompts."""

    module = "benchmarks.trust.hurt_worker"


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return the first true answer.

    Raises:
        AssertionError: if there is none in time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


class Queue:
    """An app's queue, journal and gallery without its page."""

    def __init__(self, data: Path, drawing: Drawing) -> None:
        os.environ["STUDIO_LEASE_DIR"] = str(data / "leases")
        self.data = data
        self.settings = Settings(data_dir=data, cpu_threads=1, device="cpu")
        self.database = Database(data / "studio.db")
        self.gallery = Gallery(data / "images", ImageIndex(self.database))
        self.executor = Hurt(self.settings, lambda event: self.dispatcher.hear(event))
        self.dispatcher = Dispatcher(self.executor, JobStore(self.database), drawing.library, self.gallery.blobs)
        self.dispatcher.start("shapes")

    def submit(self, owner: str = "me", **values: Any) -> str:
        return self.dispatcher.submit(parse_request(SMALL | values), owner).id

    def ended(self, job: str) -> Entry:
        """Wait for the end of a job."""

        def end() -> Entry | None:
            entry = self.dispatcher.jobs.get(job)
            return entry if entry and entry.state not in ("queued", "running") else None

        return wait_for(end)

    def in_step(self, job: str) -> None:
        """Wait until a job draws."""
        wait_for(
            lambda: any(one.get("id") == job and one.get("progress") for one in self.dispatcher.state("me")["jobs"])
        )

    def draw(self, **values: Any) -> bytes:
        """Return the pixels of a normal job."""
        entry = self.ended(self.submit(**values))
        assert entry.state == "done", f"the normal job {entry.state}: {entry.error}"
        return pixels(self.gallery.path(entry.images[0]).read_bytes())

    def close(self) -> None:
        self.dispatcher.close()
        self.database.close()


def pixels(png: bytes) -> bytes:
    return decode(png).tobytes()


class Here:
    """One engine and one queue for all classes.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.drawing = Drawing(root / "parts")
        self.baseline = pixels(self.drawing.draw()[0])
        self.weights = self.drawing.weights()
        self._queue: Queue | None = None
        self._folders = 0

    @property
    def queue(self) -> Queue:
        """The queue, started when it is first needed."""
        if self._queue is None:
            self._queue = Queue(self.root / "data", self.drawing)
        return self._queue

    def folder(self) -> Path:
        """Return a fresh folder."""
        self._folders += 1
        place = self.root / f"case-{self._folders}"
        place.mkdir()
        return place

    def normal(self, *, through_worker: bool) -> None:
        """Draw the picture that must come out.

        Raises:
            AssertionError: if it is another, or the model's weights are.
        """
        made = self.queue.draw() if through_worker else pixels(self.drawing.draw()[0])
        assert made == self.baseline, "the next normal job drew another picture"
        if not through_worker:
            assert self.drawing.weights() == self.weights, "the model is not what it was"

    def close(self) -> None:
        if self._queue:
            self._queue.close()


def refused(work: Callable[[], object], kinds: type[BaseException] | tuple[type[BaseException], ...]) -> str:
    """Return what a call is refused with.

    Raises:
        AssertionError: if it is not.
    """
    try:
        work()
    except kinds as error:
        return str(error)
    raise AssertionError("it was not refused")
