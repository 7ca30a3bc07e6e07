"""Engine.generate: the one place where a pipeline is called."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from studio.engine.adapters import AdapterManager
from studio.engine.attention import attending
from studio.engine.canvas import fit, flatten, mask_of
from studio.engine.controls import Preprocessors
from studio.engine.cutout import cut_out
from studio.engine.devices import Device
from studio.engine.inversions import read_inversions
from studio.engine.language import Draw
from studio.engine.latents import denoiser
from studio.engine.memory import let_go, too_little
from studio.engine.parts import PartManager
from studio.engine.passes import (
    Steps,
    enlarged,
    mixed_noise,
    preview_event,
    refiner_steps,
    run_pass,
    second_stage,
    second_steps,
    to_pixels,
)
from studio.engine.pipelines import PipelineManager
from studio.engine.previews import ColourMaps, encode_png
from studio.engine.prompts import Prompts, encode_prompts
from studio.engine.tasks import LoadImage, Start, started
from studio.engine.units import Units
from studio.engine.upscale import enlarge
from studio.engine.vae_check import check_vae
from studio.errors import DeviceError
from studio.events import Event, Finished, ImageReady, Notice, Progress, Started, Stop
from studio.families import FAMILIES
from studio.few_steps import advice
from studio.memory import PlanSetting
from studio.records import ImageRecord, Job
from studio.spec import IMAGE2IMAGE, SIZE_MAX, TEXT2IMAGE
from studio.tools import NOBODY, CutoutCall, LabCall, PreprocessCall, ToolCall, ToolWatch
from studio.upscalers import LATENT, enlarged_size

if TYPE_CHECKING:
    from studio.engine.lab_bench import Bench

logger = logging.getLogger(__name__)

Commit = Callable[[bytes, ImageRecord], str]
Group = tuple[np.ndarray, tuple[str, ...]]  # pictures (B, H, W, 3) uint8, and what a person should know about them


class Interrupted(Exception):
    """Raised out of a pipeline's step callback; `stop` is `interrupt` or `skip`."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop)
        self.stop = stop


