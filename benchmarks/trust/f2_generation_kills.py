"""The process that draws is killed at random moments, also while it recovers: no torn, lost or phantom picture, no lost job."""

import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.trust.drawing import SMALL, Drawing
from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.recovery import pixels
from studio.events import Event, Finished, ImageReady
from studio.spec import parse_request
from studio.store import writer
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.store.jobs import CANCELLED, DONE, JobStore
from studio.store.metadata import read_picture

JOBS, PICTURES = 2, 2
SEED = 20_261_122
QUICK = {"num_inference_steps": 1, "num_images_per_prompt": PICTURES}


class Hasty(Gallery):
    """The mutant: says that a picture is saved when the next one comes."""

    _late: tuple[Any, ...] = ()

    def commit(self, png: bytes, record: Any, owner: str = "") -> Path:
        """See Gallery."""
        if self._late:
            super().commit(*self._late)
        self._late = (png, record, owner)
        return self.root / record.created[:10] / f"{record.id}.png"


def open_root(root: Path, gallery: type[Gallery] = Gallery) -> tuple[Database, Gallery, JobStore]:
    database = Database(root / "studio.db")
    return database, gallery(root / "images", ImageIndex(database)), JobStore(database)


def recover(root: Path) -> tuple[Database, Gallery, JobStore]:
    """Do what the app does at its start."""
    database, gallery, jobs = open_root(root)
    jobs.requeue_running()
    writer.sweep(gallery.root)
    gallery.reconcile()
    return database, gallery, jobs


def work(root: Path, drawing: Drawing, told: int, gallery_class: type[Gallery] = Gallery) -> None:
    """Recover, then do the queue; write the id of each picture that a browser would hear of to `told`."""
    from studio.executors.base import StopFlag, run_job

    recover(root)[0].close()
    database, gallery, jobs = open_root(root, gallery_class)
    while entry := jobs.claim():

        def hear(event: Event, job: str = entry.id) -> None:
            if isinstance(event, ImageReady):
                jobs.add_image(job, event.record.id)
                os.write(told, f"{event.record.id}\n".encode())
            elif isinstance(event, Finished):
                jobs.end(job, CANCELLED if event.interrupted else DONE)

        run_job(lambda: drawing.engine, gallery, entry.job, hear, StopFlag(), None)
    database.close()


def child(root: Path, drawing: Drawing, told: int, gallery_class: type[Gallery]) -> int:
    """Fork a process that works; return its number. One engine is loaded once, and every child begins with it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(root, drawing, told, gallery_class)
            code = 0
        finally:
            os._exit(code)
    return pid


def trial(root: Path, drawing: Drawing, rng: random.Random, seconds: float, gallery_class: type[Gallery]) -> int:
    """Kill until nothing is left to do; return how many died.

    Raises:
        AssertionError: if a picture or job is lost, torn or a phantom.
    """
    database, _, jobs = open_root(root)
    seeds = [rng.randrange(1000) for _ in range(JOBS)]
    jobs.add(*(drawing.library.job(parse_request(SMALL | QUICK | {"seed": seed}), 7, None) for seed in seeds))
    database.close()
    reading, writing = os.pipe()
    died = 0
    try:
        for delay in [
            rng.uniform(0, seconds) for _ in range(rng.randrange(1, 3))
        ]:  # the second is in recovery and beyond
            pid = child(root, drawing, writing, gallery_class)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            died += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            check(root, died)
        pid = child(root, drawing, writing, gallery_class)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the queue could not be finished"
        os.close(writing)
        writing = -1
        with os.fdopen(reading, "rb") as pipe:
            reading = -1
            shown = pipe.read().decode().split()
    finally:
        for handle in (reading, writing):
            if handle >= 0:
                os.close(handle)
    database, gallery, jobs = recover(root)
    try:
        assert not jobs.waiting() and not jobs.running(), "a job is left"
        for name in shown:
            assert read_picture(gallery.path(name)).record, f"{name} was shown and is not what it was"
        made = {name: read_picture(gallery.path(name)).record for name in gallery.index.ids()}
        drawn = {record.seed for record in made.values() if record}
        assert drawn >= {seed + n for seed in seeds for n in range(PICTURES)}, "a picture of a job is missing"
    finally:
        database.close()
    check(root, died)
    return died


def check(root: Path, died: int) -> None:
    """Check files against index after a restart.

    Raises:
        AssertionError: naming what is wrong.
    """
    database, gallery, _ = recover(root)
    try:
        files = {path.stem for path in gallery.root.rglob("*.png")}
        assert not list(gallery.root.rglob(f"{writer.PART}*")), "leftovers"
        assert files == gallery.index.ids(), f"files and index differ after {died} kills"
        for name in files:
            pixels(gallery.path(name).read_bytes())
        assert database.rows("PRAGMA integrity_check")[0][0] == "ok"
    finally:
        database.close()


def run(full: bool, mutant: bool = False, trials: int = 0) -> Figure:
    """Run 500 trials, or as many as fit a minute or two."""
    tally, died, rng = Tally(), 0, random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
        os.environ["STUDIO_LEASE_DIR"] = f"{folder}/leases"
        drawing = Drawing(Path(folder) / "parts")
        drawing.draw(num_inference_steps=1)
        root = Path(folder) / "whole"
        database, _, jobs = open_root(root)
        jobs.add(drawing.library.job(parse_request(SMALL | QUICK), 7, None))
        database.close()
        began = time.monotonic()
        nobody = os.open(os.devnull, os.O_WRONLY)
        assert os.waitpid(child(root, drawing, nobody, Gallery), 0)[1] == 0
        os.close(nobody)
        seconds = (time.monotonic() - began) * JOBS
        for number in range(trials or (500 if full else 40)):
            with tally.case(f"trial {number}"):
                died += trial(Path(folder) / str(number), drawing, rng, seconds, Hasty if mutant else Gallery)
    return tally.figure("F2", __doc__ or "", "every trial", seed=SEED, kills=died, passed=died > 0)
