"""Datasets that people make: what is brought is taken or told, what is edited is what training sees, nothing is lost."""

import errno
import io
import json
import os
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pillow_heif
import pytest
import yaml
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from studio.__main__ import main
from studio.buckets import bucket_sizes, fill_buckets
from studio.caption_edits import edit_of, tag_counts
from studio.errors import InvalidRequest, StorageError
from studio.findings import Change
from studio.store.changes import Changes, Undone
from studio.store.collections import Datasets
from studio.store.kohya import read_kohya
from studio.store.library import Library
from studio.ui.datasets_api import DatasetsApi
from studio.ui.routes import Routes
from trainers.concepts import Concept
from trainers.config_files import check_config
from trainers.data import Shown, conditioning_pixels, framed, mask_pixels, pixels_of
from trainers.material import Pictures, fingerprint_problem
from trainers.methods import METHODS
from trainers.plan import CENTER

NAME = "my dog"


@pytest.fixture
def store(tmp_path: Path) -> Datasets:
    datasets = Datasets(tmp_path / "data" / "datasets")
    datasets.create(NAME)
    return datasets


def drawn(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def as_file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    if kind == "HEIF":
        buffer = io.BytesIO()
        pillow_heif.from_pillow(image).save(buffer, quality=90)
        return buffer.getvalue()
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def packed(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def bring(store: Datasets, tmp_path: Path, files: dict[str, bytes]) -> Any:
    """Add files as an upload does: under any name, from temporary files."""
    folder = tmp_path / "upload"
    folder.mkdir(exist_ok=True)
    given = []
    for number, (name, data) in enumerate(files.items()):
        (folder / str(number)).write_bytes(data)
        given.append((name, folder / str(number)))
    return store.add(NAME, given)


def here(store: Datasets) -> list[str]:
    folder = store.folder(NAME)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- names


@pytest.mark.parametrize("name", ["dog", "my dog 2", "Ünïcode_ä", "日本", "a.b-c (2)", "x" * 64])
def test_good_names(tmp_path: Path, name: str) -> None:
    store = Datasets(tmp_path / "datasets")
    assert store.create(f"  {name} ") == name
    assert store.names() == [name] and store.pictures(name) == []
    with pytest.raises(InvalidRequest, match="is taken"):
        store.create(name.upper())


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc",
        "C:x",
        "nul",
        "COM1.txt",
        "x.",
        "-x",
        ".x",
        "a\0b",
        "a:b",
        "x" * 65,
        "a|b",
        "a\u202eb",
    ],
)
def test_bad_names_never_become_a_folder(tmp_path: Path, name: str) -> None:
    store = Datasets(tmp_path / "datasets")
    with pytest.raises(InvalidRequest, match=r"name=|taken"):
        store.create(name)
    assert store.names() == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "picture",
    [
        "../a.png",
        "/etc/passwd.png",
        "a.txt",
        "x/../a.png",
        "a.png\0",
        "gone.png",
        "..\\a.png",
        "a/b/c.png",
        "link.png",
        "",
    ],
)
def test_a_picture_is_one_of_the_dataset(store: Datasets, tmp_path: Path, picture: str) -> None:
    (tmp_path / "data" / "datasets" / "a.png").write_bytes(as_file(drawn()))
    (store.folder(NAME) / "a.txt").write_text("x")
    (store.folder(NAME) / "link.png").symlink_to(tmp_path / "data" / "datasets" / "a.png")
    for call in (
        lambda: store.path(NAME, picture),
        lambda: store.set_caption(NAME, picture, "x"),
        lambda: store.set_edit(NAME, picture, left_out=True),
        lambda: store.remove(NAME, picture),
        lambda: store.thumbnail(NAME, picture),
    ):
        with pytest.raises(InvalidRequest, match="there is no picture"):
            call()
    for name in ("..", "", "gone", f"{NAME}/..", "."):
        with pytest.raises(InvalidRequest, match="there is no dataset"):
            store.folder(name)


# ---- what is brought

