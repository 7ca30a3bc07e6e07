"""Make the embedded model: `python -m benchmarks.shapes.train --work DIR`.

Stages, in order: `vae`, `text`, `unet`, `decoder`, `export`; `controlnet`, `t2i`, `vision` and `ip` when `--stages` asks for
them. Each goes on where it was killed and is skipped once its folder exists in DIR. `--init presets/models/shapes` starts from the
shipped weights instead of from nothing (the tokenizer and the text encoder are then kept, and so is the latent space: only `unet`
and `decoder` learn; `--rate 0.5` halves the learning rates for it). `--minutes unet=300 decoder=30` gives stages another budget.
On a GPU add `--scale 8`. Several CPU processes:
`python -m torch.distributed.run --nproc-per-node 2 -m benchmarks.shapes.train …`.
"""

import argparse
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from benchmarks.shapes import autoencoder, control, denoiser, picture_prompt, text
from benchmarks.shapes.export import export
from benchmarks.shapes.fit import Budget, fit, rank

logger = logging.getLogger("shapes")

BUDGETS = {
    "vae": Budget(minutes=45, learning_rate=2e-3, muon_rate=0.02, ema_decay=0.998),
    "text": Budget(minutes=2.5, learning_rate=2e-3, ema_decay=0.98),
    "unet": Budget(minutes=65, learning_rate=1.2e-3, muon_rate=0.02),
    "controlnet": Budget(minutes=60, learning_rate=8e-4, muon_rate=0.01),
    "t2i": Budget(minutes=40, learning_rate=1e-3, muon_rate=0.02),
    "vision": Budget(minutes=10, learning_rate=1e-3, muon_rate=0.02, ema_decay=0.99),
    "ip": Budget(minutes=40, learning_rate=1e-3),
    "decoder": Budget(minutes=10, learning_rate=1e-3, muon_rate=0.008, ema_decay=0.998),
}
PICTURES = 40_000


