"""The seam between those who want pictures and the process that makes them."""

import contextlib
import logging
import pkgutil
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from studio.errors import StudioError
from studio.events import Event, Failed, Finished, Ready, Stop
from studio.executors.breaker import LOST, poisoned
from studio.lease import DeviceLease
from studio.records import ImageRecord, Job, ModelRef
from studio.settings import Settings
from studio.store.gallery import Gallery, new_image_id, utc_now
from studio.tools import ToolAnswer, ToolCall, ToolProgress, ToolWatch

logger = logging.getLogger(__name__)

Emit = Callable[[Event], None]
Heard = Callable[[ToolProgress], None]
STOPPED = "Stopped before it began"


def unheard(progress: ToolProgress) -> None:
    """Take progress that nobody wants to hear of."""


class Executor(Protocol):
    """Runs one job at a time; nothing outside knows in which process."""

    def start(self) -> None:
        """Begin to load libraries and device, in the background."""

    def warm(self, model: ModelRef) -> None:
        """Load a model ahead of the first job, in the background, if that makes sense here."""

    def run(self, job: Job, emit: Emit) -> None:
        """Do a job; returns after `Finished` or `Failed` was emitted."""

    def ask(self, tool: ToolCall, call: str = "", heard: Heard = unheard) -> ToolAnswer:
        """Let a tool do its work between two jobs; waits for the answer, whose `problem` says if there is none.

        Args:
            tool: what to do.
            call: an id by which `stop` can end it; "" makes one.
            heard: told of the progress of a long call.
        """
        ...

    def stop(self, job_id: str, kind: Stop) -> None:
        """Ask the running job or call to `interrupt`, or a job to `skip` the group at hand; ignored if it is another."""

    def close(self) -> None:
        """End the process or free the memory."""


