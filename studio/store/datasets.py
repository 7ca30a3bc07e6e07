"""Training pictures on disk: a folder with captions, as kohya, diffusers and everybody's tools lay them out. No torch.

Known layouts, which may be mixed: pictures with captions beside them (`.txt`, `.caption`); `metadata.jsonl` with `file_name` and
`text`; kohya's sub-folders `N_words`, each shown N times. A mask (white counts) is `NAME-masklabel.png`, what a ControlNet follows
lies under the same name in `conditioning/` or is named in `metadata.jsonl` as `conditioning_image`. A crop by hand and pictures that
are left out: `NAME.edit.json`, see `edits`.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from studio.errors import InvalidRequest, shown
from studio.store.blobs import Refused, decode, read_file
from studio.store.edits import Crop, crop_box, read_edit
from studio.store.folders import natural

PICTURES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".avif", ".heic", ".heif", ".bmp", ".tif", ".tiff", ".gif")
)
CAPTIONS = (".txt", ".caption")
MASK_END = "-masklabel"
CONDITIONING = "conditioning"
CAPTION_MAX = 20_000  # characters
EXAMPLES_MAX = 1_000_000
REPEATED = re.compile(r"(\d{1,5})_(.*)")


@dataclass(frozen=True)
class Example:
    """One training picture.

    Attributes:
        path: of the picture.
        caption: what stands beside it; None if nothing does.
        words: kohya's: what its folder's name says, `sks dog` of `10_sks dog`.
        repeats: how often an epoch shows it.
        mask: picture whose white parts count; None if all of it does.
        conditioning: what a ControlNet sees; None if there is none.
        size: (width, height) of what is shown: upright, and cropped.
        sha256: of the file's content.
        crop: part of the upright picture that is shown; None is all of it. It cuts mask and conditioning alike.
    """

    path: Path
    caption: str | None
    words: str
    repeats: int
    mask: Path | None
    conditioning: Path | None
    size: tuple[int, int]
    sha256: str
    crop: Crop | None = None


@dataclass(frozen=True)
class Dataset:
    """A folder that was read: what can be used, and one sentence about each thing that cannot or is doubtful."""

    folder: Path
    examples: tuple[Example, ...]
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_dataset(name: str, root: Path) -> Path:
    """Return the folder of a dataset: one of `root` by its name, or any folder by its path.

    Raises:
        InvalidRequest: if there is none.
    """
    for path in (root / name, Path(name).expanduser()):
        if name and path.is_dir():
            return path.resolve()
    raise InvalidRequest("dataset", f"dataset={name!r} is no folder here and none in {root}; give a folder of pictures")


def read_dataset(folder: Path) -> Dataset:
    """Read a folder; every picture is decoded once, so that none can stop a run hours later.

    Raises:
        InvalidRequest: if no picture can be used; the sentence names the first reason.
    """
    told = read_metadata(folder / "metadata.jsonl")
    examples: list[Example] = []
    refused: list[str] = list(told.problems)
    warnings: list[str] = []
    left_out = 0
    for path, repeats, words in list_pictures(folder):
        name = path.relative_to(folder).as_posix()
        try:
            if read_edit(path).left_out:
                left_out += 1
                continue
            examples.append(_example(folder, path, repeats, words, told, warnings))
        except Refused as refusal:
            refused.append(f"{name} {refusal}")
    refused += [
        f"metadata.jsonl names {name}, which is not there; add it, or take its line out"
        for name in told.missing(folder)
    ]
    if not examples:
        reason = f"; {refused[0]}" if refused else f"; put pictures into it ({', '.join(sorted(PICTURES))})"
        if left_out and not refused:
            reason = f"; all {left_out} are left out, put some back"
        raise InvalidRequest("dataset", f"dataset={str(folder)!r} has no picture that can be used{reason}")
    seen: dict[str, str] = {}
    for example in examples:
        name = example.path.relative_to(folder).as_posix()
        if example.sha256 in seen:
            warnings.append(f"{name} has the same content as {seen[example.sha256]}; it counts twice")
        seen.setdefault(example.sha256, name)
    return Dataset(folder, tuple(examples), tuple(refused), tuple(warnings))


class Metadata:
    """What `metadata.jsonl` says: file name -> (caption, conditioning picture)."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str | None, str | None]] = {}
        self.problems: list[str] = []

    def missing(self, folder: Path) -> list[str]:
        return [name for name in self.rows if not (folder / name).is_file()]


