"""Dispatcher: takes requests, keeps the journal, hands jobs to the executor one by one, and tells pages what changed."""

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.errors import InvalidRequest, StudioError
from studio.events import Event, Failed, Finished, ImageReady, Notice, Preview, Progress, Ready, Started
from studio.executors.base import Executor, Heard, unheard
from studio.executors.breaker import Breaker
from studio.executors.calls import Calls
from studio.records import Job
from studio.spec import SEED_MAX, GenerationRequest
from studio.store.blobs import BlobStore, is_reference
from studio.store.inputs import canvas_size
from studio.store.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING, Entry, JobStore, new_job_id
from studio.store.library import Library
from studio.tools import ToolAnswer, ToolCall
from studio.units import pictures_of
from studio.visitors import EVERYBODY, Visitors

logger = logging.getLogger(__name__)

MAX_WAITING = 500
NOTICES = 200  # jobs whose notices are remembered; their pictures say them for good
SHOWN_WAITING = 100  # places of the queue that a page lists


def belongs(entry: Entry, owner: str) -> bool:
    """Whether a job is a visitor's; who has no name has no jobs."""
    return bool(owner) and entry.job.owner == owner


@dataclass
class Live:
    """What a page shows of the running job."""

    job: str
    note: str = "waiting for the device"
    progress: Progress | None = None
    preview: str = ""
    previews: int = 0
    images: list[str] = field(default_factory=list)


