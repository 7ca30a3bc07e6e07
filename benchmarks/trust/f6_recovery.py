"""Every class of failure (R1-R30) is injected, and then a normal job draws the byte-identical picture with the same weights."""

import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.trust import recovery_drawing, recovery_stores
from benchmarks.trust.drawing import Drawing
from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.recovery import Here

CLASSES = recovery_drawing.CLASSES | recovery_stores.CLASSES
MEDIAN_MAX, MAX = 5.0, 20.0  # seconds from a fault until the next picture


def left_on(self: Drawing, *_: Any, **__: Any) -> list[bytes]:
    """Draw as an engine does that leaves something of the job before in the model."""
    import torch

    for loaded in self.engine.pipelines._loaded.values():
        with torch.no_grad():
            next(loaded.base.unet.parameters()).mul_(1.01)
    return DRAW(self, *_, **__)


DRAW = Drawing.draw


def run(full: bool, mutant: bool = False, only: Iterable[str] = ()) -> Figure:
    """Inject one after the other into the same engine and queue; the mutant's engine keeps a little of each job."""
    tally, seconds = Tally(), []
    wanted = list(only) or (["R11", "R22"] if mutant else list(CLASSES))
    with tempfile.TemporaryDirectory(prefix="studio-trust-", ignore_cleanup_errors=True) as folder:
        here = Here(Path(folder))
        try:
            with patch.object(Drawing, "draw", left_on if mutant else DRAW):
                for name in sorted(wanted, key=lambda name: int(name[1:3].rstrip(","))):
                    fault, through_worker = CLASSES[name]
                    with tally.case(name):
                        fault(here)
                        began = time.monotonic()
                        here.normal(through_worker=through_worker)
                        seconds.append(time.monotonic() - began)
                    if "," in name:  # two classes in one
                        tally.tried += 1
        finally:
            here.close()
    told = {"median_s": round(statistics.median(seconds), 2), "max_s": round(max(seconds), 2)} if seconds else {}
    return tally.figure("F6", __doc__ or "", f"30 of 30; then a picture in {MEDIAN_MAX:g} s (median)", **told)
