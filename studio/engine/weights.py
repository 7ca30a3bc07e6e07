"""What a denoiser's weights are kept in: full precision, or less, which changes what it draws."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import torch

from studio.engine.devices import Device
from studio.engine.latents import denoiser
from studio.errors import InvalidRequest
from studio.memory import FULL, KEEPINGS, Weights
from studio.records import ModelRef


def check_keeping(model: ModelRef, device: Device, keeping: Weights) -> None:
    """Refuse a way to keep weights that a device or a model has no place for.

    Raises:
        InvalidRequest: with the way out.
    """
    way = KEEPINGS[keeping]
    if keeping != FULL and model.quantised:
        raise InvalidRequest(
            "weights", f"weights={keeping!r} does not go with {model.title}, whose weights are GGUF's already; use full"
        )
    if way.cuda and device.place.type != "cuda":
        raise InvalidRequest(
            "weights", f"weights={keeping!r} needs a CUDA device, not {device.title}; use float8 or full"
        )
    if way.folders and Path(model.path).is_file():
        raise InvalidRequest(
            "weights",
            f"weights={keeping!r} needs a model in diffusers' format, and {model.title} is a single file; use float8 or full",
        )


def loading(pipeline_class: Any, device: Device, keeping: Weights) -> dict[str, Any]:
    """Return what `from_pretrained` is told, so that a denoiser's weights are turned round while they are read."""
    if keeping not in ("int8", "nf4"):
        return {}
    library: Any = importlib.import_module("diffusers")
    if keeping == "int8":
        config = library.TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
    else:
        config = library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=device.dtype
        )
    part = "unet" if "unet" in inspect.signature(pipeline_class.__init__).parameters else "transformer"
    return {"quantization_config": library.PipelineQuantizationConfig(quant_mapping={part: config})}


def kept(pipe: Any, keeping: Weights, device: Device) -> Any:
    """Let a pipeline that was just loaded keep its denoiser's weights in less; return it.

    float8 (e4m3) is for storage only: each layer computes in the device's format. Norms, the first and the last projection stay as
    they are, which is diffusers' own choice.
    """
    if keeping == "float8":
        denoiser(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=device.dtype)
    return pipe
