"""What is known of a dataset's pictures without decoding them: cheap enough to ask at every change."""

from dataclasses import dataclass
from pathlib import Path

from studio.store.blobs import Refused
from studio.store.datasets import caption_file, list_pictures, mask_file, read_metadata, read_text
from studio.store.edits import Edit, crop_box, read_edit
from studio.store.thumbnails import upright_size


@dataclass(frozen=True)
class Picture:
    """What is shown of a picture of a dataset.

    Attributes:
        name: its path relative to the dataset's folder, with `/`.
        caption: what stands beside it, or in `metadata.jsonl`; None if nothing does.
        edit: crop and whether it is left out.
        has_mask: whether a part of it counts.
        size: (width, height), upright and not cropped; None if it cannot be read.
        problem: why it cannot be used; "" if it seems usable (its pixels are decoded when training begins).
        repeats: how often an epoch shows it.
        words: kohya's: what its folder's name says.
        stamp: changes with the file.
    """

    name: str
    caption: str | None
    edit: Edit
    has_mask: bool
    size: tuple[int, int] | None
    problem: str = ""
    repeats: int = 1
    words: str = ""
    stamp: str = ""


class Pictures:
    """Lists pictures; sizes are remembered until a file changes."""

    def __init__(self) -> None:
        self._sizes: dict[Path, tuple[str, tuple[int, int] | None, str]] = {}

    def read(self, folder: Path) -> list[Picture]:
        """Return the pictures of a dataset's folder, those that are left out too."""
        told = read_metadata(folder / "metadata.jsonl").rows
        found = []
        for path, repeats, words in list_pictures(folder):
            name, edit = path.relative_to(folder).as_posix(), Edit()
            stamp, size, problem = self._size(folder, path)
            caption = told.get(name, (None, None))[0]
            try:
                if text_file := caption_file(path):
                    caption = " ".join(read_text(text_file)[0].split())
                edit = read_edit(path)
                if edit.crop and size:
                    crop_box(edit.crop, size)
            except Refused as refusal:
                edit, problem = Edit(left_out=edit.left_out), problem or str(refusal)
            has_mask = mask_file(path).is_file()
            found.append(Picture(name, caption, edit, has_mask, size, problem, repeats, words, stamp))
        return found

    def _size(self, folder: Path, path: Path) -> tuple[str, tuple[int, int] | None, str]:
        """Return what changes with a file, its (width, height), and why it cannot be used."""
        try:
            facts = path.stat()
            stamp = f"{facts.st_mtime_ns:x}-{facts.st_size:x}"
        except OSError as error:
            return "", None, f"cannot be read ({error.strerror or error}); remove it"
        if self._sizes.get(path, ("",))[0] != stamp:
            try:
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise Refused("is a link to a place outside of the folder; copy the file itself")
                self._sizes[path] = stamp, upright_size(path), ""
            except Refused as refusal:
                self._sizes[path] = stamp, None, str(refusal)
        return self._sizes[path]
