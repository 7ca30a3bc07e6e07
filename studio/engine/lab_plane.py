"""Panel 7: diffusion in two dimensions, where everything can be seen: particles, densities and the field that moves them."""

import math
import time
from typing import Any, NamedTuple

import torch

from studio.engine.lab_bench import Bench
from studio.engine.lab_learning import PROCESSES, TOLD, Learned, Level, Process, learn, one_thread, walk
from studio.engine.lab_points import density, drawer, energy_distance
from studio.lab import Cloud, Findings, Line, Particles, Plot, Table, axis, finite
from studio.lab_plane import REACH, PlaneRequest

FRAMES = 26  # of a film, at most
CELLS, ARROWS = 32, 11  # a side
KNOWN = 800  # points that the density is made of
LEAST_SPREAD = 0.05  # what counts as a point is this wide where there is no noise
COLUMNS = ("loss", "training_loss", "energy_start", "energy_end", "energy_data", "seconds")


class Learner(NamedTuple):
    """One loss at work: its process, what was learned, and the points that it should meet."""

    process: Process
    learned: Learned
    points: torch.Tensor


def run_plane(bench: Bench, request: PlaneRequest) -> Findings:
    """Learn with each loss and let particles go; the model at hand is not asked."""
    drawn = torch.tensor(request.drawn) if request.shape == "drawn" else None
    fresh = drawer(request.shape, drawn, request.seed + 1)
    data, others = fresh(request.particles), fresh(request.particles)
    floor = energy_distance(data, others)
    bench.plan(len(request.losses) * math.ceil(request.training_steps / TOLD))

    def at_work(name: str) -> tuple[Particles, Line, Line, tuple[Any, ...]]:
        began, process = time.perf_counter(), PROCESSES[name]()
        points = drawer(request.shape, drawn, request.seed)
        with one_thread():
            learned = learn(process, points, request.training_steps, request.seed, lambda *_: bench.step())
            film, energy = filmed(Learner(process, learned, fresh(KNOWN)), name, request, data)
        steps, means = zip(*learned.losses, strict=True)
        seconds = time.perf_counter() - began
        row = (name, *finite([means[-1], energy.y[0], energy.y[-1], floor, seconds], 4))
        return film, energy, Line(name=name, x=steps, y=finite(means, 4)), row

    made = bench.collect(map(at_work, request.losses), len(request.losses))
    films, energies, losses, rows = zip(*made, strict=True)
    return Findings(
        panel="plane",
        settings=request.model_dump(mode="json"),
        plots=(
            Plot(name="energy", x="way", y="energy_distance", lines=energies),
            Plot(name="loss", x="training_step", y="training_loss", lines=losses),
        ),
        tables=(Table(name="quality", columns=COLUMNS, rows=rows),),
        particles=films,
    )


def filmed(learner: Learner, name: str, request: PlaneRequest, data: torch.Tensor) -> tuple[Particles, Line]:
    """Let particles go; return the film, and how far they are from the points at each of its moments."""
    levels = learner.process.levels(request.steps)
    shown = {round(place) for place in torch.linspace(0, len(levels), min(FRAMES, len(levels) + 1)).tolist()}
    clouds, ways, distances = [], [], []
    for number, (level, particles) in enumerate(
        walk(learner.process, learner.learned, levels, request.particles, request.seed)
    ):
        if number in shown:
            clouds.append(cloud(learner, level or end_of(levels), particles, f"{number} / {len(levels)}"))
            ways.append(number / len(levels))
            distances.append(energy_distance(particles / size_of(level or end_of(levels)), data))
    film = Particles(name=name, reach=REACH, cells=CELLS, field=ARROWS, clouds=tuple(clouds))
    return film, Line(name=name, x=axis(ways, 3), y=finite(distances, 4))


def end_of(levels: list[Level]) -> Level:
    """Return the moment without noise, where the network is asked what it says at the last moment with some."""
    return levels[-1]._replace(signal=1.0, spread=0.0)


def size_of(level: Level) -> float:
    """Return by how much all is drawn smaller where variance explodes."""
    return max(1.0, math.hypot(level.signal, level.spread))


def cloud(learner: Learner, level: Level, particles: torch.Tensor, caption: str) -> Cloud:
    """Return what is to be seen at one moment; see `size_of`."""
    size = size_of(level)
    spread = max(level.spread, LEAST_SPREAD)
    centres = size * torch.linspace(-REACH, REACH, 2 * CELLS + 1)[1::2]
    squares = torch.cartesian_prod(centres, centres).flip(1)  # (cells * cells, 2), x running fastest
    dense = density(learner.points, squares, level.signal, spread)
    along = density(learner.points[:, :1], centres[:, None], level.signal, spread)
    places = size * torch.linspace(-REACH, REACH, 2 * ARROWS + 1)[1::2]
    field = torch.cartesian_prod(places, places).flip(1)
    asked = level if level.spread else level._replace(spread=LEAST_SPREAD)
    arrows = -learner.learned.answer(field, asked)  # against the noise, as every sampler goes
    return Cloud(
        caption=caption,
        points=pairs(particles / size),
        density=levels_of(dense),
        arrows=pairs(arrows),
        along=levels_of(along),
    )


def levels_of(values: torch.Tensor) -> tuple[int, ...]:
    """Return values as whole numbers from 0 to 99, the greatest of them."""
    return tuple((values / values.max() * 99).round().int().tolist())


def pairs(points: torch.Tensor) -> tuple[tuple[float, float], ...]:
    """Return (N, 2) as pairs of rounded numbers."""
    return tuple((round(x, 2), round(y, 2)) for x, y in points.tolist())