KINDS: dict[str, Callable[[], bytes]] = {
    "a.png": lambda: as_file(drawn()),
    "a.jpg": lambda: as_file(drawn(), "JPEG"),
    "a.webp": lambda: as_file(drawn(), "WEBP"),
    "a.bmp": lambda: as_file(drawn(), "BMP"),
    "a.tif": lambda: as_file(drawn(), "TIFF"),
    "a.avif": lambda: as_file(drawn(), "AVIF"),
    "IMG_0012.HEIC": lambda: as_file(drawn(), "HEIF"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_taken_byte_for_byte(store: Datasets, tmp_path: Path, name: str) -> None:
    data = KINDS[name]()
    added = bring(store, tmp_path, {name: data})
    assert not added.refused and len(added.pictures) == 1
    assert store.path(NAME, added.pictures[0]).read_bytes() == data
    (found,) = store.pictures(NAME)
    assert found.size == (48, 40) == store.image(NAME, found.name).size and not found.problem
    with Image.open(store.thumbnail(NAME, found.name)) as small:
        assert small.size == (48, 40)
    assert store.read(NAME).examples[0].size == (48, 40)


def test_a_phone_picture_of_48_megapixels(store: Datasets, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = as_file(Image.new("RGB", (8064, 6048), "teal"), "JPEG", exif=exif)
    assert bring(store, tmp_path, {"IMG_1.JPG": data}).pictures == ["IMG_1.jpg"]
    (found,) = store.pictures(NAME)
    assert found.size == (6048, 8064)  # upright
    with Image.open(store.thumbnail(NAME, found.name, 1280)) as small:
        assert small.size == (960, 1280)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_copies_do_not_say_where_they_were_taken(store: Datasets, tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "A phone", 6  # model, orientation
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.0), 3: "E", 4: (2.0, 17.0, 40.0), 29: "2026:01:02"})
    data = as_file(drawn(), kind, exif=exif)
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(0x8825)[2], "the test's own picture must say it"
    added = bring(store, tmp_path, {f"phone.{kind.lower()}": data})
    (name,) = added.pictures
    kept = (store.folder(NAME) / name).read_bytes()
    with Image.open(io.BytesIO(kept)) as image:
        assert not image.getexif().get_ifd(0x8825) and b"2026:01:02" not in kept
    assert any("(place, time, camera) was left out of the copy of" in note for note in added.notes)
    again = bring(store, tmp_path, {"other name.x": data})
    assert not again.pictures and "is the same picture as" in again.refused[0]


def test_a_hundred_megapixels_are_told(store: Datasets, tmp_path: Path) -> None:
    huge, good = as_file(Image.new("1", (10_000, 10_000))), as_file(drawn())
    added = bring(store, tmp_path, {"huge.png": huge, "good.png": good})
    assert added.pictures == ["good.png"] and len(added.refused) == 1
    assert added.refused[0].startswith("huge.png has ") and "pixels" in added.refused[0]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../evil.png", "evil.png"),
        ("C:\\Users\\me\\dog.png", "dog.png"),
        ("CON.png", "_CON.png"),
        ("日本 🐶.png", "日本 _.png"),
        ("a\u202egnp.png", "a_gnp.png"),
        ("<script>alert(1)</script>.png", "script_.png"),
        ("photo", "photo.png"),
        ("dog.jpeg", "dog.png"),  # what it is decides, not how it is called
        ("dog.tar.png", "dog.tar.png"),
        (f"{'x' * 300}.png", f"{'x' * 80}.png"),
        ("a\nb.png", "a_b.png"),
        (" .png", "picture.png"),
    ],
)
def test_odd_names(store: Datasets, tmp_path: Path, given: str, kept: str) -> None:
    assert bring(store, tmp_path, {given: as_file(drawn())}).pictures == [kept]
    assert here(store) == [kept] and store.pictures(NAME)[0].name == kept


def test_what_is_no_picture_is_told_and_the_rest_is_taken(store: Datasets, tmp_path: Path) -> None:
    files = {
        "a.png": as_file(drawn()), "b.png": b"no picture", "c.gif": b"GIF89a" + b"\0" * 40, "d.svg": b"<svg></svg>",
        "e.jpg": as_file(drawn(1, (300, 300)), "JPEG")[:2000], "f.png": b"", "g.pdf": b"%PDF-1.7", "alone.txt": b"words",
        "h-masklabel.png": as_file(drawn()), ".DS_Store": b"x", "Thumbs.db": b"x",
    }  # fmt: skip
    added = bring(store, tmp_path, files)
    assert added.pictures == ["a.png"] == here(store)
    assert len(added.refused) == 8 and all(" " in line and "\n" not in line for line in added.refused)
    told = " | ".join(added.refused)
    for part in ("b.png is not a picture", "c.gif is a GIF", "d.svg is an SVG", "e.jpg is a JPEG file that cannot be decoded",
                 "f.png is empty", "g.pdf is a PDF", "alone.txt has no picture", "h-masklabel.png belongs to a picture"):  # fmt: skip
        assert part in told


def test_the_same_picture_is_taken_once(store: Datasets, tmp_path: Path) -> None:
    data = as_file(drawn())
    added = bring(store, tmp_path, {"a.png": data, "copy.png": data})
    assert added.pictures == ["a.png"] and "copy.png is the same picture as a.png" in added.refused[0]
    again = bring(store, tmp_path, {"again.png": data, "again.txt": b"a dog"})
    assert "again.png is the same picture as a.png" in again.refused[0]
    assert store.pictures(NAME)[0].caption == "a dog" and again.captions == 1  # the words are not lost


def test_pictures_of_one_name_do_not_share_a_caption(store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn(1)), "a.txt": b"one"})
    bring(store, tmp_path, {"A.jpg": as_file(drawn(2), "JPEG"), "A.txt": b"two"})
    assert {one.name: one.caption for one in store.pictures(NAME)} == {"a.png": "one", "A-2.jpg": "two"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_captions_become_utf8(store: Datasets, tmp_path: Path, encoding: str) -> None:
    added = bring(store, tmp_path, {"a.png": as_file(drawn()), "a.txt": "café,\r\n a dog\n".encode(encoding)})
    assert (store.folder(NAME) / "a.txt").read_bytes() == "café, a dog".encode()
    assert bool(added.notes) == (encoding == "cp1252") and added.captions == 1


def test_a_caption_that_comes_later(store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn())})
    assert bring(store, tmp_path, {"a.txt": b"a dog"}).captions == 1
    added = bring(store, tmp_path, {"a.txt": b"a cat"})
    assert added.refused == ["a.txt was not taken, because a.png has a caption already"]
    assert store.pictures(NAME)[0].caption == "a dog"


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"a.txt": b"\x89PNG\r\n\x1a\n\0\0"}, "no text"),
        ({"a.txt": b"word " * 10_000}, "49,999 characters"),
        ({"a-masklabel.png": b"no"}, "its mask is not a picture"),
        ({"a.edit.json": b"{}}"}, "its edit cannot be read"),
    ],
)
def test_a_picture_waits_for_what_belongs_to_it(
    store: Datasets, tmp_path: Path, beside: dict[str, bytes], said: str
) -> None:
    added = bring(store, tmp_path, {"a.png": as_file(drawn())} | beside)
    assert len(added.refused) == 1 and said in added.refused[0] and added.refused[0].startswith("a.png ")
    assert here(store) == []  # nothing half


