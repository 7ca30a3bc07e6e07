"""The one loop: every method runs through it. What step s does depends on the config, the data and s alone."""

import contextlib
import errno
import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from studio.errors import StudioError
from studio.events import Checkpoint, Progress
from trainers.checkpoints import (
    Checkpoints,
    load_parameters,
    optimizer_state,
    read_state,
    restore_optimizer,
)
from trainers.configs import TrainingConfig
from trainers.material import Material
from trainers.memory import used_memory
from trainers.method import Method
from trainers.optimizers import build_optimizer, build_schedule, cause_of
from trainers.run import Run

logger = logging.getLogger(__name__)

MEMORY_EVERY = 10  # steps between two looks at how much memory is used
BAD_STEPS = 3  # in a row, after which a run stops
ROOM_SECONDS = 5.0  # between two attempts to write on a full disk
Answer = TypeVar("Answer")


class Diverged(StudioError):
    """Losses or gradients that are no numbers."""

    code = "diverged"


@dataclass
class Turn:
    """What happens between two steps; each returns when the run may go on.

    Attributes:
        between: called before every micro-batch: lets others have the device.
        asked: returns `stop`, `save`, `sample`, `pause` or "".
        committed: hears of every checkpoint: samples are drawn.
    """

    between: Callable[[], None] = lambda: None
    asked: Callable[[], str] = lambda: ""
    committed: Callable[[int, Any], None] = lambda step, path: None


