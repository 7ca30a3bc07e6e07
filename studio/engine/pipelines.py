"""PipelineManager: loads models, keeps the last one used, hands out a pipeline that is set up for one request."""

import gc
import importlib
import inspect
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from studio.engine.checkpoints import load_checkpoint
from studio.engine.codecs import channels_of
from studio.engine.devices import Device
from studio.engine.latents import denoiser
from studio.engine.places import lay_out, send_away, sizes_of
from studio.engine.weights import check_keeping, kept, loading
from studio.errors import DeviceError, InvalidRequest, ModelError
from studio.families import FAMILIES, pipelines_of
from studio.memory import FULL, PLANS, Plan, PlanSetting, Weights, choose_plan, plan_note, smaller_plan
from studio.records import ModelRef
from studio.schedulers import SCHEDULERS, SIGMA_OPTIONS, SPACINGS
from studio.spec import GenerationRequest

logger = logging.getLogger(__name__)

LEARNED = ("learned", "learned_range")
VAE_WAYS = {"tiling": "in tiles", "slicing": "one picture at a time"}
KEPT = 2  # models that stay in memory; a small second one makes comparing two cheap


@dataclass
class Loaded:
    """One model's weights, and a pipeline over them for each class that was asked for."""

    base: Any
    plan: Plan = "resident"
    pipes: dict[str, Any] = field(default_factory=dict)


