"""What the six methods share: a module whose forward is the loss, so that one wrapper serves every number of processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from studio.engine.devices import Device
from studio.settings import Settings
from studio.spec import GenerationRequest
from trainers.conditions import Conditions
from trainers.configs import TrainingConfig
from trainers.data import Batch
from trainers.denoisers import Told
from trainers.losses import Process, squared_error
from trainers.material import Material, Pictures
from trainers.models import Parts
from trainers.recommendation import NAMES
from trainers.trigger import without_trigger


@dataclass(frozen=True)
class Rate:
    """Parameters that learn at one rate."""

    name: str
    parameters: list[torch.nn.Parameter]
    learning_rate: float
    weight_decay: float | None = None  # None is the run's


class Method(torch.nn.Module):
    """One method on one loaded model. Subclasses say what learns, its loss, and how it is saved.

    Attributes:
        half: whether the model can be loaded in bf16, because what learns is beside it.
        saves_vae: whether what is saved holds the model's autoencoder.
        reads_captions: whether captions are encoded at every step, because what learns is within the text encoders.
        learns_words: whether gradients go through the text encoders.
        averaged: how slowly an average of the weights follows them; None keeps none (EMA decay).
    """

    half: ClassVar[bool] = True
    saves_vae: ClassVar[bool] = False
    reads_captions: ClassVar[bool] = False

    def __init__(self, config: Any, parts: Parts) -> None:
        super().__init__()
        self.config, self.parts = config, parts
        self._processes: dict[tuple[int, ...], Process] = {}

    @property
    def learns_words(self) -> bool:
        return False

    @property
    def averaged(self) -> float | None:
        return None

    @classmethod
    def check(cls, config: TrainingConfig, pictures: Pictures, settings: Settings) -> None:
        """Refuse pictures that the method cannot learn from, before a model is loaded.

        Raises:
            InvalidRequest: one sentence.
        """

    @classmethod
    def conditions(cls, config: TrainingConfig, settings: Settings, device: Device) -> Conditions | None:
        """Return what the method follows beside captions; None if nothing."""
        return None

    def rates(self) -> list[Rate]:
        """Return what learns, and how fast; in an order that is always the same."""
        raise NotImplementedError

    def parameters_by_name(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield what learns under names that a checkpoint keeps."""
        for rate in self.rates():
            for number, parameter in enumerate(rate.parameters):
                yield f"{rate.name}.{number}", parameter

    @classmethod
    def beside(
        cls, config: Any, folder: Path, root: Path, draw: Callable[[dict[str, Any], Path], None]
    ) -> Pictures | None:
        """Return pictures that are shown beside the dataset's and judged on their own.

        Args:
            config: of the run.
            folder: for what is drawn; kept for later runs of the same model, prompt and size.
            root: of the datasets.
            draw: makes a picture, from a request's values, at a path.
        """
        return None

    @classmethod
    def draws_beside(cls, config: Any) -> bool:
        """Whether `beside` draws its pictures itself."""
        return False

    @classmethod
    def captions(cls, config: Any) -> tuple[str, ...]:
        """Return captions besides the dataset's that must be encoded ahead."""
        return ()

    def prepare(self, material: Material) -> None:
        """Look at what will be learnt from, before the first step."""

    def step_begins(self, step: int) -> None:
        """Hear that an update begins."""

    def step_ended(self) -> None:
        """Hear that the weights were changed."""

    def save(self, folder: Path, name: str, facts: dict[str, str]) -> Path:
        """Write the weights as they are, in the layout that diffusers loads; return the artifact's path.

        Args:
            folder: exists.
            name: of the artifact, without an ending.
            facts: for the file's metadata.
        """
        raise NotImplementedError

    def export(self, folder: Path, name: str, facts: dict[str, str]) -> None:
        """Write the result in other tools' layouts too, if the config says so."""

    def request_of(self, artifact: Path, request: GenerationRequest) -> GenerationRequest:
        """Change a request so that it draws with a saved artifact.

        An artifact that is a model is found by its folder's name: samples are drawn with the folder around it in the library.
        """
        raise NotImplementedError

    def embeddings_of(self, artifact: Path) -> list[Path]:
        """Return the textual inversions of a saved artifact, which `request_of` names in prompts by their files' names."""
        return []

    def sample_rows(self, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
        """Add to a new run's sample requests what the method's artifact needs beside a prompt; files go into the run's folder."""
        return rows

    def draw(self, artifact: Path, picture: Path) -> bool:
        """Draw samples with an artifact that no request can name, into one PNG; False if none are wanted, or requests draw them."""
        return False

    def usage(self) -> str:
        """Say in a sentence where the artifact can be used, for its card; "" where everybody knows."""
        return ""

    def code(self, prompt: str) -> str:
        """Return Python that draws a prompt with diffusers, for the result's folder; "" if diffusers cannot."""
        return ""

    def base_code(self, name: str, *options: str) -> list[str]:
        """Return lines of Python that load the base model into `pipe`, with a pipeline of diffusers."""
        path = Path(self.parts.reference.path)
        loader = "from_single_file" if path.is_file() else "from_pretrained"
        place = repr(path.name if path.is_file() else self.parts.reference.id)
        return [
            f"base = {place}  # the base model: its folder or file, or its name on the Hub",
            f"pipe = {name}.{loader}({', '.join(['base', *options, 'torch_dtype=dtype'])}).to(device)",
        ]

    def device_code(self) -> list[str]:
        """Return lines of Python that choose `device` and `dtype`; flow models overflow in float16."""
        half = "float16" if self.parts.denoiser.prefix == "unet" else "bfloat16"
        return [
            'device = "cuda" if torch.cuda.is_available() else "cpu"',
            f'dtype = torch.{half} if device == "cuda" else torch.float32',
        ]

    def plain_prompt(self, prompt: str) -> str:
        """Return a prompt without what calls the subject: what the untouched model would be asked for the class."""
        return without_trigger(prompt, self.config.trigger_word, getattr(self.config, "class_prompt", ""))

    @property
    def scored(self) -> frozenset[str]:
        """Which of the scores of `trainers.recommendation.NAMES` mean something for samples of this method."""
        return frozenset(NAMES)

    @property
    def asked(self) -> list[Any]:
        """The networks that every step asks, which `compile` makes faster."""
        return [self.parts.denoiser.network]

    def process(self, latents: torch.Tensor) -> Process:
        """Return the noise for latents of this size."""
        height, width = (side * self.parts.cell for side in latents.shape[-2:])
        size = width, height
        if size not in self._processes:
            self._processes[size] = self.parts.denoiser.process(self.config, size)
        return self._processes[size]

    def told(self, batch: Batch) -> Told:
        """Return what the text encoders say of a batch."""
        device = self.parts.device.place
        if batch.told:
            return {name: one.to(device, self.dtype) for name, one in batch.told.items()}
        if self.learns_words:
            return {name: one.to(self.dtype) for name, one in self.parts.encode(batch.captions).items()}
        with torch.no_grad():
            return {name: one.to(self.dtype) for name, one in self.parts.encode(batch.captions).items()}

    @property
    def dtype(self) -> torch.dtype:
        """The number format of what the denoiser is given."""
        return torch.bfloat16 if self.config.mixed_precision == "bf16" and self.half else torch.float32

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss of each picture, (B,)."""
        with torch.autocast(self.parts.device.place.type, torch.bfloat16, enabled=self.casts):
            return self.loss(batch)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of each picture, (B,)."""
        noisy, target, times, process = self.noised(batch)
        made = self.predict(noisy, process.timesteps(times), self.told(batch), batch)
        return self.judged(made, target, times, process, batch)

    @property
    def casts(self) -> bool:
        """Whether float32 weights compute in bf16."""
        return self.config.mixed_precision == "bf16" and not self.half

    def noised(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Process]:
        """Return noisy latents, what should be said of them, their times, and the process."""
        device = self.parts.device.place
        latents = self.clean(batch).to(self.dtype)
        noise, process = batch.noise.to(device, self.dtype), self.process(latents)
        times = process.times(batch.quantiles).to(device)
        return process.noisy(latents, noise, times), process.target(latents, noise, times), times, process

    def clean(self, batch: Batch) -> torch.Tensor:
        """Return what noise is added to."""
        return self.parts.denoiser.scaled(batch.latents.to(self.parts.device.place))

    def judged(
        self, made: torch.Tensor, target: torch.Tensor, times: torch.Tensor, process: Process, batch: Batch
    ) -> torch.Tensor:
        """Return the weighed squared error of each picture, (B,)."""
        mask = None if batch.mask is None else batch.mask.to(made.device)
        error, weights = squared_error(made, target, mask), process.weights(times)
        return error if weights is None else error * weights

    def predict(self, noisy: torch.Tensor, steps: torch.Tensor, told: Told, batch: Batch) -> torch.Tensor:
        """Ask the denoiser."""
        return self.parts.denoiser.predict(self.parts.denoiser.network, noisy, steps, told, batch.frames)
