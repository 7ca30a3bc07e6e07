"""The benchmarks: their table is real, their statistics are right, and what they start is gone afterwards."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import measure
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.disk import commit_costs
from benchmarks.processes import children, end, environment, started
from studio.records import ImageRecord, Machine, ModelRef
from studio.settings import ROOT
from studio.spec import GenerationRequest

HEAVY = {"torch", "diffusers", "transformers", "gradio"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_of_the_table_is_there(name: str) -> None:
    module = importlib.import_module(BENCHMARKS[name])
    assert module.__doc__ and module.GOALS
    assert callable(module.run) and callable(module.add_flags)


def test_importing_the_benchmarks_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(BENCHMARKS.values())}, benchmarks.bare\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_gallery_prints_one_line_of_json() -> None:
    command = [sys.executable, "-m", "benchmarks", "gallery", "--rows", "2000", "--runs", "15"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = answer.stdout.splitlines()
    result = json.loads(line)
    assert result["ok"] is True and answer.returncode == 0, line
    assert result["benchmark"] == "gallery" and result["rows"] == 2000 and result["runs"] == 15
    assert result["ratio"] == result["median"]["offset_to_deep"]
    assert set(result["goal"]) <= set(result["median"]) == set(result["spread"])
    assert {"cpu", "cores", "load", "python", "torch"} <= set(result["machine"])


def test_an_unknown_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    captured = capsys.readouterr()
    assert not captured.out and "coldstart" in captured.err


def test_ratios_are_of_neighbours() -> None:
    # the machine became three times slower after the first pair: the ratio stays
    assert measure.pairwise([1.0, 3.0, 3.3], [2.0, 6.0, 6.6]) == pytest.approx([0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match="shorter"):
        measure.pairwise([1.0, 2.0], [1.0])


def test_a_report_has_medians_and_spread() -> None:
    result = measure.report({"a": [3.0, 1.0, 2.0], "b": [4.0, 1.0]}, {"a": ("<=", 2.0), "b": (">=", 2.5)})
    assert result == {
        "median": {"a": 2.0, "b": 2.5},
        "spread": {"a": [1.0, 3.0], "b": [1.0, 4.0]},
        "runs": 3,
        "goal": {"a": "<= 2", "b": ">= 2.5"},
        "ok": True,
    }


@pytest.mark.parametrize("goal", [("<=", 0.99999), (">=", 1.00001)])
def test_a_missed_goal_is_not_rounded_away(goal: tuple[str, float]) -> None:
    assert measure.report({"a": [1.0]}, {"a": goal})["ok"] is False


def test_a_busy_machine_is_told() -> None:
    assert measure.load_warning({"load": 2.0, "cores": 2}) is None
    assert "2.1 on 2 cores" in (measure.load_warning({"load": 2.1, "cores": 2}) or "")
    assert measure.load_warning({"load": None, "cores": 2}) is None


def test_an_ended_process_leaves_nothing(tmp_path: Path) -> None:
    sleeper = "import time; time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}], start_new_session=True)"
    with started([sys.executable, "-c", parent], tmp_path) as process:
        while not children(process.pid):
            assert process.poll() is None
        below = children(process.pid)
    assert process.poll() is not None
    assert not any(psutil.pid_exists(pid) for pid in below)
    end(process)  # a second time does no harm


def test_a_started_process_inherits_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_DEVICE", "cuda")
    assert "STUDIO_DEVICE" not in environment(tmp_path)
    assert Path(environment(tmp_path)["STUDIO_LEASE_DIR"]).parent == tmp_path


def test_fsync_is_told_apart_and_put_back(tmp_path: Path) -> None:
    import os

    fsync = os.fsync
    request = GenerationRequest(
        prompt="x", width=64, height=64, num_inference_steps=1, guidance_scale=1, scheduler="DDIM", seed=1
    )
    model = ModelRef(id="m", path="/m", title="M", family="sd1", sha256="ab" * 32)
    machine = Machine(
        studio="0", torch="0", diffusers="0", transformers="0", device="CPU", dtype="float32", cpu_threads=1
    )
    record = ImageRecord(
        id="x", created="2026-01-01T00:00:00", request=request, model=model, seed=1, index=0, machine=machine
    )
    costs = commit_costs(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(100), record, runs=2)
    assert os.fsync is fsync
    assert set(costs) == {f"{name}{kind}_ms" for name in ("write", "commit", "journal") for kind in ("", "_no_fsync")}
    assert all(len(values) == 2 and min(values) > 0 for values in costs.values())
    assert len(list(tmp_path.rglob("*.png"))) == 8
