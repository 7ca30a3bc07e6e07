"""Downloads: each is a child process that may be killed at any time; what has arrived is kept, and a new start goes on from there."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from studio.errors import InvalidRequest, StudioError
from studio.settings import ROOT
from studio.sources import Source
from studio.store import writer
from studio.store.tokens import Tokens

REQUEST = "request.json"
LOG = "log.txt"  # what the children say that nobody foresaw
PLAN_SECONDS = 90.0
RUNNING, STOPPED, DONE, FAILED = "running", "stopped", "done", "failed"
CODE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from studio.download_main import main; sys.exit(main())"


class Downloads:
    """The downloads of a data root.

    Args:
        data_dir: the data root.
        tokens: for the places that ask for one.
    """

    def __init__(self, data_dir: Path, tokens: Tokens) -> None:
        self._models, self._root, self._tokens = data_dir / "models", data_dir / "cache" / "downloads", tokens
        self._lock = threading.RLock()
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._states: dict[str, dict[str, Any]] = {}
        for file in sorted(self._root.glob(f"*/{REQUEST}")):  # of an earlier run of the app
            with contextlib.suppress(OSError, ValueError, TypeError):
                source = Source.model_validate(json.loads(file.read_text(encoding="utf-8")))
                self._states[file.parent.name] = _state(file.parent.name, source, STOPPED)

    def plan(self, source: Source) -> dict[str, Any]:
        """Ask what a download would do: its size, the free disk, the licence.

        Raises:
            StudioError: if that cannot be found out.
        """
        child = self._child(source, plan=True)
        late = threading.Timer(PLAN_SECONDS, child.kill)
        late.start()
        assert child.stdout is not None
        answer = child.stdout.read()  # its stdin stays open meanwhile: a closed one ends it
        child.wait()
        expired = late.finished.is_set()
        late.cancel()
        if expired:
            raise StudioError(f"{source.title} gave no answer within {PLAN_SECONDS:g} seconds; try again later")
        said = [json.loads(line) for line in answer.splitlines()] or [{}]
        return _checked(said[-1])

    def start(self, source: Source) -> str:
        """Begin, or go on with, a download; return its id at once."""
        name = hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:12]
        with self._lock:
            if name in self._children:
                return name
            folder = self._root / name
            writer.write_file(folder / REQUEST, source.model_dump_json().encode())
            self._states[name] = _state(name, source, RUNNING)
            self._children[name] = child = self._child(source, plan=False)
        threading.Thread(target=self._follow, args=(name, child), name=f"download {name}", daemon=True).start()
        return name

    def run(self, source: Source, told: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Download and wait for it; `told` hears of every event. Return the last one.

        Raises:
            StudioError: if it failed.
        """
        name = hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:12]
        writer.write_file(self._root / name / REQUEST, source.model_dump_json().encode())
        child, last = self._child(source, plan=False), {}
        try:
            for line in child.stdout or ():
                last = json.loads(line)
                told(last)
        finally:
            child.kill()
            child.wait()
        return _checked(last)

    def _child(self, source: Source, *, plan: bool) -> subprocess.Popen[str]:
        """Start the process that downloads; its stdin stays open for as long as we live."""
        folder = self._root / hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:12]
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        writer.make_folder(self._root)
        with (self._root / LOG).open("ab") as log:
            child = self._popen(log, dict(os.environ) | self._tokens.environment() | quiet)
        wanted = {"source": source.model_dump(), "folder": str(folder), "models": str(self._models), "plan": plan}
        assert child.stdin is not None
        child.stdin.write(json.dumps(wanted) + "\n")
        child.stdin.flush()
        return child

    def _popen(self, log: BinaryIO, environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )  # fmt: skip

    def _follow(self, name: str, child: subprocess.Popen[str]) -> None:
        """Take in what a child says until it ends."""
        for line in child.stdout or ():
            said = json.loads(line)
            kind = said.pop("event")
            with self._lock:
                state = self._states[name]
                if kind == "plan":
                    state |= {"name": said["name"], "total": said["bytes"], "licence": said["licence"]}
                elif kind == "progress":
                    state |= {"bytes": said["bytes"], "total": said["total"], "what": said["what"]}
                elif kind == "done":
                    state |= {"state": DONE, "bytes": state["total"], "name": said["name"], "what": ""}
                else:
                    state |= {"state": FAILED, "error": said["text"]}
        child.wait()
        with self._lock:
            del self._children[name]
            if self._states[name]["state"] == RUNNING:
                self._states[name] |= {"state": STOPPED, "what": ""}

    def state(self) -> list[dict[str, Any]]:
        """Return all downloads, newest last: id, source, name, state, bytes, total, error."""
        with self._lock:
            return [dict(state) for state in self._states.values()]

    def cancel(self, name: str) -> None:
        """Stop a download; what has arrived stays."""
        with self._lock:
            if child := self._children.get(self._known(name)):
                child.kill()

    def resume(self, name: str) -> None:
        """Go on with a download that was stopped or failed."""
        self.start(Source.model_validate(self._states[self._known(name)]["source"]))

    def forget(self, name: str) -> None:
        """Take a download out of the list, and remove what has arrived of it.

        Raises:
            StudioError: if it is running.
        """
        with self._lock:
            if self._known(name) in self._children:
                raise StudioError("this download is running; cancel it first")
            shutil.rmtree(self._root / name, ignore_errors=True)
            del self._states[name]

    def _known(self, name: str) -> str:
        if name not in self._states:
            raise InvalidRequest("download", f"there is no download {name!r}")
        return name

    def close(self) -> None:
        """End all children."""
        with self._lock:
            children = list(self._children.values())
        for child in children:
            child.kill()
            child.wait()


def _state(name: str, source: Source, state: str) -> dict[str, Any]:
    return {
        "id": name, "source": source.model_dump(), "title": source.title, "name": "", "state": state, "bytes": 0, "total": 0,
        "what": "", "licence": "", "error": "",
    }  # fmt: skip


def _checked(said: dict[str, Any]) -> dict[str, Any]:
    """Return a child's last word.

    Raises:
        StudioError: if that is a problem, or nothing.
    """
    if said.get("event") == "problem":
        raise InvalidRequest(said["field"], said["text"]) if said["field"] else StudioError(said["text"])
    if said.get("event") not in ("plan", "done"):
        raise StudioError("the download ended without a word; start it again, it goes on from what has arrived")
    return said
