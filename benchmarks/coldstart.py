"""How long until the page is there: `app.py` against two other Gradio apps, started in turns.

`empty` imports gradio and launches an empty `gr.Blocks()`: nothing that uses Gradio can be faster. `heavy` imports gradio, torch
and StableDiffusionPipeline before it launches the same empty app: a page whose process also draws.

Wall seconds run from the start of the process to a complete 200 for `/` (`healthz`: for `/healthz` of `app.py`). Each start of
`app.py` has a fresh data root, so it makes a database and hashes the model. Meanwhile its worker process loads torch on the same
cores: that is in the wall time. CPU seconds are those of the process that serves the page alone, without the worker, up to the
answer of `/`. One round of all three comes first and is not counted, so that files and bytecode are in the caches for all of them.
"""

import argparse
import http.client
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.processes import cpu_seconds, free_port, log_end, started
from studio.settings import ROOT

EMPTY = """
import sys
import gradio as gr
with gr.Blocks() as page:
    pass
page.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), ssr_mode=False, quiet=True, prevent_thread_lock=True)
page.block_thread()
"""
HEAVY = "import gradio\nimport torch\nfrom diffusers import StableDiffusionPipeline\n" + EMPTY
LIMIT = 180.0  # seconds
TICK = 0.01
GOALS = {"wall_to_empty": ("<=", 1.25), "wall_to_heavy": ("<=", 0.45)}


@dataclass(frozen=True)
class Start:
    """One start: seconds to `/healthz` (or to `/` where there is none) and to `/`, CPU seconds at that moment."""

    healthz: float
    wall: float
    cpu: float


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="shapes", help="the model that the worker loads meanwhile")
    parser.add_argument("--extra-models", type=Path, action="append", default=[], metavar="DIR")


def status(port: int, path: str) -> int:
    """Return the status of a GET once its body has arrived, 0 if nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0
    finally:
        connection.close()


def start(command: list[str], *, port: int, paths: tuple[str, ...]) -> Start:
    """Start a server, wait for a 200 from each path in order, end it.

    Raises:
        RuntimeError: if it ends or does not answer in time.
    """
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        command = [part.replace("{data}", f"{folder}/data") for part in command]
        began = time.perf_counter()
        with started(command, Path(folder)) as process:
            times = []
            for path in paths:
                while status(port, path) != 200:
                    if process.poll() is not None or time.perf_counter() - began > LIMIT:
                        raise RuntimeError(f"no answer from {command[:3]}: {log_end(Path(folder))}")
                    time.sleep(TICK)
                times.append(time.perf_counter() - began)
            return Start(times[0], times[-1], cpu_seconds(process.pid))


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Start app, empty, heavy, app, empty, heavy, …"""
    more = [part for folder in flags.extra_models for part in ("--extra-models", str(folder.resolve()))]
    app = [str(ROOT / "app.py"), "--data-dir", "{data}", "--device", "cpu", "--model", flags.model, *more, "--port"]
    kinds = {
        "app": (app, ("/healthz", "/")),
        "empty": (["-c", EMPTY], ("/",)),
        "heavy": (["-c", HEAVY], ("/",)),
    }
    rounds: list[dict[str, Start]] = []
    for _ in range(flags.runs + 1):
        made = {}
        for name, (arguments, paths) in kinds.items():
            port = free_port()
            made[name] = start([sys.executable, *arguments, str(port)], port=port, paths=paths)
        rounds.append(made)
    columns = {f"{name}_wall_s": [made[name].wall for made in rounds[1:]] for name in kinds}
    columns |= {f"{name}_cpu_s": [made[name].cpu for made in rounds[1:]] for name in kinds}
    columns["app_healthz_s"] = [made["app"].healthz for made in rounds[1:]]
    ratios = {
        f"{what}_to_{other}": measure.pairwise(columns[f"app_{what}_s"], columns[f"{other}_{what}_s"])
        for what in ("wall", "cpu")
        for other in ("empty", "heavy")
    }
    result = measure.report(ratios | columns, GOALS)
    return {"ratio": {name: result["median"][name] for name in ratios}} | result
