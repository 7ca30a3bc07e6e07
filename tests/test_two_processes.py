"""Two processes that learn together are one that learns from twice as much."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from safetensors.torch import load_file

from studio.settings import ROOT
from tests.training import SMALL, draw_pictures, losses


def run(tmp_path: Path, name: str, batch: int, processes: int) -> tuple[dict, dict[int, float]]:
    config = SMALL | {"dataset": str(tmp_path / "pictures"), "train_batch_size": batch, "max_train_steps": 3, "rank": 2}
    config |= {"gradient_accumulation_steps": 2, "validation_prompts": []}
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    launch = (
        []
        if processes == 1
        else ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "29641"]
    )
    command = [
        sys.executable,
        *launch,
        "-m",
        "trainers",
        "lora",
        "--config",
        str(tmp_path / f"{name}.yaml"),
        "--cpu-threads",
        "1",
    ]
    command += ["--run-dir", str(tmp_path / name), "--data-dir", str(tmp_path / "data"), "--device", "cpu"]
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} if processes > 1 else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return load_file(told["artifact"]), losses(tmp_path / name)


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 5)
    one, one_losses = run(tmp_path, "one", 2, 1)
    two, two_losses = run(tmp_path, "two", 1, 2)
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4
    assert all(abs(one_losses[step] - two_losses[step]) < 1e-4 for step in (1, 2, 3)) and len(two_losses) == 3
