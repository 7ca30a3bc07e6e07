"""Copies of a person's pictures say nothing of the person; strangers' pictures are decoded apart, within limits."""

import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from studio.store import apart
from studio.store.apart import Apart
from studio.store.blobs import BlobStore, Refused, decode
from studio.store.collections import Datasets
from studio.store.private import stripped
from tests.test_blobs import bomb, chunk, encode, srgb

SECRETS = (b"SECRETCAM", b"SECRETXMP", b"SECRETTEXT", b"SECRETTAIL", b"SECRETIPTC")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a exif:GPSLatitude="SECRETXMP"/></x:xmpmeta>'


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def phone(kind: str, turn: int = 6) -> bytes:
    """Return what a phone saves: camera, place, date and turn in EXIF, an XMP packet, a colour profile."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SECRETCAM", turn
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 33.0), 29: "SECRETCAM"})
    exif.get_ifd(0x8769)[0x9003] = "SECRETCAM 2026:01:01"
    options: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": srgb()}
    if kind in ("JPEG", "WEBP", "AVIF", "HEIC"):
        options["xmp"] = XMP
    return encode(noise(), kind, **options)


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"])
def test_a_phones_picture_keeps_its_pixels_and_loses_its_place(kind: str, turn: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = phone(kind, turn)
    assert b"SECRETCAM" in data
    image = decode(data)
    kept = stripped(data, image)
    assert not any(secret in kept for secret in SECRETS)
    assert decode(kept).tobytes() == image.tobytes() and decode(kept).size == image.size
    assert stripped(kept, image) == kept  # once is enough
    if kind == "HEIC":
        return  # Pillow alone does not open it
    with Image.open(io.BytesIO(kept)) as again:
        exif = again.getexif()
        assert not exif.get_ifd(0x8825) and not exif.get_ifd(0x8769) and set(exif) <= {0x0112}


def test_what_hides_elsewhere_in_a_file_goes_too() -> None:
    jpeg = encode(noise(), "JPEG", comment=b"SECRETTEXT", progressive=True)
    iptc = b"\xff\xed\0\x16Photoshop 3.0\0SECRETIPTC"[:4] + b"Photoshop SECRETIPTC"
    told = (
        jpeg[:2] + iptc + jpeg[2:] + b"SECRETTAIL" + phone("JPEG")
    )  # a second picture after the first, as phones have
    assert decode(stripped(told, decode(told))).tobytes() == decode(jpeg).tobytes()
    png = encode(noise(), "PNG")
    words = [chunk(kind, body) for kind, body in (
        (b"tEXt", b"Comment\0SECRETTEXT"), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), (b"tIME", bytes(7)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"SECRETCAM")), (b"tEXt", b"parameters\0a fox"),
    )]  # fmt: skip
    marked = png[:33] + b"".join(words) + png[33:] + b"SECRETTAIL"
    kept = stripped(marked, decode(marked))
    for found in (stripped(told, decode(told)), kept):
        assert not any(secret in found for secret in SECRETS)
    assert kept == png[:33] + chunk(b"tEXt", b"parameters\0a fox") + png[33:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC", "BMP"])
def test_a_file_that_tells_nothing_stays_as_it_is(kind: str) -> None:
    data = encode(noise(), kind)
    assert stripped(data, decode(data)) == data


def test_a_file_built_oddly_is_kept_as_what_was_read() -> None:
    data = phone("WEBP")
    odd = data.replace(b"EXIF", b"exif")  # no reader knows this chunk, so nothing is found and nothing is taken out
    assert decode(stripped(odd, decode(odd))).tobytes() == decode(odd).tobytes()
    tiff = phone("TIFF")
    assert stripped(tiff, decode(tiff)).startswith(b"\x89PNG")


def test_a_datasets_copy_has_no_place(tmp_path: Path) -> None:
    store = Datasets(tmp_path / "datasets")
    store.create("mine")
    (tmp_path / "IMG_1.jpg").write_bytes(phone("JPEG"))
    for _ in range(2):
        added = store.add_folder("mine", tmp_path)
    assert "is the same picture as IMG_1.jpg" in added.refused[0]
    everything = b"".join(path.read_bytes() for path in (tmp_path / "datasets").rglob("*") if path.is_file())
    assert not any(secret in everything for secret in SECRETS)
    assert decode(store.path("mine", "IMG_1.jpg").read_bytes()).tobytes() == decode(phone("JPEG")).tobytes()


# ---- apart


def test_a_child_decodes_as_we_do_and_says_why_not(tmp_path: Path) -> None:
    data = phone("JPEG")
    assert Apart()(data).tobytes() == decode(data).tobytes()
    with pytest.raises(Refused, match="more than 64,000,000 pixels"):
        Apart()(bomb(12_000, 12_000))
    assert BlobStore(tmp_path / "a", Apart()).add(data, "image") == BlobStore(tmp_path / "b").add(data, "image")


LITTLE = (
    "import sys; sys.path.insert(0, {root!r}); import studio.store.apart as apart; apart.MEMORY = 1 << 26; apart.main()"
)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits")
@pytest.mark.parametrize(
    ("child", "seconds", "words"),
    [
        (LITTLE.format(root=str(apart.ROOT)), 20, "cannot be decoded"),  # no memory is an answer
        ("import os; os.abort()", 20, "too much memory or time"),  # and so is no answer
        ("import time; time.sleep(60)", 0.3, "takes too long"),
    ],
)
def test_a_child_over_its_limits_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, child: str, seconds: float, words: str
) -> None:
    monkeypatch.setattr(apart, "SECONDS", seconds)
    monkeypatch.setattr(apart, "CHILD", child)
    with pytest.raises(Refused, match=words):
        Apart()(encode(Image.new("RGB", (6000, 6000)), "PNG"))
