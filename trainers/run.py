"""A run directory: what a run is told, what it tells, and who holds it."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from studio.errors import InvalidRequest, StudioError
from studio.events import Checkpoint, Event, Failed, Finished, Metric, Notice, Paused, Started
from studio.store import writer
from studio.yaml_text import read_yaml
from trainers.config_files import dump_config
from trainers.configs import TrainingConfig

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
LOCK_SECONDS = 0.5  # a page that looks whether somebody works on a run holds its lock for a moment
FREE_TO_CHANGE = frozenset(
    {
        "checkpointing_steps",
        "checkpoints_total_limit",
        "validation_prompts",
        "validation_negative_prompt",
        "validation_seed",
        "validation_model",
        "validation_steps",
        "report_to",
        "scorer",
        "recommended_weight",
        "trigger_word",
    }
)


class Run:
    """One run directory, held for as long as the process lives.

    Args:
        folder: of the run.

    Raises:
        StudioError: if another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        writer.make_folder(self.folder)
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise StudioError(
                f"another process works on {folder}; wait for it, stop it, or give another --run-dir"
            ) from None
        writer.sweep(self.folder)
        self._waiting: list[str] = []
        self._flushed = time.monotonic()
        self._control = ControlFile(self.folder / "control.json", self._acknowledge)

    @property
    def id(self) -> str:
        return self.folder.name

    def begin(self, method: str, config: TrainingConfig, resume: bool, endless: bool) -> TrainingConfig:
        """Keep the config of a new run, or compare it with that of the run to go on with.

        Raises:
            InvalidRequest: if there is a run already and `resume` is False, or none and it is True, or the config differs.
        """
        path = self.folder / "config.yaml"
        if resume and not path.is_file():
            raise InvalidRequest("resume", f"{self.folder} has no run to resume; leave --resume out")
        if not self.learnt:
            writer.write_file(path, f"# method: {method}\n{dump_config(config)}".encode())
            return config
        if not resume:
            raise InvalidRequest(
                "run_dir", f"{self.folder} holds a run already; give --resume to go on, or another --run-dir"
            )
        text = path.read_text(encoding="utf-8")
        old, new = read_yaml(text), config.model_dump(mode="json")
        if text.splitlines()[0] != f"# method: {method}":
            raise InvalidRequest("method", f"{self.folder} holds a run of another method ({text.splitlines()[0][10:]})")
        free = FREE_TO_CHANGE | ({"max_train_steps"} if endless else frozenset())
        for name in new:
            if name not in free and old.get(name) != new[name]:
                raise InvalidRequest(
                    name,
                    f"{name}={new[name]!r} differs from the run's {old.get(name)!r}, which would change its result; "
                    "set it back, or start a new run with init_from",
                )
        writer.write_file(path, f"# method: {method}\n{dump_config(config)}".encode())
        return config

    @property
    def learnt(self) -> bool:
        """Whether there is a checkpoint; until then a run may begin anew, with another config."""
        return any((self.folder / "checkpoints").glob("step-*"))

    def tell(self, event: Event) -> None:
        """Keep an event; what a person waits for is on disk at once, the rest within a second."""
        self._waiting.append(event.model_dump_json())
        urgent = isinstance(event, Started | Checkpoint | Finished | Failed | Notice | Paused)
        if urgent or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the events that wait."""
        if self._waiting:
            writer.append_line(self.folder / "events.jsonl", "\n".join(self._waiting))
            self._waiting = []
        self._flushed = time.monotonic()

    def metric(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.tell(Metric(job=self.id, step=step, name=name, value=value))

    def notice(self, message: str) -> None:
        logger.info("%s", message)
        self.tell(Notice(job=self.id, message=message))

    def asked(self) -> str:
        """Return what a person asked since the last time: `pause`, `resume`, `stop`, `save`, `sample` or ""."""
        return self._control.take()

    def _acknowledge(self, number: int, command: str) -> None:
        self.tell(Notice(job=self.id, message=f"{command} ({number}) is heard"))

    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON file of the run."""
        writer.write_json(self.folder / name, value)

    def recall(self, name: str) -> Any:
        """Read a JSON file of the run; None if there is none."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def close(self) -> None:
        """Let others have the run."""
        self.flush()
        self._lock.release()


class ControlFile:
    """`control.json`: `{"number": 3, "command": "stop"}`, replaced as a whole by whoever asks; each number is heard once."""

    COMMANDS = frozenset({"pause", "resume", "stop", "save", "sample"})

    def __init__(self, path: Path, acknowledge: Callable[[int, str], None]) -> None:
        self._path, self._acknowledge = path, acknowledge
        self._seen = self._read()[0]  # what an earlier process was asked is over
        self._stamp = 0

    def take(self) -> str:
        """Return a command that was not heard yet, or ""."""
        try:
            stamp = self._path.stat().st_mtime_ns
        except OSError:
            return ""
        if stamp == self._stamp:
            return ""
        self._stamp = stamp
        number, command = self._read()
        if number <= self._seen:
            return ""
        self._seen = number
        if command not in self.COMMANDS:
            logger.warning("control.json asks for %r, which is none of %s", command, ", ".join(sorted(self.COMMANDS)))
            return ""
        self._acknowledge(number, command)
        return command

    def _read(self) -> tuple[int, str]:
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            return int(told["number"]), str(told["command"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""
