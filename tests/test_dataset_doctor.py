"""The dataset doctor: a dataset with exactly one fault, found, mended at a click, not found any more, and as it was after an undo."""

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.shapes.render import fill_mask, render
from benchmarks.shapes.world import COLOURS, Scene, Thing
from studio.__main__ import main
from studio.buckets import bucket_of, bucket_sizes
from studio.dataset_doctor import Aim, examine
from studio.engine.cutout import cut_out
from studio.errors import InvalidRequest
from studio.findings import Change, Finding
from studio.picture_facts import measure
from studio.store.changes import Changes
from studio.store.collections import Datasets
from studio.store.datasets import mask_file, read_dataset
from studio.store.tokenizers import Tokenizers
from studio.store.triggers import judge_trigger
from studio.tools import CutoutCall
from studio.ui.mask_panel import in_editor, painted_on

SCENES = (
    ("orange", "heart", "white", 0.4, 0.5),
    ("red", "star", "green", 0.6, 0.4),
    ("blue", "circle", "yellow", 0.5, 0.6),
    ("purple", "square", "black", 0.45, 0.45),
    ("green", "ring", "purple", 0.55, 0.5),
    ("yellow", "cross", "blue", 0.5, 0.5),
)
AIM = Aim(trigger="sks", class_word="toy", resolution=128, bucket_step=32)
PICTURES = ("*.png", "*.jpg")


def scene(place: int, side: int = 128) -> Image.Image:
    colour, shape, background, x, y = SCENES[place]
    return Image.fromarray(render(Scene((Thing(colour, shape, x, y, 0.27),), background), random.Random(place), side))


def caption(place: int) -> str:
    return f"a sks toy, {SCENES[place][0]}, on a {SCENES[place][2]} background"


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    """One clean dataset, `toys`."""
    made = Datasets(tmp_path / "datasets")
    made.create("toys")
    for place in range(len(SCENES)):
        scene(place).save(made.folder("toys") / f"{place}.png")
        (made.folder("toys") / f"{place}.txt").write_text(caption(place))
    return made


def hashes(folder: Path) -> dict[str, str]:
    files = [path for pattern in PICTURES for path in folder.rglob(pattern) if "masklabel" not in path.name]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def found(datasets: Datasets, aim: Aim = AIM) -> dict[str, Finding]:
    return {one.code: one for one in examine(datasets.folder("toys"), aim)}


def test_a_clean_dataset_has_no_finding(datasets: Datasets) -> None:
    assert found(datasets) == {}


Break = Callable[[Path], None]


def write(name: str, text: str) -> Break:
    return lambda folder: (folder / name).write_text(text) and None


def save(name: str, image: Callable[[], Image.Image], text: str, **more: Any) -> Break:
    def make(folder: Path) -> None:
        image().save(folder / name, **more)
        (folder / name).with_suffix(".txt").write_text(text)

    return make


def copy(folder: Path) -> None:
    (folder / "7.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "7.txt").write_text(caption(0))


def see_through() -> Image.Image:
    image = scene(3).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.asarray(image.convert("L")) > 40, 255, 0).astype(np.uint8)))
    return image


def damage(folder: Path) -> None:
    (folder / "7.png").write_bytes((folder / "0.png").read_bytes()[:400])


def blur() -> Image.Image:
    return scene(3).filter(ImageFilter.GaussianBlur(3))


