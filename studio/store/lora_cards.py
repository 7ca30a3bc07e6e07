"""What lies beside a LoRA's file: a cover picture and a person's notes, as A1111 keeps them (`name.png`, `name.json`)."""

import json
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.settings import ROOT
from studio.store import writer

COVERS = {
    ".preview.png": "image/png",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}
NOTES_MAX = 4_000
SIDECAR_MAX = 1_000_000


def cover_of(path: Path) -> tuple[Path, str] | None:
    """Return a LoRA's cover picture and its media type; None if it has none."""
    found = ((path.with_name(path.stem + end), kind) for end, kind in COVERS.items())
    return next(((cover, kind) for cover, kind in found if cover.is_file()), None)


def read_card(path: Path) -> dict[str, Any]:
    """Return what the sidecar of a LoRA says; {} if there is none, or it is damaged."""
    sidecar = path.with_suffix(".json")
    try:
        if not sidecar.is_file() or sidecar.stat().st_size > SIDECAR_MAX:
            return {}
        told = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def write_notes(path: Path, notes: str) -> None:
    """Keep a person's notes on a LoRA in its sidecar; whatever else that holds stays.

    Raises:
        StudioError: if they are too long, the LoRA came with Studio, or the sidecar cannot be understood.
    """
    if len(notes) > NOTES_MAX:
        raise StudioError(f"the notes have {len(notes):,} characters; at most {NOTES_MAX:,} are kept")
    _check_own(path)
    sidecar = path.with_suffix(".json")
    told = read_card(path)
    if sidecar.exists() and not told and sidecar.read_bytes().strip() not in (b"{}", b""):
        raise StudioError(
            f"{sidecar.name} cannot be read as a table, so the notes are not written into it; move it away"
        )
    _written(sidecar, (json.dumps(told | {"notes": notes}, indent=1, ensure_ascii=False) + "\n").encode())


def write_cover(path: Path, picture: bytes) -> None:
    """Make a PNG a LoRA's cover.

    Raises:
        StudioError: if the LoRA came with Studio, or nothing can be written beside it.
    """
    _check_own(path)
    _written(path.with_name(f"{path.stem}.preview.png"), picture)


def _written(path: Path, data: bytes) -> None:
    try:
        writer.write_file(path, data)
    except OSError as error:
        raise StudioError(f"{path} could not be written: {error.strerror or error}") from None


def _check_own(path: Path) -> None:
    if path.is_relative_to(ROOT / "presets"):
        raise StudioError(
            f"{path.stem} came with Studio and stays as it is; copy it into your own `loras` folder first"
        )
