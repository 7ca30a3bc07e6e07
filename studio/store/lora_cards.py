"""What lies beside a LoRA's file: a cover picture and a person's notes, as A1111 keeps them (`name.png`, `name.json`)."""

import json
import math
from pathlib import Path
from typing import Any

from studio.errors import InvalidRequest, StudioError
from studio.loras import WEIGHT_MAX
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
WORDS_MAX = 500  # characters of the words that call it
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
    """Keep a person's notes on a LoRA in its sidecar, see `write_card`."""
    write_card(path, check_card({"notes": notes}) | {"notes": notes})


def check_card(card: dict[str, Any]) -> dict[str, Any]:
    """Return what a sidecar says, by A1111's names, of a person's `words`, `weight` and `notes`; what is not told is left out.

    Raises:
        InvalidRequest: naming what is too long, or no weight.
    """
    words, notes = str(card.get("words") or "").strip(), str(card.get("notes") or "")
    if len(notes) > NOTES_MAX:
        raise InvalidRequest("notes", f"the notes have {len(notes):,} characters; at most {NOTES_MAX:,} are kept")
    if len(words) > WORDS_MAX:
        raise InvalidRequest("words", f"the trigger words have {len(words):,} characters; at most {WORDS_MAX} are kept")
    told: dict[str, Any] = {"activation text": words} if words else {}
    if card.get("weight") not in (None, ""):
        weight = card["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InvalidRequest("weight", f"weight={str(weight)[:40]!r} must be a number, such as 0.8")
        if abs(weight) > WEIGHT_MAX:
            raise InvalidRequest("weight", f"weight={weight:g} must be from {-WEIGHT_MAX:g} to {WEIGHT_MAX:g}")
        told["preferred weight"] = weight
    return told | ({"notes": notes} if notes else {})


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Change what a LoRA's sidecar says; whatever else that holds stays.

    Args:
        path: of the LoRA.
        card: by A1111's names, see `check_card`.

    Raises:
        StudioError: if the LoRA came with Studio or belongs to a run, or the sidecar cannot be understood.
    """
    _check_own(path)
    sidecar = path.with_suffix(".json")
    told = read_card(path)
    if sidecar.exists() and not told and sidecar.read_bytes().strip() not in (b"{}", b""):
        raise StudioError(
            f"{sidecar.name} cannot be read as a table, so the notes are not written into it; move it away"
        )
    _written(sidecar, (json.dumps(told | card, indent=1, ensure_ascii=False) + "\n").encode())


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
    if any((folder / writer.MANIFEST).is_file() for folder in (path.parent, path.parent.parent)):
        raise StudioError(
            f"{path.stem} belongs to a training run and stays as it was written; keep it as a LoRA in Runs first"
        )
