"""Price of changing LoRA: ours, which keep their weights beside the model's, against diffusers' unload and load of the whole stack.

A stack of three on every attention of the embedded model, rank 16, as files. `weights_ms` is the time until other weights for the same
stack are on; `swap_ms` until another LoRA, which was used before, stands in the place of one; `reload_ms` what diffusers takes to take
all three off and load the new three. `ratio` is reload / swap.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure

GOALS = {"ratio": (">=", 20.0), "weights_ms": ("<=", 5.0)}
WARM_UPS = 2
RANK = 16


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--runs", type=int, default=20, help="rounds")


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure rounds."""
    import torch
    from safetensors.torch import load_file, save_file

    from benchmarks.shapes.product import PRESETS
    from benchmarks.shapes.score import load
    from studio.engine.adapters import AdapterManager
    from studio.engine.devices import open_device
    from studio.loras import LoraSpec
    from studio.records import PartRef

    torch.set_num_threads(1)
    pipe, manager = load(PRESETS / "models" / "shapes"), AdapterManager(open_device("cpu", 1))
    columns: dict[str, list[float]] = {"weights_ms": [], "swap_ms": [], "reload_ms": [], "ratio": []}
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        parts = []
        for number in range(4):
            state = {}
            for name, module in pipe.unet.named_modules():
                if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                    rows, width = module.weight.shape
                    state[f"unet.{name}.lora_A.weight"] = 0.1 * torch.randn(RANK, width)
                    state[f"unet.{name}.lora_B.weight"] = 0.1 * torch.randn(rows, RANK)
            path = Path(folder) / f"{number}.safetensors"
            save_file(state, path)
            parts.append(PartRef(kind="lora", id=path.stem, path=str(path), sha256=f"{number}" * 64))

        def ours(chosen: tuple[int, ...], weight: float) -> float:
            stack = [(LoraSpec(name=parts[i].id, weight=weight), parts[i]) for i in chosen]
            began = time.perf_counter()
            with manager.applied(pipe, stack, lambda note: None):
                return 1000 * (time.perf_counter() - began)

        def bare(chosen: tuple[int, ...]) -> float:
            began = time.perf_counter()
            other.unload_lora_weights()
            for i in chosen:
                other.load_lora_weights(load_file(parts[i].path), adapter_name=parts[i].id)
            other.set_adapters([parts[i].id for i in chosen], [0.7] * len(chosen))
            return 1000 * (time.perf_counter() - began)

        other = load(PRESETS / "models" / "shapes")
        stacks = itertools.cycle([(0, 1, 2), (0, 1, 3)])
        for number, stack in zip(range(WARM_UPS + flags.runs), stacks, strict=False):
            swap = ours(stack, 0.7)
            weights = ours(stack, 0.5 + number / 100)
            reload = bare(stack)
            if number >= WARM_UPS:
                for name, value in zip(columns, (weights, swap, reload, reload / swap), strict=True):
                    columns[name].append(value)
    result = measure.report(columns, GOALS)
    return {"ratio": result["median"]["ratio"], "work": "three LoRA, rank 16, the embedded model"} | result
