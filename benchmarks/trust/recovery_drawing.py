"""Recovery classes around the engine, the worker and the queue."""

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import psutil

from benchmarks.trust.bad_adapters import random_lora
from benchmarks.trust.recovery import Here, pixels, refused, wait_for
from studio.errors import DeviceError, ModelError
from studio.executors import worker
from studio.store import writer


def base(here: Here) -> Any:
    return next(reversed(here.drawing.engine.pipelines._loaded.values())).base


def r1_out_of_memory(here: Here) -> None:
    """At every step of a job."""
    import torch
    from diffusers import UNet2DConditionModel

    for nth in range(4):
        calls = [0]

        def full(module: object, _: object, nth: int = nth, calls: list[int] = calls) -> None:
            calls[0] += isinstance(module, UNet2DConditionModel)
            if calls[0] > nth:
                raise torch.OutOfMemoryError("CUDA out of memory")

        hook = torch.nn.modules.module.register_module_forward_pre_hook(full)
        try:
            said = refused(lambda: here.drawing.draw(num_inference_steps=4), DeviceError)
        finally:
            hook.remove()
        assert "too little memory" in said
        here.drawing.draw()  # what was let go is loaded again


def r2_worker_killed(here: Here) -> None:
    queue = here.queue
    job = queue.submit(num_inference_steps=150)
    queue.in_step(job)
    os.kill(queue.executor.pid or 0, signal.SIGKILL)
    entry = queue.ended(job)
    assert entry.state == "failed" and "signal 9" in entry.error, entry


def r3_device_lost(here: Here) -> None:
    """One restart for one loss; three in a row stop the queue, which is kept."""
    queue = here.queue
    before = queue.executor.pid
    assert "The device failed" in queue.ended(queue.submit(prompt="!assert")).error
    assert queue.draw() == here.baseline and queue.executor.pid not in (None, before)
    lost = [queue.submit(prompt=word) for word in ("!assert", "!exit", "!assert")]
    kept = queue.submit()
    wait_for(lambda: queue.dispatcher.state("me")["device"]["state"] == "stopped")
    assert [queue.ended(job).state for job in lost] == ["failed"] * 3
    assert queue.dispatcher.jobs.get(kept).state == "queued"  # type: ignore[union-attr]
    queue.dispatcher.go_on()
    assert queue.ended(kept).state == "done"


def r4_tab_closed(here: Here) -> None:
    queue = here.queue
    with queue.dispatcher.listening(lambda: None):
        job = queue.submit(num_images_per_prompt=3)
    queue.in_step(job)  # whoever comes later sees it too
    entry = queue.ended(job)
    assert len(entry.images) == 3 and all(queue.gallery.path(image).is_file() for image in entry.images)


