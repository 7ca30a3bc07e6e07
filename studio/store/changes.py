"""What was done to a dataset at a click, kept so that it can be undone: the dataset doctor's fixes, captions made by a model."""

import hashlib
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studio.errors import InvalidRequest, StudioError
from studio.findings import Change
from studio.store import writer
from studio.store.blobs import Refused, encode
from studio.store.collections import Datasets, checked_caption
from studio.store.datasets import Metadata, caption_file, mask_file, read_metadata, read_text
from studio.store.edits import read_edit
from studio.store.gallery import storage_error

METADATA = "metadata.jsonl"
SETS = 100  # that are remembered a dataset


@dataclass(frozen=True)
class Undone:
    """What an undo did: what it was called, how many things are as before, and which pictures had been changed since."""

    title: str
    number: int
    changed_since: tuple[str, ...]


class Changes:
    """Sets of changes, the latest of which can be undone, then the one before it, and so on.

    Args:
        datasets: that are changed; what was before lies in the trash beside them.
    """

    def __init__(self, datasets: Datasets) -> None:
        self._datasets, self._root = datasets, datasets.trash.parent / "changes"
        self._lock = threading.RLock()

    def begin(self, name: str, title: str) -> "ChangeSet":
        """Begin a set of changes of a dataset.

        Raises:
            InvalidRequest: if there is no such dataset.
            StorageError: if the disk refuses.
        """
        self._datasets.folder(name)
        with self._lock:
            sets = self._sets(name)
            for old in sets[: -SETS + 1]:
                old.unlink(missing_ok=True)
            number = int(sets[-1].stem) + 1 if sets else 1
            return ChangeSet(self._datasets, name, self._root / name, f"{number:06d}", title)

    def make(self, name: str, changes: Iterable[Change], title: str) -> int:
        """Make a set of changes; return how many there were.

        Raises:
            InvalidRequest: if a picture is not there or a caption is none; nothing is changed then.
            StudioError: if one cannot be made; those before it are made, and can be undone.
        """
        made, wanted = self.begin(name, title), list(changes)
        for change in wanted:
            self._datasets.path(name, change.picture)
            if change.kind == "caption":
                checked_caption(change.value)
        with self._lock:
            for change in wanted:
                made.add(change)
        return made.number

    def last(self, name: str) -> str:
        """Say what would be undone; "" if there is nothing."""
        sets = self._sets(name)
        return _lines(sets[-1])[0]["title"] if sets else ""

    def undo(self, name: str) -> Undone:
        """Undo the latest set; what a person changed since stays as it is.

        Raises:
            InvalidRequest: if there is none.
            StorageError: if the disk refuses.
        """
        with self._lock:
            sets = self._sets(name)
            if not sets:
                raise InvalidRequest("undo", f"there is nothing to undo in {name}")
            title, *entries = _lines(sets[-1])
            told, number, since = read_metadata(self._datasets.folder(name) / METADATA), 0, []
            for entry in reversed(entries):
                try:
                    now = state_of(self._datasets, name, entry["picture"], entry["kind"], told)
                except StudioError:  # the picture was removed
                    since.append(entry["picture"])
                    continue
                if now == entry["after"] != entry["before"]:
                    self._put_back(name, entry)
                    number += 1
                elif now != entry["before"]:
                    since.append(entry["picture"])
            sets[-1].unlink()
        return Undone(title["title"], number, tuple(dict.fromkeys(since)))

    def _put_back(self, name: str, entry: dict[str, Any]) -> None:
        picture, before, kind = entry["picture"], entry["before"], entry["kind"]
        if kind == "caption":
            self._datasets.set_caption(name, picture, before)
        elif kind == "left_out":
            self._datasets.set_edit(name, picture, left_out=before)
        elif kind == "crop":
            self._datasets.set_edit(name, picture, crop=before)
        else:
            self._datasets.set_mask(name, picture, None)
            if before:  # the very file: one that a person made may say with its alpha what counts
                kept = self._root / name / f"{before}.png"
                writer.write_file(mask_file(self._datasets.path(name, picture)), kept.read_bytes())

    def _sets(self, name: str) -> list[Path]:
        """List the files of sets that did something, the latest last."""
        return sorted(path for path in (self._root / name).glob("[0-9]*.jsonl") if len(_lines(path)) > 1)


