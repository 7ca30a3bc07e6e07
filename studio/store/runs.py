"""Training runs on disk: each is a folder that its own process writes; here it is read, asked, and begun. No torch."""

import contextlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from studio.errors import InvalidRequest, StudioError
from studio.events import (
    Checkpoint,
    Event,
    Failed,
    Finished,
    ImageReady,
    Metric,
    Notice,
    Paused,
    Progress,
    Started,
    from_line,
)
from studio.store import writer
from studio.yaml_text import read_yaml

CONFIG, EVENTS, CONTROL, SAMPLES = "config.yaml", "events.jsonl", "control.json", "samples.yaml"
LOG, LAUNCH = "log.txt", "launch.json"
COMMANDS = ("pause", "resume", "stop", "save", "sample")
METHOD_LINE = "# method: "
NOTICES, LOG_BYTES = 200, 20_000
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}")

NEW, QUEUED, STARTING = "new", "queued", "starting"
RUNNING, PAUSED, YIELDED = "running", "paused", "yielded"
FINISHED, STOPPED, FAILED, INTERRUPTED = "finished", "stopped", "failed", "interrupted"
ALIVE = frozenset({RUNNING, PAUSED, YIELDED})


@dataclass
class Story:
    """What a run's events tell, read once and then only what is new.

    Attributes:
        offset: bytes read so far.
        last: what the newest event that changes the state was: a state, or "" before the first.
        curves: name of a number -> step -> value; of a step that was done twice the later counts.
        samples: step -> names of pictures in `samples/`.
        prompts: name of a picture -> its prompt.
        error: of a run that failed.
    """

    offset: int = 0
    last: str = ""
    note: str = ""
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    error: str = ""
    curves: dict[str, dict[int, float]] = field(default_factory=dict)
    checkpoints: list[int] = field(default_factory=list)
    samples: dict[int, list[str]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, Started):
            self.last, self.note, self.error = RUNNING, event.note, ""
        elif isinstance(event, Progress):
            self.last, self.note = RUNNING, ""
            self.step, self.steps, self.seconds_left = event.step, event.steps, event.seconds_left
        elif isinstance(event, Paused):
            self.last = PAUSED if event.asked else YIELDED
        elif isinstance(event, Metric):
            self.curves.setdefault(event.name, {})[event.step] = event.value
        elif isinstance(event, Checkpoint):
            self.checkpoints = sorted({*self.checkpoints, event.step})
        elif isinstance(event, ImageReady):
            name = Path(event.path).name
            step = int(name.split("-")[1]) if re.match(r"step-\d+-", name) else 0
            rows = self.samples.setdefault(step, [])
            self.prompts[name] = event.record.request.prompt.replace(f"-{step:06d}", "")  # an embedding's own name
            if name not in rows:
                rows.append(name)
        elif isinstance(event, Notice):
            self.notices = [*self.notices, event.message][-NOTICES:]
        elif isinstance(event, Finished):
            self.last = STOPPED if event.interrupted else FINISHED
        elif isinstance(event, Failed):
            self.last, self.error = FAILED, event.message


