"""A trash folder: files that were put away together, each entry under its own id, come back together."""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from studio.errors import InvalidRequest
from studio.store import writer
from studio.store.gallery import storage_error, utc_now


def put_away(folder: Path, files: Sequence[Path], trash: Path) -> str:
    """Move files out of a folder; return the id of the entry.

    Args:
        folder: in which the files lie, at any depth.
        files: the first one goes last, so that a crash never leaves what belongs to it behind alone.
        trash: of this folder.

    Raises:
        StorageError: if the disk refuses.
    """
    place = trash / f"{utc_now():%Y%m%d-%H%M%S%f}-{secrets.token_hex(4)}"
    try:
        for one in reversed(files):
            writer.move(one, place / one.relative_to(folder))
    except OSError as error:
        raise storage_error(error, files[0].name) from error
    return place.name


def put_back(entry: Path, folder: Path) -> None:
    """Move an entry's files back to where they were.

    Raises:
        InvalidRequest: if something of a file's name is there again.
        StorageError: if the disk refuses.
    """
    files = [path for path in entry.rglob("*") if path.is_file()]
    taken = next((path.name for path in files if _differs(path, folder / path.relative_to(entry))), None)
    if taken:
        raise InvalidRequest("removed", f"{taken} is there again; remove that one first")
    try:
        for path in files:
            writer.move(path, folder / path.relative_to(entry))
        shutil.rmtree(entry)
    except OSError as error:
        raise storage_error(error, entry.name) from error


def _differs(kept: Path, place: Path) -> bool:
    """Whether something else is where a file shall go; the same file is there if the power went while it was put away."""
    return place.exists() and not (place.is_file() and writer.file_sha256(place) == writer.file_sha256(kept))
