"""What a person said about a training picture without touching it: a crop by hand, or that it is left out (`NAME.edit.json`)."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from studio.errors import shown
from studio.store.blobs import SIDE_MIN, Refused

EDIT_END = ".edit.json"
EDIT_MAX = 10_000  # bytes

Crop = tuple[float, float, float, float]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Edit:
    """Changes that training reads; the picture's file stays as it is.

    Attributes:
        crop: (left, top, right, bottom) as parts of the upright picture, 0 to 1; None keeps all of it.
        left_out: whether training passes the picture over.
    """

    crop: Crop | None = None
    left_out: bool = False


def edit_file(picture: Path) -> Path:
    """Return where the edit of a picture lies."""
    return picture.with_name(picture.stem + EDIT_END)


def read_edit(picture: Path) -> Edit:
    """Read what was said about a picture.

    Raises:
        Refused: if the file beside it is damaged.
    """
    path = edit_file(picture)
    if not path.is_file():
        return Edit()
    try:
        with path.open("rb") as file:
            return parse_edit(file.read(EDIT_MAX + 1))
    except (OSError, ValueError):
        raise Refused(f"has a damaged {path.name} beside it; remove that file") from None


def parse_edit(data: bytes) -> Edit:
    """Read the content of an edit's file.

    Raises:
        ValueError: if it is damaged, or says what is not known.
    """
    try:
        told = json.loads(data if len(data) <= EDIT_MAX else b"")
        crop, left_out = told.get("crop"), told.get("left_out", False)
    except (AttributeError, RecursionError):
        raise ValueError("an edit must be a JSON object") from None
    if set(told) - {"crop", "left_out"} or not isinstance(left_out, bool):
        raise ValueError("an edit has only crop and left_out, which is true or false")
    return Edit(None if crop is None else checked_crop(crop), left_out)


def edit_bytes(edit: Edit) -> bytes:
    """Return the content of an edit's file."""
    told = ({"crop": list(edit.crop)} if edit.crop else {}) | ({"left_out": True} if edit.left_out else {})
    return (json.dumps(told) + "\n").encode()


def checked_crop(crop: object) -> Crop:
    """Return four numbers as a crop.

    Raises:
        ValueError: if they are none.
    """
    if not isinstance(crop, list | tuple) or len(crop) != 4:
        raise ValueError(f"crop={shown(crop)} must be four numbers from 0 to 1: left, top, right, bottom")
    numbers = [one for one in crop if isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)]
    if len(numbers) != 4 or not (0 <= numbers[0] < numbers[2] <= 1 and 0 <= numbers[1] < numbers[3] <= 1):
        raise ValueError(
            f"crop={shown(crop)} must be left, top, right, bottom from 0 to 1, left below right and top below bottom"
        )
    left, top, right, bottom = (round(float(one), 6) for one in numbers)
    return left, top, right, bottom


def crop_box(crop: Crop, size: tuple[int, int]) -> Box:
    """Return a crop in pixels of a picture of (width, height).

    Raises:
        Refused: if fewer than 8 pixels a side are left.
    """
    width, height = size
    box = round(crop[0] * width), round(crop[1] * height), round(crop[2] * width), round(crop[3] * height)
    if min(box[2] - box[0], box[3] - box[1]) < SIDE_MIN:
        raise Refused(
            f"is cropped to {box[2] - box[0]} x {box[3] - box[1]} pixels; leave at least {SIDE_MIN} on each side"
        )
    return box


def cropped(image: Image.Image, crop: Crop | None) -> Image.Image:
    """Cut a picture, or what belongs to it (mask, control picture), as its edit says."""
    return image if crop is None else image.crop(crop_box(crop, image.size))
