"""Draws through the product itself: requests as people write them, pictures as they are saved."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from studio.engine.devices import open_device
from studio.engine.engine import Engine, Watch
from studio.records import Job
from studio.settings import ROOT
from studio.spec import parse_request
from studio.store.blobs import BlobStore, encode
from studio.store.gallery import new_image_id, utc_now
from studio.store.inputs import canvas_size
from studio.store.library import Library

PRESETS = ROOT / "presets"


class Product:
    """The engine with the shipped models.

    Args:
        folder: for the pictures that requests name.
    """

    def __init__(self, folder: Path) -> None:
        self._library, self._blobs = Library((PRESETS / "models",), part_roots=(PRESETS,)), BlobStore(folder)
        self._engine = Engine(open_device("auto", 1), utc_now, new_image_id)

    def picture(self, pixels: np.ndarray) -> str:
        """Store a picture (H, W, 3) uint8 and return how a request names it."""
        return self._blobs.add(encode(Image.fromarray(pixels)), "image")

    def draw(self, **values: Any) -> np.ndarray:
        """Draw one picture, (H, W, 3) uint8."""
        wanted = self._library.with_files(parse_request(values), Path())
        request, model = self._library.resolve(wanted, 1, canvas_size(wanted, self._blobs))
        job = Job(id="product", request=request, model=model, parts=self._library.parts_of(request))
        made: list[bytes] = []
        watch = Watch(lambda event: None, lambda: "")
        self._engine.generate(job, self._blobs.open, lambda png, record: made.append(png) or "", watch)
        return np.array(Image.open(io.BytesIO(made[0])).convert("RGB"))
