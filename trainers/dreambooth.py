"""`dreambooth`: a rare word learns to mean one subject (Ruiz et al. 2022, arXiv:2208.12242), in a LoRA or in the model's own weights.

Prior preservation (section 3.2) keeps what the class looks like: on pictures that the model drew of it before, or on what the model
said of the subject's own pictures under the class prompt before it learnt.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from studio.store.blobs import decode, read_file
from trainers.concepts import Concept
from trainers.configs import DreamBoothConfig
from trainers.data import Batch
from trainers.full import FullMethod
from trainers.lora import LoraMethod
from trainers.losses import squared_error
from trainers.material import Material, Pictures
from trainers.method import Method

Draw = Callable[[dict[str, Any], Path], None]  # a request's values, and the file that is made


def dreambooth(config: DreamBoothConfig) -> type[Method]:
    """Return the method that learns what a config says."""
    return DreamBoothLora if config.train_weights == "lora" else DreamBoothFull


class Prior(Method):
    """What prior preservation adds to a method's loss."""

    config: DreamBoothConfig

    @classmethod
    def beside(cls, config: DreamBoothConfig, folder: Path, root: Path, draw: Draw) -> Pictures | None:
        """Return the class images; what is missing is drawn."""
        if not config.with_prior_preservation or config.prior_source == "model":
            return None
        name = config.class_data_dir or str(folder)
        if cls.draws_beside(config):
            draw_class(config, folder, draw)
        return Pictures([Concept(dataset=name, instance_prompt=config.class_prompt)], root)

    @classmethod
    def draws_beside(cls, config: DreamBoothConfig) -> bool:
        return config.with_prior_preservation and config.prior_source == "images" and not config.class_data_dir

    @classmethod
    def captions(cls, config: DreamBoothConfig) -> tuple[str, ...]:
        return (config.class_prompt,) if config.with_prior_preservation and config.prior_source == "model" else ()

    def prepare(self, material: Material) -> None:
        super().prepare(material)
        self._class: dict[str, torch.Tensor] = {}
        if self.captions(self.config):
            told = material.told_of(self.config.class_prompt)
            self._class = {name: one.to(self.parts.device.place, self.dtype) for name, one in told.items()}
            self._keep_first()

    def _keep_first(self) -> None:
        """Keep the denoiser as it is before it learns, if it cannot be had back."""

    def _first(
        self, noisy: torch.Tensor, steps: torch.Tensor, told: dict[str, torch.Tensor], batch: Batch
    ) -> torch.Tensor:
        """Return what the denoiser said before it learnt."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> torch.Tensor:
        own = super().loss(batch)
        if not self.config.with_prior_preservation or not self.training:  # the held-out loss is of the subject alone
            return own
        if batch.beside is not None:
            return own + self.config.prior_loss_weight * super().loss(batch.beside)
        noisy, _, times, process = self.noised(batch)
        steps, number = process.timesteps(times), len(batch.draws)
        before = {name: one.expand(number, *one.shape[1:]) for name, one in self._class.items()}
        now = self.parts.encode([self.config.class_prompt] * number) if self.learns_words else before
        with torch.no_grad():
            wanted = self._first(noisy, steps, before, batch)
        made = self.predict(noisy, steps, {name: one.to(self.dtype) for name, one in now.items()}, batch)
        return own + self.config.prior_loss_weight * squared_error(made, wanted)


class DreamBoothLora(Prior, LoraMethod):
    """A LoRA; switched off, it leaves the model as it was."""

    def _first(
        self, noisy: torch.Tensor, steps: torch.Tensor, told: dict[str, torch.Tensor], batch: Batch
    ) -> torch.Tensor:
        with switched_off(self.parts.denoiser.network):
            return self.predict(noisy, steps, told, batch)


class DreamBoothFull(Prior, FullMethod):
    """The model's own weights; a copy remembers how they were."""

    def _keep_first(self) -> None:
        self._copy = [
            copy.deepcopy(self.parts.denoiser.network).requires_grad_(False).eval()
        ]  # in a list: it is no part of us

    def _first(
        self, noisy: torch.Tensor, steps: torch.Tensor, told: dict[str, torch.Tensor], batch: Batch
    ) -> torch.Tensor:
        return self.parts.denoiser.predict(self._copy[0], noisy, steps, told, batch.frames)


@contextmanager
def switched_off(network: torch.nn.Module) -> Iterator[None]:
    """Let a network's own layers speak without their adapters, and leave what learns as it is."""
    layers = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in wanted:
            parameter.requires_grad_(True)


def draw_class(config: DreamBoothConfig, folder: Path, draw: Draw) -> None:
    """Draw the class images that are missing, one a seed; of two that are alike one is drawn anew."""
    seen: set[str] = set()
    seed = 0
    while len(seen) < config.num_class_images and seed < 2 * config.num_class_images + 10:
        path = folder / f"{seed:06d}.png"
        if not path.is_file():
            side = config.resolution[0]
            draw(
                {"prompt": config.class_prompt, "model": config.model, "seed": seed, "width": side, "height": side},
                path,
            )
        content = hashlib.sha256(decode(read_file(path)).tobytes()).hexdigest()
        if content in seen:
            path.unlink()
        seen.add(content)
        seed += 1
