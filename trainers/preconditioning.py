"""How a model from nothing is noised and asked, and which schedulers and pipelines of diffusers draw with it.

Times are sigmas for `Scores` and `Edm`: the deviation of the noise.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.consistency_models.pipeline_consistency_models import ConsistencyModelPipeline
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.deprecated.score_sde_ve.pipeline_score_sde_ve import ScoreSdeVePipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler

from trainers.losses import Diffusion, Process, normal_quantile
from trainers.unconditional_configs import UnconditionalConfig

P_MEAN, P_STD = -1.2, 1.2  # of log sigma: Karras et al. 2022, table 1


class _Sigmas:
    """Noise levels without steps: log sigma is uniform (evenly spread) or normal.

    Args:
        least: sigma.
        most: sigma.
        normal: mean and deviation of log sigma; None spreads it evenly from `least` to `most`.
    """

    def __init__(self, least: float, most: float, normal: tuple[float, float] | None) -> None:
        self.least, self.most, self.normal = least, most, normal

    def times(self, quantiles: torch.Tensor) -> torch.Tensor:
        if self.normal is not None:
            return normal_quantile(quantiles, *self.normal).exp().float()
        return (self.least * (self.most / self.least) ** quantiles.double()).float()


class Scores(_Sigmas):
    """Variance exploding: the network says the score of pictures between 0 and 1 (Song et al. 2021, arXiv:2011.13456).

    The loss is weighed with sigma squared (section 3.3), so that all levels count alike.
    """

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return latents + _wide(times, latents) * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return -noise / _wide(times, latents)

    def weights(self, times: torch.Tensor) -> torch.Tensor | None:
        return times.square()

    def timesteps(self, times: torch.Tensor) -> torch.Tensor:
        return times


class Edm(_Sigmas):
    """EDM: inputs and outputs of the network have unit variance at every level (Karras et al. 2022, arXiv:2206.00364, table 1).

    The denoiser is D = c_skip x + c_out F. Its error is weighed with 1 / c_out squared, so that of F, the network, counts
    plainly: `target` is what F should say (equation 8), and there are no weights.

    Args:
        least: sigma.
        most: sigma.
        normal: mean and deviation of log sigma.
        data: deviation of the pictures.
    """

    def __init__(self, least: float, most: float, normal: tuple[float, float] | None, data: float) -> None:
        super().__init__(least, most, normal)
        self.data = data

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        sigma = _wide(times, latents)
        return (latents + sigma * noise) / (sigma**2 + self.data**2).sqrt()

    def target(self, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        sigma = _wide(times, latents)
        total = sigma**2 + self.data**2
        skip, out = self.data**2 / total, sigma * self.data / total.sqrt()
        return (latents - skip * (latents + sigma * noise)) / out

    def weights(self, times: torch.Tensor) -> torch.Tensor | None:
        return None

    def timesteps(self, times: torch.Tensor) -> torch.Tensor:
        return times.log() / 4


@dataclass(frozen=True)
class Preconditioning:
    """One way to learn and to draw.

    Attributes:
        process: the noise, and what the network should say.
        scheduler: saved with the network.
        saved: pipeline that the result is.
        drawn: pipeline that draws samples with it.
        shape: of the network, beside what the config says.
        zero_one: whether it knows pictures between 0 and 1 and not between -1 and 1.
    """

    process: Process
    scheduler: Any
    saved: Any
    drawn: Any
    shape: dict[str, Any]
    zero_one: bool = False


def ddpm_process(config: UnconditionalConfig, scheduler: Any) -> Process:
    """Return the noise of DDPM (Ho et al. 2020, arXiv:2006.11239)."""
    return Diffusion(
        scheduler.alphas_cumprod,
        config.prediction_type,
        "uniform" if config.timestep_sampling == "automatic" else config.timestep_sampling,
        mean=config.logit_mean,
        std=config.logit_std,
        snr_gamma=config.snr_gamma,
    )


def ddpm_schedule(config: UnconditionalConfig) -> dict[str, Any]:
    """Return what the schedulers of DDPM and DDIM are told."""
    zero = config.rescale_betas_zero_snr
    return {
        "num_train_timesteps": config.ddpm_num_steps,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
        "rescale_betas_zero_snr": zero,
        "timestep_spacing": "trailing" if zero else "leading",  # pure noise must be asked about (arXiv:2305.08891)
    }


def _ddpm(config: UnconditionalConfig) -> Preconditioning:
    scheduler = DDPMScheduler(**ddpm_schedule(config))
    return Preconditioning(ddpm_process(config, scheduler), scheduler, DDPMPipeline, DDIMPipeline, {})


def _ve(config: UnconditionalConfig) -> Preconditioning:
    least, most = config.sigmas
    normal = (config.logit_mean, config.logit_std) if config.timestep_sampling == "log_normal" else None
    scheduler = ScoreSdeVeScheduler(
        num_train_timesteps=config.num_inference_steps, sigma_min=least, sigma_max=most, snr=config.corrector_snr
    )
    # with Fourier features of log sigma, diffusers' UNet divides what it says by sigma: scores grow as noise fades
    shape = {"time_embedding_type": "fourier"}
    pipeline = ScoreSdeVePipeline
    return Preconditioning(Scores(least, most, normal), scheduler, pipeline, pipeline, shape, zero_one=True)


def _edm(config: UnconditionalConfig) -> Preconditioning:
    least, most = config.sigmas
    normal = {
        "automatic": (P_MEAN, P_STD),
        "log_normal": (config.logit_mean, config.logit_std),
    }.get(config.timestep_sampling)
    scheduler = EDMDPMSolverMultistepScheduler(sigma_min=least, sigma_max=most, sigma_data=config.sigma_data)
    # of diffusers' pipelines of pixels the only one that scales first noise and inputs as the scheduler says
    pipeline = ConsistencyModelPipeline
    return Preconditioning(Edm(least, most, normal, config.sigma_data), scheduler, pipeline, pipeline, {})


def preconditioning_of(config: UnconditionalConfig) -> Preconditioning:
    """Return how a config's network learns and draws."""
    return {"ddpm": _ddpm, "ve": _ve, "edm": _edm}[config.preconditioning](config)


def _wide(times: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return times.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