@dataclass
class Trainer:
    """One run's moving parts.

    Attributes:
        step: updates done.
        average: of the weights, if the method wants one; in the order of its parameters.
        bad: steps in a row whose numbers were not finite.
        held: `(step, loss)` of the held-out pictures, newest last.
    """

    config: TrainingConfig
    method: Method
    material: Material
    run: Run
    accelerator: Accelerator
    facts: dict[str, str]
    fingerprint: list[list[Any]]
    turn: Turn = field(default_factory=Turn)

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer(self.config, self.method.rates())
        self.schedule = build_schedule(self.config, self.optimizer)
        self.named = list(self.method.parameters_by_name())
        decay = self.method.averaged
        self.average = [p.detach().clone() for _, p in self.named] if decay is not None else []
        self.checkpoints = Checkpoints(self.run.folder / "checkpoints", self.config.checkpoints_total_limit)
        self.module = self.accelerator.prepare_model(self.method) if self.accelerator.num_processes > 1 else self.method
        self.step = self.bad = self.saved = 0
        self._warm: tuple[float, int] | None = None
        self._waiting: tuple[int, torch.Tensor, torch.Tensor, float] | None = None

    @property
    def device(self) -> torch.device:
        return self.method.parts.device.place

    def train(self) -> str:
        """Go on until the last step; return `finished` or `stopped`."""
        while self.step < self.config.max_train_steps:
            self.update(self.step)
            self.step += 1
            due = self.config.checkpointing_steps
            asked = self.asked()
            if self.config.validation_steps and self.step % self.config.validation_steps == 0:
                self.measure()
            if asked in ("stop", "save", "sample") or (due and self.step % due == 0):
                self.commit()
            self.report()
            if asked == "stop":
                return "stopped"
        if self.saved != self.step:
            self.commit()
        return "finished"

    def update(self, step: int) -> None:
        """Do one update of the weights."""
        config, share = self.config, 1 / self.config.gradient_accumulation_steps
        self.method.step_begins(step)
        losses = []
        for micro in range(config.gradient_accumulation_steps):
            self.turn.between()
            batch = self.material.batch(step, micro, self.accelerator.process_index, self.accelerator.num_processes)
            torch.manual_seed(seed_of(config.seed, step, micro, self.accelerator.process_index))
            last = micro == config.gradient_accumulation_steps - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                loss = self.module(batch).mean() * share
                loss.backward()
            losses.append(loss.detach())
        total = torch.stack(losses).sum()
        if self.accelerator.num_processes > 1:
            total = self.reduced(total, "mean")
        parameters = [p for _, p in self.named]
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
        self.apply(total, norm)

    def apply(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Change the weights unless something is not finite; on a GPU that is decided there, and told a step later."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        rates = self.schedule.get_last_lr()
        self.tell_waiting()
        if self.device.type == "cuda" and self.config.optimizer == "adamw":
            setattr(self.optimizer, "found_inf", (~finite).float())  # noqa: B010  # what a GradScaler tells fused optimisers
            self.optimizer.step()
        elif bool(finite):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        decay = self.method.averaged
        if decay is not None:
            weight = 1 - min(decay, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                self.average, [p.detach() for _, p in self.named], weight
            )
        self.method.step_ended()
        self._waiting = self.step + 1, loss, norm, float(rates[0])
        if self.device.type != "cuda":
            self.tell_waiting()

    def tell_waiting(self) -> None:
        """Keep the numbers of the step before, which are there by now.

        Raises:
            Diverged: after three steps in a row whose numbers were not finite.
        """
        if self._waiting is None:
            return
        step, loss, norm, rate = self._waiting
        self._waiting = None
        value, length = float(loss), float(norm)
        if math.isfinite(value) and math.isfinite(length):
            self.bad = 0
            if self.accelerator.is_main_process:
                told = {"loss": value, "grad_norm": length, "learning_rate": rate}
                if step % MEMORY_EVERY == 1:
                    told["memory"] = used_memory(self.device)
                patiently(self.run, lambda: self.run.metric(step, **told))
                if self.config.report_to != "none":
                    self.accelerator.log(told, step=step)
            return
        self.bad += 1
        if self.accelerator.is_main_process:
            self.run.notice(f"step {step}: loss {value:g}, gradient {length:g}; the step is left out")
        if self.bad >= BAD_STEPS:
            kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "nothing was saved yet"
            raise Diverged(f"{BAD_STEPS} steps in a row gave no finite numbers; {kept}; {cause_of(self.config, value)}")

    def asked(self) -> str:
        """Return what every process should do now, as the first one was told."""
        code = ("", "save", "sample", "stop")
        mine = self.turn.asked() if self.accelerator.is_main_process else ""
        if self.accelerator.num_processes == 1:
            return mine
        told = torch.tensor(float(code.index(mine)), device=self.device)
        return code[int(self.reduced(told, "sum").item())]

    def reduced(self, number: torch.Tensor, how: str) -> torch.Tensor:
        """Join a number of all processes: their `sum` or `mean`."""
        joined: Any = self.accelerator.reduce(number, how)
        return joined

    def report(self) -> None:
        """Tell how far the run is; the first step is left out of the estimate because it warms up."""
        if not self.accelerator.is_main_process:
            return
        now = time.monotonic()
        self._warm = self._warm or (now, self.step)
        began, first = self._warm
        left = (
            (now - began) / (self.step - first) * (self.config.max_train_steps - self.step)
            if self.step > first
            else None
        )
        event = Progress(
            job=self.run.id, image=0, images=1, step=self.step, steps=self.config.max_train_steps, seconds_left=left
        )
        patiently(self.run, lambda: self.run.tell(event))

    def measure(self) -> float | None:
        """Return the loss on held-out pictures, with noise that never changes; None if there are none."""
        if not self.material.has_held:
            return None
        self.method.eval()
        with torch.no_grad():
            losses = [self.method(batch).mean() for batch in self.material.held_batches()]
        self.method.train()
        value = float(torch.stack(losses).mean())
        if self.accelerator.is_main_process:
            self.run.metric(self.step, held_out_loss=value)
        return value

    def commit(self) -> None:
        """Save a checkpoint, then let samples be drawn from it."""
        self.tell_waiting()
        if not all(bool(torch.isfinite(p).all()) for _, p in self.named):
            raise Diverged(f"the weights are not finite; {cause_of(self.config, math.nan)}")
        if not self.config.validation_steps:
            self.measure()
        if self.accelerator.is_main_process:
            tensors, numbers = self.state()
            patiently(self.run, self.run.flush)  # a checkpoint never stands without the curve that led to it
            path = patiently(self.run, lambda: self.checkpoints.write(self.step, self.save_weights, tensors, numbers))
            self.run.tell(Checkpoint(job=self.run.id, step=self.step, path=str(path)))
            self.turn.committed(self.step, path)
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def save_weights(self, folder: Path, *, final: bool = False) -> Path:
        """Write what a person uses: the averaged weights where the method keeps an average. A checkpoint's name ends in its step."""
        name = self.config.output_name + ("" if final else f"-{self.step:06d}")
        facts = self.facts | {"steps": str(self.step)}
        if not self.average:
            return self.method.save(folder, name, facts)
        own = [p.detach().clone() for _, p in self.named]
        try:
            for (_, parameter), mean in zip(self.named, self.average, strict=True):
                parameter.data.copy_(mean)
            return self.method.save(folder, name, facts)
        finally:
            for (_, parameter), value in zip(self.named, own, strict=True):
                parameter.data.copy_(value)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return everything that the next step depends on."""
        tensors, optimizer = optimizer_state(self.optimizer)
        for place, (name, parameter) in enumerate(self.named):
            tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
            if self.average:
                tensors[f"average.{name}"] = self.average[place].cpu().contiguous()
        numbers = {
            "step": self.step,
            "bad": self.bad,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "data": self.fingerprint,
            "processes": self.accelerator.num_processes,
        }
        return tensors, numbers

    def resume(self) -> bool:
        """Go on from the newest checkpoint; False if there is none, so that the run begins anew."""
        path = self.checkpoints.newest()
        if path is None:
            return False
        tensors, numbers = read_state(path)
        load_parameters(self.named, tensors, "weight")
        for place, (name, _) in enumerate(self.named):
            if self.average:
                self.average[place].copy_(tensors[f"average.{name}"])
        restore_optimizer(self.optimizer, tensors, numbers["optimizer"])
        self.schedule.load_state_dict(numbers["schedule"])
        self.step = self.saved = int(numbers["step"])
        self.bad = int(numbers["bad"])
        return True


def seed_of(*parts: int) -> int:
    """Mix numbers into one seed."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def disk_full(error: Exception) -> bool:
    """Tell whether there is no room; safetensors hides the number of the error in its text."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)


def patiently(run: Run, write: Callable[[], Answer]) -> Answer:
    """Write; if the disk is full, say so once and wait until there is room."""
    told = False
    while True:
        try:
            return write()
        except (OSError, SafetensorError) as error:
            if not disk_full(error):
                raise
            if not told:
                logger.warning("the disk is full; the run waits until there is room in %s", run.folder)
            told = True
            time.sleep(ROOM_SECONDS)
