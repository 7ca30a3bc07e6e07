"""Takes files into a dataset: each judged by its content, copied once without what tells of a person; what is not taken is told."""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from studio.errors import InvalidRequest, shown
from studio.findings import named
from studio.store import writer
from studio.store.archives import is_zip, read_zip
from studio.store.blobs import MAX_BYTES, Refused, decode, read_file
from studio.store.datasets import (
    CAPTION_MAX,
    CAPTIONS,
    CONDITIONING,
    caption_file,
    decode_text,
    list_pictures,
    mask_file,
)
from studio.store.edits import edit_bytes, edit_file, parse_edit
from studio.store.gallery import storage_error
from studio.store.intake import Brought, Reader, files_under, safe_name, safe_stem, sort_out
from studio.store.private import stripped
from studio.store.thumbnails import SIDES, save_thumbnail, thumbnail_file

PICTURES_MAX = 2_000  # at once


@dataclass
class Added:
    """What became of files that were brought.

    Attributes:
        pictures: names of the new ones.
        captions: how many captions came with them, or for pictures that were there.
        refused: a sentence for each file that was not taken.
        notes: a sentence for each thing that is doubtful.
        cleaned: names of pictures whose copies do not say any more what the files said of a person.
    """

    pictures: list[str] = field(default_factory=list)
    captions: int = 0
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cleaned: list[str] = field(default_factory=list)


def add_files(folder: Path, cache: Path, files: Iterable[tuple[str, Path]]) -> Added:
    """Take pictures, captions and masks named like them, and zips of these; see `Datasets.add`."""
    added = Added()
    loose: dict[str, Reader] = {}
    for told, path in files:
        if path.is_file() and is_zip(path):
            _add_zip(folder, cache, told, path, added)
        else:
            loose[told] = _reader(path)
    _add_all(folder, cache, loose, added)
    return _told(added)


def add_folder(folder: Path, cache: Path, source: Path) -> Added:
    """Copy what a folder of this computer holds; see `Datasets.add_folder`."""
    try:
        if not source.is_dir():
            raise InvalidRequest("folder", f"folder={shown(str(source))} is no folder on this computer; give its path")
        files = files_under(source)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidRequest("folder", f"folder={shown(str(source))} cannot be read ({why})") from None
    added = Added()
    _add_all(folder, cache, {told: _reader(path) for told, path in files.items()}, added)
    return _told(added)


def _told(added: Added) -> Added:
    if added.cleaned:
        whose = (
            f"the copy of {added.cleaned[0]}" if len(added.cleaned) == 1 else f"the copies of {named(added.cleaned)}"
        )
        added.notes.append(
            f"what the file says of a person (place, time, camera) was left out of {whose}; your own files stay as they are"
        )
    return added


def _reader(path: Path) -> Reader:
    return lambda: read_file(path)


def _add_zip(folder: Path, cache: Path, told: str, path: Path, added: Added) -> None:
    try:
        archive, members = read_zip(path)
    except Refused as refusal:
        added.refused.append(f"{told} {refusal}")
        return
    with archive:
        _add_all(folder, cache, members, added)


def _add_all(folder: Path, cache: Path, files: Mapping[str, Reader], added: Added) -> None:
    found = sort_out(files)
    added.refused += found.refused
    if len(found.pictures) > PICTURES_MAX:
        added.refused.append(
            f"{len(found.pictures):,} pictures are too many at once; at most {PICTURES_MAX:,} are taken, bring fewer"
        )
        return
    here = Here(folder)
    for brought in found.pictures:
        try:
            added.pictures.append(_add_picture(folder, cache, brought, here, added))
        except Refused as refusal:
            added.refused.append(f"{brought.name} {refusal}")
        except OSError as error:
            raise storage_error(error, brought.name) from error
    for told, reader in found.captions.items():
        _add_caption(folder, told, reader, added)


class Here:
    """What a dataset holds while files are added: pictures by their number of bytes, of which only equals are compared, and stems.

    Args:
        folder: of the dataset.
    """

    def __init__(self, folder: Path) -> None:
        self.sizes: dict[int, list[Path]] = {}
        self._stems: dict[Path, set[str]] = {}
        for path, _, _ in list_pictures(folder):
            if path.is_file():
                self.sizes.setdefault(path.stat().st_size, []).append(path)

    def stems(self, folder: Path) -> set[str]:
        """Return the stems that are taken in a folder, in lower case: no two pictures share a caption."""
        if folder not in self._stems:
            names = folder.iterdir() if folder.is_dir() else ()
            self._stems[folder] = {path.stem.casefold() for path in names}
        return self._stems[folder]


