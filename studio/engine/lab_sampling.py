"""From noise to a picture: diffusers' schedulers over the model at hand, one step at a time."""

import copy
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from studio.engine.lab_bench import Bench
from studio.engine.lab_paths import Level, Path, to_noise
from studio.errors import InvalidRequest
from studio.lab import SAMPLERS

COMMON: dict[str, Any] = {
    "timestep_spacing": "trailing",  # all begin at the last step and end without noise
    "clip_sample": False,
    "set_alpha_to_one": True,
    "final_sigmas_type": "zero",
    "thresholding": False,
    "use_dynamic_shifting": False,
}
Ask = Callable[
    [torch.Tensor, Any, float], torch.Tensor
]  # (x as the denoiser wants it, step, part of the way) -> what it says


class Moment(NamedTuple):
    """One step: what the denoiser saw, and what follows from what it said; latents (B, C, h, w)."""

    timestep: float
    level: Level
    x: torch.Tensor
    x0: torch.Tensor
    noise: torch.Tensor


class Method(NamedTuple):
    """A sampler that is set up.

    Attributes:
        scheduler: of diffusers, with its timesteps set.
        extra: for its steps, such as `eta`.
        along_flow: whether it goes along a flow with a model of diffusion.
    """

    scheduler: Any
    extra: dict[str, Any]
    along_flow: bool = False


def check_samplers(bench: Bench, names: tuple[str, ...]) -> None:
    """Refuse samplers that cannot follow the model's noise.

    Raises:
        InvalidRequest: naming the first.
    """
    noise = bench.job.model.noise
    fitting = [name for name, facts in SAMPLERS.items() if noise in facts.noise]
    for name in names:
        if name not in fitting:
            raise InvalidRequest(
                "samplers", f"{name} does not work with this model ({noise} noise); use one of: {', '.join(fitting)}"
            )


def sampler(bench: Bench, name: str, steps: int, eta: float) -> Method:
    """Set up a sampler of `SAMPLERS` over the model's own noise path.

    Raises:
        InvalidRequest: if it cannot follow that.
    """
    check_samplers(bench, (name,))
    facts, flow = SAMPLERS[name], bench.job.model.noise == "flow"
    along = facts.noise == ("diffusion", "flow") and facts.class_name.startswith("FlowMatch") and not flow
    if along:
        made = getattr(importlib.import_module("diffusers"), facts.class_name)(num_train_timesteps=1000)
    else:
        more = {"use_flow_sigmas": True, "use_karras_sigmas": False, "prediction_type": "flow_prediction"}
        more["flow_shift"] = bench.pipe.scheduler.config.get("shift", 1.0)
        solver = flow and not facts.class_name.startswith("FlowMatch")
        made = scheduler_of(bench, facts.class_name, **(dict(facts.overrides) | (more if solver else {})))
    if (
        facts.class_name == "FlowMatchEulerDiscreteScheduler"
    ):  # as pipelines of flows do: no step is spent on the last thousandth
        made.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    else:
        made.set_timesteps(steps)
    return Method(made, {"eta": eta} if facts.eta else {}, along)


def scheduler_of(bench: Bench, class_name: str, **overrides: Any) -> Any:
    """Make one of diffusers' schedulers over the model's own noise path."""
    made = getattr(importlib.import_module("diffusers"), class_name)
    return made.from_config(bench.pipe.scheduler.config, **(COMMON | overrides))


def asked(bench: Bench, scale: float, rescale: float = 0.0) -> Ask:
    """Return what asks the model with one guidance at all steps."""
    return lambda x, timestep, _: bench.predictor.said(x, timestep, scale, rescale)


def along_flow(ask: Ask, path: Path) -> Ask:
    """Return what asks a model of diffusion along the straight path z = (1 - s) x0 + s noise.

    A point of it, brought to variance 1, is a point of the variance-preserving path with the same ratio of noise to picture; the
    velocity noise - x0 follows from the x0 that the model predicts there (Lipman et al. 2022, arXiv:2210.02747, section 4.1).
    """

    def velocity(z: torch.Tensor, timestep: Any, fraction: float) -> torch.Tensor:
        s = float(timestep) / 1000
        when = path.timestep(s / max(1 - s, 1e-9))
        x, level = z / ((1 - s) ** 2 + s**2) ** 0.5, path.at(when)
        x0, noise = to_noise(path.prediction, ask(x, when, fraction), x, level)
        return (z - x0) / s if s > 0.5 else noise - x0  # the same but where s is beyond what the model has learnt

    return velocity


def sample(
    bench: Bench,
    method: Method,
    noise: torch.Tensor,
    ask: Ask,
    seeds: list[int],
    *,
    seen: Callable[[Moment], None] | None = None,
) -> torch.Tensor:
    """Go from noise to latents without noise.

    Args:
        bench: tells of each step.
        method: from `sampler`; it stays as it is.
        noise: (B, C, h, w) of variance 1; every scheduler begins at the same point of the model's path, whatever its own scale.
        ask: see `Ask`.
        seeds: one a picture, for schedulers that draw noise on the way.
        seen: told of each moment.
    """
    scheduler, extra = copy.deepcopy(method.scheduler), dict(method.extra)  # one that was used is at its end
    generators = [torch.Generator().manual_seed(seed + 1) for seed in seeds]  # not the numbers that x_T is made of
    if "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = generators
    if method.along_flow:
        ask = along_flow(ask, bench.path)
    timesteps = scheduler.timesteps
    x = noise * start_scale(scheduler)
    for number, timestep in enumerate(timesteps):
        given = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        said = ask(given, timestep, number / len(timesteps))
        if seen:
            level = bench.path.at(float(timestep))
            seen(Moment(float(timestep), level, given, *to_noise(bench.path.prediction, said, given, level)))
        x = scheduler.step(said, timestep, x, **extra).prev_sample
        bench.step()
    return x


def start_scale(scheduler: Any) -> float:
    """Return by how much a scheduler's first x is larger than noise of variance 1: more for those that keep x0 + sigma * noise."""
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) <= 1.5:
        return 1.0
    return float((scheduler.sigmas[0] ** 2 + 1) ** 0.5)