class StopFlag:
    """Carries `interrupt` or `skip` from one thread to the step callback of a job in another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._job = self._early = ""
        self._kind: Stop = ""

    def begin(self, job_id: str) -> None:
        """Arm the flag for a job; an interrupt that came a moment before counts."""
        with self._lock:
            self._kind = "interrupt" if self._early == job_id else ""
            self._job, self._early = job_id, ""

    def ask(self, job_id: str, kind: Stop) -> None:
        """Ask a job to stop; `interrupt` is never weakened to `skip`."""
        with self._lock:
            if job_id == self._job and self._kind != "interrupt":
                self._kind = kind
            elif job_id != self._job and kind == "interrupt":
                self._early = job_id

    def take(self) -> Stop:
        """Return what was asked; a skip counts once."""
        with self._lock:
            kind = self._kind
            if kind == "skip":
                self._kind = ""
            return kind

    def interrupted(self) -> bool:
        with self._lock:
            return self._kind == "interrupt"


def open_engine(settings: Settings) -> Any:
    """Load torch, open the device and return an Engine on it.

    Raises:
        DeviceError: if the device cannot be used.
    """
    from studio.engine.devices import open_device
    from studio.engine.engine import Engine

    device = open_device(settings.device, settings.cpu_threads)

    def find_scorer(shapes: bool) -> Any:
        return pkgutil.resolve_name(settings.scorers)(shapes, settings.part_roots, device.place)

    return Engine(device, utc_now, new_image_id, settings.annotators, find_scorer, settings.memory_plan)


def ready(device: Any) -> Ready:
    """Return what an opened `engine.devices.Device` tells pages, with the other devices of this machine."""
    from studio.engine.devices import device_places

    free, total = device.memory or (None, None)
    return Ready(
        device=device.title, place=str(device.place), places=device_places(), memory_free=free, memory_total=total
    )


def run_job(
    open_engine: Callable[[], Any], gallery: Gallery, job: Job, emit: Emit, flag: StopFlag, previews: Path | None
) -> bool:
    """Do a job: open the engine, wait for the device, generate, commit to the gallery; every failure becomes an event.

    Returns:
        Whether this process can do another; not if its device is lost to it.
    """

    def commit(png: bytes, record: ImageRecord) -> str:
        return str(gallery.commit(png, record, job.owner))

    preview = PreviewFile(previews, job.id) if previews and job.preview else None
    try:
        from studio.engine.engine import Watch

        engine = open_engine()
        watch = Watch(emit, flag.take, preview.save if preview else None)
        with DeviceLease(engine.device.key).held(flag.interrupted) as mine:
            if mine:
                engine.generate(job, gallery.blobs.open, commit, watch)
            else:
                emit(Finished(job=job.id, interrupted=True))
    except Exception as error:  # a process boundary: a job that fails must not end the process that does the next one
        return _tell(error, job, emit)
    finally:
        if preview:
            preview.remove()
    return True


def _tell(error: Exception, job: Job, emit: Emit) -> bool:
    """Make an event of what ended a job; return whether this process can do another."""
    if poisoned(error):
        logger.exception("job %s: the device is lost to this process", job.id)
        first = str(error).strip().partition("\n")[0][:200]
        message = f"The device failed ({first}); the process that draws is started anew. You can run this again."
        emit(Failed(job=job.id, code=LOST, message=message))
        return False
    if isinstance(error, StudioError):
        logger.warning("job %s: %s", job.id, error)
        emit(Failed(job=job.id, code=error.code, message=str(error)))
    else:
        logger.exception("job %s", job.id)
        message = f"This is a fault in Studio ({type(error).__name__}: {error}); the log has the details"
        emit(Failed(job=job.id, code="bug", message=message))
    return True


def run_tool(
    open_engine: Callable[[], Any],
    gallery: Gallery,
    tool: ToolCall,
    made: Path,
    *,
    call: str,
    heard: Heard,
    flag: StopFlag,
) -> ToolAnswer:
    """Do a tool's work; its pictures are written into `made`, and every failure becomes a sentence."""
    watch = ToolWatch(lambda step, steps: heard(ToolProgress(call=call, step=step, steps=steps)), flag.interrupted)
    try:
        engine = open_engine()
        with DeviceLease(engine.device.key).held(flag.interrupted) as mine:
            if not mine:
                return ToolAnswer(call=call, problem=STOPPED)
            values, pictures = engine.use_tool(tool, gallery.blobs.open, watch)
        made.mkdir(parents=True, exist_ok=True)
        names = {name: secrets.token_hex(16) for name in pictures}
        for name, png in pictures.items():
            (made / f"{names[name]}.png").write_bytes(png)
        return ToolAnswer(call=call, values=values, pictures=names)
    except StudioError as error:
        return ToolAnswer(call=call, problem=str(error))
    except Exception as error:  # a process boundary, as in `run_job`
        logger.exception("tool %s", tool.tool)
        return ToolAnswer(
            call=call, problem=f"This is a fault in Studio ({type(error).__name__}); the log has the details"
        )


class PreviewFile:
    """The newest preview of a job. One that cannot be written is left out: a preview is never worth a picture.

    Each has a name of its own: to rename over a file makes ext4 write the data out at once, which takes ten times as long. The one
    before the newest stays, for a page that is just reading it.

    Args:
        folder: for the files.
        job: id of the job.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self._folder, self._job = folder, job
        self._number = 0
        self._told = False

    def save(self, png: bytes) -> str:
        """Write the next file; return its path."""
        part, path = self._path("part"), self._path(self._number + 1)
        try:
            part.write_bytes(png)
            part.rename(path)
            self._number += 1
            self._path(self._number - 2).unlink(missing_ok=True)
        except OSError as error:  # the disk is full, or (on Windows) the page is just reading the file
            if not self._told:
                logger.warning("no preview: %s", error)
            self._told = True
        return str(self._path(self._number))

    def remove(self) -> None:
        """Delete the files; the picture itself is in the gallery now."""
        for name in ("part", self._number, self._number - 1):
            with contextlib.suppress(OSError):
                self._path(name).unlink()

    def _path(self, name: str | int) -> Path:
        return self._folder / f"{self._job}-{name}.png"
