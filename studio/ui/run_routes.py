"""Plain routes of training runs: curves, samples, files, and what a person asks of a run."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from studio.errors import StudioError
from studio.settings import Settings
from studio.store.priority import set_priority
from studio.ui.bodies import problem, read_body
from studio.ui.services import Training

FRESH = 1.0  # seconds for which an answer is given again
POINTS = 500  # of a curve that a page gets
TRASH = ".trash"


class RunRoutes:
    """The handlers, as methods over the runs."""

    def __init__(self, training: Training, settings: Settings) -> None:
        self._runs, self._runner, self._settings = training.runs, training.runner, settings
        self._answers: dict[str, tuple[float, bytes]] = {}  # for all pages that look within a moment

    def table(self) -> list[Route]:
        """Return all routes."""
        return [
            Route("/studio/runs", self.runs),
            Route("/studio/run/{id}", self.run),
            Route("/studio/run/{id}/sample/{name}", self.sample),
            Route("/studio/run/{id}/file/{step}", self.file),
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
        run_id, now = request.path_params["id"], time.monotonic()
        made, answer = self._answers.get(run_id, (0.0, b""))
        if now - made > FRESH or not answer:
            try:
                answer = json.dumps(await run_in_threadpool(self.details, run_id)).encode()
            except StudioError as error:
                return problem(error, 404)
            self._answers = {run_id: (now, answer)} | {
                name: one for name, one in self._answers.items() if now - one[0] <= FRESH and name != run_id
            }
        return Response(answer, media_type="application/json", headers={"Cache-Control": "no-store"})

    def details(self, run_id: str) -> dict[str, Any]:
        """Return a run's state, curves, checkpoints, samples, notices, config and the end of its log."""
        runs = self._runs
        row = next(row for row in self._runner.overview() if row["id"] == run_id) if runs.folder(run_id) else {}
        story = runs.story(run_id)
        results = runs.results(run_id)
        return row | {
            "curves": {name: thinned(curve) for name, curve in story.curves.items()},
            "results": [{"step": step, "name": run_id if step < 0 else f"{run_id}-{step:06d}"} for step in results],
            "samples": {step: list(names) for step, names in sorted(story.samples.items())},
            "prompts": [str(one.get("prompt", "")) for one in runs.samples(run_id)],
            "notices": story.notices,
            "config": runs.config(run_id),
            "command": " ".join(self._runner.command(run_id)),
            "log": runs.log(run_id),
            "bytes": runs.bytes(run_id),
        }

    async def sample(self, request: Request) -> Response:
        """Send a sample's picture, byte for byte."""
        try:
            path = self._runs.sample_path(request.path_params["id"], request.path_params["name"])
        except StudioError as error:
            return problem(error, 404)
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, no-cache"})

    async def file(self, request: Request) -> Response:
        """Send the file of a result; `final` or a step."""
        step = request.path_params["step"]
        try:
            results = self._runs.results(request.path_params["id"])
            path = results.get(-1 if step == "final" else int(step) if re.fullmatch(r"\d{1,9}", step) else -2)
            if path is None or not path.is_file():
                raise StudioError(f"there is no file of {step}; a whole model is a folder in the run's directory")
        except StudioError as error:
            return problem(error, 404)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

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
                "clean": lambda: runs.clean(run_id),
                "remove": lambda: runs.remove(run_id, runs.root / TRASH),
                "prompts": lambda: self._prompts(run_id, body.get("prompts")),
            } | {name: lambda name=name: runs.ask(run_id, name) for name in ("pause", "resume", "save", "sample")}
            if action not in actions:
                raise StudioError(f"action must be one of: {', '.join(actions)}")
            runs.folder(run_id)
            await run_in_threadpool(actions[action])
            self._answers.clear()
        except StudioError as error:
            return problem(error)
        except OSError as error:
            return problem(StudioError(f"that did not work: {error.strerror or error}"), 500)
        return JSONResponse({})

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


def thinned(curve: dict[int, float]) -> list[list[float]]:
    """Return at most about `POINTS` pairs of step and value; each stands for the mean of its neighbours."""
    rows = sorted(curve.items())
    width = -(-len(rows) // POINTS) or 1
    groups = [rows[at : at + width] for at in range(0, len(rows), width)]
    return [[group[-1][0], sum(value for _, value in group) / len(group)] for group in groups]
