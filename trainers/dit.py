"""A small DiT of `unconditional`: a transformer learns from scratch to draw classes (Peebles and Xie 2022, arXiv:2212.09748).

It works in the latents of a model's autoencoder, which is saved with it: the result is a `DiTPipeline`.
"""

import re
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from studio.engine.dit import NO_CLASS
from studio.errors import InvalidRequest, listed, shown
from studio.settings import Settings
from trainers.data import Batch
from trainers.denoisers import Told
from trainers.losses import Process
from trainers.material import Material, Pictures
from trainers.method import Rate
from trainers.models import Parts, earlier_network
from trainers.preconditioning import ddpm_process, ddpm_schedule
from trainers.sheet import draw_grid
from trainers.unconditional_configs import CLASSES_MAX, UnconditionalConfig
from trainers.wordless import WordlessMethod


class DitMethod(WordlessMethod):
    """A transformer in float32; with bf16 it is cast for each computation only."""

    reads = "of classes"
    saves_vae = True
    reads_captions = True

    def __init__(self, config: UnconditionalConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        self._vae: Any = parts.pipe.vae
        parts.release(words=True, pictures=False, denoiser=True)
        torch.manual_seed(config.seed)
        # its answers are latents, which may lie beyond -1 and 1
        self.scheduler: Any = DDIMScheduler(**ddpm_schedule(config), clip_sample=False)
        new: Any = DiTTransformer2DModel(**shape_of(config, parts))
        begin_as_identity(new)
        self.network: Any = (
            earlier_network(Path(config.init_from), "transformer", new, self.scheduler) if config.init_from else new
        )
        self.network.to(parts.device.place)
        if config.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        self._process = ddpm_process(config, self.scheduler)
        self._places: dict[str, int] = {}
        self.train()

    @classmethod
    def check(cls, config: UnconditionalConfig, pictures: Pictures, settings: Settings) -> None:
        """Refuse pictures without a class.

        Raises:
            InvalidRequest: which, and why.
        """
        for example, caption in zip(pictures.examples, pictures.captions, strict=True):
            try:
                class_of(caption, config.classes)
            except ValueError as error:
                raise InvalidRequest("classes", f"{example.path.name} {error}") from None
        found = class_names(config, pictures.captions)
        if len(found) > CLASSES_MAX:
            raise InvalidRequest(
                "classes",
                f"{len(found)} different captions are more than {CLASSES_MAX} classes; name words of them in classes",
            )

    def train(self, mode: bool = True) -> "DitMethod":
        """Learn or judge; classes are dropped by the plan alone, not by each block of the network for itself."""
        super().train(mode)
        for part in self.network.modules():
            if isinstance(part, LabelEmbedding):
                part.eval()
        return self

    def rates(self) -> list[Rate]:
        return [Rate("transformer", list(self.network.parameters()), self.config.learning_rate)]

    def prepare(self, material: Material) -> None:
        self._places = {name: i for i, name in enumerate(class_names(self.config, material.pictures.captions))}

    def process(self, latents: torch.Tensor) -> Process:
        return self._process

    def told(self, batch: Batch) -> Told:
        """Return the place of each picture's class, (B,)."""
        places = [self._place(caption) if caption else NO_CLASS for caption in batch.captions]
        return {"class_labels": torch.tensor(places, device=self.parts.device.place)}

    def _place(self, caption: str) -> int:
        return self._places[class_of(caption, self.config.classes)]

    def predict(self, noisy: torch.Tensor, steps: torch.Tensor, told: Told, batch: Batch) -> torch.Tensor:
        """Ask the network, (B, C, h, w) each way."""
        return self.network(noisy, steps, told["class_labels"], return_dict=False)[0]

    def save(self, folder: Path, name: str, facts: dict[str, str]) -> Path:
        """Write a pipeline folder that `DiTPipeline.from_pretrained` loads, with the names of its classes."""
        pipe: Any = DiTPipeline(transformer=self.network, vae=self._vae, scheduler=self.scheduler)
        pipe.register_to_config(id2label={str(place): label for label, place in self._places.items()})
        return self.saved(pipe, folder / name, facts, guidance_scale=self.config.validation_guidance_scale)

    def draw(self, artifact: Path, picture: Path) -> bool:
        """Draw a grid with the saved pipeline: one class after the other."""
        labels = list(islice(cycle(self._places.values()), self.config.validation_pictures))
        told = {"class_labels": labels, "guidance_scale": self.config.validation_guidance_scale}
        return draw_grid(DiTPipeline, artifact, picture, self.config, self.parts.device.place, **told)

    def usage(self) -> str:
        return (
            f"Choose it in Generate; its prompt is one of its {len(self._places)} classes: {listed([*self._places])}."
        )

    def code(self, prompt: str) -> str:
        label = class_of(prompt, self.config.classes)
        return "\n".join(
            [
                "from diffusers import DiTPipeline",
                "",
                f"pipe = DiTPipeline.from_pretrained({self.config.output_name!r})",
                "print(pipe.labels)  # all classes",
                f"made = pipe(class_labels=pipe.get_label_ids([{label!r}]), num_inference_steps={self.config.num_inference_steps})",
                'made.images[0].save("picture.png")',
            ]
        )


def class_of(caption: str, classes: Sequence[str]) -> str:
    """Return the class that a caption says: the caption itself, or the one of some words that it has.

    Raises:
        ValueError: if it says none or several; the end of a sentence.
    """
    if not classes:
        if caption:
            return caption
        raise ValueError("has no caption; put .txt files beside the pictures, or use folders named 1_CLASS")
    found = [one for one in classes if re.search(rf"\b{re.escape(one)}(e?s)?\b", caption, re.IGNORECASE)]
    if len(found) == 1:
        return found[0]
    said = (
        f"says {' and '.join(found[:3])}" if found else f"({shown(caption)}) says none of {shown(', '.join(classes))}"
    )
    raise ValueError(f"{said}; each picture has one class")


def class_names(config: UnconditionalConfig, captions: Sequence[str]) -> list[str]:
    """Return all classes, in the order of their places."""
    return list(config.classes) if config.classes else sorted(set(captions))


def shape_of(config: UnconditionalConfig, parts: Parts) -> dict[str, Any]:
    """Return how the network is built.

    Raises:
        InvalidRequest: if it does not fit the latents, or the pipeline would not scale them.
    """
    side, cell = config.resolution[0], parts.cell
    if side % (cell * config.patch_size):
        raise InvalidRequest(
            "resolution",
            f"resolution={side} must be a multiple of {cell * config.patch_size}: {cell} pixels a latent of this vae, "
            f"{config.patch_size} latents a patch",
        )
    if getattr(parts.vae_config, "shift_factor", None):
        raise InvalidRequest(
            "vae", f"vae={config.vae!r} shifts its latents, which DiTPipeline does not; choose another"
        )
    return {
        "sample_size": side // cell,
        **dict.fromkeys(("in_channels", "out_channels"), parts.vae_config.latent_channels),
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "attention_head_dim": config.attention_head_dim,
        "patch_size": config.patch_size,
        "num_embeds_ada_norm": NO_CLASS,
    }


def begin_as_identity(network: Any) -> None:
    """Let every block begin as the identity and the network as zero: adaLN-Zero (section 3.2 of the paper; diffusers does not)."""
    layers = [block.norm1.linear for block in network.transformer_blocks]
    for layer in [*layers, network.proj_out_1, network.proj_out_2]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
