"""Stages `controlnet` and `t2i`: what makes the frozen denoiser follow edges.

A ControlNet (Zhang et al. 2023, arXiv:2302.05543) and a T2I-Adapter (Mou et al. 2023, arXiv:2302.08453) learn on the denoiser's own
cached pictures: each is drawn again, and `cv2.Canny` with the usual thresholds finds its edges.
"""

import random
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel

from benchmarks.shapes.denoiser import DenoiserLoss, picture_of
from benchmarks.shapes.edges import canny_edges

EMPTY_PROMPTS = 0.3  # more than the denoiser's: where words are missing, edges must be read


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Build a ControlNet from the denoiser's own encoder; its output is zero at first."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 32, 64))


def new_t2i_adapter(unet: UNet2DConditionModel) -> T2IAdapter:
    """Build an untrained T2I-Adapter; the denoiser's first level has no attention, as SDXL's, so it is of that type."""
    levels = list(unet.config["block_out_channels"])
    return T2IAdapter(
        in_channels=1,
        channels=[*levels, levels[-1]],
        num_res_blocks=1,
        downscale_factor=16,
        adapter_type="full_adapter_xl",
    )


def edges(indices: list[int]) -> torch.Tensor:
    """Draw the cached pictures again and return their edges, (B, 3, 128, 128) of 0 and 1."""
    found = np.stack([canny_edges(picture_of(i)) for i in indices])
    return torch.from_numpy(found)[:, None].expand(-1, 3, -1, -1).float()


class ControlLoss:
    """The loss of one step: the denoiser's own, with what the network adds.

    Args:
        network: a ControlNet or a T2I-Adapter, which learns.
        denoiser: its UNet is frozen.
    """

    def __init__(self, network: ControlNetModel | T2IAdapter, denoiser: DenoiserLoss) -> None:
        self.network, self.denoiser = network, denoiser
        denoiser.unet.requires_grad_(False)

    def __call__(self, fraction: float, rng: random.Random) -> torch.Tensor:
        indices = [rng.randrange(len(self.denoiser.latents)) for _ in range(self.denoiser.batch)]
        states = self.denoiser.described(indices, rng, EMPTY_PROMPTS)
        condition = edges(indices).to(states.device)

        def residuals(noisy: torch.Tensor, t: torch.Tensor) -> dict[str, Any]:
            if isinstance(self.network, T2IAdapter):
                return {"down_intrablock_additional_residuals": self.network(condition[:, :1])}
            down, middle = self.network(noisy, t, states, condition, return_dict=False)
            return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

        return self.denoiser.loss(indices, states, rng, residuals)
