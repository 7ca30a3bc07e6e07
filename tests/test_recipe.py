"""The recipe of the embedded model runs from nothing to a folder that Studio uses, resumes, and continues from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from studio.settings import ROOT
from studio.spec import GenerationRequest
from studio.store.library import Library


def train(work: Path, out: Path, *flags: str) -> str:
    command = [
        sys.executable,
        "-m",
        "benchmarks.shapes.train",
        "--work",
        str(work),
        "--out",
        str(out),
        "--pictures",
        "64",
        *flags,
    ]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return answer.stderr


@pytest.mark.slow
def test_from_nothing_to_a_model_and_on_from_there(tmp_path: Path) -> None:
    budgets = ("--minutes", "vae=0.05", "text=0.05", "unet=0.05", "decoder=0.05")
    train(tmp_path / "work", tmp_path / "models" / "mine", *budgets)
    request, model = Library((tmp_path / "models",)).resolve(GenerationRequest(model="mine"), 1)
    assert (model.family, request.width) == ("sd1", 128)
    again = train(tmp_path / "work", tmp_path / "models" / "mine", *budgets)
    assert "fit-unet" not in again  # what is done is not done again
    more = train(
        tmp_path / "more", tmp_path / "models" / "better", "--init", str(tmp_path / "models" / "mine"), *budgets
    )
    assert "fit-unet" in more
    assert "fit-vae" not in more
    assert Library((tmp_path / "models",)).get("better")
