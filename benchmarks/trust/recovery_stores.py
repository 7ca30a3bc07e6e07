"""Recovery classes around files, stores, runs and downloads."""

import os
import shutil
import socket
import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from benchmarks.trust import f12_upgrades, stores
from benchmarks.trust.recovery import Here, refused
from studio.errors import InvalidRequest, StorageError, StudioError
from studio.store import writer
from studio.store.index import MIGRATIONS, Database

STEPS = {"rank": 2, "max_train_steps": 4, "checkpointing_steps": 1}
CAPTION = "café, a naïve dog"
CAPTIONS = {
    "utf-8": CAPTION.encode(), "BOM": CAPTION.encode("utf-8-sig"), "utf-16": CAPTION.encode("utf-16"),
    "utf-16 be": b"\xfe\xff" + CAPTION.encode("utf-16-be"), "cp1252": CAPTION.encode("cp1252"), "CRLF": f"{CAPTION}\r\n".encode(),
    "lines": CAPTION.replace(" a", "\na").encode(), "tabs": CAPTION.replace(" ", "\t").encode(),
}  # fmt: skip
BAD_CAPTIONS = {"NUL": b"a\0dog", "a picture": b"\x89PNG\r\n\x1a\n\0\0", "a megabyte": b"word " * 200_000}


def r5_app_killed(here: Here) -> None:
    """The job that ran waits again, in its place, and what it had is made anew."""
    from benchmarks.trust.drawing import SMALL
    from studio.spec import parse_request
    from studio.store.jobs import JobStore

    path = here.folder() / "studio.db"
    jobs = JobStore(Database(path))
    made = [here.drawing.library.job(parse_request(SMALL | {"seed": seed}), 7, None, owner="me") for seed in (1, 2)]
    jobs.add(*made)
    running = jobs.claim()
    assert running
    jobs.add_image(running.id, "half")
    for _ in range(2):  # recovery that is killed, too
        again = JobStore(Database(path))
        again.requeue_running()
    assert [entry.id for entry in again.waiting()] == [job.id for job in made]
    assert again.waiting()[0].images == () and again.waiting()[0].job == made[0]


def r6_torn_checkpoint(here: Here) -> None:
    folder = here.folder()
    for step in (1, 2):
        stores._checkpoint(folder, step)
    kept = stores.checkpoints(folder)
    newest = kept.path(2)
    (newest / "state" / "numbers.json").write_text("{")
    (kept.folder / f"{writer.PART}{2**30}-x").mkdir()
    shutil.copytree(newest, kept.folder / f"{writer.PART}{2**30}-y")
    stores._checkpoint(folder, 3)
    (kept.path(3) / "state" / "tensors.safetensors").write_bytes(b"")
    stores._checkpoint(folder, 4)
    assert kept.newest() == kept.path(4)
    (kept.path(4) / "weights" / "w.txt").unlink()
    assert kept.newest() is None  # the older ones gave their state away: nothing is believed that is not whole
    assert not list(kept.folder.glob(f"{writer.PART}*")) and (kept.path(1) / "weights" / "w.txt").is_file()


def r9_numbers_that_are_none(here: Here) -> None:
    from tests.training import config_of, draw_pictures, train

    folder = here.folder()
    pictures = draw_pictures(folder / "pictures")
    config = config_of("lora", pictures, **STEPS).model_copy(update={"learning_rate": 1e30, "max_train_steps": 20})
    said = refused(lambda: train("lora", config, folder), StudioError)
    assert "learning_rate=1e+30 is high" in said


def r15_two_apps(here: Here) -> None:
    from studio.lease import DeviceLease, FolderLock

    folder = here.folder()
    lock = FolderLock(folder)
    assert "another Studio runs on" in refused(lambda: FolderLock(folder), StudioError)
    lock.release()
    FolderLock(folder).release()
    with DeviceLease("gpu", folder).held(), DeviceLease("gpu", folder).held(lambda: True) as second:
        assert not second


def r16_port_in_use(here: Here) -> None:
    import app

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in refused(lambda: app.choose_port("127.0.0.1", port), StudioError)
        with patch.object(app, "PORTS", range(port, port + 1)):
            assert "are in use" in refused(lambda: app.choose_port("127.0.0.1", None), StudioError)


