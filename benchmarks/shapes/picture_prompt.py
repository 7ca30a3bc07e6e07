"""Stages `vision` and `ip`: an IP-Adapter (Ye et al. 2023, arXiv:2308.06721), which lets the frozen denoiser draw after a picture.

`vision` teaches a small CLIPVisionModelWithProjection to say what a picture shows, as `text` does with words; `ip` teaches new keys
and values of each cross-attention to use what it says.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from benchmarks.shapes.denoiser import NOISE, DenoiserLoss, picture_of
from benchmarks.shapes.render import render
from benchmarks.shapes.text import HEADS, WIDTH, labels
from benchmarks.shapes.world import plain_caption, training_scene

SIDE = 64
EMBEDDING = 256
TOKENS = 4
BATCH = 64
EMPTY_PROMPTS = 0.5  # the picture must do alone
NO_PICTURES = 0.15  # what guidance compares with


def new_vision() -> CLIPVisionModelWithProjection:
    """Build the untrained image encoder."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=8,
            projection_dim=EMBEDDING,
        )
    )


def new_readout() -> nn.Linear:
    """Build the throw-away layer that names every attribute of a scene from an embedding."""
    return nn.Linear(EMBEDDING, sum(map(len, HEADS.values())))


def pixels(pictures: np.ndarray, device: torch.device) -> torch.Tensor:
    """Make pictures ready for the encoder as CLIPImageProcessor does, (N, 128, 128, 3) uint8 -> (N, 3, 64, 64)."""
    images = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2) / 255
    small = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(x, device=device).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (small - mean) / deviation


def _said(vision: Any, readout: nn.Linear, rng: random.Random) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Draw fresh pictures; return what the encoder says of each attribute, (N, choices) each, and the truth (N, attributes)."""
    scenes = [training_scene(rng) for _ in range(BATCH)]
    drawn = np.stack([render(scene, rng) for scene in scenes])
    truth = torch.tensor([labels(scene, plain_caption(scene)) for scene in scenes], device=vision.device)
    logits = readout(vision(pixels(drawn, vision.device)).image_embeds)
    return list(logits.split([len(choices) for choices in HEADS.values()], dim=1)), truth


def vision_loss(vision: Any, readout: nn.Linear, rng: random.Random) -> torch.Tensor:
    """One step: the mean cross-entropy over all attributes of a batch of pictures."""
    said, truth = _said(vision, readout, rng)
    return torch.stack([F.cross_entropy(logits, truth[:, i]) for i, logits in enumerate(said)]).mean()


@torch.no_grad()
def recognition(vision: Any, readout: nn.Linear) -> dict[str, float]:
    """Measure how often each attribute of fresh pictures is named right."""
    said, truth = _said(vision, readout, random.Random("recognition"))
    return {name: float(said[i].argmax(1).eq(truth[:, i]).float().mean()) for i, name in enumerate(HEADS)}


def cross_attentions(unet: UNet2DConditionModel) -> list[str]:
    """Return the names of the cross-attention layers in diffusers' order; an IP-Adapter numbers them 1, 3, 5 …"""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [name for name in names if name.endswith("attn2")]


def attach(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """Give a UNet an untrained IP-Adapter that attends to pictures as it attends to words; return what is to be learnt."""
    project = nn.Linear(EMBEDDING, TOKENS * WIDTH)
    state: dict[str, dict[str, torch.Tensor]] = {
        "image_proj": {
            "proj.weight": project.weight.detach(),
            "proj.bias": project.bias.detach(),
            "norm.weight": torch.ones(WIDTH),
            "norm.bias": torch.zeros(WIDTH),
        },
        "ip_adapter": {},
    }
    for number, name in enumerate(cross_attentions(unet)):
        layer = unet.get_submodule(name)
        for kind in ("to_k", "to_v"):
            state["ip_adapter"][f"{2 * number + 1}.{kind}_ip.weight"] = getattr(layer, kind).weight.detach().clone()
    pipe = StableDiffusionPipeline(
        None, None, None, unet, DDPMScheduler(**NOISE), None, None, requires_safety_checker=False
    )
    pipe.load_ip_adapter([state], [""], [""], image_encoder_folder=None)
    unet.requires_grad_(False)
    learnt = [parameter for _, parameter in _weights(unet)]
    for parameter in learnt:
        parameter.requires_grad_(True)
    return learnt


def _weights(unet: UNet2DConditionModel) -> list[tuple[str, nn.Parameter]]:
    """Return the weights of the UNet's IP-Adapter by their names in a file."""
    layer = unet.encoder_hid_proj.image_projection_layers[0]
    found = [
        ("image_proj.proj.weight", layer.image_embeds.weight),
        ("image_proj.proj.bias", layer.image_embeds.bias),
        ("image_proj.norm.weight", layer.norm.weight),
        ("image_proj.norm.bias", layer.norm.bias),
    ]
    for number, name in enumerate(cross_attentions(unet)):
        processor = unet.get_submodule(name).processor
        for kind in ("to_k_ip", "to_v_ip"):
            found.append((f"ip_adapter.{2 * number + 1}.{kind}.weight", getattr(processor, kind)[0].weight))
    return found


class PictureLoss:
    """The loss of one step: the denoiser's own, looking at the very pictures that are noised.

    Args:
        vision: the frozen image encoder.
        denoiser: whose UNet has the adapter.
    """

    def __init__(self, vision: Any, denoiser: DenoiserLoss) -> None:
        self.vision, self.denoiser = vision, denoiser

    def __call__(self, fraction: float, rng: random.Random) -> torch.Tensor:
        indices = [rng.randrange(len(self.denoiser.latents)) for _ in range(self.denoiser.batch)]
        states = self.denoiser.described(indices, rng, EMPTY_PROMPTS)
        drawn = np.stack([picture_of(i) for i in indices])
        with torch.no_grad():
            seen = self.vision(pixels(drawn, states.device)).image_embeds  # (B, EMBEDDING)
        kept = torch.tensor([float(rng.random() >= NO_PICTURES) for _ in indices], device=states.device)
        looked = {"added_cond_kwargs": {"image_embeds": [(seen * kept[:, None])[:, None]]}}
        return self.denoiser.loss(indices, states, rng, lambda noisy, t: looked)


def save(unet: UNet2DConditionModel, vision: Any, folder: Path) -> None:
    """Write the adapter as IP-Adapters are kept: a file of weights, and its image encoder in a folder; float16."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.detach().half().contiguous() for name, weight in _weights(unet)},
        folder / "ip_adapter.safetensors",
    )
    vision.half().save_pretrained(folder / "image_encoder")
