"""How long a run takes and how much memory: told from two real steps, before it starts."""

import sys
import time
from typing import Any

import psutil
import torch

from trainers.configs import TrainingConfig
from trainers.loop import Trainer

PROBES = 2


def estimate(trainer: Trainer) -> dict[str, Any]:
    """Do two steps and throw them away.

    Returns:
        Steps, epochs, seconds, and the peak of memory in bytes, with what to switch on if it does not fit.
    """
    spent = []
    for step in range(PROBES):
        began = time.perf_counter()
        trainer.update(step)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        spent.append(time.perf_counter() - began)
    peak, room = memory(trainer.device)
    config = trainer.config
    seconds = min(spent)  # the first step warms up
    return {
        "status": "estimate",
        "steps": config.max_train_steps,
        "epochs": round(trainer.material.plan.epoch_of(config.max_train_steps), 2),
        "seconds_per_step": round(seconds, 4),
        "seconds": round(seconds * config.max_train_steps, 1),
        "peak_memory": peak,
        "memory": room,
        "fits": peak <= room,
        "advice": [] if peak <= 0.9 * room else advice(config),
    }


def memory(device: torch.device) -> tuple[int, int]:
    """Return the peak of what this process used, and how much there is, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.mem_get_info(device)[1]
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset, psutil.virtual_memory().total
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, psutil.virtual_memory().total


def advice(config: TrainingConfig) -> list[str]:
    """List what makes a run smaller, the cheapest first."""
    found = {
        "cache_latents: true": not config.cache_latents,
        "mixed_precision: bf16": config.mixed_precision == "no",
        "gradient_checkpointing: true": not config.gradient_checkpointing,
        "train_batch_size: 1, with gradient_accumulation_steps in its place": config.train_batch_size > 1,
        "train_text_encoder: false": getattr(config, "train_text_encoder", False),
        "optimizer: adamw8bit": config.optimizer == "adamw",
        f"resolution: {max(config.resolution) // 2}": max(config.resolution) >= 512,
    }
    return [text for text, useful in found.items() if useful]
