"""A run among others: it lets them have the device, hears what it is told, and waits for room on a full disk."""

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from studio.errors import DeviceError, InvalidRequest, StudioError
from studio.lease import DeviceLease
from studio.store import writer
from studio.store.runs import Runs
from tests.training import SMALL, Forked, command_of, config_of, content, draw_pictures, losses, train

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
        time.sleep(0.05)


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
    process = Forked(command[3:], tmp_path / "log")
    wait_for(lambda: (tmp_path / "run" / "events.jsonl").exists() and losses(tmp_path / "run"))
    process.terminate()
    process.wait()
    told = json.loads((tmp_path / "log").read_text().splitlines()[-1])
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


@pytest.mark.parametrize("cached", [True, False])
def test_a_dataset_may_go_while_a_run_learns(tmp_path: Path, pictures: Path, cached: bool) -> None:
    folder = shutil.copytree(pictures, tmp_path / "hearts")
    away = folder.with_name("away")
    config = config_of("lora", folder, **STEPS | {"cache_latents": cached, "checkpointing_steps": 1})

    def remove(session: Any) -> bool:
        if session.step == 2 and folder.exists():
            folder.rename(away)
        return False

    if cached:  # all that it needs was read before the first step
        answer = train("lora", config, tmp_path, should_stop=remove)
        assert answer["status"] == "finished" and away.exists()
        return
    with pytest.raises(InvalidRequest, match=r"hearts/\d.png was removed while the run needs it; put the dataset back"):
        train("lora", config, tmp_path, should_stop=remove)
    story = Runs(tmp_path).story("run")
    assert story.last == "failed" and "put the dataset back" in story.error and story.checkpoints[-1] == 2
    away.rename(folder)
    assert train("lora", config, tmp_path, resume=True)["status"] == "finished"
    assert sorted(losses(tmp_path / "run")) == list(range(1, STEPS["max_train_steps"] + 1))


def test_no_memory_is_one_sentence_and_nothing_saved_is_lost(tmp_path: Path, pictures: Path) -> None:
    import torch

    config = config_of("lora", pictures, **STEPS | {"checkpointing_steps": 1})

    def fill(session: Any) -> bool:
        if session.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return False

    with pytest.raises(
        DeviceError, match="does not fit into the device's memory; the checkpoint of step 1 is kept; end"
    ):
        train("lora", config, tmp_path, should_stop=fill)
    assert "begin anew with mixed_precision: bf16" in Runs(tmp_path).story("run").error
    assert train("lora", config, tmp_path, resume=True)["step"] == STEPS["max_train_steps"]


def test_a_machine_without_memory_says_so_in_words(tmp_path: Path, pictures: Path) -> None:
    config = config_of("lora", pictures, **STEPS)

    def fill(session: Any) -> bool:
        import torch

        torch.empty(2**50)  # what no machine has
        return False

    with pytest.raises(DeviceError, match="does not fit into the device's memory"):
        train("lora", config, tmp_path, should_stop=fill)
