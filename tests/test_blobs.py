"""Pictures that people give: every format becomes plain pixels, every trouble one clear sentence, and what is stored stays what it was."""

import contextlib
import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from studio.errors import InvalidRequest, StorageError
from studio.settings import ROOT
from studio.store import blobs, writer
from studio.store.blobs import BlobStore, is_reference, read_input

LOSSLESS: dict[str, dict[str, object]] = {
    "PNG": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True, "exact": True},
}
LOSSY: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95},
    "HEIC": {"quality": 95},
}
QUADRANTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    if kind == "HEIC":
        heif = pytest.importorskip("pillow_heif")
        try:
            heif.encode(
                image.mode, image.size, image.tobytes(), file, **options
            )  # writes EXIF and turn, as telephones do
        except (RuntimeError, KeyError) as error:
            pytest.skip(f"pillow-heif cannot encode here: {error}")
    else:
        if kind == "AVIF" and not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
        image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 40, height: int = 24, bands: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, bands), dtype=np.uint8))


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Return four colours: red, green over blue, yellow; not square, so that every turn is seen."""
    image = Image.new("RGB", (width, height))
    for place, colour in enumerate(QUADRANTS):
        x, y = place % 2 * width // 2, place // 2 * height // 2
        image.paste(colour, (x, y, x + width // 2, y + height // 2))
    return image


def refusal(source: bytes | Path, field: str = "image") -> str:
    """Return the sentence with which a picture is refused."""
    with pytest.raises(InvalidRequest) as caught:
        read_input(source, field)
    text = str(caught.value)
    assert caught.value.field == field
    assert text.startswith(f"{field}=")
    assert "\n" not in text and len(text) < 260
    assert "BytesIO" not in text and "Traceback" not in text
    return text


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int, depth: int = 1, colour: int = 0) -> bytes:
    """Return a small PNG of very many black pixels."""
    row = bytes((width * depth * {0: 1, 2: 3}[colour] + 7) // 8 + 1)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# formats


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_their_pixels(kind: str, tmp_path: Path) -> None:
    image = noise()
    path = tmp_path / "holiday.txt"  # the name says nothing
    path.write_bytes(encode(image, kind, **LOSSLESS[kind]))
    for source in (path, path.read_bytes()):
        found = read_input(source, "image")
        assert (found.mode, found.size) == ("RGB", image.size)
        assert found.tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_give_nearly_their_pixels(kind: str) -> None:
    image = quarters()
    found = read_input(encode(image, kind, **LOSSY[kind]), "image")
    assert found.mode == "RGB"
    difference = np.abs(np.asarray(found, int) - np.asarray(image, int))
    assert np.median(difference) <= 4 and difference.mean() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "HEIC"])
def test_transparency_is_kept_only_where_there_is_some(kind: str) -> None:
    options = LOSSLESS.get(kind, {}) | LOSSY.get(kind, {})
    solid = quarters().convert("RGBA")
    assert read_input(encode(solid, kind, **options), "image").mode == "RGB"
    solid.putalpha(Image.linear_gradient("L").resize(solid.size))
    found = read_input(encode(solid, kind, **options), "image")
    assert found.mode == "RGBA"
    assert np.abs(np.asarray(found, int)[..., 3] - np.asarray(solid, int)[..., 3]).max() <= 8


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in QUADRANTS]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert read_input(data, "image").getpixel((3, 3)) == QUADRANTS[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIC"])
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = quarters()
    marked = image.copy()
    marked.info["exif"] = exif.tobytes()
    wanted = ImageOps.exif_transpose(marked)
    options = {"lossless": True} if kind == "WEBP" else LOSSY.get(kind, {})
    found = read_input(encode(marked, kind, exif=exif.tobytes(), **options), "image")
    assert found.size == wanted.size == (image.size if orientation < 5 else image.size[::-1])
    for x in (8, found.width - 8):
        for y in (8, found.height - 8):
            assert found.getpixel((x, y)) == pytest.approx(wanted.getpixel((x, y)), abs=12)


def test_orientation_by_hand() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    found = read_input(encode(quarters(), "PNG", exif=exif), "image")
    corners = [found.getpixel(at) for at in ((1, 1), (46, 1), (1, 62), (46, 62))]
    assert corners == [QUADRANTS[2], QUADRANTS[0], QUADRANTS[3], QUADRANTS[1]]


@pytest.mark.parametrize(
    "junk", [b"Exif\0\0junk", b"MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\xff"]
)
def test_broken_exif_does_not_hide_the_picture(junk: bytes) -> None:
    png = encode(noise(), "PNG")
    assert read_input(png[:33] + chunk(b"eXIf", junk) + png[33:], "image").tobytes() == noise().tobytes()


def test_no_metadata_is_left(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SECRET camera", 3
    exif.get_ifd(0x8825)[1] = "N"
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        data = encode(quarters(), kind, exif=exif, icc_profile=srgb())
        assert b"SECRET" in data
        found = read_input(data, "image")
        assert found.info == {} and not found.getexif()
        assert type(found) is Image.Image
        store = BlobStore(tmp_path)
        stored = store.path(store.add(data, "image"), "image").read_bytes()
        assert b"SECRET" not in stored
        assert stored.count(b"IDAT") and not any(name in stored for name in (b"eXIf", b"tEXt", b"iCCP", b"gAMA"))


# modes


def test_16_bit_grey_is_scaled_and_stays_monotone() -> None:
    ramp = np.tile(np.linspace(0, 65535, 512).astype(np.uint16), (16, 1))
    for kind in ("PNG", "TIFF"):
        found = np.asarray(read_input(encode(Image.fromarray(ramp), kind), "image"), int)
        assert found.shape == (16, 512, 3)
        assert (np.diff(found[0, :, 0]) >= 0).all()
        assert np.abs(found[..., 0] - ramp / 257).max() <= 0.5
        assert len(np.unique(found)) == 256
    wide = encode(Image.fromarray(ramp.astype(np.int32)), "TIFF")
    assert np.abs(np.asarray(read_input(wide, "image"), int)[..., 0] - ramp / 257).max() <= 0.5


def test_16_bit_colour_is_scaled() -> None:
    ramp = np.repeat(np.linspace(0, 65535, 300).astype(">u2"), 3).reshape(1, 300, 3).repeat(16, axis=0)
    rows = b"".join(b"\0" + row.tobytes() for row in ramp)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 300, 16, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    found = np.asarray(read_input(png, "image"), int)
    assert np.abs(found - ramp.astype(int) / 257).max() <= 1
    assert (np.diff(found[0, :, 1]) >= 0).all()


def test_pixels_without_a_known_white_are_refused() -> None:
    assert "32-bit pixels" in refusal(encode(Image.fromarray(np.full((9, 9), 10**6, np.int32)), "TIFF"))
    assert "32-bit pixels" in refusal(encode(Image.fromarray(np.full((9, 9), -1, np.int32)), "TIFF"))
    assert "floating-point" in refusal(encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"))


def test_a_camera_s_raw_file_is_not_taken_for_its_preview() -> None:
    assert "raw file" in refusal(encode(noise(), "TIFF", tiffinfo={254: 1}))


def test_palettes_with_and_without_transparency() -> None:
    image = quarters().quantize(4)
    found = read_input(encode(image, "PNG"), "image")
    assert (found.mode, found.getpixel((2, 2))) == ("RGB", (255, 0, 0))
    clear = image.getpixel((2, 2))
    found = read_input(encode(image, "PNG", transparency=clear), "image")
    assert found.mode == "RGBA"
    assert found.getpixel((2, 2)) == (255, 0, 0, 0) and found.getpixel((60, 40)) == (255, 255, 0, 255)
    levels = bytes(128 if index == clear else 255 for index in range(4))
    assert read_input(encode(image, "PNG", transparency=levels), "image").getpixel((2, 2)) == (255, 0, 0, 128)
    unused = encode(image, "PNG", transparency=9)
    assert read_input(unused, "image").mode == "RGB"  # a transparent colour that no pixel has


def test_other_modes() -> None:
    two = Image.new("LA", (9, 9), (200, 50))
    assert read_input(encode(two, "PNG"), "image").getpixel((0, 0)) == (200, 200, 200, 50)
    assert read_input(encode(Image.new("LA", (9, 9), (200, 255)), "PNG"), "image").getpixel((0, 0)) == (200, 200, 200)
    assert read_input(encode(Image.new("L", (9, 9), 77), "PNG"), "image").getpixel((0, 0)) == (77, 77, 77)
    bits = Image.new("1", (9, 9), 0)
    bits.putpixel((4, 4), 1)
    found = read_input(encode(bits, "PNG"), "image")
    assert (found.getpixel((4, 4)), found.getpixel((0, 0))) == ((255, 255, 255), (0, 0, 0))
    assert read_input(encode(bits, "TIFF"), "image").getpixel((4, 4)) == (255, 255, 255)
    for kind in ("TIFF", "JPEG"):
        red = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind)
        assert read_input(red, "image").getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=4)
    keyed = encode(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert read_input(keyed, "image").getpixel((0, 0)) == (1, 2, 3, 0)
    for image in (Image.new("L", (9, 9), 7), Image.new("I;16", (9, 9), 7)):
        assert read_input(encode(image, "PNG", transparency=7), "image").getpixel((0, 0))[3] == 0


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_primaries() -> bytes:
    """Return sRGB's profile with red and green exchanged, under another name: what a profile does is then plain to see."""
    data = bytearray(srgb())
    data = data.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    return bytes(data.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test"))


def test_colours_are_converted_to_srgb() -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    assert read_input(encode(image, "PNG", icc_profile=srgb()), "image").getpixel((0, 0)) == (255, 0, 0)
    found = read_input(encode(image, "PNG", icc_profile=swapped_primaries()), "image")
    assert found.getpixel((0, 0)) == pytest.approx((0, 255, 0), abs=2)
    image.putalpha(9)
    found = read_input(encode(image, "PNG", icc_profile=swapped_primaries()), "image")
    assert found.getpixel((0, 0)) == pytest.approx((0, 255, 0, 9), abs=2)
    for broken in (b"no profile at all", srgb()[:200], srgb()[:128] + b"\xff" * 400):
        assert read_input(encode(image, "PNG", icc_profile=broken), "image").getpixel((0, 0)) == (255, 0, 0, 9)


# troubles


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, I am a text", "not a picture that can be read; give a PNG, JPEG"),
        (b"\0" * 100, "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "is an SVG drawing; give a PNG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<SVG width='9'/>", "is an SVG drawing"),
        (b"%PDF-1.7", "is a PDF document"),
        (b"<html><body>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "a PNG file that cannot be decoded"),
        (b"\xff\xd8\xff", "a JPEG file that cannot be decoded"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a WEBP file that cannot be decoded"),
        (b"BM", "a BMP file that cannot be decoded"),
        (b"II*\0\x08\0\0\0", "a TIFF file that cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_refused_by_content(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    assert refusal(path).startswith("image='photo.png' ")
    assert words in refusal(path)
    assert words in refusal(content, "mask_image")


def test_a_gif_is_refused_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise().quantize(8), "GIF"))
    assert refusal(tmp_path / "a.png") == (
        "image='a.png' is a GIF; give a PNG, JPEG, WebP, AVIF, HEIC, BMP or TIFF picture"
    )


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist; choose the picture again" in refusal(tmp_path / "gone.png")
    assert "is a folder" in refusal(tmp_path)
    assert refusal(Path("a\0b.png"))
    assert refusal(tmp_path / ("x" * 5000))
    (tmp_path / "two\nlines.png").write_bytes(b"x")
    assert "two\\nlines" in refusal(tmp_path / "two\nlines.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "not a plain file" in refusal(tmp_path / "pipe")
    closed = tmp_path / "closed.png"
    closed.write_bytes(encode(noise(), "PNG"))
    closed.chmod(0)
    if not os.access(closed, os.R_OK):
        assert "cannot be read (Permission denied)" in refusal(closed)


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_a_truncated_file_is_refused_or_complete(kind: str) -> None:
    data = encode(noise(), kind, **(LOSSLESS | LOSSY)[kind])
    whole = read_input(data, "image").tobytes()
    refused = 0
    for length in [*range(1, 40), *range(40, len(data), max(1, len(data) // 60))]:
        try:
            assert read_input(data[:length], "image").tobytes() == whole, f"{length} of {len(data)} bytes"
        except InvalidRequest:
            refused += 1
    assert refused > 60
    assert "cut off" in refusal(data[: len(data) // 2])


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_flipped_bytes_are_a_picture_or_a_sentence(kind: str) -> None:
    data = encode(noise(), kind, **(LOSSLESS | LOSSY)[kind])
    rng = np.random.default_rng(7)
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), int(rng.choice([64, 10**6]))), int(rng.integers(1, 6))):
            damaged[place] = int(rng.integers(0, 256))
        with contextlib.suppress(InvalidRequest):
            assert read_input(bytes(damaged), "image").mode in ("RGB", "RGBA")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((1, 1), "has 1 x 1 pixels; each side must have 8 to 16384"),
        ((7, 100), "each side must have 8 to 16384"),
        ((30000, 1), "each side must have 8 to 16384"),
        ((17000, 300), "each side must have 8 to 16384"),
        ((8, 600), "at most 64 times as long as wide"),
        ((9000, 9000), "has 9000 x 9000 pixels, more than 64,000,000"),
    ],
)
def test_sizes_have_bounds(size: tuple[int, int], words: str) -> None:
    assert words in refusal(bomb(*size))


def test_the_bounds_themselves_are_allowed() -> None:
    assert read_input(bomb(8, 8), "image").size == (8, 8)
    assert read_input(bomb(8, 512), "image").size == (8, 512)
    assert read_input(bomb(16384, 256), "image").size == (16384, 256)


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_bombs_are_not_decoded(tmp_path: Path) -> None:
    for name, content in (("a", bomb(30000, 30000)), ("b", bomb(12000, 12000)), ("c", bomb(12000, 12000, 8, 2))):
        (tmp_path / name).write_bytes(content)
    code = (
        "import sys, pathlib, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from studio.errors import InvalidRequest\n"
        "from studio.store.blobs import read_input\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: read_input(path, 'image')\n"
        "    except InvalidRequest as error: print(error)\n"
        "own = [line.split()[1] for line in pathlib.Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in line]\n"
        "print(own[0])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *sentences, peak = ran.stdout.splitlines()
    assert len(sentences) == 3 and all("64,000,000" in sentence for sentence in sentences)
    assert int(peak) < 200_000  # KiB; decoding one would take 900 MB


def test_a_text_bomb_is_refused() -> None:
    png = encode(noise(), "PNG")
    huge = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 9))
    assert refusal(png[:33] + huge + png[33:])


def test_a_large_file_is_refused_and_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.write(encode(noise(), "PNG"))
        file.truncate(2**40)
    assert "has more than 50 MB" in refusal(path)
    assert "has more than 50 MB" in refusal(bytes(blobs.MAX_BYTES + 1))


def test_without_the_heic_package_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(quarters(), "HEIC")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pillow-heif is missing; save it as JPEG" in refusal(data)


def test_a_heic_that_lies_about_its_size_is_refused() -> None:
    data = encode(quarters(64, 64), "HEIC")
    place = data.index(b"ispe") + 8
    for side in (1, 5000, 20000, 2**31):
        assert refusal(data[:place] + struct.pack(">II", side, side) + data[place + 8 :])


# the store


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_a_picture_comes_back_as_it_was_given(store: BlobStore, tmp_path: Path) -> None:
    for image in (noise(), noise(bands=4)):
        path = tmp_path / "given.png"
        path.write_bytes(encode(image, "PNG"))
        ref = store.add(path, "image")
        path.unlink()  # what was given may go
        found = store.open(ref, "image")
        assert (found.mode, found.tobytes()) == (image.mode, image.tobytes())
        digest = ref.removeprefix("blob:")
        assert store.path(ref, "image") == store.root / digest[:2] / f"{digest}.png"
        assert writer.file_sha256(store.path(ref, "image")) == digest


def test_the_same_pixels_have_one_reference(store: BlobStore) -> None:
    image = noise()
    refs = {store.add(encode(image, kind, **LOSSLESS[kind]), "image") for kind in LOSSLESS}
    refs |= {store.add(encode(image.convert("RGBA"), "PNG", compress_level=9), "mask_image")}
    assert len(refs) == 1
    assert len(list(store.root.rglob("*.png"))) == 1
    assert store.add(encode(noise(41), "PNG"), "image") not in refs


def test_a_stored_picture_is_not_written_again(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(), "PNG")
    ref = store.add(data, "image")
    before = store.path(ref, "image").stat()

    def forbidden(*args: object, **values: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(writer, "write_file", forbidden)
    assert store.add(data, "image") == ref
    assert store.path(ref, "image").stat().st_mtime_ns == before.st_mtime_ns


def test_two_processes_add_the_same_picture(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise(300, 300), "PNG"))
    code = (
        "import sys, pathlib\n"
        "from studio.store.blobs import BlobStore\n"
        "for _ in range(20):\n"
        "    print(BlobStore(pathlib.Path(sys.argv[1])).add(pathlib.Path(sys.argv[2]), 'image'))"
    )
    command = [sys.executable, "-c", code, str(store.root), str(tmp_path / "a.png")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    refs = {line for process in both for line in process.communicate()[0].splitlines()}
    assert [process.returncode for process in both] == [0, 0]
    assert len(refs) == 1
    assert store.open(refs.pop(), "image").size == (300, 300)
    assert len([path for path in store.root.rglob("*") if path.is_file()]) == 1


def test_another_process_may_win_the_race(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data, real = encode(noise(), "PNG"), writer.write_file

    def late(path: Path, png: bytes, *, replace: bool = True) -> None:
        real(path, png)
        real(path, png, replace=replace)

    monkeypatch.setattr(writer, "write_file", late)
    assert store.open(store.add(data, "image"), "image").tobytes() == noise().tobytes()


@pytest.mark.parametrize("call", ["fsync", "link", "open"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: object, **values: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = encode(noise(), "PNG")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StorageError, match=r"picture for image could not be saved \(No space left on device\)"):
            store.add(data, "image")
    assert not [path for path in store.root.rglob("*") if path.is_file()]
    assert store.open(store.add(data, "image"), "image").size == (40, 24)


def test_a_damaged_blob_is_told_and_adding_it_again_heals_it(store: BlobStore) -> None:
    data = encode(noise(), "PNG")
    ref = store.add(data, "image")
    path = store.path(ref, "image")
    good = path.read_bytes()
    for spoil in (lambda old: old[:50] + bytes([old[50] ^ 1]) + old[51:], lambda old: old[:-9], lambda old: b""):
        path.write_bytes(spoil(good))
        with pytest.raises(InvalidRequest, match="was changed or damaged on disk; choose the picture again") as caught:
            store.open(ref, "mask_image")
        assert caught.value.field == "mask_image"
        assert store.add(data, "image") == ref
        assert path.read_bytes() == good


def test_a_blob_that_is_gone_is_told(store: BlobStore) -> None:
    ref = store.add(encode(noise(), "PNG"), "image")
    store.path(ref, "image").unlink()
    for look in (store.path, store.open):
        with pytest.raises(
            InvalidRequest, match=r"image=blob:\w{12}… is no longer in the blob folder; choose the pict"
        ):
            look(ref, "image")
    store.add(encode(noise(), "PNG"), "image")
    assert store.path(ref, "image").is_file()


HEX = "ab" * 32
NOT_REFERENCES: list[str] = [
    "", "blob:", HEX, f"blob:{HEX[:-1]}", f"blob:{HEX}0", f"blob:{HEX.upper()}", f"blob:{HEX}\n", f" blob:{HEX}", f"BLOB:{HEX}",
    f"blob:../{HEX[3:]}", "../../etc/passwd", "/etc/passwd", "blob:" + "/" * 64, "blob:" + "٣" * 64, f"blob:{HEX}/..", f"blob:{HEX}\0",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_REFERENCES)
def test_only_a_reference_becomes_a_path(store: BlobStore, text: str) -> None:
    assert not is_reference(text)
    looks: list[Callable[[str, str], object]] = [store.path, store.open]
    for look in looks:
        with pytest.raises(InvalidRequest, match="is not `blob:` and 64 hex digits; choose the picture again"):
            look(text, "image")


def test_a_reference_is_one() -> None:
    assert is_reference(f"blob:{HEX}")


def test_the_checks_can_fail() -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (16, 1)))
    naive = np.asarray(Image.open(io.BytesIO(encode(ramp, "PNG"))).convert("L"), int)
    assert np.abs(naive[0] - np.linspace(0, 255, 64)).max() > 50  # what Pillow does by itself
    exif = Image.Exif()
    exif[0x0112] = 6
    assert Image.open(io.BytesIO(encode(quarters(), "PNG", exif=exif))).size == (64, 48)  # lying on its side
