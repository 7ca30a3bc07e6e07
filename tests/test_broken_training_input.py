"""Datasets and configs that people really have: each is used, or refused in one sentence before a model is loaded."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from studio.errors import InvalidRequest
from studio.store.datasets import find_dataset, read_dataset
from tests.training import draw_pictures
from trainers.config_files import read_config
from trainers.material import Pictures
from trainers.methods import METHODS


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (48, 40), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(zlib.crc32(path.name.encode())))
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path, **options)
    return path


def bomb(path: Path) -> None:
    header = b"\x89PNG\r\n\x1a\n"

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    size = (60_000).to_bytes(4) * 2
    path.write_bytes(
        header
        + chunk(b"IHDR", size + b"\x08\x02\0\0\0")
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def cut(path: Path) -> None:
    picture(path, size=(300, 300))
    path.write_bytes(path.read_bytes()[:3000])


# what lies beside a good picture `0.png` -> what the refusal says
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated JPEG": (lambda f: cut(f / "a.jpg"), "a.jpg is a JPEG file that cannot be decoded"),
    "truncated PNG": (lambda f: cut(f / "a.png"), "a.png is a PNG file that cannot be decoded"),
    "empty file": (lambda f: (f / "a.png").write_bytes(b""), "a.png is empty"),
    "text named png": (lambda f: (f / "a.png").write_text("hello"), "a.png is not a picture that can be read"),
    "web page named jpg": (lambda f: (f / "a.jpg").write_text("<html></html>"), "a.jpg is not a picture"),
    "zip named png": (lambda f: (f / "a.png").write_bytes(b"PK\3\4" + b"\0" * 50), "a.png is not a picture"),
    "pickle named jpg": (lambda f: (f / "a.jpg").write_bytes(b"\x80\4" + b"\0" * 50), "a.jpg is not a picture"),
    "animation": (lambda f: picture(f / "a.gif", "P"), "a.gif is a GIF"),
    "bomb of pixels": (lambda f: bomb(f / "a.png"), "a.png has more than 64,000,000 pixels"),
    "a pixel": (lambda f: picture(f / "a.png", size=(1, 1)), "a.png has 1 x 1 pixels"),
    "a line": (lambda f: picture(f / "a.png", size=(900, 8)), "a.png has 900 x 8 pixels"),
    "link out of the folder": (
        lambda f: (f / "a.png").symlink_to(picture(f.parent / "secret.png")),
        "a.png is a link to a place outside",
    ),
    "link to nothing": (lambda f: (f / "a.png").symlink_to(f / "gone.png"), "a.png does not exist"),
    "folder named png": (lambda f: (f / "a.png").mkdir(), "a.png is a folder"),
    "caption that is a picture": (
        lambda f: (picture(f / "a.png"), (f / "a.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")),
        "a.txt, that is no text",
    ),
    "caption of a megabyte": (
        lambda f: (picture(f / "a.png"), (f / "a.txt").write_text("word " * 200_000)),
        "a caption of 999,999 characters",
    ),
    "caption linked out": (
        lambda f: (picture(f / "a.png"), (f / "a.txt").symlink_to("/etc/hostname")),
        "a.png is a link to a place outside",
    ),
    "metadata that is no JSON": (
        lambda f: (f / "metadata.jsonl").write_text("{oops\n"),
        "metadata.jsonl line 1 must be a JSON object",
    ),
    "metadata without file_name": (
        lambda f: (f / "metadata.jsonl").write_text('{"text": "x"}\n'),
        "metadata.jsonl line 1 must be a JSON object",
    ),
    "metadata with a number": (
        lambda f: (f / "metadata.jsonl").write_text('{"file_name": "0.png", "text": 3}\n'),
        "metadata.jsonl line 1 must be a JSON object",
    ),
    "metadata that names nothing": (
        lambda f: (f / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "y"}\n'),
        "metadata.jsonl names x.png, which is not there",
    ),
    "conditioning that is not there": (
        lambda f: (
            picture(f / "a.png"),
            (f / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "y", "conditioning_image": "c.png"}\n'),
        ),
        "a.png has the conditioning_image c.png, which is not there",
    ),
    "mask that is broken": (
        lambda f: (picture(f / "a.png"), (f / "a-masklabel.png").write_bytes(b"no")),
        "a.png is not a picture",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_told_picture_by_picture(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pictures"
    picture(folder / "0.png")
    make, said = REFUSED[name]
    make(folder)
    found = read_dataset(folder)
    assert [example.path.name for example in found.examples] == ["0.png"]
    assert len(found.refused) == 1 and said in found.refused[0], found.refused


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    picture(tmp_path / "a.png").chmod(0)
    assert "a.png cannot be read" in read_dataset(tmp_path).refused[0]


@pytest.mark.parametrize("empty", [True, False])
def test_a_folder_without_a_usable_picture_is_refused(tmp_path: Path, empty: bool) -> None:
    if not empty:
        (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(
        InvalidRequest, match="has no picture that can be used; " + ("put pictures" if empty else "a.png is not")
    ):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("RGB", "png"), ("L", "png"), ("1", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("I;16", "png"), ("CMYK", "jpg"),
     ("L", "jpg"), ("RGB", "webp"), ("RGBA", "webp"), ("RGB", "bmp"), ("RGB", "tif"), ("RGB", "JPEG"), ("RGB", "PNG")],
)  # fmt: skip
def test_every_kind_of_picture_is_read(tmp_path: Path, mode: str, ending: str) -> None:
    if mode == "I;16":
        Image.fromarray(np.full((40, 48), 30_000, np.uint16)).save(tmp_path / f"a.{ending}")
    else:
        picture(tmp_path / f"a.{ending}", mode)
    assert read_dataset(tmp_path).examples[0].size == (48, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(tmp_path / "a.jpg", exif=exif)
    assert read_dataset(tmp_path).examples[0].size == ((48, 40) if orientation < 5 else (40, 48))


TEXT = "café, a naïve dog"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "ascii"])
def test_captions_of_every_encoding(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path / "a.png")
    text = "a dog" if encoding == "ascii" else TEXT
    data = text.encode(encoding)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe" + data if encoding == "utf-16-le" else data)
    found = read_dataset(tmp_path)
    assert found.examples[0].caption == text
    assert bool(found.warnings) == (encoding == "cp1252")


def test_captions_lose_line_breaks_and_empty_ones_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"a dog,\r\n  on grass\n")
    picture(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("\n")
    found = read_dataset(tmp_path)
    assert [example.caption for example in found.examples] == ["a dog, on grass", ""]
    assert found.warnings == ("b.txt is empty",)


def test_kohyas_folders(tmp_path: Path) -> None:
    picture(tmp_path / "10_sks dog" / "a.png")
    picture(tmp_path / "2_big_cat" / "b.png")
    (tmp_path / "2_big_cat" / "b.txt").write_text("a cat")
    picture(tmp_path / "0_off" / "c.png")
    found = [(e.path.name, e.repeats, e.words, e.caption) for e in read_dataset(tmp_path).examples]
    assert sorted(found) == [("a.png", 10, "sks dog", None), ("b.png", 2, "big cat", "a cat")]


def test_metadata_masks_and_conditioning(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a-masklabel.png", "L")
    picture(tmp_path / "conditioning" / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a dog"}) + "\n\n")
    found = read_dataset(tmp_path)
    example = found.examples[0]
    assert len(found.examples) == 1 and example.caption == "a dog" and not found.refused
    assert example.mask and example.mask.name == "a-masklabel.png"
    assert example.conditioning and example.conditioning.parent.name == "conditioning"


def test_duplicates_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert read_dataset(tmp_path).warnings == ("b.png has the same content as a.png; it counts twice",)


def test_a_dataset_is_found_by_its_name_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "dogs").mkdir(parents=True)
    assert find_dataset("dogs", tmp_path / "datasets").name == "dogs"
    assert find_dataset(str(tmp_path), tmp_path / "datasets") == tmp_path.resolve()
    for name in ("cats", "", str(tmp_path / "x.png")):
        with pytest.raises(InvalidRequest, match="is no folder here"):
            find_dataset(name, tmp_path / "datasets")


def test_a_picture_without_a_caption_needs_a_prompt(tmp_path: Path) -> None:
    from trainers.concepts import Concept

    folder = draw_pictures(tmp_path / "pictures", 2, captions=False)
    with pytest.raises(InvalidRequest, match=r"0.png has no caption; put 0.txt beside it, or give instance_prompt"):
        Pictures([Concept(dataset=str(folder))], tmp_path)
    made = Pictures([Concept(dataset=str(folder), instance_prompt="a sks dog", repeats=3)], tmp_path, "zwx")
    assert made.captions == ["a sks dog"] * 2 and made.repeats == [3, 3]
    assert made.notes == ["2 of 2 captions do not have the trigger word 'zwx'"]


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("lora", {"lerning_rate": 1}, "lerning_rate is not a field of this method; did you mean learning_rate?"),
    ("lora", {"zzz": 1}, "zzz is not a field of this method"),
    ("lora", {"rank": 0}, "rank=0 must be at least 1"),
    ("lora", {"rank": 5000}, "rank=5000 must be at most 1024"),
    ("lora", {"rank": "many"}, "rank='many'"),
    ("lora", {"rank": 2.5}, "rank=2.5"),
    ("lora", {"rank": None}, "rank=None"),
    ("lora", {"rank": [4]}, "rank=[4]"),
    ("lora", {"learning_rate": "fast"}, "learning_rate='fast'"),
    ("lora", {"learning_rate": -1}, "learning_rate=-1 must be at least 0"),
    ("lora", {"learning_rate": float("nan")}, "learning_rate=nan must be"),
    ("lora", {"learning_rate": float("inf")}, "learning_rate=inf must be"),
    ("lora", {"resolution": 100}, "resolution=100 must be a multiple of 8"),
    ("lora", {"resolution": 32}, "resolution=32 must be a multiple of 8 from 64"),
    ("lora", {"resolution": [512, 512]}, "none twice"),
    ("lora", {"resolution": []}, "at least one size"),
    ("lora", {"resolution": "large"}, "resolution.0='large'"),
    ("lora", {"max_train_steps": 0}, "max_train_steps=0 must be at least 1"),
    ("lora", {"train_batch_size": 0}, "train_batch_size=0 must be at least 1"),
    ("lora", {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1"),
    ("lora", {"optimizer": "sgd"}, "optimizer='sgd'"),
    ("lora", {"lr_scheduler": "step"}, "lr_scheduler='step'"),
    ("lora", {"lr_scheduler": "piecewise_constant"}, "needs lr_step_rules"),
    ("lora", {"lr_step_rules": "1:a"}, "lr_step_rules='1:a' must be like"),
    ("lora", {"lr_warmup_steps": 10}, "lr_warmup_steps=10 does nothing with lr_scheduler=constant"),
    ("lora", {"lr_scheduler": "cosine", "lr_warmup_steps": 2000}, "must be at most max_train_steps=1000"),
    ("lora", {"keep_tokens": 1}, "keep_tokens does nothing without shuffle_caption"),
    ("lora", {"enable_bucket": False, "bucket_step": 32}, "bucket_step does nothing without enable_bucket"),
    ("lora", {"bucket_step": 10}, "bucket_step=10 must be a multiple of 8"),
    ("lora", {"caption_dropout": 2}, "caption_dropout=2 must be at most 1"),
    ("lora", {"crop": "left"}, "crop='left'"),
    ("lora", {"mixed_precision": "fp8"}, "mixed_precision='fp8'"),
    ("lora", {"snr_gamma": 0}, "snr_gamma=0 must be more than 0"),
    ("lora", {"seed": -1}, "seed=-1 must be at least 0"),
    ("lora", {"use_rslora": True, "network_type": "loha"}, "use_rslora does not exist for loha"),
    ("lora", {"target_modules": []}, "target_modules must name something"),
    ("lora", {"text_encoder_lr": 1e-4}, "text_encoder_lr does nothing without train_text_encoder"),
    ("lora", {"train_text_encoder": True, "text_encoder_lr": -1}, "text_encoder_lr=-1.0 must be from 0 to 10"),
    ("lora", {"lora_dropout": 1}, "lora_dropout=1 must be less than 1"),
    ("lora", {"lora_alpha": 0}, "lora_alpha=0 must be more than 0"),
    ("lora", {"output_name": "../x"}, "output_name='../x'"),
    ("lora", {"output_name": ""}, "output_name=''"),
    ("lora", {"checkpoints_total_limit": 0}, "checkpoints_total_limit=0 must be at least 1"),
    ("lora", {"concepts": [{"dataset": "x", "repeats": 0}]}, "concepts.0.repeats=0 must be at least 1"),
    ("lora", {"concepts": [{"folder": "x"}]}, "concepts.0"),
    ("lora", {"random_flip": "perhaps"}, "random_flip='perhaps'"),
    ("full", {"rank": 4}, "rank is not a field of this method"),
    ("full", {"ema_decay": 1}, "ema_decay=1 must be less than 1"),
    ("dreambooth", {"with_prior_preservation": True}, "needs class_prompt"),
    ("dreambooth", {"prior_source": "web"}, "prior_source='web'"),
]


@pytest.mark.parametrize(("method", "values", "said"), CONFIGS)
def test_a_wrong_config_is_one_sentence(tmp_path: Path, method: str, values: dict[str, Any], said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InvalidRequest) as refused:
        read_config(METHODS[method][0], path, [])
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- 1\n- 2\n", "must be a mapping"),
        (b"rank: [", "is no YAML"),
        (b"\xff\xfe\x00", "is no YAML"),
        (b"!!python/object/apply:os.system ['true']", "is no YAML"),
        (b"3: 4", "must be a mapping"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=said):
        read_config(METHODS["lora"][0], path, [])


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 1e-4\nresolution: 768\n")
    config = read_config(
        METHODS["lora"][0], path, ["rank=32", "learning_rate=5e-5", "validation_prompts=a dog: on grass"]
    )
    assert (config.learning_rate, config.resolution, config.validation_prompts) == (5e-5, (768,), ("a dog: on grass",))
    with pytest.raises(InvalidRequest, match="--set rank must be FIELD=VALUE"):
        read_config(METHODS["lora"][0], path, ["rank"])