def test_a_zip_with_all_that_people_pack(store: Datasets, tmp_path: Path) -> None:
    row = {"file_name": "plain.png", "text": "told in metadata", "conditioning_image": "conditioning/other.png"}
    members = {
        "photos/10_sks dog/a.png": as_file(drawn(1)),
        "photos/10_sks dog/a.caption": b"a sks dog",
        "photos/plain.png": as_file(drawn(2)),
        "photos/metadata.jsonl": json.dumps(row).encode(),
        "photos/conditioning/other.png": as_file(drawn(3)),
        "photos/deeper/still/b.jpg": as_file(drawn(4), "JPEG"),
        "photos/deeper/still/b-masklabel.png": as_file(drawn(5)),
        "photos/.DS_Store": b"x",
        "__MACOSX/photos/._plain.png": b"x",
    }
    added = bring(store, tmp_path, {"dog.zip": packed(members)})
    assert not added.refused and sorted(added.pictures) == ["10_sks dog/a.png", "b.jpg", "plain.png"]
    read = {one.path.name: one for one in store.read(NAME).examples}
    assert (read["a.png"].repeats, read["a.png"].words, read["a.png"].caption) == (10, "sks dog", "a sks dog")
    assert read["plain.png"].caption == "told in metadata" and read["plain.png"].conditioning is not None
    assert read["b.jpg"].mask is not None


def test_names_that_macos_packs(store: Datasets, tmp_path: Path) -> None:
    data = packed({"dog.png": as_file(drawn())})
    data = data.replace(b"dog.png", "hü.png".encode())  # the same length, and the flag for UTF-8 is not set
    assert bring(store, tmp_path, {"x.zip": data}).pictures == ["hü.png"]


# ---- zips that attack


def zeros(size: int = 60_000_000) -> bytes:
    return packed({"a.png": as_file(drawn()), "zeros.png": bytes(size)})


def link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", as_file(drawn()))
        info = zipfile.ZipInfo("link.png")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def device() -> bytes:
    data = bytearray(link())
    place = data.rindex(struct.pack("<I", (stat.S_IFLNK | 0o777) << 16))
    data[place : place + 4] = struct.pack("<I", (stat.S_IFCHR | 0o666) << 16)
    return bytes(data)


def locked() -> bytes:
    data = bytearray(packed({"a.png": as_file(drawn())}))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def lying() -> bytes:
    """The table of contents says that there are few bytes."""
    data = bytearray(packed({"a.png": bytes(900_000)}))
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = struct.pack("<I", 1000)
    return bytes(data)


def overlapping() -> bytes:
    """Two entries that stand on the same bytes."""
    data = packed({"a.png": as_file(drawn()), "b.png": as_file(drawn())})
    place = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    return data[: place + 42] + struct.pack("<I", 0) + data[place + 46 :]


def damaged() -> bytes:
    data = bytearray(packed({"a.png": as_file(drawn(), "PNG")}))
    data[60] ^= 0xFF
    return bytes(data)


def twice() -> bytes:
    data = packed({"a.png": as_file(drawn(1)), "b.png": as_file(drawn(2))})
    return data.replace(b"b.png", b"a.png")


