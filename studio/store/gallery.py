"""Pictures that were made: committed to `images/<date>/`, found through the index, starred, trashed, zipped."""

import contextlib
import errno
import json
import logging
import secrets
import struct
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from PIL import Image

from studio.errors import StorageError, StudioError
from studio.plots import GridRecord
from studio.records import ImageRecord
from studio.store import writer
from studio.store.blobs import BlobStore
from studio.store.index import ImageIndex
from studio.store.metadata import Found, add_text, picture_texts, read_picture

logger = logging.getLogger(__name__)

TRASH = "trash"
THUMBNAIL = 320


def storage_error(error: OSError, what: str) -> StorageError:
    """Say what could not be written, and why, in one sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the disk is full: {what} could not be saved; free some space and try again")
    return StorageError(f"{what} could not be saved: {error.strerror or error}")


def save_picture(folder: Path, name: str, png: bytes, record: ImageRecord | GridRecord) -> Path:
    """Commit a PNG with its whole request inside; an existing file is never overwritten.

    Raises:
        StorageError: if it is not on disk afterwards.
    """
    path = folder / f"{name}.png"
    try:
        writer.write_file(path, add_text(png, picture_texts(record)), replace=False)
    except OSError as error:
        raise storage_error(error, f"the picture {path.name}") from error
    return path


def new_image_id(now: datetime) -> str:
    """Return a name that sorts by time and that nobody can guess."""
    return f"{now:%Y%m%d-%H%M%S%f}-{secrets.token_hex(8)}"


class Gallery:
    """The pictures of one data root; `blobs` holds what they were made from, decoded by `decoder` if it is given."""

    def __init__(self, root: Path, index: ImageIndex, decoder: Callable[[bytes], Image.Image] | None = None) -> None:
        self.root, self.index, self.blobs = root, index, BlobStore(root.parent / "blobs", decoder)

    def commit(self, png: bytes, record: ImageRecord | GridRecord, owner: str = "") -> Path:
        """Save a picture and enter it into the index; it is on disk, for good, when this returns."""
        path = save_picture(self.root / record.created[:10], record.id, png, record)
        self.index.add([self._row(path, record, owner)])
        return path

    def _row(self, path: Path, record: ImageRecord | GridRecord, owner: str, **extra: object) -> dict[str, object]:
        grid = isinstance(record, GridRecord)
        request = record.spec.base if grid else record.request
        with path.open("rb") as file:
            width, height = struct.unpack(
                ">II", file.read(24)[16:]
            )  # an edited picture's size need not be the request's
        row: dict[str, object] = {
            "id": record.id,
            "path": path.relative_to(self.root).as_posix(),
            "day": record.created[:10],
            "model": request.model,
            "prompt": f"{'X/Y/Z plot: ' if grid else ''}{request.prompt} {request.negative_prompt}".strip(),
            "width": width,
            "height": height,
            "seed": request.seed if grid else record.seed,
            "owner": owner,
            "bytes": path.stat().st_size,
            "starred": 0,
            "trashed": 0,
        }
        return row | extra

    def path(self, image_id: str, owner: str | None = None) -> Path:
        """Return where a picture lies.

        Args:
            image_id: of the picture.
            owner: if given, a picture of somebody else does not exist; one of nobody is known by its id alone.

        Raises:
            StudioError: if there is no such picture, or its file was removed by hand.
        """
        row = self.index.get(image_id)
        path = self.root / str(row["path"]) if row and visible(row, owner) else None
        if path is None or not path.is_file():
            raise StudioError(f"there is no picture {image_id!r}")
        return path

    def found(self, image_id: str, owner: str | None = None) -> Found:
        """Return all that a picture says about itself."""
        return read_picture(self.path(image_id, owner))

    def thumbnail(self, image_id: str, cache: Path, owner: str | None = None) -> Path:
        """Return a small WebP of a picture, made at the first call; small pictures are their own thumbnail."""
        path = self.path(image_id, owner)
        small = cache / "thumbnails" / f"{image_id}.webp"
        return small_copy(path, small)

    def star(self, image_ids: list[str], starred: bool) -> int:
        """Star pictures or take their stars away; the sidecar beside each file keeps it. Return how many there were."""
        for image_id in image_ids:
            path = self.path(image_id)
            sidecar = path.with_suffix(".json")
            facts = read_sidecar(sidecar)
            if bool(facts.get("starred")) != starred:
                writer.write_json(sidecar, facts | {"starred": starred})
            self.index.update(image_id, starred=int(starred))
        return len(image_ids)

    def trash(self, image_ids: list[str]) -> int:
        """Move pictures to the trash folder; starred ones are kept. Return how many were moved."""
        moved = 0
        for image_id in image_ids:
            row = self.index.get(image_id)
            if row and not (self.root / str(row["path"])).is_file():
                self.index.remove(image_id)  # somebody deleted the file by hand
            elif row and not row["starred"] and not row["trashed"]:
                self._relocate(image_id, self.root / TRASH / str(row["day"]), trashed=1)
                moved += 1
        return moved

    def restore(self, image_ids: list[str]) -> int:
        """Move pictures back out of the trash; return how many were moved."""
        moved = 0
        for image_id in image_ids:
            row = self.index.get(image_id)
            if row and row["trashed"]:
                self._relocate(image_id, self.root / str(row["day"]), trashed=0)
                moved += 1
        return moved

    def _relocate(self, image_id: str, folder: Path, *, trashed: int) -> None:
        path = self.path(image_id)
        if path.with_suffix(".json").exists():
            writer.move(path.with_suffix(".json"), folder / f"{image_id}.json")
        writer.move(path, folder / path.name)
        self.index.update(image_id, path=(folder / path.name).relative_to(self.root).as_posix(), trashed=trashed)

    def empty_trash(self) -> int:
        """Delete what lies in the trash, for good; return how many pictures that were."""
        number = 0
        while rows := self.index.page(trashed=True, limit=500):
            for row in rows:
                path = self.root / str(row["path"])
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)
                self.index.remove(str(row["id"]))
                number += 1
        return number

    def zip(self, image_ids: list[str], file: IO[bytes]) -> int:
        """Write pictures into a zip archive; return how many there were."""
        number = 0
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for image_id in image_ids:
                with contextlib.suppress(StudioError):
                    archive.write(self.path(image_id), f"{image_id}.png")
                    number += 1
        return number

    def reconcile(self, *, rebuild: bool = False) -> int:
        """Enter files that the index does not know (all of them after `rebuild`); return how many that were.

        One that it knows elsewhere was on its way into the trash, or out of it, when the app ended.
        """
        known = {} if rebuild else self.index.places()
        rows = []
        for path in sorted(self.root.glob("**/*.png"), key=lambda path: path.name):
            place = path.relative_to(self.root).as_posix()
            if path.name.startswith(writer.PART) or known.get(path.stem) == place:
                continue
            row = self._read_row(path)
            if row and path.stem not in known:
                rows.append(row)
            elif row and not (self.root / known[path.stem]).is_file():
                self.index.update(path.stem, path=place, trashed=row["trashed"])
        if rebuild:
            self.index.clear()
        self.index.add(rows)
        return len(rows)

    def _read_row(self, path: Path) -> dict[str, Any] | None:
        try:
            found = read_picture(path)
            record = found.record or found.grid
        except StudioError as error:
            logger.warning("left out of the index: %s", error)
            return None
        if record is None or record.id != path.stem:
            return None
        trashed = int(path.relative_to(self.root).parts[0] == TRASH)
        return self._row(
            path, record, "", starred=int(bool(read_sidecar(path.with_suffix(".json")).get("starred"))), trashed=trashed
        )


def small_copy(path: Path, small: Path) -> Path:
    """Return a small WebP of a PNG, made at `small` at the first call; small pictures are their own."""
    if small.is_file():
        return small
    with Image.open(path, formats=("PNG",)) as image:
        if max(image.size) <= THUMBNAIL:
            return path
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        small.parent.mkdir(parents=True, exist_ok=True)
        part = small.with_suffix(f".{secrets.token_hex(4)}.part")
        image.convert("RGB").save(part, "WEBP", quality=80, method=0)
        part.replace(small)
    return small


def visible(row: dict[str, object], owner: str | None) -> bool:
    """Whether somebody who knows a picture's id may see it; `owner` None may see everything."""
    return owner is None or row["owner"] in ("", owner)


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the facts beside a picture (stars, notes), {} if there are none."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def utc_now() -> datetime:
    return datetime.now(UTC)
