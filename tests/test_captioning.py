"""Auto-captioning: what a captioner says about pictures is right, becomes captions as was asked, and can be undone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from studio.__main__ import main
from studio.caption_main import Tag, chosen_tags, read_tags, without_prompt, work
from studio.captioning import Captioner, CaptionSpec, captioners, find_captioner, look_at, new_caption, parse_captioning
from studio.errors import InvalidRequest, ModelError, StudioError
from studio.settings import Settings
from studio.sources import Source, captioner_files
from studio.store.captions import DONE, FAILED, RUNNING, STOPPED, Captions
from studio.store.changes import Changes
from studio.store.collections import Datasets
from studio.store.tokens import Tokens
from tests.captioners import COLOURS, TAG_ROWS, circle, save_blip, save_tagger
from tests.conftest import wait_for
from tests.hub import Hub


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a captioner and a tagger in `models/captioners`."""
    root = tmp_path_factory.mktemp("captioning")
    save_blip(root / "models" / "captioners" / "blip")
    save_tagger(root / "models" / "captioners" / "tagger")
    return root


def order(folder: Path, pictures: list[Path], **more: Any) -> dict[str, Any]:
    told = [{"name": path.name, "path": str(path), "crop": None} for path in pictures]
    usual = {
        name: getattr(CaptionSpec(model="x"), name)
        for name in ("prompt", "max_length", "threshold", "character_threshold")
    }
    return (
        usual | {"captioner": str(folder), "source": None, "pictures": told, "device": "cpu", "cpu_threads": 1} | more
    )


def described(folder: Path, pictures: list[Path], **more: Any) -> dict[str, str]:
    events: list[dict[str, Any]] = []
    work(order(folder, pictures, **more), events.append)
    return {event["picture"]: event["text"] for event in events if event["event"] == "caption"}


def draw(folder: Path, *, seed: int = 9) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        circle(colour, seed).save(folder / f"{colour}.png")
    return [folder / f"{colour}.png" for colour in COLOURS]


def test_a_captioner_says_what_is_to_be_seen(models: Path, tmp_path: Path) -> None:
    blip, pictures = models / "models" / "captioners" / "blip", draw(tmp_path)
    assert described(blip, pictures) == {f"{colour}.png": f"a {colour} circle" for colour in COLOURS}
    asked = described(blip, pictures[:1], prompt="a")
    assert asked == {"red.png": "red circle"}
    assert described(blip, pictures[:1], max_length=1) == {"red.png": "a"}
    with pytest.raises(
        InvalidRequest, match="max_length=127 is more than blip can write after this prompt; use at most 126"
    ):
        described(blip, pictures[:1], max_length=127)


def test_a_tagger_says_what_is_to_be_seen(models: Path, tmp_path: Path) -> None:
    said = described(models / "models" / "captioners" / "tagger", draw(tmp_path))
    assert {name: {*text.split(", ")} for name, text in said.items()} == {
        f"{colour}.png": {colour, "circle shape"} for colour in COLOURS
    }
    few = described(models / "models" / "captioners" / "tagger", [tmp_path / "red.png"], max_length=1)
    assert len(few["red.png"].split(", ")) == 1


