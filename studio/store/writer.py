"""The one place that writes: a file, a directory, an appended line. Either the whole thing is there afterwards, or nothing is.

Order of every commit: write to a fresh `.part-…` name, fsync it, move it to its name, fsync the folder. Success is told only then.
Everything goes through `os`, so that a test can fail the n-th call for every n.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

PART = ".part-"
MANIFEST = "manifest.json"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)


def write_file(path: Path, data: bytes, *, replace: bool = True, mode: int = 0o644) -> None:
    """Write a file so that a crash leaves the old content or the new one; see `write_stream`."""
    write_stream(path, (data,), replace=replace, mode=mode)


def write_stream(path: Path, chunks: Iterable[bytes | memoryview], *, replace: bool = True, mode: int = 0o644) -> None:
    """Write a file that need not fit into memory so that a crash leaves the old content or the new one.

    Args:
        path: of the file; its folder is made.
        chunks: the content, from the beginning to the end.
        replace: if False, an existing file is an error and is kept.
        mode: who may read it, from the first byte on.

    Raises:
        FileExistsError: if the file exists and `replace` is False.
        OSError: if anything failed; nothing of this call is left then, as after any error of `chunks`.
    """
    make_folder(path.parent)
    part = _part_name(path)
    try:
        _write_synced(part, chunks, mode)
        if replace:
            os.replace(part, path)
        else:
            _move_to_new(part, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _move_to_new(part: Path, path: Path) -> None:
    """Give a file its name unless the name is taken; without hard links (exFAT, many network disks) by reserving it first."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.replace(part, path)
    else:
        os.unlink(part)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, see `write_file`."""
    write_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a directory as a whole, with a manifest of every file's sha256.

    Args:
        path: must not exist yet.
        fill: writes the content into the folder that it is given.

    Raises:
        FileExistsError: if `path` exists.
        OSError: if anything failed; `path` does not exist then.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    make_folder(path.parent)
    part = _part_name(path)
    try:
        os.mkdir(part)
        fill(part)
        manifest = {name: file_sha256(part / name) for name in _files(part)}
        for name in manifest:
            _sync_file(part / name)
        _write_synced(part / MANIFEST, (json.dumps({"files": manifest}, indent=1).encode(),))
        for folder in [*(p for p in part.rglob("*") if p.is_dir()), part]:
            sync_folder(folder)
        os.rename(part, path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def verify_directory(path: Path) -> str | None:
    """Compare a directory with its manifest; return what is wrong, or None."""
    try:
        wanted = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} has no readable {MANIFEST}"
    found = set(_files(path)) - {MANIFEST}
    if found != set(wanted):
        return f"{path.name}: files differ from the manifest: {', '.join(sorted(found ^ set(wanted))[:3])}"
    return next((f"{path.name}/{name} is damaged" for name in wanted if file_sha256(path / name) != wanted[name]), None)


def append_line(path: Path, line: str) -> None:
    """Append one line and fsync; a torn last line of an earlier crash is closed first, so that this one stays whole."""
    make_folder(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        torn = False
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            torn = os.read(handle, 1) != b"\n"
        _write_all(handle, (b"\n" if torn else b"") + line.encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)


def move(source: Path, target: Path) -> None:
    """Rename a file into another folder of the same disk and make that durable."""
    make_folder(target.parent)
    os.replace(source, target)
    sync_folder(target.parent)
    sync_folder(source.parent)


def make_folder(path: Path) -> None:
    """Make a folder and its parents; each new name is synced into its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    sync_folder(path.parent)


def sweep(folder: Path) -> int:
    """Remove what writers that are dead left under a folder; return how many leftovers there were."""
    leftovers = [path for path in folder.rglob(f"{PART}*") if not psutil.pid_exists(_pid_of(path))]
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return len(leftovers)


def file_sha256(path: Path) -> str:
    """Return a file's sha256 as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pid_of(part: Path) -> int:
    digits = part.name.removeprefix(PART).split("-")[0]
    return int(digits) if digits.isdigit() else 0


def _part_name(path: Path) -> Path:
    return path.with_name(f"{PART}{os.getpid()}-{secrets.token_hex(4)}")


def _write_synced(path: Path, chunks: Iterable[bytes | memoryview], mode: int = 0o644) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        for chunk in chunks:
            _write_all(handle, chunk)
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> Iterator[str]:
    return (file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file())
