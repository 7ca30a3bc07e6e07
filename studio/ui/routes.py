"""Plain routes beside Gradio's: state, previews, pictures, thumbnails, actions. The guard stands in front of all of them."""

import asyncio
import contextlib
import json
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from studio.errors import StudioError
from studio.settings import VERSION
from studio.spec import parse_request
from studio.store.gallery import visible
from studio.store.index import Filter
from studio.store.lora_cards import cover_of
from studio.store.metadata import without_paths
from studio.store.prompt_reports import PromptReports
from studio.ui.bodies import problem, read_body, whole
from studio.ui.dataset_routes import DatasetRoutes
from studio.ui.run_routes import RunRoutes
from studio.ui.services import Services
from studio.visitors import EVERYBODY

PAGE = 50
LONG_POLL = 15.0  # seconds until a page that saw no change asks again
MERGE = 0.002  # seconds in which several changes become one answer
IDS_MAX = 2_000
ZIP_MAX_PUBLIC = 100
OWNERS_KEPT = 200  # visitors whose last answer is kept
REPORTED = (
    "prompt",
    "negative_prompt",
    "model",
    "styles",
    "guidance_scale",
    "true_cfg_scale",
    "num_inference_steps",
    "seed",
)


class Routes:
    """The handlers, as methods over the same services."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._states: dict[str, tuple[int, bytes]] = {}
        self._instance, self._reports = secrets.token_hex(4), PromptReports(services.library)

    def table(self) -> list[Route]:
        """Return all routes."""
        return [
            Route("/healthz", self.health),
            Route("/studio/state", self.state),
            Route("/studio/preview/{job}", self.preview),
            Route("/studio/image/{id}", self.image),
            Route("/studio/thumbnail/{id}", self.thumbnail),
            Route("/studio/tool/{id}", self.tool),
            Route("/studio/cover/{id:path}", self.cover),
            Route("/studio/metadata/{id}", self.metadata),
            Route("/studio/gallery", self.gallery),
            Route("/studio/images", self.change_images, methods=["POST"]),
            Route("/studio/zip", self.zip, methods=["POST"]),
            Route("/studio/job/{action}", self.job, methods=["POST"]),
            Route("/studio/plot/{action}", self.plot, methods=["POST"]),
            Route("/studio/prompt-report", self.prompt_report, methods=["POST"]),
            *(RunRoutes(self._services, self._services.training).table() if self._services.training else ()),
            *([] if self._services.public else DatasetRoutes(self._services).table()),
        ]

    def _owner(self, request: Request) -> str:
        return self._services.owner(request.headers)

    def _limit(self, request: Request) -> str | None:
        """Return whose pictures a request may see, None for everybody's."""
        return self._services.limit(request.headers)

    async def health(self, request: Request) -> Response:
        """Say that the server lives."""
        return JSONResponse({"status": "ok", "version": VERSION, "instance": self._instance})

    async def state(self, request: Request) -> Response:
        """Answer when the state is newer than `since`, or after a while."""
        since = whole(request.query_params.get("since", "-1"))
        dispatcher = self._services.dispatcher
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        with dispatcher.listening(lambda: loop.call_soon_threadsafe(changed.set)):
            if dispatcher.version == since:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LONG_POLL)
                await asyncio.sleep(MERGE)
        owner = self._owner(request)
        version, answer = self._states.get(owner, (-1, b""))
        if version != dispatcher.version:
            version, answer = await run_in_threadpool(self._told, owner)
            kept = self._states if len(self._states) < OWNERS_KEPT else {}
            self._states = kept | {owner: (version, answer)}
        return Response(answer, media_type="application/json", headers={"Cache-Control": "no-store"})

    def _told(self, owner: str) -> tuple[int, bytes]:
        """Return the version of the state, and what a page of this visitor hears of it; many pages ask for the same."""
        facts = self._services.dispatcher.state(owner) | {"plots": self._services.plotter.state(owner)}
        if self._services.training:
            facts |= self._services.training.runner.told()
        facts |= {"instance": self._instance, "public": self._services.public and owner != EVERYBODY}
        return facts["version"], json.dumps(facts).encode()

    async def preview(self, request: Request) -> Response:
        """Send the running job's newest preview to whoever may see the job."""
        dispatcher, job = self._services.dispatcher, request.path_params["job"]
        path = dispatcher.preview_path(job)
        try:
            data = path.read_bytes() if path and dispatcher.seen_by(job, self._limit(request)) else None
        except (OSError, StudioError):  # a newer one has replaced it, or it is somebody else's
            data = None
        if data is None:
            return Response(status_code=404)
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})

    async def image(self, request: Request) -> Response:
        """Send a picture as it was saved, byte for byte."""
        return await self._file(request, self._services.gallery.path, "image/png")

    async def thumbnail(self, request: Request) -> Response:
        """Send a small picture."""
        cache = self._services.settings.data_dir / "cache"
        return await self._file(
            request, lambda image_id, owner: self._services.gallery.thumbnail(image_id, cache, owner), None
        )

    async def _file(
        self, request: Request, find: Callable[[str, str | None], Path], media_type: str | None
    ) -> Response:
        image_id = request.path_params["id"].removesuffix(".png")
        try:
            path = await run_in_threadpool(find, image_id, self._limit(request))
        except StudioError as error:
            return problem(error, 404)
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "ETag": f'"{path.name}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return FileResponse(path, media_type=media_type, headers=headers)

    async def tool(self, request: Request) -> Response:
        """Send a picture that a tool made to whoever knows its id, which nobody can guess."""
        name = request.path_params["id"]
        path = self._services.settings.tool_pictures / f"{name}.png"
        if len(name) != 32 or set(name) - set("0123456789abcdef") or not path.is_file():
            return problem(StudioError("there is no such picture; let the tool make it again"), 404)
        return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    async def cover(self, request: Request) -> Response:
        """Send the picture that lies beside a LoRA."""

        def find() -> tuple[Path, str] | None:
            part = self._services.library.parts.get("lora", request.path_params["id"], "lora")
            return cover_of(part.path)

        try:
            found = await run_in_threadpool(find)
        except StudioError as error:
            return problem(error, 404)
        if not found:
            return Response(status_code=404)
        return FileResponse(found[0], media_type=found[1], headers={"Cache-Control": "private, no-cache"})

    async def metadata(self, request: Request) -> Response:
        """Return what a picture says about itself."""
        try:
            found = await run_in_threadpool(
                self._services.gallery.found, request.path_params["id"], self._limit(request)
            )
        except StudioError as error:
            return problem(error, 404)
        said = found.record or found.grid
        record = said.model_dump(mode="json") if said else None
        if record:
            record = without_paths(record)
        return JSONResponse({"text": found.text, "record": record})

    async def gallery(self, request: Request) -> Response:
        """Return one page of the gallery, newest first."""
        query = request.query_params
        wanted = Filter(
            words=query.get("words", "")[:500],
            model=query.get("model", "")[:500],
            day=query.get("day", "")[:10],
            starred=query.get("starred") == "1",
            trashed=query.get("trashed") == "1",
        )
        before = whole(query["before"]) if query.get("before") else None
        index, owner = self._services.gallery.index, self._limit(request)
        summary = before is None and owner is None  # costs a scan: once a visit, and never for strangers

        def read() -> tuple[list[dict[str, object]], dict[str, Any]]:
            more = {"choices": index.choices(), "usage": usage_line(index.usage())} if summary else {}
            return index.page(before=before, limit=PAGE, owner=owner, **wanted), more

        rows, more = await run_in_threadpool(read)
        shown = ("id", "prompt", "model", "day", "width", "height", "seed", "starred")
        images = [{name: row[name] for name in shown} for row in rows]
        return JSONResponse({"images": images, "next": rows[-1]["seq"] if len(rows) == PAGE else None} | more)

    async def change_images(self, request: Request) -> Response:
        """Star, unstar, trash, restore pictures, or empty the trash; `{"action", "ids"}`."""
        gallery = self._services.gallery
        actions: dict[str, Callable[[list[str]], int]] = {
            "star": lambda ids: gallery.star(ids, True),
            "unstar": lambda ids: gallery.star(ids, False),
            "trash": gallery.trash,
            "restore": gallery.restore,
            "empty": lambda ids: gallery.empty_trash(),
        }
        try:
            body = await read_body(request)
            if body.get("action") not in actions:
                raise StudioError(f"action must be one of: {', '.join(actions)}")
            self._services.check_home(request.headers, "pictures cannot be changed")
            ids, limit = ids_of(body), self._limit(request)
            if limit is not None and (body["action"] == "empty" or not all(self._visible(i, limit) for i in ids)):
                raise StudioError("on a public page only own pictures can be changed, and the trash is not emptied")
            number = await run_in_threadpool(actions[body["action"]], ids)
        except StudioError as error:
            return problem(error)
        except OSError as error:
            return problem(StudioError(f"that did not work: {error.strerror or error}"), 500)
        return JSONResponse({"number": number})

    async def zip(self, request: Request) -> Response:
        """Send pictures as one zip archive."""
        try:
            ids = ids_of(await read_body(request))
            if self._services.visitor(request.headers) and len(ids) > ZIP_MAX_PUBLIC:
                raise StudioError(f"at most {ZIP_MAX_PUBLIC} pictures at once on a public page; take fewer")
            allowed = await run_in_threadpool(lambda: [i for i in ids if self._visible(i, self._limit(request))])
        except StudioError as error:
            return problem(error)

        def pack() -> bytes:
            with tempfile.TemporaryFile() as file:
                self._services.gallery.zip(allowed, file)
                file.seek(0)
                return file.read()

        return Response(
            await run_in_threadpool(pack),
            media_type="application/zip",
            headers={"Content-Disposition": 'attachment; filename="pictures.zip"'},
        )

    async def plot(self, request: Request) -> Response:
        """Cancel or resume an own plot; `{"plot"}`."""
        actions = {"cancel": self._services.plotter.cancel, "resume": self._services.plotter.resume}
        try:
            body, action = await read_body(request), request.path_params["action"]
            if action not in actions:
                raise StudioError(f"action must be one of: {', '.join(actions)}")
            await run_in_threadpool(actions[action], str(body.get("plot")), self._owner(request))
        except StudioError as error:
            return problem(error)
        return JSONResponse({})

    async def prompt_report(self, request: Request) -> Response:
        """Say what a model gets of a form's prompts; fields that have nothing to do with it are passed over."""
        try:
            body = await read_body(request)
            wanted = parse_request({name: body[name] for name in REPORTED if body.get(name) not in (None, "")})
            self._services.check_text(wanted)
            made = await run_in_threadpool(self._reports.report, wanted)
        except StudioError as error:
            return problem(error)
        return JSONResponse(made.model_dump(mode="json"), headers={"Cache-Control": "no-store"})

    def _visible(self, image_id: str, owner: str | None) -> bool:
        row = self._services.gallery.index.get(image_id)
        return row is not None and visible(row, owner)

    async def job(self, request: Request) -> Response:
        """Cancel, skip, move or retry an own job, `{"job", "offset"}`; let a stopped queue `resume`, `{}`."""
        dispatcher, owner = self._services.dispatcher, self._owner(request)
        try:
            body = await read_body(request)
            job, action = str(body.get("job")), request.path_params["action"]
            if action == "resume":
                await run_in_threadpool(dispatcher.go_on)
                return JSONResponse({})
            if action == "retry":
                made = await run_in_threadpool(dispatcher.retry, job, owner)
                return JSONResponse({"job": made.id})
            if action == "move":
                self._services.check_home(request.headers, "the order of the queue cannot be changed")
            if action == "move":
                await run_in_threadpool(dispatcher.move, job, owner, -1 if body.get("offset") == -1 else 1)
            elif action in ("cancel", "skip"):
                await run_in_threadpool(getattr(dispatcher, action), job, owner)
            else:
                raise StudioError("action must be one of: cancel, skip, move, retry, resume")
        except StudioError as error:
            return problem(error)
        return JSONResponse({})


def ids_of(body: dict[str, Any]) -> list[str]:
    """Return the picture ids of a body.

    Raises:
        StudioError: if they are no list of at most `IDS_MAX` names.
    """
    ids = body.get("ids")
    if not isinstance(ids, list) or len(ids) > IDS_MAX or not all(isinstance(value, str) for value in ids):
        raise StudioError(f"ids must be a list of at most {IDS_MAX} picture ids")
    return ids


def usage_line(usage: dict[str, int]) -> str:
    """Say how much disk the pictures take."""

    def size(number: int) -> str:
        return f"{number / 2**20:,.1f} MB"

    line = f"{usage['images']:,} pictures, {size(usage['bytes'])}"
    return line + (f" · trash: {usage['trashed']:,}, {size(usage['trashed_bytes'])}" if usage["trashed"] else "")
