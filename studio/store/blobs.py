"""Pictures that a person gave: judged by their content, made plain, kept under the sha256 of what they became."""

import hashlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, ImageOps, features

from studio.errors import InvalidRequest, StorageError, shown
from studio.store import writer
from studio.store.metadata import MAX_PIXELS

logger = logging.getLogger(__name__)

MAX_BYTES = 50_000_000
SIDE_MIN, SIDE_MAX = 8, 16_384
ASPECT_MAX = 64
PROFILE_MAX = 4_000_000
REFERENCE = re.compile(r"blob:([0-9a-f]{64})")
READABLE = "PNG, JPEG, WebP, AVIF, HEIC, BMP or TIFF"
BEGINNINGS = (  # what a file is, told by its first bytes
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM")),
)
REFUSED = (
    ("a GIF", re.compile(rb"GIF8[79]a")),
    ("an SVG drawing", re.compile(rb"(?:\xef\xbb\xbf)?\s*<[^\0]{0,4000}?<?svg[\s>]", re.IGNORECASE)),
    ("a PDF document", re.compile(rb"%PDF")),
    ("a Photoshop document", re.compile(rb"8BPS")),
)
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
DAMAGE = (OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
DECODE_ERRORS = (*DAMAGE, RuntimeError, MemoryError, struct.error, zlib.error)  # what readers raise on damaged files
REDUCED = 1  # bit of TIFF's NewSubfileType
SUBFILE_TYPE, BITS_PER_SAMPLE, DNG_VERSION = 254, 258, 50706  # TIFF tags


class Refused(Exception):
    """Why a picture cannot be used; the text goes on after the name of the file."""


def read_input(source: Path | bytes, field: str, decoder: Callable[[bytes], Image.Image] | None = None) -> Image.Image:
    """Decode one picture that a person gave, judged by its content and never by its name.

    Of an animation or a TIFF with several pages the first picture is read. Colours become sRGB if the file names another space.

    Args:
        source: a file, or its content; at most 50 MB and 64 million pixels, sides 8 to 16384, at most 64 times as long as wide.
        field: of the request, for the message.
        decoder: in place of `decode`, such as one in another process.

    Returns:
        An upright picture without metadata: RGBA if a pixel is not opaque, else RGB.

    Raises:
        InvalidRequest: one sentence, if it is no picture, damaged, too large or too small.
    """
    name = shown(source.name) if isinstance(source, Path) else f"({len(source):,} bytes)"
    try:
        return (decoder or decode)(read_file(source) if isinstance(source, Path) else source)
    except Refused as refusal:
        raise InvalidRequest(field, f"{field}={name} {refusal}") from None


def read_file(path: Path) -> bytes:
    """Return a file's content, of which never more than the limit and one byte is read.

    Raises:
        Refused: if there is no such file, or it cannot be read.
    """
    try:
        if path.is_dir():
            raise Refused("is a folder; choose one picture in it")
        if not path.exists():
            raise Refused("does not exist; choose the picture again")
        if not path.is_file():  # opening a pipe would wait for ever
            raise Refused("is not a plain file; choose a picture")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot be read ({getattr(error, 'strerror', None) or error}); choose another picture") from None


def limit_pillow(pixels: int = MAX_PIXELS) -> None:
    """Let Pillow refuse what is larger than we read, wherever it decodes in this process: Gradio's components decode before we do."""
    Image.MAX_IMAGE_PIXELS = pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def decode(data: bytes) -> Image.Image:
    """Decode the content of a picture file; its size is judged before a pixel is.

    Raises:
        Refused: if it is no picture, damaged, too large or too small.
    """
    if not data:
        raise Refused("is empty; choose the picture again")
    if len(data) > MAX_BYTES:
        raise Refused(f"has more than {MAX_BYTES // 1_000_000} MB; make the picture smaller, or save it as JPEG")
    kind = kind_of(data)
    try:
        return decode_kind(data, kind)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(f"has more than {MAX_PIXELS:,} pixels; make the picture smaller") from None
    except DECODE_ERRORS as error:
        logger.info("a %s file of %d bytes cannot be decoded: %r", kind, len(data), error)
        raise Refused(
            f"is a {kind} file that cannot be decoded: cut off, damaged or of a rare kind; save it again, or choose another"
        ) from None


def kind_of(data: bytes) -> str:
    """Return what a file is: a Pillow format name, or `HEIC`.

    Raises:
        Refused: if it is nothing that is read here.
    """
    for kind, beginning in BEGINNINGS:
        if beginning.match(data):
            return kind
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in range(8, min(int.from_bytes(data[:4]), 256), 4)}
        if brands & AVIF_BRANDS:
            return "AVIF"
        if brands & HEIF_BRANDS:
            return "HEIC"
    what = next((words for words, beginning in REFUSED if beginning.match(data)), "not a picture that can be read")
    raise Refused(f"is {what}; give a {READABLE} picture")


