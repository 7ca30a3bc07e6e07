"""A run among others: it lets them have the device, hears what it is told, and waits for room on a full disk."""

import errno
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from studio.errors import StudioError
from studio.lease import DeviceLease
from studio.settings import ROOT
from studio.store import writer
from tests.training import SMALL, command_of, config_of, content, draw_pictures, losses, train

STEPS = {"max_train_steps": 6, "checkpointing_steps": 0, "rank": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("hearts"), 3)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("unbroken")
    return root / "run", train("lora", config_of("lora", pictures, **STEPS), root)


def tell(run: Path, number: int, command: str) -> None:
    writer.write_json(run / "control.json", {"number": number, "command": command})


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if line]


def in_background(pictures: Path, root: Path, **values: Any) -> tuple[threading.Thread, list[dict[str, Any]]]:
    answers: list[dict[str, Any]] = []
    config = config_of("lora", pictures, **STEPS | values)
    thread = threading.Thread(target=lambda: answers.append(train("lora", config, root)))
    thread.start()
    return thread, answers


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_others_get_the_device_between_two_steps_and_nothing_changes(tmp_path: Path, pictures: Path) -> None:
    thread, answers = in_background(pictures, tmp_path, max_train_steps=60)
    run = tmp_path / "run"
    wait_for(lambda: (run / "events.jsonl").exists() and any(row["type"] == "progress" for row in events(run)))
    turns = 0
    while thread.is_alive() and turns < 3:
        with DeviceLease("cpu").held(lambda: not thread.is_alive()) as mine:
            if mine and thread.is_alive():
                turns += 1
                before = (run / "events.jsonl").stat().st_size
                time.sleep(0.2)
                assert (run / "events.jsonl").stat().st_size == before  # the run does nothing meanwhile
    thread.join()
    whole = train("lora", config_of("lora", pictures, **STEPS | {"max_train_steps": 60}), tmp_path, run="whole")
    assert turns == 3 and content(answers[0]["artifact"]) == content(whole["artifact"])
    assert losses(run) == losses(tmp_path / "whole")


def test_it_pauses_saves_goes_on_and_stops_as_it_is_told(tmp_path: Path, pictures: Path) -> None:
    run = tmp_path / "run"
    thread, answers = in_background(pictures, tmp_path, max_train_steps=1000)
    wait_for(lambda: (run / "events.jsonl").exists() and any(row["type"] == "progress" for row in events(run)))
    tell(run, 1, "pause")
    wait_for(lambda: any(row["type"] == "paused" and row["asked"] for row in events(run)))
    number = len(events(run))
    time.sleep(0.3)
    assert len(events(run)) == number
    tell(run, 2, "resume")
    wait_for(lambda: len(events(run)) > number + 2)
    tell(run, 3, "save")
    wait_for(lambda: any(row["type"] == "checkpoint" for row in events(run)))
    tell(run, 3, "stop")  # a number that was heard already
    time.sleep(0.3)
    assert thread.is_alive()
    tell(run, 4, "stop")
    thread.join(60)
    assert answers[0]["status"] == "stopped" and events(run)[-1]["interrupted"]
    heard = [row["message"] for row in events(run) if "is heard" in row.get("message", "")]
    assert heard == ["pause (1) is heard", "resume (2) is heard", "save (3) is heard", "stop (4) is heard"]


def test_sigterm_finishes_the_step_and_saves(tmp_path: Path, pictures: Path) -> None:
    config = SMALL | {"dataset": str(pictures), "max_train_steps": 100_000, "rank": 2, "checkpointing_steps": 0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    command = command_of("lora", tmp_path / "c.yaml", tmp_path)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for(lambda: (tmp_path / "run" / "events.jsonl").exists() and losses(tmp_path / "run"))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    told = json.loads(out.splitlines()[-1])
    assert process.returncode == 0 and told["status"] == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"step-{told['step']:06d}" / "state").is_dir()


def test_a_second_process_is_kept_away(tmp_path: Path, pictures: Path) -> None:
    from trainers.run import Run

    held = Run(tmp_path / "run")
    with pytest.raises(StudioError, match="another process works on"):
        train("lora", config_of("lora", pictures, **STEPS), tmp_path)
    held.close()


def test_a_full_disk_pauses_a_run(pictures: Path, unbroken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers import loop

    monkeypatch.setattr(loop, "ROOM_SECONDS", 0.05)
    real, failures = os.write, [0]

    def full(handle: int, data: Any) -> int:
        if len(data) > 50_000 and failures[0] < 3:  # the adapter, not the small files
            failures[0] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(os, "write", full)
    answer = train(
        "lora", config_of("lora", pictures, **STEPS), unbroken[0].parent, run="full"
    )  # its pictures are cached
    assert failures[0] == 3 and content(answer["artifact"]) == content(unbroken[1]["artifact"])


def test_a_full_disk_before_the_first_step_is_one_sentence(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full(handle: int, data: Any) -> int:
        if len(data) > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StudioError, match="the disk is full; free some space"):
        train("lora", config_of("lora", pictures, **STEPS), tmp_path)
