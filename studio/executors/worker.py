"""WorkerExecutor: the engine in a child process that speaks JSON lines; it may die, the app and its queue may not."""

import contextlib
import json
import logging
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from typing import Any

from pydantic import ValidationError

from studio.events import Event, Failed, Finished, from_line
from studio.executors.base import Emit, Executor, Heard, Stop, unheard
from studio.executors.breaker import LOST, WORKER
from studio.records import Job, ModelRef
from studio.settings import ROOT, Settings, without_secrets
from studio.store.gallery import Gallery
from studio.tools import ToolAnswer, ToolCall, ToolProgress

logger = logging.getLogger(__name__)

TOOL_WAIT = 300.0  # seconds until a tool that waits behind a job gives up
ENDED = "The process that draws ended unexpectedly; try again"
GRACE = 10.0  # seconds from asking a job to stop until the process is killed


class WorkerExecutor:
    """Keeps one child process; replaces it when it dies.

    Args:
        settings: handed to the child.
        heard: called with events that belong to no job (`Ready`).
    """

    module = "studio.executors.worker_main"  # what the child runs

    def __init__(self, settings: Settings, heard: Emit = lambda event: None) -> None:
        self._settings, self._heard = settings, heard
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._asked: dict[
            str, tuple[Any, queue.Queue[ToolAnswer | ToolProgress]]
        ] = {}  # call -> process, where the answer goes
        self._send_lock, self._start_lock = threading.Lock(), threading.Lock()
        self._job = ""
        self._stop_asked: float | None = None
        self._warm: ModelRef | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """See Executor."""
        self._spawn()

    def warm(self, model: ModelRef) -> None:
        """See Executor. A process that replaces this one loads the same model ahead."""
        self._warm = model
        self._send({"op": "warm", "model": model.model_dump(mode="json")})

    def _ensure(self) -> None:
        """Start a process if there is none; jobs and tools may find that out at the same time."""
        with self._start_lock:
            if self.pid is None and not self._closed:
                self._spawn()

    def _spawn(self) -> None:
        log = self._settings.data_dir / "logs" / "worker.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(without_secrets(os.environ), PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
        with log.open("ab") as errors, self._send_lock:  # nothing is sent before the settings
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=ROOT,
                # Ctrl+C in the terminal is the app's to handle
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
            self._write({"op": "settings", "settings": self._settings.model_dump(mode="json")})
        self._lines = queue.Queue()
        threading.Thread(
            target=self._read, args=(self._process, self._lines), name="worker-reader", daemon=True
        ).start()
        if self._warm:
            self._send({"op": "warm", "model": self._warm.model_dump(mode="json")})

    def _read(self, process: subprocess.Popen[bytes], lines: "queue.Queue[bytes | None]") -> None:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(b'{"type":"ready"'):
                self._heard(from_line(line))
            elif line.startswith(b'{"type":"tool_progress"'):
                progress = ToolProgress.model_validate_json(line)
                if asked := self._asked.get(progress.call):
                    asked[1].put(progress)
            elif line.startswith(b'{"type":"answer"'):
                answer = ToolAnswer.model_validate_json(line)
                if asked := self._asked.pop(answer.call, None):
                    asked[1].put(answer)
            else:
                lines.put(line)
        process.wait()
        for call, (asked, answers) in list(self._asked.items()):
            if asked is process and self._asked.pop(call, None):
                answers.put(ToolAnswer(call=call, problem=ENDED))
        lines.put(None)  # the end of the pipe

    def _send(self, message: dict) -> None:
        with self._send_lock:
            self._write(message)

    def _write(self, message: dict) -> None:
        with contextlib.suppress(OSError, ValueError):  # a process that is gone is noticed by the reader
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def ask(self, tool: ToolCall, call: str = "", heard: Heard = unheard) -> ToolAnswer:
        """See Executor. A call that tells of its progress may take as long as it likes."""
        if self._closed:
            return ToolAnswer(call="", problem=ENDED)
        if not self._job:
            self._ensure()
        call = call or secrets.token_hex(8)
        news: queue.Queue[ToolAnswer | ToolProgress] = queue.Queue()
        self._asked[call] = self._process, news
        self._send({"op": "tool", "call": call, "tool": tool.model_dump(mode="json")})
        try:
            while isinstance(told := news.get(timeout=TOOL_WAIT), ToolProgress):
                heard(told)
            return told
        except queue.Empty:
            self._asked.pop(call, None)
            self._send({"op": "forget", "call": call})
            return ToolAnswer(call=call, problem="The device is busy with a longer job; try again when it is done")

    def run(self, job: Job, emit: Emit) -> None:
        """See Executor."""
        self._ensure()
        self._job = job.id
        self._send({"op": "run", "job": job.model_dump(mode="json")})
        while True:
            event = self._next(job)
            if event is not None:
                emit(event)
            if isinstance(event, Finished | Failed):
                self._job, self._stop_asked = "", None
                if isinstance(event, Failed) and event.code == LOST:
                    self._replace()
                return

    def _next(self, job: Job) -> Event | None:
        """Return the next event of a job, or None after a short while without one."""
        try:
            line = self._lines.get(timeout=0.2)
        except queue.Empty:
            if self._stop_asked is not None and time.monotonic() - self._stop_asked > GRACE:
                self._kill()
            return None
        if line is None:
            return self._death(job)
        try:
            event = from_line(line)
        except ValidationError:
            logger.warning("the worker said what is no event: %r", line[:200])
            return None
        return event if getattr(event, "job", job.id) == job.id else None

    def _death(self, job: Job) -> Event:
        """Explain the end of the process, and start the next one so that it loads meanwhile."""
        code = self._process.returncode if self._process else None
        asked = self._stop_asked is not None
        self._ensure()
        if asked:
            return Finished(job=job.id, interrupted=True)
        reason = f"signal {-code}" if code and code < 0 else f"exit code {code}"
        hint = "; the system may have run out of memory" if code == -9 else ""
        return Failed(
            job=job.id,
            code=WORKER,
            message=f"The process that draws ended unexpectedly ({reason}{hint}); it has been restarted and "
            "finished pictures are kept. You can run this again.",
        )

    def stop(self, job_id: str, kind: Stop) -> None:
        """See Executor. A job that does not stop within `GRACE` seconds takes its process with it."""
        if kind == "interrupt" and job_id == self._job:
            self._stop_asked = time.monotonic()
        self._send({"op": "stop", "job": job_id, "kind": kind})

    def _replace(self) -> None:
        """Wait for the end of a process that said that its device is lost to it, and start the next one."""
        assert self._process is not None
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._ensure()

    def _kill(self) -> None:
        if self._process:
            self._process.kill()

    def close(self) -> None:
        """End the process: it sees its pipe close; one that does not is killed."""
        self._closed = True
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            assert self._process.stdin
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def make_executor(settings: Settings, gallery: Gallery, heard: Emit) -> Executor:
    """Make the executor that the settings name."""
    from studio.executors.inline import InlineExecutor

    return (
        InlineExecutor(settings, gallery, heard) if settings.executor == "inline" else WorkerExecutor(settings, heard)
    )
