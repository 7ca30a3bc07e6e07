"""What a command draws with: one engine, one folder, no queue; one JSON line a picture."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

from studio.engine.engine import Watch
from studio.events import Event, ImageReady, Notice
from studio.lease import DeviceLease
from studio.records import ImageRecord, Job
from studio.store.blobs import BlobStore
from studio.store.gallery import save_picture


class Drawing:
    """Draws requests into a folder until Ctrl+C is pressed.

    Args:
        engine: from `open_engine`.
        blobs: the pictures that requests name.
        out: folder of the pictures.
    """

    def __init__(self, engine: Any, blobs: BlobStore, out: Path) -> None:
        self._engine, self._blobs, self.out = engine, blobs, out
        self.stopped = False
        signal.signal(signal.SIGINT, lambda *_: self._stop())

    def _stop(self) -> None:
        self.stopped = True

    def draw(
        self,
        job: Job,
        *,
        prefix: str = "",
        **facts: Any,
    ) -> list[tuple[Path, ImageRecord]]:
        """Draw a job; each picture is told on stdout once it is on disk.

        Args:
            job: resolved.
            prefix: of the files' names.
            facts: what the JSON lines say beside path and seed.

        Returns:
            The pictures that were finished.
        """
        made: list[tuple[Path, ImageRecord]] = []

        def commit(png: bytes, record: ImageRecord) -> str:
            made.append((save_picture(self.out, f"{prefix}{record.id}", png, record), record))
            return str(made[-1][0])

        def tell(event: Event) -> None:
            if isinstance(event, ImageReady):
                print(json.dumps({"path": event.path, "seed": event.record.seed, **facts}), flush=True)
            elif isinstance(event, Notice):
                print(event.message, file=sys.stderr, flush=True)

        watch = Watch(tell, lambda: "interrupt" if self.stopped else "")
        with DeviceLease(self._engine.device.key).held(lambda: self.stopped) as mine:
            if mine:
                self._engine.generate(job, self._blobs.open, commit, watch)
        return made