class Recipe:
    """The stages over one work folder, as the flags of `parse` say."""

    def __init__(self, flags: argparse.Namespace, budgets: dict[str, Budget]) -> None:
        self.work, self.init, self.budgets = flags.work, flags.init, budgets
        self.scale, self.pictures = flags.scale, flags.pictures
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.work.mkdir(parents=True, exist_ok=True)

    def run(self, stage: str) -> None:
        """Run one stage of `BUDGETS`, unless its result is there."""
        done = self.work / stage
        if done.exists() or (self.init and stage in ("vae", "text")):
            return
        getattr(self, stage)(done)
        if dist.is_initialized():
            dist.barrier()

    def load(self, model: type, stage: str, subfolder: str):
        """Load a component as its stage left it, or else from `init`."""
        made = self.work / stage
        if made.exists():
            found, options = made, {}
        else:
            found, options = self.init / subfolder, {} if model is CLIPTokenizer else {"dtype": torch.float32}
        loaded = model.from_pretrained(found, **options)
        return loaded if model is CLIPTokenizer else loaded.to(self.device)

    def save(self, model: Any, done: Path) -> None:
        """Save a stage's result; its folder appears only when it is whole, because it means that the stage is done."""
        part = done.with_name(f"{done.name}.part")
        model.save_pretrained(part)
        part.rename(done)

    def vae(self, done: Path) -> None:
        vae = autoencoder.new_autoencoder().to(self.device)
        fit(
            "fit-vae",
            vae.parameters(),
            lambda fraction, rng: autoencoder.autoencoder_loss(vae, fraction, rng, self.scale),
            self.budgets["vae"],
            self.work,
        )
        if rank() == 0:
            logger.info("vae: psnr %s dB", autoencoder.psnr(vae))
            autoencoder.fold_whitening(vae)
            logger.info("vae: psnr %s dB after whitening", autoencoder.psnr(vae))
            self.save(vae, done)

    def text(self, done: Path) -> None:
        tokenizer = text.build_tokenizer()
        encoder, readout = text.new_text_encoder(tokenizer).to(self.device), text.ReadOut().to(self.device)
        parameters = [*encoder.parameters(), *readout.parameters()]
        fit(
            "fit-text",
            parameters,
            lambda fraction, rng: text.text_loss(tokenizer, encoder, readout, rng),
            self.budgets["text"],
            self.work,
        )
        if rank() == 0:
            logger.info("text: attributes understood %s", text.understanding(tokenizer, encoder, readout))
            tokenizer.save_pretrained(self.work / "tokenizer")
            self.save(encoder, done)

    def denoiser_loss(self, unet: UNet2DConditionModel) -> denoiser.DenoiserLoss:
        """Build the loss of a denoiser over the cached latents of this recipe's pictures."""
        vae = self.load(AutoencoderKL, "vae", "vae").to(memory_format=torch.channels_last)
        tokenizer, encoder = (
            self.load(CLIPTokenizer, "tokenizer", "tokenizer"),
            self.load(CLIPTextModel, "text", "text_encoder"),
        )
        latents = denoiser.cache_latents(vae, self.pictures, self.work)
        return denoiser.DenoiserLoss(unet, encoder, tokenizer, latents, self.scale)

    def unet(self, done: Path) -> None:
        unet = denoiser.new_unet().to(self.device)
        if self.init:
            unet.load_state_dict(
                UNet2DConditionModel.from_pretrained(self.init / "unet", dtype=torch.float32).state_dict()
            )
        fit("fit-unet", unet.parameters(), self.denoiser_loss(unet), self.budgets["unet"], self.work)
        if rank() == 0:
            self.save(unet, done)

    def decoder(self, done: Path) -> None:
        vae = self.load(AutoencoderKL, "vae", "vae").to(memory_format=torch.channels_last)
        parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
        fit(
            "fit-decoder",
            parameters,
            lambda fraction, rng: autoencoder.decoder_loss(vae, rng, self.scale),
            self.budgets["decoder"],
            self.work,
        )
        if rank() == 0:
            logger.info("decoder: psnr %s dB", autoencoder.psnr(vae))
            self.save(vae, done)

    def controlnet(self, done: Path) -> None:
        unet = self.load(UNet2DConditionModel, "unet", "unet").to(memory_format=torch.channels_last)
        controlnet = control.new_controlnet(unet).to(self.device, memory_format=torch.channels_last)
        self.follow(controlnet, unet, "controlnet", done)

    def t2i(self, done: Path) -> None:
        unet = self.load(UNet2DConditionModel, "unet", "unet").to(memory_format=torch.channels_last)
        self.follow(control.new_t2i_adapter(unet).to(self.device), unet, "t2i", done)

    def follow(self, network: Any, unet: UNet2DConditionModel, stage: str, done: Path) -> None:
        """Let a network learn to steer the denoiser by edges."""
        loss = control.ControlLoss(network, self.denoiser_loss(unet))
        fit(f"fit-{stage}", network.parameters(), loss, self.budgets[stage], self.work)
        if rank() == 0:
            self.save(network, done)

    def vision(self, done: Path) -> None:
        vision, readout = picture_prompt.new_vision().to(self.device), picture_prompt.new_readout().to(self.device)
        pictures = picture_prompt.small_pictures(self.pictures, self.work)
        loss = picture_prompt.VisionLoss(vision, readout, pictures, picture_prompt.BATCH * self.scale)
        fit("fit-vision", [*vision.parameters(), *readout.parameters()], loss, self.budgets["vision"], self.work)
        if rank() == 0:
            logger.info("vision: attributes seen %s", loss.recognition())
            self.save(vision, done)

    def ip(self, done: Path) -> None:
        unet = self.load(UNet2DConditionModel, "unet", "unet").to(memory_format=torch.channels_last)
        vision = CLIPVisionModelWithProjection.from_pretrained(self.work / "vision").to(self.device)
        learnt = picture_prompt.attach(unet)
        pictures = picture_prompt.small_pictures(self.pictures, self.work)
        loss = picture_prompt.PictureLoss(vision, pictures, self.denoiser_loss(unet))
        fit("fit-ip", learnt, loss, self.budgets["ip"], self.work)
        if rank() == 0:
            part = done.with_name("ip.part")
            picture_prompt.save(unet, vision, part)
            part.rename(done)

    def export(self, out: Path) -> None:
        """Write the finished model in diffusers' format, float16."""
        vae = self.load(AutoencoderKL, "decoder" if (self.work / "decoder").exists() else "vae", "vae")
        tokenizer, encoder = (
            self.load(CLIPTokenizer, "tokenizer", "tokenizer"),
            self.load(CLIPTextModel, "text", "text_encoder"),
        )
        export(vae.cpu(), tokenizer, encoder.cpu(), self.load(UNet2DConditionModel, "unet", "unet").cpu(), out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is half done")
    parser.add_argument("--out", type=Path, default=Path("presets/models/shapes"), help="folder of the finished model")
    parser.add_argument("--init", type=Path, help="finished model to continue from")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures that the denoiser learns from")
    parser.add_argument("--scale", type=int, default=1, help="times as many pictures a step, for a GPU")
    parser.add_argument("--minutes", nargs="*", default=[], metavar="STAGE=MINUTES")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of all learning rates")
    parser.add_argument(
        "--stages", nargs="*", default=["vae", "text", "unet", "decoder", "export"], choices=[*BUDGETS, "export"]
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    minutes = {stage: float(value) for stage, value in (pair.split("=") for pair in args.minutes)}
    budgets = {stage: budget.scaled(minutes.get(stage, budget.minutes), args.rate) for stage, budget in BUDGETS.items()}
    recipe = Recipe(args, budgets)
    for stage in args.stages:
        if stage == "export":
            if rank() == 0:
                recipe.export(args.out)
        else:
            recipe.run(stage)


if __name__ == "__main__":
    main()
