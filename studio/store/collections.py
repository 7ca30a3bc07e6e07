"""The datasets of the data root: the one place that makes, fills and changes them.

A dataset is a folder as `datasets` reads it. Pictures are never changed: captions, masks and edits lie beside them. What is removed
goes to `trash/` in the data root and can be put back.
"""

import re
import secrets
import shutil
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from studio.errors import InvalidRequest, shown
from studio.store import writer
from studio.store.adding import Added, add_files, add_folder
from studio.store.blobs import Refused, decode, encode, read_file
from studio.store.datasets import (
    CAPTION_MAX,
    CAPTIONS,
    CONDITIONING,
    MASK_END,
    PICTURES,
    Dataset,
    mask_file,
    read_dataset,
    read_metadata,
)
from studio.store.edits import Crop, Edit, checked_crop, crop_box, edit_bytes, edit_file, read_edit
from studio.store.folders import natural
from studio.store.gallery import storage_error, utc_now
from studio.store.intake import RESERVED
from studio.store.pictures import Picture, Pictures
from studio.store.thumbnails import SIDES, make_thumbnail, upright_size
from studio.store.trash import put_away, put_back
from studio.store.uploads import Uploads

NAME = re.compile(r"\w[\w .()-]{0,62}[\w)]|\w")
DISCARDED = re.compile(r"(.+) (\d{4}-\d\d-\d\d) (\d{6}) [0-9a-f]{4}")


class Keep(Enum):
    """Stands for a value that stays as it is."""

    KEEP = "keep"