BLANK = Image.new("RGB", (128, 128), "red")
FAULTS: dict[str, tuple[Break, str, str]] = {  # code -> what is broken, the pictures that are named, part of the sentence
    "duplicate": (copy, "0.png 7.png", "are the same file"),
    "near-duplicate": (
        save("7.jpg", lambda: scene(0, 256), "a sks toy, again, on snow", quality=60),
        "7.jpg 0.png",
        "show the same",
    ),
    "unreadable": (damage, "7.png", "cannot be decoded"),
    "blurred": (save("3.png", blur, caption(3)), "3.png", "without a sharp edge"),
    "blank": (save("7.png", lambda: BLANK, "a sks toy, red"), "7.png", "without any edge"),
    "too-small": (save("3.png", lambda: scene(3, 64), caption(3)), "3.png", "3.png (64 x 64) is enlarged 2.0 times"),
    "lonely-bucket": (
        save("3.png", lambda: scene(3, 256).crop((0, 0, 256, 128)), caption(3)),
        "3.png",
        "alone in a bucket: 3.png (160 x 96)",
    ),
    "transparent": (save("3.png", see_through, caption(3)), "3.png", "become white"),
    "no-caption": (write("2.txt", " "), "2.png", "1 picture without a caption: 2.png"),
    "no-trigger": (write("2.txt", "a blue toy on grass"), "2.png", "not have the trigger word 'sks'"),
    "trigger-twice": (write("2.txt", "sks toy on grass, sks"), "2.png", "more than once"),
    "class-word": (write("2.txt", "a sks toy, toy, on grass"), "2.png", "leaks into every toy"),
}  # fmt: skip


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_is_found_and_mended_and_the_mending_undone(code: str, datasets: Datasets) -> None:
    broken, pictures, sentence = FAULTS[code]
    folder, changes = datasets.folder("toys"), Changes(datasets)
    broken(folder)
    before, files = hashes(folder), {path.name: path.read_bytes() for path in folder.iterdir()}
    finding = found(datasets)[code]
    assert set(found(datasets)) == {code}
    assert set(finding.pictures) == {*pictures.split()}
    assert sentence in finding.text and "\n" not in finding.text
    assert finding.fix
    assert changes.make("toys", finding.fix.changes, finding.fix.title) == len(finding.fix.changes)
    assert found(datasets) == {}
    assert hashes(folder) == before
    assert changes.last("toys") == finding.fix.title
    undone = changes.undo("toys")
    assert (undone.number, undone.changed_since) == (len(finding.fix.changes), ())
    assert set(found(datasets)) == {code}
    now = {path.name: path.read_bytes().strip() for path in folder.iterdir()}
    assert now == {name: data.strip() for name, data in files.items() if data.strip()}
    assert changes.last("toys") == ""
    with pytest.raises(InvalidRequest, match="nothing to undo"):
        changes.undo("toys")


def test_what_lies_on_its_side_is_told_and_read_upright(datasets: Datasets) -> None:
    folder, image = datasets.folder("toys"), scene(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "3.png", exif=exif)
    (finding,) = examine(folder, AIM)
    assert (finding.code, finding.level, finding.pictures, finding.fix) == ("turned", "note", ("3.png",), None)
    assert datasets.image("toys", "3.png").tobytes() == image.tobytes()


def test_captions_that_all_say_the_same_are_told(datasets: Datasets) -> None:
    for path in datasets.folder("toys").glob("*.txt"):
        path.write_text("a sks toy")
    (finding,) = found(datasets).values()
    assert finding.code == "same-captions" and finding.fix is None and "All 6 captions" in finding.text
    for place, path in enumerate(sorted(datasets.folder("toys").glob("*.txt"))):
        path.write_text(f"a sks toy on grass, {SCENES[place][0]}")
    (finding,) = found(datasets).values()
    assert finding.code == "one-sided" and "Every caption says 'grass'" in finding.text


def test_the_trigger_is_looked_up_in_the_models_own_words(datasets: Datasets, library: Any) -> None:
    model, tokenizers = library.get("shapes"), Tokenizers()

    def said(trigger: str) -> list[str]:
        for path in datasets.folder("toys").glob("*.txt"):
            path.write_text(path.read_text().replace("sks", trigger))
        facts, proposals = judge_trigger(tokenizers, model, trigger)
        aim = Aim(trigger, "toy", 128, 32, facts, tuple(proposals))
        return [one.text for one in examine(datasets.folder("toys"), aim)]

    assert said("sks") == []
    (text,) = said("star")
    assert (
        text.startswith("The trigger word 'star' is a word that the model knows") and "use a rarer one, such as" in text
    )


def test_a_mask_is_what_is_opaque(datasets: Datasets) -> None:
    folder = datasets.folder("toys")
    see_through().save(folder / "3.png")
    (finding,) = examine(folder, AIM)
    assert finding.fix
    Changes(datasets).make("toys", finding.fix.changes, "masks")
    with Image.open(mask_file(folder / "3.png")) as mask:
        assert mask.tobytes() == see_through().getchannel("A").tobytes()


def test_a_mask_that_was_there_comes_back_byte_for_byte(datasets: Datasets) -> None:
    path = mask_file(datasets.folder("toys") / "3.png")
    Image.new("RGBA", (128, 128), (255, 255, 255, 90)).save(path)
    data, changes = path.read_bytes(), Changes(datasets)
    changes.make("toys", [Change("3.png", "mask", None)], "Remove the mask")
    assert not path.exists()
    assert changes.undo("toys").number == 1
    assert path.read_bytes() == data


