"""PartManager: loads ControlNets, adapters and upscalers, keeps the last ones used."""

import gc
import importlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from studio.engine.devices import Device
from studio.engine.pipelines import first_line, quiet_libraries
from studio.engine.upscale import load_upscaler
from studio.errors import DeviceError, ModelError
from studio.parts import KINDS, encoder_kind
from studio.records import PartRef

KEPT = 4  # three units and a spare: comparing two adapters is cheap


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

    def get(self, part: PartRef) -> Any:
        """Return a part's network, or `IPWeights`.

        Raises:
            ModelError: if it cannot be loaded.
            DeviceError: if it does not fit into memory.
        """
        if part.sha256 not in self._loaded:
            while len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)
                gc.collect()
            with torch.inference_mode(False):
                self._loaded[part.sha256] = self._load(part)
        self._loaded.move_to_end(part.sha256)
        return self._loaded[part.sha256]

    def _load(self, part: PartRef) -> Any:
        quiet_libraries()
        title = KINDS[part.kind].title
        try:
            return LOADERS[part.kind](Path(part.path), self.device)
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
LOADERS: dict[str, Callable[[Path, Device], Any]] = {
    "controlnet": _load_network,
    "t2i_adapter": _load_network,
    "ip_adapter": _load_ip_adapter,
    "upscaler": load_upscaler,
}