GOOD = as_file(drawn())
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (zeros, "zeros.png' with 60,000,000 bytes"),
    "flat bomb": (lambda: zeros(40_000_000), "unpacks to more than 100 times its size"),
    "many flat": (lambda: packed({f"{i}.png": bytes(9_000_000) for i in range(3)}), "more than 100 times"),
    "lying about its size": (lying, "is damaged"),
    "overlapping": (overlapping, "is damaged"),
    "damaged": (damaged, "is damaged"),
    "too many": (lambda: packed({f"{i}.txt": b"" for i in range(10_000)}), "has 10,000 files; at most 8,000"),
    "link": (link, "'link.png', which is a link or a device"),
    "device": (device, "'link.png', which is a link or a device"),
    "up": (lambda: packed({"a.png": GOOD, "../../evil.png": GOOD}), "'../../evil.png', which leads out"),
    "up inside": (lambda: packed({"x/../../evil.png": GOOD}), "which leads out"),
    "absolute": (lambda: packed({"/tmp/evil.png": GOOD}), "'/tmp/evil.png', which leads out"),
    "Windows up": (lambda: packed({"..\\evil.png": GOOD}), "which leads out"),
    "Windows drive": (lambda: packed({"C:/evil.png": GOOD}), "which leads out"),
    "locked": (locked, "is locked with a password"),
    "nested": (lambda: packed({"a.png": GOOD, "more.zip": packed({"b.png": GOOD})}), "another archive, 'more.zip'"),
    "cut off": (lambda: packed({"a.png": GOOD})[:-30], "is no zip that can be read, or is cut off"),
    "two of a name": (twice, "'a.png' twice"),
    "only the beginning": (lambda: b"PK\3\4" + bytes(200), "is no zip that can be read"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_bad_zip_is_refused_as_a_whole(store: Datasets, tmp_path: Path, attack: str) -> None:
    make, said = ATTACKS[attack]
    data = make()
    began = time.monotonic()
    added = bring(store, tmp_path, {"x.zip": data, "good.png": as_file(drawn(9))})
    assert time.monotonic() - began < 2
    assert len(added.refused) == 1 and added.refused[0].startswith("x.zip "), added
    assert said in added.refused[0] and "\n" not in added.refused[0]
    assert here(store) == ["good.png"] == added.pictures
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["cache", "datasets"]


def test_at_most_two_thousand_pictures_at_once(store: Datasets, tmp_path: Path) -> None:
    added = bring(store, tmp_path, {"x.zip": packed({f"{i}.png": b"x" for i in range(2_001)})})
    assert added.refused == ["2,001 pictures are too many at once; at most 2,000 are taken, bring fewer"]
    added = bring(store, tmp_path, {"x.zip": packed({f"{i}.png": b"x" for i in range(2_000)})})
    assert len(added.refused) == 2_000 and "is not a picture" in added.refused[0]


def test_a_folder_is_copied_without_what_it_links_to(store: Datasets, tmp_path: Path) -> None:
    folder = tmp_path / "kohya" / "5_sks dog"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(as_file(drawn(1)))
    (folder / "a.txt").write_text("a sks dog")
    (tmp_path / "secret.png").write_bytes(as_file(drawn(2)))
    (folder / "b.png").symlink_to(tmp_path / "secret.png")
    added = store.add_folder(NAME, tmp_path / "kohya")
    assert added.pictures == ["5_sks dog/a.png"] and here(store) == ["5_sks dog/a.png", "5_sks dog/a.txt"]
    for wrong in (tmp_path / "gone", folder / "a.png", Path("\0")):
        with pytest.raises(InvalidRequest, match="folder="):
            store.add_folder(NAME, wrong)


def test_an_upload_in_pieces(store: Datasets) -> None:
    data, upload = as_file(drawn(1, (200, 200))), "0123456789abcdef" * 2
    assert store.uploads.append(upload, 0, 0, data[:1000]) == 1000
    with pytest.raises(InvalidRequest, match="a part of the file is missing"):
        store.uploads.append(upload, 0, 2000, data[2000:])
    store.uploads.append(upload, 0, 1000, b"torn")  # the connection broke: the piece comes again
    assert store.uploads.append(upload, 0, 1000, data[1000:]) == len(data)
    with pytest.raises(InvalidRequest, match="not complete"):
        store.uploads.files(upload, ["a.png", "b.png"])
    assert store.add(NAME, store.uploads.files(upload, ["a.png"])).pictures == ["a.png"]
    store.uploads.drop(upload)
    for wrong in ("", "../x", "0" * 31, upload + "/.."):
        with pytest.raises(InvalidRequest, match="not known"):
            store.uploads.append(wrong, 0, 0, b"x")
    with pytest.raises(InvalidRequest, match="more than 2,000,000,000 bytes"):
        store.uploads.append(upload, 0, 2_000_000_000, b"x")
    assert list(store.uploads.root.iterdir()) == []


# ---- edits are what training sees


def shown(datasets: Datasets, name: str, size: tuple[int, int] = (32, 32)) -> Shown:
    return Shown(datasets.read(name).examples[0], size, CENTER, False)


def test_a_crop_by_hand_is_what_training_sees(store: Datasets, tmp_path: Path) -> None:
    """Cropped by hand and cropped in the file are the same: pixels, mask, control picture, and where it comes from."""
    whole = {
        name: drawn(seed, (80, 60)) for seed, name in enumerate(("a.png", "a-masklabel.png", "conditioning/a.png"))
    }
    bring(store, tmp_path, {"x.zip": packed({name: as_file(image) for name, image in whole.items()})})
    store.set_edit(NAME, "a.png", crop=(0.25, 0.1, 0.75, 0.9))
    store.create("by file")
    for name, image in whole.items():
        path = store.folder("by file") / name
        path.parent.mkdir(exist_ok=True)
        image.crop((20, 6, 60, 54)).save(path)
    one, other = shown(store, NAME), shown(store, "by file")
    assert one.example.size == other.example.size == (40, 48)
    assert framed(one.example.size, one) == framed(other.example.size, other)
    for read in (pixels_of, conditioning_pixels, lambda shown: mask_pixels(shown, 8)):
        assert (read(one) == read(other)).all()
    assert (store.folder(NAME) / "a.png").read_bytes() == as_file(whole["a.png"])  # untouched
    assert json.loads((store.folder(NAME) / "a.edit.json").read_text()) == {"crop": [0.25, 0.1, 0.75, 0.9]}


def test_a_run_knows_the_crop_and_old_runs_know_nothing_of_it(store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn(1)), "a.txt": b"x", "b.png": as_file(drawn(2)), "b.txt": b"y"})

    def pictures() -> Pictures:
        return Pictures([Concept(dataset=NAME)], store.root)

    before, key = pictures().fingerprint, shown(store, NAME).key
    assert [len(row) for row in before] == [6, 6] and json.loads(key)[1:] == [[32, 32], CENTER, False]
    store.set_edit(NAME, "a.png", crop=(0, 0, 0.5, 1))
    assert fingerprint_problem(before, pictures().fingerprint) == "changed: 'a.png'"
    assert shown(store, NAME).key != key
    store.set_edit(NAME, "a.png", crop=None)
    assert pictures().fingerprint == before and here(store) == ["a.png", "a.txt", "b.png", "b.txt"]
    store.set_edit(NAME, "b.png", left_out=True)
    assert fingerprint_problem(before, pictures().fingerprint) == "gone: 'b.png'"
    store.set_edit(NAME, "a.png", left_out=True)
    with pytest.raises(InvalidRequest, match="all 2 are left out, put some back"):
        store.read(NAME)
    store.set_edit(NAME, "b.png", left_out=False)
    assert [one.path.name for one in store.read(NAME).examples] == ["b.png"]


