"""A training run is killed at random moments, also while it resumes: losses and result are those of the unbroken run, bit by bit."""

import multiprocessing
import random
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.trust.figure import Figure, Tally

SEED = 20_261_122
PREPARED = ["trainers.session", "trainers.lora", "trainers.dreambooth", "trainers.textual_inversion", "tests.training"]
STEPS = {"max_train_steps": 12, "checkpointing_steps": 2, "checkpoints_total_limit": 1}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "dreambooth": {"rank": 2, "instance_prompt": "a sks heart"},
    "textual-inversion": {"placeholder_token": "<heart>", "initializer_token": "heart"},
}


def naive_directory(path: Path, fill: Any) -> None:
    """Write a checkpoint in place, as the example trainers of diffusers do."""
    path.mkdir(parents=True, exist_ok=True)
    fill(path)
    time.sleep(0.05)  # what a larger model takes


def child(method: str, values: dict[str, Any], root: str, run: str, naive: bool) -> None:
    """Begin a run, or go on with it."""
    from tests.training import train
    from trainers import checkpoints
    from trainers.config_files import check_config
    from trainers.methods import METHODS as KNOWN

    config = check_config(KNOWN[method][0], values)
    resume = (Path(root) / run / "config.yaml").is_file()
    if not naive:
        train(method, config, Path(root), run=run, resume=resume)
        return

    def highest(self: Any) -> Path | None:
        return self.path(self.steps()[-1]) if self.steps() else None

    with (
        patch.object(checkpoints.writer, "write_directory", naive_directory),
        patch.object(checkpoints.Checkpoints, "newest", highest),
    ):
        train(method, config, Path(root), run=run, resume=resume)


def trial(method: str, values: dict[str, Any], root: Path, run: str, delays: list[float], naive: bool) -> int:
    """Kill a run after each delay, then let it end; return how many died.

    Raises:
        AssertionError: if it cannot be finished.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PREPARED)
    died = 0
    for delay in [*delays, None]:
        process = context.Process(target=child, args=(method, values, str(root), run, naive))
        process.start()
        process.join(600 if delay is None else delay)
        if process.is_alive():
            process.kill()
            process.join()
            assert delay is not None, "the run hangs"
            died += 1
        elif delay is None or process.exitcode:
            assert process.exitcode == 0, f"it could not go on (exit code {process.exitcode})"
        else:
            break
    return died


def run(full: bool, mutant: bool = False, trials: int = 0) -> Figure:
    """Run 200 trials a method, or three; the mutant writes checkpoints in place and believes the newest."""
    from tests.training import config_of, content, draw_pictures, losses

    tally, rng, died = Tally(), random.Random(SEED), 0
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
        root = Path(folder)
        pictures = draw_pictures(root / "pictures", 3)
        for method in ["lora"] if mutant or trials else METHODS:
            values = config_of(method, pictures, **STEPS, **METHODS[method]).model_dump(mode="json")
            began = time.monotonic()
            trial(method, values, root, f"{method}-whole", [], naive=False)
            seconds = time.monotonic() - began
            whole = losses(root / f"{method}-whole"), result(root / f"{method}-whole", content)
            for number in range(trials or (200 if full else 12 if mutant else 3)):
                name = f"{method}-{number}"
                with tally.case(name):
                    delays = [rng.uniform(0, seconds) for _ in range(rng.randrange(2, 5))]
                    died += trial(method, values, root, name, delays, mutant)
                    assert losses(root / name) == whole[0], "other losses"
                    assert result(root / name, content) == whole[1], "another result"
                counts[method] = counts.get(method, 0) + 1
    return tally.figure(
        "F1", __doc__ or "", "every trial of every method", seed=SEED, kills=died, passed=died > 0, **counts
    )


def result(run: Path, content: Any) -> list[dict[str, Any]]:
    """Return what a run left in `final`."""
    return [content(path) for path in sorted((run / "final").rglob("*.safetensors"))]
