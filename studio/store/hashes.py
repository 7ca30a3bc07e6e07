"""Content hashes of large files, remembered as long as a file's size and time stay the same."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from studio.store import writer
from studio.store.index import Database


class Hashes:
    """Args: database: remembers; None hashes anew each time."""

    def __init__(self, database: Database | None = None) -> None:
        self._database = database

    def of_file(self, path: Path) -> str:
        """Return the sha256 of a file's content."""
        if self._database is None:
            return writer.file_sha256(path)
        facts = path.stat()
        known = self._database.rows(
            "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime = ?",
            [str(path), facts.st_size, facts.st_mtime_ns],
        )
        if known:
            return known[0]["sha256"]
        sha256 = writer.file_sha256(path)
        self._database.execute(
            "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", [str(path), facts.st_size, facts.st_mtime_ns, sha256]
        )
        return sha256

    def of_folder(self, folder: Path, files: Iterable[Path]) -> str:
        """Return the sha256 of the names and contents of a folder's files."""
        digest = hashlib.sha256()
        for path in sorted(files):
            digest.update(f"{path.relative_to(folder).as_posix()} {self.of_file(path)}\n".encode())
        return digest.hexdigest()