class Runs:
    """The runs of a data root, whoever started them.

    Args:
        root: `runs` in the data root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stories: dict[str, Story] = {}
        self._methods: dict[str, tuple[int, str]] = {}

    def ids(self) -> list[str]:
        """Return all runs, the one that was begun or resumed last first."""
        found = [path for path in self.root.glob(f"*/{CONFIG}") if _NAME.fullmatch(path.parent.name)]
        return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]

    def folder(self, run_id: str) -> Path:
        """Return the folder of a run.

        Raises:
            InvalidRequest: if there is none of this name.
        """
        if not _NAME.fullmatch(run_id) or not (self.root / run_id / CONFIG).is_file():
            raise InvalidRequest(
                "run", f"run={run_id!r} is not there; there is: {', '.join(self.ids()[:10]) or 'none'}"
            )
        return self.root / run_id

    def create(
        self, method: str, name: str, config: str, samples: list[dict[str, Any]] | None = None, device: str = ""
    ) -> str:
        """Make the folder of a run that has not begun; return its id: its output's name, with a number if that is taken.

        Args:
            method: as on the command line.
            name: of the output.
            config: YAML of the whole config.
            samples: requests that are drawn at each checkpoint; None draws those of the config.
            device: on which it works, as on the command line; "" is the app's.
        """
        number, run_id = 1, name
        while True:
            try:
                writer.make_folder(self.root)
                (self.root / run_id).mkdir()
                break
            except FileExistsError:
                number += 1
                run_id = f"{name}-{number}"
        if samples is not None:
            self.set_samples(run_id, samples)
        if device:
            writer.write_json(self.root / run_id / LAUNCH, {"device": device})
        writer.write_file(self.root / run_id / CONFIG, f"{METHOD_LINE}{method}\n{config}".encode())
        return run_id

    def method(self, run_id: str) -> str:
        """Return the method of a run; its config is opened again only when it was written anew."""
        path = self.folder(run_id) / CONFIG
        stamp = path.stat().st_mtime_ns
        if self._methods.get(run_id, (0, ""))[0] != stamp:
            with path.open(encoding="utf-8") as file:
                self._methods[run_id] = stamp, file.readline().removeprefix(METHOD_LINE).strip()
        return self._methods[run_id][1]

    def device(self, run_id: str) -> str:
        """Return on which device a run was meant to work; "" is the app's."""
        path = self.folder(run_id) / LAUNCH
        try:
            return str(json.loads(path.read_text(encoding="utf-8")).get("device", "")) if path.is_file() else ""
        except (OSError, ValueError, AttributeError):
            return ""

    def set_device(self, run_id: str, device: str) -> None:
        """Let a run work on another device from its next start on; "" is the app's."""
        writer.write_json(self.folder(run_id) / LAUNCH, {"device": device})

    def config(self, run_id: str) -> dict[str, Any]:
        """Return what a run was told."""
        text = (self.folder(run_id) / CONFIG).read_text(encoding="utf-8")
        values = read_yaml(text)
        return values if isinstance(values, dict) else {}

    def story(self, run_id: str) -> Story:
        """Return what has happened so far."""
        path = self.folder(run_id) / EVENTS
        story = self._stories.get(run_id, Story())
        size = path.stat().st_size if path.is_file() else 0
        if size < story.offset:  # the folder was begun anew
            story = Story()
        if size > story.offset:
            with path.open("rb") as file:
                file.seek(story.offset)
                data = file.read(size - story.offset)
            whole = data.rfind(b"\n") + 1  # the rest of a line that is being written comes later
            story.offset += whole
            for line in data[:whole].splitlines():
                with contextlib.suppress(ValidationError):  # a line that a crash tore
                    story.take(from_line(line))
        self._stories[run_id] = story
        return story

    def alive(self, run_id: str) -> bool:
        """Whether a process works on a run."""
        lock = FileLock(self.folder(run_id) / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def state(self, run_id: str) -> str:
        """Return what a run is doing, as its process would say if it could: `interrupted` if that died without a word."""
        last = self.story(run_id).last or NEW
        return INTERRUPTED if last in ALIVE and not self.alive(run_id) else last

    def ask(self, run_id: str, command: str) -> None:
        """Ask the process of a run for something; it hears within a step.

        Raises:
            StudioError: if it is none of `COMMANDS`, or no process works on the run.
        """
        if command not in COMMANDS:
            raise InvalidRequest("command", f"command={command!r} must be one of: {', '.join(COMMANDS)}")
        if not self.alive(run_id):
            raise StudioError(f"{run_id} is not running; resume it first")
        path = self.folder(run_id) / CONTROL
        number = 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            number = int(json.loads(path.read_text(encoding="utf-8"))["number"])
        writer.write_json(path, {"number": number + 1, "command": command})

    def samples(self, run_id: str) -> list[dict[str, Any]]:
        """Return the requests that are drawn at the next checkpoint; [] before the first made them."""
        path = self.folder(run_id) / SAMPLES
        try:
            rows = read_yaml(path.read_text(encoding="utf-8")) if path.is_file() else []
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            rows = []
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def set_samples(self, run_id: str, rows: list[dict[str, Any]]) -> None:
        """Draw these requests from the next checkpoint on."""
        text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True)
        writer.write_file(self.root / run_id / SAMPLES, text.encode())

    def sample_path(self, run_id: str, name: str) -> Path:
        """Return a sample's picture.

        Raises:
            StudioError: if there is none of this name.
        """
        path = self.folder(run_id) / "samples" / name
        if not re.fullmatch(r"step-\d+[\w-]*\.png", name) or not path.is_file():
            raise StudioError(f"there is no sample {name!r}")
        return path

    def results(self, run_id: str) -> dict[int, Path]:
        """Return step -> what a person uses of its checkpoint: a file, or a model's folder; the final one has step -1."""
        return dict(results_of(self.folder(run_id)))

    def log(self, run_id: str) -> str:
        """Return the end of what the process said."""
        path = self.folder(run_id) / LOG
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace")

    def fail(self, run_id: str, message: str) -> None:
        """Say in a run's events why its process ended before it could say so itself."""
        event = Failed(job=run_id, code="not_started", message=message)
        writer.append_line(self.folder(run_id) / EVENTS, event.model_dump_json())

    def bytes(self, run_id: str) -> int:
        """Return how much disk a run takes."""
        return sum(path.stat().st_size for path in self.folder(run_id).rglob("*") if path.is_file())

    def clean(self, run_id: str) -> int:
        """Remove what only a resumed run would need; results and samples stay. Return the bytes that this gave.

        Raises:
            StudioError: if the run is not finished.
        """
        if self.state(run_id) != FINISHED:
            raise StudioError(f"{run_id} is not finished and could not go on then; finish it, or remove it as a whole")
        before = self.bytes(run_id)
        for state in self.folder(run_id).glob("checkpoints/step-*/state"):
            shutil.rmtree(state)
        return before - self.bytes(run_id)

    def remove(self, run_id: str, trash: Path) -> None:
        """Move a run with all its results into the trash.

        Raises:
            StudioError: if the run is working.
        """
        self._must_rest(run_id)
        number, target = 1, trash / run_id
        while target.exists():
            number += 1
            target = trash / f"{run_id}-{number}"
        writer.move(self.folder(run_id), target)
        self._stories.pop(run_id, None)

    def _must_rest(self, run_id: str) -> None:
        if self.alive(run_id):
            raise StudioError(f"{run_id} is running; stop it first")