@dataclass
class Watch:
    """Who hears of a job's steps and may end it.

    Attributes:
        emit: hears of every step.
        should_stop: asked after every step; `skip` drops the group at hand, `interrupt` ends the job; both keep finished pictures.
        save_preview: stores a preview PNG and returns its path; None makes no previews. The pictures are the same either way.
    """

    emit: Callable[[Event], None]
    should_stop: Callable[[], Stop]
    save_preview: Callable[[bytes], str] | None = None
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, int] | None = None
    _told: set[str] = field(default_factory=set)

    def check(self) -> None:
        """Raise Interrupted if the job should stop."""
        if stop := self.should_stop():
            raise Interrupted(stop)

    def tell(self, job: Job, notes: tuple[str, ...]) -> None:
        """Emit what a person should know about a job's pictures, each sentence once."""
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                self.emit(Notice(job=job.id, message=note))

    def report(self, job: Job, image: int, step: int, steps: int) -> None:
        """Emit progress; the first step of a job is left out of the time estimate because it warms up."""
        request = job.request
        total = -(-request.num_images_per_prompt // request.batch_size) * steps
        done = image // request.batch_size * steps + step
        now = self.clock()
        self._first = self._first or (now, done)
        began, offset = self._first
        left = (now - began) / (done - offset) * (total - done) if done > offset else None
        self.emit(
            Progress(
                job=job.id, image=image, images=request.num_images_per_prompt, step=step, steps=steps, seconds_left=left
            )
        )


class Engine:
    """Makes pictures on one device, one job at a time.

    Args:
        device: from `open_device`.
        clock: wall time, for records.
        name_image: makes the id of a new picture from the time.
        annotators: folder of the preprocessors' weights.
        find_scorer: returns what holds pictures against prompts, told whether they are of the demo model's world; None if there is
            nothing.
        memory_plan: where models' parts lie; `automatic` is the fastest plan that fits.
    """

    def __init__(
        self,
        device: Device,
        clock: Callable[[], datetime],
        name_image: Callable[[datetime], str],
        annotators: Path = Path("data/models/annotators"),
        find_scorer: Callable[[bool], Any] = lambda shapes: None,
        memory_plan: PlanSetting = "automatic",
    ) -> None:
        self.device, self.pipelines, self.parts = device, PipelineManager(device, memory_plan), PartManager(device)
        self.adapters, self.preprocessors = AdapterManager(device), Preprocessors(annotators, device.place)
        self._clock, self._name_image, self._colours = clock, name_image, ColourMaps()
        self._find_scorer = find_scorer

    def unload(self) -> None:
        """Free all weights."""
        for owner in (self.pipelines, self.parts, self.preprocessors):
            owner.unload()

    def use_tool(
        self, tool: ToolCall, load_image: LoadImage, watch: ToolWatch = NOBODY
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Do a tool's work; return its numbers, and its pictures as PNG.

        Raises:
            StudioError: if it cannot be done.
        """
        if isinstance(tool, LabCall):
            return self._lab(tool, load_image, watch)
        picture = flatten(load_image(tool.image, "image"))
        if isinstance(tool, CutoutCall):
            mask = cut_out(picture, mask_of(load_image(tool.painted, "painted")) if tool.painted else None)
            return {"part": float((mask > 0).mean())}, {"mask": encode_png(np.repeat(mask[..., None], 3, 2))}
        try:
            with torch.inference_mode():
                if isinstance(tool, PreprocessCall):
                    seen = self._seen(tool, picture)
                    made = self.preprocessors.run(
                        seen, tool.preprocessor, resolution=tool.resolution, options=tool.options
                    )
                    return {}, {"map": encode_png(made)}
                own = self.pipelines.vae(tool.model)
                return check_vae(self.parts.get(tool.vae, own.config) if tool.vae else own, picture)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.device.title} has too little memory for this picture; use a smaller one"
            ) from error

    def _lab(self, call: LabCall, load_image: LoadImage, watch: ToolWatch) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Let a panel of the Lab work, with the job's VAE and LoRA."""
        from studio.engine.lab import run_lab  # its schedulers are loaded when somebody looks at them

        @contextmanager
        def opened(bench: "Bench", job: Job) -> Iterator[Any]:
            files = {part.id: part for part in job.parts if part.kind == "lora"}
            stack = [(spec, files[spec.name]) for spec in job.request.loras]
            with (
                self.pipelines.configured(job.request, job.model, [job.request.seed], vae=self._vae(job)) as pipe,
                self.adapters.applied(pipe, stack, bench.notice),
            ):
                yield pipe

        def open_vae(job: Job) -> Any:
            other, own = self._vae(job), self.pipelines.vae(job.model)
            return other(own) if other else own

        try:
            return run_lab(call, opened, load_image, watch, self._find_scorer, open_vae)
        except torch.OutOfMemoryError as error:
            let_go(error)
            raise DeviceError(f"{self.device.title} has too little memory for this; ask for less at once") from error

    def _seen(self, tool: PreprocessCall, picture: np.ndarray) -> np.ndarray:
        """Bring a picture (H, W, 3) to the size that a job would draw, or at least to one that a job could."""
        if tool.width and tool.height:
            return fit(picture, tool.width, tool.height, tool.resize_mode)
        rows, columns = picture.shape[:2]
        scale = min(1.0, SIZE_MAX / max(rows, columns))
        return fit(picture, max(1, round(columns * scale)), max(1, round(rows * scale)), "stretch")

    def generate(self, job: Job, load_image: LoadImage, commit: Commit, watch: Watch) -> None:
        """Make all pictures of a job, in groups of `batch_size`.

        Args:
            job: resolved: no default and no random seed is left open.
            load_image: opens the pictures that the request names, by reference and field.
            commit: stores a finished PNG and returns its path; called before the picture is announced.
            watch: hears of everything, ends with `Finished`.

        Raises:
            StudioError: if the job cannot be done; the pictures that were committed stay.
        """
        request = job.request
        watch.emit(Started(job=job.id))
        start = Start(request, load_image)
        units = Units(job, load_image, start, parts=self.parts, preprocessors=self.preprocessors)
        made, interrupted = 0, False
        for first in range(0, request.num_images_per_prompt, request.batch_size):
            seeds, now = request.seeds[first : first + request.batch_size], job.of_group(first)
            try:
                pictures, notes = self._group(now, (start, units), first, seeds, watch)
            except Interrupted as stopped:
                if stopped.stop == "skip":
                    continue
                interrupted = True
                break
            watch.tell(job, notes)
            for index, (seed, picture) in enumerate(zip(seeds, pictures, strict=True), first):
                record = self._record(now, seed, index, notes)
                path = commit(encode_png(picture), record)
                watch.emit(ImageReady(job=job.id, path=path, record=record))
                made += 1
        watch.emit(Finished(job=job.id, images=made, interrupted=interrupted))

    def _group(self, job: Job, given: tuple[Start, Units], first: int, seeds: list[int], watch: Watch) -> Group:
        """Make one group, whose first picture is number `first` of the job; see `Group`."""
        request, (start, _) = job.request, given
        watch.check()
        if start.unchanged is not None:
            return self._kept(job, start.unchanged, first, len(seeds), watch), ()
        notes: list[str] = []
        known = job.model.latent_rgb or FAMILIES[job.model.family].latent_rgb
        steps = Steps(
            lambda step, total: watch.report(job, first, step, total),
            preview_event(job.id, watch.save_preview, watch.emit) if watch.save_preview else None,
            watch.check,
            lambda pipe: known or self._colours.of(pipe),
            notes.append,
        )
        for last in (False, True):
            try:
                with torch.inference_mode():
                    made = self._passes(job, given, first, seeds, steps)
                break
            except torch.OutOfMemoryError as error:
                let_go(error)
                if last:
                    self.pipelines.collect()
                    told = too_little(self.device.title, request, len(seeds), quantised=job.model.quantised)
                    raise DeviceError(told) from error
            self.parts.unload()  # what earlier jobs left may be what takes the room
            self.pipelines.shrink(job.model, request.weights)
        return start.finish(to_pixels(made)), tuple(dict.fromkeys([*start.notes, *notes]))

    def _kept(self, job: Job, picture: np.ndarray, first: int, number: int, watch: Watch) -> np.ndarray:
        """Return a picture (H, W, 3) that no model changes `number` times, larger if that is asked for."""

        def told(step: int, steps: int) -> None:
            watch.report(job, first, step, steps)
            watch.check()

        if job.request.only_enlarges:
            size = enlarged_size(picture.shape[1], picture.shape[0], job.request.hires_scale)
            picture = self._enlarge(job, picture, size, told)
        return np.broadcast_to(picture, (number, *picture.shape))

    def _enlarge(
        self, job: Job, picture: np.ndarray, size: tuple[int, int], told: Callable[[int, int], None]
    ) -> np.ndarray:
        """Bring a picture (H, W, 3) to a size with the job's upscaler."""
        part = next((part for part in job.parts if part.kind == "upscaler"), None)
        try:
            return enlarge(picture, *size, self.parts.get(part) if part else None, told)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.device.title} has too little memory for {job.request.hires_upscaler}; choose a smaller upscaler"
            ) from error

    def _vae(self, job: Job) -> Callable[[Any], Any] | None:
        """Return what finds the autoencoder that stands in for a model's own; None if none does."""
        part = next((part for part in job.parts if part.kind == "vae"), None)
        return (lambda own: self.parts.get(part, own.config)) if part else None

    def _loras(self, pipe: Any, job: Job, steps: Steps) -> AbstractContextManager[None]:
        """Return what applies a job's LoRA to its model while its pictures are made."""
        files = {part.id: part for part in job.parts if part.kind == "lora"}
        for sentence in advice(job.request, job.model.noise):
            steps.notice(sentence)
        return self.adapters.applied(pipe, [(spec, files[spec.name]) for spec in job.request.loras], steps.notice)

    def _passes(self, job: Job, given: tuple[Start, Units], first: int, seeds: list[int], steps: Steps) -> torch.Tensor:
        """Run the first pass, and the second if a refiner or a hires fix is asked for; return pictures (B, 3, H, W) in [0, 1]."""
        request, (start, units), family, vae = job.request, given, FAMILIES[job.model.family], self._vae(job)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        inversions = read_inversions(job.parts)
        hires = request.hires_scale > 1
        again = request.hires_steps or request.num_inference_steps or 0
        with self.pipelines.configured(request, job.model, seeds, vae=vae) as pipe, self._loras(pipe, job, steps):
            if told := self.pipelines.plan_told(job.model, request.weights):
                steps.notice(told)
            draw = Draw(generators, request.prior_guidance_scale, steps.check)
            prompts = encode_prompts(pipe, request, job.model, inversions, draw)
            more = start.arguments(pipe, seeds, pictures=request.task in family.pictures)
            if request.task == TEXT2IMAGE and request.variation_strength:
                more["latents"] = mixed_noise(pipe, family, request, first, generators)
            if hires and request.hires_upscaler == LATENT:
                more["decoded"] = False
            later = second_steps(request, job.model.noise) / (request.num_inference_steps or 1) if hires else 0.0
            if job.model.refiner and family.cascade:
                later = (second_stage(request, job.model.refiner).num_inference_steps or 0) / (
                    request.num_inference_steps or 1
                )
                more["decoded"] = False
            elif job.model.refiner:
                later = refiner_steps(pipe, request)
                more |= {"decoded": False, "denoising_end": request.refiner_start}
            steps.begin(later)
            with (
                units.applied(pipe, request.canvas, len(seeds)) as steered,
                attending(denoiser(pipe), request.attention),
            ):
                made = run_pass(steered, family, request, prompts, generators, steps, **more)
        if job.model.refiner:
            return self._refined(job, made, (prompts, generators, seeds), steps)
        if not hires:
            return made
        with (
            self.pipelines.configured(request, job.model, seeds, vae=vae, task=IMAGE2IMAGE) as pipe,
            self._loras(pipe, job, steps),
        ):
            size = request.hires_size
            larger = partial(self._enlarge, job, size=size, told=lambda *_: steps.check())
            pictures = IMAGE2IMAGE in family.pictures
            image = enlarged(pipe, made, request, larger, steps.notice, pictures=pictures)
            steps.begin()
            wide: dict[str, int] = dict(zip(("width", "height"), request.hires_size, strict=True))
            more = started(pipe, image, wide, request.hires_strength) | {"num_inference_steps": again}
            with (
                units.applied(pipe, request.hires_size, len(seeds)) as steered,
                attending(denoiser(pipe), request.attention),
            ):
                return run_pass(steered, family, request, prompts, generators, steps, **more)

    def _refined(
        self, job: Job, made: torch.Tensor, told: tuple[Prompts, list[torch.Generator], list[int]], steps: Steps
    ) -> torch.Tensor:
        """Let the request's second model go on from latents (B, C, h, w), as a refiner or as a cascade's next stage.

        Args:
            job: with a refiner.
            made: by the first model.
            told: its prompts, its generators and the group's seeds.
            steps: hears of each.
        """
        request, refiner, family, vae = job.request, job.model.refiner, FAMILIES[job.model.family], self._vae(job)
        assert refiner is not None
        prompts, generators, seeds = told
        more: dict[str, Any] = {"image": made}
        if family.cascade:
            request = second_stage(request, refiner, guided=bool(prompts.negative))
            more |= {"width": made.shape[-1] * family.cascade, "height": made.shape[-2] * family.cascade}
        else:
            more["denoising_start"] = request.refiner_start
        with self.pipelines.configured(request, refiner, seeds, vae=vae, task=family.refiner_task) as pipe:
            if not family.cascade:  # whose next stage hears what the first one read
                prompts = encode_prompts(pipe, request, refiner, read_inversions(job.parts))
            steps.begin()
            with attending(denoiser(pipe), request.attention):
                return run_pass(pipe, family, request, prompts, generators, steps, **more)

    def _record(self, job: Job, seed: int, index: int, notes: tuple[str, ...]) -> ImageRecord:
        now = self._clock()
        return ImageRecord(
            id=self._name_image(now),
            created=now.isoformat(timespec="milliseconds"),
            request=job.request,
            model=job.model,
            parts=job.parts,
            seed=seed,
            index=index,
            notes=notes,
            template=job.template,
            machine=self.device.machine,
        )