def r17_corrupt_download(here: Here) -> None:
    from studio.sources import Source
    from studio.store.downloads import Downloads
    from studio.store.tokens import Tokens
    from tests.hub import Hub

    folder, hub = here.folder(), Hub()
    hub.repos["anna/one"] = {"alone.safetensors": b"12345678"}
    hub.broken = {"alone.safetensors"}
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    try:
        with patch.dict(os.environ, told):
            downloads = Downloads(folder / "data", Tokens(folder / "tokens.json"))
            source = Source(site="hub", name="anna/one")
            assert "arrived damaged" in refused(lambda: downloads.run(source, lambda event: None), StudioError)
            models = folder / "data" / "models"
            assert not list(models.rglob("*.safetensors")), "a damaged file is used"
            hub.broken.clear()
            downloads.run(source, lambda event: None)
            assert [path.name for path in models.rglob("*.safetensors")] == ["alone.safetensors"]
    finally:
        hub.close()


def r18_offline(here: Here) -> None:
    from studio.sources import Source
    from studio.store.downloads import Downloads
    from studio.store.tokens import Tokens

    folder = here.folder()
    with patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        downloads = Downloads(folder / "data", Tokens(folder / "tokens.json"))
        source = Source(site="hub", name="anna/one")
        assert "offline mode is on" in refused(lambda: downloads.run(source, lambda event: None), StudioError)


def r20_index_gone(here: Here) -> None:
    """Deleted, it is rebuilt equal; damaged, it is told and the files are safe."""
    folder = here.folder()
    found = stores.gallery(folder)
    for number in range(5):
        found.commit(stores.png(), stores.record(f"p{number}"))
    found.star(["p1"], starred=True)
    found.trash(["p2"])
    before = [dict(row) | {"seq": 0} for trashed in (False, True) for row in found.index.page(trashed=trashed)]
    for file in folder.glob("studio.db*"):
        file.unlink()
    again = stores.restarted(folder)
    after = [dict(row) | {"seq": 0} for trashed in (False, True) for row in again.index.page(trashed=trashed)]
    assert sorted(after, key=str) == sorted(before, key=str)
    (here.folder() / "x").touch()
    other = here.folder()
    (other / "studio.db").write_bytes(b"no database" * 500)
    assert "doctor" in refused(lambda: Database(other / "studio.db"), StorageError)


def r21_overwritten(here: Here) -> None:
    """Four writers, one clock, one seed: as many files as saves; a name that is taken is never written over."""
    from studio.store.gallery import new_image_id, save_picture, utc_now

    folder, now = here.folder(), utc_now()

    def save() -> None:
        for _ in range(50):
            name = new_image_id(now)
            save_picture(folder, name, stores.png(), stores.record(name))

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = list(folder.glob("*.png"))
    assert len(files) == 200
    taken = files[0].read_bytes()
    refused(lambda: save_picture(folder, files[0].stem, stores.png("blue"), stores.record("x")), StorageError)
    assert files[0].read_bytes() == taken


def r23_captions(here: Here) -> None:
    from studio.store.datasets import read_dataset

    folder = here.folder()
    for name, data in (CAPTIONS | BAD_CAPTIONS).items():
        (folder / f"{name}.png").write_bytes(stores.png())
        (folder / f"{name}.txt").write_bytes(data)
    found = read_dataset(folder)
    assert {example.path.stem: example.caption for example in found.examples} == dict.fromkeys(CAPTIONS, CAPTION)
    assert {one.split(".")[0] for one in found.refused} == set(BAD_CAPTIONS), found.refused


def r25_bad_datasets(here: Here) -> None:
    from studio.store.datasets import read_dataset
    from tests.training import config_of, draw_pictures, train

    folder = here.folder()
    assert "has no picture" in refused(lambda: read_dataset(folder), InvalidRequest)
    pictures = draw_pictures(folder / "one", 1)
    answer = train("lora", config_of("lora", pictures, **STEPS | {"max_train_steps": 2, "train_batch_size": 4}), folder)
    assert answer["status"] == "finished" and answer["step"] == 2


