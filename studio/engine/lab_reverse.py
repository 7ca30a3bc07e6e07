"""Panel 2: from noise to a picture, what the model believes at each step, and the three ways in which it could say it."""

import numpy as np
import torch

from studio.engine.lab_bench import Bench, Stopped
from studio.engine.lab_paths import PREDICTIONS, Level, from_noise, to_noise
from studio.engine.lab_sampling import Moment, asked, sample, sampler
from studio.lab import Film, Findings, Frame, Line, Plot, ReverseRequest, Table, finite

SHORT = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
PAIRS = [(one, other) for one in PREDICTIONS for other in PREDICTIONS if one != other]


def run_reverse(bench: Bench, request: ReverseRequest) -> Findings:
    """Draw one picture and keep every moment."""
    seeds, moments = [request.seed], []
    method = sampler(bench, request.sampler, request.num_inference_steps, request.eta)
    bench.plan(len(method.scheduler.timesteps) + request.frames)
    ask = asked(bench, request.guidance_scale)
    try:
        made = sample(bench, method, bench.noise(*seeds), ask, seeds, seen=moments.append)
        film = film_of(bench, moments, request.frames)
    except Stopped:
        if not moments:
            raise
        bench.notice(f"Stopped after {len(moments)} of {len(method.scheduler.timesteps)} steps.")
        made, film = moments[-1].x0, film_of(bench, moments[-1:], 1)
    final = Frame(caption="x0", pictures={"result": bench.keep("result", bench.decode(made)[0])})
    trips = [(moment.timestep, *finite(round_trips(moment), 3)) for moment in moments]
    names = [f"{SHORT[one]} > {SHORT[other]} > {SHORT[one]}" for one, other in PAIRS]
    return Findings(
        panel="reverse",
        settings=request.model_dump(),
        plots=(distances(moments, made), errors(trips, names)),
        tables=(
            Table(
                name="moments", columns=("timestep", "alpha", "sigma", "noise_mean", "noise_std"), rows=said(moments)
            ),
            Table(name="conversions", columns=("timestep", *names), rows=tuple(trips)),
        ),
        films=(Film(name="reverse", frames=(*film, final)),),
    )


def film_of(bench: Bench, moments: list[Moment], number: int) -> tuple[Frame, ...]:
    """Decode some of the moments: x_t, the predicted x0 and the predicted noise."""
    frames = []
    for place in sorted({round(one) for one in np.linspace(0, len(moments) - 1, number)}):
        moment = moments[place]
        shown = bench.decode(torch.cat([moment.x, moment.x0, moment.noise]))
        names = zip(("x_t", "predicted_x0", "predicted_noise"), shown, strict=True)
        kept = {name: bench.keep(f"{name}-{place:03d}", one) for name, one in names}
        frames.append(Frame(caption=f"{place + 1} of {len(moments)}, t = {moment.timestep:.4g}", pictures=kept))
        if number > 1:
            bench.step()
    return tuple(frames)


def said(moments: list[Moment]) -> tuple[tuple[float | None, ...], ...]:
    """Return for each moment its level, and mean and deviation of the predicted noise, which are 0 and 1 for a good model."""
    return tuple(
        finite([one.timestep, *one.level, float(one.noise.mean()), float(one.noise.std())], 4) for one in moments
    )


def distances(moments: list[Moment], made: torch.Tensor) -> Plot:
    """Return how far x_t and the predicted x0 still are from the result, as root mean squares."""
    steps = tuple(range(1, len(moments) + 1))
    lines = [
        Line(name=name, x=steps, y=finite(float((value - made).square().mean().sqrt()) for value in values))
        for name, values in (
            ("x_t", [one.x for one in moments]),
            ("predicted_x0", [one.x0 for one in moments]),
        )
    ]
    return Plot(name="distance", x="step", y="distance", lines=tuple(lines))


def errors(trips: list[tuple[float | None, ...]], names: list[str]) -> Plot:
    """Return the round trips' errors over the steps."""
    steps = tuple(row[0] or 0.0 for row in trips)
    lines = [Line(name=name, x=steps, y=tuple(row[place] for row in trips)) for place, name in enumerate(names, 1)]
    return Plot(name="conversions", x="timestep", y="error", lines=tuple(lines), log=("y",))


def round_trips(moment: Moment) -> list[float]:
    """Say one prediction as another and go back, for each pair; return the relative errors, which are those of float32."""
    x, level = moment.x, moment.level
    if not 0 < level.alpha < 1:  # at pure noise or no noise at all, some of them say nothing
        return [float("nan")] * len(PAIRS)
    return [trip(moment, one, other, x, level) for one, other in PAIRS]


def trip(moment: Moment, one: str, other: str, x: torch.Tensor, level: Level) -> float:
    """Return the relative error of one prediction after it was said as another."""
    first = from_noise(one, moment.x0, moment.noise, level)
    second = from_noise(other, *to_noise(one, first, x, level), level)
    back = from_noise(one, *to_noise(other, second, x, level), level)
    return float((back - first).norm() / first.norm())
