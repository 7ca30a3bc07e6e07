"""Peak memory of `python -m studio merge`: that of the child process, without what Python and torch take, over the size of one model.

Two single files of random weights in half precision, `--megabytes` each, in tensors as large as Stable Diffusion XL's, are summed.
What Python and torch take is measured by a merge of two files of one small tensor.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure

GOALS = {"ratio": ("<=", 1.3)}
SIDE = 1280, 5120
CODE = (
    "import json, re, sys; from studio.merge_main import attempt; said = attempt(json.load(sys.stdin)); "
    "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read()); "  # getrusage counts what the parent held at the fork
    "print(json.dumps([said['problem'], int(peak[1])]))"
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--runs", type=int, default=2, help="merges")
    parser.add_argument("--megabytes", type=int, default=400, help="of one model")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure merges."""
    import torch
    from safetensors.torch import save_file

    columns: dict[str, list[float]] = {"ratio": [], "megabytes": [], "base_megabytes": [], "seconds": []}
    number = max(1, flags.megabytes * 2**20 // (2 * SIDE[0] * SIDE[1]))
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        folder = Path(name)
        for one in ("a", "b"):
            state = {f"model.diffusion_model.{i}.weight": torch.randn(SIDE).half() for i in range(number)}
            save_file(state, folder / f"{one}.safetensors")
            save_file({"x": torch.ones(2)}, folder / f"small-{one}.safetensors")
        size = (folder / "a.safetensors").stat().st_size / 2**20
        for _ in range(flags.runs):
            base, _ = merged(folder, "small-")
            peak, seconds = merged(folder, "")
            for key, value in zip(columns, ((peak - base) / size, peak, base, seconds), strict=True):
                columns[key].append(value)
    result = measure.report(columns, GOALS)
    return {"ratio": result["median"]["ratio"], "work": f"two models of {size:,.0f} MB"} | result


def merged(folder: Path, prefix: str) -> tuple[float, float]:
    """Merge two files in a process of its own; return its peak in MB, and the seconds that it took."""
    out = folder / "out.safetensors"
    plan = {
        "models": [{"name": one, "path": str(folder / f"{prefix}{one}.safetensors")} for one in ("a", "b")],
        **{
            "method": "weighted-sum",
            "ratios": [0.5],
            "loras": [],
            "precision": "keep",
            "provenance": {},
            "out": str(out),
        },
    }
    began = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(plan), capture_output=True, text=True, check=True
    )
    problem, peak = json.loads(answer.stdout)
    if problem:
        raise RuntimeError(problem)
    out.unlink()
    return peak / 1024, time.perf_counter() - began
