"""What a person brings to a dataset: pictures, and which caption, mask, control picture and edit belongs to each."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from studio.store.archives import CLUTTER
from studio.store.blobs import Refused, kind_of
from studio.store.datasets import CAPTIONS, CONDITIONING, MASK_END, REPEATED, decode_text
from studio.store.edits import EDIT_END
from studio.store.folders import natural

Reader = Callable[[], bytes]

NAME_MAX = 80
METADATA = "metadata.jsonl"
ENDINGS = {  # what a file of a kind may be called; the first is given to one that is called otherwise
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif"),
}
RESERVED = re.compile(
    r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE
)  # names that Windows keeps to itself


@dataclass
class Brought:
    """One picture, and what reads that which belongs to it; None where there is nothing.

    Attributes:
        name: as the person knows it.
        folder: of the dataset in which it goes: "", or kohya's `N_words`.
    """

    name: str
    folder: str
    read: Reader
    caption: Reader | None = None
    mask: Reader | None = None
    conditioning: Reader | None = None
    edit: Reader | None = None


@dataclass
class Sorted:
    """What was brought, in order: pictures, captions that came alone, and a sentence for each thing that is neither."""

    pictures: list[Brought] = field(default_factory=list)
    captions: dict[str, Reader] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def sort_out(files: Mapping[str, Reader]) -> Sorted:
    """Put together what belongs together.

    Args:
        files: by their names, with `/` between folders. A folder around everything is passed over; kohya's `N_words` and
            `conditioning` are kept; of any other folder only the files count.
    """
    files = {name: files[name] for name in _in_order(files) if not CLUTTER.search(name)}
    around = _around(files)
    inner = {name[len(around) :]: name for name in files}
    beside = {_key(short): name for short, name in inner.items() if _is_beside(short)}
    found = Sorted()
    told = _metadata(files, inner, found)
    used: set[str] = set()

    def take(key: str) -> Reader | None:
        if key not in beside:
            return None
        used.add(beside[key])
        return files[beside[key]]

    for short, name in inner.items():
        path = PurePosixPath(short)
        if _is_beside(short) or path.name == METADATA or path.parent.name == CONDITIONING:
            continue
        stem = path.with_suffix("").as_posix()
        row = told.get(short, {})
        caption = next((reader for end in CAPTIONS if (reader := take(_key(stem + end)))), None)
        if caption is None and "text" in row:
            caption = _saying(row["text"])
        control = row.get("conditioning_image") or f"{CONDITIONING}/{path.name}"
        found.pictures.append(
            Brought(
                path.name,
                path.parent.name if REPEATED.fullmatch(path.parent.name) else "",
                files[name],
                caption,
                take(_key(f"{stem}{MASK_END}.png")),
                files.get(around + control),
                take(_key(stem + EDIT_END)),
            )
        )
    for name in beside.values():
        if name not in used and PurePosixPath(name).suffix.lower() in CAPTIONS:
            found.captions[PurePosixPath(name).name] = files[name]
        elif name not in used:
            found.refused.append(f"{PurePosixPath(name).name} belongs to a picture that is not among these files")
    return found


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=natural)


def _key(name: str) -> str:
    return name.casefold()


def _is_beside(name: str) -> bool:
    path = PurePosixPath(name)
    is_mask = path.stem.endswith(MASK_END)
    return path.suffix.lower() in CAPTIONS or path.name.lower().endswith(EDIT_END) or is_mask


def _around(names: Iterable[str]) -> str:
    """Return the folders that stand around everything, `photos/` of `photos/a.png`."""
    names, around = list(names), ""
    while names:
        first, slash, _ = names[0].partition("/")
        if not slash or REPEATED.fullmatch(first) or first == CONDITIONING:
            break
        if not all(name.startswith(f"{first}/") for name in names):
            break
        around += f"{first}/"
        names = [name[len(first) + 1 :] for name in names]
    return around


def _metadata(files: Mapping[str, Reader], inner: Mapping[str, str], found: Sorted) -> dict[str, dict[str, str]]:
    """Return what `metadata.jsonl` says of each file."""
    if METADATA not in inner:
        return {}
    rows: dict[str, dict[str, str]] = {}
    try:
        text = decode_text(files[inner[METADATA]](), METADATA)[0]
    except Refused as refusal:
        found.refused.append(f"{METADATA} {refusal}")
        return {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[row["file_name"]] = {
                key: row[key] for key in ("text", "conditioning_image") if isinstance(row.get(key), str)
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            found.refused.append(f"{METADATA} line {number} must be a JSON object with file_name and text")
    return rows


def _saying(text: str) -> Reader:
    return text.encode


def safe_name(name: str, data: bytes) -> str:
    """Return a name for a picture's file that every system can have, with the ending of what it is.

    Raises:
        Refused: if it is no picture.
    """
    endings = ENDINGS[kind_of(data)]
    path = PurePosixPath(name.replace("\\", "/").rpartition("/")[2])
    ending = path.suffix.lower() if path.suffix.lower() in endings else endings[0]
    return safe_stem(path.stem if path.suffix.lower() in ALL_ENDINGS else path.name) + ending


ALL_ENDINGS = frozenset(end for ends in ENDINGS.values() for end in ends) | {".gif"}


def safe_stem(stem: str) -> str:
    """Return a name without its ending: letters, digits, spaces and `_-.()+,`, not longer than 80 characters."""
    plain = unicodedata.normalize("NFC", stem)
    plain = "".join(one if one.isalnum() or one in " _-.()+," else "_" for one in plain)[:NAME_MAX].strip(" .")
    while plain.endswith(MASK_END):
        plain = plain.removesuffix(MASK_END).strip(" .")
    if RESERVED.fullmatch(plain):
        plain = f"_{plain}"
    return plain or "picture"


def files_under(folder: Path) -> dict[str, Path]:
    """List the files of a folder and its folders, two deep, by their names with `/`; links are passed over."""
    found: dict[str, Path] = {}
    for place in [folder, *(path for path in folder.glob("*") if path.is_dir() and not path.is_symlink())]:
        for path in place.iterdir():
            if path.is_file() and not path.is_symlink():
                found[path.relative_to(folder).as_posix()] = path
    return found
