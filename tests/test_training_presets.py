"""Every preset is a config that its method takes, and says how to run it."""

from pathlib import Path

import pytest

from studio.settings import ROOT
from trainers.configs import read_config
from trainers.methods import METHODS

PRESETS = sorted((ROOT / "presets" / "train").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_sound(path: Path) -> None:
    method = next(name for name in sorted(METHODS, key=len, reverse=True) if path.stem.startswith(f"{name}-"))
    read_config(METHODS[method][0], path, [])
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert head[0].startswith(f"# python -m trainers {method} --config presets/train/{path.name} ")
    assert "Memory:" in head[1] and head[2].startswith("# Source: ")


def test_every_usual_family_has_one() -> None:
    names = {path.stem for path in PRESETS}
    for family in ("sd15", "sdxl", "sd35", "flux1", "shapes"):
        assert f"lora-{family}" in names
