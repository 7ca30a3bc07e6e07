"""Folders of pictures that a person has."""

import re
from pathlib import Path

from studio.errors import InvalidRequest

NAME_MAX = 80


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder in the order of their names, `2.png` before `10.png`; hidden ones are left out.

    Raises:
        InvalidRequest: if there is no such folder, or nothing in it.
    """
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise InvalidRequest(
            "images", f"images={str(folder)!r} cannot be read as a folder ({error.strerror})"
        ) from None
    if not files:
        raise InvalidRequest("images", f"images={str(folder)!r} has no files; give a folder with pictures")
    return sorted(files, key=lambda path: (natural(path.name), path.name))


def with_neighbours(roots: tuple[Path, ...]) -> list[Path]:
    """Return folders of models, and beside each that is called `models` the one above it, where A1111 keeps embeddings and styles."""
    return [place for root in roots for place in ((root, root.parent) if root.name == "models" else (root,))]


def natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names as people do: digits count as numbers."""
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", name.casefold())
    return [(int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts]


def short_stem(path: Path) -> str:
    """Return a file's name without its ending, short enough to begin another file's name."""
    return path.stem[:NAME_MAX]
