"""Panel 3: ways from the same noise to a picture, by how near each comes to where many steps lead, and at what cost."""

import time
from typing import Any, NamedTuple

import torch

from studio.engine.lab_bench import Bench, Stopped
from studio.engine.lab_sampling import asked, check_samplers, sample, sampler
from studio.lab import REFERENCES, SAMPLERS, Film, Findings, Frame, Line, Plot, SamplersRequest, Table, finite

COLUMNS = ("sampler", "steps", "evaluations", "distance", "agreement", "seconds")


class Row(NamedTuple):
    """What a sampler made of the noise in some steps; see `COLUMNS`."""

    name: str
    steps: int
    evaluations: int
    distance: float
    agreement: float | None
    seconds: float


def run_samplers(bench: Bench, request: SamplersRequest) -> Findings:
    """Let every sampler draw the same pictures with every number of steps."""
    check_samplers(bench, request.samplers)
    reference = REFERENCES[bench.job.model.noise]
    planned = [(name, steps) for steps in request.steps for name in request.samplers]
    runs = {pair: sampler(bench, *pair, request.eta) for pair in planned}
    most = sampler(bench, reference, request.reference_steps, 0.0)
    bench.plan(sum(len(run.scheduler.timesteps) for run in (most, *runs.values())))
    seeds = list(range(request.seed, request.seed + request.pictures))
    noise, ask = bench.noise(*seeds), asked(bench, request.guidance_scale)
    wanted = sample(bench, most, noise, ask, seeds)
    shown: dict[int, dict[str, str]] = {steps: {} for steps in request.steps}
    first = bench.keep("reference", bench.decode(wanted[:1])[0])
    rows: list[Row] = []
    try:
        for (name, steps), run in runs.items():
            began = time.perf_counter()
            made = sample(bench, run, noise, ask, seeds)
            seconds = time.perf_counter() - began
            pictures = bench.decode(made)
            key = f"{list(SAMPLERS).index(name):02d}-{steps:04d}"
            shown[steps][name] = bench.keep(key, pictures[0])
            evaluations = len(run.scheduler.timesteps)
            rows.append(Row(name, steps, evaluations, relative(made, wanted), agreement(bench, pictures), seconds))
    except Stopped:
        if not rows:
            raise
        bench.notice(f"Stopped: {len(rows)} of {len(planned)} were made.")
    tell_about(bench, request)
    frames = [Frame(caption=f"{steps} steps", pictures={**names, "reference": first}) for steps, names in shown.items()]
    return Findings(
        panel="samplers",
        settings=request.model_dump() | {"reference": reference},
        plots=plots(rows),
        tables=(Table(name="samplers", columns=COLUMNS, rows=tuple((*row[:3], *numbers(row)) for row in rows)),),
        films=(Film(name="samplers", frames=tuple(one for one in frames if len(one.pictures) > 1)),),
    )


def relative(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the mean over pictures of |made - wanted| / |wanted|, latents (B, C, h, w)."""
    return float(((made - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).mean())


def agreement(bench: Bench, pictures: Any) -> float | None:
    """Return how well pictures (B, H, W, 3) show the prompt, 0 to 1; None if nothing here can tell."""
    scores = bench.scores(pictures)
    return sum(scores) / len(scores) if scores else None


def numbers(row: Row) -> list[float | None]:
    """Return the fractions of a row, as JSON holds them."""
    return [finite([one], 4)[0] if one is not None else None for one in row[3:]]


def plots(rows: list[Row]) -> tuple[Plot, ...]:
    """Return the distance over steps and over evaluations, and the agreement."""
    names = list(dict.fromkeys(row.name for row in rows))
    found = [("distance", "steps", "distance"), ("cost", "evaluations", "distance")]
    if any(row.agreement is not None for row in rows):
        found.append(("agreement", "steps", "agreement"))
    made = []
    for plot, x, y in found:
        lines = []
        for name in names:
            mine = sorted((getattr(row, x), getattr(row, y)) for row in rows if row.name == name)
            lines.append(Line(name=name, x=tuple(one for one, _ in mine), y=tuple(other for _, other in mine)))
        log = ("x",) if y == "agreement" else ("x", "y")
        made.append(Plot(name=plot, x=x, y=y, lines=tuple(lines), log=log))
    return tuple(made)


def tell_about(bench: Bench, request: SamplersRequest) -> None:
    """Say what must be known to read the numbers."""
    noisy = [name for name in request.samplers if SAMPLERS[name].random or (name == "DDIM" and request.eta)]
    if noisy:
        bench.notice(
            f"{', '.join(noisy)}: noise is added on the way, so that these end elsewhere than the reference however many steps they "
            "take; judge them by their pictures."
        )
    if request.reference_steps < 5 * max(request.steps):
        bench.notice(
            f"The reference, {REFERENCES[bench.job.model.noise]} with {request.reference_steps} steps, is itself not exact and "
            "favours its own kind; a fifth of its steps or fewer can be compared with it."
        )
    if bench.scorer is None:
        bench.notice("Agreement with the prompt is told for the demo model, or with a CLIP in the folder scorers.")
