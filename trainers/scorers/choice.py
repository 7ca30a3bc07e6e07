"""Which scorer a run has: as its config says, or the best that is there."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from studio.errors import InvalidRequest
from trainers.scorers.encoders import KINDS, joined, kind_of
from trainers.scorers.pixels import Pixels
from trainers.scorers.scorer import Picture, Scorer
from trainers.scorers.shapes import Shapes, suits

logger = logging.getLogger(__name__)

FOLDER = "scorers"
SIDE_MIN = 64  # of pictures that the judge of shapes reads
NAMES: dict[str, type[Scorer]] = {"shapes": Shapes, "pixels": Pixels}


def scorer_folders(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the folders of encoders that a config's `scorer` means: for `automatic` all in `scorers/`, else one.

    Args:
        name: the field's value.
        roots: folders that hold `scorers`; of two with one name the first counts.

    Raises:
        InvalidRequest: if a name means nothing, or its folder holds no encoder.
    """
    if name == "none" or name in NAMES:
        return []
    there = {
        path.parent.name: path.parent for root in reversed(roots) for path in (root / FOLDER).glob("*/config.json")
    }
    if name == "automatic":
        return [there[one] for one in sorted(there) if _sound(there[one])]
    folder = there.get(name) or Path(name).expanduser()
    if not (folder / "config.json").is_file():
        known = ["automatic", "none", *NAMES, *sorted(there)]
        raise InvalidRequest("scorer", f"scorer={name!r} must be a folder with a CLIP or DINOv2, or {', '.join(known)}")
    kind_of(folder)
    return [folder]


def _sound(folder: Path) -> bool:
    try:
        return bool(kind_of(folder))
    except InvalidRequest as error:
        logger.warning("%s; it is left out", error)
        return False


def choose_scorer(
    name: str, folders: Sequence[Path], device: torch.device, pictures: Sequence[Picture], captions: Sequence[str]
) -> Scorer | None:
    """Return a run's scorer; None if it wants none.

    `automatic` is the judge of shapes where pictures and captions are of the demo model's world, else the encoders that are
    there, else `pixels`.
    """
    if name == "none":
        return None
    if name in NAMES:
        return NAMES[name]()
    readable = all(min(one.shape[:2]) >= SIDE_MIN for one in pictures)
    if name == "automatic" and readable and suits(pictures, captions):
        return Shapes()
    if not folders:
        return Pixels()
    return joined(folders, device)


def prompt_scorer(shapes: bool, roots: Sequence[Path], device: torch.device) -> Scorer | None:
    """Return what holds pictures against prompts outside of a run; None if nothing is there that could.

    Args:
        shapes: whether the pictures are of the demo model's world.
        roots: folders that hold `scorers`.
        device: for an encoder.
    """
    if shapes:
        return Shapes()
    readers = [folder for folder in scorer_folders("automatic", roots) if KINDS[kind_of(folder)].reads]
    return joined(readers, device) if readers else None