class ChangeSet:
    """One set: every change is noted before it is made.

    Attributes:
        number: of the changes made so far.
    """

    def __init__(self, datasets: Datasets, name: str, folder: Path, number: str, title: str) -> None:
        self._datasets, self._name, self._folder, self._title = datasets, name, folder, title
        self._file = folder / f"{number}.jsonl"
        self._told = read_metadata(datasets.folder(name) / METADATA)
        self.number = 0

    def now(self, picture: str, kind: str) -> Any:
        """Return what stands there now, see `state_of`."""
        return state_of(self._datasets, self._name, picture, kind, self._told)

    def add(self, change: Change) -> bool:
        """Make one change; one that changes nothing is not noted. Return whether it was made.

        Raises:
            InvalidRequest: if the dataset has no such picture, or the value is none.
            StorageError: if the disk refuses.
        """
        name, picture, kind = self._name, change.picture, change.kind
        before = self.now(picture, kind)
        value: Any = self._mask(change) if kind == "mask" else change.value
        after: Any = value
        if kind == "mask":
            after = hashlib.sha256(encode(value.convert("L"))).hexdigest() if value else ""
        elif kind == "caption":
            after = " ".join(value.split())
        elif kind == "crop" and value:
            after = [round(one, 6) for one in value]
        if before == after:
            return False
        try:
            if kind == "mask" and before:
                data = mask_file(self._datasets.path(name, picture)).read_bytes()
                writer.write_file(self._folder / f"{before}.png", data)
            if not self.number:
                writer.append_line(self._file, json.dumps({"title": self._title}))
            entry = {"picture": picture, "kind": kind, "before": before, "after": after}
            writer.append_line(self._file, json.dumps(entry))
        except OSError as error:
            raise storage_error(error, "what was there before") from error
        self.number += 1
        if kind == "caption":
            self._datasets.set_caption(name, picture, value)
        elif kind == "left_out":
            self._datasets.set_edit(name, picture, left_out=value)
        elif kind == "crop":
            self._datasets.set_edit(name, picture, crop=value)
        else:
            self._datasets.set_mask(name, picture, value)
        return True

    def _mask(self, change: Change) -> Image.Image | None:
        """Return the mask that a change means, white counts: `alpha` is what the picture shows."""
        if change.value != "alpha":
            return change.value
        image = self._datasets.image(self._name, change.picture)
        if image.mode != "RGBA":
            raise InvalidRequest("mask", f"{change.picture} has no transparent parts to make a mask of")
        return image.getchannel("A")


def state_of(datasets: Datasets, name: str, picture: str, kind: str, told: Metadata) -> Any:
    """Return what stands there now: a caption ("" for none), whether it is left out, a crop, the sha256 of a mask ("" for none).

    Raises:
        InvalidRequest: if there is no such picture.
    """
    path = datasets.path(name, picture)
    if kind == "mask":
        file = mask_file(path)
        return writer.file_sha256(file) if file.is_file() else ""
    try:
        if kind == "caption":
            file = caption_file(path)
            text = read_text(file)[0] if file else told.rows.get(picture, (None, None))[0] or ""
            return " ".join(text.split())
        edit = read_edit(path)
    except Refused:  # what is damaged is replaced by what is said now
        return {"caption": "", "left_out": False, "crop": None}[kind]
    return edit.left_out if kind == "left_out" else list(edit.crop) if edit.crop else None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read what a file of a set says; a line that a crash tore is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
