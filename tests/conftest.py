"""Shared pieces: one engine a session, the embedded model, small data roots, and an app that is really launched."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["STUDIO_CPU_THREADS"] = "1"

import httpx
import numpy as np
import pytest
from PIL import Image

from studio.events import Event, Finished, ImageReady
from studio.records import ImageRecord
from studio.settings import ROOT, Settings
from studio.spec import parse_request
from studio.store.blobs import BlobStore
from studio.store.gallery import Gallery, new_image_id, utc_now
from studio.store.index import Database, ImageIndex
from studio.store.inputs import canvas_size
from studio.store.library import Library
from studio.units import IMAGE_FIELDS, UNIT_FIELDS

MODELS = ROOT / "presets" / "models"


@pytest.fixture(scope="session", autouse=True)
def own_leases(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests from waiting for a Studio that runs on this machine."""
    os.environ["STUDIO_LEASE_DIR"] = str(tmp_path_factory.mktemp("leases"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library((MODELS,), part_roots=(MODELS.parent, tmp_path_factory.mktemp("parts")))


@pytest.fixture(scope="session")
def engine() -> Any:
    from studio.engine.devices import open_device
    from studio.engine.engine import Engine

    return Engine(open_device("cpu", 1), utc_now, new_image_id)


@dataclass
class Made:
    """What a job left behind: its PNGs, their records, all events."""

    pictures: list[bytes] = field(default_factory=list)
    records: list[ImageRecord] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def finished(self) -> Finished:
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(tmp_path_factory.mktemp("blobs"))


def stored(unit: dict[str, Any], blobs: BlobStore) -> dict[str, Any]:
    """Return a unit whose pictures (PNG bytes or paths) are references."""
    unit = dict(unit)
    if "image" in unit:
        unit["image"] = blobs.add(unit["image"], "image")
    if "images" in unit:
        unit["images"] = [blobs.add(image, "images") for image in unit["images"]]
    return unit


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def pixels(png: bytes) -> np.ndarray:
    """Return a PNG's pixels, (H, W, 3) uint8."""
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGB"))


def drawer(engine: Any, library: Library, blobs: BlobStore) -> Callable[..., Made]:
    """Return what generates with a library's models: `draw(prompt="…", seed=1)`; pictures are PNG bytes or paths."""
    from studio.engine.engine import Watch

    def run(
        *, stop: Callable[[Made], str] = lambda made: "", preview: Callable[[bytes], str] | None = None, **values: Any
    ) -> Made:
        values |= {name: blobs.add(values[name], name) for name in IMAGE_FIELDS if name in values}
        for name in UNIT_FIELDS:
            values[name] = [stored(unit, blobs) for unit in values.get(name, ())]
        wanted = parse_request(values)
        job = library.job(wanted, 7, canvas_size(wanted, blobs))
        made = Made()

        def commit(png: bytes, record: ImageRecord) -> str:
            made.pictures.append(png)
            made.records.append(record)
            return "here"

        engine.generate(job, blobs.open, commit, Watch(made.events.append, lambda: stop(made), preview))
        assert len([event for event in made.events if isinstance(event, ImageReady)]) == len(made.pictures)
        return made

    return run


@pytest.fixture(scope="session")
def draw(engine: Any, library: Library, blobs: BlobStore) -> Callable[..., Made]:
    """Generate with the session's engine and the embedded model."""
    return drawer(engine, library, blobs)


@pytest.fixture(scope="session")
def tiny_library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Tiny random models of the other families: see `tests.tiny`."""
    from tests.tiny import save_models

    return Library((save_models(tmp_path_factory.mktemp("families")),))


@pytest.fixture(scope="session")
def draw_tiny(engine: Any, tiny_library: Library, blobs: BlobStore) -> Callable[..., Made]:
    """Generate with the session's engine and the tiny models, 64 x 64 in three steps unless told otherwise."""
    run = drawer(engine, tiny_library, blobs)
    return lambda **values: run(**{"width": 64, "height": 64, "num_inference_steps": 3, "seed": 1} | values)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    database = Database(tmp_path / "studio.db")
    yield Gallery(tmp_path / "images", ImageIndex(database))
    database.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, cpu_threads=1, device="cpu")


@dataclass
class App:
    """A launched app: its address, its process, its data root."""

    url: str
    process: subprocess.Popen
    data: Path
    output: Path

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **more)

    def stop(self) -> None:
        """End the app as Ctrl+C does, and wait for it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def launch(data: Path, *flags: str, environment: dict[str, str] | None = None) -> App:
    """Start `app.py` and wait until it says that it is ready."""
    data.mkdir(parents=True, exist_ok=True)
    output = data / "stdout.txt"
    command = [sys.executable, str(ROOT / "app.py"), "--data-dir", str(data), "--device", "cpu", *flags]
    with output.open("wb") as out, (data / "stderr.txt").open("wb") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, cwd=ROOT, env=dict(os.environ) | (environment or {})
        )
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        text = output.read_text()
        if "Studio is ready at " in text:
            return App(text.split("Studio is ready at ")[1].split()[0], process, data, output)
        time.sleep(0.1)
    process.kill()
    raise AssertionError((data / "stderr.txt").read_text()[-2000:])


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One app for all tests that only use it."""
    running = launch(tmp_path_factory.mktemp("app"))
    yield running
    running.stop()
