"""The queue of training runs: real commands, followed through their folders only."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from studio.errors import InvalidRequest, StudioError
from studio.executors.runner import Runner
from studio.settings import Settings
from studio.spec import parse_request
from studio.store.library import Library
from studio.store.priority import read_priority, set_priority
from studio.store.prompt_reports import unknown_to
from studio.store.runs import ALIVE, Runs
from tests.training import Forked, config_of, draw_pictures, forks
from trainers.config_files import dump_config

LIMIT = 120.0
STEPS = 20  # for each time that the app is killed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("data") / "hearts")


class App:
    """A runner over a data root, as an app has it; several may follow one another.

    Args:
        root: data root.
        start: how processes begin; None is the app's own way.
        places: names of the machine's devices, the app's own first.
        pictures_wait: whether pictures wait for a device.
    """

    begun: ClassVar[list["App"]] = []

    def __init__(
        self,
        root: Path,
        start: Any = Forked,
        places: tuple[str, ...] = (),
        pictures_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = Settings(data_dir=root, device="cpu", cpu_threads=1)
        self.changes = 0
        told = {"place": places[0], "places": [{"name": name} for name in places]} if places else {}
        self.runner = Runner(
            self.settings, Runs(self.settings.runs), self._changed, pictures_wait, device=lambda: told, start=start
        )
        self.runs = self.runner.runs
        self.library = Library(
            self.settings.model_folders, part_roots=self.settings.part_roots, runs=self.settings.runs
        )
        self.runner.start()
        self.begun.append(self)

    def _changed(self) -> None:
        self.changes += 1

    def create(self, pictures: Path, name: str = "heart", **values: Any) -> str:
        config = config_of("lora", pictures, **{"rank": 2, "output_name": name, "checkpointing_steps": 2} | values)
        return self.runs.create("lora", name, dump_config(config))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """End what a test that fails would leave at work: it would hold the device against all that follow."""
    App.begun.clear()
    yield
    for app in App.begun:
        app.runner.close()
        for child, _ in app.runner._children.values():
            child.kill()
            child.wait()


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path / "data")


def wait_for(done: Callable[[], Any]) -> Any:
    end = time.monotonic() + LIMIT
    while not (found := done()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def test_a_run_goes_from_the_queue_to_a_lora_in_the_library(app: App, pictures: Path) -> None:
    first, second = app.create(pictures, max_train_steps=4, trigger_word="sks"), app.create(pictures, max_train_steps=2)
    assert (first, second) == ("heart", "heart-2")
    app.runner.enqueue(first)
    app.runner.enqueue(second)
    with pytest.raises(StudioError, match="already"):
        app.runner.enqueue(second)
    wait_for(lambda: "heart-000002" in {part.id for part in app.library.parts.parts("lora")})
    wait_for(lambda: app.runner.state(first) == "finished")
    assert app.runner.state(second) in ("queued", "starting", "running", "finished")
    wait_for(lambda: app.runner.state(second) == "finished")
    names = {part.id for part in app.library.parts.parts("lora") if not part.problem}
    assert {"heart", "heart-000002", "heart-000004", "heart-2", "heart-2-000002"} <= names
    request = app.library.with_loras(parse_request({"prompt": "a sks heart <lora:heart-000002:0.5>"}))
    (part,) = app.library.parts_of(request)
    assert unknown_to(app.library, request) == []  # what a LoRA teaches is no unknown word
    assert unknown_to(app.library, request.model_copy(update={"loras": ()})) == ["sks"]
    assert part.kind == "lora" and part.path.endswith("step-000002/weights/heart-000002.safetensors")
    row = app.runner.overview()[0]
    assert (row["step"], row["steps"], row["checkpoints"]) == (2, 2, 1) and row["loss"] > 0
    assert sorted(app.runs.story(first).curves["loss"]) == [1, 2, 3, 4]
    with pytest.raises(StudioError, match="is finished"):
        app.runner.enqueue(first)
    assert app.runs.clean(first) > 0
    app.runs.remove(second, app.runs.root / ".trash")
    assert app.runs.ids() == [first] and (app.runs.root / ".trash" / second / "final").is_dir()


def test_a_run_outlives_its_app_and_the_next_one_sees_it(app: App, pictures: Path) -> None:
    run_id = app.create(pictures, max_train_steps=100_000, checkpointing_steps=0)
    waiting = app.create(pictures, max_train_steps=1)
    app.runner.enqueue(run_id)
    app.runner.enqueue(waiting)
    wait_for(lambda: app.runner.state(run_id) == "running" and app.runs.story(run_id).step > 2)
    app.runner.close()  # what a killed app leaves is the same: the folder and a process of its own
    after = App(app.settings.data_dir)
    try:
        assert after.runner.state(run_id) == "running" and after.runner.queue() == [waiting]
        step = after.runs.story(run_id).step
        wait_for(lambda: after.runs.story(run_id).step > step)
        after.runs.ask(run_id, "pause")
        wait_for(lambda: after.runner.state(run_id) == "paused")
        after.runs.ask(run_id, "resume")
        wait_for(lambda: after.runner.state(run_id) == "running")
        after.runner.cancel(run_id)
        wait_for(lambda: after.runner.state(run_id) == "stopped")
        assert after.runs.results(run_id)  # it saved before it ended
        wait_for(lambda: after.runner.state(waiting) == "finished")
    finally:
        after.runner.close()


def test_a_killed_run_is_told_as_interrupted_and_goes_on(app: App, pictures: Path) -> None:
    run_id = app.create(pictures, max_train_steps=8, checkpointing_steps=1)
    app.runner.enqueue(run_id)
    wait_for(lambda: app.runs.results(run_id))
    child, _ = app.runner._children[run_id]
    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: app.runner.state(run_id) == "interrupted")
    app.runner.enqueue(run_id)
    wait_for(lambda: app.runner.state(run_id) == "finished")
    assert sorted(app.runs.story(run_id).curves["loss"]) == list(range(1, 9))


def _work_on(root: Path) -> None:
    App(root, start=None)
    time.sleep(LIMIT)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the trainers that work, or begin to work, in a run's folder."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(folder) in (one.info["cmdline"] or ())]


def kill_apps(root: Path, pictures: Path, kills: int) -> None:
    """Kill the app while a run goes on; each new one must see it as it is, and it must end as if nothing had happened."""
    runs = Runs(root / "runs")
    steps = STEPS * kills
    config = config_of("lora", pictures, rank=2, train_batch_size=1, max_train_steps=steps, checkpointing_steps=STEPS)
    run_id, moments = runs.create("lora", "heart", dump_config(config)), random.Random(1)
    waiting, context = True, forks()
    for number in range(kills):
        child = context.Process(target=_work_on, args=(root,))
        child.start()
        if waiting:
            idle = Runner(Settings(data_dir=root, device="cpu", cpu_threads=1), runs, lambda: None, lambda: False)
            idle.enqueue(run_id)
            waiting = False
        if number == kills // 2:  # until now it loads, from now on it learns
            wait_for(lambda: runs.story(run_id).step)
        time.sleep(moments.uniform(0.1, 1.5))
        child.kill()
        child.join()
        seen, there = Runs(root / "runs"), processes_of(runs.folder(run_id))
        assert len(there) <= 1, "an app began a run again that another one had begun"
        state = seen.state(run_id)
        if state in ALIVE:
            assert there, "it is told as working and no process does"
        elif state == "finished":
            assert (root / "runs" / run_id / "final").is_dir()
        else:
            assert (state, Runner(idle.settings, seen, lambda: None, lambda: False).queue()) == ("new", [run_id])
    last = App(root, start=None)
    for step in range(steps):  # however busy the machine is, as long as it goes on
        wait_for(lambda step=step: last.runs.story(run_id).step > step)
    wait_for(lambda: last.runner.state(run_id) == "finished")
    last.runner.close()
    assert sorted(last.runs.story(run_id).curves["loss"]) == list(range(1, steps + 1))
    assert last.runs.story(run_id).notices == [] and last.runner.queue() == []


def test_the_app_is_killed_and_the_run_is_not(tmp_path: Path, pictures: Path) -> None:
    kill_apps(tmp_path, pictures, 4)


@pytest.mark.slow
def test_the_app_is_killed_twenty_times(tmp_path: Path, pictures: Path) -> None:
    kill_apps(tmp_path, pictures, 20)


def test_a_run_that_cannot_begin_says_why_and_the_queue_goes_on(app: App, pictures: Path, tmp_path: Path) -> None:
    bad = app.create(tmp_path / "nothing", "bad")
    good = app.create(pictures, max_train_steps=1)
    app.runner.enqueue(bad)
    app.runner.enqueue(good)
    wait_for(lambda: app.runner.state(bad) == "failed")
    assert "is no folder here" in app.runs.story(bad).error
    wait_for(lambda: app.runner.state(good) == "finished")


def test_a_run_may_wait_for_the_night(tmp_path: Path) -> None:
    app = App(tmp_path / "data")
    app.runner.close()  # it looks when we say so
    begun: list[str] = []
    app.runner._spawn = begun.append  # type: ignore[method-assign]
    late, soon = (app.runs.create("lora", name, "model: shapes\n") for name in ("late", "soon"))
    for run_id in (late, soon):
        app.runner.enqueue(run_id)
    app.runner.hold(late, time.time() + 0.5)
    after = Runner(app.settings, app.runs, lambda: None, lambda: False)
    assert after.row(late)["after"] > time.time() and after.row(soon)["after"] is None, "a new app knows it"
    app.runner._look()
    assert begun == [soon], "what is behind it need not wait"
    time.sleep(0.5)
    app.runner._look()
    assert begun == [soon, late]
    for wrong in (time.time() - 5, time.time() + 9e6):
        with pytest.raises(InvalidRequest, match="must be a moment of the next seven days"):
            app.runner.hold(late, wrong)
    app.runner.hold(late, None)
    assert app.runner.row(late)["after"] is None
    with pytest.raises(StudioError, match="does not wait"):
        app.runner.hold(app.runs.create("lora", "third", "model: shapes\n"), None)


def test_each_device_has_its_own_turn(tmp_path: Path, pictures: Path) -> None:
    app = App(tmp_path / "data", places=("cpu", "mps"))
    own, other, same = (app.create(pictures, name, max_train_steps=100_000) for name in ("own", "other", "same"))
    for run_id, device in ((other, "mps"), (same, "cpu")):
        app.runner.set_device(run_id, device)
    with pytest.raises(InvalidRequest, match="device='cuda' is not there; there is: cpu, mps"):
        app.runner.set_device(own, "cuda")
    for run_id in (own, same, other):
        app.runner.enqueue(run_id)
    wait_for(lambda: app.runner.state(other) == "failed")
    assert "device='mps' is not there" in app.runs.story(other).error
    wait_for(lambda: app.runner.queue() == [same])
    assert app.runner.state(own) == "running", "the app's own device is one, however a run names it"
    with pytest.raises(StudioError, match="own is running; stop it first"):
        app.runner.set_device(own, "mps")
    app.runner.cancel(own)
    wait_for(lambda: app.runner.state(same) in ("starting", "running"))
    assert app.runner.row(same)["device"] == "cpu"


def test_an_idle_queue_looks_once_at_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(tmp_path / "data")
    app.runner.close()
    ids = [app.runs.create("lora", f"run{i}", "model: shapes\n") for i in range(5)]
    app.runner.overview()
    looks: list[str] = []
    real = app.runs.story
    monkeypatch.setattr(app.runs, "story", lambda run_id: (looks.append(run_id), real(run_id))[1])
    assert [row["id"] for row in app.runner._look()] == app.runs.ids()
    assert len(looks) <= 2 * len(ids)


def test_the_estimate_is_the_trainers_own(app: App, pictures: Path) -> None:
    told = app.runner.estimate("lora", dump_config(config_of("lora", pictures, max_train_steps=50, rank=2)))
    assert told["steps"] == 50 and told["seconds"] > 0 and told["peak_memory"] > 1e8 and told["fits"]
    with pytest.raises(InvalidRequest, match="is no folder here"):
        app.runner.estimate("lora", dump_config(config_of("lora", Path("/nowhere"), max_train_steps=50)))


def test_what_waits_can_be_moved_and_taken_away(tmp_path: Path, pictures: Path) -> None:
    app = App(tmp_path / "data")
    app.runner.close()  # nothing starts
    ids = [app.create(pictures, f"run{i}") for i in range(3)]
    for run_id in ids:
        app.runner.enqueue(run_id)
    app.runner.move("run2", -1)
    assert app.runner.queue() == ["run0", "run2", "run1"]
    app.runner.cancel("run0")
    assert app.runner.queue() == ["run2", "run1"] and app.runner.state("run0") == "new"
    with pytest.raises(StudioError, match="neither works nor waits"):
        app.runner.cancel("run0")
    with pytest.raises(StudioError, match="not running"):
        app.runs.ask("run0", "pause")
    for wrong in ("../x", "nothing", "", "a/b"):
        with pytest.raises(InvalidRequest):
            app.runs.folder(wrong)


def test_a_run_works_on_the_device_that_it_was_given(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "data" / "runs")
    settings = Settings(data_dir=tmp_path / "data", device="cuda", cpu_threads=1)
    runner = Runner(settings, runs, lambda: None, lambda: False)
    usual, other = (runs.create("lora", "a", "model: shapes\n", device=device) for device in ("", "cuda:1"))
    for run_id, device in ((usual, "cuda"), (other, "cuda:1")):
        words = runner.command(run_id)
        assert words[words.index("--device") + 1] == device


def test_a_run_that_is_still_loading_is_taken_out_at_once(app: App, pictures: Path) -> None:
    run_id = app.create(pictures, max_train_steps=100_000)
    app.runner.enqueue(run_id)
    wait_for(lambda: app.runner.state(run_id) == "starting")
    with pytest.raises(StudioError, match="is running; stop it first"):
        app.runner.remove(run_id, app.runs.root / ".trash")
    app.runner.cancel(run_id)
    assert app.runner.queue() == [], "an app that ends now does not begin it again"
    wait_for(lambda: app.runner.state(run_id) in ("new", "stopped"))


def test_events_are_read_line_by_line_as_they_come(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    run_id = runs.create("lora", "a", "model: shapes\n")
    rows = [{"type": "metric", "job": "a", "step": i, "name": "loss", "value": float(i)} for i in range(4)]
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    events = tmp_path / run_id / "events.jsonl"
    for end in range(0, len(text) + 1, 7):
        events.write_text(text[:end])
        assert len(runs.story(run_id).curves.get("loss", {})) == text[:end].count("\n")
    events.write_text(text)
    with events.open("a") as file:
        file.write('{"torn\n' + json.dumps(rows[0] | {"value": 9.0}) + "\n")
    assert runs.story(run_id).curves["loss"] == {0: 9.0, 1: 1.0, 2: 2.0, 3: 3.0}
    assert runs.method(run_id) == "lora" and runs.config(run_id) == {"model": "shapes"}


def test_training_first_lets_pictures_wait_and_once_lets_them_go(tmp_path: Path, pictures: Path) -> None:
    from studio.lease import DeviceLease

    waiting, got, stop = True, threading.Event(), threading.Event()
    app = App(tmp_path / "data", pictures_wait=lambda: waiting)
    set_priority(app.settings.data_dir, "training")
    run_id = app.create(pictures, max_train_steps=100_000, checkpointing_steps=0)
    app.runner.enqueue(run_id)
    wait_for(lambda: app.runs.story(run_id).step > 2)

    def draw() -> None:
        with DeviceLease("cpu").held(stop.is_set) as mine:
            got.set() if mine else None
            stop.wait(LIMIT)

    thread = threading.Thread(target=draw)
    thread.start()
    step = app.runs.story(run_id).step
    wait_for(lambda: app.runs.story(run_id).step > step + 5)
    assert not got.is_set()
    set_priority(app.settings.data_dir, "training", once=True)
    wait_for(got.is_set)
    wait_for(lambda: app.runner.state(run_id) == "yielded")
    assert read_priority(app.settings.data_dir) == ("training", True)
    waiting = False
    stop.set()
    thread.join()
    wait_for(lambda: read_priority(app.settings.data_dir) == ("training", False))
    app.runner.cancel(run_id)
    wait_for(lambda: app.runner.state(run_id) == "stopped")
    app.runner.close()
    with pytest.raises(InvalidRequest, match="must be one of"):
        set_priority(app.settings.data_dir, "me")
