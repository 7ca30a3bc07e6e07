"""The methods by name: what each is told, and where it is. No torch."""

import importlib
from typing import Any

from trainers.configs import AdapterConfig, DreamBoothConfig, FullConfig, TrainingConfig
from trainers.inversion_configs import TextualInversionConfig
from trainers.network_configs import ControlNetConfig
from trainers.unconditional_configs import UnconditionalConfig

# name -> (what it is told, module and class)
METHODS: dict[str, tuple[type[TrainingConfig], str]] = {
    "lora": (AdapterConfig, "trainers.lora:LoraMethod"),
    "dreambooth": (DreamBoothConfig, "trainers.dreambooth:dreambooth"),
    "full": (FullConfig, "trainers.full:FullMethod"),
    "textual-inversion": (TextualInversionConfig, "trainers.textual_inversion:TextualInversion"),
    "controlnet": (ControlNetConfig, "trainers.controlnet:ControlNetMethod"),
    "unconditional": (UnconditionalConfig, "trainers.unconditional:unconditional"),
}


def method_class(name: str, config: TrainingConfig) -> Any:
    """Import the class of a method; where there are several, the config decides."""
    module, _, attribute = METHODS[name][1].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    return found if isinstance(found, type) else found(config)