def test_crop_and_left_out_do_not_disturb_each_other(store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn())})
    store.set_edit(NAME, "a.png", crop=[0, 0, 0.5, 0.5])
    assert store.set_edit(NAME, "a.png", left_out=True).crop == (0, 0, 0.5, 0.5)
    assert store.set_edit(NAME, "a.png", crop=None).left_out
    assert store.set_edit(NAME, "a.png", crop=(0, 0, 1, 1)).crop is None  # all of it is no crop


@pytest.mark.parametrize(
    "crop",
    [(0, 0, 1), "0011", (0, 0, 2, 1), (0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 0, float("nan"), 1),
     (0, 0, True, 1), (0, 0, "1", 1), (0, 0, 0.1, 1), {"left": 0}, 3],
)  # fmt: skip
def test_a_wrong_crop_is_refused(store: Datasets, tmp_path: Path, crop: Any) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn())})
    with pytest.raises(InvalidRequest, match="crop"):
        store.set_edit(NAME, "a.png", crop=crop)
    assert here(store) == ["a.png"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe\0", b'{"crop": [0, 0, 2, 1]}', b'{"crop": "all"}', b'{"left_out": 1}', b'{"rotate": 90}',
     b"[" * 5000, b" " * 20_000, b'{"crop": [0, 0, 1e999, 1]}', b"null", b'{"crop": [0, 0, 0.01, 1]}'],
)  # fmt: skip
def test_a_damaged_edit_is_told(store: Datasets, tmp_path: Path, content: bytes) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn(1)), "b.png": as_file(drawn(2))})
    (store.folder(NAME) / "a.edit.json").write_bytes(content)
    found = store.read(NAME)
    assert [one.path.name for one in found.examples] == ["b.png"] and len(found.refused) == 1
    assert "a.edit.json" in found.refused[0] or "is cropped to" in found.refused[0]
    assert store.pictures(NAME)[0].problem and not store.pictures(NAME)[1].problem


# ---- captions, masks, trash


def test_captions_are_kept_at_once(store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn())})
    assert store.set_caption(NAME, "a.png", "  a  dog\n on grass ") == "a dog on grass"
    assert Datasets(store.root).pictures(NAME)[0].caption == "a dog on grass"
    store.set_caption(NAME, "a.png", " ")
    assert here(store) == ["a.png"] and store.pictures(NAME)[0].caption is None
    for wrong in ("a\0b", "x" * 20_001):
        with pytest.raises(InvalidRequest, match="caption has"):
            store.set_caption(NAME, "a.png", wrong)


def test_an_empty_caption_hides_what_metadata_says(store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn())})
    (store.folder(NAME) / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "told"}\n')
    assert store.pictures(NAME)[0].caption == "told"
    store.set_caption(NAME, "a.png", "")
    assert store.pictures(NAME)[0].caption == ""


def test_a_full_disk_loses_no_caption(store: Datasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn()), "a.txt": b"before"})
    new = tmp_path / "b"
    new.write_bytes(as_file(drawn(2)))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"the disk is full: the caption of a\.png could not be saved"):
            store.set_caption(NAME, "a.png", "after")
        with pytest.raises(StorageError, match=r"the disk is full: b\.png could not be saved"):
            store.add(NAME, [("b.png", new)])
    assert store.pictures(NAME)[0].caption == "before" and here(store) == ["a.png", "a.txt"]


def test_many_captions_at_once_and_back(store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn(1)), "a.txt": b"a dog", "b.png": as_file(drawn(2))})
    changes = Changes(store)

    def write(**captions: str) -> int:
        return changes.make(NAME, [Change(f"{name}.png", "caption", text) for name, text in captions.items()], "bulk")

    assert write(a="sks, a dog", b="sks") == 2
    assert [one.caption for one in store.pictures(NAME)] == ["sks, a dog", "sks"]
    assert changes.undo(NAME).number == 2
    assert [one.caption for one in store.pictures(NAME)] == ["a dog", None]
    for wrong in ({"a": "x", "gone": "y"}, {"a": "x", "b": "y" * 20_001}):
        with pytest.raises(InvalidRequest, match=r"there is no picture|caption has"):
            write(**wrong)
    assert store.pictures(NAME)[0].caption == "a dog" and changes.last(NAME) == ""  # nothing changed
    assert write(a="sks", b="sks") == 2
    store.remove(NAME, "b.png")
    assert changes.undo(NAME) == Undone("bulk", 1, ("b.png",))  # of what is still there


