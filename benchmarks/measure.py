"""Statistics over alternated runs, and the facts of the machine that they were made on."""

import importlib.metadata
import operator
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COMPARE = {"<=": operator.le, ">=": operator.ge}
LIBRARIES = ("torch", "diffusers", "transformers", "gradio")

Goals = Mapping[str, tuple[str, float]]


def pairwise(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return the ratios first / second of runs that were made next to each other, so that slow drift cancels.

    Raises:
        ValueError: if the two do not have the same length.
    """
    return [one / other for one, other in zip(first, second, strict=True)]


def short(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")


def report(columns: Mapping[str, Sequence[float]], goals: Goals) -> dict[str, Any]:
    """Sum up runs.

    Args:
        columns: figure name -> one value a run.
        goals: figure name -> (`<=` or `>=`, limit) for its median.

    Returns:
        {"median", "spread": [least, largest] of each, "runs", "goal", "ok"}; `ok` is judged before rounding.
    """
    medians = {name: statistics.median(values) for name, values in columns.items()}
    return {
        "median": {name: short(value) for name, value in medians.items()},
        "spread": {name: [short(min(values)), short(max(values))] for name, values in columns.items()},
        "runs": max(len(values) for values in columns.values()),
        "goal": {name: f"{sign} {limit:g}" for name, (sign, limit) in goals.items()},
        "ok": all(COMPARE[sign](medians[name], limit) for name, (sign, limit) in goals.items()),
    }


def machine() -> dict[str, Any]:
    """Describe this machine as it is now, without importing a heavy library."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": short(os.getloadavg()[0]) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def processor() -> str:
    """Return the processor's name."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load_warning(facts: Mapping[str, Any]) -> str | None:
    """Say that the machine was too busy for its wall times to count, or None."""
    if facts["load"] is None or facts["load"] <= facts["cores"]:
        return None
    return (
        f"the load average was {facts['load']} on {facts['cores']} cores at the start: wall times are not to be trusted"
    )
