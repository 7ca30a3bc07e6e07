"""Runner: the queue of training runs. It starts the command that a person would type, and follows run directories, never processes."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from studio.errors import InvalidRequest, StudioError, shown
from studio.executors.processes import Child, awaited, is_over, process_of, start_trainer
from studio.settings import ROOT, Settings, without_secrets
from studio.store import writer
from studio.store.priority import read_priority, set_priority
from studio.store.runs import ALIVE, CONFIG, EVENTS, FAILED, FINISHED, LOG, QUEUED, STARTING, Runs

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks
TOLD_EVERY = 2.0  # seconds between two announcements of a run that only goes on
HOLD_MAX = 7 * 86_400.0  # seconds
ROOM = 4 * 2**20  # bytes without which nothing can be written
DISK_FULL = "the disk is full; the run waits until there is room"
DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,2})?")


class Runner:
    """Owner of the queue of one data root's runs.

    Args:
        settings: where things are, and on which device runs work.
        runs: the folders.
        changed: is called when a page should look again.
        pictures_wait: whether pictures wait in the queue or are being drawn.
        device: what the process that draws says of the machine: `place`, the name of its own device, and `places`, all of them;
            {} before it is up.
        start: begins `python -m trainers` with these words in a process of its own, which writes what it says into this file.
    """

    def __init__(
        self,
        settings: Settings,
        runs: Runs,
        changed: Callable[[], None],
        pictures_wait: Callable[[], bool],
        *,
        device: Callable[[], dict[str, Any]] = dict,
        start: Callable[[list[str], Path], Child] | None = None,
    ) -> None:
        self.settings, self.runs = settings, runs
        self._changed, self._pictures_wait, self._device = changed, pictures_wait, device
        self._start = start or start_trainer
        self._file = runs.root / "queue.json"
        self._lock = threading.RLock()
        self._children: dict[str, tuple[Child, int]] = {}  # with how long its events were
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._seen: dict[str, dict[str, Any]] = {}
        self._active: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._work, name="runner", daemon=True)

    def start(self) -> None:
        """Begin to work on the queue; runs that live are found as they are."""
        self._thread.start()

    def close(self) -> None:
        """Stop starting runs; those that work go on."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def queue(self) -> list[str]:
        """Return the runs that wait, in order."""
        return [row["run"] for row in self._rows()]

    def enqueue(self, run_id: str) -> None:
        """Let a run begin, or go on, when those before it have ended; this is on disk when it returns.

        Raises:
            StudioError: if it is working, waits already, or is finished.
        """
        with self._lock:
            state = self.state(run_id)
            if state in ALIVE or state in (QUEUED, STARTING):
                raise StudioError(f"{run_id} is {state} already")
            if state == FINISHED:
                raise StudioError(f"{run_id} is finished; to train longer, start a new run from its result")
            self._write([*self._rows(), {"run": run_id}])
        self._wake.set()

    def cancel(self, run_id: str) -> None:
        """Take a run out of the queue, or stop it if it works; it saves a checkpoint first."""
        with self._lock:
            if self.runs.alive(run_id):
                self.runs.ask(run_id, "stop")
            elif run_id in self._children or run_id in self.queue():
                if run_id in self._children:  # still loading
                    self._children[run_id][0].terminate()
                self._write([row for row in self._rows() if row["run"] != run_id])
            else:
                raise StudioError(f"{run_id} neither works nor waits")
        self._wake.set()

    def hold(self, run_id: str, after: float | None) -> None:
        """Let a waiting run not begin before a moment, such as the evening; those behind it may begin meanwhile.

        Args:
            run_id: that waits.
            after: seconds since 1970; None lets it go when its turn comes.

        Raises:
            StudioError: if it does not wait, or the moment is none of the next week.
        """
        if after is not None and not 0 < after - time.time() < HOLD_MAX:
            raise InvalidRequest("after", f"after={shown(after)} must be a moment of the next seven days")
        with self._lock:
            rows = self._rows()
            if run_id not in [row["run"] for row in rows]:
                raise StudioError(f"{run_id} does not wait")
            self._write([row | {"after": after} if row["run"] == run_id else row for row in rows])
        self._wake.set()

    def move(self, run_id: str, offset: int) -> None:
        """Move a waiting run up (negative) or down."""
        with self._lock:
            rows = self._rows()
            place = next((i for i, row in enumerate(rows) if row["run"] == run_id), None)
            if place is None:
                raise StudioError(f"{run_id} does not wait")
            row = rows.pop(place)
            rows.insert(max(0, min(len(rows), place + offset)), row)
            self._write(rows)

    def places(self) -> list[dict[str, Any]]:
        """Return the devices on which a run can work, see `events.Place`; [] before the process that draws is up."""
        return list(self._device().get("places") or ())

    def check_device(self, device: str) -> str:
        """Return the name of a device on which a run may work; "" is the app's.

        Raises:
            InvalidRequest: if this machine has no such device.
        """
        there = [place["name"] for place in self.places()]
        if device and (device not in there if there else not DEVICE.fullmatch(device)):
            allowed = ", ".join(there) or "cpu, mps, cuda, cuda:1"
            raise InvalidRequest("device", f"device={shown(device)} is not there; there is: {allowed}")
        return device

    def set_device(self, run_id: str, device: str) -> None:
        """Let a run work on another device when it begins or goes on.

        Raises:
            StudioError: if it works now, or there is no such device.
        """
        with self._lock:
            if (state := self.state(run_id)) in ALIVE or state == STARTING:
                raise StudioError(f"{run_id} is {state}; stop it first, it goes on with the other device")
            self.runs.set_device(run_id, self.check_device(device))
        self._changed()
        self._wake.set()

    def remove(self, run_id: str, trash: Path) -> None:
        """Move a run with all its results into the trash; it does not wait any more.

        Raises:
            StudioError: if it is working.
        """
        with self._lock:
            if run_id in self._children:
                raise StudioError(f"{run_id} is running; stop it first")
            self.runs.remove(run_id, trash)
            self._write(self._rows())

    def state(self, run_id: str, queue: list[str] | None = None) -> str:
        """Return what a run is doing; see `Runs.state`, `queued` and `starting`. `queue` saves reading it again."""
        state = self.runs.state(run_id)
        if run_id in self._children and state not in ALIVE:
            return STARTING
        return QUEUED if state not in ALIVE and run_id in (self.queue() if queue is None else queue) else state

    def overview(self) -> list[dict[str, Any]]:
        """Return what a page shows of all runs, see `row`; the one that was begun or resumed last first."""
        ids = self.runs.ids()
        waiting = self._rows(ids)
        return [self.row(run_id, waiting) for run_id in ids]

    def row(self, run_id: str, waiting: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Return what a page shows of a run: id, method, device, state, place, after, step, steps, seconds_left, note, error, loss."""
        waiting = self._rows() if waiting is None else waiting
        queue = [one["run"] for one in waiting]
        story, state = self.runs.story(run_id), self.state(run_id, queue)
        loss = story.curves.get("loss", {})
        return {
            "id": run_id, "method": self.runs.method(run_id), "device": self.runs.device(run_id), "state": state,
            "place": queue.index(run_id) + 1 if state == QUEUED else 0, "step": story.step, "steps": story.steps,
            "after": next((one.get("after") for one in waiting if one["run"] == run_id), None) if state == QUEUED else None,
            "seconds_left": story.seconds_left if state in ALIVE else None,
            "note": DISK_FULL if state in ALIVE and self._full() else story.note, "error": story.error,
            "loss": loss[max(loss)] if loss else None, "checkpoints": len(story.checkpoints),
        }  # fmt: skip

    def _full(self) -> bool:
        """Whether the disk is so full that a run, which waits then, cannot say so itself."""
        return shutil.disk_usage(self.runs.root).free < ROOM

    def announce(self) -> None:
        """Tell pages to look again."""
        self._changed()

    def told(self) -> dict[str, Any]:
        """Return what every page hears: {"runs": of those that are not over, "first": who goes first, "once": pictures may go once}."""
        first, once = read_priority(self.settings.data_dir)
        return {"runs": self._active, "first": first, "once": once}

    def command(self, run_id: str, *, resume: bool = False) -> list[str]:
        """Return what a person would type to start a run."""
        return self.words(
            self.runs.method(run_id), self.runs.folder(run_id), resume=resume, device=self.runs.device(run_id)
        )

    def words(self, method: str, folder: Path, *, resume: bool = False, device: str = "") -> list[str]:
        """Return what a person would type to start a run in a folder, which need not be there yet."""
        config = ["--config", str(folder / CONFIG), "--run-dir", str(folder)]
        return ["python", "-m", "trainers", method, *config, *self._flags(device), *(["--resume"] * resume)]

    def estimate(
        self, method: str, config: str, cancelled: Callable[[], bool] = lambda: False, *, device: str = ""
    ) -> dict[str, Any] | None:
        """Ask the trainer what a run would take; see `trainers.estimate`.

        Args:
            method: as on the command line.
            config: YAML of the whole config.
            cancelled: whether nobody wants to know any more; then None is returned.
            device: on which the run would work; "" is the app's.

        Raises:
            StudioError: what is wrong with the config or its pictures.
        """
        with tempfile.TemporaryDirectory() as folder:
            path, out, err = Path(folder) / CONFIG, Path(folder) / "out", Path(folder) / "err"
            path.write_text(config, encoding="utf-8")
            told = [method, "--config", str(path), "--run-dir", folder, *self._flags(device), "--estimate"]
            with out.open("wb") as spoken, err.open("wb") as warned:
                child = subprocess.Popen(
                    [sys.executable, "-m", "trainers", *told], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=spoken, stderr=warned,
                    env=without_secrets(os.environ),
                )  # fmt: skip
            if not awaited(child, cancelled):
                return None
            if child.returncode:
                raise _problem(err.read_text(encoding="utf-8", errors="replace"))
            return json.loads(out.read_text(encoding="utf-8").splitlines()[-1])

    def _place(self, device: str) -> str:
        """Return which device a run's name for it means, as far as that is known: that of the app may be named in three ways."""
        named = device or self.settings.device
        return (self._device().get("place") or named) if named in ("auto", "cuda", self.settings.device) else named

    def _flags(self, device: str = "") -> list[str]:
        settings = self.settings
        extra = [word for path in settings.extra_models for word in ("--extra-models", str(path))]
        told = {"data-dir": settings.data_dir, "device": device or settings.device, "cpu-threads": settings.cpu_threads}
        return [word for name, value in told.items() for word in (f"--{name}", str(value))] + extra

    def _rows(self, ids: list[str] | None = None) -> list[dict[str, Any]]:
        """Return the queue as it is on disk, without runs that are gone; `ids` saves listing all of them again."""
        try:
            rows = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        here = set(self.runs.ids() if ids is None else ids) if rows else set()
        return [row for row in rows if isinstance(row, dict) and row.get("run") in here]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        writer.write_json(self._file, rows)
        self._changed()

    def _work(self) -> None:
        waited = 0.0
        while not self._closing.is_set():
            try:
                seen = {row["id"]: row for row in self._look()}
                waited += POLL
                states = [row["state"] for row in seen.values()]
                if states != [row["state"] for row in self._seen.values()] or (
                    seen != self._seen and waited >= TOLD_EVERY
                ):
                    self._seen, waited = seen, 0.0
                    self._active = [row for row in seen.values() if row["state"] in (*ALIVE, STARTING, QUEUED)]
                    self._changed()
                if read_priority(self.settings.data_dir)[1] and not self._pictures_wait():
                    set_priority(self.settings.data_dir, read_priority(self.settings.data_dir)[0])
            except Exception:  # a process boundary: the thread that owns the queue must live
                logger.exception("the queue of runs")
            self._wake.wait(POLL)
            self._wake.clear()

    def _look(self) -> list[dict[str, Any]]:
        """Hear of children that ended, and start the next run of each device on which none works; return `overview`.

        Every run is looked at once, since this is done twice a second for as long as the app lives.
        """
        with self._lock:
            for run_id, (child, size) in list(self._children.items()):
                if is_over(child):
                    del self._children[run_id]
                    self._ended(run_id, child, size)
            found = self.overview()
            rows = {row["id"]: row for row in found}
            waiting = self._rows(list(rows))
            left = [one for one in waiting if rows[one["run"]]["state"] not in ALIVE]
            if left != waiting:
                self._write(left)
            working = {run_id for run_id, row in rows.items() if row["state"] in (*ALIVE, STARTING)}
            busy = {self._place(rows[run_id]["device"]) for run_id in working}
            free = (
                one["run"]
                for one in left
                if one["run"] not in working
                and (one.get("after") or 0) <= time.time()
                and self._place(rows[one["run"]]["device"]) not in busy
            )
            if (run_id := next(free, None)) is not None:
                self._spawn(run_id)
                rows[run_id] |= self.row(run_id)
            return found

    def _spawn(self, run_id: str) -> None:
        folder = self.runs.folder(run_id)
        if self.runs.alive(run_id):
            return  # a process that an earlier app, or a person, started is about to say so
        size = _size(folder / EVENTS)
        if loading := process_of(folder):  # it holds nothing before its libraries are loaded
            self._children[run_id] = loading, size
            return
        logger.info("starting the run %s", run_id)
        words = self.command(run_id, resume=any(folder.glob("checkpoints/step-*")))[3:]
        child = self._start(words, folder / LOG)
        self._children[run_id] = child, size

    def _ended(self, run_id: str, child: Child, size: int) -> None:
        """Take a run out of the queue whose process ended, however it did."""
        if run_id not in self.runs.ids():
            return
        if isinstance(child, psutil.Process):  # how it ended is told to its parent only
            if _size(self.runs.folder(run_id) / EVENTS) == size:
                return  # it did not come far enough to say anything: it is started again, as a child of ours
        elif child.returncode > 0 and not self.runs.alive(run_id):
            told = _size(self.runs.folder(run_id) / EVENTS) > size and self.runs.story(run_id).last == FAILED
            if not told:  # it did not come far enough to say why itself
                self.runs.fail(run_id, str(_problem(self.runs.log(run_id))))
        self._write([row for row in self._rows() if row["run"] != run_id])


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _problem(said: str) -> StudioError:
    """Return what a process said last, without its traceback."""
    lines = [line for line in said.splitlines() if line.strip()]
    return InvalidRequest("config", lines[-1]) if lines else StudioError("the training ended without a word")