class PipelineManager:
    """Owner of all loaded weights on one device.

    Args:
        device: from `open_device`.
        plan: where models' parts lie.

    Raises:
        DeviceError: if the device has no place for the plan.
    """

    def __init__(self, device: Device, plan: PlanSetting = "automatic") -> None:
        if plan not in ("automatic", "resident") and device.place.type == "cpu":
            raise DeviceError(f"memory_plan={plan!r} needs a GPU: on {device.title} there is nowhere to offload from")
        self.device = device
        self._plan: PlanSetting = plan
        self._least: dict[tuple[str, Weights], Plan] = {}  # of models that left too little room for their work
        self._loaded: OrderedDict[tuple[str, Weights], Loaded] = (
            OrderedDict()
        )  # by the model's files and how it is kept

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
            loaded = self._weights(model, request.weights)
            send_away(loaded.base)
            _check_plan(loaded.plan, request)
            pipe = self._pipeline(loaded, model, task or request.task, pag=request.pag_scale > 0)
        saved, own, network = pipe.scheduler, pipe.vae, denoiser(pipe)
        processors = dict(network.attn_processors) if request.pag_scale else None
        try:
            pixels = FAMILIES[model.family].pixels
            pipe.scheduler = build_scheduler(saved.config, request, seeds, pixels=pixels)
            pipe.vae = vae(own) if vae else own
            split_vae(pipe, request, model)
            yield pipe
        finally:
            pipe.scheduler = saved
            if processors is not None:  # the pipeline puts them back itself, unless it is interrupted
                network.set_attn_processor(processors)
            for way in VAE_WAYS:
                if getattr(pipe.vae, f"use_{way}", False):
                    getattr(pipe.vae, f"disable_{way}")()
            pipe.vae = own

    def warm(self, model: ModelRef) -> None:
        """Load a model ahead of the first job that wants it."""
        self._weights(model)

    def vae(self, model: ModelRef) -> Any:
        """Return a model's autoencoder; if the model is not in memory, only that is loaded.

        Raises:
            ModelError: if it has none, or it cannot be loaded.
        """
        if FAMILIES[model.family].pixels:
            raise ModelError(f"{model.title} has no autoencoder: it draws pixels")
        for files, keeping in self._loaded:
            if files == model.weights:
                return self._weights(model, keeping).base.vae
        if Path(model.path).is_file():
            return self._weights(model).base.vae
        index = json.loads((Path(model.path) / "model_index.json").read_text(encoding="utf-8"))
        part = FAMILIES[model.family].autoencoder
        vae_class = getattr(importlib.import_module("diffusers"), index[part][1])
        try:
            vae = vae_class.from_pretrained(
                model.path, subfolder=part, dtype=self.device.dtype, local_files_only=True, use_safetensors=True
            )
        except Exception as error:
            raise ModelError(f"the autoencoder of {model.title} could not be loaded: {first_line(error)}") from error
        return vae.to(self.device.place)

    def _pipeline(self, loaded: Loaded, model: ModelRef, task: str, *, pag: bool = False) -> Any:
        """Return the pipeline for a task; all tasks of a model share its weights."""
        classes = FAMILIES[model.family].pag_pipelines if pag else pipelines_of(model.family, model.kind)
        key = classes[task]
        if key not in loaded.pipes:
            pipeline_class = pipeline_class_of(model, key)
            pipe = loaded.base
            if type(pipe) is not pipeline_class:
                pipe = sharing(pipeline_class, pipe, FAMILIES[model.family].load_options)
            pipe.set_progress_bar_config(disable=True)
            processor = getattr(pipe, "image_processor", None)
            if (
                processor is not None and "vae_latent_channels" in processor.config
            ):  # else latents are taken for pictures
                processor.register_to_config(vae_latent_channels=channels_of(pipe.vae))
            loaded.pipes[key] = pipe
        return loaded.pipes[key]

    def _weights(self, model: ModelRef, keeping: Weights = FULL) -> Loaded:
        """Return a model, loaded if it is not there with its weights kept in this way."""
        key = (model.weights, keeping)
        if key not in self._loaded:
            while len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)
                self.collect()
            self._loaded[key] = self._with_room(model, keeping)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _with_room(self, model: ModelRef, keeping: Weights) -> Loaded:
        """Load a model; if it does not fit beside the others, without them."""
        for last in (False, True):
            try:
                return self._load(model, keeping)
            except torch.OutOfMemoryError as error:
                if last:
                    raise DeviceError(f"{model.title} does not fit into the memory of {self.device.title}") from error
            self.unload()  # after the except clause, whose error holds what was half loaded
        raise AssertionError

    def _load(self, model: ModelRef, keeping: Weights) -> Loaded:
        """Load a model and lay its parts where they shall work."""
        check_keeping(model, self.device, keeping)
        if self.device.place.type == "cpu":
            return Loaded(load_pipeline(model, self.device, keeping))
        pipe = load_pipeline(model, replace(self.device, place=torch.device("cpu")), keeping)
        plan = self._chosen(pipe, (model.weights, keeping))
        if plan != "resident" and self._plan == "automatic" and self._loaded:  # never offload what fits alone
            self.unload()
            plan = self._chosen(pipe, (model.weights, keeping))
        lay_out(pipe, self.device.place, plan)
        return Loaded(pipe, plan)

    def _chosen(self, pipe: Any, key: tuple[str, Weights]) -> Plan:
        """Return the plan for a pipeline that lies in the machine's memory."""
        if self._plan != "automatic":
            return self._plan
        self.collect()
        free = self.device.memory[0] if self.device.memory else None
        plan = choose_plan(sizes_of(pipe), free)
        least = self._least.get(key, plan)
        return plan if PLANS.index(plan) >= PLANS.index(least) else least

    def shrink(self, model: ModelRef, keeping: Weights) -> None:
        """Free all weights; a model whose work did not fit gets the next smaller plan from now on, if plans are chosen here."""
        key = (model.weights, keeping)
        if key in self._loaded and self._plan == "automatic" and self.device.memory:
            self._least[key] = smaller_plan(self._loaded[key].plan)
        self.unload()

    def plan_told(self, model: ModelRef, keeping: Weights) -> str:
        """Say where a loaded model's parts lie and what that costs; "" if all lie on the device."""
        loaded = self._loaded[model.weights, keeping]
        return plan_note(loaded.plan, sizes_of(loaded.base), self.device.title)

    def unload(self) -> None:
        """Free all weights."""
        self._loaded.clear()
        self.collect()

    def collect(self) -> None:
        """Give back what nothing refers to."""
        gc.collect()
        if self.device.place.type == "cuda":
            torch.cuda.empty_cache()


def _check_plan(plan: Plan, request: GenerationRequest) -> None:
    """Refuse what cannot work with layers that come and go."""
    if plan == "group-offload" and any(unit.scale for unit in request.ip_adapters):
        raise InvalidRequest(
            "ip_adapters",
            "ip_adapters do not work with the memory plan group-offload; switch them off, use weights='float8', or --memory-plan",
        )


def load_pipeline(model: ModelRef, device: Device, keeping: Weights = FULL) -> Any:
    """Load a model's usual pipeline with all its weights.

    Args:
        model: where they are.
        device: to put them on.
        keeping: what the denoiser's are kept in.

    Raises:
        InvalidRequest: if they cannot be kept so.
        ModelError: if it cannot be loaded.
        torch.OutOfMemoryError: if it does not fit.
    """
    logger.info("loading %s", model.id)
    quiet_libraries()
    class_name = next(iter(pipelines_of(model.family, model.kind).values()))
    pipeline_class = pipeline_class_of(model, class_name)
    single = Path(model.path).is_file()
    try:
        if single:
            pipe = load_checkpoint(model, pipeline_class, device)
        else:
            options = FAMILIES[model.family].load_options | loading(pipeline_class, device, keeping)
            pipe = _from_folder(pipeline_class, model, device, **options, **_prior(model, device))
            pipe.to(device.place)
        denoiser(pipe).register_to_config(**FAMILIES[model.family].denoiser_config)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"model={model.id!r} could not be loaded: {first_line(error)}; copy the model {'file' if single else 'folder'} again"
        ) from error
    return kept(pipe, keeping, device)


