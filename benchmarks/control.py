"""Price of one control unit: the engine with a ControlNet unit against diffusers' own ControlNet pipeline, same picture, one process.

Both draw what the embedded model draws by itself with `shapes-canny`; the pictures are compared before any time counts (1 level of 255,
because ours ends as a PNG). `ratio` is ours / bare, of processor time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

PROMPT = "a red square on a blue background"
GOALS = {"ratio": ("<=", 1.1)}
WARM_UPS = 2


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--runs", type=int, default=10, help="pairs")


def timed(draw: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return processor seconds, and the picture."""
    began = time.process_time()
    made = draw()
    return time.process_time() - began, made


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure pairs.

    Raises:
        RuntimeError: if the two draw different pictures; then no time means anything.
    """
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
    from PIL import Image

    from benchmarks.shapes.edges import canny_edges
    from benchmarks.shapes.product import PRESETS, Product

    torch.set_num_threads(1)
    control = np.full((128, 128, 3), 255, np.uint8)
    control[30:100, 25:90] = 0
    edges = np.repeat(canny_edges(control)[..., None], 3, axis=2).astype(np.uint8) * 255
    network = ControlNetModel.from_pretrained(PRESETS / "controlnets" / "shapes-canny", dtype=torch.float32)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        PRESETS / "models" / "shapes", controlnet=network, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)

    def bare() -> np.ndarray:
        with torch.inference_mode():
            made = pipe(
                PROMPT,
                image=Image.fromarray(edges),
                num_inference_steps=16,
                guidance_scale=2.0,
                generator=torch.Generator().manual_seed(1),
            )
        return np.array(made.images[0])

    columns: dict[str, list[float]] = {"ours_cpu_s": [], "bare_cpu_s": []}
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        product = Product(Path(folder))
        units = [{"model": "shapes-canny", "image": product.picture(edges)}]
        request = {"prompt": PROMPT, "seed": 1, "num_inference_steps": 16, "guidance_scale": 2.0, "controls": units}
        for number in range(WARM_UPS + flags.runs):
            ours_s, ours = timed(lambda: product.draw(**request))
            bare_s, theirs = timed(bare)
            if np.abs(ours.astype(int) - theirs).max() > 1:
                raise RuntimeError(f"the pictures differ by {np.abs(ours.astype(int) - theirs).max()} of 255 levels")
            if number >= WARM_UPS:
                columns["ours_cpu_s"].append(ours_s)
                columns["bare_cpu_s"].append(bare_s)
    columns["ratio"] = measure.pairwise(columns["ours_cpu_s"], columns["bare_cpu_s"])
    result = measure.report(columns, GOALS)
    return {"ratio": result["median"]["ratio"], "work": "128x128, 16 steps, one unit"} | result
