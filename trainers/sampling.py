"""Samples of a run: drawn from a committed checkpoint by a fresh engine, as Generate draws them, pixel for pixel."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from studio.engine.devices import Device
from studio.engine.engine import Engine, Watch
from studio.errors import InvalidRequest, StudioError
from studio.events import Event, ImageReady
from studio.records import ImageRecord
from studio.spec import GenerationRequest, parse_request
from studio.store import writer
from studio.store.blobs import BlobStore
from studio.store.gallery import new_image_id, save_picture, utc_now
from studio.store.inputs import canvas_size, take_inputs
from studio.store.library import Library
from studio.yaml_text import read_yaml
from trainers.configs import TrainingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """Pictures to draw for a run.

    Attributes:
        name: begins the names of the files in `samples/`; may have a folder.
        told: whether they are a person's samples, of which the run's events tell.
    """

    name: str
    request: GenerationRequest
    told: bool = True

    def paths(self, folder: Path) -> list[Path]:
        """Return where the pictures lie."""
        return [folder / f"{self.name}-{index}.png" for index in range(self.request.num_images_per_prompt)]


class Sampler:
    """Draws a run's sample prompts.

    Args:
        folder: of the run.
        library: makes a library of the models, with the folder in which an artifact lies.
        device: with generation's number format, which need not be training's.
        tell: hears of pictures and notices.
    """

    def __init__(
        self, folder: Path, library: Callable[[Path], Library], device: Device, tell: Callable[[Event], None]
    ) -> None:
        self._folder, self._library, self._device, self._tell = folder, library, device, tell

    def prompts(
        self, config: TrainingConfig, made: Callable[[list[dict[str, Any]], Path], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Return what is drawn: `samples.yaml` of the run, which a person may change while it runs; made from the config at first.

        Args:
            config: of the run.
            made: adds what the method needs beside a prompt.

        Raises:
            InvalidRequest: if the file is no list of requests.
        """
        path = self._folder / "samples.yaml"
        if not path.is_file():
            rows = [
                {
                    "prompt": prompt,
                    "negative_prompt": config.validation_negative_prompt,
                    "model": config.validation_model or config.model,
                    "seed": config.validation_seed + place,
                }
                for place, prompt in enumerate(config.validation_prompts)
            ]
            rows = made(rows, self._folder)
            writer.write_file(path, yaml.safe_dump(rows, sort_keys=False, allow_unicode=True).encode())
        try:
            rows = read_yaml(path.read_text(encoding="utf-8")) or []
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidRequest(
                "samples", f"samples.yaml cannot be read: {' '.join(str(error).split())[:200]}"
            ) from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InvalidRequest("samples", "samples.yaml must be a list of requests, each with a prompt")
        return rows

    def draw(self, wanted: Sequence[Wanted], artifact: Path, embeddings: Sequence[Path] = ()) -> dict[str, list[Path]]:
        """Draw requests that name an artifact; the pictures lie in `samples/`. Return those of each, by its name.

        `embeddings` are files that the prompts call by their names.
        """
        out, library = self._folder / "samples", self._library(artifact.parent)
        for path in embeddings:
            library.parts.add_file("embedding", path.stem, path)
        blobs, engine = BlobStore(out / "blobs"), Engine(self._device, utc_now, new_image_id)
        made: dict[str, list[Path]] = {}
        try:
            for one in wanted:
                made[one.name] = one.paths(out)
                if not one.told and all(path.is_file() for path in made[one.name]):
                    continue
                request = take_inputs(one.request, blobs, self._folder)
                request = library.with_files(request, self._folder)

                def commit(png: bytes, record: ImageRecord, one: Wanted = one) -> str:
                    path = one.paths(out)[record.index]
                    if not path.is_file():  # it was drawn before a crash, from the same checkpoint
                        save_picture(path.parent, path.stem, png, record)
                    return str(path)

                def tell(event: Event, one: Wanted = one) -> None:
                    if isinstance(event, ImageReady) and one.told:
                        self._tell(event)

                _generate(engine, library, request, blobs, commit, tell)
        finally:
            engine.unload()
        return made


class Painter:
    """Draws single pictures into files of a given name; the engine is opened for the first.

    Args:
        library: of the models.
        device: with generation's number format.
        folder: for pictures that requests name.
        should_stop: whether the process was asked to end.
    """

    def __init__(self, library: Library, device: Device, folder: Path, should_stop: Callable[[], bool]) -> None:
        self._library, self._device, self._blobs = library, device, BlobStore(folder)
        self._should_stop, self._engine = should_stop, None

    def draw(self, values: dict[str, Any], path: Path) -> None:
        """Draw a request.

        Raises:
            StudioError: if the process was asked to end.
        """
        if self._should_stop():
            raise StudioError("stopped before learning began; the class images that were drawn are kept")
        if self._engine is None:
            self._engine = Engine(self._device, utc_now, new_image_id)

        def commit(png: bytes, record: ImageRecord) -> str:
            return str(save_picture(path.parent, path.stem, png, record))

        _generate(self._engine, self._library, parse_request(values), self._blobs, commit, lambda event: None)

    def close(self) -> None:
        """Free the memory."""
        if self._engine is not None:
            self._engine.unload()


def _generate(
    engine: Engine,
    library: Library,
    request: GenerationRequest,
    blobs: BlobStore,
    commit: Callable[[bytes, ImageRecord], str],
    tell: Callable[[Event], None],
) -> None:
    job = library.job(request, 0, canvas_size(request, blobs))
    engine.generate(job, blobs.open, commit, Watch(tell, lambda: ""))