def r7_save_fails(here: Here) -> None:
    """A name that cannot be given is no success."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    _failing_commit(here, patch.object(writer, "_move_to_new", refuse), "could not be saved")


def r8_disk_full(here: Here) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _failing_commit(here, patch.object(writer, "_write_synced", full), "the disk is full")


def _failing_commit(here: Here, fault: Any, words: str) -> None:
    """Let the picture of a job not be saved, in this process, as the worker does it."""
    from studio.events import Failed, ImageReady
    from studio.executors.base import StopFlag, run_job
    from studio.spec import parse_request
    from studio.store.gallery import Gallery
    from studio.store.index import Database, ImageIndex

    folder, heard = here.folder(), []
    gallery = Gallery(folder / "images", ImageIndex(Database(folder / "studio.db")))
    from benchmarks.trust.drawing import SMALL

    job = here.drawing.library.job(parse_request(SMALL), 7, None)
    with fault:
        run_job(lambda: here.drawing.engine, gallery, job, heard.append, StopFlag(), None)
    assert isinstance(heard[-1], Failed) and words in heard[-1].message, heard[-1]
    assert not any(isinstance(event, ImageReady) for event in heard), "it was announced"
    assert not gallery.index.ids() and not list(folder.rglob("*.png")), "something is there"
    heard.clear()
    run_job(lambda: here.drawing.engine, gallery, job, heard.append, StopFlag(), None)
    (name,) = gallery.index.ids()
    assert pixels(gallery.path(name).read_bytes()) == here.baseline


def r10_nan_adapter(here: Here) -> None:
    from safetensors.torch import save_file

    state = random_lora(base(here).unet, 1)
    key = next(iter(state))
    place = here.drawing.folder / "loras" / "nan.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(state | {key: state[key] * float("nan")}, place)
    said = refused(lambda: here.drawing.draw(loras=[{"name": "nan", "weight": 1.0}]), ModelError)
    assert "nan" in said


def r11_left_applied(here: Here) -> None:
    """A LoRA is gone from the model wherever the job ended."""
    for steps in range(3):
        seen = [0]

        def stop(steps: int = steps, seen: list[int] = seen) -> str:
            seen[0] += 1
            if seen[0] > steps:
                raise ModelError("injected")
            return ""

        refused(lambda stop=stop: here.drawing.draw(stop, loras=[{"name": "red-to-blue", "weight": 1.0}]), ModelError)
        assert here.drawing.weights() == here.weights, f"after {steps} looks"


def r12_two_at_once(here: Here) -> None:
    queue = here.queue
    blue = {"loras": [{"name": "red-to-blue", "weight": 1.0}]}
    alone = pixels(here.drawing.draw(**blue)[0])
    jobs = [(queue.submit(owner, **(blue if owner == "anna" else {})), owner) for owner in ("anna", "ben") * 4]
    for job, owner in jobs:
        made = pixels(queue.gallery.path(queue.ended(job).images[0]).read_bytes())
        assert made == (alone if owner == "anna" else here.baseline), f"{owner} got another picture"


def r13_cancel_of_what_hangs(here: Here) -> None:
    queue = here.queue
    with patch.object(worker, "GRACE", 0.5):
        job = queue.submit(num_inference_steps=150)
        queue.in_step(job)
        psutil.Process(queue.executor.pid).suspend()
        queue.dispatcher.cancel(job, "me")
        assert queue.ended(job).state == "cancelled"


def r14_exception_in_a_job(here: Here) -> None:
    """And one who submits much does not hold up what comes after."""
    queue = here.queue
    jobs = [queue.submit(prompt="!bug") for _ in range(4)] + [queue.submit(clip_skip=7)]
    assert [queue.ended(job).state for job in jobs] == ["failed"] * 5
    assert queue.dispatcher.state("me")["device"]["state"] != "stopped", "a bug is no death"


def r19_cache_wiped(here: Here) -> None:
    queue = here.queue
    first = queue.ended(queue.submit()).images[0]
    shutil.rmtree(queue.data / "cache", ignore_errors=True)
    assert pixels(queue.gallery.path(first).read_bytes()) == here.baseline
    queue.gallery.thumbnail(first, queue.data / "cache")


def r22_clock(here: Here) -> None:
    """Order follows the sequence and never the clock."""
    from benchmarks.trust.stores import gallery, png, record

    folder, rng = here.folder(), random.Random(1)
    names = [f"{year}0101-000000000000-{rng.getrandbits(64):016x}" for year in (2026, 2016, 2036, 2025)]
    found = gallery(folder)
    for name in names:
        found.commit(png(), record(name).model_copy(update={"created": f"{name[:4]}-01-01T00:00:00"}))
    assert [row["id"] for row in found.index.page()] == names[::-1]
    with patch("time.time", lambda: 0.0):
        here.drawing.draw()


def r24_odd_folder(here: Here) -> None:
    from benchmarks.trust.recovery import Queue

    root = here.folder() / "données 数据 🚀 'q\" &"
    root.mkdir()
    lease = os.environ.get("STUDIO_LEASE_DIR", "")
    queue = Queue(root, here.drawing)
    try:
        assert queue.draw() == here.baseline
    finally:
        queue.close()
        os.environ["STUDIO_LEASE_DIR"] = lease


CLASSES: dict[str, tuple[Callable[[Here], None], bool]] = {  # what is injected, and whether the normal job goes to the worker
    "R1": (r1_out_of_memory, False), "R2": (r2_worker_killed, True), "R3": (r3_device_lost, True), "R4": (r4_tab_closed, True),
    "R7": (r7_save_fails, False), "R8": (r8_disk_full, False), "R10": (r10_nan_adapter, False), "R11": (r11_left_applied, False),
    "R12": (r12_two_at_once, True), "R13": (r13_cancel_of_what_hangs, True), "R14": (r14_exception_in_a_job, True),
    "R19": (r19_cache_wiped, True), "R22": (r22_clock, False), "R24": (r24_odd_folder, False),
}  # fmt: skip
