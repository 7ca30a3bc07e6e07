"""The methods by name: what each is told, and where it is. No torch."""

import importlib
from typing import Any

from trainers.configs import AdapterConfig, FullConfig, TrainingConfig
from trainers.network_configs import ControlNetConfig, UnconditionalConfig

# name -> (what it is told, module and class)
METHODS: dict[str, tuple[type[TrainingConfig], str]] = {
    "lora": (AdapterConfig, "trainers.lora:LoraMethod"),
    "full": (FullConfig, "trainers.full:FullMethod"),
    "controlnet": (ControlNetConfig, "trainers.controlnet:ControlNetMethod"),
    "unconditional": (UnconditionalConfig, "trainers.unconditional:UnconditionalMethod"),
}


def method_class(name: str) -> Any:
    """Import a method."""
    module, _, class_name = METHODS[name][1].partition(":")
    return getattr(importlib.import_module(module), class_name)
