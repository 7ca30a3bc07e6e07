"""Zips that a person gave: judged as a whole before anything is taken out of them, and read a member at a time."""

import re
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from studio.store.blobs import MAX_BYTES, Refused

ENTRIES_MAX = 8_000  # 2,000 pictures, each with a caption, a mask and a control picture
TOTAL_MAX = 4_000_000_000  # bytes, unpacked
RATIO_MAX = 100
RATIO_FROM = 1_000_000  # bytes; a short text may well be packed better than that
NESTED = re.compile(r"\.(zip|tar|tgz|gz|bz2|xz|zst|7z|rar)$", re.IGNORECASE)
CLUTTER = re.compile(
    r"(^|/)(__MACOSX/|\.(?!\.)|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE
)  # what systems leave in folders
ENCRYPTED, UTF8 = 0x1, 0x800  # flags of a member
CHUNK = 1 << 20
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def read_zip(path: Path) -> tuple[zipfile.ZipFile, dict[str, Callable[[], bytes]]]:
    """Open a zip; the caller closes it.

    Every member is unpacked once without being kept, so that what is wrong anywhere is known before a file is written.

    Returns:
        The archive, and for each file in it, but for what systems leave behind, what reads it.

    Raises:
        Refused: if it is damaged, locked, too large, or holds links, other archives or names that lead out of it.
    """
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE:
        raise Refused("is no zip that can be read, or is cut off; pack it again") from None
    try:
        members = _judged(archive)
        _count(archive, members)
    except DAMAGE as error:
        archive.close()
        raise Refused(f"is damaged or of a rare kind ({str(error)[:80]}); pack it again") from None
    except Refused:
        archive.close()
        raise
    return archive, {name: lambda info=info: archive.read(info) for name, info in members.items()}


def _judged(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Judge the table of contents."""
    entries = archive.infolist()
    if len(entries) > ENTRIES_MAX:
        raise Refused(f"has {len(entries):,} files; at most {ENTRIES_MAX:,} are taken at once, pack several zips")
    total = sum(info.file_size for info in entries)
    if total > TOTAL_MAX:
        raise Refused(f"unpacks to {total:,} bytes; at most {TOTAL_MAX:,} are taken at once, pack several zips")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in entries:
        name = name_of(info)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused(f"holds {name[:80]!r}, which is a link or a device; pack the files themselves")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\0" in name or re.match(r"[A-Za-z]:", name):
            raise Refused(f"holds the name {name[:80]!r}, which leads out of it; pack it again")
        if info.is_dir() or CLUTTER.search(name):
            continue
        if info.flag_bits & ENCRYPTED:
            raise Refused("is locked with a password; pack it without one")
        if NESTED.search(name):
            raise Refused(f"holds another archive, {name[:80]!r}; unpack that first")
        if info.file_size > MAX_BYTES:
            raise Refused(f"holds {name[:80]!r} with {info.file_size:,} bytes; a file may have {MAX_BYTES:,}")
        if info.file_size > max(RATIO_FROM, RATIO_MAX * info.compress_size):
            raise Refused(f"holds {name[:80]!r}, which unpacks to more than {RATIO_MAX} times its size; leave it out")
        if name in found:
            raise Refused(f"holds {name[:80]!r} twice; pack it again")
        found[name] = info
    return found


def _count(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
    """Unpack everything once: sizes in the table of contents may lie, and the checksums are compared."""
    total = 0
    for info in members.values():
        with archive.open(info) as file:
            while chunk := file.read(CHUNK):
                total += len(chunk)
                if total > TOTAL_MAX:
                    raise Refused(f"unpacks to more than {TOTAL_MAX:,} bytes; pack several zips")


def name_of(info: zipfile.ZipInfo) -> str:
    """Return a member's name; UTF-8 that is not marked as such, as macOS writes it, is understood."""
    name = info.filename.replace("\\", "/")
    if not info.flag_bits & UTF8:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            return name
    return name
