"""Routes of what a run made: files, what is kept of them, comparisons, votes."""

import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.errors import InvalidRequest, StudioError
from studio.plots import CELLS_MAX
from studio.spec import parse_request
from studio.store import writer
from studio.store.inputs import take_inputs
from studio.store.kohya_export import KohyaFile, kohya_file
from studio.store.run_plots import cells_shown, comparison
from studio.store.run_results import FINAL, KOHYA, find_result, keep, read_json, zipped
from studio.store.votes import add_vote, next_pair, place_of, ranking, read_votes
from studio.ui.bodies import problem
from studio.ui.services import Services, Training

COMPARED = "compare.json"  # of a run: which plot compares its checkpoints
STEPS_MAX = 100


class RunResultRoutes:
    """The handlers, as methods over the runs.

    Args:
        services: what the page stands on.
        training: the runs.
    """

    def __init__(self, services: Services, training: Training) -> None:
        self._services, self._runs = services, training.runs
        self._writing = threading.Lock()
        self._rng = random.Random()

    def table(self) -> list[Route]:
        """Return the routes that answer a GET; the rest are `actions` of a run."""
        return [
            Route("/studio/run/{id}/file/{step}", self.file),
            Route("/studio/run/{id}/votes", self.votes),
        ]

    def owner(self, request: Request) -> str:
        """Return whose plots a request starts."""
        return self._services.owner(request.headers)

    def actions(self, run_id: str, body: dict[str, Any], owner: str) -> dict[str, Callable[[], Any]]:
        """Return what a person may ask of a run's results, by name."""
        return {
            "keep": partial(self._keep, run_id, body),
            "compare": partial(self._compare, run_id, body, owner),
            "vote": partial(self._vote, run_id, body),
        }

    async def file(self, request: Request) -> Response:
        """Send a result: `final`, or a step; with `keys=kohya` a LoRA under kohya's names; a model's folder as a zip archive."""
        run_id, step = request.path_params["id"], request.path_params["step"]
        wants_kohya = request.query_params.get("keys") == "kohya"

        def find() -> tuple[Path, KohyaFile | None]:
            result = find_result(self._runs, run_id, step)
            if not wants_kohya or (result.step == FINAL and result.kohya):
                return (result.kohya or result.path) if wants_kohya else result.path, None
            if result.kind != "lora":
                raise StudioError(f"{result.name} is no LoRA; kohya's keys are for LoRA")
            return result.path, kohya_file(result.path)

        try:
            path, made = await run_in_threadpool(find)
        except StudioError as error:
            return problem(error, 404)
        if made:
            headers = attachment(f"{path.stem}{KOHYA}.safetensors") | {"Content-Length": str(made.size)}
            return StreamingResponse(made.parts, media_type="application/octet-stream", headers=headers)
        if path.is_dir():
            return StreamingResponse(zipped(path), media_type="application/zip", headers=attachment(f"{path.name}.zip"))
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    def _keep(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Copy a result into the library; `{"step", "name", "words", "weight", "notes", "cover"}`."""
        result = find_result(self._runs, run_id, body.get("step", "final"))
        cover = self._runs.sample_path(run_id, str(body["cover"])) if body.get("cover") else None
        models = self._services.settings.data_dir / "models"
        with self._writing:
            where = keep(self._runs, run_id, result, models, str(body.get("name") or "").strip(), body, cover)
        return {"where": where, "name": str(body["name"]).strip()}

    def _compare(self, run_id: str, body: dict[str, Any], owner: str) -> dict[str, Any]:
        """Draw checkpoint x weight x prompt as a plot; `{"steps", "weights", "prompts", "seed", "untouched"}`."""
        steps, weights, prompts = (_listed(body, name) for name in ("steps", "weights", "prompts"))
        numbers = [_number(weight) for weight in weights]
        results = [find_result(self._runs, run_id, step) for step in steps]
        config, folder = self._runs.config(run_id), self._runs.folder(run_id)
        rows = self._runs.samples(run_id)
        row = dict(rows[0]) if rows else {"model": config.get("model"), "seed": config.get("validation_seed") or 0}
        if body.get("seed") is not None:
            row["seed"] = body["seed"]
        texts = [str(text).strip() for text in prompts]
        spec = comparison(
            take_inputs(parse_request(row), self._services.gallery.blobs, folder),
            config,
            results,
            texts,
            numbers,
            untouched=body.get("untouched") is True,
        )
        plot = self._services.plotter.begin(spec, owner, limit=CELLS_MAX)
        writer.write_json(folder / COMPARED, {"plot": plot.id})
        return {"plot": plot.id}

    def compared(self, run_id: str) -> dict[str, Any] | None:
        """Return the run's last comparison: its plot's id, state, done, total, grid, error, and its cells; None without one."""
        told = read_json(self._runs.folder(run_id) / COMPARED)
        plot = self._services.plotter.get(str(told.get("plot"))) if isinstance(told, dict) else None
        if plot is None:
            return None
        error = plot.error or next((cell.error for cell in plot.cells if cell.error), "")
        facts = {"plot": plot.id, "state": plot.state, "done": plot.done, "total": len(plot.cells), "grid": plot.grid}
        return facts | {"error": error, "cells": cells_shown(plot.spec, [cell.image for cell in plot.cells])}

    def _vote(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Keep which of two samples is better; `{"left", "right", "better"}`."""
        folder, story = self._runs.folder(run_id), self._runs.story(run_id)
        with self._writing:
            add_vote(folder, story, body.get("left"), body.get("right"), body.get("better"))
        return self._poll(run_id)

    async def votes(self, request: Request) -> Response:
        """Return the next two samples to judge, and how the checkpoints stand."""
        try:
            found = await run_in_threadpool(self._poll, request.path_params["id"])
        except StudioError as error:
            return problem(error, 404)
        return JSONResponse(found, headers={"Cache-Control": "no-store"})

    def _poll(self, run_id: str) -> dict[str, Any]:
        votes, story = read_votes(self._runs.folder(run_id)), self._runs.story(run_id)
        pair = next_pair(story, votes, self._rng)
        shown = {"left": pair[0], "right": pair[1], "prompt": story.prompts[pair[0]]} if pair else None
        steps = [place_of(name)[0] for name in pair] if pair else []
        return {"pair": shown, "steps": steps, "ranking": ranking(votes), "votes": len(votes)}


def attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _listed(body: dict[str, Any], name: str) -> list[Any]:
    values = body.get(name)
    if not isinstance(values, list) or len(values) > STEPS_MAX:
        raise InvalidRequest(name, f"{name} must be a list of at most {STEPS_MAX}")
    return values


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest("weights", f"weights: {str(value)[:40]!r} is no number")
    return float(value)