def decode_kind(data: bytes, kind: str) -> Image.Image:
    """Decode a file of a known kind; readers raise what they like on damaged ones."""
    image = opened(data, kind)
    check_size(*image.size)
    image = image.to_pillow() if kind == "HEIC" else image
    image.load()
    tags = getattr(image, "tag_v2", {})
    if tags.get(SUBFILE_TYPE, 0) & REDUCED or DNG_VERSION in tags:
        raise Refused("is a camera's raw file, of which only a small preview could be read; export it as JPEG or PNG")
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except DECODE_ERRORS:
        logger.info("the EXIF block is damaged; the picture is taken as upright")
    return plain(image, tags.get(BITS_PER_SAMPLE, (16,))[0])


def opened(data: bytes, kind: str) -> Any:
    """Return a file as Pillow's or pillow-heif's object, whose size is known and whose pixels are not decoded yet.

    Raises:
        Refused: if the package that reads this kind is missing.
    """
    file = io.BytesIO(data)
    if kind == "HEIC":
        try:
            import pillow_heif
        except ImportError:
            raise Refused("is a HEIC picture, for which the package pillow-heif is missing; save it as JPEG") from None
        return pillow_heif.open_heif(file)
    if kind == "AVIF" and not features.check("avif"):
        raise Refused("is an AVIF picture, which this Pillow cannot read; save it as PNG or JPEG")
    return Image.open(file, formats=(kind,))


def check_size(width: int, height: int) -> None:
    """Raise `Refused` unless a picture of this size can be worked with."""
    if width * height > MAX_PIXELS:
        raise Refused(f"has {width} x {height} pixels, more than {MAX_PIXELS:,}; make the picture smaller")
    if min(width, height) < SIDE_MIN or max(width, height) > SIDE_MAX:
        raise Refused(f"has {width} x {height} pixels; each side must have {SIDE_MIN} to {SIDE_MAX}, choose another")
    if max(width, height) > ASPECT_MAX * min(width, height):
        raise Refused(f"has {width} x {height} pixels; it may be at most {ASPECT_MAX} times as long as wide, crop it")