def test_a_lonely_picture_is_cropped_into_a_bucket_of_others(datasets: Datasets) -> None:
    folder = datasets.folder("toys")
    FAULTS["lonely-bucket"][0](folder)
    fix = found(datasets)["lonely-bucket"].fix
    assert fix and fix.changes[0].value == (0.25, 0.0, 0.75, 1.0)
    Changes(datasets).make("toys", fix.changes, fix.title)
    sizes = bucket_sizes(128, 32)
    assert {bucket_of(one.size, sizes) for one in read_dataset(folder).examples} == {(128, 128)}


def test_when_all_are_alone_the_middle_bucket_takes_them(datasets: Datasets) -> None:
    folder = datasets.folder("toys")
    for place in range(3, 6):
        datasets.set_edit("toys", f"{place}.png", left_out=True)
    for place, box in enumerate(((0, 0, 256, 128), (0, 0, 256, 256), (0, 0, 128, 256))):
        scene(place, 256).crop(box).save(folder / f"{place}.png")
    finding = found(datasets)["lonely-bucket"]
    assert set(finding.pictures) == {"0.png", "2.png"} and "cuts off 50%" in finding.text


def test_what_a_person_changed_since_is_not_undone(datasets: Datasets) -> None:
    changes = Changes(datasets)
    wanted = [Change("0.png", "caption", "one"), Change("1.png", "caption", "two"), Change("2.png", "left_out", True)]
    assert changes.make("toys", wanted, "first") == 3
    assert changes.make("toys", wanted, "nothing new") == 0
    assert changes.last("toys") == "first"
    assert changes.make("toys", [Change("0.png", "caption", "three")], "second") == 1
    datasets.set_caption("toys", "1.png", "mine")
    assert changes.undo("toys").number == 1
    undone = changes.undo("toys")
    assert (undone.number, undone.changed_since) == (2, ("1.png",))
    assert [one.caption for one in datasets.pictures("toys")][:3] == [caption(0), "mine", caption(2)]
    assert not any(one.edit.left_out for one in datasets.pictures("toys"))


def test_captions_of_metadata_and_of_kohyas_folders_count(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "2_sks toy").mkdir(parents=True)
    for place in range(2):
        scene(place).save(folder / "2_sks toy" / f"{place}.png")
    scene(2).save(folder / "2.png")
    row = {"file_name": "2.png", "text": "a sks toy, blue"}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert examine(folder, AIM) == ()
    (folder / "metadata.jsonl").write_text(json.dumps(row | {"file_name": "9.png"}) + "\n")
    codes = {one.code: one.text for one in examine(folder, AIM)}
    assert set(codes) == {"metadata", "no-caption"} and "9.png, which is not there" in codes["metadata"]


def test_a_caption_of_metadata_is_as_before_after_an_undo(datasets: Datasets) -> None:
    folder, changes = datasets.folder("toys"), Changes(datasets)
    (folder / "2.txt").unlink()
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "2.png", "text": "blue"}) + "\n")
    fix = found(datasets)["no-trigger"].fix
    assert fix
    changes.make("toys", fix.changes, fix.title)
    assert datasets.pictures("toys")[2].caption == "sks, blue"
    changes.undo("toys")
    assert datasets.pictures("toys")[2].caption == "blue"


@pytest.mark.parametrize(
    ("aim", "sentence"),
    [
        (Aim(resolution=32), "resolution=32 must be from 64 to 4096 pixels"),
        (Aim(bucket_step=4), "bucket_step=4 must be from 8 to 512 pixels"),
    ],
)
def test_wrong_values_are_told(aim: Aim, sentence: str, datasets: Datasets) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        examine(datasets.folder("toys"), aim)


@pytest.mark.parametrize("sigma", [2.0, 3.0])
@pytest.mark.parametrize("noise", [0, 4])
def test_sharpness_is_measured_in_pixels(sigma: float, noise: int) -> None:
    blurred = np.asarray(scene(3, 512).filter(ImageFilter.GaussianBlur(sigma)), float)
    noisy = blurred + np.random.default_rng(0).normal(0, noise, blurred.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "PNG")
    assert measure(file.getvalue()).edge == pytest.approx(sigma, rel=0.15)
    assert measure(file.getvalue(), side=128).edge < 1.5  # made smaller it is sharp


