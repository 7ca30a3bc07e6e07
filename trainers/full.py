"""`full`: every weight of the denoiser learns, and of the text encoders if wanted. The result is a model folder of its own."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from studio.spec import GenerationRequest
from trainers.configs import FullConfig
from trainers.lora import checkpoint_gradients, clip_encoders, learning_rates
from trainers.method import Method, Rate
from trainers.models import Parts

SHARD = "9MB"  # of models as small as the embedded one, whose files must stay below 10 MB
SMALL = 100_000_000  # parameters


class FullMethod(Method):
    """The model's own weights, in float32; with bf16 they are cast for each computation only."""

    half = False

    def __init__(self, config: FullConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        self.learning: dict[str, Any] = {parts.denoiser.prefix: parts.denoiser.network}
        if config.train_text_encoder:
            self.learning |= clip_encoders(parts)
        for network in self.learning.values():
            network.requires_grad_(True).train()
            if config.gradient_checkpointing:
                checkpoint_gradients(network)
        self.networks = torch.nn.ModuleDict(self.learning)
        self._rates = learning_rates(config, list(self.learning))

    @property
    def learns_words(self) -> bool:
        return self.config.train_text_encoder

    @property
    def averaged(self) -> float | None:
        return self.config.ema_decay if self.config.use_ema else None

    def rates(self) -> list[Rate]:
        return [Rate(name, list(network.parameters()), self._rates[name]) for name, network in self.learning.items()]

    def save(self, folder: Path, name: str, facts: dict[str, str]) -> Path:
        """Write a whole model folder: what learnt is saved, the rest is the base model's own files."""
        base, made = Path(self.parts.reference.path), folder / name
        made.mkdir()
        for source in sorted(base.rglob("*")):
            inner = source.relative_to(base)
            if source.is_file() and inner.parts[0] not in self.learning and source.name != "README.md":
                copy_cheaply(source, made / inner)
        for part, network in self.learning.items():
            small = sum(p.numel() for p in network.parameters()) < SMALL
            network.save_pretrained(
                made / part, safe_serialization=True, **({"max_shard_size": SHARD} if small else {})
            )
        (made / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return made

    def code(self, prompt: str) -> str:
        name = type(self.parts.pipe).__name__
        load = f"pipe = {name}.from_pretrained({self.config.output_name!r}, torch_dtype=dtype).to(device)"
        draw = f'pipe({prompt!r}).images[0].save("picture.png")'
        return "\n".join(["import torch", f"from diffusers import {name}", "", *self.device_code(), load, draw])

    def request_of(self, artifact: Path, request: GenerationRequest) -> GenerationRequest:
        return request.model_copy(update={"model": artifact.name})


def copy_cheaply(source: Path, target: Path) -> None:
    """Give a file another name on the same disk, or copy it: what a model is made of is replaced, never written into."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