def pipeline_class_of(model: ModelRef, name: str) -> Any:
    """Return the class of this name that does what a model's pipelines do."""
    return getattr(importlib.import_module(FAMILIES[model.family].module), name)


def _from_folder(pipeline_class: Any, model: ModelRef, device: Device, **more: Any) -> Any:
    """Load a pipeline from a model's folder, and nothing from anywhere else."""
    return pipeline_class.from_pretrained(
        model.path,
        dtype=device.dtype,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **more,
    )


def _prior(model: ModelRef, device: Device) -> dict[str, Any]:
    """Load the components of a model's prior, if they lie in a folder of their own."""
    if model.donor is None:
        return {}
    prior_class = getattr(importlib.import_module("diffusers"), FAMILIES[model.family].prior)
    parts = _from_folder(prior_class, model.donor, device).components
    return {f"prior_{name}": part for name, part in parts.items()}


def build_scheduler(config: Any, request: GenerationRequest, seeds: Sequence[int], *, pixels: bool = False) -> Any:
    """Make the request's scheduler from the model's own noise schedule.

    Args:
        config: of the scheduler that the model was saved with.
        request: names the method and the schedule.
        seeds: one a picture.
        pixels: whether what it makes is clipped as that config says; latents have no bounds.
    """
    assert request.scheduler is not None
    chosen = SCHEDULERS[request.scheduler]
    scheduler_class = getattr(importlib.import_module("diffusers"), chosen.class_name)
    options: dict[str, object] = {
        name: value for name, value in chosen.overrides.items() if not (pixels and name == "clip_sample")
    }
    if request.sigmas != "automatic":
        options |= {option: name == request.sigmas for name, option in SIGMA_OPTIONS.items() if name in chosen.sigmas}
    if request.sigmas in SPACINGS:
        options["timestep_spacing"] = SPACINGS[request.sigmas]
    if chosen.noise == "edm" and request.sigmas in ("karras", "exponential"):
        options = dict(chosen.overrides) | {"sigma_schedule": request.sigmas}
    if chosen.seeded_sigmas:
        options["noise_sampler_seed"] = list(seeds)
    if chosen.class_name != "DDPMScheduler" and config.get("variance_type") in LEARNED:
        config = dict(config) | {
            "variance_type": "fixed_small"
        }  # else diffusers hands others a guess that they cannot read
    return scheduler_class.from_config(config, **options)


def sharing(pipeline_class: Any, pipe: Any, options: dict[str, Any]) -> Any:
    """Build a pipeline of a class over another's components; diffusers' `from_pipe` would cast them, which quantised ones refuse."""
    wanted = inspect.signature(pipeline_class.__init__).parameters
    known = {name: value for name, value in {**pipe.config, **pipe.components}.items() if name in wanted}
    return pipeline_class(**(known | options))


def rebuilt(pipe: Any, **components: Any) -> Any:
    """Build a pipeline of the same class and with the same options over the same components, but for those given."""
    told = [name for name in inspect.signature(type(pipe).__init__).parameters if name not in pipe.components]
    options = {name: pipe.config[name] for name in told if name in pipe.config}
    if "add_watermarker" in told:  # not among the options that a pipeline remembers
        options["add_watermarker"] = pipe.watermark is not None
    return type(pipe)(**(pipe.components | components), **options)


def split_vae(pipe: Any, request: GenerationRequest, model: ModelRef) -> None:
    """Let a pipeline's VAE, which all tasks of the model share, work in parts, as a request says.

    Neither is chosen for anyone: a batch decoded one by one has other last bits than one decoded at once, as tiles have other seams.

    Raises:
        InvalidRequest: if it cannot.
    """
    for way, told in VAE_WAYS.items():
        if not getattr(request, f"vae_{way}"):
            continue
        if not hasattr(pipe.vae, f"use_{way}"):
            raise InvalidRequest(f"vae_{way}", f"the VAE of {model.title} cannot work {told}; switch VAE {way} off")
        getattr(pipe.vae, f"enable_{way}")()


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
