"""PipelineManager: loads models, keeps the last one used, hands out a pipeline that is set up for one request."""

import gc
import importlib
import inspect
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from studio.engine.checkpoints import load_checkpoint
from studio.engine.codecs import channels_of
from studio.engine.devices import Device
from studio.engine.latents import denoiser
from studio.errors import DeviceError, InvalidRequest, ModelError
from studio.families import FAMILIES, pipelines_of
from studio.records import ModelRef
from studio.schedulers import SCHEDULERS, SIGMA_OPTIONS
from studio.spec import GenerationRequest

logger = logging.getLogger(__name__)

KEPT = 2  # models that stay in memory; a small second one makes comparing two cheap


@dataclass
class Loaded:
    """One model's weights, and a pipeline over them for each class that was asked for."""

    base: Any
    pipes: dict[str, Any] = field(default_factory=dict)


class PipelineManager:
    """Owner of all loaded weights on one device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()

    @contextmanager
    def configured(
        self,
        request: GenerationRequest,
        model: ModelRef,
        seeds: Sequence[int],
        *,
        vae: Callable[[Any], Any] | None = None,
        task: str = "",
    ) -> Iterator[Any]:
        """Yield the pipeline for a request's task with its scheduler; whatever a request changes is put back afterwards.

        Args:
            request: resolved.
            model: where the weights are.
            seeds: one for each picture of the group, for schedulers that draw their own noise.
            vae: returns the autoencoder to work with in place of the model's own, which it is given.
            task: instead of the request's own, for a second pass.
        """
        with torch.inference_mode(False):  # weights that are loaded inside it could never be changed or trained
            pipe = self._pipeline(model, task or request.task, pag=request.pag_scale > 0)
        saved, own, network = pipe.scheduler, pipe.vae, denoiser(pipe)
        processors = dict(network.attn_processors) if request.pag_scale else None
        try:
            pipe.scheduler = build_scheduler(saved.config, request, seeds)
            pipe.vae = vae(own) if vae else own
            if request.vae_tiling:
                tile_vae(pipe, model)
            yield pipe
        finally:
            pipe.scheduler = saved
            if processors is not None:  # the pipeline puts them back itself, unless it is interrupted
                network.set_attn_processor(processors)
            if getattr(pipe.vae, "use_tiling", False):
                pipe.vae.disable_tiling()
            pipe.vae = own

    def warm(self, model: ModelRef) -> None:
        """Load a model ahead of the first job that wants it."""
        self._weights(model)

    def vae(self, model: ModelRef) -> Any:
        """Return a model's autoencoder; if the model is not in memory, only that is loaded."""
        if model.weights in self._loaded or Path(model.path).is_file():
            return self._weights(model).base.vae
        index = json.loads((Path(model.path) / "model_index.json").read_text(encoding="utf-8"))
        vae_class = getattr(importlib.import_module("diffusers"), index["vae"][1])
        try:
            vae = vae_class.from_pretrained(
                model.path, subfolder="vae", dtype=self.device.dtype, local_files_only=True, use_safetensors=True
            )
        except Exception as error:
            raise ModelError(f"the autoencoder of {model.title} could not be loaded: {first_line(error)}") from error
        return vae.to(self.device.place)

    def _pipeline(self, model: ModelRef, task: str, *, pag: bool = False) -> Any:
        """Return the pipeline for a task; all tasks of a model share its weights."""
        loaded = self._weights(model)
        classes = FAMILIES[model.family].pag_pipelines if pag else pipelines_of(model.family, model.kind)
        key = classes[task]
        if key not in loaded.pipes:
            pipeline_class = getattr(importlib.import_module("diffusers"), key)
            pipe = loaded.base
            if type(pipe) is not pipeline_class:  # without its dtype, from_pipe makes the shared weights float32
                options = FAMILIES[model.family].load_options
                pipe = pipeline_class.from_pipe(pipe, dtype=self.device.dtype, **options)
            pipe.set_progress_bar_config(disable=True)
            processor = getattr(pipe, "image_processor", None)
            if (
                processor is not None and "vae_latent_channels" in processor.config
            ):  # else latents are taken for pictures
                processor.register_to_config(vae_latent_channels=channels_of(pipe.vae))
            loaded.pipes[key] = pipe
        return loaded.pipes[key]

    def _weights(self, model: ModelRef) -> Loaded:
        if model.weights not in self._loaded:
            while len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)
                self.collect()
            self._loaded[model.weights] = Loaded(self._with_room(model))
        self._loaded.move_to_end(model.weights)
        return self._loaded[model.weights]

    def _with_room(self, model: ModelRef) -> Any:
        """Load a model; if it does not fit beside the others, without them."""
        for last in (False, True):
            try:
                return self._load(model)
            except torch.OutOfMemoryError as error:
                if last:
                    raise DeviceError(f"{model.title} does not fit into the memory of {self.device.title}") from error
            self.unload()  # after the except clause, whose error holds what was half loaded
        raise AssertionError

    def _load(self, model: ModelRef) -> Any:
        return load_pipeline(model, self.device)

    def unload(self) -> None:
        """Free all weights."""
        self._loaded.clear()
        self.collect()

    def collect(self) -> None:
        """Give back what nothing refers to."""
        gc.collect()
        if self.device.place.type == "cuda":
            torch.cuda.empty_cache()


