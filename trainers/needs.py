"""What a config needs of this machine beside the model: told before anything is loaded."""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import is_tensorboard_available, is_trackio_available

from studio.errors import InvalidRequest
from trainers.configs import TrainingConfig
from trainers.scorers.choice import scorer_folders

TRACKERS = {"tensorboard": is_tensorboard_available, "trackio": is_trackio_available}
COMPILERS = ("c++", "g++", "clang++", "cl")


def check_needs(config: TrainingConfig, device: str, roots: Sequence[Path]) -> None:
    """Refuse what is not there.

    Args:
        config: of a run.
        device: `cpu`, `cuda` or `mps`.
        roots: folders that hold `scorers`.

    Raises:
        InvalidRequest: one sentence.
    """
    scorer_folders(config.scorer, roots)
    if config.report_to != "none" and not TRACKERS[config.report_to]():
        raise InvalidRequest(
            "report_to",
            f"report_to={config.report_to} needs the package {config.report_to}: pip install {config.report_to}, or use none",
        )
    if config.compile and (problem := compile_problem(device)):
        raise InvalidRequest("compile", f"compile {problem}; install it, or switch compile off")


def compile_problem(device: str) -> str:
    """Say what torch.compile lacks on a kind of device; "" if nothing."""
    if device == "cuda":
        return "" if importlib.util.find_spec("triton") else "needs the package triton on a GPU"
    named = os.environ.get("CXX")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, COMPILERS)), None)
    return "" if found else f"needs a C++ compiler ({named or ', '.join(COMPILERS)}) on this device"
