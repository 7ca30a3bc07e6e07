"""The job journal: what waits, runs and ended. It survives a restart; a job that was running then waits once more."""

import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from sqlite3 import Row

from pydantic import ValidationError

from studio.errors import StudioError
from studio.records import Job
from studio.store.index import Database

logger = logging.getLogger(__name__)

WAITING, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
MAX_TRIES = 3  # a job that took the worker with it this often is not tried again
KEPT = 200  # ended jobs that stay in the journal


@dataclass(frozen=True)
class Entry:
    """A job and what became of it."""

    job: Job
    state: str
    images: tuple[str, ...]
    error: str
    forever: bool
    tries: int

    @property
    def id(self) -> str:
        return self.job.id


def new_job_id() -> str:
    """Return 128 random bits: whoever knows a job's id may watch it."""
    return secrets.token_hex(16)


class JobStore:
    """The journal in the data root's database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = lru_cache(maxsize=KEPT)(Job.model_validate_json)  # a page asks for the same jobs at every step

    def add(self, *jobs: Job, forever: bool = False) -> None:
        """Append jobs to the queue, all or none; they are durable when this returns."""
        with self._database.transaction(durable=True):
            high = self._database.rows("SELECT MAX(rank) high FROM jobs")[0]["high"] or 0
            for rank, job in enumerate(jobs, 1):
                self._database.execute(
                    "INSERT INTO jobs(id, rank, state, owner, job, forever) VALUES (?, ?, ?, ?, ?, ?)",
                    [job.id, high + rank, WAITING, job.owner, job.model_dump_json(), int(forever)],
                )

    def claim(self, choose: Callable[[list[tuple[str, str]]], str] | None = None) -> Entry | None:
        """Take a waiting job and mark it running: the first, or the one that `choose` picks among (id, owner) in their order."""
        with self._database.transaction():
            limit = -1 if choose else 1
            rows = self._database.rows(
                "SELECT id, owner FROM jobs WHERE state = 'queued' ORDER BY rank LIMIT ?", [limit]
            )
            if not rows:
                return None
            chosen = choose([(row["id"], row["owner"]) for row in rows]) if choose else rows[0]["id"]
            self._database.execute("UPDATE jobs SET state = 'running', tries = tries + 1 WHERE id = ?", [chosen])
        return self.get(chosen)

    def open_by_owner(self) -> Counter[str]:
        """Return how many jobs of each owner wait or run."""
        rows = self._database.rows(
            "SELECT owner, COUNT(*) n FROM jobs WHERE state IN ('queued', 'running') GROUP BY owner"
        )
        return Counter({row["owner"]: row["n"] for row in rows})

    def bytes_of_others(self, owner: str) -> int:
        """Return how much disk the pictures of everybody but one owner take."""
        rows = self._database.rows("SELECT SUM(bytes) b FROM images WHERE owner NOT IN (?, '')", [owner])
        return rows[0]["b"] or 0

    def add_image(self, job_id: str, image_id: str) -> None:
        with self._database.transaction():
            entry = self.get(job_id)
            if entry:
                self._database.execute(
                    "UPDATE jobs SET images = ? WHERE id = ?", [json.dumps([*entry.images, image_id]), job_id]
                )

    def end(self, job_id: str, state: str, error: str = "") -> None:
        """Mark a job as ended and forget the oldest ended ones."""
        with self._database.transaction():
            self._database.execute("UPDATE jobs SET state = ?, error = ? WHERE id = ?", [state, error, job_id])
            self._database.execute(
                "DELETE FROM jobs WHERE state NOT IN ('queued', 'running') AND rank < "
                "(SELECT rank FROM jobs WHERE state NOT IN ('queued', 'running') ORDER BY rank DESC LIMIT 1 OFFSET ?)",
                [KEPT],
            )

    def requeue_running(self) -> int:
        """After a restart: jobs that were running wait again, in their old place, their pictures made anew; return how many."""
        self._database.execute(
            "UPDATE jobs SET state = 'failed', error = 'this job ended the app or its worker several times and is not tried again' "
            "WHERE state = 'running' AND tries >= ?",
            [MAX_TRIES],
        )
        return self._database.execute("UPDATE jobs SET state = 'queued', images = '[]' WHERE state = 'running'")

    def release_running(self) -> None:
        """An orderly end: what runs waits for the next start, and this try does not count."""
        self._database.execute("UPDATE jobs SET state = 'queued', tries = MAX(0, tries - 1) WHERE state = 'running'")

    def cancel_waiting(self, job_id: str) -> bool:
        """Take a waiting job out of the queue; False if it is not waiting."""
        return (
            self._database.execute(
                "UPDATE jobs SET state = 'cancelled', forever = 0 WHERE id = ? AND state = 'queued'", [job_id]
            )
            > 0
        )

    def stop_forever(self, job_id: str) -> None:
        self._database.execute("UPDATE jobs SET forever = 0 WHERE id = ?", [job_id])

    def move(self, job_id: str, offset: int) -> bool:
        """Move a waiting job `offset` places down (negative: up); False if it is not waiting."""
        with self._database.transaction():
            rows = self._database.rows("SELECT id, rank FROM jobs WHERE state = 'queued' ORDER BY rank")
            order = [row["id"] for row in rows]
            if job_id not in order:
                return False
            place = order.index(job_id)
            order.insert(max(0, min(len(order) - 1, place + offset)), order.pop(place))
            for identity, row in zip(order, rows, strict=True):
                self._database.execute("UPDATE jobs SET rank = ? WHERE id = ?", [row["rank"], identity])
        return True

    def get(self, job_id: str) -> Entry | None:
        rows = self._database.rows("SELECT * FROM jobs WHERE id = ?", [job_id])
        return next(iter(self._entries(rows)), None)

    def outcomes(self, job_ids: list[str]) -> dict[str, tuple[str, tuple[str, ...], str]]:
        """Return state, pictures and error of those of the jobs that the journal has."""
        marks = ", ".join("?" * len(job_ids))
        rows = self._database.rows(f"SELECT id, state, images, error FROM jobs WHERE id IN ({marks})", job_ids)
        return {row["id"]: (row["state"], tuple(json.loads(row["images"])), row["error"]) for row in rows}

    def waiting(self, limit: int = -1) -> list[Entry]:
        """Return the waiting jobs in their order, at most `limit` if that is not negative."""
        rows = self._database.rows("SELECT * FROM jobs WHERE state = 'queued' ORDER BY rank LIMIT ?", [limit])
        return self._entries(rows)

    def count_waiting(self) -> int:
        return self._database.rows("SELECT COUNT(*) FROM jobs WHERE state = 'queued'")[0][0]

    def running(self) -> list[Entry]:
        return self._entries(self._database.rows("SELECT * FROM jobs WHERE state = 'running' ORDER BY rank"))

    def ended(self, owner: str, limit: int = 12) -> list[Entry]:
        """Return the newest ended jobs of one owner; nobody has none."""
        rows = self._database.rows(
            "SELECT * FROM jobs WHERE owner = ? AND owner != '' AND state NOT IN ('queued', 'running') ORDER BY rank DESC LIMIT ?",
            [owner, limit],
        )
        return self._entries(rows)

    def _entries(self, rows: list[Row]) -> list[Entry]:
        """Read rows; one that another version wrote and this one cannot read is marked as failed and left out."""
        entries = []
        for row in rows:
            try:
                job = self._read(row["job"])
            except (ValidationError, StudioError):
                logger.warning("job %s was written by another version of Studio and is dropped", row["id"])
                self._database.execute("DELETE FROM jobs WHERE id = ?", [row["id"]])
                continue
            images = tuple(json.loads(row["images"]))
            entries.append(Entry(job, row["state"], images, row["error"], bool(row["forever"]), row["tries"]))
        return entries
