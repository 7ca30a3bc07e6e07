"""The Lab's panels: what each computes, on the model at hand."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from studio.engine.lab_bench import Bench, Stopped
from studio.engine.lab_forward import run_forward
from studio.engine.lab_guidance import run_guidance
from studio.engine.lab_interpolation import run_interpolation
from studio.engine.lab_inversion import run_inversion
from studio.engine.lab_latents import run_latents
from studio.engine.lab_plane import run_plane
from studio.engine.lab_ranking import run_ranking
from studio.engine.lab_reverse import run_reverse
from studio.engine.lab_samplers import run_samplers
from studio.engine.lab_wordless import run_wordless
from studio.engine.tasks import LoadImage
from studio.errors import StudioError
from studio.lab import Findings, parse_lab
from studio.records import Job
from studio.tools import LabCall, ToolWatch

RUNS: dict[str, Callable[[Bench, Any], Findings]] = {
    "forward": run_forward,
    "reverse": run_reverse,
    "samplers": run_samplers,
    "guidance": run_guidance,
    "latents": run_latents,
    "interpolation": run_interpolation,
    "inversion": run_inversion,
    "wordless": run_wordless,
    "plane": run_plane,
    "ranking": run_ranking,
}


def run_lab(
    call: LabCall,
    opened: Callable[[Bench, Job], AbstractContextManager[Any]],
    load_image: LoadImage,
    watch: ToolWatch,
    find_scorer: Callable[[bool], Any],
    open_vae: Callable[[Job], Any],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Let a panel work; return its findings as plain values, and its pictures as PNG.

    Raises:
        StudioError: if it cannot be done, or was stopped before there was anything to tell.
    """
    request = parse_lab(call.panel, call.values)
    bench = Bench(call, opened, load_image, watch, find_scorer, open_vae)
    with torch.inference_mode(), bench.open():
        try:
            found = RUNS[call.panel](bench, request)
        except Stopped:
            raise StudioError("Stopped before there was anything to show") from None
    found = found.model_copy(update={"notes": (*found.notes, *bench.notes)})
    return found.model_dump(mode="json"), bench.pictures