def load_pipeline(model: ModelRef, device: Device) -> Any:
    """Load a model's usual pipeline with all its weights.

    Raises:
        ModelError: if it cannot be loaded.
        torch.OutOfMemoryError: if it does not fit.
    """
    logger.info("loading %s", model.id)
    quiet_libraries()
    class_name = next(iter(pipelines_of(model.family, model.kind).values()))
    pipeline_class = getattr(importlib.import_module("diffusers"), class_name)
    single = Path(model.path).is_file()
    try:
        if single:
            return load_checkpoint(model, pipeline_class, device)
        pipe = pipeline_class.from_pretrained(
            model.path,
            dtype=device.dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **FAMILIES[model.family].load_options,
        )
        pipe.to(device.place)
        denoiser(pipe).register_to_config(**FAMILIES[model.family].denoiser_config)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"model={model.id!r} could not be loaded: {first_line(error)}; copy the model {'file' if single else 'folder'} again"
        ) from error
    return pipe


def build_scheduler(config: Any, request: GenerationRequest, seeds: Sequence[int]) -> Any:
    """Make the request's scheduler from the model's own noise schedule."""
    assert request.scheduler is not None
    chosen = SCHEDULERS[request.scheduler]
    scheduler_class = getattr(importlib.import_module("diffusers"), chosen.class_name)
    options: dict[str, object] = dict(chosen.overrides)
    if request.sigmas != "automatic":
        options |= {option: name == request.sigmas for name, option in SIGMA_OPTIONS.items() if name in chosen.sigmas}
    if chosen.noise == "edm" and request.sigmas in ("karras", "exponential"):
        options = dict(chosen.overrides) | {"sigma_schedule": request.sigmas}
    if chosen.seeded_sigmas:
        options["noise_sampler_seed"] = list(seeds)
    return scheduler_class.from_config(config, **options)


def rebuilt(pipe: Any, **components: Any) -> Any:
    """Build a pipeline of the same class and with the same options over the same components, but for those given."""
    told = [name for name in inspect.signature(type(pipe).__init__).parameters if name not in pipe.components]
    options = {name: pipe.config[name] for name in told if name in pipe.config}
    if "add_watermarker" in told:  # not among the options that a pipeline remembers
        options["add_watermarker"] = pipe.watermark is not None
    return type(pipe)(**(pipe.components | components), **options)


def tile_vae(pipe: Any, model: ModelRef) -> None:
    """Let a pipeline's VAE, which all tasks of the model share, work in tiles.

    Raises:
        InvalidRequest: if it cannot.
    """
    if not hasattr(pipe.vae, "use_tiling"):
        raise InvalidRequest("vae_tiling", f"the VAE of {model.title} cannot work in tiles; switch VAE tiling off")
    pipe.vae.enable_tiling()


def quiet_libraries() -> None:
    """Switch off progress bars and notices that are meant for notebooks."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text if len(text) <= 200 else f"{text[:199]}…"