class Dispatcher:
    """Owner of the queue.

    Args:
        executor: does the work.
        jobs: the journal.
        library: resolves models.
        blobs: the pictures that requests name.
        preview: default of `Job.preview`.
        visitors: on a public page, what each of them may have.
    """

    def __init__(
        self,
        executor: Executor,
        jobs: JobStore,
        library: Library,
        blobs: BlobStore,
        *,
        preview: bool = True,
        visitors: Visitors | None = None,
    ) -> None:
        self.executor, self.jobs, self.library, self.blobs = executor, jobs, library, blobs
        self._preview, self._visitors = preview, visitors
        self._room = threading.Lock()  # between a look for room and what takes it
        self._changed = threading.Condition()
        self._version = 0
        self._listeners: set[Callable[[], None]] = set()
        self._live: Live | None = None
        self._notices: dict[str, list[str]] = {}
        self._device: dict[str, Any] = {"state": "starting"}
        self._closing = False
        self._breaker = Breaker()
        self._calls = Calls(executor)
        self._thread = threading.Thread(target=self._work, name="dispatcher", daemon=True)

    def start(self, warm_model: str) -> None:
        """Queue again what a crash interrupted, let the executor load, begin to work."""
        again = self.jobs.requeue_running()
        if again:
            logger.info("%d unfinished job(s) wait again", again)
        self.executor.start()
        threading.Thread(target=self._warm, args=(warm_model,), name="warm", daemon=True).start()
        self._thread.start()

    def _warm(self, model_id: str) -> None:
        """Let the first model load ahead; its hash alone takes seconds for a large one."""
        try:
            self.executor.warm(self.library.reference(self.library.get(model_id)))
        except (StudioError, OSError) as error:
            logger.warning("not loaded ahead: %s", error)

    def hear(self, event: Event) -> None:
        """Take an event that belongs to no job."""
        if isinstance(event, Ready):
            self._device = {
                "state": "failed" if event.problem else "ready",
                "problem": event.problem,
                "name": event.device,
                "place": event.place,
                "places": [place.model_dump() for place in event.places],
                "memory_free": event.memory_free,
                "memory_total": event.memory_total,
            }
            self._touch()

    def submit(self, request: GenerationRequest, owner: str, *, forever: bool = False) -> Job:
        """Resolve a request, whose pictures are blobs already, and queue it; it is in the journal when this returns.

        Raises:
            StudioError: one sentence about what is wrong with it.
        """
        self.check_room(1, owner)
        job = self.prepare(request, owner)
        self.enqueue([job], forever=forever)
        return job

    def check_room(self, number: int, owner: str) -> None:
        """Refuse jobs that the queue has no place for.

        Raises:
            StudioError: if fewer than `number` more can wait, or the visitor has a full share already.
        """
        if self.jobs.count_waiting() + number > MAX_WAITING:
            raise StudioError(f"the queue is full ({MAX_WAITING} jobs wait at most); cancel some or wait")
        if visitors := self._visitors_of(owner):
            visitors.check_room(owner, number, self.jobs.open_by_owner(), self.jobs.bytes_of_others(EVERYBODY))

    def enqueue(self, jobs: list[Job], *, forever: bool = False) -> None:
        """Queue jobs that `prepare` made, all or none; they are in the journal when this returns.

        Raises:
            StudioError: if there is no room for them.
        """
        if not jobs:
            return
        owner = jobs[0].owner
        with self._room:
            self.check_room(len(jobs), owner)
            if visitors := self._visitors_of(owner):
                number = sum(job.request.num_images_per_prompt for job in jobs)
                visitors.spend(owner, "pictures", number, visitors.limits.pictures)
            self.jobs.add(*jobs, forever=forever)
        self._touch()

    def device(self) -> dict[str, Any]:
        """Return what the process that draws says of its device, and of the others of this machine."""
        return self._device

    def _visitors_of(self, owner: str) -> Visitors | None:
        """Return what counts an owner's work; None for whoever is at home here."""
        return self._visitors if owner != EVERYBODY else None

    def go_on(self) -> None:
        """Begin jobs again after the queue was stopped, because one process after the other died."""
        self._breaker.close()
        self._touch()

    def announce(self) -> None:
        """Tell pages that something beside the queue changed."""
        self._touch()

    def prepare(self, request: GenerationRequest, owner: str) -> Job:
        """Resolve a request, whose pictures are blobs already, into a job that is not queued yet.

        Raises:
            StudioError: one sentence about what is wrong with it.
        """
        for name, given in pictures_of(request).items():
            if not is_reference(given):
                raise InvalidRequest(name, f"{name} must be a picture that was uploaded, not a path")
        visitors = self._visitors_of(owner)
        if visitors:  # before anything is expanded
            enlarged = request.image if request.only_enlarges else None
            visitors.limits.check(request, self.blobs.open(enlarged, "image").size if enlarged else (0, 0))
        size = canvas_size(request, self.blobs)
        job = self.library.job(request, secrets.randbelow(SEED_MAX - 64), size, owner=owner, preview=self._preview)
        if visitors:  # with the model's own size and steps, and what templates became
            for first in range(0, job.request.num_images_per_prompt, job.request.batch_size):
                visitors.limits.check(job.of_group(first).request)
        return job

    def ask(self, tool: ToolCall, call: str = "", heard: Heard = unheard) -> ToolAnswer:
        """Let a tool work between two jobs; see `Calls.ask`."""
        return self._calls.ask(tool, call, heard)

    def stop_tool(self, call: str) -> None:
        """Ask a tool's call to end; see `Calls.stop`."""
        self._calls.stop(call)

    def retry(self, job_id: str, owner: str) -> Job:
        """Queue an ended job once more, with the same seed."""
        entry = self._owned(job_id, owner)
        return self.submit(entry.job.given, owner)

    def cancel(self, job_id: str, owner: str | None) -> None:
        """Take a job out of the queue, or interrupt it if it runs; finished pictures stay."""
        entry = self._owned(job_id, owner)
        self.jobs.stop_forever(entry.id)
        if entry.state in (WAITING, RUNNING) and not self.jobs.cancel_waiting(entry.id):
            self.executor.stop(entry.id, "interrupt")
        self._touch()

    def skip(self, job_id: str, owner: str) -> None:
        """Drop the picture at hand and go on with the next."""
        self.executor.stop(self._owned(job_id, owner).id, "skip")

    def move(self, job_id: str, owner: str, offset: int) -> None:
        """Move a waiting job up (negative) or down."""
        self.jobs.move(self._owned(job_id, owner).id, offset)
        self._touch()

    def _owned(self, job_id: str, owner: str | None) -> Entry:
        """Find a job; with `owner` None whoever knows the id, which nobody can guess, may touch it."""
        entry = self.jobs.get(job_id)
        if entry is None or (owner is not None and not belongs(entry, owner)):
            raise StudioError(f"there is no job {job_id!r} of yours")
        return entry

    def seen_by(self, job_id: str, owner: str | None) -> Entry:
        """Return a job that a visitor may see: an own one, or one of nobody, which is known by its id alone.

        Args:
            job_id: which.
            owner: who asks; None is at home, where every job may be seen.

        Raises:
            StudioError: if there is none.
        """
        entry = self.jobs.get(job_id)
        if entry is None or (owner is not None and entry.job.owner not in ("", owner)):
            raise StudioError(f"there is no job {job_id!r}")
        return entry

    def close(self) -> None:
        """Stop taking jobs and end the executor; a running job waits again at the next start."""
        self._closing = True
        self._touch()
        self.executor.close()
        self.jobs.release_running()

    def _touch(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()
            listeners = list(self._listeners)
        for wake in listeners:
            wake()

    def _work(self) -> None:
        while not self._closing:
            seen = self._version  # before looking, so that a job which comes in between is not slept through
            try:
                choose = self._visitors.next_turn if self._visitors else None
                entry = None if self._breaker.open else self.jobs.claim(choose)
            except StudioError as error:
                logger.warning("the queue waits: %s", error)
                entry = None
            if entry is None:
                with self._changed:
                    self._changed.wait_for(lambda seen=seen: self._version != seen, timeout=5.0)
                continue
            self._live = Live(entry.id)
            self._touch()
            self._run(entry)
            self._live = None
            self._touch()

    def _run(self, entry: Entry) -> None:
        """Do a job; whatever goes wrong with it, the queue goes on."""
        visitors, late = self._visitors_of(entry.job.owner), None
        if visitors:
            late = threading.Timer(visitors.limits.seconds, self._too_late, [entry, visitors.limits.seconds])
            late.daemon = True
            late.start()
        try:
            self.executor.run(entry.job, lambda event: self._on_event(event, entry))
        except Exception:  # a process boundary: the thread that owns the queue must live
            logger.exception("job %s", entry.id)
            with contextlib.suppress(StudioError):
                self.jobs.end(entry.id, FAILED, "This job could not be finished; the log has the details.")
        finally:
            if late:
                late.cancel()

    def _too_late(self, entry: Entry, seconds: float) -> None:
        """End a visitor's job that others have waited for long enough; its finished pictures stay."""
        self._notice(entry, f"this job was ended after {seconds:g} seconds, the most on a public page")
        self.executor.stop(entry.id, "interrupt")

    def _on_event(self, event: Event, entry: Entry) -> None:
        if self._closing:
            return  # the journal keeps the job as running: it is done again after the restart
        live = self._live
        assert live is not None
        self._breaker.heard(event)
        if isinstance(event, Started):
            live.note = event.note or "loading the model"
        elif isinstance(event, Progress):
            live.progress, live.note = event, ""
        elif isinstance(event, Preview):
            live.preview = event.path
            live.previews += 1
            return  # the step's progress follows at once: one answer to the page tells both
        elif isinstance(event, Notice):
            self._notice(entry, event.message)
        elif isinstance(event, ImageReady):
            live.images.append(event.record.id)
            self.jobs.add_image(entry.id, event.record.id)
        elif isinstance(event, Finished):
            self._finish(entry, event)
        elif isinstance(event, Failed):
            self.jobs.end(entry.id, FAILED, event.message)
        self._touch()

    def _notice(self, entry: Entry, message: str) -> None:
        logger.warning("job %s: %s", entry.id, message)
        self._notices[entry.id] = [*self._notices.get(entry.id, []), message]
        while len(self._notices) > NOTICES:
            del self._notices[next(iter(self._notices))]

    def _finish(self, entry: Entry, event: Finished) -> None:
        self.jobs.end(entry.id, CANCELLED if event.interrupted else DONE)
        current = self.jobs.get(entry.id)
        if current and current.forever and not event.interrupted:
            names = ("seed", "variation_seed") if entry.job.request.variation_strength else ("seed",)
            fresh = {name: secrets.randbelow(SEED_MAX - 64) for name in names}
            again = entry.job.model_copy(
                update={"id": new_job_id(), "request": entry.job.request.model_copy(update=fresh)}
            )
            if again.template:  # a new seed chooses anew
                try:
                    again = self.prepare(again.given, entry.job.owner)
                except StudioError as error:
                    logger.warning("generate forever ends: %s", error)
                    return
            self.jobs.add(again, forever=True)

    def notices(self, job_id: str) -> list[str]:
        """Return what a person should know about a job's pictures; [] after a restart, while the pictures still say it."""
        return list(self._notices.get(job_id, ()))

    def preview_path(self, job_id: str) -> Path | None:
        """Return the newest preview of the running job."""
        live = self._live
        return Path(live.preview) if live and live.job == job_id and live.preview else None

    @contextmanager
    def listening(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake`, from any thread, whenever the state changes."""
        with self._changed:
            self._listeners.add(wake)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.discard(wake)

    def busy(self) -> bool:
        """Whether pictures are being drawn or wait."""
        return self._live is not None or self.jobs.count_waiting() > 0

    @property
    def version(self) -> int:
        """Grows with every change of the state."""
        return self._version

    def state(self, owner: str) -> dict[str, Any]:
        """Return what a page shows: {"version", "device", "jobs": [own running, own waiting, own ended], "waiting": total}."""
        version = self._version
        waiting, live = self.jobs.waiting(SHOWN_WAITING), self._live
        jobs = []
        for entry in self.jobs.running():
            facts = self._facts(entry, owner, 0)
            if live and live.job == entry.id and facts["mine"]:
                facts |= {"note": live.note, "previews": live.previews, "images": list(live.images)}
                facts["progress"] = live.progress.model_dump(exclude={"type", "job"}) if live.progress else None
            jobs.append(facts)
        jobs += [self._facts(entry, owner, place) for place, entry in enumerate(waiting, 1)]
        jobs += [self._facts(entry, owner, 0) for entry in self.jobs.ended(owner)]
        device = self._device | ({"state": "drawing"} if live and self._device["state"] != "failed" else {})
        device |= self._breaker.told()
        return {"version": version, "device": device, "jobs": jobs, "waiting": self.jobs.count_waiting()}

    def _facts(self, entry: Entry, owner: str, place: int) -> dict[str, Any]:
        mine = belongs(entry, owner)
        facts: dict[str, Any] = {"state": entry.state, "place": place, "mine": mine, "note": "waiting"}
        if mine:
            request = entry.job.request
            facts |= {
                "id": entry.id,
                "prompt": request.prompt,
                "images": list(entry.images),
                "number": request.num_images_per_prompt,
                "batch": request.batch_size,
                "width": request.width,
                "height": request.height,
                "error": entry.error,
                "notices": self.notices(entry.id),
                "forever": entry.forever,
            }
        return facts
