"""Panel 4: how strongly the prompt counts, from not at all to too much (Ho and Salimans 2022, arXiv:2207.12598)."""

from itertools import combinations
from typing import Any

import numpy as np
import torch

from studio.engine.lab_bench import Bench, Stopped
from studio.engine.lab_sampling import Ask, Method, sample, sampler
from studio.engine.passes import guided
from studio.lab import REFERENCES, Film, Findings, Frame, GuidanceRequest, Line, Plot, Table, finite

AT_ONCE = 4  # pictures
SHOWN = 8
COLUMNS = ("guidance", "agreement", "chance", "diversity", "contrast")


def run_guidance(bench: Bench, request: GuidanceRequest) -> Findings:
    """Draw the same seeds with every guidance."""
    _, name = bench.pipe, REFERENCES[bench.job.model.noise]  # a model that the Lab does not work on is refused first
    method = sampler(bench, name, request.num_inference_steps, 0.0)
    seeds = list(range(request.seed, request.seed + request.pictures))
    groups = [seeds[first : first + AT_ONCE] for first in range(0, len(seeds), AT_ONCE)]
    bench.plan(len(request.scales) * len(groups) * len(method.scheduler.timesteps))
    rows, frames = [], []
    try:
        for place, scale in enumerate(request.scales):
            pictures = drawn(bench, method, within(bench, request, scale), groups)
            rows.append(measured(bench, scale, pictures))
            kept = {
                f"seed {seed}": bench.keep(f"{place:02d}-{seed}", one)
                for seed, one in zip(seeds[:SHOWN], pictures, strict=False)
            }
            frames.append(Frame(caption=f"guidance {scale:g}", pictures=kept))
    except Stopped:
        if not rows:
            raise
        bench.notice(f"Stopped: {len(rows)} of {len(request.scales)} were made.")
    if bench.scorer is None:
        bench.notice("Agreement with the prompt is told for the demo model, or with a CLIP in the folder scorers.")
    return Findings(
        panel="guidance",
        settings=request.model_dump() | {"sampler": name},
        plots=plots(rows),
        tables=(Table(name="guidance", columns=COLUMNS, rows=tuple(rows)),),
        films=(Film(name="guidance", frames=tuple(frames)),),
    )


def within(bench: Bench, request: GuidanceRequest, scale: float) -> Ask:
    """Return what asks the model: with this guidance in its part of the steps, with the prompt alone outside of it."""
    on: Any = guided(request)  # pyright: ignore[reportArgumentType] - it reads guidance_start and guidance_end

    def ask(x: torch.Tensor, timestep: Any, fraction: float) -> torch.Tensor:
        now = scale if on(fraction) else 1.0
        return bench.predictor.said(x, timestep, now, request.guidance_rescale if now > 1 else 0.0)

    return ask


def drawn(bench: Bench, method: Method, ask: Ask, groups: list[list[int]]) -> np.ndarray:
    """Return a picture for each seed, (B, H, W, 3) uint8."""
    return np.concatenate([bench.decode(sample(bench, method, bench.noise(*group), ask, group)) for group in groups])


def measured(bench: Bench, scale: float, pictures: np.ndarray) -> tuple[float | None, ...]:
    """Return a row of the table, see `COLUMNS`.

    Agreement is how much of the prompt the pictures show; chance, how much they show of prompts of the same form with other words;
    diversity, the root mean square difference of two of them, of 1; contrast, the deviation of their colours.
    """
    scores, chances = bench.scores(pictures), bench.chances(pictures)
    values = pictures.astype(np.float64) / 255
    apart = [float(np.sqrt(np.square(one - other).mean())) for one, other in combinations(values, 2)]
    means = [float(np.mean(one)) if one else float("nan") for one in (scores, chances, apart)]
    return finite([scale, *means, float(np.mean([one.std() for one in values]))], 4)


def plots(rows: list[tuple[float | None, ...]]) -> tuple[Plot, ...]:
    """Return agreement and diversity over guidance, and one against the other."""
    scales = tuple(row[0] or 0.0 for row in rows)
    made = []
    if any(row[1] is not None for row in rows):
        lines = [
            Line(name=COLUMNS[place], x=scales, y=tuple(row[place] for row in rows))
            for place in (1, 2)
            if any(row[place] is not None for row in rows)
        ]
        made.append(Plot(name="agreement", x="guidance", y="agreement", lines=tuple(lines)))
    diversity = tuple(row[3] for row in rows)
    if any(one is not None for one in diversity):
        line = Line(name="diversity", x=scales, y=diversity)
        made.append(Plot(name="diversity", x="guidance", y="diversity", lines=(line,)))
        if len(made) > 1:
            x = tuple(one or 0.0 for one in diversity)
            line = Line(name="tradeoff", x=x, y=tuple(row[1] for row in rows))
            made.append(Plot(name="tradeoff", x="diversity", y="agreement", lines=(line,)))
    return tuple(made)
