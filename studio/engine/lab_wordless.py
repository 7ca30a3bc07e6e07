"""Panel 6: what the trainers' small models without words draw: DDPM, score models, EDM's, and classes by a DiT."""

import time
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from studio.engine.lab_bench import Bench, Stopped
from studio.engine.passes import Steps, run_pass
from studio.engine.prompts import Prompts, encode_prompts
from studio.errors import InvalidRequest, ModelError
from studio.families import FAMILIES
from studio.lab import Film, Findings, Frame, Line, Plot, Table, finite
from studio.lab_wordless import WordlessRequest

WITH_WORDS = (
    "{title} reads prompts; this panel draws with models without words. Train one (Train, From nothing; presets "
    "unconditional-shapes, …-ve, …-edm, …-dit) and choose it at the top of Generate"
)


class Moments(Steps):
    """Keeps the latents of each step.

    Args:
        bench: told of each; it may stop.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__(lambda *_: None, None, lambda: None, lambda _: None, bench.notice)
        self.kept: list[torch.Tensor] = []
        self._bench = bench

    def done(self, pipe: Any, step: int, latents: torch.Tensor) -> None:
        self.kept.append(latents.cpu())
        self._bench.step()


def run_wordless(bench: Bench, request: WordlessRequest) -> Findings:
    """Draw some pictures at once and show them become."""
    family = FAMILIES[bench.job.model.family]
    if family.prompts not in ("nothing", "classes"):
        raise ModelError(WITH_WORDS.format(title=bench.job.model.title))
    pipe = bench.any_pipe
    titles, prompts = asked_for(bench, pipe, request)
    generators = [torch.Generator().manual_seed(request.seed + place) for place in range(request.pictures)]
    changes = {name: getattr(request, name) for name in ("num_inference_steps", "guidance_scale")}
    moments, size = Moments(bench), dict(zip(("width", "height"), bench.size, strict=True))
    bench.plan(request.num_inference_steps)
    began = time.perf_counter()
    try:
        run_pass(
            pipe, family, bench.request.model_copy(update=changes), prompts, generators, moments, decoded=False, **size
        )
    except Stopped:
        if not moments.kept:
            raise
        bench.notice(f"Stopped after {len(moments.kept)} of {request.num_inference_steps} steps.")
    seconds = time.perf_counter() - began
    asks = 1 + pipe.scheduler.config.get("correct_steps", 0)
    row = (request.sampler, request.num_inference_steps, asks * len(moments.kept), *finite([seconds], 3))
    return Findings(
        panel="wordless",
        settings=request.model_dump(mode="json"),
        plots=plots_of(moments.kept),
        tables=(Table(name="drawn", columns=("sampler", "steps", "evaluations", "seconds"), rows=(row,)),),
        films=(film_of(bench, moments.kept, titles, request.frames),),
    )


def asked_for(bench: Bench, pipe: Any, request: WordlessRequest) -> tuple[list[str], Prompts]:
    """Return each picture's title, and what the network is told of all."""
    seeds = [f"seed {request.seed + place}" for place in range(request.pictures)]
    known = list(getattr(pipe, "labels", {}))
    if not known:
        if request.classes:
            raise InvalidRequest("classes", f"classes: {bench.job.model.title} has none; leave them empty")
        return seeds, Prompts({}, {})
    names = list(islice(cycle(request.classes or known), request.pictures))
    wanted = [
        bench.request.model_copy(update={"prompt": name, "guidance_scale": request.guidance_scale}) for name in names
    ]
    told = [encode_prompts(pipe, one, bench.job.model) for one in wanted]
    positive, negative = ([getattr(one, side) for one in told] for side in ("positive", "negative"))
    together = Prompts(joined(positive), joined(negative) if all(negative) else {})
    return [f"{name}, {seed}" for name, seed in zip(names, seeds, strict=True)], together


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the network is told of each picture as what it is told of all."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def film_of(bench: Bench, kept: list[torch.Tensor], titles: list[str], number: int) -> Film:
    """Decode some of the moments: all pictures, side by side."""
    frames = []
    for place in sorted({round(one) for one in np.linspace(0, len(kept) - 1, number)}):
        shown = bench.decode(kept[place])
        names = {title: bench.keep(f"wordless-{place:04d}-{row:02d}", shown[row]) for row, title in enumerate(titles)}
        frames.append(Frame(caption=f"step {place + 1} of {len(kept)}", pictures=names))
    return Film(name="wordless", frames=tuple(frames))


def plots_of(kept: list[torch.Tensor]) -> tuple[Plot, ...]:
    """Return how far the first picture is from the result, as root mean squares, and its deviation: 1 for models that keep it."""
    steps, first = tuple(range(1, len(kept) + 1)), [one[0].float() for one in kept]
    distance = finite(float((one - first[-1]).square().mean().sqrt()) for one in first)
    deviation = finite(float(one.std()) for one in first)
    return tuple(
        Plot(name=name, x="step", y=name, lines=(Line(name="x_t", x=steps, y=values),), log=("y",))
        for name, values in (("distance", distance), ("deviation", deviation))
    )