def test_a_mask_has_the_size_of_its_picture(store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn())})
    store.set_mask(NAME, "a.png", Image.new("L", (48, 40), 255))
    assert store.pictures(NAME)[0].has_mask and store.read(NAME).examples[0].mask is not None
    with pytest.raises(InvalidRequest, match=r"mask has 40 x 48 pixels; a.png has 48 x 40"):
        store.set_mask(NAME, "a.png", Image.new("L", (40, 48)))
    store.set_mask(NAME, "a.png", None)
    assert here(store) == ["a.png"]


def test_removed_is_not_lost(store: Datasets, tmp_path: Path) -> None:
    files = {"a.png": as_file(drawn(1)), "a.txt": b"x", "a-masklabel.png": as_file(drawn(2)),
             "conditioning/a.png": as_file(drawn(3)), "b.png": as_file(drawn(4))}  # fmt: skip
    bring(store, tmp_path, {"x.zip": packed(files)})
    store.set_edit(NAME, "a.png", left_out=True)
    before = here(store)
    entry = store.remove(NAME, "a.png")
    assert here(store) == ["b.png"] and store.removed(NAME) == [entry]
    bring(store, tmp_path, {"a.png": as_file(drawn(9))})
    with pytest.raises(InvalidRequest, match="is there again"):
        store.restore(NAME, entry)
    store.remove(NAME, "a.png")
    store.restore(NAME, entry)
    assert here(store) == before
    for wrong in ("gone", "..", entry):
        with pytest.raises(InvalidRequest, match="is not in the trash"):
            store.restore(NAME, wrong)
    kept = store.discard(NAME)
    assert store.names() == [] and (kept / "b.png").is_file()


def test_the_trash_is_emptied_when_a_person_says_so(client: TestClient, store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {f"{name}.png": as_file(drawn(i)) for i, name in enumerate("abc")})
    for name in ("a.png", "b.png"):
        store.remove(NAME, name)
    assert client.post(f"{PLACE}/empty", json={}).json() == {"number": 2}
    assert store.removed(NAME) == [] and here(store) == ["c.png"] and not list(store.trash.rglob("*.png"))
    store.discard(NAME)
    store.create(NAME)
    store.discard(NAME)
    rows = client.get("/studio/discarded").json()["discarded"]
    assert [one["name"] for one in rows] == [NAME, NAME] and sorted(one["bytes"] > 0 for one in rows) == [False, True]
    full, empty = sorted(rows, key=lambda one: -one["bytes"])
    assert client.post(f"/studio/discarded/{empty['id']}/erase").json()["discarded"] == [full]
    store.create(NAME.upper())
    assert client.post(f"/studio/discarded/{full['id']}/recall").json() == {"name": f"{NAME} 2"}
    assert [one.name for one in store.pictures(f"{NAME} 2")] == ["c.png"]
    for wrong in (full["id"], "..", "x%2f..%2fx", NAME):
        for action in ("recall", "erase"):
            assert client.post(f"/studio/discarded/{wrong}/{action}").status_code in (400, 404)
    assert set(store.names()) == {f"{NAME} 2", NAME.upper()}


def test_a_twin_keeps_the_caption(store: Datasets) -> None:
    for name in ("a.png", "a.jpg"):
        drawn(len(name)).save(store.folder(NAME) / name)
    store.set_caption(NAME, "a.png", "both")
    store.remove(NAME, "a.png")
    assert store.pictures(NAME)[0].caption == "both"


def test_what_a_person_drops_into_the_folder_appears(store: Datasets, tmp_path: Path) -> None:
    folder = store.folder(NAME)
    drawn(1).save(folder / "a.png")
    assert store.pictures(NAME)[0].size == (48, 40)
    drawn(1, (20, 30)).save(folder / "a.png")  # replaced: nothing old is shown
    assert store.pictures(NAME)[0].size == (20, 30)
    with Image.open(store.thumbnail(NAME, "a.png")) as small:
        assert small.size == (20, 30)
    (folder / "b.png").write_text("no picture")
    (tmp_path / "secret.png").write_bytes(as_file(drawn(2)))
    (folder / "c.png").symlink_to(tmp_path / "secret.png")
    problems = [one.problem for one in store.pictures(NAME)]
    assert not problems[0] and "is not a picture" in problems[1] and "a link to a place outside" in problems[2]
    with pytest.raises(InvalidRequest, match=r"b\.png is not a picture"):
        store.thumbnail(NAME, "b.png")


# ---- many captions, buckets, kohya's files, the command


@pytest.mark.parametrize(
    ("edit", "texts", "before", "after"),
    [
        ("prefix", ["sks dog,"], "on grass", "sks dog, on grass"),
        ("prefix", ["a photo of"], "", "a photo of"),
        ("suffix", [", best quality"], "a dog", "a dog, best quality"),
        ("suffix", ["on grass"], "a dog", "a dog on grass"),
        ("suffix", [", red"], "", "red"),
        ("replace", ["dog", "cat"], "a dog, dogs", "a cat, cats"),
        ("replace", ["a dog ", ""], "a dog on grass", "on grass"),
        ("replace", ["(.*)", "x"], "a (.*) dog", "a x dog"),
        ("trigger", ["sks"], "a dog", "sks, a dog"),
        ("trigger", ["sks"], "a sks dog", "a sks dog"),
        ("trigger", ["sks"], "masks", "sks, masks"),
        ("trigger", ["sks"], "", "sks"),
        ("remove_tag", ["red"], "a ball, red, redder, red", "a ball, redder"),
        ("remove_tag", ["red"], "red", ""),
    ],
)
def test_changes_of_captions(edit: str, texts: list[str], before: str, after: str) -> None:
    assert edit_of(edit, texts)(before) == after