def results_of(folder: Path) -> list[tuple[int, Path]]:
    """Return what a run's folder holds for use: (step, path), in order, and last (-1, path) of the final result."""
    found = []
    for weights in sorted(folder.glob("checkpoints/step-*/weights")):
        if main := _main(weights):
            found.append((int(weights.parent.name.removeprefix("step-")), main))
    final = _main(folder / "final")
    return [*found, *([(-1, final)] if final else [])]


def _main(folder: Path) -> Path | None:
    """Return the result itself, beside which may lie an embedding, kohya's copy and a card."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    folders = [path for path in paths if path.is_dir()]
    files = [path for path in paths if path.suffix == ".safetensors" and not path.stem.endswith(("-kohya", "_emb"))]
    return min([*folders, *files], default=None)


def trained_in(root: Path) -> dict[str, Path]:
    """Return what all runs made, by the names under which Generate uses it: `RUN` of a final result, `RUN-000100` of a checkpoint."""
    found = {}
    for config in root.glob(f"*/{CONFIG}") if root.is_dir() else ():
        for step, path in results_of(config.parent):
            found[config.parent.name if step < 0 else f"{config.parent.name}-{step:06d}"] = path
            beside = path.with_name(f"{path.stem}_emb.safetensors")
            if beside.is_file():
                found[f"{config.parent.name}_emb" if step < 0 else f"{config.parent.name}_emb-{step:06d}"] = beside
    return found
