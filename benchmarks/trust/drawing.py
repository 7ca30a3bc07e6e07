"""One engine in this process with the embedded model: draws what a request says and returns the PNGs."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.records import ImageRecord
from studio.settings import ROOT
from studio.spec import parse_request
from studio.store.blobs import BlobStore
from studio.store.gallery import new_image_id, utc_now
from studio.store.library import Library

SMALL = {"prompt": "a red circle on a blue background", "width": 64, "height": 64, "seed": 3, "num_inference_steps": 2}


class Drawing:
    """An engine, a library, and a folder for parts.

    Args:
        folder: for parts (`loras/` …) and pictures that are given.
    """

    def __init__(self, folder: Path) -> None:
        from studio.engine.devices import open_device
        from studio.engine.engine import Engine

        self.folder = folder
        self.library = Library((ROOT / "presets" / "models", folder / "models"), part_roots=(ROOT / "presets", folder))
        self.blobs = BlobStore(folder / "blobs")
        self.engine = Engine(open_device("cpu", 1), utc_now, new_image_id)

    def draw(
        self, stop: Callable[[], str] = lambda: "", emit: Callable[[Any], None] = lambda _: None, **values: Any
    ) -> list[bytes]:
        """Draw; return the PNGs as the engine committed them.

        Raises:
            StudioError: why it cannot be drawn.
        """
        from studio.engine.engine import Watch

        made: list[bytes] = []

        def commit(png: bytes, record: ImageRecord) -> str:
            made.append(png)
            return ""

        job = self.library.job(parse_request(SMALL | values), 7, None)
        self.engine.generate(job, self.blobs.open, commit, Watch(emit, stop))
        return made

    def weights(self) -> str:
        """Hash what the loaded networks weigh, whatever stands around them."""
        digest = hashlib.sha256()
        base = next(reversed(self.engine.pipelines._loaded.values())).base
        for network in (base.unet, base.text_encoder, base.vae):
            for name, tensor in sorted((k.replace(".base_layer", ""), v) for k, v in network.state_dict().items()):
                if "lora" not in name:
                    digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()