def read_metadata(path: Path) -> Metadata:
    """Read `metadata.jsonl`; nothing is told if there is none."""
    told = Metadata()
    if not path.is_file():
        return told
    for number, line in enumerate(read_text(path)[0].splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file_name"]
            text, image = row.get("text"), row.get("conditioning_image")
            if not isinstance(name, str) or not isinstance(text, str | None) or not isinstance(image, str | None):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            told.problems.append(f"metadata.jsonl line {number} must be a JSON object with file_name and text")
            continue
        told.rows[name] = text, image
    return told


def list_pictures(folder: Path) -> list[tuple[Path, int, str]]:
    """List (picture, repeats, kohya's words), in an order that does not depend on the disk."""
    found: list[tuple[Path, int, str]] = []
    folders = [(folder, 1, "")]
    for sub in sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.name != CONDITIONING),
        key=lambda p: natural(p.name),
    ):
        match = REPEATED.fullmatch(sub.name)
        folders.append((sub, int(match[1]) if match else 1, match[2].replace("_", " ").strip() if match else ""))
    for place, repeats, words in folders:
        if repeats == 0:  # kohya's way to switch a folder off
            continue
        files = [path for path in place.iterdir() if path.suffix.lower() in PICTURES]
        found += [
            (path, repeats, words)
            for path in sorted(files, key=lambda p: natural(p.name))
            if not path.name.startswith(".") and not path.stem.endswith(MASK_END)
        ]
    if len(found) > EXAMPLES_MAX:
        raise InvalidRequest("dataset", f"dataset has {len(found):,} pictures; at most {EXAMPLES_MAX:,} are read")
    return found


def _example(folder: Path, path: Path, repeats: int, words: str, told: Metadata, warnings: list[str]) -> Example:
    name = path.relative_to(folder).as_posix()
    _check_inside(folder, path)
    data = read_file(path)
    size, crop = decode(data).size, read_edit(path).crop
    if crop:
        left, top, right, bottom = crop_box(crop, size)
        size = right - left, bottom - top
    caption, image = told.rows.get(name, (None, None))
    text_file = caption_file(path)
    if text_file is not None:
        _check_inside(folder, text_file)
        caption, odd = read_text(text_file)
        caption = " ".join(caption.split())
        if odd:
            warnings.append(
                f"{text_file.name} is not UTF-8; it was read as {odd}, see whether {shown(caption, 40)} is right"
            )
        if not caption:
            warnings.append(f"{text_file.name} is empty")
    if caption is not None and len(caption) > CAPTION_MAX:
        raise Refused(f"has a caption of {len(caption):,} characters; at most {CAPTION_MAX:,} are read")
    mask = mask_file(path)
    other = folder / image if image else folder / CONDITIONING / path.name
    for extra in (mask, other):
        if extra.is_file():
            _check_inside(folder, extra)
            beside_size = decode(read_file(extra)).size
            if crop:
                crop_box(crop, beside_size)
    if image and not other.is_file():
        raise Refused(
            f"has the conditioning_image {image}, which is not there; add it, or take it out of metadata.jsonl"
        )
    return Example(
        path,
        caption,
        words,
        repeats,
        mask if mask.is_file() else None,
        other if other.is_file() else None,
        size,
        hashlib.sha256(data).hexdigest(),
        crop,
    )


def mask_file(picture: Path) -> Path:
    """Return where the mask of a picture lies."""
    return picture.with_name(f"{picture.stem}{MASK_END}.png")


def caption_file(picture: Path) -> Path | None:
    """Return the caption that stands beside a picture; None if there is none."""
    return next((path for end in CAPTIONS if (path := picture.with_suffix(end)).is_file()), None)


def _check_inside(folder: Path, path: Path) -> None:
    """Refuse links that lead out of a dataset: what a stranger packed must not show other files."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Refused("is a link to a place outside of the folder; copy the file itself")


def read_text(path: Path) -> tuple[str, str]:
    """Read a caption of any usual encoding.

    Returns:
        The text, and the name of its encoding if that had to be guessed, else "".

    Raises:
        Refused: if it is no text.
    """
    return decode_text(read_file(path), path.name)


def decode_text(data: bytes, name: str) -> tuple[str, str]:
    """Decode a caption of any usual encoding, see `read_text`; `name` is for the message."""
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig")):
        if data.startswith(mark):
            try:
                text, guessed = data.decode(encoding), ""
                break
            except UnicodeDecodeError:
                continue
    else:
        text, guessed = data.decode("cp1252", errors="replace"), "Windows-1252"
    if "\0" in text:
        raise Refused(f"has a caption file, {name}, that is no text; save it as UTF-8")
    return text, guessed
