"""A first look at a folder of training pictures: how many, and how many have words. Nothing is decoded. No torch."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from studio.store.datasets import CAPTIONS, CONDITIONING, MASK_END, PICTURES

_WORDS = re.compile(r"[1-9]\d{0,4}_(.*\S.*)")
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Glance:
    """What a folder holds: pictures, and how many of them have a caption of their own."""

    pictures: int
    captions: int


def glance(folder: Path) -> Glance:
    """Count the pictures of a folder and of those in it, as `store.datasets` finds them."""
    told = _told(folder / METADATA)
    pictures = captions = 0
    for place in (folder, *(one for one in folder.iterdir() if one.is_dir() and one.name != CONDITIONING)):
        if place.name.startswith((".", "0_")) and place != folder:
            continue
        said = place != folder and bool(_WORDS.fullmatch(place.name))
        for path in place.iterdir():
            if path.suffix.lower() not in PICTURES or path.name.startswith(".") or path.stem.endswith(MASK_END):
                continue
            pictures += 1
            name = path.relative_to(folder).as_posix()
            captions += said or name in told or any(path.with_suffix(end).is_file() for end in CAPTIONS)
    return Glance(pictures, captions)


def _told(path: Path) -> set[str]:
    """Return the pictures of which a list says the words; what is wrong in it is told when it is read in earnest."""
    names: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError):
        return names
    return {str(row.get("file_name")) for row in rows if isinstance(row, dict) and row.get("text") is not None}
