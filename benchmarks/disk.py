"""What fsync costs: the same commits with it and without it, in turns, in a folder of the same disk."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from studio.records import ImageRecord, Job
from studio.store import writer
from studio.store.gallery import Gallery, new_image_id, utc_now
from studio.store.index import Database, ImageIndex
from studio.store.jobs import DONE, JobStore, new_job_id


class Careless(Database):
    """A database whose commits never wait for the disk."""

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """See Database; in WAL mode a commit that is not durable is not synced."""
        with super().transaction(durable=False):
            yield


def wall_ms(act: Callable[[], object]) -> float:
    """Return the wall milliseconds of a call."""
    began = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - began)


def commit_costs(folder: Path, png: bytes, record: ImageRecord, runs: int) -> dict[str, list[float]]:
    """Measure three commits, each with and without fsync.

    Args:
        folder: on the disk in question.
        png: the file that is written.
        record: of any picture.
        runs: how often each.

    Returns:
        name -> wall milliseconds. `write`: the writer's `write_file` of the PNG. `commit`: all that the gallery does for a picture
        (that file with its text, and its row in the index). `journal`: all that the queue does for a job of one picture (add,
        claim, note the picture, end). `…_no_fsync`: the same without waiting for the disk.
    """
    careful = _acts(folder / "careful", Database(folder / "careful" / "studio.db"), png, record)
    careless = _acts(folder / "careless", Careless(folder / "careless" / "studio.db"), png, record)
    costs: dict[str, list[float]] = {f"{name}{kind}_ms": [] for name in careful for kind in ("", "_no_fsync")}
    for _ in range(runs):
        for name in careful:
            costs[f"{name}_ms"].append(wall_ms(careful[name]))
            with patch("os.fsync", lambda handle: None):
                costs[f"{name}_no_fsync_ms"].append(wall_ms(careless[name]))
    return costs


def _acts(folder: Path, database: Database, png: bytes, record: ImageRecord) -> dict[str, Callable[[], object]]:
    """Return the three commits over one database."""
    gallery, jobs = Gallery(folder / "images", ImageIndex(database)), JobStore(database)

    def commit() -> None:
        gallery.commit(png, record.model_copy(update={"id": new_image_id(utc_now())}))

    def journal() -> None:
        job = Job(id=new_job_id(), request=record.request, model=record.model)
        jobs.add(job)
        jobs.claim()
        jobs.add_image(job.id, record.id)
        jobs.end(job.id, DONE)

    return {
        "write": lambda: writer.write_file(folder / "images" / f"{new_job_id()}.png", png),
        "commit": commit,
        "journal": journal,
    }
