"""Plain routes of training runs: curves, samples, and what a person asks of a run."""

import json
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from studio.errors import StudioError
from studio.store.gallery import small_copy
from studio.store.priority import set_priority
from studio.store.run_results import class_picture, class_pictures, kept, model_card, recommendation, results_by_step
from studio.ui.bodies import problem, read_body
from studio.ui.run_result_routes import RunResultRoutes
from studio.ui.services import Services, Training

POINTS = 500  # of a curve that a page gets
TRASH = ".trash"
FRESH = 1.0  # seconds for which what one page was told of a run is told to the next
SIZED = 20.0  # seconds between two looks at how much disk a run takes


class RunRoutes:
    """The handlers, as methods over the runs.

    Args:
        services: what the page stands on.
        training: the runs.
    """

    def __init__(self, services: Services, training: Training) -> None:
        self._runs, self._runner, self._settings = training.runs, training.runner, services.settings
        self._results = RunResultRoutes(services, training)
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, bytes]] = {}
        self._sizes: dict[str, tuple[float, int]] = {}

    def table(self) -> list[Route]:
        """Return all routes."""
        return [
            Route("/studio/runs", self.runs),
            Route("/studio/run/{id}", self.run),
            Route("/studio/run/{id}/sample/{name}", self.sample),
            Route("/studio/run/{id}/class/{name}", self.sample),
            *self._results.table(),
            Route("/studio/run/{id}/{action}", self.act, methods=["POST"]),
            Route("/studio/priority/{first}", self.priority, methods=["POST"]),
        ]

    async def runs(self, request: Request) -> Response:
        """List all runs, the newest first."""
        return JSONResponse(
            {"runs": await run_in_threadpool(self._runner.overview)}, headers={"Cache-Control": "no-store"}
        )

    async def run(self, request: Request) -> Response:
        """Return everything that a page shows of one run."""
        try:
            found = await run_in_threadpool(self._recent, request.path_params["id"])
        except StudioError as error:
            return problem(error, 404)
        return Response(found, media_type="application/json", headers={"Cache-Control": "no-store"})

    def _recent(self, run_id: str) -> bytes:
        """Return the details, read once for all pages that ask within a moment."""
        with self._lock:
            now = time.monotonic()
            at, found = self._told.get(run_id, (-FRESH, b""))
            if now - at >= FRESH:
                found = json.dumps(self.details(run_id)).encode()
                self._told = {run_id: (time.monotonic(), found)} | {
                    other: row for other, row in self._told.items() if now - row[0] < FRESH and other != run_id
                }
            return found

    def details(self, run_id: str) -> dict[str, Any]:
        """Return a run's state, curves, checkpoints, samples, notices, config and the end of its log."""
        runs = self._runs
        folder = runs.folder(run_id)
        story, drawn, config = runs.story(run_id), runs.samples(run_id), runs.config(run_id)
        return self._runner.row(run_id) | {
            "curves": {name: thinned(curve) for name, curve in story.curves.items()},
            "results": [
                {
                    "step": step, "name": result.name, "kind": result.kind, "bytes": result.bytes,
                    "file": result.path.is_file(), "kohya": result.kind == "lora" and config.get("network_type", "lora") == "lora",
                }
                for step, result in results_by_step(runs, run_id).items()
            ],
            "samples": {step: list(names) for step, names in sorted(story.samples.items())},
            "grids": {int(path.stem[5:]): path.name for path in sorted(folder.glob("samples/step-*.png")) if path.stem[5:].isdigit()},
            "said": story.prompts,
            "prompts": [str(one.get("prompt", "")) for one in drawn],
            "seed": drawn[0].get("seed", 0) if drawn else config.get("validation_seed") or 0,
            "notices": story.notices,
            "config": config,
            "command": shlex.join(self._runner.command(run_id)),
            "log": runs.log(run_id),
            "bytes": self._bytes(run_id),
            "folder": str(folder),
            "recommended": recommendation(runs, run_id),
            "kept": kept(runs, run_id),
            "card": model_card(runs, run_id),
            "class": class_pictures(runs, run_id),
            "compared": self._results.compared(run_id),
        }  # fmt: skip

    def _bytes(self, run_id: str) -> int:
        """Return how much disk a run takes; that is a walk through its folder."""
        at, size = self._sizes.get(run_id, (-SIZED, 0))
        if time.monotonic() - at >= SIZED:
            size = self._runs.bytes(run_id)
            self._sizes[run_id] = time.monotonic(), size
        return size

    async def sample(self, request: Request) -> Response:
        """Send a sample's picture, or a class image, byte for byte, or small for a list."""
        run_id, name = request.path_params["id"], request.path_params["name"]

        def find() -> tuple[Path, str]:
            drawn = request.url.path.endswith(f"/class/{name}")
            path = class_picture(self._runs, run_id, name) if drawn else self._runs.sample_path(run_id, name)
            stamp = f"{path.stat().st_mtime_ns:x}"
            if request.query_params.get("small") == "1":
                small = self._settings.data_dir / "cache" / "thumbnails" / f"run-{run_id}-{path.stem}-{stamp}.webp"
                path = small_copy(path, small)
            return path, f'"{path.suffix}{stamp}"'

        try:
            path, tag = await run_in_threadpool(find)
        except StudioError as error:
            return problem(error, 404)
        headers = {"Cache-Control": "private, no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        media = "image/webp" if path.suffix == ".webp" else "image/png"
        return FileResponse(path, media_type=media, headers=headers)

    async def act(self, request: Request) -> Response:
        """Start, cancel, move, ask, clean or remove a run; change its sample prompts; `{"offset", "prompts"}`."""
        run_id, action = request.path_params["id"], request.path_params["action"]
        runs, runner = self._runs, self._runner
        try:
            body = await read_body(request)
            actions: dict[str, Callable[[], Any]] = {
                "start": lambda: runner.enqueue(run_id),
                "cancel": lambda: runner.cancel(run_id),
                "move": lambda: runner.move(run_id, -1 if body.get("offset") == -1 else 1),
                "hold": lambda: runner.hold(run_id, number_of(body.get("after"))),
                "clean": lambda: {"bytes": runs.clean(run_id)},
                "remove": lambda: runner.remove(run_id, runs.root / TRASH),
                "device": lambda: runner.set_device(run_id, str(body.get("device") or "")),
                "prompts": lambda: self._prompts(run_id, body.get("prompts")),
            } | {name: lambda name=name: runs.ask(run_id, name) for name in ("pause", "resume", "save", "sample")}
            actions |= self._results.actions(run_id, body, self._results.owner(request))
            if action not in actions:
                raise StudioError(f"action must be one of: {', '.join(actions)}")
            runs.folder(run_id)
            answer = await run_in_threadpool(actions[action])
        except StudioError as error:
            return problem(error)
        except OSError as error:
            return problem(StudioError(f"that did not work: {error.strerror or error}"), 500)
        finally:
            self._told.pop(run_id, None)
            self._sizes.pop(run_id, None)
        return JSONResponse(answer if isinstance(answer, dict) else {})

    def _prompts(self, run_id: str, prompts: object) -> None:
        """Draw other prompts from the next checkpoint on; what stands beside a prompt is kept, or taken from the first."""
        if not isinstance(prompts, list) or not all(isinstance(one, str) and one.strip() for one in prompts):
            raise StudioError("prompts must be a list of prompts, none of them empty")
        old = self._runs.samples(run_id)
        config = self._runs.config(run_id)
        usual = {"model": config.get("model"), "negative_prompt": config.get("validation_negative_prompt") or ""}
        seed = int(config.get("validation_seed") or 0)
        rows = [
            (old[i] if i < len(old) else (old[0] if old else usual) | {"seed": seed + i}) | {"prompt": prompt.strip()}
            for i, prompt in enumerate(prompts)
        ]
        self._runs.set_samples(run_id, rows)

    async def priority(self, request: Request) -> Response:
        """Decide who goes first: `pictures`, `training`, `ask`; `once` lets those go that wait now."""
        first = request.path_params["first"]
        data_dir: Path = self._settings.data_dir
        try:
            if first == "once":
                set_priority(data_dir, self._runner.told()["first"], once=True)
            else:
                set_priority(data_dir, first)
        except StudioError as error:
            return problem(error)
        self._runner.announce()
        return JSONResponse(self._runner.told())


def number_of(value: object) -> float | None:
    """Return a number of a body; None if there is none, or it is no number that can be meant."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def thinned(curve: dict[int, float]) -> list[list[float]]:
    """Return at most about `POINTS` pairs of step and value; each stands for the mean of its neighbours."""
    rows = sorted(curve.items())
    width = -(-len(rows) // POINTS) or 1
    groups = [rows[at : at + width] for at in range(0, len(rows), width)]
    return [[group[-1][0], sum(value for _, value in group) / len(group)] for group in groups]
