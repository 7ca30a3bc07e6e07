"""Three jobs in a row that take their process with them stop the queue, which is kept until somebody says so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.errors import ModelError
from studio.events import Event, Failed, Finished
from studio.executors.base import StopFlag, run_job
from studio.executors.breaker import LIMIT, LOST, WORKER, Breaker, poisoned
from studio.executors.dispatcher import Dispatcher
from studio.records import Job
from studio.spec import GenerationRequest
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.store.jobs import JobStore
from studio.store.library import Library
from tests.conftest import MODELS, wait_for

ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


class Dying:
    """An executor whose process dies under every job whose prompt says so."""

    def start(self) -> None: ...
    def warm(self, model: Any) -> None: ...
    def stop(self, job_id: str, kind: Any) -> None: ...
    def close(self) -> None: ...
    def ask(self, tool: Any) -> Any: ...

    def run(self, job: Job, emit: Any) -> None:
        die = job.request.prompt.partition(" ")[0]
        emit(Failed(job=job.id, code=die, message="x") if die in (WORKER, LOST, "model") else Finished(job=job.id))


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Dispatcher]:
    database = Database(tmp_path / "studio.db")
    gallery = Gallery(tmp_path / "images", ImageIndex(database))
    dispatcher = Dispatcher(Dying(), JobStore(database), Library((MODELS,), database), gallery.blobs)
    dispatcher.start("shapes")
    yield dispatcher
    dispatcher.close()


def submit(queue: Dispatcher, *prompts: str) -> list[Job]:
    return [queue.submit(GenerationRequest(prompt=prompt, num_inference_steps=1), "me") for prompt in prompts]


def states(queue: Dispatcher, jobs: list[Job]) -> list[str]:
    return [entry.state for job in jobs if (entry := queue.jobs.get(job.id))]


def test_three_in_a_row_stop_the_queue_and_a_person_lets_it_go_on(queue: Dispatcher) -> None:
    jobs = submit(queue, WORKER, "fine", WORKER, LOST, "model", WORKER, WORKER, WORKER, "kept", "kept too")
    wait_for(lambda: queue.state("me")["device"]["state"] == "stopped")
    expected = ["failed", "done", "failed", "failed", "failed", "failed", "failed", "failed", "queued", "queued"]
    assert states(queue, jobs) == expected
    device = queue.state("stranger")["device"]
    assert "3 jobs in a row" in device["problem"] and "the queue is kept" in device["problem"]
    later = submit(queue, "later")
    assert states(queue, [*jobs[-2:], *later]) == ["queued"] * 3  # still stopped, and still taking jobs
    queue.go_on()
    wait_for(lambda: states(queue, [*jobs[-2:], *later]) == ["done"] * 3)
    assert queue.state("me")["device"]["state"] != "stopped"
    again = submit(queue, *[WORKER] * LIMIT, "kept")
    wait_for(lambda: queue.state("me")["device"]["state"] == "stopped")
    assert states(queue, again)[-1] == "queued"


def test_an_interrupted_job_shows_nothing() -> None:
    breaker = Breaker()
    for event in (Failed(job="a", code=WORKER, message=""), Finished(job="b", interrupted=True)) * LIMIT:
        breaker.heard(event)
    assert breaker.open


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(ASSERT), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDNN_STATUS_EXECUTION_FAILED"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), False),
        (ValueError(ASSERT), False),
        (ModelError("the model could not be loaded"), False),
    ],
)
def test_errors_after_which_a_process_is_of_no_use(error: Exception, lost: bool) -> None:
    assert poisoned(error) is lost
    with pytest.raises(ModelError) as caught:
        raise ModelError("could not be loaded") from error
    assert poisoned(caught.value) is lost


def test_a_lost_device_ends_the_process_and_not_the_job_after(tmp_path: Path, library: Library) -> None:
    def lost() -> Any:
        raise RuntimeError(ASSERT)

    request, model = library.resolve(GenerationRequest(prompt="x"), 1)
    heard: list[Event] = []
    gallery = Gallery(tmp_path / "images", ImageIndex(Database(tmp_path / "studio.db")))
    job = Job(id="a", request=request, model=model)
    assert run_job(lost, gallery, job, heard.append, StopFlag(), None) is False
    (event,) = heard
    assert isinstance(event, Failed) and event.code == LOST
    assert event.message.startswith("The device failed (CUDA error: device-side assert triggered); ")
