"""One run from its config to its result: reads, loads, trains, draws samples, finishes."""

import contextlib
import gc
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from studio.engine.devices import Device, open_device
from studio.errors import InvalidRequest, StudioError
from studio.events import Failed, Finished, Paused, Started
from studio.lease import DeviceLease
from studio.records import ModelRef
from studio.settings import VERSION, Settings
from studio.spec import parse_request
from studio.store import writer
from studio.store.index import Database
from studio.store.library import Library
from studio.store.priority import pictures_first
from studio.training.models import training_problem, whole_model
from trainers.cards import SHEET, model_card
from trainers.configs import ENDLESS, SEED_MAX, TrainingConfig
from trainers.estimate import estimate
from trainers.failures import in_words
from trainers.loop import Trainer, Turn
from trainers.material import Material, Pictures, fingerprint_problem
from trainers.method import Method
from trainers.methods import method_class
from trainers.models import Parts, Pixels, cache_folder, load_parts
from trainers.needs import check_needs
from trainers.run import Run
from trainers.sampling import Painter, Sampler, Wanted
from trainers.scorers.choice import scorer_folders
from trainers.scoring import Scoring
from trainers.sheet import contact_sheet

logger = logging.getLogger(__name__)

CLASS = "class.json"  # of a run: where its class images lie in the cache
FEW_STEPS = 10  # a model whose own number of steps is below it is a distilled one
FEW = (
    "model={!r} was made to draw in few steps, which training undoes slowly; train on its base, and give this one as "
    "validation_model to see what it draws"
)
POLL = 0.05  # seconds between two looks at who wants the device, and at control.json while paused


