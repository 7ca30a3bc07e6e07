"""How each kind of denoiser is asked during training; found by the class of the model's network, not by its family."""

from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from studio.errors import InvalidRequest
from trainers.configs import TrainingConfig
from trainers.losses import Diffusion, Flow, Process, flow_shift, zero_terminal_snr

Told = dict[str, torch.Tensor]  # what the text encoders say, as the pipeline's arguments are named
MASK = "prompt_mask"  # 1 where a caption's states are, 0 behind them; of encoders that make each as long as its caption


class Frame(NamedTuple):
    """Where a shown picture comes from, in pixels: its size after scaling, and what was cut off at the left and the top."""

    width: int
    height: int
    left: int
    top: int


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class _Denoiser:
    """What all share."""

    attention = ATTENTION

    def __init__(self, network: Any, pipe: Any) -> None:
        self.network = network
        self._schedule, self._vae = pipe.scheduler.config, pipe.vae.config

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Give latents of the autoencoder, (B, C, h, w), the scale that the network knows."""
        return (latents - (getattr(self._vae, "shift_factor", None) or 0.0)) * self._vae.scaling_factor


class UNet(_Denoiser):
    """Stable Diffusion 1.x, 2.x and XL."""

    prefix = "unet"

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe.unet, pipe)

    def process(self, config: TrainingConfig, size: tuple[int, int]) -> Process:
        """Return the noise that the model was made for."""
        schedule: Any = DDPMScheduler.from_config(self._schedule)
        alphas, prediction = schedule.alphas_cumprod, schedule.config.prediction_type
        if config.rescale_betas_zero_snr:
            if prediction != "v_prediction":
                raise InvalidRequest(
                    "rescale_betas_zero_snr",
                    f"rescale_betas_zero_snr needs a v-prediction model; this one predicts {prediction}, so switch it off",
                )
            alphas = zero_terminal_snr(alphas)
        return Diffusion(
            alphas,
            prediction,
            "uniform" if config.timestep_sampling == "automatic" else config.timestep_sampling,
            mean=config.logit_mean,
            std=config.logit_std,
            snr_gamma=config.snr_gamma,
        )

    def predict(
        self, network: Any, noisy: torch.Tensor, steps: torch.Tensor, told: Told, frames: list[Frame]
    ) -> torch.Tensor:
        """Ask the network, (B, C, h, w) each way."""
        return network(noisy, steps, told["prompt_embeds"], return_dict=False, **self.more(noisy, told, frames))[0]

    def more(self, noisy: torch.Tensor, told: Told, frames: list[Frame]) -> dict[str, Any]:
        """Return what SDXL is told besides (Podell et al. 2023, arXiv:2307.01952, section 2.2)."""
        if self.network.config.addition_embed_type != "text_time":
            return {}
        height, width = (side * 8 for side in noisy.shape[-2:])
        ids = [[frame.height, frame.width, frame.top, frame.left, height, width] for frame in frames]
        times = torch.tensor(ids, device=noisy.device, dtype=noisy.dtype)
        return {"added_cond_kwargs": {"text_embeds": told["pooled_prompt_embeds"], "time_ids": times}}


class _FlowTransformer(_Denoiser):
    """What rectified-flow transformers share."""

    prefix = "transformer"
    patch = 2

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe.transformer, pipe)
        self._cell = 2 ** (len(pipe.vae.config.block_out_channels) - 1)

    def process(self, config: TrainingConfig, size: tuple[int, int]) -> Process:
        """Return the model's noise; `size` decides the shift of models that shift by size."""
        for name in ("snr_gamma", "rescale_betas_zero_snr"):
            if getattr(config, name):
                raise InvalidRequest(name, f"{name} means nothing to a flow model; set it back")
        if config.timestep_sampling == "log_normal":
            raise InvalidRequest(
                "timestep_sampling", "timestep_sampling=log_normal is for diffusion models; use logit_normal or uniform"
            )
        tokens = size[0] * size[1] // (self._cell * self.patch) ** 2
        shift = config.timestep_shift or flow_shift(tokens, self._schedule)
        sampling = "logit_normal" if config.timestep_sampling == "automatic" else config.timestep_sampling
        return Flow(sampling, shift, config.logit_mean, config.logit_std)


class SD3Transformer(_FlowTransformer):
    """Stable Diffusion 3."""

    def predict(
        self, network: Any, noisy: torch.Tensor, steps: torch.Tensor, told: Told, frames: list[Frame]
    ) -> torch.Tensor:
        """Ask the network, (B, C, h, w) each way."""
        return network(
            hidden_states=noisy,
            timestep=steps,
            encoder_hidden_states=told["prompt_embeds"],
            pooled_projections=told["pooled_prompt_embeds"],
            return_dict=False,
        )[0]


