"""Panel 5, second part: the way from one seed and prompt to others (slerp: Shoemake 1985, SIGGRAPH)."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from studio.engine.lab_bench import Bench, Predictor
from studio.engine.lab_sampling import Ask, Method, sample, scheduler_of
from studio.engine.passes import slerp
from studio.lab import Film, Findings, Frame, Line, Plot, Table, axis, finite
from studio.lab_latents import InterpolationRequest
from studio.schedulers import SCHEDULERS

PLACES = 21  # of the plot of lengths


def lerp(fraction: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Go straight from `first` to `second`."""
    return torch.lerp(first, second, fraction)


Mix = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WAYS = {"slerp": slerp, "lerp": lerp}


def run_interpolation(bench: Bench, request: InterpolationRequest) -> Findings:
    """Draw a picture at each part of the way."""
    other_prompt, mix = request.other_prompt or request.prompt, WAYS[request.way]
    bench.plan(request.frames * request.steps)
    ends = bench.noise(request.seed), bench.noise(request.other_seed)
    said = bench.predictor, predictor_of(bench, other_prompt)
    scale = (bench.request.guidance_scale or 1.0) if bench.predictor.guides else 1.0
    fractions = torch.linspace(0, 1, request.frames, dtype=torch.float64).tolist()

    def at(part: Mix) -> np.ndarray:
        ask = saying(said[0].mixed(said[1], part), scale)
        return drawn_from(bench, part(*ends), ask, request.seed, request.steps)

    pictures = bench.collect((at(partial(mix, fraction)) for fraction in fractions), request.frames)
    fractions = fractions[: len(pictures)]
    frames = [
        Frame(caption=f"{fraction:.2f}", pictures={"picture": bench.keep(f"part-{number:02d}", picture)})
        for number, (fraction, picture) in enumerate(zip(fractions, pictures, strict=True))
    ]
    told = {"prompt": request.prompt} | ({"other_prompt": other_prompt} if request.other_prompt else {})
    agreements = {name: agreement(bench, pictures, prompt) for name, prompt in told.items() if bench.scorer is not None}
    lengths = [length(mix(fraction, *ends)) for fraction in fractions]
    rows = zip(finite(fractions, 3), finite(lengths, 4), *agreements.values(), strict=True)
    plots = [Plot(name="length", x="way", y="length", lines=length_lines(*ends))]
    if agreements:
        lines = [Line(name=name, x=axis(fractions, 3), y=values) for name, values in agreements.items()]
        plots.append(Plot(name="agreement", x="way", y="agreement", lines=tuple(lines)))
    return Findings(
        panel="interpolation",
        settings=request.model_dump(mode="json"),
        plots=tuple(plots),
        tables=(Table(name="parts", columns=("way", "length", *agreements), rows=tuple(rows)),),
        films=(Film(name="way", frames=tuple(frames)),),
    )


def predictor_of(bench: Bench, prompt: str) -> Predictor:
    """Return the model's denoiser with another prompt."""
    if prompt == bench.request.prompt:
        return bench.predictor
    return Predictor(bench.pipe, bench.request.model_copy(update={"prompt": prompt}), bench.job)


def saying(predictor: Predictor, scale: float) -> Ask:
    """Return what asks a denoiser with one guidance at all steps."""
    return lambda x, timestep, _: predictor.said(x, timestep, scale)


def drawn_from(bench: Bench, noise: torch.Tensor, ask: Ask, seed: int, steps: int) -> np.ndarray:
    """Draw a picture (H, W, 3) uint8 from noise (1, C, h, w) with the model's usual sampling method."""
    assert bench.request.scheduler is not None
    usual = SCHEDULERS[bench.request.scheduler]
    scheduler = scheduler_of(bench, usual.class_name, **usual.overrides)
    scheduler.set_timesteps(steps)
    return bench.decode(sample(bench, Method(scheduler, {}), noise, ask, [seed]))[0]


def agreement(bench: Bench, pictures: list[np.ndarray], prompt: str) -> tuple[float | None, ...]:
    """Return how well each picture shows a prompt, 0 to 1, where that can be told."""
    return tuple(bench.scorer.prompt(seen, prompt) for seen in bench.scorer.read(pictures))


def length(noise: torch.Tensor) -> float:
    """Return the length of noise over the square root of its dimension: 1 for what a model was trained on."""
    return float(noise.norm()) / noise.numel() ** 0.5


def length_lines(first: torch.Tensor, second: torch.Tensor) -> tuple[Line, ...]:
    """Return the length along both ways."""
    places = torch.linspace(0, 1, PLACES, dtype=torch.float64).tolist()
    return tuple(
        Line(name=name, x=axis(places, 3), y=finite([length(way(place, first, second)) for place in places], 5))
        for name, way in WAYS.items()
    )
