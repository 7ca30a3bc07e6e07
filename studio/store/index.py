"""The SQLite file of the data root: an index over the picture files, the job journal, and known file hashes.

The picture table can be rebuilt from the files at any time; the journal cannot, and is never touched by that.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, Unpack

from studio.errors import StorageError

SCHEMA = """
CREATE TABLE images (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  path TEXT NOT NULL,
  day TEXT NOT NULL,
  model TEXT NOT NULL,
  prompt TEXT NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  seed INTEGER NOT NULL,
  owner TEXT NOT NULL DEFAULT '',
  bytes INTEGER NOT NULL DEFAULT 0,
  starred INTEGER NOT NULL DEFAULT 0,
  trashed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX images_starred ON images(seq) WHERE starred = 1 AND trashed = 0;
CREATE INDEX images_trashed ON images(seq) WHERE trashed = 1;
CREATE INDEX images_model ON images(model, seq);
CREATE INDEX images_day ON images(day, seq);
CREATE INDEX images_owner ON images(owner, seq);
CREATE VIRTUAL TABLE images_text USING fts5(prompt, prefix='2 3');
CREATE TABLE jobs (
  id TEXT PRIMARY KEY,
  rank REAL NOT NULL,
  state TEXT NOT NULL,
  owner TEXT NOT NULL,
  job TEXT NOT NULL,
  images TEXT NOT NULL DEFAULT '[]',
  error TEXT NOT NULL DEFAULT '',
  forever INTEGER NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_waiting ON jobs(rank) WHERE state = 'queued';
CREATE TABLE hashes (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, sha256 TEXT NOT NULL);
"""
MIGRATIONS = (
    SCHEMA,
)  # the n-th makes version n of version n - 1; one that was released is never changed, another is added


@contextmanager
def telling() -> Iterator[None]:
    """Say in one sentence what SQLite could not do."""
    try:
        yield
    except sqlite3.Error as error:
        full = "full" in str(error)
        reason = "the disk is full; free some space" if full else f"{error}; `python -m studio doctor` says what to do"
        raise StorageError(f"the index of the data folder could not be used: {reason}") from error


def damage(path: Path) -> str:
    """Say what is wrong with a database file; "" if it is whole, or is not there."""
    if not path.is_file():
        return ""
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if found == "ok" else str(found)


def put_aside_damaged(path: Path) -> Path | None:
    """Rename a database that cannot be read, and return its new name; None if it is whole."""
    if not damage(path):
        return None
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    path.rename(aside)
    for end in ("-wal", "-shm"):  # they belong to it
        path.with_name(path.name + end).unlink(missing_ok=True)
    return aside


class Database:
    """One connection, used by one thread at a time.

    Args:
        path: of the file; one of an earlier version is kept beside it as `NAME.version-N` and brought to today's, wholly or not at all.
        migrations: see `MIGRATIONS`.

    Raises:
        StorageError: from every call, if SQLite cannot do it; at first if the file was written by a newer Studio.
    """

    def __init__(self, path: Path, migrations: Sequence[str] = MIGRATIONS) -> None:
        with telling():
            self._open(path)
            self._migrate(path, migrations)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")

    def _version(self) -> int:
        return self._connection.execute("PRAGMA user_version").fetchone()[0]

    def _migrate(self, path: Path, migrations: Sequence[str]) -> None:
        wanted, version = len(migrations), self._version()
        if version > wanted:
            self.close()
            raise StorageError(
                f"{path} was written by a newer Studio (schema {version}); update Studio or choose another --data-dir"
            )
        if 0 < version < wanted:
            self._keep_copy(path.with_name(f"{path.name}.version-{version}"))
        with self.transaction(durable=True):
            for number in range(self._version(), wanted):  # another process may have been faster
                for statement in migrations[number].split(";\n"):
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version={wanted}")

    def _keep_copy(self, target: Path) -> None:
        """Keep the database as it is now."""
        part = target.with_name(f"{target.name}.part")
        part.unlink(missing_ok=True)
        copy = sqlite3.connect(part)
        try:
            self._connection.backup(copy)
        finally:
            copy.close()
        part.replace(target)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """Hold the lock and a write transaction; an exception undoes everything.

        A crash of this process loses nothing that was committed; a power cut may lose the last moments, except what was
        committed with `durable`, which waits for the disk.
        """
        with self._lock, telling():
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has undone it already
                    self._connection.execute("ROLLBACK")
                raise

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run one statement; return how many rows it changed."""
        with self._lock, telling():
            return self._connection.execute(sql, values).rowcount

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        with self._lock, telling():
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()


COLUMNS = ("id", "path", "day", "model", "prompt", "width", "height", "seed", "owner", "bytes", "starred", "trashed")


class Filter(TypedDict, total=False):
    """What a page of pictures can be narrowed to: words of the prompt, a model, a day, starred ones, the trash."""

    words: str
    model: str
    day: str
    starred: bool
    trashed: bool


class ImageIndex:
    """The picture table: `Row`s are dicts with `COLUMNS` and `seq`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rows: Iterable[dict[str, object]]) -> None:
        """Insert rows, ids that are known already are left alone."""
        with self._database.transaction():
            for row in rows:
                new = self._database.execute(
                    f"INSERT OR IGNORE INTO images({','.join(COLUMNS)}) VALUES ({','.join('?' * len(COLUMNS))})",
                    [row[name] for name in COLUMNS],
                )
                if new:
                    seq = self._database.rows("SELECT seq FROM images WHERE id = ?", [row["id"]])[0]["seq"]
                    self._database.execute("INSERT INTO images_text(rowid, prompt) VALUES (?, ?)", [seq, row["prompt"]])

    def get(self, image_id: str) -> dict[str, object] | None:
        found = self._database.rows("SELECT * FROM images WHERE id = ?", [image_id])
        return dict(found[0]) if found else None

    def page(
        self, *, before: int | None = None, limit: int = 50, owner: str | None = None, **filters: Unpack[Filter]
    ) -> list[dict[str, object]]:
        """Return the newest pictures older than `before` (a `seq`), by keyset, so that a deep page costs what the first does."""
        if owner == "":
            return []  # whoever has no name has no list
        wanted: list[tuple[str, object]] = [("trashed = ?", int(filters.get("trashed", False)))]
        if before is not None:
            wanted.append(("seq < ?", before))
        if filters.get("starred"):
            wanted.append(("starred = ?", 1))
        if model := filters.get("model"):
            wanted.append(("model = ?", model))
        if owner is not None:
            wanted.append(("owner = ?", owner))
        if day := filters.get("day"):
            wanted.append(("day = ?", day))
        source = "images"
        if match := match_expression(filters.get("words", "")):
            source = "images_text JOIN images ON images.seq = images_text.rowid"
            wanted.append(("images_text MATCH ?", match))
            wanted = [(sql.replace("seq <", "images_text.rowid <"), value) for sql, value in wanted]
        order = "images_text.rowid" if match else "seq"
        sql = f"SELECT images.* FROM {source} WHERE {' AND '.join(sql for sql, _ in wanted)} ORDER BY {order} DESC LIMIT ?"
        return [dict(row) for row in self._database.rows(sql, [*(value for _, value in wanted), limit])]

    def update(self, image_id: str, **values: object) -> bool:
        """Set columns of one picture; return whether it exists."""
        names = ", ".join(f"{name} = ?" for name in values)
        return self._database.execute(f"UPDATE images SET {names} WHERE id = ?", [*values.values(), image_id]) > 0

    def remove(self, image_id: str) -> None:
        with self._database.transaction():
            self._database.execute(
                "DELETE FROM images_text WHERE rowid = (SELECT seq FROM images WHERE id = ?)", [image_id]
            )
            self._database.execute("DELETE FROM images WHERE id = ?", [image_id])

    def clear(self) -> None:
        with self._database.transaction():
            self._database.execute("DELETE FROM images_text")
            self._database.execute("DELETE FROM images")

    def ids(self) -> set[str]:
        return {row["id"] for row in self._database.rows("SELECT id FROM images")}

    def places(self) -> dict[str, str]:
        """Return id -> path of every picture."""
        return {row["id"]: row["path"] for row in self._database.rows("SELECT id, path FROM images")}

    def choices(self) -> dict[str, list[str]]:
        """Return the models and days that occur, for the filters."""
        models = self._database.rows("SELECT DISTINCT model FROM images ORDER BY model")
        days = self._database.rows("SELECT DISTINCT day FROM images ORDER BY day DESC LIMIT 400")
        return {"models": [row[0] for row in models], "days": [row[0] for row in days]}

    def usage(self) -> dict[str, int]:
        """Return counts and bytes: {"images", "bytes", "trashed", "trashed_bytes"}."""
        total = {
            row["trashed"]: (row["n"], row["b"] or 0)
            for row in self._database.rows("SELECT trashed, COUNT(*) n, SUM(bytes) b FROM images GROUP BY trashed")
        }
        (n, b), (tn, tb) = total.get(0, (0, 0)), total.get(1, (0, 0))
        return {"images": n, "bytes": b, "trashed": tn, "trashed_bytes": tb}


def match_expression(words: str) -> str:
    """Turn what a person typed into an FTS5 query: every word must occur, the last may be the start of one."""
    parts = ["".join(ch if ch.isalnum() else " " for ch in word).split() for word in words.split()]
    terms = [f'"{part}"' for group in parts for part in group]
    return " ".join(terms) + "*" if terms else ""
