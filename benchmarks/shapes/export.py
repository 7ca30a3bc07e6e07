"""Write the embedded model as a diffusers folder, with what Studio wants to know about it in `studio.yaml`."""

import json
import random
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.shapes.autoencoder import pictures
from benchmarks.shapes.denoiser import NOISE
from benchmarks.shapes.world import vocabulary

DEFAULTS = {"width": 128, "height": 128, "num_inference_steps": 16, "guidance_scale": 2.0, "scheduler": "DPM++ 2M"}


@torch.no_grad()
def latent_rgb(vae: AutoencoderKL, number: int = 96) -> list[list[float]]:
    """Fit the linear map from latents to colour that live previews use, (5, 3): four channels and a constant, colours in [-1, 1]."""
    x = pictures(random.Random("preview"), number, doodles=0.2)
    z = vae.encode(x).latent_dist.mean.permute(0, 2, 3, 1).reshape(-1, 4)
    colours = torch.nn.functional.avg_pool2d(x, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    solved = torch.linalg.lstsq(torch.cat([z, torch.ones(len(z), 1)], dim=1), colours).solution
    return [[round(float(value), 5) for value in row] for row in solved]


def export(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, unet: UNet2DConditionModel, out: Path
) -> None:
    """Save all parts to `out`, float16, no file above 9 MB, and `studio.yaml` beside them."""
    factors = latent_rgb(vae)
    scheduler = DPMSolverMultistepScheduler(
        **NOISE, timestep_spacing="trailing", steps_offset=1, final_sigmas_type="zero"
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(out, max_shard_size="9MB")
    for path in out.glob("*/config.json"):  # diffusers notes the folder that a part was loaded from
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    facts = {
        "title": "Shapes (demo model)",
        "family": "sd1",
        "defaults": DEFAULTS,
        "latent_rgb": factors,
        "words": vocabulary(),
    }
    (out / "studio.yaml").write_text(yaml.safe_dump(facts, sort_keys=False, width=120, default_flow_style=None))
