"""PartManager: loads ControlNets, adapters, upscalers and VAEs, keeps the last ones used."""

import gc
import importlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from studio.engine.devices import Device
from studio.engine.pipelines import first_line, quiet_libraries
from studio.engine.single_files import (
    CONTROLNET_INHERITED,
    VAE_INHERITED,
    load_controlnet_file,
    load_vae_file,
)
from studio.engine.upscale import load_upscaler
from studio.errors import DeviceError, ModelError
from studio.parts import KINDS, encoder_kind
from studio.records import PartRef

KEPT = (
    12  # what one job can ask for, three units of each kind, a VAE and an upscaler, and a spare: comparing two is cheap
)


class IPWeights(NamedTuple):
    """An IP-Adapter in memory."""

    state: dict[str, dict[str, torch.Tensor]]
    encoder: Any
    processor: Any


class PartManager:
    """Owner of all loaded parts on one device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    def get(self, part: PartRef, own: Mapping[str, Any] | None = None) -> Any:
        """Return a part's network, or `IPWeights`.

        Args:
            part: as the job has it.
            own: configuration of the model's network that the part stands in for or copies: a single file does not say everything.

        Raises:
            ModelError: if it cannot be loaded.
            DeviceError: if it does not fit into memory.
        """
        told = inherited(part, own or {})
        key = f"{part.sha256} {json.dumps(told)}" if told else part.sha256
        if key not in self._loaded:
            while len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)
                gc.collect()
            with torch.inference_mode(False):
                self._loaded[key] = self._load(part, told)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _load(self, part: PartRef, told: dict[str, Any]) -> Any:
        quiet_libraries()
        title, path = KINDS[part.kind].title, Path(part.path)
        try:
            return FILES[part.kind](path, self.device, told) if told else LOADERS[part.kind](path, self.device)
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"{title} {part.id} does not fit into the memory of {self.device.title}") from error
        except Exception as error:
            raise ModelError(f"{title} {part.id} could not be loaded: {first_line(error)}; copy it again") from error

    def unload(self) -> None:
        """Free all weights."""
        self._loaded.clear()
        gc.collect()


def _load_network(path: Path, device: Device) -> Any:
    """Load a diffusers folder, whose class the library has checked."""
    class_name = json.loads((path / "config.json").read_text(encoding="utf-8"))["_class_name"]
    network = getattr(importlib.import_module("diffusers"), class_name)
    return (
        network.from_pretrained(path, dtype=device.dtype, local_files_only=True, use_safetensors=True)
        .to(device.place)
        .requires_grad_(False)
    )


def _load_ip_adapter(path: Path, device: Device) -> IPWeights:
    """Load an IP-Adapter's folder: weights, image encoder, and how pictures are made ready for it."""
    flat = load_file(next(path.glob("*.safetensors")))
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in flat.items():
        group, _, name = key.partition(".")
        state[group][name] = tensor
    config = json.loads((path / "image_encoder" / "config.json").read_text(encoding="utf-8"))
    network, processor, options = IMAGE_ENCODERS[encoder_kind(config)]
    library: Any = importlib.import_module("transformers")
    encoder = getattr(library, network).from_pretrained(
        path / "image_encoder", dtype=device.dtype, local_files_only=True, use_safetensors=True
    )
    encoder.to(device.place).requires_grad_(False)
    return IPWeights(state, encoder, getattr(library, processor)(**options(encoder.config.image_size)))


# kind -> the network, what makes pictures ready for it, and that one's options for a side in pixels
IMAGE_ENCODERS: dict[str, tuple[str, str, Callable[[int], dict[str, Any]]]] = {
    "clip": ("CLIPVisionModelWithProjection", "CLIPImageProcessor", lambda side: {"size": side, "crop_size": side}),
    "siglip": ("SiglipVisionModel", "SiglipImageProcessor", lambda side: {"size": {"height": side, "width": side}}),
}


def inherited(part: PartRef, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a single file takes from the model's own network, in plain values; {} for a part that says everything itself."""
    if part.kind not in FILES or not Path(part.path).is_file():
        return {}
    return {name: own[name] for name in FROM_OWN[part.kind] if name in own}


LOADERS: dict[str, Callable[[Path, Device], Any]] = {
    "controlnet": _load_network,
    "t2i_adapter": _load_network,
    "ip_adapter": _load_ip_adapter,
    "upscaler": load_upscaler,
    "vae": _load_network,
}
FILES: dict[str, Callable[[Path, Device, Mapping[str, Any]], Any]] = {
    "controlnet": load_controlnet_file,
    "vae": load_vae_file,
}
FROM_OWN = {"controlnet": CONTROLNET_INHERITED, "vae": VAE_INHERITED}