class Datasets:
    """The datasets under one folder.

    Args:
        root: `datasets` in the data root; trash and cache lie beside it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root.parent / "cache" / "datasets"
        self.trash = root.parent / "trash" / "datasets"
        self.uploads = Uploads(root.parent / "cache" / "uploads")
        self._lock, self._adding = threading.RLock(), threading.Lock()  # a long upload holds up no edit
        self._pictures = Pictures()

    def names(self) -> list[str]:
        """List the datasets."""
        if not self.root.is_dir():
            return []
        found = (path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        return sorted(found, key=natural)

    def create(self, name: str) -> str:
        """Make an empty dataset; return its name.

        Raises:
            InvalidRequest: if the name cannot be one, or is taken.
            StorageError: if the disk refuses.
        """
        name = unicodedata.normalize("NFC", " ".join(name.split()))
        if not NAME.fullmatch(name) or RESERVED.fullmatch(name):
            raise InvalidRequest(
                "name",
                f"name={shown(name)} must have 1 to 64 letters, digits, spaces or _-. and begin with a letter or digit",
            )
        with self._lock:
            if name.casefold() in (other.casefold() for other in self.names()):
                raise InvalidRequest("name", f"name={shown(name)} is taken; choose another, or add to that dataset")
            try:
                writer.make_folder(self.root / name)
            except OSError as error:
                raise storage_error(error, f"the dataset {name}") from error
        return name

    def folder(self, name: str) -> Path:
        """Return where a dataset lies.

        Raises:
            InvalidRequest: if there is none of this name.
        """
        if name not in self.names():
            raise InvalidRequest("dataset", f"there is no dataset {shown(name)}; create it first, or reload the page")
        return self.root / name

    def read(self, name: str) -> Dataset:
        """Read a dataset as training does, see `read_dataset`."""
        return read_dataset(self.folder(name))

    def path(self, name: str, picture: str) -> Path:
        """Return where a picture lies.

        Raises:
            InvalidRequest: if the dataset has no such picture.
        """
        folder, inner = self.folder(name), PurePosixPath(picture)
        odd = inner.is_absolute() or ".." in inner.parts or "\\" in picture or "\0" in picture or len(inner.parts) > 2
        is_picture = inner.suffix.lower() in PICTURES and not inner.stem.endswith(MASK_END)
        path = folder / inner
        if odd or not is_picture or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidRequest("picture", f"there is no picture {shown(picture)} in {name}; reload the page")
        return path

    def image(self, name: str, picture: str) -> Image.Image:
        """Return a picture in memory, upright and not cropped, RGB or RGBA.

        Raises:
            InvalidRequest: if it is not there, or cannot be read.
        """
        try:
            return decode(read_file(self.path(name, picture)))
        except Refused as refusal:
            raise InvalidRequest("picture", f"{picture} {refusal}") from None

    def pictures(self, name: str) -> list[Picture]:
        """List a dataset's pictures, those that are left out too; cheap, because no pixel is decoded."""
        return self._pictures.read(self.folder(name))

    def summary(self, name: str) -> dict[str, Any]:
        """Return a dataset's name, and how many pictures, captions and masks it has."""
        found = self.pictures(name)
        used = [one for one in found if not one.edit.left_out]
        return {
            "name": name,
            "pictures": len(used),
            "captions": sum(bool(one.caption) for one in used),
            "masks": sum(one.has_mask for one in used),
            "left_out": len(found) - len(used),
        }

    def thumbnail(self, name: str, picture: str, side: int = SIDES[0]) -> Path:
        """Return a small WebP of a picture, upright and not cropped.

        Raises:
            InvalidRequest: if there is no such picture, or it cannot be read.
        """
        path = self.path(name, picture)
        try:
            return make_thumbnail(path, side, self.cache)
        except Refused as refusal:
            raise InvalidRequest("picture", f"{picture} {refusal}") from None

    def add(self, name: str, files: Iterable[tuple[str, Path]]) -> Added:
        """Take files into a dataset, copied without place, date and camera: pictures, captions and masks of their names, zips.

        Args:
            name: of the dataset.
            files: the name that each had where it came from, and where it lies now.

        Raises:
            InvalidRequest: if there is no such dataset.
            StorageError: if the disk refuses; what was taken before stays.
        """
        with self._adding:
            return add_files(self.folder(name), self.cache, files)

    def add_folder(self, name: str, source: Path) -> Added:
        """Copy a folder of this computer into a dataset; kohya's `N_words` folders keep their names.

        Raises:
            InvalidRequest: if there is no such folder or dataset.
            StorageError: if the disk refuses; what was taken before stays.
        """
        with self._adding:
            return add_folder(self.folder(name), self.cache, source)

    def set_caption(self, name: str, picture: str, text: str) -> str:
        """Write a picture's caption, `NAME.txt`; without words there is none. Return it as it is read.

        Raises:
            InvalidRequest: if the dataset has no such picture, or the text is no caption.
            StorageError: if it is not on disk afterwards.
        """
        path, text = self.path(name, picture), checked_caption(text)
        beside = path.with_suffix(CAPTIONS[0])
        told = read_metadata(self.folder(name) / "metadata.jsonl").rows.get(picture, (None, None))[0]
        below = told is not None or any(path.with_suffix(end).is_file() for end in CAPTIONS[1:])
        self._write(beside, text.encode() if text or below else None, f"the caption of {picture}")
        return text

    def set_edit(
        self, name: str, picture: str, *, crop: Sequence[float] | Keep | None = Keep.KEEP, left_out: bool | None = None
    ) -> Edit:
        """Say which part of a picture counts, or that none does; the file stays as it is.

        Args:
            name: of the dataset.
            picture: in it.
            crop: left, top, right, bottom as parts of the upright picture; None for all of it.
            left_out: whether training passes it over; as it is if None.

        Raises:
            InvalidRequest: if the dataset has no such picture, or the crop is none.
            StorageError: if it is not on disk afterwards.
        """
        path = self.path(name, picture)
        with self._lock:
            before = self._edit_of(path)
            part = before.crop if isinstance(crop, Keep) else self._checked(path, picture, crop)
            edit = Edit(part, before.left_out if left_out is None else left_out)
            self._write(edit_file(path), edit_bytes(edit) if edit != Edit() else None, f"the edit of {picture}")
        return edit

    def _edit_of(self, path: Path) -> Edit:
        try:
            return read_edit(path)
        except Refused:  # a damaged one is replaced by what is said now
            return Edit()

    def _checked(self, path: Path, picture: str, crop: Sequence[float] | None) -> Crop | None:
        if crop is None:
            return None
        try:
            wanted = checked_crop(crop)
            crop_box(wanted, upright_size(path))
        except ValueError as error:
            raise InvalidRequest("crop", str(error)) from None
        except Refused as refusal:
            raise InvalidRequest("crop", f"{picture} {refusal}") from None
        return None if wanted == (0, 0, 1, 1) else wanted

    def set_mask(self, name: str, picture: str, image: Image.Image | None) -> None:
        """Keep a picture's mask, of which white counts; None removes it.

        Raises:
            InvalidRequest: if the dataset has no such picture, or the mask has another size.
            StorageError: if it is not on disk afterwards.
        """
        path = self.path(name, picture)
        if image is not None:
            try:
                width, height = upright_size(path)
            except Refused as refusal:
                raise InvalidRequest("picture", f"{picture} {refusal}") from None
            if image.size != (width, height):
                raise InvalidRequest(
                    "mask",
                    f"mask has {image.width} x {image.height} pixels; {picture} has {width} x {height}, make it so",
                )
        self._write(mask_file(path), encode(image.convert("L")) if image else None, f"the mask of {picture}")

    def _write(self, path: Path, data: bytes | None, what: str) -> None:
        """Write a file, or with None see to it that there is none."""
        try:
            if data is not None:
                writer.write_file(path, data)
            elif path.is_file():
                path.unlink()
                writer.sync_folder(path.parent)
        except OSError as error:
            raise storage_error(error, what) from error

    def remove(self, name: str, picture: str) -> str:
        """Move a picture and what lies beside it to the trash; return the id with which `restore` puts it back.

        Raises:
            InvalidRequest: if the dataset has no such picture.
            StorageError: if the disk refuses.
        """
        path, folder = self.path(name, picture), self.folder(name)
        beside = [*(path.with_suffix(end) for end in CAPTIONS), edit_file(path), mask_file(path)]
        if path.parent == folder:
            beside.append(folder / CONDITIONING / path.name)
        shared = any(o.stem == path.stem and o != path and o.suffix.lower() in PICTURES for o in path.parent.iterdir())
        files = [path] if shared else [path, *(one for one in beside if one.is_file())]
        return put_away(folder, files, self.trash / name)

    def removed(self, name: str) -> list[str]:
        """List what can be restored, the latest last."""
        self.folder(name)
        place = self.trash / name
        return sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []

    def restore(self, name: str, removed: str) -> None:
        """Put back what `remove` took away.

        Raises:
            InvalidRequest: if there is no such thing, or a picture of its name has come meanwhile.
            StorageError: if the disk refuses.
        """
        if removed not in self.removed(name):
            raise InvalidRequest("removed", f"{shown(removed)} is not in the trash of {name}; reload the page")
        put_back(self.trash / name / removed, self.folder(name))

    def empty(self, name: str) -> int:
        """Delete for good what was removed from a dataset; return how many pictures that were.

        Raises:
            InvalidRequest: if there is no such dataset.
            StorageError: if the disk refuses.
        """
        entries = self.removed(name)
        for entry in entries:
            self._erase(self.trash / name / entry)
        return len(entries)

    def discard(self, name: str) -> Path:
        """Move a whole dataset to the trash; return where it lies then.

        Raises:
            InvalidRequest: if there is no such dataset.
            StorageError: if the disk refuses.
        """
        target = self.discarded_root / f"{name} {utc_now():%Y-%m-%d %H%M%S} {secrets.token_hex(2)}"
        try:
            writer.move(self.folder(name), target)
        except OSError as error:
            raise storage_error(error, name) from error
        return target

    @property
    def discarded_root(self) -> Path:
        """Where whole datasets lie that were discarded."""
        return self.trash.parent / "whole datasets"

    def discarded(self) -> list[dict[str, Any]]:
        """List the datasets that were discarded, the latest first: id, name, day, bytes."""
        found = []
        for path in self.discarded_root.iterdir() if self.discarded_root.is_dir() else ():
            if path.is_dir() and (told := DISCARDED.fullmatch(path.name)):
                size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
                found.append({"id": path.name, "name": told[1], "day": told[2], "time": told[3], "bytes": size})
        return sorted(found, key=lambda one: (one["day"], one["time"]), reverse=True)

    def recall(self, discarded: str) -> str:
        """Put back a discarded dataset; return its name, which has a number if another has the old one.

        Raises:
            InvalidRequest: if there is no such thing.
            StorageError: if the disk refuses.
        """
        row = self._discarded(discarded)
        with self._lock:
            taken = {other.casefold() for other in self.names()}
            name, number = row["name"], 1
            while name.casefold() in taken:
                number += 1
                name = f"{row['name']} {number}"
            try:
                writer.move(self.discarded_root / discarded, self.root / name)
            except OSError as error:
                raise storage_error(error, name) from error
        return name

    def erase(self, discarded: str) -> None:
        """Delete a discarded dataset for good.

        Raises:
            InvalidRequest: if there is no such thing.
            StorageError: if the disk refuses.
        """
        self._discarded(discarded)
        self._erase(self.discarded_root / discarded)

    def _discarded(self, wanted: str) -> dict[str, Any]:
        row = next((one for one in self.discarded() if one["id"] == wanted), None)
        if row is None:
            raise InvalidRequest("discarded", f"{shown(wanted)} is not in the trash; reload the page")
        return row

    def _erase(self, folder: Path) -> None:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise storage_error(error, folder.name) from error


def checked_caption(text: str) -> str:
    """Return a caption as it is kept: one line.

    Raises:
        InvalidRequest: if it is too long, or no text.
    """
    if "\0" in text or len(text) > CAPTION_MAX:
        raise InvalidRequest(
            "caption", f"caption has {len(text):,} characters; at most {CAPTION_MAX:,} of text are kept"
        )
    return " ".join(text.split())
