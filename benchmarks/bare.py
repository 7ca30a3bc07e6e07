"""Diffusers and nothing else: a process that loads a pipeline once and, for each line on stdin, draws and saves a PNG.

`python -m benchmarks.bare MODEL THREADS` is the process (it answers each line with one), `Bare` its other end.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.processes import cpu_seconds, log_end, started


@dataclass(frozen=True)
class Drawn:
    """One picture: wall seconds from question to answer, and of these the pipeline's and the saving's own, in the process."""

    seconds: float
    pipeline: float
    save: float


class Bare:
    """Asks the process for pictures."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    @property
    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds(self._process.pid)

    def draw(self, path: Path, **values: Any) -> Drawn:
        """Draw a picture into a file.

        Raises:
            RuntimeError: if the process ended.
        """
        began = time.perf_counter()
        answer = self._ask({"path": str(path)} | values)
        return Drawn(time.perf_counter() - began, answer["pipeline"], answer["save"])

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare pipeline ended: {log_end(self._folder)}")
        return json.loads(line)


@contextmanager
def bare(model: Path, folder: Path, cpu_threads: int) -> Iterator[Bare]:
    """Start the process; it loads when it is asked for the first picture at the latest."""
    command = [sys.executable, "-m", "benchmarks.bare", str(model), str(cpu_threads)]
    with started(command, folder, stdin=subprocess.PIPE) as process:
        yield Bare(process, folder)


def answer_all(model: str, cpu_threads: int, questions: TextIO, answers: TextIO) -> None:
    """Load the pipeline; draw what each line asks for: a path, a seed, and arguments of the pipeline."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(cpu_threads)
    pipe = StableDiffusionPipeline.from_pretrained(
        model,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for line in questions:
        values = json.loads(line)
        path, seed = values.pop("path"), values.pop("seed")
        began = time.perf_counter()
        image = pipe(**values, generator=torch.Generator("cpu").manual_seed(seed)).images[0]
        made = time.perf_counter()
        image.save(path)
        saved = time.perf_counter()
        answers.write(json.dumps({"pipeline": made - began, "save": saved - made}) + "\n")
        answers.flush()


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        answer_all(sys.argv[1], int(sys.argv[2]), sys.stdin, sys.__stdout__ or sys.stderr)