@pytest.mark.parametrize(("edit", "texts"), [("x", ["a"]), (None, []), ("prefix", []), ("prefix", [" "]), ("replace", ["a"]), ("prefix", "a"), ("prefix", [1])])  # fmt: skip
def test_a_change_that_is_none_is_refused(edit: Any, texts: Any) -> None:
    with pytest.raises(InvalidRequest):
        edit_of(edit, texts)


def test_tags_are_counted_once_a_caption() -> None:
    assert tag_counts(["a, b, a", "b ,c", ""]) == [("b", 2), ("a", 1), ("c", 1)]


def test_buckets_say_what_is_enlarged_and_cut() -> None:
    found = fill_buckets([(1024, 1024), (300, 300), (600, 800), (4000, 500)], bucket_sizes(512, 64))
    assert [(one.size, one.pictures, one.enlarged) for one in found] == [((512, 512), 2, 1), ((448, 576), 1, 0), ((768, 320), 1, 0)]  # fmt: skip
    assert found[0].cut == 0 and found[2].cut == pytest.approx(1 - (768 / 320) / 8)


TOML = """
[general]
shuffle_caption = true
keep_tokens = 1
caption_extension = ".txt"
[[datasets]]
resolution = 768
batch_size = 2
bucket_reso_steps = 32
max_bucket_reso = 1024
  [[datasets.subsets]]
  image_dir = "dogs"
  class_tokens = "sks dog"
  num_repeats = 10
  [[datasets.subsets]]
  image_dir = "cats"
  caption_extension = ".tags"
  [[datasets.subsets]]
  image_dir = "class"
  is_reg = true
  class_tokens = "dog"
"""


def test_kohyas_file_is_what_our_trainer_takes(tmp_path: Path) -> None:
    for name in ("dogs", "cats", "class"):
        (tmp_path / name).mkdir()
    path = tmp_path / "dataset.toml"
    path.write_text(TOML)
    told = read_kohya(path)
    assert told.fields == {
        "concepts": [
            {"dataset": str(tmp_path / "dogs"), "instance_prompt": "sks dog", "repeats": 10},
            {"dataset": str(tmp_path / "cats")},
        ],
        "resolution": 768, "train_batch_size": 2, "bucket_step": 32, "shuffle_caption": True, "keep_tokens": 1,
        "with_prior_preservation": True, "class_data_dir": str(tmp_path / "class"), "class_prompt": "dog",
    }  # fmt: skip
    assert [note.split()[0] for note in told.notes] == ["captions", "is_reg", "max_bucket_reso"]
    config = check_config(METHODS["dreambooth"][0], yaml.safe_load(yaml.safe_dump(told.fields)))
    assert config.told_concepts[0].repeats == 10
    (tmp_path / "dataset.json").write_text(json.dumps({"datasets": [{"resolution": [512, 512], "subsets": [{"image_dir": "dogs", "flip_aug": True}]}]}))  # fmt: skip
    fields = read_kohya(tmp_path / "dataset.json").fields
    assert fields == {"concepts": [{"dataset": str(tmp_path / "dogs")}], "resolution": 512, "random_flip": True}
    check_config(METHODS["lora"][0], fields)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", "[[datasets", "cannot be read as TOML"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.json", "[]", "must be a table"),
        ("a.json", '{"datasets": 3}', "must be a list of tables"),
        ("a.json", '{"datasets": [{"subsets": [3]}]}', "must be a list of tables"),
        ("a.json", '{"datasets": []}', "has 0 subsets"),
        ("a.json", '{"datasets": [{"subsets": [{"image_dir": "gone"}]}]}', "image_dir='gone' is no folder here"),
        ("a.json", '{"datasets": [{"subsets": [{}]}]}', "image_dir='' is no folder here"),
        ("a.json", '{"datasets": [{"subsets": [{"image_dir": 3}]}]}', "image_dir=3 must be text"),
        (
            "a.json",
            '{"datasets": [{"subsets": [{"image_dir": ".", "num_repeats": 0}]}]}',
            "num_repeats=0 must be from 1",
        ),
        ("a.json", '{"datasets": [{"subsets": [{"image_dir": ".", "num_repeats": NaN}]}]}', "NaN is no number"),
        ("a.json", '{"datasets": [{"subsets": [{"image_dir": ".", "is_reg": true}]}]}', "has only is_reg folders"),
        ("a.toml", "#" * 300_000, "more than 256,000 bytes"),
    ],
)
def test_a_wrong_kohya_file_is_one_sentence(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidRequest) as refused:
        read_kohya(tmp_path / name)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_command_lists_them(store: Datasets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn(1)), "a.txt": b"x", "b.png": as_file(drawn(2)), "c.png": as_file(drawn(3))})  # fmt: skip
    store.set_edit(NAME, "c.png", left_out=True)
    assert main(["--data-dir", str(tmp_path / "data"), "datasets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": NAME, "pictures": 2, "captions": 1, "masks": 0, "left_out": 1}
    ]
    assert main(["--data-dir", str(tmp_path / "data"), "datasets"]) == 0
    assert capsys.readouterr().out.strip() == "my dog  2 pictures  1 captions  0 masks  1 left out"


