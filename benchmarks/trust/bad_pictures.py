"""Pictures that are none, made by code: cut off, damaged, huge, of other kinds, made to do harm."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "HEIC")
PNG = b"\x89PNG\r\n\x1a\n"


def noise(width: int = 64, height: int = 48, seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    if kind == "HEIC":
        import pillow_heif

        pillow_heif.from_pillow(image).save(file)
    else:
        image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def of_size(width: int, height: int, depth: int = 1, colour: int = 0, *, rows: int | None = None) -> bytes:
    """Return a PNG of black pixels that says this size; with `rows`, of which only so many are there."""
    row = bytes((width * depth * {0: 1, 2: 3}[colour] + 7) // 8 + 1)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def endless_tiff() -> bytes:
    """A TIFF whose list of pages leads back to its first page."""
    data = bytearray(encoded(noise(), "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    return bytes(data)


def refused() -> Iterator[tuple[str, bytes]]:
    """Yield name and content of files that must be refused."""
    good = encoded(noise(), "PNG")
    yield from {
        "empty": b"", "text": b"hello, I am no picture", "zeros": bytes(1000), "html": b"<html><script>alert(1)</script>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "pdf": b"%PDF-1.7\n", "psd": b"8BPS\0\1",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "elf": b"\x7fELF" + bytes(60), "exe": b"MZ" + bytes(60),
        "zip": b"PK\3\4" + bytes(60), "pickle": b"\x80\4c" + b"posix\nsystem\n", "gif": encoded(noise().quantize(8), "GIF"),
        "mp4": b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", "fits": b"SIMPLE  =                    T", "one pixel": of_size(1, 1),
        "a line": of_size(16_384, 8), "too wide": of_size(16_385, 300), "12k squared": of_size(12_000, 12_000),
        "60k squared, says its header": of_size(60_000, 60_000, 8, 2, rows=1), "30k by 1": of_size(30_000, 1),
        "no pixels": PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        "no header": PNG + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""),
        "bomb in its text": good[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(60_000_000))) + good[33:],
        "bad checksum": good[:40] + bytes([good[40] ^ 255]) + good[41:],
        "49 million bytes of nothing": PNG + bytes(49_000_000), "51 million bytes": PNG + bytes(51_000_000),
        "floating point": encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
    }.items()  # fmt: skip
    for kind in KINDS:
        data = encoded(noise(), kind)
        for part in (0.05, 0.3, 0.6):
            yield f"{kind} cut at {part:.0%}", data[: max(8, int(len(data) * part))]
        yield f"{kind} without a middle", data[:24] + bytes(len(data) - 24)


def doubtful() -> Iterator[tuple[str, bytes]]:
    """Yield files that may be read or refused, but nothing else: damaged at random, or odd."""
    good = encoded(noise(), "PNG")
    frames = [noise(seed=seed) for seed in range(60)]
    yield "60 frames", encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "TIFF in a circle", endless_tiff()
    yield "profile that is none", encoded(noise(), "PNG", icc_profile=b"none")
    yield "EXIF that is none", good[:33] + chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff") + good[33:]
    for kind in KINDS:
        data = encoded(noise(), kind)
        for seed in range(3):
            rng, wrong = random.Random(seed), bytearray(data)
            for _ in range(max(3, len(data) // 50)):
                wrong[rng.randrange(12, len(data))] = rng.randrange(256)
            yield f"{kind} damaged ({seed})", bytes(wrong)
