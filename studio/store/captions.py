"""Captions made by a model: one child process at a time, whose words become captions as they come; the old ones can be put back."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from studio.captioning import Captioner, CaptionSpec, find_captioner, new_caption
from studio.errors import InvalidRequest, StudioError
from studio.findings import Change
from studio.settings import ROOT, Settings
from studio.sources import Source
from studio.store import writer
from studio.store.changes import Changes, ChangeSet
from studio.store.collections import Datasets
from studio.store.tokens import Tokens

RUNNING, STOPPED, DONE, FAILED = "running", "stopped", "done", "failed"
TITLE = "Auto-captioning"
LOG = "captions.txt"  # what the children say that nobody foresaw
CODE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from studio.caption_main import main; sys.exit(main())"

Event = dict[str, Any]


class Captions:
    """Makes captions for the datasets of a data root.

    Args:
        settings: data root, device, folders of models.
        datasets: whose captions are made.
        changes: keep what was there before.
        tokens: for a captioner that is fetched from the Hub.
    """

    def __init__(self, settings: Settings, datasets: Datasets, changes: Changes, tokens: Tokens) -> None:
        self._settings, self._datasets, self._changes, self._tokens = settings, datasets, changes, tokens
        self._lock = threading.RLock()
        self._child: subprocess.Popen[str] | None = None
        self._state: dict[str, Any] = {}

    def start(self, name: str, spec: CaptionSpec, *, near: Path | None = None) -> None:
        """Begin to make captions, and return at once; see `state`.

        Raises:
            StudioError: if others are being made, or it cannot be done.
        """
        with self._lock:
            events = self._begin(name, spec, near)
        threading.Thread(target=self._follow, args=(events,), name="captions", daemon=True).start()

    def run(self, name: str, spec: CaptionSpec, told: Callable[[Event], None], *, near: Path | None = None) -> Event:
        """Make captions and wait for it; `told` hears of every event. Return what `state` says in the end.

        Raises:
            StudioError: if it failed.
        """
        with self._lock:
            events = self._begin(name, spec, near)
        try:
            for event in events:
                told(event)
        finally:
            self.close()
        state = self.state()
        if state["state"] == FAILED:
            raise InvalidRequest(state["field"], state["error"]) if state["field"] else StudioError(state["error"])
        return state

    def _begin(self, name: str, spec: CaptionSpec, near: Path | None) -> Iterator[Event]:
        """Start the child; return what takes in what it says."""
        if self._child:
            raise StudioError(f"captions for {self._state['dataset']} are being made; wait for them, or cancel them")
        found = find_captioner(self._settings, spec.model, near)
        before = {
            one.name: one.caption or ""
            for one in self._datasets.pictures(name)
            if not one.problem and not one.edit.left_out
        }
        wanted = [picture for picture, caption in before.items() if not caption or spec.existing != "keep"]
        if not before:
            raise InvalidRequest("dataset", f"dataset={name!r} has no picture that can be used; add some first")
        if not wanted:
            raise InvalidRequest("existing", "every picture has a caption; choose to add to them, or to replace them")
        changes = self._changes.begin(name, f"{TITLE}: {len(wanted)} pictures")
        self._state = {
            "dataset": name, "state": RUNNING, "what": "starting", "done": 0, "total": len(wanted), "bytes": 0, "size": 0,
            "written": 0, "refused": [], "error": "", "field": "",
        }  # fmt: skip
        self._child = child = self._started(found)
        assert child.stdin is not None
        child.stdin.write(json.dumps(self._order(name, spec, found, wanted)) + "\n")
        child.stdin.flush()
        return self._heard(child, spec, changes)

    def _order(self, name: str, spec: CaptionSpec, found: Captioner | Source, wanted: list[str]) -> dict[str, Any]:
        crops = {one.name: one.edit.crop for one in self._datasets.pictures(name)}
        source = found if isinstance(found, Source) else None
        pictures = [{"name": one, "path": str(self._datasets.path(name, one)), "crop": crops[one]} for one in wanted]
        return {
            "captioner": "" if source else str(found.path),  # pyright: ignore[reportAttributeAccessIssue]
            "source": source.model_dump() if source else None,
            "models": str(self._settings.data_dir / "models"),
            "folder": str(self._settings.data_dir / "cache" / "downloads" / "captioner"),
            "pictures": pictures,
            "device": self._settings.device,
            "cpu_threads": self._settings.cpu_threads,
            **{key: getattr(spec, key) for key in ("prompt", "max_length", "threshold", "character_threshold")},
        }

    def _started(self, found: Captioner | Source) -> subprocess.Popen[str]:
        environment = dict(os.environ) | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if isinstance(found, Source):
            environment |= self._tokens.environment() | {"HF_HUB_DISABLE_XET": "1"}
        else:
            environment |= {"HF_HUB_OFFLINE": "1"}
        folder = self._settings.data_dir / "logs"
        writer.make_folder(folder)
        with (folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )  # fmt: skip

    def _follow(self, events: Iterator[Event]) -> None:
        for _ in events:
            pass

    def _heard(self, child: subprocess.Popen[str], spec: CaptionSpec, changes: ChangeSet) -> Iterator[Event]:
        """Take in what a child says until it ends."""
        try:
            for line in child.stdout or ():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    self._take(event, spec, changes)
                    yield event
        except StudioError as error:  # the disk is full, or the dataset is gone
            with self._lock:
                self._state |= {"state": FAILED, "error": str(error)}
        finally:
            child.kill()
            child.wait()
            with self._lock:
                self._child = None
                if self._state["state"] == RUNNING:
                    self._state |= {
                        "state": FAILED,
                        "error": f"the captioner ended without a word; logs/{LOG} has more",
                    }

    def _take(self, event: Event, spec: CaptionSpec, changes: ChangeSet) -> None:
        kind = event["event"]
        with self._lock:
            state = self._state
            if state["state"] == STOPPED:
                return
            if kind in ("caption", "refused"):
                state |= {"what": "describing", "done": state["done"] + 1}
            if kind == "caption":
                state["written"] += self._write(event, spec, changes)
            elif kind == "refused":
                state["refused"].append(event["text"])
            elif kind == "progress":
                state |= {"what": event["what"], "bytes": event["bytes"], "size": event["total"]}
            elif kind in ("loading", "waiting"):
                state["what"] = kind
            elif kind == "done":
                state |= {"state": DONE, "what": ""}
            elif kind == "problem":
                state |= {"state": FAILED, "error": event["text"], "field": event["field"]}

    def _write(self, event: Event, spec: CaptionSpec, changes: ChangeSet) -> bool:
        """Write a caption; what a person wrote meanwhile counts as being there. Return whether it was written."""
        picture = event["picture"]
        try:
            now = changes.now(picture, "caption")
            text = new_caption(spec, now, event["text"])
            if (now and spec.existing == "keep") or not event["text"].strip():
                return False
            return changes.add(Change(picture, "caption", text))
        except InvalidRequest:  # the picture was removed meanwhile
            return False

    def cancel(self) -> None:
        """Stop; the captions that are made stay, and can be undone."""
        with self._lock:
            if self._child:
                self._state |= {"state": STOPPED, "what": ""}
                self._child.kill()

    def state(self) -> dict[str, Any]:
        """Return how far it is: dataset, state, what, done, total, written, refused, error; {} if nothing was begun."""
        with self._lock:
            return dict(self._state)

    @property
    def busy(self) -> bool:
        """Whether a child is still there."""
        with self._lock:
            return self._child is not None

    def close(self) -> None:
        """End the child."""
        with self._lock:
            child = self._child
        if child:
            child.kill()
            child.wait()
