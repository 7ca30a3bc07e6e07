"""Optimisers and learning rates by name, from well-kept libraries."""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from studio.errors import InvalidRequest
from trainers.configs import TrainingConfig
from trainers.method import Rate

# name -> (module, class, package to install)
CLASSES = {
    "adamw": ("torch.optim", "AdamW", "torch"),
    "adafactor": ("torch.optim", "Adafactor", "torch"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    "lion": ("timm.optim", "Lion", "timm"),
    "muon": ("trainers.muon", "Muon", "torch"),
}
WITH_BETAS = frozenset({"adamw", "adamw8bit", "prodigy", "lion", "muon"})


def build_optimizer(config: TrainingConfig, rates: Sequence[Rate]) -> torch.optim.Optimizer:
    """Make the optimiser of a run.

    Raises:
        InvalidRequest: if its library is not installed, or nothing learns.
    """
    groups = [
        {"params": rate.parameters, "lr": rate.learning_rate}
        | ({} if rate.weight_decay is None else {"weight_decay": rate.weight_decay})
        for rate in rates
        if rate.parameters
    ]
    if not groups:
        raise InvalidRequest("target_modules", "nothing would learn: no layer was chosen")
    module, name, package = CLASSES[config.optimizer]
    try:
        made = getattr(importlib.import_module(module), name)
    except ImportError:
        raise InvalidRequest(
            "optimizer",
            f"optimizer={config.optimizer} needs the package {package}: pip install {package}, or use adamw",
        ) from None
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer in WITH_BETAS:
        options["betas"] = (config.adam_beta1, config.adam_beta2)
    if config.optimizer == "adamw":
        options["fused"] = True
    return made(groups, **options)


def build_schedule(config: TrainingConfig, optimizer: torch.optim.Optimizer) -> Any:
    """Make what changes the learning rates: diffusers' schedules."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        step_rules=config.lr_step_rules or None,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )


def cause_of(config: TrainingConfig, loss: float) -> str:
    """Suggest why numbers stopped being finite."""
    if config.optimizer == "prodigy" and config.learning_rate > 1:
        return "prodigy wants learning_rate 1"
    if config.learning_rate > 1e-3:
        return f"learning_rate={config.learning_rate:g} is high; try a tenth of it"
    if math.isnan(loss):
        return "the model's weights or the encoded pictures may hold NaN; check the model with its own samples"
    return "lower learning_rate, or set max_grad_norm=1"
