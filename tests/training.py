"""Small runs for the tests of the trainers: pictures of the embedded model's world, and a session around a config."""

import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.shapes.render import render
from benchmarks.shapes.world import Scene, Thing, article
from studio.settings import Settings
from trainers.config_files import check_config
from trainers.configs import TrainingConfig
from trainers.methods import METHODS

BACKGROUNDS = ("white", "green", "blue", "yellow", "black", "purple")
SMALL = {"resolution": 64, "bucket_step": 32, "train_batch_size": 2, "learning_rate": 1e-3, "seed": 3}


def draw_pictures(folder: Path, number: int = 5, *, captions: bool = True, word: str = "sks heart") -> Path:
    """Draw orange hearts on several backgrounds, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for i in range(number):
        background = BACKGROUNDS[i % len(BACKGROUNDS)]
        spot = (0.5 + rng.uniform(-0.1, 0.1) for _ in range(2))
        scene = Scene((Thing("orange", "heart", *spot, 0.25 * rng.uniform(0.9, 1.1)),), background)
        Image.fromarray(render(scene, rng)).save(folder / f"{i}.png")
        if captions:
            (folder / f"{i}.txt").write_text(f"a {word} on {article(background)} {background} background")
    return folder


def config_of(method: str, dataset: Path | None, **values: Any) -> TrainingConfig:
    idle = METHODS[method][0].idle
    told = {name: value for name, value in SMALL.items() if name not in idle}
    told |= ({"dataset": str(dataset)} if dataset else {}) | values
    return check_config(METHODS[method][0], told)


def train(
    method: str,
    config: TrainingConfig,
    root: Path,
    *,
    run: str = "run",
    resume: bool = False,
    models: tuple[Path, ...] = (),
    should_stop: Callable[[Any], bool] = lambda session: False,
) -> dict[str, Any]:
    """Run a session in this process; `should_stop` is asked after every step."""
    from trainers.session import Session

    settings = Settings(data_dir=root / "data", device="cpu", cpu_threads=1, extra_models=models)
    session = Session(method, config, settings, root / run, lambda: should_stop(session))
    answer = session.run(resume=resume)
    assert answer is not None
    return answer


def command_of(method: str, config: Path, root: Path, run: str = "run") -> list[str]:
    """Return the command that a person types for a run in `root`."""
    command = [
        sys.executable,
        "-m",
        "trainers",
        method,
        "--config",
        str(config),
        "--cpu-threads",
        "1",
        "--device",
        "cpu",
    ]
    return [*command, "--data-dir", str(root / "data"), "--run-dir", str(root / run)]


def stop_after(steps: int) -> Callable[[Any], bool]:
    """Ask a session to stop after so many steps."""
    return lambda session: session.step >= steps


def adapter(answer: dict[str, Any]) -> dict[str, torch.Tensor]:
    path = Path(answer["artifact"])
    return load_file(path if path.is_file() else next(path.glob("*.safetensors")))


def losses(run: Path) -> dict[int, float]:
    """Return step -> loss; of a step that was done twice the last counts."""
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if line]
    return {row["step"]: row["value"] for row in rows if row["type"] == "metric" and row["name"] == "loss"}


def content(path: Path | str) -> dict[str, Any]:
    """Return a safetensors file's bytes by name, and its metadata, whose order is random."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    told = {name: header.pop(name, None) for name in ["__metadata__"]}
    return told | {
        name: data[start + one["data_offsets"][0] : start + one["data_offsets"][1]] for name, one in header.items()
    }


def forks() -> Any:
    """Return a fork server that has loaded what trainers need: a child begins in a moment, not after seconds of imports."""
    context = multiprocessing.get_context("forkserver")
    methods = {place.partition(":")[0] for _, place in METHODS.values()}
    context.set_forkserver_preload(["trainers.session", *sorted(methods), "tests.training"])
    return context


class Forked:
    """`python -m trainers` with the words of a command, in a fork that has its libraries already; as `subprocess.Popen` tells of it."""

    def __init__(self, words: list[str], log: Path) -> None:
        self._process = forks().Process(target=_command, args=(words, str(log), dict(os.environ)), daemon=True)
        self._process.start()
        self.pid: int = self._process.pid
        self.terminate, self.kill = self._process.terminate, self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()


def _command(words: list[str], log: str, environment: dict[str, str]) -> None:
    from trainers.__main__ import main

    os.environ.update(environment)  # the server's own is that of the test which started it
    os.setsid()
    place = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(place, stream)
    sys.exit(main(words))


def _child(method: str, values: dict[str, Any], root: str, run: str) -> None:
    config = check_config(METHODS[method][0], values)
    folder = Path(root) / run
    train(method, config, Path(root), run=run, resume=(folder / "config.yaml").is_file())


def killed_run(method: str, config: TrainingConfig, root: Path, kills: list[float], run: str = "killed") -> int:
    """Run in children that are killed after `kills` seconds each, then once more until the end; return how many died."""
    context = forks()
    died = 0
    for delay in [*kills, None]:
        child = context.Process(target=_child, args=(method, config.model_dump(mode="json"), str(root), run))
        child.start()
        if delay is None:
            child.join(300)
            assert child.exitcode == 0, child.exitcode
            break
        began = time.monotonic()
        while time.monotonic() - began < delay and child.is_alive():
            time.sleep(0.005)
        if not child.is_alive():
            assert child.exitcode == 0, child.exitcode
            break
        child.kill()
        child.join()
        died += 1
    return died
