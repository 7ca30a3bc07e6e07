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
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from benchmarks.shapes.denoiser import NOISE, DenoiserLoss, picture_of, scene_of
from benchmarks.shapes.fit import processes, rank
from benchmarks.shapes.text import HEADS, WIDTH, labels
from benchmarks.shapes.world import plain_caption

SIDE = 64
EMBEDDING = 256
TOKENS = 4
BATCH = 64
HELD = 512  # pictures on which the encoder is measured
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


def small_pictures(number: int, work: Path) -> torch.Tensor:
    """Draw the denoiser's pictures once, this process its share, as small as they are seen; return all, (N, 3, 64, 64) uint8."""
    mine = work / f"small-{number}-{rank()}of{processes()}.safetensors"
    if not mine.exists():
        drawn = [_small(picture_of(i)) for i in range(rank(), number, processes())]
        save_file({"pictures": torch.stack(drawn)}, mine.with_suffix(".part"))
        mine.with_suffix(".part").replace(mine)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    pictures = torch.empty(number, 3, SIDE, SIDE, dtype=torch.uint8)
    for other in range(processes()):
        pictures[other :: processes()] = load_file(work / f"small-{number}-{other}of{processes()}.safetensors")[
            "pictures"
        ]
    return pictures


def _small(picture: np.ndarray) -> torch.Tensor:
    """Make a picture (H, W, 3) uint8 as small as CLIPImageProcessor does, (3, 64, 64) uint8."""
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    return (
        F.interpolate(image, size=(SIDE, SIDE), mode="bicubic", antialias=True)[0].round().clamp(0, 255).to(torch.uint8)
    )


def pixels(small: torch.Tensor) -> torch.Tensor:
    """Turn small pictures (N, 3, 64, 64) uint8 into what the encoder reads."""
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (small / 255 - mean) / deviation


class VisionLoss:
    """The loss of one step: the mean cross-entropy over all attributes that a picture shows.

    Args:
        vision: learns, and with it `readout`, a throw-away layer that names the attributes.
        pictures: of `small_pictures`; the last `HELD` of them are never learnt from.
    """

    def __init__(self, vision: Any, readout: nn.Linear, pictures: torch.Tensor, batch: int) -> None:
        self.vision, self.readout, self.pictures, self.batch = vision, readout, pictures, batch
        scenes = [scene_of(i) for i in range(len(pictures))]
        self.truth = torch.tensor([labels(scene, plain_caption(scene)) for scene in scenes])

    def __call__(self, fraction: float, rng: random.Random) -> torch.Tensor:
        chosen = [rng.randrange(max(1, len(self.pictures) - HELD)) for _ in range(self.batch)]
        truth = self.truth[chosen].to(self.vision.device)
        return torch.stack([F.cross_entropy(one, truth[:, i]) for i, one in enumerate(self.said(chosen))]).mean()

    def said(self, chosen: list[int]) -> list[torch.Tensor]:
        """Return what the encoder makes of each attribute of some pictures, (N, choices) each."""
        seen = self.vision(pixels(self.pictures[chosen]).to(self.vision.device)).image_embeds
        return list(self.readout(seen).split([len(choices) for choices in HEADS.values()], dim=1))

    @torch.no_grad()
    def recognition(self) -> dict[str, float]:
        """Measure how often each attribute of pictures never learnt from is named right."""
        chosen = list(range(max(0, len(self.pictures) - HELD), len(self.pictures)))
        said = self.said(chosen)
        return {
            name: round(float(said[i].argmax(1).cpu().eq(self.truth[chosen, i]).float().mean()), 3)
            for i, name in enumerate(HEADS)
        }


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
        pictures: of `small_pictures`.
        denoiser: whose UNet has the adapter.
    """

    def __init__(self, vision: Any, pictures: torch.Tensor, denoiser: DenoiserLoss) -> None:
        self.vision, self.pictures, self.denoiser = vision, pictures, denoiser

    def __call__(self, fraction: float, rng: random.Random) -> torch.Tensor:
        chosen = [rng.randrange(len(self.denoiser.latents)) for _ in range(self.denoiser.batch)]
        states = self.denoiser.described(chosen, rng, EMPTY_PROMPTS)
        with torch.no_grad():
            seen = self.vision(pixels(self.pictures[chosen]).to(states.device)).image_embeds  # (B, EMBEDDING)
        kept = torch.tensor([float(rng.random() >= NO_PICTURES) for _ in chosen], device=states.device)
        looked = {"added_cond_kwargs": {"image_embeds": [(seen * kept[:, None])[:, None]]}}
        return self.denoiser.loss(chosen, states, rng, lambda noisy, t: looked)


def save(unet: UNet2DConditionModel, vision: Any, folder: Path) -> None:
    """Write the adapter as IP-Adapters are kept: a file of weights, and its image encoder in a folder; float16."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.detach().half().contiguous() for name, weight in _weights(unet)},
        folder / "ip_adapter.safetensors",
    )
    vision.half().save_pretrained(folder / "image_encoder")
