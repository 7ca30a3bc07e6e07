"""Every command of the README runs, and what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from studio.settings import ROOT
from tests.conftest import App
from trainers.scorers.reading import judge

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_front_matter_is_a_spaces() -> None:
    front = README.split("---")[1]
    lock = (ROOT / "requirements.lock").read_text()
    assert "sdk: gradio" in front
    assert "app_file: app.py" in front
    assert f"gradio=={re.search(r'sdk_version: (.*)', front)[1]}" in lock  # type: ignore[index]


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (?:PYTHON=\S+ )?(\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "app.py $(ARGS)" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_command_lines_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in blocks("sh") if "studio xyz" in block]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    for line in block.splitlines():
        answer = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, (line, answer.stderr)
        assert "replay" not in line or answer.stdout == "identical\n"


def test_the_first_training_runs_and_draws_what_it_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in blocks("sh") if "trainers dreambooth" in block]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    for line in block.splitlines():
        answer = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, (line, answer.stderr)
    seen = [judge(Image.open(path)) for path in (tmp_path / "taught").glob("*.png")]
    right = [
        one.background == "blue" and [(x.colour, x.shape) for x in one.things] == [("green", "heart")] for one in seen
    ]
    assert len(right) == 8 and sum(right) > 4, seen


def test_the_phones_command_is_accepted() -> None:
    (block,) = [block for block in blocks("sh") if "0.0.0.0" in block]
    from app import parse_flags
    from studio.settings import read_settings

    assert read_settings(parse_flags(block.split()[2:]), {}).credentials == ("me", "a-long-password")


def test_the_apis_example_runs(app: App) -> None:
    (block,) = blocks("python")
    code = block.replace("http://localhost:7860", app.url)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    assert "/studio/image/" in answer.stdout


def test_the_flags_exist() -> None:
    text = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for flag in set(re.findall(r"`(--[a-z-]+)", README.split("## Who can reach it")[1])):
        assert flag in text, flag


def test_windows_commands_name_what_is_locked() -> None:
    (block,) = blocks("powershell")
    version = re.search(r"torch==(\S+)", block)
    assert version
    assert f"torch=={version[1]}" in (ROOT / "requirements.lock").read_text()
