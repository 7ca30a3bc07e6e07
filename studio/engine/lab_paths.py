"""Ways from a picture to noise, x = alpha * x0 + sigma * noise, and what a network may be asked about a point of them.

A variance-preserving path has alpha**2 = alpha-bar and sigma**2 = 1 - alpha-bar (Ho et al. 2020, arXiv:2006.11239, equation 4); the
straight path of flow matching has alpha = 1 - sigma (Lipman et al. 2022, arXiv:2210.02747, section 4.1). The numbers of a schedule come
from diffusers' schedulers.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

SCHEDULES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "linear": (DDPMScheduler, {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
    "scaled_linear": (DDPMScheduler, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    "cosine": (DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2"}),
    "zero_terminal_snr": (
        DDPMScheduler,
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
    ),
    "flow": (FlowMatchEulerDiscreteScheduler, {}),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Level(NamedTuple):
    """A point of a path: how much of the picture and how much noise."""

    alpha: Any
    sigma: Any


class Path:
    """The noise levels of a scheduler by step, 0 (hardly any noise) to the last one it was trained on.

    Args:
        scheduler: of diffusers; that of a flow has no `alphas_cumprod`.
    """

    def __init__(self, scheduler: Any) -> None:
        self.flow = not hasattr(scheduler, "alphas_cumprod")
        config = scheduler.config
        if self.flow:
            fresh = type(scheduler).from_config(config)  # one that was used has the sigmas of its last run
            self.sigmas = fresh.sigmas[: config.num_train_timesteps].flip(0).double().cpu().numpy()  # (T,), rising
            self.alphas = 1 - self.sigmas
        else:
            bar = scheduler.alphas_cumprod.double().cpu().numpy()
            self.alphas, self.sigmas = np.sqrt(bar), np.sqrt(1 - bar)
        self.prediction: str = "flow" if self.flow else config.prediction_type

    def __len__(self) -> int:
        return len(self.alphas)

    @property
    def log_snr(self) -> np.ndarray:
        """Natural logarithm of alpha**2 / sigma**2 at each step, (T,); falling, infinite where there is only noise."""
        with np.errstate(divide="ignore"):
            return 2 * (np.log(self.alphas) - np.log(self.sigmas))

    def at(self, timestep: float) -> Level:
        """Return the level at a step; between two steps the logarithm of sigma / alpha is interpolated, as diffusers' samplers do.

        Along a flow, timestep is 1000 sigma.
        """
        if self.flow:
            sigma = float(timestep) / 1000
            return Level(1 - sigma, sigma)
        if float(timestep) == int(timestep):
            return Level(float(self.alphas[int(timestep)]), float(self.sigmas[int(timestep)]))
        half = float(np.interp(timestep, np.arange(len(self)), self.log_snr)) / 2
        alpha = 1 / float(np.sqrt(1 + np.exp(-2 * half)))
        return Level(alpha, alpha * float(np.exp(-half)))

    def timestep(self, ratio: float) -> float:
        """Return the step of a variance-preserving path at which sigma / alpha is `ratio`, between its first and its last."""
        with np.errstate(divide="ignore"):
            return float(np.interp(np.log(ratio), -self.log_snr / 2, np.arange(len(self))))


def schedule(name: str, own: Any) -> Any:
    """Return a scheduler with a noise schedule; `model` is that of `own`, a model's scheduler."""
    if name != "model":
        kind, options = SCHEDULES[name]
        return kind(num_train_timesteps=1000, **options)
    kind = DDPMScheduler if hasattr(own, "alphas_cumprod") else FlowMatchEulerDiscreteScheduler
    return kind.from_config(own.config)


def to_noise(prediction: str, said: torch.Tensor, x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn what a network says of x into (x0, noise).

    v = alpha * noise - sigma * x0 (Salimans and Ho 2022, arXiv:2202.00512, appendix D); along a flow it says noise - x0.
    """
    alpha, sigma = level
    if prediction == "epsilon":
        return (x - sigma * said) / alpha, said
    if prediction == "sample":
        return said, (x - alpha * said) / sigma
    if prediction == "v_prediction":
        return alpha * x - sigma * said, sigma * x + alpha * said
    return x - sigma * said, x + alpha * said


def from_noise(prediction: str, x0: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:
    """Return what a network would have to say for (x0, noise); the inverse of `to_noise`."""
    alpha, sigma = level
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    return alpha * noise - sigma * x0 if prediction == "v_prediction" else noise - x0
