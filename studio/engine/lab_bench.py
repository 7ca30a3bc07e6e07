"""What a panel of the Lab works with: the model at hand, its denoiser with a prompt, pictures to keep, progress, a way to stop."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from studio.engine.canvas import fit, flatten
from studio.engine.lab_paths import Path
from studio.engine.latents import decode_latents, denoiser, encode_picture, noise_shape
from studio.engine.passes import Steps, run_pass, to_pixels
from studio.engine.pipelines import rebuilt
from studio.engine.places import place_of
from studio.engine.previews import ColourMaps, encode_png
from studio.engine.prompts import encode_prompts
from studio.engine.steering import Steered
from studio.engine.tasks import LoadImage
from studio.errors import InvalidRequest, ModelError
from studio.families import FAMILIES
from studio.records import Job
from studio.spec import GenerationRequest
from studio.tools import LabCall, ToolWatch

GUIDED = 2.0  # any guidance that makes a pipeline prepare both halves


class Stopped(Exception):
    """Raised where a person stopped the panel; it says what it has found so far."""


class Asked(Exception):
    """Carries what a pipeline calls its denoiser with."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


class Predictor:
    """A denoiser with a prompt: noisy latents in, what it says of them out, with any guidance, also none.

    The pipeline itself prepares what the denoiser is told beside the latents; its first call is listened to, and not made.

    Args:
        pipe: set up for the request.
        request: resolved.
        job: for its model.
    """

    def __init__(self, pipe: Any, request: GenerationRequest, job: Job) -> None:
        family = FAMILIES[job.model.family]
        wanted = request.model_copy(update={family.guidance: max(getattr(request, family.guidance) or 1, GUIDED)})
        prompts = encode_prompts(pipe, wanted, job.model)
        if prompts.later:
            raise InvalidRequest("prompt", "prompt changes on the way ([a:b:0.5]); the Lab needs one that stays")
        self._network = denoiser(pipe)
        signature = inspect.signature(type(self._network).forward)

        def listen(_: Any, *given: Any, **named: Any) -> dict[str, Any]:
            raise Asked(dict(signature.bind(self._network, *given, **named).arguments))

        component = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        heard = rebuilt(pipe, **{component: Steered(self._network, 1, listen)})
        heard.set_progress_bar_config(disable=True)
        quiet = Steps(lambda *_: None, None, lambda: None, lambda _: None, lambda _: None)
        size = {"width": request.width, "height": request.height}
        try:
            run_pass(heard, family, wanted, prompts, [torch.Generator().manual_seed(0)], quiet, **size)
        except Asked as asked:
            arguments = asked.arguments
        arguments.pop("self", None)
        more = arguments.pop("kwargs", {})
        self._input = next(iter(arguments))
        sample = arguments.pop(self._input)
        when = torch.as_tensor(arguments.pop("timestep"))
        if not isinstance(sample, torch.Tensor) or sample.ndim != 4:
            raise ModelError(f"the Lab cannot ask {job.model.title}: its denoiser does not read plain latents")
        self._told = arguments | more
        self._rows = len(sample)
        self._scale = float(when.flatten()[0]) / float(heard.scheduler.timesteps[0])
        self._each, self._dtype = when.ndim > 0, sample.dtype
        self._exact = when.dtype if when.is_floating_point() else torch.float32  # bfloat16 has no 999
        self.channels = sample.shape[1]

    def mixed(self, other: "Predictor", mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> "Predictor":
        """Return one that is told, row by row, what `mix` makes of what two are told.

        Raises:
            InvalidRequest: if the prompts are not of one length for the model.
        """

        def between(ours: Any, theirs: Any) -> Any:
            if isinstance(ours, dict):
                return {name: between(one, theirs[name]) for name, one in ours.items()}
            if not isinstance(ours, torch.Tensor) or not ours.is_floating_point() or not ours.ndim:
                return ours
            if ours.shape != theirs.shape:
                raise InvalidRequest(
                    "other_prompt", "other_prompt has more or fewer chunks than prompt; shorten the longer"
                )
            return torch.stack([mix(*rows) for rows in zip(ours, theirs, strict=True)])

        made = copy.copy(self)
        made._told = between(self._told, other._told)
        return made

    @property
    def guides(self) -> bool:
        """Whether the model can be asked without the prompt, too."""
        return self._rows == 2

    def said(self, x: torch.Tensor, timestep: Any, scale: float, rescale: float = 0.0) -> torch.Tensor:
        """Ask the denoiser, with guidance u + scale (c - u) (Ho and Salimans 2022, arXiv:2207.12598, in the form with w = scale).

        Args:
            x: (B, C, h, w), as the denoiser wants it.
            timestep: of the model's own noise path.
            scale: 0 is without the prompt, 1 with it alone.
            rescale: takes back the contrast that guidance adds (Lin et al. 2023, arXiv:2305.08891, equation 16).

        Raises:
            ModelError: if the model has no half without the prompt.
        """
        if scale == 1:
            return self._ask(x, timestep, [self._rows - 1])
        if not self.guides:
            raise ModelError("this model is not asked twice a step, so that its guidance cannot be varied; use 1")
        if scale == 0:
            return self._ask(x, timestep, [0])
        without, given = self._ask(x, timestep, [0, 1]).chunk(2)
        made = without + scale * (given - without)
        return rescale_noise_cfg(made, given, guidance_rescale=rescale) if rescale else made

    def _ask(self, x: torch.Tensor, timestep: Any, halves: list[int]) -> torch.Tensor:
        number, rows = len(x), len(x) * len(halves)
        when = torch.as_tensor(float(timestep) * self._scale, device=place_of(self._network), dtype=self._exact)
        told = {name: self._chosen(value, halves, number) for name, value in self._told.items()}
        given = {self._input: torch.cat([x] * len(halves)).to(place_of(self._network), self._dtype)}
        said = self._network(**given, timestep=when.expand(rows) if self._each else when, **told)[0]
        return said[:, : self.channels].float()  # some say a variance too

    def _chosen(self, value: Any, halves: list[int], number: int) -> Any:
        """Return the rows of what the denoiser is told, for so many pictures."""
        if isinstance(value, dict):
            return {name: self._chosen(one, halves, number) for name, one in value.items()}
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == self._rows:
            return value[halves].repeat_interleave(number, dim=0)
        return value


class Bench:
    """A panel's surroundings.

    Args:
        call: what is asked for.
        opened: opens the pipeline for a job.
        load_image: opens pictures by reference and field.
        open_vae: returns a job's autoencoder; nothing else is loaded.
        watch: hears of the steps and may end them.
        find_scorer: returns what holds pictures against prompts, or None.
    """

    def __init__(
        self,
        call: LabCall,
        opened: Callable[["Bench", Job], AbstractContextManager[Any]],
        load_image: LoadImage,
        watch: ToolWatch,
        find_scorer: Callable[[bool], Any],
        open_vae: Callable[[Job], Any],
    ) -> None:
        self.job = call.job.of_group(0)
        self.request = self.job.request
        self.notes: list[str] = []
        self.pictures: dict[str, bytes] = {}
        self.load_image = load_image
        self._opened, self._watch, self._stack = opened, watch, ExitStack()
        self._find_scorer, self._shapes, self._open_vae = find_scorer, call.shapes, open_vae
        self._colours, self._done, self._total = ColourMaps(), 0, 1

    @contextmanager
    def open(self) -> Iterator["Bench"]:
        """Put the model back as it was at the end."""
        with self._stack:
            yield self

    @cached_property
    def any_pipe(self) -> Any:
        """The model's pipeline, loaded when it is first asked for."""
        return self._stack.enter_context(self._opened(self, self.job))

    @property
    def pipe(self) -> Any:
        """The pipeline of a model that draws from text."""
        if self.job.model.kind or self.job.model.noise not in ("diffusion", "flow"):
            raise ModelError(
                f"the Lab works on models that draw from text by diffusion or flow; {self.job.model.title} does not"
            )
        return self.any_pipe

    @cached_property
    def vae(self) -> Any:
        """The model's autoencoder alone, or the one that stands in for it."""
        return self._open_vae(self.job)

    @cached_property
    def predictor(self) -> Predictor:
        """The model's denoiser with the prompt."""
        return Predictor(self.pipe, self.request, self.job)

    @cached_property
    def path(self) -> Path:
        """The model's own way to noise."""
        return Path(self.pipe.scheduler)

    @cached_property
    def scorer(self) -> Any:
        """What holds pictures against prompts, or None."""
        return self._find_scorer(self._shapes)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that the model draws, in pixels."""
        assert self.request.width is not None
        assert self.request.height is not None
        return self.request.width, self.request.height

    def notice(self, sentence: str) -> None:
        """Say something that a person should know, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def plan(self, steps: int) -> None:
        """Say how many more steps there are."""
        self._done, self._total = 0, max(1, steps)

    def step(self, number: int = 1) -> None:
        """Tell that steps are done.

        Raises:
            Stopped: if a person wants it to end.
        """
        self._done = min(self._done + number, self._total)
        self._watch.told(self._done, self._total)
        if self._watch.stopped():
            raise Stopped

    def collect(self, made: Iterable[Any], wanted: int) -> list[Any]:
        """Return what is made, until a person stops it; a notice says then how much of `wanted` there is.

        Raises:
            Stopped: if there is nothing yet.
        """
        found = []
        try:
            for one in made:
                found.append(one)
        except Stopped:
            if not found:
                raise
            self.notice(f"Stopped: {len(found)} of {wanted} were made.")
        return found

    def noise(self, *seeds: int) -> torch.Tensor:
        """Draw the noise that each seed's picture begins with, (B, C, h, w), on the CPU as pipelines do."""
        shape = noise_shape(self.pipe, *self.size)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(drawn).to(place_of(denoiser(self.pipe)))

    def given(self, reference: str, field: str = "image") -> np.ndarray:
        """Open a picture, (H, W, 3) uint8, cropped to the size that the model draws; a notice says so if it had another."""
        picture, (width, height) = flatten(self.load_image(reference, field)), self.size
        rows, columns = picture.shape[:2]
        if (columns, rows) != (width, height):
            self.notice(f"The picture has {columns} x {rows} pixels; it was brought to {width} x {height} and cropped.")
        return fit(picture, width, height, "crop")

    def encode(self, picture: np.ndarray) -> torch.Tensor:
        """Return a picture's latents as the denoiser sees them, (1, C, h, w)."""
        return encode_picture(self.pipe, picture, self.notice).float()

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Return latents (B, C, h, w) as pictures (B, H, W, 3) uint8."""
        pipe = self.any_pipe
        rows = [decode_latents(pipe, one[None].to(pipe.vae.device, pipe.vae.dtype), self.notice) for one in latents]
        return to_pixels(torch.cat(rows))

    def scores(self, pictures: np.ndarray) -> list[float]:
        """Return how well each picture (B, H, W, 3) shows the prompt, 0 to 1; [] if nothing here can tell."""
        return self._scores(pictures, lambda seen: self.scorer.prompt(seen, self.request.prompt))

    def chances(self, pictures: np.ndarray) -> list[float]:
        """Return how well each picture shows prompts of the same form with other words; [] if nothing here can tell."""
        return self._scores(pictures, lambda seen: self.scorer.chance(seen, self.request.prompt))

    def _scores(self, pictures: np.ndarray, score: Callable[[Any], float | None]) -> list[float]:
        if self.scorer is None:
            return []
        return [found for seen in self.scorer.read(list(pictures)) if (found := score(seen)) is not None]

    def keep(self, name: str, picture: np.ndarray) -> str:
        """Keep a picture (H, W, 3) uint8 for the answer; return its name."""
        self.pictures[name] = encode_png(picture)
        return name
