"""What a picture's file says of a person: where, when and with what it was taken. Copies that are kept do not have it."""

import io
import logging
import re
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from studio.store.blobs import DECODE_ERRORS, Refused, decode, encode, kind_of

logger = logging.getLogger(__name__)

ORIENTATION = 0x0112
PERSONAL_TAGS = {0x8825, 0x8769, 700, 33723, 315, 271, 272, 306, 42016}  # GPS, EXIF, XMP, IPTC, artist, camera, date
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
MADE_WITH = {b"parameters", b"studio", b"prompt", b"workflow"}  # texts of programs that draw: how, and of nobody
AFTER_DATA = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # the next marker after a JPEG's coded data
EXIF_FLAG, XMP_FLAG = 0x08, 0x04  # of WebP's VP8X


class Odd(Exception):
    """A file that is not built as its kind should be."""


def stripped(data: bytes, image: Image.Image) -> bytes:
    """Return a picture's file without what tells of a person; its pixels, its colour profile and its turn stay.

    Args:
        data: the file; one that tells nothing comes back as it is.
        image: what `decode` made of it.

    Returns:
        A file of the same kind, or a PNG of `image` where the metadata cannot be taken out without harm to the picture.
    """
    kind = kind_of(data)
    try:
        found = STRIPPERS[kind](data) if kind in STRIPPERS else _overwritten(data, kind)
        if found == data:
            return data
        again = decode(found)
        if (again.mode, again.size) == (image.mode, image.size) and again.tobytes() == image.tobytes():
            return found
    except (Odd, Refused, *DECODE_ERRORS) as error:
        logger.info("a %s file is kept as PNG, without its metadata: %r", kind, error)
    return encode(image)


def _turn(data: bytes, kind: str) -> int:
    """Return how a file says that it must be turned; 1: it stands upright."""
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        try:
            turn = image.getexif().get(ORIENTATION, 1)
        except DECODE_ERRORS:
            return 1
    return turn if turn in range(2, 9) else 1


def _only_turn(turn: int) -> bytes:
    """Return an EXIF block (TIFF, little-endian) that says the orientation and nothing else."""
    return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, ORIENTATION, 3, 1, turn, 0)


def _jpeg(data: bytes) -> bytes:
    turn = _turn(data, "JPEG")
    exif = b"Exif\0\0" + _only_turn(turn)
    head = [data[:2]]
    body = []
    for marker, segment in _segments(data):
        if marker == 0xE0 and segment[4:8] == b"JFIF":
            head.append(segment)
        elif marker == 0xFE or 0xE0 <= marker <= 0xEF:
            profile = marker == 0xE2 and segment[4:15] == b"ICC_PROFILE"
            if profile or (marker == 0xEE and segment[4:9] == b"Adobe"):
                body.append(segment)
        else:
            body.append(segment)
    if turn != 1:
        head.append(struct.pack(">BBH", 0xFF, 0xE1, 2 + len(exif)) + exif)
    return b"".join(head + body)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and bytes of every segment after the start, up to the end of the (first) picture."""
    at = 2
    while at + 4 <= len(data) or data[at : at + 2] == b"\xff\xd9":
        if data[at] != 0xFF:
            raise Odd("no marker where one must be")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            yield marker, data[at : at + 2]
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            following = AFTER_DATA.search(data, end)
            end = following.start() if following else len(data)
        if end > len(data):
            raise Odd("cut off")
        yield marker, data[at:end]
        at = end


def _png(data: bytes) -> bytes:
    turn, parts, at = _turn(data, "PNG"), [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, part = data[at + 4 : at + 8], data[at:end]
        personal = kind in (b"eXIf", b"tIME") or (
            kind in TEXT_KINDS and part[8:].partition(b"\0")[0].strip() not in MADE_WITH
        )
        if not personal:
            parts.append(part)
        if kind == b"IHDR" and turn != 1:
            body = b"eXIf" + _only_turn(turn)
            parts.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
        at = end
        if kind == b"IEND":
            break
    return b"".join(parts)


def _webp(data: bytes) -> bytes:
    turn, parts, at = _turn(data, "WEBP"), [], 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        part = data[at : at + 8 + size + size % 2]
        if kind == b"VP8X":
            flags = part[8] & ~(EXIF_FLAG | XMP_FLAG) | (EXIF_FLAG if turn != 1 else 0)
            part = part[:8] + bytes([flags]) + part[9:]
        if kind not in (b"EXIF", b"XMP "):
            parts.append(part)
        at += 8 + size + size % 2
    if turn != 1:
        parts.append(b"EXIF" + struct.pack("<I", len(_only_turn(turn))) + _only_turn(turn))
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        if PERSONAL_TAGS & set(getattr(image, "tag_v2", {})):
            raise Odd("a TIFF file's tags lie between its pixels")
    return data


def _overwritten(data: bytes, kind: str) -> bytes:
    """Overwrite the blocks of a container (AVIF, HEIC) where they lie, so that no length and no place in it changes."""
    info = _info(data, kind)
    exif = (info.get("exif") or b"").removeprefix(b"Exif\0\0")
    for block, instead in ((exif, _only_turn(1)), (info.get("xmp") or b"", b"")):
        if not block:
            continue
        if block not in data or len(block) < len(instead):
            raise Odd("its metadata does not lie in one piece")
        data = data.replace(block, instead.ljust(len(block), b" " if not instead else b"\0"))
    return data


def _info(data: bytes, kind: str) -> dict:
    if kind == "HEIC":
        import pillow_heif

        return pillow_heif.open_heif(io.BytesIO(data)).info
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        return dict(image.info)


STRIPPERS = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "TIFF": _tiff}
