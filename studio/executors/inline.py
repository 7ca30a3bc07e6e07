"""InlineExecutor: the engine in this process, for tests and for hosts that forbid child processes (ZeroGPU)."""

import secrets
import threading
from typing import Any

from studio.events import Ready
from studio.executors.base import Emit, Heard, Stop, StopFlag, open_engine, ready, run_job, run_tool, unheard
from studio.records import Job, ModelRef
from studio.settings import Settings
from studio.store.gallery import Gallery
from studio.tools import ToolAnswer, ToolCall


class InlineExecutor:
    """Loads torch at the first job, never before."""

    def __init__(self, settings: Settings, gallery: Gallery, heard: Emit = lambda event: None) -> None:
        self._settings, self._gallery, self._heard = settings, gallery, heard
        self._engine = None
        self._flag = StopFlag()
        self._lock = threading.Lock()

    def _open_engine(self) -> Any:
        if self._engine is None:
            self._engine = open_engine(self._settings)
            self._heard(ready(self._engine.device))
        return self._engine

    def start(self) -> None:
        """See Executor. Nothing is loaded ahead, so that the app's process stays light until it must draw."""
        self._heard(Ready(device="This process"))

    def warm(self, model: ModelRef) -> None:
        """See Executor."""

    def run(self, job: Job, emit: Emit) -> None:
        """See Executor."""
        previews = self._settings.data_dir / "cache" / "previews"
        previews.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._flag.begin(job.id)
            run_job(self._open_engine, self._gallery, job, emit, self._flag, previews)

    def ask(self, tool: ToolCall, call: str = "", heard: Heard = unheard) -> ToolAnswer:
        """See Executor."""
        call, made = call or secrets.token_hex(8), self._settings.tool_pictures
        with self._lock:
            self._flag.begin(call)
            return run_tool(self._open_engine, self._gallery, tool, made, call=call, heard=heard, flag=self._flag)

    def stop(self, job_id: str, kind: Stop) -> None:
        """See Executor."""
        self._flag.ask(job_id, kind)

    def close(self) -> None:
        """Free the weights."""
        if self._engine is not None:
            self._engine.unload()
            self._engine = None
