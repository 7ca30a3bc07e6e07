"""Pictures: committed before they are known, found again, never overwritten, and the index can always be made anew."""

import errno
import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from studio.errors import StorageError, StudioError
from studio.records import ImageRecord, Machine, ModelRef
from studio.spec import GenerationRequest
from studio.store import writer
from studio.store.gallery import Gallery, new_image_id, utc_now
from studio.store.index import Database, ImageIndex
from studio.store.metadata import from_comfyui, from_parameters, read_picture, to_parameters, without_paths

MACHINE = Machine(studio="0", torch="0", diffusers="0", transformers="0", device="CPU", dtype="float32", cpu_threads=1)
MODEL = ModelRef(id="shapes", path="/m", title="Shapes", family="sd1", sha256="ab" * 32)
DEFAULTS = {
    "width": 64,
    "height": 64,
    "num_inference_steps": 9,
    "guidance_scale": 2.5,
    "scheduler": "DPM++ 2M",
    "sigmas": "karras",
}


def png() -> bytes:
    from studio.engine.previews import encode_png

    return encode_png(np.full((64, 64, 3), 90, np.uint8))


def record(prompt: str = "a red circle", seed: int = 5, **values: object) -> ImageRecord:
    request = GenerationRequest(prompt=prompt, seed=seed, **(DEFAULTS | values))
    now = utc_now()
    return ImageRecord(
        id=new_image_id(now), created=now.isoformat(), request=request, model=MODEL, seed=seed, index=0, machine=MACHINE
    )


def test_a_committed_picture_says_how_it_was_made(gallery: Gallery) -> None:
    made = record("ünïcode 🔴, (weights:1.2)", negative_prompt="blurry")
    path = gallery.commit(png(), made)
    found = read_picture(path)
    assert found.record
    assert without_paths(found.record.model_dump()) == without_paths(made.model_dump())
    assert found.values["prompt"] == "ünïcode 🔴, (weights:1.2)"
    a1111 = from_parameters(found.text)
    assert a1111.values == {
        "prompt": made.request.prompt,
        "negative_prompt": "blurry",
        "num_inference_steps": 9,
        "guidance_scale": 2.5,
        "seed": 5,
        "width": 64,
        "height": 64,
        "scheduler": "DPM++ 2M",
        "sigmas": "karras",
    }
    assert gallery.path(made.id) == path


def test_a1111_files_are_read_as_far_as_they_go() -> None:
    text = (
        "masterpiece, (cat:1.3)\nsecond line\nNegative prompt: bad, worse\n"
        "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 123, Size: 512x768, Model hash: 6ce0161689, Model: v1-5, Clip skip: 2, "
        'Lora hashes: "add: 1, detail: 2", Version: v1.6.0'
    )
    found = from_parameters(text)
    assert found.values["prompt"] == "masterpiece, (cat:1.3)\nsecond line"
    assert found.values["negative_prompt"] == "bad, worse"
    assert (found.values["scheduler"], found.values["sigmas"], found.values["clip_skip"]) == ("DPM++ 2M", "karras", 1)
    assert (found.values["width"], found.values["height"], found.values["seed"]) == (512, 768, 123)
    assert any("v1-5" in note for note in found.notes)
    spaced = from_parameters("x\nSteps: 4, Sampler: Euler, Schedule type: SGM Uniform").values
    assert (spaced["scheduler"], spaced["sigmas"]) == ("Euler", "sgm_uniform")
    for hostile in ("Steps: 1," + " " * 50_000 + "!", "Steps: 1, " + "a" * 50_000, "Steps: 1" + ", a: " * 20_000):
        began = time.process_time()
        from_parameters(hostile)
        assert time.process_time() - began < 1
    assert from_parameters("just a prompt").values["prompt"] == "just a prompt"
    assert any("not known" in note for note in from_parameters("x\nSteps: 2, Sampler: Magic").notes)


