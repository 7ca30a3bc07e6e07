"""The queue and the process that draws: order, places, cancel, kill, restart; the same bytes whichever way."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from studio.errors import StudioError
from studio.executors.dispatcher import Dispatcher
from studio.executors.worker import WorkerExecutor, make_executor
from studio.lease import DeviceLease, FolderLock
from studio.settings import Settings
from studio.spec import GenerationRequest
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.store.jobs import JobStore, new_job_id
from studio.store.lab_calls import lab_call
from studio.store.library import Library
from studio.tools import PreprocessCall, ToolProgress
from tests.conftest import MODELS, wait_for

PROMPT = "a red circle on a blue background"


def build(data: Path, executor: str) -> Dispatcher:
    settings = Settings(data_dir=data, cpu_threads=1, device="cpu", executor=executor)  # type: ignore[arg-type]
    database = Database(data / "studio.db")
    gallery = Gallery(data / "images", ImageIndex(database))
    dispatcher: Dispatcher
    runner = make_executor(settings, gallery, lambda event: dispatcher.hear(event))
    dispatcher = Dispatcher(runner, JobStore(database), Library((MODELS,), database), gallery.blobs)
    return dispatcher


def ended(dispatcher: Dispatcher, job_id: str) -> Any:
    entry = dispatcher.jobs.get(job_id)
    return entry if entry and entry.state not in ("queued", "running") else None


def in_step(dispatcher: Dispatcher, job_id: str) -> bool:
    live = dispatcher._live
    return live is not None and live.job == job_id and live.progress is not None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dispatcher]:
    dispatcher = build(tmp_path_factory.mktemp("worker"), "worker")
    dispatcher.start("shapes")
    yield dispatcher
    dispatcher.close()


@pytest.fixture(scope="module")
def pictures(running: Dispatcher) -> Path:
    return running.executor._settings.data_dir / "images"  # type: ignore[attr-defined]


def png_pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def test_the_worker_gives_the_same_bytes_as_inline(running: Dispatcher, pictures: Path, tmp_path: Path) -> None:
    request = GenerationRequest(prompt=PROMPT, seed=33, num_images_per_prompt=2, num_inference_steps=4)
    inline = build(tmp_path, "inline")
    inline.start("shapes")
    found = []
    for dispatcher, root in ((running, pictures), (inline, tmp_path / "images")):
        job = dispatcher.submit(request, "me")
        entry = wait_for(lambda dispatcher=dispatcher, job=job: ended(dispatcher, job.id))
        assert entry.state == "done", entry.error
        found.append([png_pixels(next(root.rglob(f"{image}.png"))) for image in entry.images])
    inline.close()
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_two_browsers_wait_in_order_and_see_their_places(running: Dispatcher) -> None:
    long = GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=60)
    quick = GenerationRequest(prompt=PROMPT, seed=2, num_inference_steps=1)
    first = running.submit(long, "anna")
    wait_for(lambda: in_step(running, first.id))
    second, third, fourth = (running.submit(quick, owner) for owner in ("ben", "anna", "ben"))
    state = running.state("ben")
    assert [(job["state"], job["place"], job["mine"]) for job in state["jobs"][:4]] == [
        ("running", 0, False),
        ("queued", 1, True),
        ("queued", 2, False),
        ("queued", 3, True),
    ]
    assert "prompt" not in state["jobs"][0]  # others' prompts are theirs
    assert state["waiting"] == 3
    running.move(fourth.id, "ben", -1)
    assert [entry.id for entry in running.jobs.waiting()] == [second.id, fourth.id, third.id]
    with pytest.raises(StudioError, match="no job"):
        running.cancel(third.id, "ben")
    running.cancel(third.id, "anna")
    for job, outcome in ((first, "done"), (second, "done"), (fourth, "done"), (third, "cancelled")):
        assert wait_for(lambda job=job: ended(running, job.id)).state == outcome


def test_interrupt_keeps_what_is_finished(running: Dispatcher) -> None:
    job = running.submit(
        GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=8, num_images_per_prompt=60), "me"
    )
    wait_for(lambda: running.jobs.get(job.id).images)  # type: ignore[union-attr]
    running.cancel(job.id, "me")
    entry = wait_for(lambda: ended(running, job.id), 5)
    assert entry.state == "cancelled"
    assert 1 <= len(entry.images) < 60


def test_a_killed_worker_is_replaced_and_the_next_job_works(running: Dispatcher) -> None:
    executor = running.executor
    assert isinstance(executor, WorkerExecutor)
    job = running.submit(GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=150), "me")
    queued = running.submit(GenerationRequest(prompt=PROMPT, seed=2, num_inference_steps=2), "me")
    wait_for(lambda: in_step(running, job.id))
    old = executor.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    entry = wait_for(lambda: ended(running, job.id), 10)
    assert entry.state == "failed"
    assert "ended unexpectedly (signal 9" in entry.error
    assert wait_for(lambda: ended(running, queued.id)).state == "done"
    assert executor.pid not in (None, old)
    again = running.retry(job.id, "me")
    running.cancel(again.id, "me")
    wait_for(lambda: ended(running, again.id))


def test_a_stuck_job_is_ended_with_its_process(running: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = running.executor
    assert isinstance(executor, WorkerExecutor)
    monkeypatch.setattr("studio.executors.worker.GRACE", 0.5)
    job = running.submit(GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=150), "me")
    wait_for(lambda: in_step(running, job.id))
    psutil.Process(executor.pid).suspend()
    running.cancel(job.id, "me")
    assert wait_for(lambda: ended(running, job.id), 10).state == "cancelled"
    quick = running.submit(GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=1), "me")
    assert wait_for(lambda: ended(running, quick.id)).state == "done"


def test_forever_goes_on_with_new_seeds_until_cancelled(running: Dispatcher) -> None:
    first = running.submit(GenerationRequest(prompt=PROMPT, num_inference_steps=1), "eve", forever=True)
    wait_for(lambda: ended(running, first.id))

    def others() -> list:
        return [entry for entry in running.jobs.ended("eve") if entry.id != first.id]

    wait_for(lambda: len(others()) >= 2)
    for entry in running.jobs.waiting() + running.jobs.running():
        running.cancel(entry.id, "eve")
    wait_for(lambda: not running.jobs.waiting() and not running.jobs.running())
    seeds = {entry.job.request.seed for entry in others()}
    assert len(seeds) == len(others())


def test_wrong_requests_never_enter_the_queue(running: Dispatcher) -> None:
    with pytest.raises(StudioError, match="is not in the library"):
        running.submit(GenerationRequest(model="missing"), "me")
    assert not running.jobs.waiting()


def test_a_fault_in_a_job_is_told_and_the_next_job_works(running: Dispatcher) -> None:
    bad = running.submit(GenerationRequest(prompt=PROMPT, clip_skip=7), "me")
    entry = wait_for(lambda: ended(running, bad.id))
    assert entry.state == "failed"
    assert entry.error.startswith("clip_skip=7 must be less than")
    good = running.submit(GenerationRequest(prompt=PROMPT, num_inference_steps=1), "me")
    assert wait_for(lambda: ended(running, good.id)).state == "done"


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_worker_ends_when_its_pipe_closes(tmp_path: Path) -> None:
    dispatcher = build(tmp_path, "worker")
    executor = dispatcher.executor
    assert isinstance(executor, WorkerExecutor)
    executor.start()
    pid = executor.pid
    assert pid is not None
    assert executor._process is not None
    assert executor._process.stdin is not None
    executor._process.stdin.close()
    wait_for(lambda: gone(pid), 30)
    dispatcher.close()


def test_the_journal_survives_and_runs_the_unfinished_job_again(tmp_path: Path, library: Library) -> None:
    from studio.records import Job

    request, model = library.resolve(GenerationRequest(prompt=PROMPT), 3)
    jobs = JobStore(Database(tmp_path / "studio.db"))
    made = [Job(id=new_job_id(), request=request, model=model, owner="me") for _ in range(3)]
    for job in made:
        jobs.add(job)
    front = made.pop(0)
    claimed = jobs.claim()
    assert claimed
    assert claimed.id == front.id
    reopened = JobStore(Database(tmp_path / "studio.db"))
    assert reopened.requeue_running() == 1
    again = reopened.claim()
    assert again
    assert (again.id, again.tries, again.job.request) == (front.id, 2, request)
    for _ in range(2):
        reopened.requeue_running()
        reopened.claim()
    reopened.requeue_running()
    entry = reopened.get(front.id)
    assert entry
    assert entry.state == "failed"  # a job that takes its process with it is not tried for ever
    assert [entry.id for entry in reopened.waiting()] == [job.id for job in made]


def test_the_device_has_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = DeviceLease("gpu-1", tmp_path), DeviceLease("gpu-1", tmp_path)
    asked: list[bool] = []

    def give_up() -> bool:
        asked.append(first.wanted())
        return len(asked) > 3

    with first.held() as mine:
        assert mine
        with second.held(give_up) as other:
            assert not other
        assert asked[-1]  # the holder could see that somebody waited
        assert not first.wanted()
        with DeviceLease("gpu-2", tmp_path).held() as elsewhere:
            assert elsewhere
    with second.held() as mine:
        assert mine


def test_a_data_root_has_one_app(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(StudioError, match="another Studio runs on"):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


def test_a_job_that_is_cancelled_before_it_begins_does_not_run(running: Dispatcher) -> None:
    for _ in range(5):
        job = running.submit(GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=100), "me")
        running.cancel(job.id, "me")
        assert wait_for(lambda job=job: ended(running, job.id), 30).state == "cancelled"


def test_cancelling_an_ended_job_leaves_the_running_one_alone(running: Dispatcher) -> None:
    first = running.submit(GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=1), "me")
    wait_for(lambda: ended(running, first.id))
    second = running.submit(GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=30), "me")
    wait_for(lambda: in_step(running, second.id))
    running.cancel(first.id, "me")
    assert wait_for(lambda: ended(running, second.id)).state == "done"


def test_nobody_without_a_name_has_jobs(running: Dispatcher) -> None:
    job = running.submit(GenerationRequest(prompt="secret words", seed=1, num_inference_steps=1), "")
    wait_for(lambda: ended(running, job.id))
    assert "secret words" not in str(running.state(""))
    with pytest.raises(StudioError, match="no job"):
        running.retry(job.id, "")


def test_a_missing_device_fails_the_job_and_not_the_queue(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, cpu_threads=1, device="cuda:7", executor="inline")
    database = Database(tmp_path / "studio.db")
    gallery = Gallery(tmp_path / "images", ImageIndex(database))
    dispatcher = Dispatcher(
        make_executor(settings, gallery, lambda event: None), JobStore(database), Library((MODELS,)), gallery.blobs
    )
    dispatcher.start("shapes")
    for _ in range(2):
        job = dispatcher.submit(GenerationRequest(prompt=PROMPT), "me")
        assert "device='cuda:7' is not there" in wait_for(lambda job=job: ended(dispatcher, job.id)).error
    dispatcher.close()


def test_the_queue_goes_on_after_a_fault_of_the_journal(running: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise StudioError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(running.jobs, "add_image", full)
        job = running.submit(GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=1), "me")
        assert wait_for(lambda: ended(running, job.id)).state == "failed"
    quick = running.submit(GenerationRequest(prompt=PROMPT, seed=1, num_inference_steps=1), "me")
    assert wait_for(lambda: ended(running, quick.id)).state == "done"


def test_a_row_of_another_version_does_not_stop_the_queue(tmp_path: Path, library: Library) -> None:
    database = Database(tmp_path / "studio.db")
    jobs = JobStore(database)
    database.execute("INSERT INTO jobs(id, rank, state, owner, job) VALUES ('old', 1, 'queued', 'me', '{}')")
    assert jobs.claim() is None
    assert jobs.waiting() == []


def test_a_long_call_tells_of_its_steps_and_can_be_stopped(running: Dispatcher) -> None:
    call = lab_call(running.library, "guidance", {"scales": (1,), "pictures": 2, "num_inference_steps": 100}, "shapes")
    heard: list[ToolProgress] = []

    def hear(progress: ToolProgress) -> None:
        heard.append(progress)
        if len(heard) == 2:
            running.stop_tool("another")
            running.stop_tool("mine")

    with pytest.raises(StudioError, match="Stopped before there was anything to show"):
        running.ask(call, "mine", hear)
    assert [(one.step, one.steps) for one in heard[:2]] == [(1, 100), (2, 100)]
    assert len(heard) < 50
    running.stop_tool("mine")  # it is over: nothing that comes later may be stopped by that
    short = call.model_copy(update={"values": call.values | {"num_inference_steps": 2}})
    assert running.ask(short, "mine").values["tables"][0]["rows"]


def test_a_tool_that_nobody_waits_for_is_left_out(running: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from studio.store.blobs import encode

    picture = running.blobs.add(encode(Image.new("RGB", (64, 64), "red")), "image")
    call = PreprocessCall(image=picture, preprocessor="canny")
    made = running.executor._settings.tool_pictures  # type: ignore[attr-defined]
    before = len(list(made.glob("*.png"))) if made.is_dir() else 0
    job = running.submit(GenerationRequest(prompt=PROMPT, seed=5, num_inference_steps=80), "me")
    wait_for(lambda: in_step(running, job.id))
    monkeypatch.setattr("studio.executors.worker.TOOL_WAIT", 0.2)
    assert "busy with a longer job" in running.executor.ask(call).problem
    running.cancel(job.id, None)
    wait_for(lambda: ended(running, job.id))
    monkeypatch.undo()
    assert running.executor.ask(call).problem == ""
    assert len(list(made.glob("*.png"))) == before + 1
