"""A run's state on disk: written whole or not at all, verified before it is believed. safetensors and JSON only.

A checkpoint is `step-000100/{weights/, state/, manifest.json}`: `weights` is what a person uses, `state` what a resumed run needs.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from studio.errors import ModelError, StudioError
from studio.store import writer

logger = logging.getLogger(__name__)

STATE, WEIGHTS = "state", "weights"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints/` of the run.
        keep: how many keep their state; None keeps all.
    """

    def __init__(self, folder: Path, keep: int | None) -> None:
        self.folder, self._keep = folder, keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def write(
        self, step: int, weights: Callable[[Path], object], tensors: dict[str, torch.Tensor], numbers: dict[str, Any]
    ) -> Path:
        """Commit a checkpoint, then let older states go."""

        def fill(folder: Path) -> None:
            (folder / WEIGHTS).mkdir()
            weights(folder / WEIGHTS)
            (folder / STATE).mkdir()
            save_file(tensors, folder / STATE / "tensors.safetensors")
            (folder / STATE / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")

        path = self.path(step)
        if path.exists():  # of a run that went this way before and was damaged, or that lost its state to pruning
            self.set_aside(path)
        writer.write_directory(path, fill)
        self._prune()
        return path

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint, ascending."""
        return sorted(
            int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*") if path.name[5:].isdigit()
        )

    def newest(self) -> Path | None:
        """Return the newest checkpoint that is whole and can be resumed; damaged ones are set aside."""
        writer.sweep(self.folder)
        for step in reversed(self.steps()):
            path = self.path(step)
            if not (path / STATE).is_dir():
                continue
            problem = writer.verify_directory(path)
            if problem is None:
                return path
            logger.warning("%s; it is set aside", problem)
            self.set_aside(path)
        return None

    def set_aside(self, path: Path) -> None:
        """Move a checkpoint away under a name that nobody looks for."""
        number = 1
        while (target := path.with_name(f"damaged-{path.name}-{number}")).exists():
            number += 1
        writer.move(path, target)

    def _prune(self) -> None:
        with_state = [self.path(step) for step in self.steps() if (self.path(step) / STATE).is_dir()]
        for path in with_state[: -self._keep] if self._keep else []:
            drop_state(path)


def drop_state(path: Path) -> None:
    """Remove what only a resumed run needs, in one move, and take it out of the manifest."""
    manifest = json.loads((path / writer.MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if not name.startswith(f"{STATE}/")}
    gone = path.with_name(f"{writer.PART}0-{path.name}-{STATE}")
    shutil.rmtree(gone, ignore_errors=True)
    (path / STATE).rename(gone)
    writer.write_json(path / writer.MANIFEST, manifest)
    shutil.rmtree(gone, ignore_errors=True)


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what a resumed run needs.

    Raises:
        StudioError: if it cannot be read.
    """
    try:
        numbers = json.loads((path / STATE / "numbers.json").read_text(encoding="utf-8"))
        return load_file(path / STATE / "tensors.safetensors"), numbers
    except (OSError, ValueError) as error:
        raise StudioError(f"{path.name} cannot be read ({error}); remove it to resume from the one before") from None


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors and plain numbers."""
    told = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {"groups": [], "state": {}}
    for place, state in told["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{place}.{name}"] = value.detach().cpu().contiguous()
            elif value is None or isinstance(value, int | float | bool | str | list):
                numbers["state"].setdefault(str(place), {})[name] = value
            else:
                raise StudioError(f"the optimiser keeps {name} as {type(value).__name__}, which cannot be saved safely")
    for place, group in enumerate(told["param_groups"]):
        plain: dict[str, Any] = {}
        for name, value in group.items():
            if isinstance(value, torch.Tensor):
                tensors[f"group.{place}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain[name] = list(value) if isinstance(value, tuple) else value
        numbers["groups"].append(plain)
    return tensors, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]
) -> None:
    """Undo `optimizer_state`."""
    state: dict[int, dict[str, Any]] = {int(place): dict(values) for place, values in numbers["state"].items()}
    groups = [dict(group) for group in numbers["groups"]]
    now = optimizer.state_dict()["param_groups"]
    for group, own in zip(groups, now, strict=True):
        group |= {name: tuple(group[name]) for name, value in own.items() if isinstance(value, tuple)}
    for key, tensor in tensors.items():
        kind, place, *rest = key.split(".", 2)
        if kind == "optimizer":
            state.setdefault(int(place), {})[rest[0]] = tensor
        elif kind == "group":
            groups[int(place)][rest[0]] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_parameters(
    named: Iterable[tuple[str, torch.nn.Parameter]], tensors: dict[str, torch.Tensor], prefix: str
) -> None:
    """Copy saved values into parameters.

    Raises:
        StudioError: if the state is of another network.
    """
    for name, parameter in named:
        saved = tensors.get(f"{prefix}.{name}")
        if saved is None or saved.shape != parameter.shape:
            raise StudioError(f"the checkpoint has other weights than this run ({name}); start a new run")
        parameter.data.copy_(saved)


def read_adapter(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read an adapter's file: tensors by PEFT's keys, and its metadata.

    Raises:
        ModelError: if it cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise ModelError(
            f"init_from={str(path)!r} cannot be read ({error}); choose a .safetensors file of this method"
        ) from None
