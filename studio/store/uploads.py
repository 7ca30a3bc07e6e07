"""Files on their way in: they come in pieces, because a request is small, and are kept until all of an upload is here."""

import os
import re
import shutil
from pathlib import Path

from studio.errors import InvalidRequest, StorageError
from studio.store.archives import ENTRIES_MAX
from studio.store.gallery import storage_error

UPLOAD = re.compile(r"[0-9a-f]{32}")
FILE_MAX = 2_000_000_000  # bytes: a zip
WAITING_MAX = 64  # uploads that nobody finished
FREE_MIN = 500_000_000  # bytes that an upload leaves on the disk
NAME_MAX = 500


class Uploads:
    """Unfinished uploads under one folder.

    Args:
        root: of them; cleared when the app starts.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def append(self, upload: str, number: int, at: int, data: bytes) -> int:
        """Add a piece to a file; return how many bytes it has then.

        Args:
            upload: 32 hex digits that the page made up.
            number: of the file in its upload.
            at: where the piece begins; pieces come in order.
            data: the piece.

        Raises:
            InvalidRequest: if pieces are missing, or the file is too large.
            StorageError: if the disk is full.
        """
        if not UPLOAD.fullmatch(upload) or not 0 <= number < ENTRIES_MAX:
            raise InvalidRequest("upload", "the upload is not known; bring the files again")
        if at + len(data) > FILE_MAX:
            raise InvalidRequest("file", f"the file has more than {FILE_MAX:,} bytes; bring it in several parts")
        folder = self.root / upload
        try:
            self._check_room(folder, len(data))
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / str(number)
            size = path.stat().st_size if path.is_file() else 0
            if size < at:
                raise InvalidRequest("upload", "a part of the file is missing; bring it again")
            with path.open("r+b" if size else "wb") as file:
                file.seek(at)
                file.write(data)
                file.truncate()
        except OSError as error:
            raise storage_error(error, "the upload") from error
        return at + len(data)

    def _check_room(self, folder: Path, size: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.root).free - size < FREE_MIN:
            raise StorageError("the disk is almost full: nothing more is taken; free some space and try again")
        if not folder.is_dir() and len(waiting := list(self.root.iterdir())) >= WAITING_MAX:
            shutil.rmtree(min(waiting, key=os.path.getmtime), ignore_errors=True)

    def files(self, upload: str, names: list[str]) -> list[tuple[str, Path]]:
        """Return the files of an upload with their names.

        Args:
            upload: whose pieces all came.
            names: of its files, in the order of their numbers.

        Raises:
            InvalidRequest: if one is missing.
        """
        found = [(name[-NAME_MAX:], self.root / upload / str(number)) for number, name in enumerate(names)]
        if not UPLOAD.fullmatch(upload) or not names or not all(path.is_file() for _, path in found):
            raise InvalidRequest("upload", "the upload is not complete; bring the files again")
        return found

    def drop(self, upload: str) -> None:
        """Forget an upload."""
        if UPLOAD.fullmatch(upload):
            shutil.rmtree(self.root / upload, ignore_errors=True)

    def clear(self) -> None:
        """Forget all of them."""
        shutil.rmtree(self.root, ignore_errors=True)
