"""Several pictures as one."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.utils.pil_utils import make_image_grid
from PIL import Image, ImageOps

SIDE = 256  # pixels of a picture on a contact sheet, at most
MOST = 16  # pictures on it


def grid(pictures: list[Any]) -> bytes:
    """Return pictures of one size as one PNG, about as wide as high; the last row may end early."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    empty = pictures[0].copy()
    empty.paste("white", (0, 0, *empty.size))
    file = io.BytesIO()
    make_image_grid([*pictures, *[empty] * (rows * columns - len(pictures))], rows, columns).save(file, "PNG")
    return file.getvalue()


def contact_sheet(paths: Sequence[Path]) -> bytes:
    """Return the first `MOST` of some pictures, small, as one PNG."""
    pictures: list[Image.Image] = []
    for path in paths[:MOST]:
        with Image.open(path) as picture:
            plain = picture.convert("RGB")
        pictures.append(ImageOps.contain(plain, (SIDE, SIDE)) if max(plain.size) > SIDE else plain)
    size = max(one.width for one in pictures), max(one.height for one in pictures)
    return grid([ImageOps.pad(one, size, color="white") if one.size != size else one for one in pictures])
