"""What LoRA files say about themselves, and the command line's way with them."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.__main__ import main
from studio.settings import ROOT
from studio.store.library import Library
from studio.store.lora_facts import lora_rows, read_lora_facts
from studio.store.metadata import read_picture
from studio.ui.lora_panel import LoraPanel
from tests.conftest import pixels
from trainers.scorers.reading import judge

SHIPPED = ROOT / "presets" / "loras" / "red-to-blue.safetensors"
WEIGHTS = {
    "lora_unet_x.lora_down.weight": torch.zeros(8, 4),
    "lora_unet_x.lora_up.weight": torch.zeros(4, 8),
}


@pytest.mark.parametrize(
    ("told", "facts"),
    [
        ({}, {"rank": 8, "trigger_words": (), "recommended_weight": None, "base": "", "trained": "", "notes": ""}),
        (
            {
                "ss_sd_model_name": "sd_xl_base_1.0",
                "ss_tag_frequency": json.dumps({"10_sks dog": {"sks dog": 20, "on grass": 9, " in snow": 11}}),
                "ss_steps": "1200",
                "ss_learning_rate": "0.0001",
            },
            {
                "base": "sd_xl_base_1.0",
                "trigger_words": ("sks dog", "in snow"),
                "trained": "1200 steps, learning rate 0.0001",
            },
        ),
        ({"modelspec.trigger_phrase": "in the style of x"}, {"trigger_words": ("in the style of x",)}),
        ({"trigger_words": "no json", "recommended_weight": "much", "ss_tag_frequency": "[1]"}, {"trigger_words": ()}),
        (
            {"ss_tag_frequency": json.dumps({"a": {"b": 10**400}}), "recommended_weight": "nan"},
            {"trigger_words": ("b",)},
        ),
        ({"trigger_words": "[" * 200_000}, {"trigger_words": ()}),
        ({"ss_tag_frequency": '{"a": {"b": "c"}, "d": 3}'}, {"trigger_words": (), "recommended_weight": None}),
    ],
)
def test_facts(tmp_path: Path, told: dict[str, str], facts: dict[str, Any]) -> None:
    save_file(WEIGHTS, tmp_path / "x.safetensors", metadata=told or None)
    found = read_lora_facts(tmp_path / "x.safetensors").model_dump()
    assert {name: found[name] for name in facts} == facts


def test_a_file_beside_the_request_and_its_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A request names a file, or the library's name; the picture is replayed with the one that the library has."""
    request = {"prompt": "a red circle on a yellow background", "seed": 5, "num_inference_steps": 12}
    (tmp_path / "mine.safetensors").write_bytes(SHIPPED.read_bytes())
    for name in ("mine.safetensors", "red-to-blue"):
        (tmp_path / "r.json").write_text(json.dumps(request | {"loras": [{"name": name}]}))
        assert main(["generate", "--request", str(tmp_path / "r.json"), "--out", str(tmp_path / f"out-{name}")]) == 0
    made = [Path(json.loads(line)["path"]) for line in capsys.readouterr().out.splitlines()]
    assert judge(pixels(made[0].read_bytes())).things[0].colour == "blue"
    assert Image.open(made[0]).tobytes() == Image.open(made[1]).tobytes()
    record = read_picture(made[1]).record
    assert record
    assert [(part.kind, part.id) for part in record.parts] == [("lora", "red-to-blue")]
    assert "<lora:red-to-blue:1>" in Image.open(made[1]).text["parameters"].splitlines()[0]  # type: ignore[attr-defined]
    assert main(["replay", str(made[1]), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == "identical\n"
    assert main(["adapters", "--json"]) == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["id"] == "red-to-blue")
    assert (row["rank"], row["fits"], row["problem"]) == (16, "prompts 128 wide", "")


@pytest.mark.parametrize(
    "header",
    [
        {"__metadata__": None},
        {"__metadata__": ["x"]},
        {"x": {"dtype": "F32", "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2.5, 1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_that_no_tool_writes_is_one_file_s_problem(tmp_path: Path, header: dict[str, Any]) -> None:
    good = {"a.lora_down.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
    text = json.dumps(good | header).encode()
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    (folder / "odd.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    (folder / "fine.safetensors").write_bytes(SHIPPED.read_bytes())
    rows = lora_rows(Library((), part_roots=(tmp_path / "models",)).parts.parts("lora"))
    assert [(row["id"], row["problem"]) for row in rows] == [
        ("fine", ""),
        ("odd", "odd.safetensors has a damaged header; copy the file again"),
    ]


def test_two_files_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        save_file(
            WEIGHTS | {"lora_unet_x.alpha": torch.tensor(float(ord(place)))}, tmp_path / place / "style.safetensors"
        )
        requests.append({"loras": [{"name": f"{place}/style.safetensors"}]})
    (tmp_path / "r.json").write_text(json.dumps(requests))
    assert main(["generate", "--request", str(tmp_path / "r.json"), "--out", str(tmp_path / "out")]) == 2
    assert "would both be called 'style'; rename the first" in capsys.readouterr().err


def test_a_lora_that_moved_into_a_folder_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").write_bytes(SHIPPED.read_bytes())
    (tmp_path / "r.json").write_text(
        json.dumps({"prompt": "a red star", "num_inference_steps": 2, "loras": [{"name": "mine"}]})
    )
    data = ["--data-dir", str(tmp_path)]
    assert main([*data, "generate", "--request", str(tmp_path / "r.json"), "--out", str(tmp_path / "out")]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    (folder / "styles").mkdir()
    (folder / "mine.safetensors").rename(folder / "styles" / "mine.safetensors")
    assert main([*data, "replay", path, "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == "identical\n"


def test_the_page_says_where_a_lora_is_wrong() -> None:
    """Errors count rows first, then the prompt's tags."""
    values = {
        "lora0_name": "",
        "lora0_on": True,
        "lora1_name": "x",
        "lora1_on": True,
        "lora2_name": "y",
        "lora2_on": False,
    }
    panel = LoraPanel(SimpleNamespace())  # type: ignore[arg-type]
    assert [panel.box_of(f"loras.{place}.name", values) for place in range(2)] == ["lora1", "prompt"]
    assert panel.box_of("loras", values) == "loras"
    assert panel.box_of("width", values) == "width"


def test_a_name_that_is_no_lora_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"loras": [{"name": "../../etc/passwd"}]}))
    assert main(["generate", "--request", str(tmp_path / "r.json"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("loras.0.name='../../etc/passwd' is no LoRA in ")