def test_comfyui_graphs_are_read_as_far_as_they_go() -> None:
    graph = (
        '{"3": {"class_type": "KSampler", "inputs": {"seed": 42, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m", "scheduler": "karras",'
        ' "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},'
        ' "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640}},'
        ' "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}}, "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog"}}}'
    )
    values = from_comfyui(graph).values
    assert values["prompt"] == "a cat"
    assert (values["negative_prompt"], values["seed"], values["width"], values["height"]) == ("dog", 42, 512, 640)
    assert (values["scheduler"], values["sigmas"]) == ("DPM++ 2M", "karras")
    for broken in (
        "",
        "[]",
        '{"3": 1}',
        "[" * 100_000,
        '{"3": {"class_type": "KSampler", "inputs": {"positive": []}}}',
    ):
        from_comfyui(broken)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty.png", b""), ("text.png", b"hello"), ("cut.png", png()[:40])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StudioError, match="is not a picture"):
            read_picture(tmp_path / name)


def test_a_full_disk_announces_nothing(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = record()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            gallery.commit(png(), made)
    assert gallery.index.page() == []
    assert list(gallery.root.rglob("*.png")) == []
    gallery.commit(png(), made)
    assert [row["id"] for row in gallery.index.page()] == [made.id]


def test_star_trash_restore_and_empty(gallery: Gallery) -> None:
    first, second = record(), record()
    for each in (first, second):
        gallery.commit(png(), each)
    gallery.star([first.id], True)
    assert gallery.trash([first.id, second.id, "nonsense"]) == 1  # the starred one stays
    assert [row["id"] for row in gallery.index.page()] == [first.id]
    assert gallery.path(second.id).is_file()
    assert gallery.restore([second.id]) == 1
    assert len(gallery.index.page()) == 2
    gallery.star([first.id], False)
    gallery.trash([first.id])
    assert gallery.index.usage()["trashed"] == 1
    assert gallery.empty_trash() == 1
    with pytest.raises(StudioError):
        gallery.path(first.id)
    assert [path.stem for path in gallery.root.rglob("*.png")] == [second.id]


def test_a_zip_holds_what_was_chosen(gallery: Gallery) -> None:
    made = [record(seed=i) for i in range(3)]
    for each in made:
        gallery.commit(png(), each)
    file = io.BytesIO()
    assert gallery.zip([made[0].id, made[2].id, "../../etc/passwd"], file) == 2
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == [f"{made[0].id}.png", f"{made[2].id}.png"]
        assert archive.read(f"{made[0].id}.png") == gallery.path(made[0].id).read_bytes()


def test_the_index_is_rebuilt_equal(gallery: Gallery, tmp_path: Path) -> None:
    for number in range(6):
        gallery.commit(png(), record(f"picture number {number}", seed=number))
    ids = [str(row["id"]) for row in gallery.index.page()]
    gallery.star([ids[0]], True)
    gallery.trash([ids[3]])
    before = [
        {k: v for k, v in row.items() if k not in ("seq", "owner")}
        for row in gallery.index.page() + gallery.index.page(trashed=True)
    ]
    other = Gallery(gallery.root, ImageIndex(Database(tmp_path / "other.db")))
    assert other.reconcile(rebuild=True) == 6
    after = [
        {k: v for k, v in row.items() if k not in ("seq", "owner")}
        for row in other.index.page() + other.index.page(trashed=True)
    ]
    key = lambda row: str(row["id"])  # noqa: E731
    assert sorted(after, key=key) == sorted(before, key=key)
    assert other.reconcile() == 0
    assert gallery.reconcile(rebuild=True) == 6


def test_pages_follow_one_another_under_filters(gallery: Gallery) -> None:
    rows = [
        {
            "id": f"i{n:05d}", "path": f"p/{n}.png", "day": f"2026-01-{n % 28 + 1:02d}", "model": f"m{n % 3}", "prompt": f"word{n % 7} common thing{n}",
            "width": 64, "height": 64, "seed": n, "owner": "", "bytes": 10, "starred": int(n % 10 == 0), "trashed": int(n % 50 == 0),
        }
        for n in range(1000)
    ]  # fmt: skip
    gallery.index.add(rows)
    for filters, wanted in (
        ({}, [r for r in rows if not r["trashed"]]),
        ({"model": "m1"}, [r for r in rows if r["model"] == "m1" and not r["trashed"]]),
        ({"starred": True}, [r for r in rows if r["starred"] and not r["trashed"]]),
        ({"trashed": True}, [r for r in rows if r["trashed"]]),
        ({"words": "common word3"}, [r for r in rows if "word3 " in str(r["prompt"]) and not r["trashed"]]),
        (
            {"words": "thing99", "day": "2026-01-01"},
            [r for r in rows if "thing99" in str(r["prompt"]) and r["day"] == "2026-01-01" and not r["trashed"]],
        ),
    ):
        seen, before = [], None
        while page := gallery.index.page(before=before, limit=37, **filters):
            seen += [row["id"] for row in page]
            before = page[-1]["seq"]
        assert seen == [r["id"] for r in reversed(wanted)], filters
    for words in ('"', "AND OR NOT", "a* b^", "'; DROP TABLE images", "NEAR(", "-x", "{", "\0"):
        gallery.index.page(words=words)
    assert len(gallery.index.page(limit=2000)) == 980


def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    database = Database(tmp_path / "studio.db")
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(StorageError, match="newer Studio"):
        Database(tmp_path / "studio.db")


def test_parameters_text_has_a1111s_form() -> None:
    text = to_parameters(record("p", clip_skip=1, eta=0.5))
    assert text.splitlines()[0] == "p"
    assert "Steps: 9, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 2.5, Seed: 5, Size: 64x64" in text
    assert "Clip skip: 2" in text


def test_leftovers_of_a_crash_are_swept(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / f"{writer.PART}999999998-a").write_bytes(b"")
    (tmp_path / f"{writer.PART}999999999-b").mkdir()
    (tmp_path / f"{writer.PART}{os.getpid()}-c").write_bytes(b"somebody is writing this")
    assert writer.sweep(tmp_path) == 2
    assert len(list(tmp_path.rglob(f"{writer.PART}*"))) == 1


def test_a1111s_jpegs_and_comfyuis_names_are_read(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a fox\nSteps: 7, Sampler: DPM2 a, Seed: 3, Size: 64x64".encode(
        "utf-16-be"
    )
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", exif=exif)
    found = read_picture(tmp_path / "a.jpg")
    assert (found.values["prompt"], found.values["num_inference_steps"], found.values["scheduler"]) == (
        "a fox",
        7,
        "DPM2 a",
    )
    names = {
        "euler_ancestral": "Euler a",
        "dpm_2": "DPM2",
        "uni_pc": "UniPC",
        "dpmpp_2m_sde": "DPM++ 2M SDE",
        "heun": "Heun",
        "ddim": "DDIM",
    }
    for theirs, ours in names.items():
        graph = {
            "1": {"class_type": "KSampler", "inputs": {"sampler_name": theirs, "scheduler": "normal", "seed": 2**40}}
        }
        values = from_comfyui(json.dumps(graph)).values
        assert values["scheduler"] == ours
        assert "seed" not in values


def test_a_file_that_was_deleted_by_hand_does_not_stop_the_others(gallery: Gallery) -> None:
    first, second = record(), record()
    for each in (first, second):
        gallery.commit(png(), each)
    gallery.path(first.id).unlink()
    assert gallery.trash([first.id, second.id]) == 1
    assert gallery.index.page() == []


def test_an_index_that_cannot_be_written_says_so(gallery: Gallery) -> None:
    gallery.index._database.execute("PRAGMA max_page_count=30")
    with pytest.raises(StorageError, match="the disk is full"):  # noqa: PT012
        for _ in range(2000):
            gallery.index.add([{"id": f"x{os.urandom(8).hex()}", "path": "p", "day": "d", "model": "m", "prompt": "word " * 500,
                                "width": 1, "height": 1, "seed": 1, "owner": "", "bytes": 1, "starred": 0, "trashed": 0}])  # fmt: skip
    gallery.index._database.execute("PRAGMA max_page_count=100000")
    gallery.commit(png(), record())
    assert gallery.index.page(limit=1)[0]["prompt"] == "a red circle"


def test_without_hard_links_pictures_are_saved_too(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    made = record()
    path = gallery.commit(png(), made)
    found = read_picture(path).record
    assert found
    assert without_paths(found.model_dump()) == without_paths(made.model_dump())
    with pytest.raises(StorageError):
        gallery.commit(png(), made)
