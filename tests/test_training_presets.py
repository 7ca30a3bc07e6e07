"""Every preset is a config that its method takes, and says how to run it."""

from pathlib import Path

import pytest

from studio.settings import ROOT
from trainers.config_files import read_config
from trainers.methods import METHODS

PRESETS = sorted((ROOT / "presets" / "train").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_sound(path: Path) -> None:
    method = next(name for name in sorted(METHODS, key=len, reverse=True) if path.stem.startswith(f"{name}-"))
    read_config(METHODS[method][0], path, [])
    head = "\n".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"python -m trainers {method} --config presets/train/{path.name} " in head
    assert "Memory:" in head and "Source: " in head


def test_every_usual_family_has_one() -> None:
    names = {path.stem for path in PRESETS}
    for family in ("sd15", "sdxl", "sd35", "flux1", "flux2-klein", "z-image", "shapes"):
        assert f"lora-{family}" in names
