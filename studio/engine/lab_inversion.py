"""Panel 5, third part: DDIM inversion (Song et al. 2021, arXiv:2010.02502, section 4.3): from a picture to its noise and back.

Along a flow, the same is done with Euler steps of the velocity.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from studio.engine.lab_bench import Bench
from studio.engine.lab_forward import drawn
from studio.engine.lab_interpolation import predictor_of, saying
from studio.engine.lab_sampling import COMMON, Ask
from studio.engine.vae_check import psnr
from studio.errors import InvalidRequest
from studio.lab import Film, Findings, Frame, Line, Plot, Table, axis, finite
from studio.lab_latents import InversionRequest

COLUMNS = ("steps", "latent_error", "psnr", "noise_mean", "noise_deviation")


def run_inversion(bench: Bench, request: InversionRequest) -> Findings:
    """Invert a picture with several numbers of steps, draw it again, and measure what is lost."""
    for steps in request.steps:
        check_steps(bench, steps)
    other = bool(request.other_prompt)
    own: Any = 0 if request.image else bench.request.num_inference_steps or 0
    bench.plan(own + sum(request.steps) * (3 if other else 2))
    if request.guidance != 1 and not bench.predictor.guides:
        raise InvalidRequest("guidance", f"guidance={request.guidance:g} cannot be had of this model; use 1")
    picture = bench.given(request.image) if request.image else drawn(bench, request.seed)
    x0 = bench.encode(picture)
    kept = bench.decode(x0)[0]  # what the autoencoder keeps is the best that can come back
    first = {"given": bench.keep("given", picture), "decoded": bench.keep("decoded", kept)}
    alone, back = saying(bench.predictor, 1.0), saying(bench.predictor, request.guidance)

    def there_and_back(steps: int) -> tuple[tuple[Any, ...], Frame]:
        found = inverted(bench, x0, alone, steps)
        again = redrawn(bench, found, back, steps)
        shown = {"noise": bench.decode(found)[0], "regenerated": bench.decode(again)[0]}
        error = float((again - x0).norm() / x0.norm())
        lost = psnr(shown["regenerated"].astype(np.int32) - kept)
        row = (steps, *finite([error, lost, found.mean(), found.std()], 4))
        if other:
            ask = saying(predictor_of(bench, request.other_prompt), request.guidance)
            shown["other_prompt"] = bench.decode(redrawn(bench, found, ask, steps))[0]
        names = {name: bench.keep(f"{name}-{steps:03d}", one) for name, one in shown.items()}
        return row, Frame(caption=f"{steps} steps", pictures=names)

    made = bench.collect(map(there_and_back, request.steps), len(request.steps))
    rows, frames = zip(*made, strict=True)
    return Findings(
        panel="inversion",
        settings=request.model_dump(mode="json"),
        plots=(over_steps("error", 1, rows, ("x", "y")), over_steps("psnr", 2, rows, ("x",))),
        tables=(Table(name="steps", columns=COLUMNS, rows=rows),),
        films=(Film(name="inversion", frames=(Frame(caption="x0", pictures=first), *frames)),),
    )


def over_steps(name: str, column: int, rows: Sequence[Any], log: tuple[Any, ...]) -> Plot:
    """Return the plot of a column of the table over the number of steps."""
    line = Line(name=COLUMNS[column], x=axis(row[0] for row in rows), y=tuple(row[column] for row in rows))
    return Plot(name=name, x="steps", y=COLUMNS[column], lines=(line,), log=log)


def check_steps(bench: Bench, steps: int) -> None:
    """Refuse numbers of steps whose way to noise would not have the moments of the way back.

    Raises:
        InvalidRequest: naming the nearest that would.
    """
    length = bench.pipe.scheduler.config.num_train_timesteps
    if length % steps:
        near = min((one for one in range(2, length) if length % one == 0), key=lambda one: abs(one - steps))
        raise InvalidRequest("steps", f"steps={steps} must divide the model's {length:,} noise levels; use {near}")


def inverted(bench: Bench, x0: torch.Tensor, ask: Ask, steps: int) -> torch.Tensor:
    """Return the noise (1, C, h, w) from which `redrawn` comes near x0."""
    config = bench.pipe.scheduler.config
    if bench.path.flow:
        scheduler: Any = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=config.num_train_timesteps, invert_sigmas=True
        )
        rising = flow_levels(bench, steps)[::-1]  # from 0, that of x0
        scheduler.set_timesteps(sigmas=[1 - sigma for sigma in rising[:-1]])
    else:
        scheduler = DDIMInverseScheduler.from_config(config, **COMMON)
        scheduler.set_timesteps(steps)
    return walked(bench, scheduler, x0, ask, scheduler.step)


def redrawn(bench: Bench, noise: torch.Tensor, ask: Ask, steps: int) -> torch.Tensor:
    """Return the latents (1, C, h, w) to which noise leads with DDIM and no noise besides, or with Euler along a flow."""
    config = bench.pipe.scheduler.config
    if bench.path.flow:
        scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps)
        scheduler.set_timesteps(sigmas=flow_levels(bench, steps)[:-1])
        return walked(bench, scheduler, noise, ask, scheduler.step)
    scheduler = DDIMScheduler.from_config(config, **COMMON)
    scheduler.set_timesteps(steps)
    return walked(bench, scheduler, noise, ask, scheduler.step)


def flow_levels(bench: Bench, steps: int) -> list[float]:
    """Return the noise levels of a flow's steps, from 1 to 0, spaced as the model's own scheduler does."""
    own: Any = FlowMatchEulerDiscreteScheduler.from_config(bench.pipe.scheduler.config, use_dynamic_shifting=False)
    own.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    return own.sigmas.tolist()


def walked(bench: Bench, scheduler: Any, x: torch.Tensor, ask: Ask, step: Callable[..., Any]) -> torch.Tensor:
    """Go all of a scheduler's steps from x (1, C, h, w)."""
    for number, timestep in enumerate(scheduler.timesteps):
        x = step(ask(x, timestep, number / len(scheduler.timesteps)), timestep, x).prev_sample
        bench.step()
    return x
