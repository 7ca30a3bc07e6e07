"""What a denoiser is asked, and how its answer is judged: pure functions and two noise processes, each with its paper.

Shapes: latents (B, C, H, W), times (B,), weights (B,).
"""

import math
from typing import Any, Protocol

import torch


class Process(Protocol):
    """How pictures become noise, and what the denoiser should say about it."""

    def times(self, quantiles: torch.Tensor) -> torch.Tensor:
        """Turn evenly spread numbers of (0, 1), (B,), into times."""
        ...

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Mix latents and noise."""
        ...

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return what the denoiser should predict."""
        ...

    def weights(self, times: torch.Tensor) -> torch.Tensor | None:
        """Return how much each picture counts; None for all alike."""
        ...

    def timesteps(self, times: torch.Tensor) -> torch.Tensor:
        """Return times as the denoiser is told them, 0 to 1000."""
        ...


class Diffusion:
    """Discrete diffusion with epsilon, v or sample prediction (Ho et al. 2020, arXiv:2006.11239).

    Args:
        alphas_cumprod: (T,), falling.
        prediction: `epsilon`, `v_prediction` or `sample`.
        sampling: `uniform`; `logit_normal`: more in the middle; `log_normal`: log sigma is normal (Karras et al. 2022,
            arXiv:2206.00364, section 5).
        mean: of the normal variable.
        std: likewise.
        snr_gamma: of min-SNR weighting; None weighs all times alike.
    """

    def __init__(
        self,
        alphas_cumprod: torch.Tensor,
        prediction: str,
        sampling: str = "uniform",
        *,
        mean: float = 0.0,
        std: float = 1.0,
        snr_gamma: float | None = None,
    ) -> None:
        self.alphas, self.prediction, self.sampling = alphas_cumprod.float(), prediction, sampling
        self.mean, self.std, self.snr_gamma = mean, std, snr_gamma

    def times(self, quantiles: torch.Tensor) -> torch.Tensor:
        number = len(self.alphas)
        if self.sampling == "log_normal":
            sigmas = ((1 - self.alphas) / self.alphas.clamp(min=1e-12)).sqrt().cpu()  # rising
            wanted = normal_quantile(quantiles, self.mean, self.std).exp()
            return torch.searchsorted(sigmas, wanted.to(sigmas)).clamp(max=number - 1)
        fractions = (
            normal_quantile(quantiles, self.mean, self.std).sigmoid() if self.sampling == "logit_normal" else quantiles
        )
        return (fractions * number).long().clamp(0, number - 1)

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        signal, spread = self._parts(times, latents)
        return signal * latents + spread * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        signal, spread = self._parts(times, latents)
        return signal * noise - spread * latents  # Salimans and Ho 2022, arXiv:2202.00512, appendix D

    def weights(self, times: torch.Tensor) -> torch.Tensor | None:
        if self.snr_gamma is None:
            return None
        alphas = self.alphas.to(times.device)[times]
        return min_snr_weights(alphas / (1 - alphas), self.snr_gamma, self.prediction)

    def timesteps(self, times: torch.Tensor) -> torch.Tensor:
        return times

    def _parts(self, times: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self.alphas.to(times.device)[times].view(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


class Flow:
    """Rectified flow: the straight way from picture to noise (Esser et al. 2024, arXiv:2403.03206, sections 2 and 3).

    Args:
        sampling: `logit_normal` (section 3.1) or `uniform`.
        shift: moves times towards noise, as larger pictures need (section 5.3.2); 1 leaves them.
        mean: of the normal variable.
        std: likewise.
    """

    def __init__(self, sampling: str = "logit_normal", shift: float = 1.0, mean: float = 0.0, std: float = 1.0) -> None:
        self.sampling, self.shift, self.mean, self.std = sampling, shift, mean, std

    def times(self, quantiles: torch.Tensor) -> torch.Tensor:
        times = (
            normal_quantile(quantiles, self.mean, self.std).sigmoid() if self.sampling == "logit_normal" else quantiles
        )
        return (self.shift * times / (1 + (self.shift - 1) * times)).float()

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        part = times.view(-1, *[1] * (latents.ndim - 1)).to(latents.dtype)
        return (1 - part) * latents + part * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return noise - latents

    def weights(self, times: torch.Tensor) -> torch.Tensor | None:
        return None

    def timesteps(self, times: torch.Tensor) -> torch.Tensor:
        return times * 1000


def normal_quantile(quantiles: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """Turn evenly spread numbers of (0, 1) into normally spread ones."""
    return mean + std * torch.special.ndtri(quantiles.double().clamp(1e-6, 1 - 1e-6))


def min_snr_weights(snr: torch.Tensor, gamma: float, prediction: str) -> torch.Tensor:
    """Weigh the squared error so that no noise level outweighs the others (Hang et al. 2023, arXiv:2303.09556, section 3.4).

    Args:
        snr: signal-to-noise ratios, (B,), 0 or more.
        gamma: above which a ratio counts no more.
        prediction: what the error is of: for epsilon the weight is min(snr, gamma) / snr, for v it is min(snr, gamma) / (snr + 1).
    """
    clipped = snr.clamp(max=gamma)
    if prediction == "v_prediction":
        return clipped / (snr + 1)
    return clipped if prediction == "sample" else torch.where(snr > 0, clipped / snr.clamp(min=1e-20), 1.0)


def zero_terminal_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Shift and stretch a schedule so that its last step is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1)."""
    roots = alphas_cumprod.double().sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * first / (first - last)).square().float()


def offset_noise(noise: torch.Tensor, shifts: torch.Tensor, strength: float) -> torch.Tensor:
    """Add a constant to each channel of the noise: (B, C) `shifts` of deviation 1 (N. Guttenberg 2023, Diffusion with Offset Noise)."""
    return noise + strength * shifts[:, :, None, None]


def squared_error(made: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared error of each picture, (B,), in float32; with a mask, (B, 1, H, W), the mean over what it shows."""
    error = (made.float() - target.float()).square()
    if mask is None:
        return error.flatten(1).mean(dim=1)
    weight = mask.to(error).expand_as(error)
    return (error * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1).clamp(min=1)


def flow_shift(tokens: int, config: dict[str, Any]) -> float:
    """Return how far a scheduler shifts times: its own `shift`, or for `use_dynamic_shifting` by the number of image tokens."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return math.exp(least + (most - least) * (tokens - low) / (high - low))
