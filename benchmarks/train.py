"""`python -m benchmarks train --scripts DIR`: a LoRA step of ours beside diffusers' own example script.

DIR holds diffusers' examples (`text_to_image/train_text_to_image_lora.py`, release 0.40 or later; its package `datasets` is needed).
Same model, pictures, captions, rank, batch, precision and learning rate, one after the other in the same minute. `step` is the
mean seconds of a step, without the first ones, as their progress bar and our events tell; `peak` the most memory of the process.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import measure
from studio.settings import ROOT

MODEL = ROOT / "presets" / "models" / "shapes"
WARM = 5
GOALS = {"ratio_step": (">=", 2.0), "ratio_peak": ("<=", 1.0)}


def watched(command: list[str], environment: dict[str, str]) -> tuple[str, float, float]:
    """Run a command; return what it printed, its seconds, and the peak of its memory in GB."""
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT
        )
        watcher = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                family = [watcher, *watcher.children(recursive=True)]
                peak = max(peak, sum(one.memory_info().rss for one in family))
            except psutil.Error:
                pass
            time.sleep(0.1)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{text[-2000:]}")
    return text, time.perf_counter() - began, peak / 1e9


def theirs(scripts: Path, work: Path, steps: int, rank: int, batch: int) -> dict[str, float]:
    """Run diffusers' script for text-to-image LoRA."""
    rows = [
        json.dumps({"file_name": path.name, "text": path.with_suffix(".txt").read_text()})
        for path in sorted((work / "pictures").glob("*.png"))
    ]
    (work / "pictures" / "metadata.jsonl").write_text("\n".join(rows))
    command = [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_machines", "1"),
        *("--num_processes", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        str(scripts / "text_to_image" / "train_text_to_image_lora.py"),
        *("--pretrained_model_name_or_path", str(MODEL), "--train_data_dir", str(work / "pictures")),
        *(
            "--resolution",
            "128",
            "--rank",
            str(rank),
            "--train_batch_size",
            str(batch),
            "--max_train_steps",
            str(steps),
        ),
        *(
            "--learning_rate",
            "1e-4",
            "--seed",
            "0",
            "--output_dir",
            str(work / "theirs"),
            "--checkpointing_steps",
            "100000",
        ),
    ]
    text, _, peak = watched(command, {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    marks = re.findall(rf"(\d+)/{steps} \[(\d+):(\d+)<", text)
    seconds = {int(step): int(minutes) * 60 + int(rest) for step, minutes, rest in marks}
    first, last = min(step for step in seconds if step >= WARM), max(seconds)
    return {"step": (seconds[last] - seconds[first]) / (last - first), "peak": peak}


def ours(work: Path, steps: int, rank: int, batch: int) -> dict[str, float]:
    """Run our trainer with the same numbers."""
    config: dict[str, Any] = {
        "dataset": str(work / "pictures"),
        "resolution": 128,
        "rank": rank,
        "train_batch_size": batch,
        "max_train_steps": steps,
        "learning_rate": 1e-4,
        "checkpointing_steps": 0,
    }
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "trainers", "lora", "--config", str(work / "config.yaml"), "--cpu-threads", "1"]
    command += ["--run-dir", str(work / "ours"), "--data-dir", str(work / "data"), "--device", "cpu"]
    _, _, peak = watched(command, {"OMP_NUM_THREADS": "1"})
    rows = [json.loads(line) for line in (work / "ours" / "events.jsonl").read_text().splitlines()]
    left = [(row["step"], row["seconds_left"]) for row in rows if row["type"] == "progress" and row["seconds_left"]]
    step, seconds = left[-1]
    return {"step": seconds / (steps - step), "peak": peak}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scripts", type=Path, required=True, help="diffusers' folder `examples`")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Alternate the two and return medians and ratios; `ratio_step` above 1 means that ours is faster."""
    from benchmarks.shapes.subject import draw_subject  # which needs torch

    steps, rank, batch, scripts = flags.steps, flags.rank, flags.batch, flags.scripts.resolve()
    columns: dict[str, list[float]] = {
        name: [] for name in ("ratio_step", "ratio_peak", "ours_step", "theirs_step", "ours_peak", "theirs_peak")
    }
    for _ in range(flags.runs):
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            draw_subject(work / "pictures")
            found = {"ours": ours(work, steps, rank, batch), "theirs": theirs(scripts, work, steps, rank, batch)}
        for who, row in found.items():
            for name, value in row.items():
                columns[f"{who}_{name}"].append(value)
        columns["ratio_step"].append(found["theirs"]["step"] / found["ours"]["step"])
        columns["ratio_peak"].append(found["ours"]["peak"] / found["theirs"]["peak"])
    result = measure.report(columns, GOALS)
    return {"ratio": result["median"]["ratio_step"], "work": f"LoRA rank {rank}, batch {batch}, {steps} steps"} | result