# ---- routes


@pytest.fixture
def client(store: Datasets) -> TestClient:
    services: Any = SimpleNamespace(
        library=Library((), part_roots=()), public=False, datasets=store, changes=Changes(store), training=None
    )
    return TestClient(Starlette(routes=Routes(services).table()))


PLACE = "/studio/datasets/my%20dog"


def test_every_change_is_a_route(client: TestClient, store: Datasets, tmp_path: Path) -> None:
    upload, data = "a" * 32, as_file(drawn(1, (400, 300)))
    for at in range(0, len(data), 100_000):
        sent = client.post(f"{PLACE}/piece?upload={upload}&file=0&at={at}", content=data[at : at + 100_000])
        assert sent.status_code == 200
    added = client.post(f"{PLACE}/add", json={"upload": upload, "names": ["<b>dog</b>.png"]}).json()
    name = added["pictures"][0]
    assert client.post(f"{PLACE}/caption", json={"picture": name, "text": "a  dog"}).json() == {"caption": "a dog"}
    assert client.post(f"{PLACE}/edit", json={"picture": name, "crop": [0, 0, 0.5, 1]}).json()["crop"] == [0, 0, 0.5, 1]
    assert client.post(f"{PLACE}/captions", json={"edit": "trigger", "texts": ["sks"]}).json() == {"number": 1}
    found = client.get(f"{PLACE}?resolution=512&step=64").json()
    (row,) = found["pictures"]
    assert (row["caption"], row["size"], row["bucket"], row["enlarged"]) == ("sks, a dog", [400, 300], [384, 640], True)
    assert found["tags"] == [["sks", 1], ["a dog", 1]] or found["tags"] == [["a dog", 1], ["sks", 1]]
    assert found["buckets"] == [{"size": [384, 640], "pictures": 1, "enlarged": 1, "cut": pytest.approx(0.1)}]
    assert found["undo"] == "Trigger word in front: sks"
    undone = client.post(f"{PLACE}/undo", json={}).json()
    assert undone == {"number": 1, "title": "Trigger word in front: sks", "changed_since": []}
    assert client.post(f"{PLACE}/remove", json={"picture": name}).status_code == 200
    assert client.get(f"{PLACE}?resolution=512&step=64").json()["removed"] == 1
    assert client.post(f"{PLACE}/restore", json={"all": True}).json() == {"number": 1}
    assert store.pictures(NAME)[0].caption == "a dog"


def test_thumbnails_are_sent_once(client: TestClient, store: Datasets, tmp_path: Path) -> None:
    bring(store, tmp_path, {"5_x/a b.png": as_file(drawn(1, (800, 600)))})
    url = f"{PLACE}/thumbnail/5_x/a%20b.png"
    answer = client.get(url)
    assert answer.headers["content-type"] == "image/webp" and len(answer.content) < 100_000
    assert client.get(url, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.get(f"{url}?large=1").headers["etag"] != answer.headers["etag"]
    for wrong in ("gone.png", "..%2f..%2fx.png", "%2fetc%2fpasswd", "a%00.png"):
        assert client.get(f"{PLACE}/thumbnail/{wrong}").status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [("caption", {"picture": "a.png"}), ("caption", {"picture": "gone.png", "text": "x"}), ("caption", {"picture": 3, "text": "x"}),
     ("caption", []), ("edit", {"picture": "a.png", "crop": "x"}), ("edit", {"picture": "a.png", "left_out": 1}), ("remove", {}),
     ("captions", {"edit": "run"}), ("add", {"upload": "x", "names": ["a"]}), ("add", {"upload": "a" * 32, "names": "a"}),
     ("undo", {}), ("add", {"upload": "../" * 10 + "aa", "names": ["a"]})],
)  # fmt: skip
def test_wrong_calls_are_one_sentence(
    client: TestClient, store: Datasets, tmp_path: Path, path: str, body: Any
) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn())})
    answer = client.post(f"{PLACE}/{path}", json=body)
    assert answer.status_code == 400 and answer.json()["error"] and "\n" not in answer.json()["error"]
    assert here(store) == ["a.png"]


@pytest.mark.parametrize(
    "query", ["", "resolution=10&step=64", "resolution=500&step=64", "resolution=x&step=8", "resolution=512&step=9"]
)
def test_a_wrong_resolution_is_told(client: TestClient, store: Datasets, tmp_path: Path, query: str) -> None:
    bring(store, tmp_path, {"a.png": as_file(drawn())})
    found = client.get(f"{PLACE}?{query}").json()
    assert [one["name"] for one in found["pictures"]] == ["a.png"] and found["buckets"] == []
    assert found["size_problem"].startswith(("resolution=", "step="))
    answer = client.get(f"{PLACE}/bucket?width=400&height=300&{query}")
    assert answer.status_code == 400 and answer.json()["error"] == found["size_problem"]


def test_strangers_find_nothing(store: Datasets) -> None:
    services: Any = SimpleNamespace(library=Library((), part_roots=()), public=True, datasets=store, training=None)
    client = TestClient(Starlette(routes=Routes(services).table()))
    assert client.get(f"{PLACE}?resolution=512&step=64").status_code == 404
    assert client.post(f"{PLACE}/caption", json={"picture": "a.png", "text": "x"}).status_code == 404
    assert DatasetsApi(services).datasets() == []