class Session:
    """A run in this process.

    Args:
        name: of the method.
        config: checked.
        settings: of the process.
        folder: of the run.
        should_stop: whether the process was asked to end.
    """

    def __init__(
        self, name: str, config: TrainingConfig, settings: Settings, folder: Path, should_stop: Callable[[], bool]
    ) -> None:
        self.name, self.config, self.settings, self.folder = name, config, settings, folder
        self._should_stop = should_stop
        self.library = self._library()
        self._lease = contextlib.ExitStack()
        self.trainer: Trainer | None = None

    @property
    def step(self) -> int:
        """Updates done so far."""
        return self.trainer.step if self.trainer else 0

    def estimate(self) -> dict[str, Any]:
        """Say how long the run takes and how much memory it needs; nothing is written but the cache."""
        device, pictures, reference = self._opened()
        with DeviceLease(device.key).held(self._should_stop):
            run = Unheld(self.folder)
            return estimate(self._trainer(run, pictures, reference, device, self._accelerator(device)))

    def run(self, *, resume: bool = False) -> dict[str, Any] | None:
        """Train; return the last line of the command, or None in processes that do not speak.

        Raises:
            InvalidRequest: one sentence, before a model is loaded.
            StudioError: if the run could not go on; its newest checkpoint is kept.
        """
        device, pictures, reference = self._opened()
        accelerator = self._accelerator(device)
        run = Run(self.folder) if accelerator.is_main_process else Unheld(self.folder)
        try:
            if accelerator.is_main_process:
                run.begin(self.name, self.config, resume, self.config.lr_scheduler in ENDLESS)
                self._keep_data(run, pictures, resume)
            accelerator.wait_for_everyone()
            return self._train(run, pictures, reference, device, accelerator, resume)
        except Exception as error:  # kept in the run's own events, whoever started it, and told by the caller
            error = in_words(error, self.config, self.settings, self.trainer.saved if self.trainer else 0)
            code = error.code if isinstance(error, StudioError) else "bug"
            if not isinstance(error, InvalidRequest) or (self.folder / "events.jsonl").exists():
                run.tell(Failed(job=run.id, code=code, message=str(error) or type(error).__name__))
            raise error
        finally:
            self._lease.close()
            run.close()

    def _opened(self) -> tuple[Device, Pictures, ModelRef | None]:
        """Return what a run works with, and refuse what it would miss later."""
        device = open_device(self.settings.device, self.settings.cpu_threads)
        check_needs(self.config, device.place.type, self.settings.part_roots)
        return device, self._pictures(), self._reference()

    def _library(self, *folders: Path) -> Library:
        """Return the models of the settings, and those in some folders."""
        memory = Database(cache_folder(self.settings.data_dir) / "hashes.db")
        return Library((*folders, *self.settings.model_folders), memory, self.settings.part_roots)

    def _pictures(self) -> Pictures:
        root = self.settings.data_dir / "datasets"
        pictures = Pictures(self.config.told_concepts, root, self.config.trigger_word, captions=self.config.captions)
        method_class(self.name, self.config).check(self.config, pictures, self.settings)
        for note in pictures.notes:
            logger.warning("%s", note)
        return pictures

    def _reference(self) -> ModelRef | None:
        if self.config.base_model is None:
            return None
        if self.config.validation_model:
            self.library.get(self.config.validation_model, "validation_model")
        model = self.library.get(self.config.base_model, "vae" if "model" in self.config.idle else "model")
        if problem := training_problem(self.name, model, whole=whole_model(self.name, self.config.model_dump())):
            raise InvalidRequest("model", problem)
        return self.library.reference(model)

    def _accelerator(self, device: Device) -> Accelerator:
        log_with = None if self.config.report_to == "none" else self.config.report_to
        accelerator = Accelerator(
            cpu=device.place.type == "cpu", mixed_precision="no", log_with=log_with, project_dir=str(self.folder)
        )
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator.num_processes != asked:
            raise StudioError(
                f"{asked} processes were started and {accelerator.num_processes} work together; on a CPU start them with "
                "ACCELERATE_USE_CPU=true python -m torch.distributed.run"
            )
        if accelerator.distributed_type == DistributedType.FSDP:
            raise StudioError("FSDP does not work yet; use several processes without it")
        return accelerator

    def _keep_data(self, run: Any, pictures: Pictures, resume: bool) -> None:
        """Compare the pictures with those that the run began with."""
        before = run.recall("data.json")
        if resume and before is not None and run.learnt:
            if problem := fingerprint_problem(before, pictures.fingerprint):
                raise InvalidRequest(
                    "dataset",
                    f"dataset differs from the run's ({problem}); put it back, or start a new run with init_from",
                )
        else:
            run.remember("data.json", pictures.fingerprint)

    def _train(
        self,
        run: Any,
        pictures: Pictures,
        reference: ModelRef | None,
        device: Device,
        accelerator: Accelerator,
        resume: bool,
    ) -> dict[str, Any] | None:
        run.tell(Started(job=run.id, note="loading the model"))
        few = (
            self.library.get(reference.id).defaults.get("num_inference_steps", FEW_STEPS) < FEW_STEPS
            if reference and self.config.model
            else False
        )
        for note in [*pictures.notes, *([FEW.format(self.config.model)] if few else [])]:
            run.notice(note)
        lease = DeviceLease(device.key)
        if accelerator.is_local_main_process or device.place.type == "cuda":
            self._lease.enter_context(lease.held(self._should_stop))
        trainer = self.trainer = self._trainer(run, pictures, reference, device, accelerator)
        sampler = Sampler(self.folder.resolve(), self._library, device, run.tell)
        scoring = Scoring(trainer, scorer_folders(self.config.scorer, self.settings.part_roots), device.place)
        if resume and trainer.resume():
            logger.info("going on after step %d", trainer.step)
            if accelerator.is_main_process and not scoring.done(trainer.step):  # it was killed before they were drawn
                self._sample(sampler, trainer, scoring, trainer.step)
        alone = accelerator.num_processes == 1
        trainer.turn = Turn(
            between=lambda: self._yield(run, lease, trainer) if alone and self._should_yield(lease) else None,
            asked=lambda: self._asked(run, lease, trainer),
            committed=lambda step, path: self._sample(sampler, trainer, scoring, step),
        )
        if self.config.report_to != "none":
            accelerator.init_trackers("studio")
        status = trainer.train()
        accelerator.end_training()
        if not accelerator.is_main_process:
            return None
        artifact = (
            self._finish(trainer, scoring)
            if status == "finished"
            else trainer.checkpoints.path(trainer.step) / "weights"
        )
        run.tell(Finished(job=run.id, interrupted=status != "finished"))
        return {"status": status, "step": trainer.step, "artifact": str(artifact)}

    def _trainer(
        self, run: Any, pictures: Pictures, reference: ModelRef | None, device: Device, accelerator: Accelerator
    ) -> Trainer:
        """Load the model, encode what is learnt from, and build what learns."""
        made = method_class(self.name, self.config)
        beside = self._beside(run, made, reference, device, accelerator)
        dtype = torch.bfloat16 if made.half and self.config.mixed_precision == "bf16" else torch.float32
        parts = load_parts(reference, device, dtype) if reference else Pixels(device)
        learns_words = getattr(self.config, "train_text_encoder", False) or made.reads_captions

        def build(config: TrainingConfig, shown: Pictures) -> Material:
            return Material(
                config,
                shown,
                parts if isinstance(parts, Parts) else None,
                cache_folder(self.settings.data_dir),
                processes=accelerator.num_processes,
                first=accelerator.is_main_process,
                words=not learns_words,
                also=made.captions(config),
            )

        with accelerator.main_process_first():
            material = build(self.config, pictures)
            if conditions := made.conditions(self.config, self.settings, device):
                material.follow(conditions)
            if beside is not None:
                apart = {"seed": (self.config.seed + 1) % SEED_MAX, "validation_size": 0, "masked_loss": False}
                material.beside = build(self.config.model_copy(update=apart), beside)
        parts.release(
            words=not learns_words and not self.config.shuffle_caption,
            pictures=self.config.cache_latents and not made.saves_vae,
        )
        method: Method = made(self.config, parts)
        method.prepare(material)
        if self.config.compile:
            for network in method.asked:
                network.compile()
        return Trainer(
            self.config, method, material, run, accelerator, self._facts(reference, pictures), pictures.fingerprint
        )

    def _beside(
        self, run: Any, made: type[Method], reference: ModelRef | None, device: Device, accelerator: Accelerator
    ) -> Pictures | None:
        """Return what the method wants to show beside the dataset, drawn by the model if need be."""
        if reference is None:
            return None
        folder, root = self._class_folder(reference), self.settings.data_dir / "datasets"
        if accelerator.is_main_process and made.draws_beside(self.config):
            run.remember(CLASS, {"folder": folder.name, "number": getattr(self.config, "num_class_images", 0)})
        painter = Painter(self.library, device, folder / "blobs", self._should_stop)
        with accelerator.main_process_first():
            beside = made.beside(self.config, folder, root, painter.draw)
        painter.close()
        return beside

    def _class_folder(self, reference: ModelRef) -> Path:
        """Return where pictures are drawn that a method wants beside the dataset's."""
        told = [reference.sha256, getattr(self.config, "class_prompt", ""), self.config.resolution[0]]
        name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
        return self.settings.data_dir / "cache" / "class" / name

    def _facts(self, reference: ModelRef | None, pictures: Pictures) -> dict[str, str]:
        """Return what a result's file says of how it was made; read back by the library."""
        config = self.config
        return {
            "studio": VERSION,
            "method": self.name,
            **({"base_model": reference.id, "base_model_sha256": reference.sha256} if reference else {}),
            "trigger_words": json.dumps([config.trigger_word] if config.trigger_word else []),
            "recommended_weight": f"{config.recommended_weight:g}",
            "pictures": str(len(pictures.examples)),
            "learning_rate": f"{config.learning_rate:g}",
            "dataset_sha256": hashlib.sha256(json.dumps(pictures.fingerprint).encode()).hexdigest(),
            "training_config": json.dumps(config.model_dump(mode="json")),
        }

    def _asked(self, run: Any, lease: DeviceLease, trainer: Trainer) -> str:
        """Return what a person asks; a pause lasts, with the device free for others, until it is resumed or stopped."""
        asked = "stop" if self._should_stop() else run.asked()
        if asked == "pause":
            run.tell(Paused(job=run.id, step=trainer.step, asked=True))
            with self._parked(lease, trainer):
                while not self._should_stop() and (asked := run.asked()) not in ("resume", "stop"):
                    time.sleep(POLL)
            asked = "stop" if self._should_stop() else asked
        return "" if asked == "resume" else asked

    def _should_yield(self, lease: DeviceLease) -> bool:
        return lease.wanted() and pictures_first(self.settings.data_dir)

    def _yield(self, run: Any, lease: DeviceLease, trainer: Trainer) -> None:
        """Let somebody else have the device, and go on afterwards with the same numbers."""
        run.tell(Paused(job=run.id, step=trainer.step, asked=False))
        with self._parked(lease, trainer):
            while lease.wanted() and not self._should_stop():
                time.sleep(POLL)

    @contextlib.contextmanager
    def _parked(self, lease: DeviceLease, trainer: Trainer) -> Iterator[None]:
        """Leave the device, and take it again at the end."""
        park(trainer, torch.device("cpu"))
        self._lease.close()
        try:
            yield
        finally:
            self._lease.enter_context(lease.held(self._should_stop))
            park(trainer, trainer.device)

    def _sample(self, sampler: Sampler, trainer: Trainer, scoring: Scoring, step: int) -> None:
        """Draw the samples and score them; a sample that cannot be drawn is told and never ends a run."""
        method, grid = trainer.method, self.folder.resolve() / "samples" / f"step-{step:06d}.png"
        try:
            weights = trainer.checkpoints.path(step) / "weights"
            artifact = min(weights.iterdir())  # of a LoRA and its embedding, NAME_emb, the LoRA
            if method.draw(artifact, grid):
                trainer.run.notice(f"samples of step {step} are in samples/{grid.name}")
                return
            requests = [parse_request(row) for row in sampler.prompts(self.config, method.sample_rows)]
            if not requests:
                return
            samples = scoring.samples(step, requests)
            wanted = [Wanted(one.name, method.request_of(artifact, one.request)) for one in samples]
            wanted += scoring.pictures(step, samples, lambda request: method.request_of(artifact, request))
            drawn = sampler.draw(wanted, artifact, method.embeddings_of(artifact))
        except StudioError as error:
            trainer.run.notice(f"no samples after step {step}: {error}")
            return
        scoring.score(step, artifact, samples, drawn)

    def _finish(self, trainer: Trainer, scoring: Scoring) -> Path:
        """Write `final/`: the result and its card."""
        folder = self.folder.resolve() / "final"
        made: list[Path] = []
        trainer.facts |= scoring.facts(trainer.step)

        def fill(part: Path) -> None:
            made.append(trainer.save_weights(part, final=True).relative_to(part))
            trainer.method.export(part, self.config.output_name, trainer.facts)
            samples = sorted((self.folder / "samples").glob(f"step-{trainer.step:06d}*.png"))
            if samples:
                writer.write_file(part / SHEET, contact_sheet(samples))
            writer.write_file(part / "README.md", model_card(self.name, trainer, scoring, bool(samples)).encode())

        if not folder.exists():
            writer.write_directory(folder, fill)
        return (
            folder / made[0]
            if made
            else next(
                path for path in folder.iterdir() if path.name.removesuffix(".safetensors") == self.config.output_name
            )
        )


class Unheld:
    """What a process beside the first one has of the run: nothing to write."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder.resolve(), folder.name

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: None


def park(trainer: Trainer, place: torch.device) -> None:
    """Move everything that a run holds on a GPU; elsewhere it stays where it is."""
    if trainer.device.type != "cuda":
        return
    trainer.method.to(place)
    for part in trainer.method.parts.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(place)
    trainer.average = [mean.to(place) for mean in trainer.average]
    for state in trainer.optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                state[name] = value.to(place)
    gc.collect()
    torch.cuda.empty_cache()