def r26_modes(here: Here) -> None:
    """Sixteen modes of one grey picture read as the same colour."""
    from PIL import Image

    from benchmarks.trust.bad_pictures import encoded
    from studio.store.blobs import decode

    grey = Image.new("L", (16, 16), 120)
    made = {mode: encoded(grey.convert(mode), "PNG") for mode in ("L", "LA", "P", "RGB", "RGBA")}
    made |= {f"TIFF {mode}": encoded(grey.convert(mode), "TIFF") for mode in ("L", "RGB", "RGBA", "CMYK", "LA", "P")}
    made |= {f"JPEG {mode}": encoded(grey.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    made |= {f"WEBP {mode}": encoded(grey.convert(mode), "WEBP", lossless=True) for mode in ("RGB", "RGBA")}
    made["16 bits"] = encoded(Image.new("I;16", (16, 16), 120 * 257), "PNG")
    for name, data in made.items():
        pixel: Any = decode(data).convert("RGB").getpixel((8, 8))
        assert all(abs(value - 120) <= 2 for value in pixel), f"{name}: {pixel}"
    assert len(made) >= 16


def r27_and_r28_resume(here: Here) -> None:
    """Stopped in the middle, a run goes on with the same numbers; with another learning rate it does not go on."""
    from tests.training import config_of, content, draw_pictures, losses, stop_after, train

    folder = here.folder()
    config = config_of("lora", draw_pictures(folder / "pictures"), **STEPS)
    whole = train("lora", config, folder, run="whole")
    train("lora", config, folder, run="two", should_stop=stop_after(2))
    other = config.model_copy(update={"learning_rate": 5e-4})
    said = refused(lambda: train("lora", other, folder, run="two", resume=True), InvalidRequest)
    assert said.startswith("learning_rate=0.0005 differs from the run's 0.001")
    again = train("lora", config, folder, run="two", resume=True)
    assert losses(folder / "two") == losses(folder / "whole"), "other losses"
    assert content(again["artifact"]) == content(whole["artifact"]), "another result"


def r29_sigterm(here: Here) -> None:
    """A trainer that is asked to end saves a checkpoint, and says so."""
    import json
    import signal
    import subprocess

    import yaml

    from benchmarks.trust.recovery import wait_for
    from studio.settings import ROOT
    from tests.training import SMALL, command_of, draw_pictures, losses

    folder = here.folder()
    told = SMALL | {
        "dataset": str(draw_pictures(folder / "pictures")),
        "max_train_steps": 100_000,
        "rank": 2,
        "checkpointing_steps": 0,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(told))
    process = subprocess.Popen(
        command_of("lora", folder / "c.yaml", folder),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for(lambda: (folder / "run" / "events.jsonl").exists() and losses(folder / "run"), 300)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    answer = json.loads(out.splitlines()[-1])
    assert process.returncode == 0 and answer["status"] == "stopped"
    assert (folder / "run" / "checkpoints" / f"step-{answer['step']:06d}" / "state").is_dir()


def r30_other_versions(here: Here) -> None:
    folder = here.folder()
    past = next(iter(f12_upgrades.versions().values()))
    f12_upgrades.data_root(folder, past)
    f12_upgrades.migration(folder, past, 1)
    newer = here.folder()
    Database(newer / "studio.db", (*MIGRATIONS, f12_upgrades.NEXT)).close()
    before = (newer / "studio.db").read_bytes()
    assert "newer Studio" in refused(lambda: Database(newer / "studio.db"), StorageError)
    assert (newer / "studio.db").read_bytes() == before


QUICK: dict[str, tuple[Callable[[Here], None], bool]] = {
    "R5": (r5_app_killed, False), "R6": (r6_torn_checkpoint, False), "R15": (r15_two_apps, False), "R16": (r16_port_in_use, False),
    "R20": (r20_index_gone, False), "R21": (r21_overwritten, False), "R23": (r23_captions, False), "R26": (r26_modes, False),
    "R30": (r30_other_versions, False),
}  # fmt: skip
CLASSES = QUICK | {
    "R9": (r9_numbers_that_are_none, False), "R17": (r17_corrupt_download, False), "R18": (r18_offline, False),
    "R25": (r25_bad_datasets, False), "R27, R28": (r27_and_r28_resume, False), "R29": (r29_sigterm, False),
}  # fmt: skip