class FluxTransformer(_FlowTransformer):
    """Flux.1."""

    guidance = 1.0

    def process(self, config: TrainingConfig, size: tuple[int, int]) -> Process:
        self.guidance = config.guidance_scale
        return super().process(config, size)

    def predict(
        self, network: Any, noisy: torch.Tensor, steps: torch.Tensor, told: Told, frames: list[Frame]
    ) -> torch.Tensor:
        """Ask the network, (B, C, h, w) each way; 2 x 2 latents are one of its tokens."""
        batch, channels, height, width = noisy.shape
        rows, columns = height // 2, width // 2
        packed = noisy.view(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        packed = packed.reshape(batch, rows * columns, channels * 4)  # (B, tokens, 4 C)
        places = torch.zeros(rows, columns, 3, device=noisy.device, dtype=noisy.dtype)
        places[..., 1] += torch.arange(rows, device=noisy.device)[:, None]
        places[..., 2] += torch.arange(columns, device=noisy.device)[None]
        states = told["prompt_embeds"]
        guided = self.network.config.guidance_embeds
        made = network(
            hidden_states=packed,
            timestep=steps / 1000,
            guidance=torch.full((batch,), self.guidance, device=noisy.device) if guided else None,
            pooled_projections=told["pooled_prompt_embeds"],
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=places.view(-1, 3),
            return_dict=False,
        )[0]
        return made.view(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)


class Flux2Transformer(_FlowTransformer):
    """Flux.2 klein: its latents have a mean and a deviation for each place of a 2 x 2 patch."""

    attention = (*ATTENTION, "to_qkv_mlp_proj")

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        norm = pipe.vae.bn
        self._mean = norm.running_mean.float().clone()
        self._std = torch.sqrt(norm.running_var.float() + pipe.vae.config.batch_norm_eps)

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = (one.to(latents).view(1, -1, 1, 1) for one in (self._mean, self._std))
        return _unfolded((_folded(latents) - mean) / std)

    def predict(
        self, network: Any, noisy: torch.Tensor, steps: torch.Tensor, told: Told, frames: list[Frame]
    ) -> torch.Tensor:
        """Ask the network, (B, C, h, w) each way; 2 x 2 latents are one of its tokens."""
        folded, states = _folded(noisy), told["prompt_embeds"]
        batch, _, rows, columns = folded.shape
        one = torch.arange(1, device=noisy.device)
        words = torch.cartesian_prod(one, one, one, torch.arange(states.shape[1], device=noisy.device))
        places = torch.cartesian_prod(
            one, torch.arange(rows, device=noisy.device), torch.arange(columns, device=noisy.device), one
        )
        made = network(
            hidden_states=folded.flatten(2).transpose(1, 2),  # (B, tokens, 4 C)
            timestep=steps / 1000,
            guidance=None,
            encoder_hidden_states=states,
            txt_ids=words.expand(batch, -1, -1),
            img_ids=places.expand(batch, -1, -1),
            return_dict=False,
        )[0]
        return _unfolded(made.transpose(1, 2).reshape(folded.shape))


class ZImageTransformer(_FlowTransformer):
    """Z-Image: time runs from noise to picture, and it predicts the way there."""

    def predict(
        self, network: Any, noisy: torch.Tensor, steps: torch.Tensor, told: Told, frames: list[Frame]
    ) -> torch.Tensor:
        """Ask the network, (B, C, h, w) each way; each caption as long as it is."""
        states = [one[kept > 0] for one, kept in zip(told["prompt_embeds"], told[MASK], strict=True)]
        made = network(list(noisy[:, :, None].unbind()), 1 - steps / 1000, states, return_dict=False)[0]
        return -torch.stack(list(made))[:, :, 0]


def _folded(latents: torch.Tensor) -> torch.Tensor:
    """Put 2 x 2 neighbours behind each other: (B, C, h, w) becomes (B, 4 C, h / 2, w / 2)."""
    return torch.nn.functional.pixel_unshuffle(latents, 2)


def _unfolded(latents: torch.Tensor) -> torch.Tensor:
    """Undo `_folded`."""
    return torch.nn.functional.pixel_shuffle(latents, 2)


Denoiser = UNet | SD3Transformer | FluxTransformer | Flux2Transformer | ZImageTransformer
DENOISERS: dict[str, type] = {
    "UNet2DConditionModel": UNet,
    "SD3Transformer2DModel": SD3Transformer,
    "FluxTransformer2DModel": FluxTransformer,
    "Flux2Transformer2DModel": Flux2Transformer,
    "ZImageTransformer2DModel": ZImageTransformer,
}


def denoiser_of(pipe: Any) -> Denoiser:
    """Return how a loaded pipeline's network is asked.

    Raises:
        InvalidRequest: if it cannot be trained.
    """
    network = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
    if type(network).__name__ not in DENOISERS:
        raise InvalidRequest(
            "model", f"model has a {type(network).__name__}, which cannot be trained yet; choose another"
        )
    if (
        type(network).__name__ == "UNet2DConditionModel"
        and network.config.in_channels != pipe.vae.config.latent_channels
    ):
        raise InvalidRequest(
            "model",
            f"model has {network.config.in_channels} input channels (inpainting, depth); choose a text-to-image model",
        )
    return DENOISERS[type(network).__name__](pipe)