def plain(image: Image.Image, bits: int) -> Image.Image:
    """Return a loaded picture as 8-bit sRGB without metadata: RGBA if a pixel is not opaque, else RGB.

    Args:
        image: any mode but floating point.
        bits: of the numbers in the file; only looked at for modes of more than 8 bits.
    """
    given, profile = image, image.info.get("icc_profile")
    if image.mode == "F":
        raise Refused("has floating-point pixels, whose white is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = eight_bit(image, bits)
    alpha = None
    if image.has_transparency_data:
        image = as_mode(as_mode(image, "LA") if image.mode == "La" else image, "RGBA")
        alpha = image.getchannel("A")
    result = to_srgb(image if image.mode == "CMYK" else as_mode(image, "RGB"), profile)
    result = result.copy() if result is given else result
    if alpha is not None and alpha.getextrema() != (255, 255):
        result.putalpha(alpha)
    result.info = {}
    return result


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert if need be; Pillow's own call copies even if there is nothing to do, and pictures may have 256 MB."""
    return image if image.mode == mode else image.convert(mode)


def eight_bit(image: Image.Image, bits: int) -> Image.Image:
    """Scale grey of 9 to 16 bits to 8, where Pillow's own conversion clips at 255."""
    peak = (1 << min(bits, 16)) - 1
    values = image.convert("I")
    low, high = values.getextrema()
    if low < 0 or high > peak:  # pyright: ignore[reportOperatorIssue]  # one band, so two numbers
        raise Refused("has 32-bit pixels, whose white is unknown; save it with 8 or 16 bits")
    grey = values.point([min(255, (value * 255 + peak // 2) // peak) for value in range(65536)], "L")
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(values.point([0 if value == key else 255 for value in range(65536)], "L"))
    return grey


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an RGB or CMYK picture as sRGB; a profile that is damaged or of another space is passed over, as browsers do."""
    if profile and len(profile) <= PROFILE_MAX:
        try:
            space: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            description = space.profile.profile_description or ""
            if space.profile.xcolor_space.strip() == image.mode and "srgb" not in description.lower():
                transform = ImageCms.buildTransform(
                    space,
                    ImageCms.createProfile("sRGB"),
                    image.mode,
                    "RGB",
                    renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                    flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
                )
                return transform.apply(image)
        except (ImageCms.PyCMSError, *DECODE_ERRORS) as error:
            logger.info("a colour profile cannot be used: %s", error)
    return as_mode(image, "RGB")


def is_reference(text: str) -> bool:
    """Whether a text names a stored picture, `blob:` and 64 hex digits."""
    return REFERENCE.fullmatch(text) is not None


class BlobStore:
    """Pictures that requests refer to by content, so that a job means the same picture whatever happens to the file.

    Args:
        root: folder of the store.
        decoder: see `read_input`.
    """

    def __init__(self, root: Path, decoder: Callable[[bytes], Image.Image] | None = None) -> None:
        self.root, self._decoder = root, decoder

    def add(self, source: Path | bytes, field: str) -> str:
        """Keep a picture and return its reference; the same picture has the same one, and is stored once.

        Raises:
            InvalidRequest: if it cannot be used, see `read_input`.
            StorageError: if it is not on disk afterwards.
        """
        png = encode(read_input(source, field, self._decoder))
        digest = hashlib.sha256(png).hexdigest()
        path = self._place(digest)
        try:
            if not path.exists():
                writer.write_file(path, png, replace=False)
            elif writer.file_sha256(path) != digest:  # damaged since: a reference must not stay broken for ever
                writer.write_file(path, png)
        except FileExistsError:
            logger.debug("%s was stored by another process at the same moment", digest)
        except OSError as error:
            raise StorageError(
                f"the picture for {field} could not be saved ({error.strerror or error}); make room on the disk and try again"
            ) from error
        return f"blob:{digest}"

    def has(self, ref: str) -> bool:
        """Whether a picture is here."""
        found = REFERENCE.fullmatch(ref)
        return found is not None and self._place(found[1]).is_file()

    def path(self, ref: str, field: str) -> Path:
        """Return where a picture lies.

        Raises:
            InvalidRequest: if this is no reference, or the file is gone.
        """
        found = REFERENCE.fullmatch(ref)
        if not found:
            raise InvalidRequest(
                field, f"{field}={shown(ref)} is not `blob:` and 64 hex digits; choose the picture again"
            )
        path = self._place(found[1])
        if not path.is_file():
            raise InvalidRequest(
                field, f"{field}={ref[:17]}… is no longer in the blob folder; choose the picture again"
            )
        return path

    def open(self, ref: str, field: str) -> Image.Image:
        """Return a stored picture, RGB or RGBA, in memory.

        Raises:
            InvalidRequest: if this is no reference, or the file is gone, unreadable or not what was stored.
        """
        try:
            png = self.path(ref, field).read_bytes()
        except OSError as error:
            raise InvalidRequest(
                field, f"{field}={ref[:17]}… cannot be read ({error.strerror}); choose the picture again"
            ) from None
        if f"blob:{hashlib.sha256(png).hexdigest()}" != ref:
            raise InvalidRequest(field, f"{field}={ref[:17]}… was changed or damaged on disk; choose the picture again")
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            return image.copy()

    def _place(self, digest: str) -> Path:
        return self.root / digest[:2] / f"{digest}.png"


def encode(image: Image.Image) -> bytes:
    """Encode RGB or RGBA as a PNG without metadata; the same pixels give the same bytes with the same Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # 6 takes 1.7 times as long for 12 % fewer bytes
    return buffer.getvalue()
