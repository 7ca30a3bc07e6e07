"""Panel 1: a picture becomes noise, in closed form and step by step (Ho et al. 2020, arXiv:2006.11239, equations 2 and 4)."""

from typing import Any

import numpy as np
import torch

from studio.engine.lab_bench import Bench
from studio.engine.lab_paths import SCHEDULES, Path, schedule
from studio.engine.lab_sampling import Method, asked, sample, scheduler_of
from studio.engine.passes import to_pixels
from studio.engine.places import place_of
from studio.lab import Film, Findings, ForwardRequest, Frame, Line, Plot, Table, finite
from studio.schedulers import SCHEDULERS

POINTS = 101  # of a curve


def run_forward(bench: Bench, request: ForwardRequest) -> Findings:
    """Noise a picture and draw the curves of all schedules."""
    scheduler = schedule(request.schedule, bench.pipe.scheduler)
    path = Path(scheduler)
    marks = sorted({round(mark) for mark in np.linspace(0, request.timestep, request.frames)})
    steps = request.timestep + 1 + (0 if request.image else bench.request.num_inference_steps or 0)
    bench.plan(steps)
    picture = bench.given(request.image) if request.image else drawn(bench, request.seed)
    pixels = request.space == "pixels"
    x0 = from_pixels(picture, bench) if pixels else bench.encode(picture)
    generator = torch.Generator().manual_seed(request.seed)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    walked = walk(bench, scheduler, x0, noise, marks, generator)
    frames, rows = [Frame(caption="x0", pictures={"given": bench.keep("given", picture)})], []
    for mark in marks:
        ways = {"closed": closed(scheduler, x0, noise, mark), "stepwise": walked[mark]}
        shown = {name: shown_as(bench, x, pixels=pixels) for name, x in ways.items()}
        names = {name: bench.keep(f"{name}-{mark:03d}", one) for name, one in shown.items()}
        frames.append(Frame(caption=str(mark), pictures=names))
        rows.append((mark, *finite([path.alphas[mark], path.sigmas[mark]], 4), *measured(ways, x0)))
    columns = ("timestep", "alpha", "sigma", *(f"{way}_{what}" for way in ways for what in ("alpha", "sigma")))
    return Findings(
        panel="forward",
        settings=request.model_dump(),
        plots=curves(bench.pipe.scheduler),
        tables=(Table(name="statistics", columns=columns, rows=tuple(rows)),),
        films=(Film(name="forward", frames=tuple(frames)),),
    )


def drawn(bench: Bench, seed: int) -> np.ndarray:
    """Let the model draw a picture in its usual way, (H, W, 3) uint8."""
    name, request = bench.request.scheduler, bench.request
    assert name is not None
    scheduler = scheduler_of(bench, SCHEDULERS[name].class_name, **SCHEDULERS[name].overrides)
    scheduler.set_timesteps(request.num_inference_steps)
    method = Method(scheduler, {})
    scale = request.guidance_scale or 1.0
    ask = asked(bench, scale if bench.predictor.guides else 1.0)
    return bench.decode(sample(bench, method, bench.noise(seed), ask, [seed]))[0]


def closed(scheduler: Any, x0: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
    """Return x at a step at once: alpha * x0 + sigma * noise, as diffusers computes it for training."""
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(x0, noise, torch.tensor([step], device=x0.device))
    return scheduler.scale_noise(x0, scheduler.timesteps.flip(0)[step : step + 1], noise)


def walk(
    bench: Bench, scheduler: Any, x0: torch.Tensor, noise: torch.Tensor, marks: list[int], generator: torch.Generator
) -> dict[int, torch.Tensor]:
    """Return x at each of some steps, reached one step at a time.

    A diffusion adds new noise each time, x <- sqrt(1 - beta) x + sqrt(beta) noise; a flow goes on straight, with one noise.
    """
    x, found = x0, {}
    path = Path(scheduler)
    for step in range(marks[-1] + 1):
        if path.flow:
            before = path.sigmas[step - 1] if step else 0.0
            x = x + (path.sigmas[step] - before) * (noise - x0)
        else:
            beta = float(scheduler.betas[step])
            x = (1 - beta) ** 0.5 * x + beta**0.5 * torch.randn(x.shape, generator=generator).to(x)
        if step in marks:
            found[step] = x
        bench.step()
    return found


def measured(ways: dict[str, torch.Tensor], x0: torch.Tensor) -> list[float | None]:
    """Return for each x how much of x0 is in it (least squares), and the deviation of the rest."""
    found = []
    centred = x0 - x0.mean()
    for x in ways.values():
        share = float(((x - x.mean()) * centred).sum() / centred.square().sum())
        found += [share, float((x - share * x0).std())]
    return list(finite(found, 4))


def from_pixels(picture: np.ndarray, bench: Bench) -> torch.Tensor:
    """Return a picture (H, W, 3) uint8 as x0, (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].to(place_of(bench.pipe.vae)).float() / 127.5 - 1


def shown_as(bench: Bench, x: torch.Tensor, *, pixels: bool) -> np.ndarray:
    """Return x as a picture (H, W, 3) uint8."""
    return to_pixels((x / 2 + 0.5).clamp(0, 1))[0] if pixels else bench.decode(x)[0]


def curves(own: Any) -> tuple[Plot, ...]:
    """Return alpha-bar, log SNR and sigma over the steps, for every schedule and the model's own."""
    paths = {name: Path(schedule(name, own)) for name in ("model", *SCHEDULES)}
    shown = {
        "alpha_bar": lambda path: path.alphas**2,
        "log_snr": lambda path: path.log_snr,
        "sigma": lambda path: path.sigmas,
    }
    plots = []
    for quantity, values in shown.items():
        lines = []
        for name, path in paths.items():
            places = np.unique(np.linspace(0, len(path) - 1, POINTS).round().astype(int))
            lines.append(Line(name=name, x=tuple(places.tolist()), y=finite(values(path)[places])))
        plots.append(Plot(name=quantity, x="timestep", y=quantity, lines=tuple(lines)))
    return tuple(plots)