def test_the_command_line_finds_mends_and_undoes(datasets: Datasets, tmp_path: Path, capsys: Any) -> None:
    told = ["--data-dir", str(tmp_path), "dataset-doctor", "toys", "--trigger", "sks", "--class-word", "toy"]
    told += ["--resolution", "128", "--bucket-step", "32"]
    copy(datasets.folder("toys"))
    (datasets.folder("toys") / "2.txt").write_text("blue")

    def codes(*more: str) -> list[str]:
        assert main([*told, *more, "--json"]) == 0
        return [one["code"] for one in json.loads(capsys.readouterr().out)]

    assert codes() == ["duplicate", "no-trigger"]
    assert codes("--fix", "duplicate") == ["no-trigger"]
    assert codes("--fix", "all") == []
    assert codes("--undo") == ["no-trigger"]
    assert codes("--undo") == ["duplicate", "no-trigger"]
    (datasets.folder("toys") / "3.txt").write_text("a sks toy, toy, sks")
    assert codes("--fix", "all") == []
    assert (datasets.folder("toys") / "3.txt").read_text() == "a sks toy"
    assert (
        codes("--undo")
        and codes("--undo")
        and codes("--undo")
        and codes("--undo") == ["duplicate", "no-trigger", "trigger-twice", "class-word"]
    )
    (datasets.folder("toys") / "3.txt").write_text(caption(3))
    assert main([*told, "--fix", "blurred"]) == 2
    assert "fix='blurred' mends nothing here; duplicate, no-trigger can be mended" in capsys.readouterr().err
    assert main([*told, "--undo"]) == 2
    folder = ["--data-dir", str(tmp_path / "other"), "dataset-doctor", str(datasets.folder("toys"))]
    assert main([*folder, "--resolution", "128"]) == 0
    assert "problem  duplicate: 0.png, 7.png are the same file" in capsys.readouterr().out
    assert main([*folder, "--resolution", "128", "--fix", "all"]) == 2
    assert "only read" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["flat", "striped"])
def test_the_subject_is_found_without_weights(style: str) -> None:
    shapes = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
    rng = random.Random(style)
    for shape in shapes[:: 1 if style == "flat" else 3]:
        colour, background = rng.sample([*COLOURS], 2)
        thing = Thing(colour, shape, 0.5 + rng.uniform(-0.12, 0.12), 0.5 + rng.uniform(-0.12, 0.12), 0.3)
        picture, truth = render(Scene((thing,), background, style), rng), fill_mask(thing, 128) > 0
        mask = cut_out(picture) > 0
        assert (mask & truth).sum() / (mask | truth).sum() >= 0.9, (colour, shape, background)
        assert np.array_equal(cut_out(picture) > 0, mask)


def test_where_nothing_differs_from_the_border_paint_decides() -> None:
    plain = np.full((64, 64, 3), 90, np.uint8)
    assert not cut_out(plain).any()
    two = render(
        Scene((Thing("red", "circle", 0.3, 0.5, 0.15), Thing("blue", "square", 0.7, 0.5, 0.15)), "white"),
        random.Random(1),
    )
    painted = np.zeros((128, 128), np.uint8)
    painted[60:68, 60:68] = 255  # between the two
    assert cut_out(two, painted)[60:68, 60:68].all()


def test_the_tool_answers_with_a_mask(engine: Any) -> None:
    thing = Thing("red", "heart", 0.5, 0.5, 0.3)
    picture = Image.fromarray(render(Scene((thing,), "white"), random.Random(2)))
    values, made = engine.use_tool(CutoutCall(image="given"), lambda reference, field: picture)
    with Image.open(io.BytesIO(made["mask"])) as mask:
        found, truth = np.asarray(mask.convert("L")) > 127, fill_mask(thing, 128) > 0
    assert (found & truth).sum() / (found | truth).sum() >= 0.9
    assert values["part"] == pytest.approx(found.mean())


def test_what_is_painted_becomes_the_mask_as_large_as_the_picture() -> None:
    picture = Image.new("RGB", (1600, 800), "white")
    mask = Image.new("L", picture.size)
    mask.paste(255, (400, 200, 1200, 600))
    editor = in_editor(picture, mask)
    assert editor["background"].size == (768, 384)
    back = painted_on(editor, picture.size)
    assert back is not None and back.size == picture.size
    same = np.asarray(back) == np.asarray(mask)
    assert same.mean() > 0.99
    assert painted_on(in_editor(picture, None), picture.size) is None
    assert painted_on(None, picture.size) is None
