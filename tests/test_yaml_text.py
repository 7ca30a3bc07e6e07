"""YAML that a person gives: plain values come through, and what would take a machine's time or memory is told at once."""

import time
from pathlib import Path

import pytest
import yaml

from studio.errors import InvalidRequest
from studio.yaml_text import read_yaml
from trainers.config_files import read_config
from trainers.methods import METHODS

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def test_plain_values_come_through() -> None:
    assert read_yaml("a: 1\nb: [x, 2.5]\nc: {d: yes}\ne:\n") == {"a": 1, "b": ["x", 2.5], "c": {"d": True}, "e": None}
    assert read_yaml("") is None
    assert read_yaml("a: &x [1]\nb: *x\n") == {"a": [1], "b": [1]}  # as our own files are written
    shared = [1, 2]
    assert read_yaml(yaml.safe_dump({"a": shared, "b": shared})) == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "holds itself"),
        ("[" * 3000, "nested more than 20"),
        ("a: " + "[" * 30 + "]" * 30, "nested more than 20"),
        ("x" * 600_000, "at most 500,000"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 2026-02-30", "day is out of range"),
        ("? [a]\n: 1", "unhashable"),
    ],
)
def test_what_is_too_much_is_told_at_once(text: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=words):
        read_yaml(text)
    assert time.monotonic() - began < 2


def test_a_config_that_is_a_bomb_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BOMB + "rank: *a8\n")
    with pytest.raises(InvalidRequest, match=r"c.yaml is no YAML: it has more than 100,000 values"):
        read_config(METHODS["lora"][0], tmp_path / "c.yaml", [])
