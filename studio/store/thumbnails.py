"""Small pictures of large ones, kept in the cache until the file changes."""

import hashlib
import io
import secrets
from pathlib import Path

from PIL import Image, ImageOps

from studio.store.blobs import DECODE_ERRORS as ERRORS
from studio.store.blobs import Refused, check_size, decode, kind_of, opened, read_file, to_srgb

SIDES = (320, 1280)  # of the grid, and of a picture that is looked at
HEAD = 4096  # bytes that tell what a file is
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF


def thumbnail_file(picture: Path, side: int, cache: Path) -> Path:
    """Return where the small picture of a file, as it is now, lies or would lie."""
    facts = picture.stat()
    key = f"{picture.resolve()}|{facts.st_mtime_ns}|{facts.st_size}|{side}"
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.webp"


def make_thumbnail(picture: Path, side: int, cache: Path) -> Path:
    """Return the small picture of a file, which is made at the first call.

    Args:
        picture: the large one.
        side: the longer one, in pixels; smaller pictures stay as large as they are.
        cache: folder of small pictures.

    Raises:
        Refused: if the file is no picture that can be read.
    """
    target = thumbnail_file(picture, side, cache)
    if not target.is_file():
        save_thumbnail(_quick(read_file(picture), side), side, target)
    return target


def save_thumbnail(image: Image.Image, side: int, target: Path) -> None:
    """Write a small WebP of an upright picture."""
    scale = min(1, side / max(image.size))
    width, height = (max(1, round(one * scale)) for one in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.stem}.{secrets.token_hex(4)}.part")
    small.save(part, "WEBP", quality=80, method=0)
    part.replace(target)


def _quick(data: bytes, side: int) -> Image.Image:
    """Decode a picture upright; of a JPEG only as many pixels as are needed, which takes a tenth of the time."""
    if not data or kind_of(data) != "JPEG":
        return decode(data)
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        check_size(*image.size)
        profile = image.info.get("icc_profile")
        image.draft(None, (side * 2, side * 2))
        ImageOps.exif_transpose(image, in_place=True)
        return to_srgb(image if image.mode == "CMYK" else image.convert("RGB"), profile)
    except ERRORS:
        return decode(data)  # says what is wrong with it


def upright_size(picture: Path) -> tuple[int, int]:
    """Return (width, height) of a picture as it is seen, without decoding its pixels.

    Raises:
        Refused: if it is no picture.
    """
    try:
        with picture.open("rb") as file:
            kind = kind_of(file.read(HEAD))
        if kind == "HEIC":  # libheif turns it already
            return opened(read_file(picture), kind).size
        with Image.open(picture, formats=(kind,)) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) in TURNED
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused("has too many pixels; make the picture smaller") from None
    except ERRORS:
        raise Refused("cannot be read; save it again, or choose another") from None
    return (height, width) if turned else (width, height)