def _add_picture(folder: Path, cache: Path, brought: Brought, here: Here, added: Added) -> str:
    given = brought.read()
    image = decode(given)
    data = stripped(given, image)
    digest = hashlib.sha256(data).hexdigest()
    for path in here.sizes.get(len(data), ()):
        if writer.file_sha256(path) == digest:
            _keep_words(path, brought, added)
            raise Refused(
                f"is the same picture as {path.relative_to(folder).as_posix()}, which is here; not added twice"
            )
    if data is not given:
        added.cleaned.append(brought.name)
    extras = _extras(brought, added)
    target = _written_new(folder / brought.folder, safe_name(brought.name, data), data, here)
    here.sizes.setdefault(len(data), []).append(target)
    for place, content in extras:
        writer.write_file(place(target, folder), content)
    added.captions += brought.caption is not None
    save_thumbnail(image, SIDES[0], thumbnail_file(target, SIDES[0], cache))
    return target.relative_to(folder).as_posix()


def _keep_words(path: Path, brought: Brought, added: Added) -> None:
    """Take the caption that came with a picture that is here, if that has none."""
    if brought.caption is not None and caption_file(path) is None:
        writer.write_file(path.with_suffix(CAPTIONS[0]), _caption_bytes(brought.caption(), brought.name, added))
        added.captions += 1


Place = Callable[[Path, Path], Path]  # (picture, dataset's folder) -> file


def _extras(brought: Brought, added: Added) -> list[tuple[Place, bytes]]:
    """Judge what belongs to a picture before that is written; return where each goes and its content."""
    found: list[tuple[Place, bytes]] = []
    if brought.caption is not None:
        text = _caption_bytes(brought.caption(), brought.name, added)
        found.append((lambda picture, _: picture.with_suffix(CAPTIONS[0]), text))
    if brought.mask is not None:
        found.append((lambda picture, _: mask_file(picture), _as_png(brought.mask(), "mask")))
    if brought.conditioning is not None:
        data = brought.conditioning()
        data = stripped(data, _part(data, "control picture"))
        found.append((lambda picture, folder: folder / CONDITIONING / picture.name, data))
    if brought.edit is not None:
        try:
            edit = parse_edit(brought.edit())
        except ValueError as error:
            raise Refused(f"was not added, because its edit cannot be read: {error}") from None
        found.append((lambda picture, _: edit_file(picture), edit_bytes(edit)))
    return found


def _part(data: bytes, what: str) -> Image.Image:
    try:
        return decode(data)
    except Refused as refusal:
        raise Refused(f"was not added, because its {what} {refusal}") from None


def _as_png(data: bytes, what: str) -> bytes:
    """Return a picture as PNG, as its name will say."""
    image = _part(data, what)
    if data.startswith(b"\x89PNG"):
        return stripped(data, image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _caption_bytes(data: bytes, name: str, added: Added) -> bytes:
    """Return a caption as UTF-8 in one line; what had to be guessed is noted."""
    text, odd = decode_text(data, f"the one of {name}")
    text = " ".join(text.split())
    if len(text) > CAPTION_MAX or len(data) > MAX_BYTES:
        raise Refused(
            f"was not added, because its caption has {len(text):,} characters; at most {CAPTION_MAX:,} are read"
        )
    if odd:
        added.notes.append(
            f"the caption of {name} was not UTF-8; it was read as {odd}, see whether {shown(text, 40)} is right"
        )
    return text.encode()


def _written_new(folder: Path, name: str, data: bytes, here: Here) -> Path:
    """Write a file under a name whose stem no other picture has, so that no two share a caption."""
    stem, _, ending = name.rpartition(".")
    taken, number = here.stems(folder), 1
    while True:
        fresh = stem if number == 1 else f"{stem}-{number}"
        number += 1
        if fresh.casefold() in taken:
            continue
        taken.add(fresh.casefold())
        with contextlib.suppress(FileExistsError):  # another process was faster
            writer.write_file(folder / f"{fresh}.{ending}", data, replace=False)
            return folder / f"{fresh}.{ending}"


def _add_caption(folder: Path, told: str, reader: Reader, added: Added) -> None:
    """Take a caption that came alone: for the picture of its name that is here, if that has none."""
    stem = safe_stem(Path(told).stem)
    found = [path for path, _, _ in list_pictures(folder) if path.stem == stem]
    if len(found) != 1:
        added.refused.append(f"{told} has no picture of its name here; bring both together")
        return
    if caption_file(found[0]) is not None:
        added.refused.append(f"{told} was not taken, because {found[0].name} has a caption already")
        return
    try:
        text = _caption_bytes(reader(), found[0].name, added)
        writer.write_file(found[0].with_suffix(CAPTIONS[0]), text)
    except Refused as refusal:
        added.refused.append(f"{told} {refusal}")
    except OSError as error:
        raise storage_error(error, told) from error
    else:
        added.captions += 1
