"""What lies beside a LoRA: its cover and its notes, as A1111 keeps them."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from starlette.applications import Starlette
from starlette.testclient import TestClient

from studio.errors import InvalidRequest, StudioError
from studio.settings import ROOT
from studio.store.library import Library
from studio.store.lora_cards import cover_of, write_cover, write_notes
from studio.store.lora_facts import read_lora_facts
from studio.ui.lora_panel import LoraPanel, card
from studio.ui.routes import Routes

WEIGHTS = {"lora_unet_x.lora_down.weight": torch.zeros(8, 4), "lora_unet_x.lora_up.weight": torch.zeros(4, 8)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "loras" / "a b").mkdir(parents=True)
    path = tmp_path / "loras" / "a b" / "style v1.5.safetensors"
    save_file(WEIGHTS, path, metadata={"trigger_words": '["own"]', "recommended_weight": "0.7", "notes": "of the file"})
    return path


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


def test_a_person_s_card_counts_before_the_file_s(file: Path) -> None:
    facts = read_lora_facts(file)
    assert (facts.trigger_words, facts.recommended_weight, facts.notes, facts.cover) == (
        ("own",),
        0.7,
        "of the file",
        False,
    )
    told = {"activation text": "sks, by me", "preferred weight": 0.4, "description": "mine", "sd version": "SD1"}
    file.with_suffix(".json").write_text(json.dumps(told))
    facts = read_lora_facts(file)
    assert (facts.trigger_words, facts.recommended_weight, facts.notes) == (("sks", "by me"), 0.4, "mine")
    write_notes(file, "now \N{BLACK HEART SUIT}")
    assert json.loads(file.with_suffix(".json").read_text()) == told | {"notes": "now \N{BLACK HEART SUIT}"}
    assert read_lora_facts(file).notes == "now \N{BLACK HEART SUIT}"


@pytest.mark.parametrize("content", ["no json", "[1]", '{"notes": [1], "activation text": 3, "preferred weight": "x"}'])
def test_a_card_that_no_tool_writes_harms_nothing(file: Path, content: str) -> None:
    file.with_suffix(".json").write_text(content)
    assert read_lora_facts(file).rank == 8
    if not content.startswith("{"):
        with pytest.raises(StudioError, match="cannot be read as a table, so the notes are not written"):
            write_notes(file, "x")
        assert file.with_suffix(".json").read_text() == content


def test_the_cover_is_a_route(file: Path, tmp_path: Path) -> None:
    services: Any = SimpleNamespace(library=Library((), part_roots=(tmp_path,)), public=False, training=None)
    client, url = TestClient(Starlette(routes=Routes(services).table())), "/studio/cover/a%20b/style%20v1.5"
    assert client.get(url).status_code == 404
    write_cover(file, png())
    answer = client.get(url)
    assert (answer.content, answer.headers["content-type"]) == (png(), "image/png")
    assert f'src="{url[1:]}"' in card("a b/style v1.5", read_lora_facts(file))
    for wrong in ("zebra", "..%2f..%2fetc%2fpasswd", "a%20b/style%20v1.5.preview.png"):
        assert client.get(f"/studio/cover/{wrong}").status_code == 404


@pytest.mark.parametrize("end", [".png", ".jpg", ".webp", ".preview.png"])
def test_covers_as_other_tools_name_them(file: Path, end: str) -> None:
    cover = file.with_name(file.stem + end)
    cover.write_bytes(png())
    found = cover_of(file)
    assert found
    assert found[0] == cover


def test_what_came_with_studio_stays_as_it_is() -> None:
    shipped = ROOT / "presets" / "loras" / "red-to-blue.safetensors"
    for change in (lambda: write_notes(shipped, "x"), lambda: write_cover(shipped, b"x")):
        with pytest.raises(StudioError, match="came with Studio and stays as it is; copy it into your own"):
            change()


def test_block_weights_on_the_page() -> None:
    panel = LoraPanel(SimpleNamespace())  # type: ignore[arg-type]
    values = {"lora0_name": "x", "lora0_on": True, "lora0_weight": 0.5, "lora0_blocks": "1, 0,.5"}
    assert panel.taken(values) == {"loras": [{"name": "x", "weight": 0.5, "blocks": (1.0, 0.0, 0.5)}]}
    with pytest.raises(InvalidRequest, match="block weights 'MIDD' must be numbers between commas"):
        panel.taken(values | {"lora0_blocks": "MIDD"})


def test_a_strangers_words_are_text_on_the_page(file: Path) -> None:
    write_notes(file, "<script>x</script>")
    assert "<script>" not in card('"><script>', read_lora_facts(file))