def test_a_captioner_sees_what_training_sees(models: Path, tmp_path: Path) -> None:
    both = Image.new("RGB", (128, 64))
    both.paste(circle("red", 9), (0, 0))
    both.paste(circle("blue", 9), (64, 0))
    both.save(tmp_path / "both.png")
    seen_through = circle("green", 9).convert("RGBA")
    seen_through.putalpha(0)
    corner = Image.new("RGBA", (64, 64))
    corner.paste(circle("yellow", 9), (0, 0))
    corner.save(tmp_path / "corner.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "both.png").read_bytes()[:99])
    halves = [
        {"name": name, "path": str(tmp_path / "both.png"), "crop": crop}
        for name, crop in (("left", [0, 0, 0.5, 1]), ("right", [0.5, 0, 1, 1]))
    ]
    told = order(models / "models" / "captioners" / "blip", [tmp_path / "cut.png", tmp_path / "corner.png"])
    told["pictures"] += halves
    events: list[dict[str, Any]] = []
    work(told, events.append)
    said = {event["picture"]: event["text"] for event in events if "picture" in event}
    assert (
        said["left"] == "a red circle" and said["right"] == "a blue circle" and said["corner.png"] == "a yellow circle"
    )
    assert "cut.png is a PNG file that cannot be decoded" in said["cut.png"]
    assert [event["event"] for event in events] == ["loading", "refused", "caption", "caption", "caption"]


def test_tags_are_chosen_by_their_kind() -> None:
    known = [Tag(*row) for row in TAG_ROWS]
    told = {"threshold": 0.35, "character_threshold": 0.75, "max_length": 9}
    sure = [0.99, 0.5, 0.9, 0.1, 0.1, 0.34, 0.4, 0.8]
    assert list(chosen_tags(known, sure, told)) == ["hatsune miku", "red", "circle shape", "^_^"]
    assert "hatsune miku" not in list(chosen_tags(known, sure, told | {"character_threshold": 0.9}))


@pytest.mark.parametrize(
    ("said", "asked", "left"),
    [
        ("a photo of a cat", "a photo of", "a cat"),
        (" A Photo of a cat", "a photo of", "a cat"),
        ("it is a cat", "cat", "it is a cat"),
        ("two  birds\n", "", "two birds"),
    ],
)
def test_a_prompt_is_no_part_of_a_caption(said: str, asked: str, left: str) -> None:
    assert without_prompt(said, asked) == left


@pytest.mark.parametrize(
    ("values", "before", "said", "caption"),
    [
        ({}, "", "a red circle", "a red circle"),
        ({"prefix": "sks,"}, "", "a red circle", "sks, a red circle"),
        ({"existing": "append", "prefix": "sks"}, "sks, red", "Red, circle", "sks, red, circle"),
        ({"existing": "append", "prefix": "sks"}, "", "red, circle", "sks, red, circle"),
        ({"existing": "replace", "prefix": "sks"}, "a dog", "red ,", "sks, red"),
    ],
)
def test_words_become_captions(values: dict[str, Any], before: str, said: str, caption: str) -> None:
    assert new_caption(parse_captioning({"model": "x"} | values), before, said) == caption


def test_what_cannot_be_used_is_told_in_a_sentence(models: Path, tmp_path: Path) -> None:
    place = tmp_path / "models" / "captioners"

    def folder(name: str, config: dict[str, Any] | None, *files: str) -> None:
        (place / name).mkdir(parents=True)
        if config is not None:
            (place / name / "config.json").write_text(json.dumps(config))
        for file in files:
            (place / name / file).write_bytes(b"")

    blip = {"model_type": "blip"}
    folder("none", None)
    folder("pickle", blip, "pytorch_model.bin")
    folder("onnx", blip, "model.onnx")
    folder("empty", blip)
    folder("cut", blip, "model.safetensors")
    sentences = {one.name: one.problem for one in captioners(Settings(data_dir=tmp_path))}
    assert "no readable config.json" in sentences["none"]
    assert "pickle, which can run code" in sentences["pickle"] and "ONNX" in sentences["onnx"]
    assert (
        "no .safetensors weights" in sentences["empty"] and "model.safetensors is empty or cut off" in sentences["cut"]
    )
    with pytest.raises(InvalidRequest, match="model='cut' has a damaged file"):
        find_captioner(Settings(data_dir=tmp_path), "cut")
    with pytest.raises(InvalidRequest, match=r"model='bilp' is not in models/captioners \(none yet\)"):
        find_captioner(Settings(data_dir=tmp_path / "other"), "bilp")
    source = find_captioner(Settings(data_dir=models), "Salesforce/blip-image-captioning-base")
    assert isinstance(source, Source) and source.name == "Salesforce/blip-image-captioning-base"
    here = find_captioner(Settings(data_dir=models), "somebody/blip")  # was fetched before
    assert isinstance(here, Captioner) and (here.name, here.kind) == ("blip", "caption")
    assert isinstance(
        find_captioner(Settings(data_dir=tmp_path), str(models / "models" / "captioners" / "tagger"), Path()), Captioner
    )
    with pytest.raises(InvalidRequest, match="is not in models/captioners"):  # a page's name is never a path
        find_captioner(Settings(data_dir=tmp_path), str(models / "models" / "captioners" / "tagger"))


def test_a_damaged_or_strange_captioner_is_refused(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    good, pictures = models / "models" / "captioners", draw(tmp_path / "pictures")[:1]
    shutil.copytree(good / "blip", tmp_path / "lacking")
    state = load_file(tmp_path / "lacking" / "model.safetensors")
    name = next(name for name in state if "embeddings.word_embeddings" in name)
    save_file(
        {key: one for key, one in state.items() if key != name and "cls." not in key},
        tmp_path / "lacking" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"lacking lacks \d+ weights"):
        described(tmp_path / "lacking", pictures)
    shutil.copytree(good / "blip", tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelError, match=r"is of the kind 'clip', with which transformers .* describes no pictures"):
        described(tmp_path / "clip", pictures)
    shutil.copytree(good / "tagger", tmp_path / "fewer")
    lines = (tmp_path / "fewer" / "selected_tags.csv").read_text().splitlines()
    (tmp_path / "fewer" / "selected_tags.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(ModelError, match=r"knows 8 tags and selected_tags\.csv names 7"):
        described(tmp_path / "fewer", pictures)
    (tmp_path / "fewer" / "selected_tags.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ModelError, match="no columns name and category"):
        read_tags(tmp_path / "fewer" / "selected_tags.csv")
    (tmp_path / "fewer" / "selected_tags.csv").unlink()
    assert "only WD taggers" in look_at(tmp_path / "fewer").problem


def test_of_a_repository_only_what_is_safe_is_fetched() -> None:
    sizes = {
        "config.json": 1,
        "model.safetensors": 9,
        "pytorch_model.bin": 9,
        "tf_model.h5": 9,
        "vocab.txt": 1,
        "modeling_x.py": 1,
        "onnx/a.safetensors": 1,
        "selected_tags.csv": 1,
    }
    assert {*captioner_files(sizes)} == {"config.json", "model.safetensors", "vocab.txt", "selected_tags.csv"}
    with pytest.raises(InvalidRequest, match=r"no \.safetensors weights"):
        captioner_files({"config.json": 1, "pytorch_model.bin": 9})
    with pytest.raises(InvalidRequest, match=r"no config\.json"):
        captioner_files({"model.safetensors": 9})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model": " "}, "model is empty"),
        ({"model": "x", "max_length": 0}, "max_length=0 must be at least 1"),
        ({"model": "x", "existing": "all"}, "existing='all'"),
        ({"model": "x", "threshold": 2}, "threshold=2 must be at most 0.99"),
    ],
)
def test_wrong_values_are_told(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_captioning(values)
    assert str(refusal.value).startswith(sentence)


@pytest.fixture
def datasets(models: Path, tmp_path: Path) -> Datasets:
    """A dataset `circles` of four pictures, of which one has a caption, beside the captioners."""
    shutil.copytree(models / "models", tmp_path / "models")
    made = Datasets(tmp_path / "datasets")
    draw(made.folder(made.create("circles")))
    made.set_caption("circles", "green.png", "my own")
    return made


def texts(datasets: Datasets) -> dict[str, str | None]:
    return {one.name.removesuffix(".png"): one.caption for one in datasets.pictures("circles")}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.close()


def test_the_command_line_fetches_a_captioner_captions_and_undoes(
    hub: Hub, datasets: Datasets, tmp_path: Path, capsys: Any
) -> None:
    """The captioner comes from a Hub, with which nothing is shared but its files; a pickle beside them is left there."""
    folder = tmp_path / "models" / "captioners" / "blip"
    hub.repos["anna/blip"] = {path.name: path.read_bytes() for path in folder.iterdir()} | {"pytorch_model.bin": b"x"}
    shutil.rmtree(folder)
    told = ["--data-dir", str(tmp_path), "--device", "cpu", "caption"]
    before = texts(datasets)
    assert main([*told, "circles", "--captioner", "anna/blip", "--prefix", "sks"]) == 0
    out = capsys.readouterr()
    assert (folder / "config.json").is_file() and not (folder / "pytorch_model.bin").exists()
    assert "red.png: a red circle" in out.out and "3 of 3 captions written" in out.err
    after = {colour: f"sks, a {colour} circle" for colour in COLOURS} | {"green": "my own"}
    assert texts(datasets) == after
    assert main([*told, "circles", "--captioner", "blip"]) == 2
    assert "every picture has a caption" in capsys.readouterr().err
    assert main([*told[:4], "dataset-doctor", "circles", "--undo"]) == 0
    assert texts(datasets) == before
    assert "undone: Auto-captioning: 3 pictures (3)" in capsys.readouterr().err
    assert main([*told, "--json"]) == 0
    assert [(row["name"], row["kind"]) for row in json.loads(capsys.readouterr().out)] == [
        ("blip", "caption"),
        ("tagger", "tags"),
    ]


def test_it_runs_beside_the_page_and_can_be_cancelled(datasets: Datasets, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu", cpu_threads=1)
    for number in range(200):
        circle(COLOURS[number % 4], number).save(datasets.folder("circles") / f"x{number}.png")
    changes = Changes(datasets)
    made = Captions(settings, datasets, changes, Tokens(tmp_path / "tokens.json"))
    before = texts(datasets)
    assert made.state() == {}
    made.start("circles", parse_captioning({"model": "blip", "existing": "replace"}))
    with pytest.raises(StudioError, match="captions for circles are being made"):
        made.start("circles", parse_captioning({"model": "blip"}))
    wait_for(lambda: made.state()["written"] > 3 or made.state()["state"] != RUNNING)
    made.cancel()
    state = made.state()
    assert state["state"] == STOPPED and 3 < state["written"] < state["total"] == 204
    wait_for(lambda: made.state()["what"] == "" and not made.busy)
    assert texts(datasets)["red"] == "a red circle"
    datasets.set_caption("circles", "blue.png", "mine")
    undone = changes.undo("circles")
    assert undone.changed_since == ("blue.png",)
    assert texts(datasets) == before | {"blue": "mine"}


def test_a_child_that_dies_is_told(datasets: Datasets, tmp_path: Path) -> None:
    made = Captions(
        Settings(data_dir=tmp_path, device="cpu", cpu_threads=1),
        datasets,
        Changes(datasets),
        Tokens(tmp_path / "tokens.json"),
    )
    made.start("circles", parse_captioning({"model": "blip"}))
    for child in psutil.Process().children():
        if any("caption_main" in part for part in child.cmdline()):
            child.kill()
    wait_for(lambda: not made.busy)
    assert made.state()["state"] == FAILED != DONE and "ended without a word" in made.state()["error"]
