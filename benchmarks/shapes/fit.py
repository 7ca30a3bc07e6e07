"""The plain training loop of the embedded model: a time budget, a cosine learning rate, an average of the weights, exact files.

Every stage of `train.py` runs through `fit`. It runs alone or under `torch.distributed.run` (one thread a process: two OpenMP
threads on busy cores wait for each other at every operator), and goes on where a killed run stopped.
"""

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.shapes.muon import Optimizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long and how fast to learn. `minutes` is wall time over all resumes; the learning rates fall to 2 % over it.

    `muon_rate` is the learning rate of weight matrices and convolutions under Muon; without it they learn with AdamW too.
    """

    minutes: float
    learning_rate: float
    muon_rate: float | None = None
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    save_seconds: float = 120.0

    def scaled(self, minutes: float, rate: float) -> "Budget":
        """Return a budget of other minutes, with learning rates multiplied by `rate`."""
        muon = None if self.muon_rate is None else self.muon_rate * rate
        return replace(self, minutes=minutes, learning_rate=self.learning_rate * rate, muon_rate=muon)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def fit(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[float, random.Random], torch.Tensor],
    budget: Budget,
    work: Path,
) -> None:
    """Minimise `loss` within the budget; afterwards the parameters hold the averaged weights.

    Args:
        name: of the stage; `work/<name>.safetensors` and `.json` hold its state.
        parameters: what is trained.
        loss: from (fraction of the budget that is spent, this step's randomness) to a scalar.
        budget: time and learning rate.
        work: folder for the state.
    """
    params = [p for p in parameters if p.requires_grad]
    optimizer = Optimizer(params, budget.learning_rate, budget.muon_rate, budget.weight_decay)
    average = [p.detach().clone() for p in params]
    step, spent = _resume(work / name, params, average, optimizer)
    seconds = budget.minutes * 60
    last, saved = time.monotonic(), spent
    running = 0.0
    while spent < seconds:
        fraction = spent / seconds
        value = loss(fraction, random.Random(f"{name}-{step}-{rank()}"))
        value.backward()
        now = time.monotonic()
        shared = mean_over_processes(
            torch.cat(
                [p.grad.flatten() for p in params] + [torch.tensor([value.item(), now - last], device=params[0].device)]
            )
        )
        offset = 0
        for p in params:
            p.grad.copy_(shared[offset : offset + p.numel()].view_as(p))
            offset += p.numel()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step(min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * fraction))))
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in params], 1 - min(budget.ema_decay, (step + 1) / (step + 10)))
        running += (shared[-2].item() - running) * max(0.01, 1 / (step + 1))
        spent += shared[-1].item()  # the same in every process, so that their learning rates agree
        last = now
        step += 1
        if rank() == 0 and (step % 50 == 0 or spent >= seconds):
            logger.info("%s %5.1f/%.1f min, step %d, loss %.4f", name, spent / 60, budget.minutes, step, running)
        if spent - saved > budget.save_seconds or spent >= seconds:
            state = optimizer.tensors()
            if rank() == 0:
                _save(work / name, params, average, state, {"step": step, "spent": spent, "loss": running})
            saved = spent
    for p, mean in zip(params, average, strict=True):
        p.data.copy_(mean)


def _save(path: Path, params: list, average: list, state: dict[str, torch.Tensor], numbers: dict) -> None:
    tensors = dict(state)
    for index, (p, mean) in enumerate(zip(params, average, strict=True)):
        tensors |= {f"{index}.weight": p.detach(), f"{index}.average": mean}
    part = path.with_suffix(".part")
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, part, metadata={"numbers": json.dumps(numbers)})
    part.replace(path.with_suffix(".safetensors"))


def _resume(path: Path, params: list, average: list, optimizer: Optimizer) -> tuple[int, float]:
    if not path.with_suffix(".safetensors").exists():
        return 0, 0.0
    with safe_open(
        path.with_suffix(".safetensors"), "pt"
    ) as file:  # numbers and weights in one file: a kill cannot part them
        numbers = json.loads(file.metadata()["numbers"])
    tensors = load_file(path.with_suffix(".safetensors"))
    for index, (p, mean) in enumerate(zip(params, average, strict=True)):
        p.data.copy_(tensors[f"{index}.weight"])
        mean.copy_(tensors[f"{index}.average"])
    optimizer.load(tensors)
    return numbers["step"], numbers["spent"]
