"""Routes of the Datasets tab: a dataset's pictures, their thumbnails, uploads, and each change the moment it is made.

They exist only where no stranger can be: not with --share, not on a Space.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from studio.buckets import Size, bucket_of, bucket_sizes, cut_part, fill_buckets, is_enlarged
from studio.caption_edits import edit_of, tag_counts
from studio.errors import InvalidRequest, StudioError, shown
from studio.findings import Change
from studio.store.collections import Datasets, Picture
from studio.store.edits import crop_box
from studio.store.thumbnails import SIDES
from studio.ui.services import Services
from studio.ui.text import TEXT

BODY_MAX = 400_000
CHUNK_MAX = 20_000_000
SIDE_MAX = 4096
TITLE_MAX = 80  # characters of what can be undone
FOR_EVER = "private, max-age=31536000, immutable"


class DatasetRoutes:
    """The handlers, as methods over the same services."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._actions: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
            "caption": self._caption,
            "edit": self._edit,
            "captions": self._captions,
            "undo": self._undo,
            "remove": self._remove,
            "discard": lambda name, body: {"place": str(self._datasets.discard(name))},
            "restore": self._restore,
            "empty": lambda name, body: {"number": self._datasets.empty(name)},
            "add": self._add,
        }

    @property
    def _datasets(self) -> Datasets:
        return self._services.datasets

    def table(self) -> list[Route]:
        """Return all routes."""
        return [
            Route("/studio/datasets/{name}", self.dataset),
            Route("/studio/datasets/{name}/bucket", self.bucket),
            Route("/studio/datasets/{name}/thumbnail/{picture:path}", self.thumbnail),
            Route("/studio/datasets/{name}/piece", self.piece, methods=["POST"]),
            Route("/studio/datasets/{name}/{action}", self.act, methods=["POST"]),
            Route("/studio/discarded", self.discarded),
            Route("/studio/discarded/{id}/{action}", self.discarded, methods=["POST"]),
        ]

    async def discarded(self, request: Request) -> Response:
        """List the datasets that were discarded; put one back (`recall`), or delete it for good (`erase`)."""
        entry, action = request.path_params.get("id", ""), request.path_params.get("action", "")

        def act() -> dict[str, Any]:
            if action == "recall":
                return {"name": self._datasets.recall(entry)}
            if action == "erase":
                self._datasets.erase(entry)
            elif action:
                raise StudioError(f"there is no action {shown(action)}")
            return {"discarded": self._datasets.discarded()}

        return await answered(act)

    async def dataset(self, request: Request) -> Response:
        """Return a dataset: its pictures, their tags, and the buckets for a resolution."""

        def read() -> dict[str, Any]:
            name, sizes, wrong = request.path_params["name"], [], ""
            try:
                sizes = sizes_of(request)
            except InvalidRequest as error:  # the pictures are shown all the same
                wrong = str(error)
            pictures = self._datasets.pictures(name)
            used = [one for one in pictures if not one.edit.left_out and one.size]
            return {
                "name": name,
                "pictures": [row_of(one, sizes) for one in pictures],
                "tags": tag_counts(one.caption or "" for one in pictures if not one.edit.left_out),
                "buckets": [
                    {"size": bucket.size, "pictures": bucket.pictures, "enlarged": bucket.enlarged, "cut": bucket.cut}
                    for bucket in (fill_buckets([shown_size(one) for one in used], sizes) if sizes else [])
                ],
                "size_problem": wrong,
                "removed": len(self._datasets.removed(name)),
                "undo": self._services.changes.last(name),
            }

        return await answered(read)

    async def bucket(self, request: Request) -> Response:
        """Say into which bucket a picture of `width` x `height` goes."""

        def read() -> dict[str, Any]:
            size = whole(request, "width", 1, 20_000), whole(request, "height", 1, 20_000)
            return bucket_facts(size, sizes_of(request))

        return await answered(read)

    async def thumbnail(self, request: Request) -> Response:
        """Send a small picture; `v` is its stamp, with which it never changes."""
        side = SIDES[1] if request.query_params.get("large") == "1" else SIDES[0]
        name, picture = request.path_params["name"], request.path_params["picture"]
        try:
            path = await run_in_threadpool(self._datasets.thumbnail, name, picture, side)
        except StudioError as error:
            return told(error, 404)
        headers = {"Cache-Control": FOR_EVER if request.query_params.get("v") else "private, no-cache"}
        headers |= {"ETag": f'"{path.stem}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return FileResponse(path, media_type="image/webp", headers=headers)

    async def piece(self, request: Request) -> Response:
        """Take a piece of a file: `upload`, `file` (its number) and `at` stand in the address, the bytes are the body."""
        data = await request.body()

        def append() -> dict[str, Any]:
            if len(data) > CHUNK_MAX:
                raise InvalidRequest("piece", f"a piece has {len(data):,} bytes; at most {CHUNK_MAX:,} are taken")
            self._datasets.folder(request.path_params["name"])
            upload, number = request.query_params.get("upload", ""), whole(request, "file", 0, 10_000)
            return {"size": self._datasets.uploads.append(upload, number, whole(request, "at", 0, 10**12), data)}

        return await answered(append)

    async def act(self, request: Request) -> Response:
        """Change a dataset; the body is a JSON object."""
        action = self._actions.get(request.path_params["action"])
        if action is None:
            return told(StudioError(f"there is no action {shown(request.path_params['action'])}"), 404)
        data = await request.body()

        def act() -> dict[str, Any]:
            return action(request.path_params["name"], body_of(data))

        return await answered(act)

    def _caption(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """`{"picture", "text"}`."""
        return {"caption": self._datasets.set_caption(name, text_of(body, "picture"), text_of(body, "text"))}

    def _edit(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """`{"picture", "crop", "left_out"}`; what is not given stays as it is."""
        changes: dict[str, Any] = {key: body[key] for key in ("crop", "left_out") if key in body}
        if not isinstance(changes.get("left_out", False), bool):
            raise InvalidRequest("left_out", f"left_out={shown(changes['left_out'])} must be true or false")
        edit = self._datasets.set_edit(name, text_of(body, "picture"), **changes)
        return {"crop": edit.crop, "left_out": edit.left_out}

    def _captions(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """`{"edit", "texts"}`: one change of every caption, but for those of pictures that are left out."""
        change = edit_of(body.get("edit"), body.get("texts"))
        pictures = [one for one in self._datasets.pictures(name) if not one.edit.left_out]
        wanted = [Change(one.name, "caption", change(one.caption or "")) for one in pictures]
        title = f"{TEXT['datasets.' + body['edit']]}: {', '.join(body['texts'])}"
        return {"number": self._services.changes.make(name, wanted, title[:TITLE_MAX])}

    def _undo(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Undo the latest change of several pictures, of whichever panel."""
        undone = self._services.changes.undo(name)
        return {"number": undone.number, "title": undone.title, "changed_since": undone.changed_since}

    def _remove(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """`{"picture"}`."""
        return {"removed": self._datasets.remove(name, text_of(body, "picture"))}

    def _restore(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Put back what was removed last, or with `{"all": true}` everything."""
        removed = self._datasets.removed(name)
        wanted = removed if body.get("all") is True else removed[-1:]
        for entry in reversed(wanted):
            self._datasets.restore(name, entry)
        return {"number": len(wanted)}

    def _add(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """`{"upload", "names"}`: take the files of an upload."""
        upload, names = text_of(body, "upload"), body.get("names")
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise InvalidRequest("names", "names must be a list of the files' names")
        try:
            added = self._datasets.add(name, self._datasets.uploads.files(upload, names))
        finally:
            self._datasets.uploads.drop(upload)
        return {"pictures": added.pictures, "captions": added.captions, "refused": added.refused, "notes": added.notes}


async def answered(function: Callable[[], dict[str, Any]]) -> Response:
    """Run a function in a thread and send its answer, or why there is none."""
    try:
        return JSONResponse(await run_in_threadpool(function), headers={"Cache-Control": "no-store"})
    except StudioError as error:
        return told(error)


def told(error: StudioError, status: int = 400) -> Response:
    return JSONResponse({"error": str(error)}, status_code=status)


def body_of(data: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidRequest: if it is none, or too large.
    """
    try:
        body = json.loads(data) if len(data) <= BODY_MAX else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidRequest("body", "the body must be a JSON object")
    return body


def text_of(body: dict[str, Any], name: str) -> str:
    """Return a text of a body.

    Raises:
        InvalidRequest: if it is missing.
    """
    value = body.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(name, f"{name}={shown(value)} must be text")
    return value


def whole(request: Request, name: str, low: int, high: int) -> int:
    """Return a whole number of the address.

    Raises:
        InvalidRequest: if it is none, or out of its range.
    """
    text = request.query_params.get(name, "")
    number = int(text) if text.isdecimal() and len(text) < 16 else -1
    if not low <= number <= high:
        raise InvalidRequest(name, f"{name}={shown(text)} must be a whole number from {low} to {high:,}")
    return number


def sizes_of(request: Request) -> list[Size]:
    """Return the buckets of the `resolution` and `step` that the address names."""
    side, step = whole(request, "resolution", 64, SIDE_MAX), whole(request, "step", 8, 256)
    for name, value in (("resolution", side), ("step", step)):
        if value % 8:
            raise InvalidRequest(name, f"{name}={value} must be a multiple of 8; use {value // 8 * 8 or 8}")
    return bucket_sizes(side, min(step, side))


def shown_size(picture: Picture) -> Size:
    """Return (width, height) of what training sees of a picture."""
    assert picture.size is not None
    if picture.edit.crop is None:
        return picture.size
    left, top, right, bottom = crop_box(picture.edit.crop, picture.size)
    return right - left, bottom - top


def bucket_facts(size: Size, sizes: list[Size]) -> dict[str, Any]:
    """Say into which bucket a picture goes, whether it is enlarged, and which part is cut off."""
    bucket = bucket_of(size, sizes)
    return {"bucket": bucket, "enlarged": is_enlarged(size, bucket), "cut": math.floor(cut_part(size, bucket) * 100)}


def row_of(picture: Picture, sizes: list[Size]) -> dict[str, Any]:
    """Return what the page shows of a picture."""
    facts = bucket_facts(shown_size(picture), sizes) if picture.size and sizes else {}
    return facts | {
        "name": picture.name, "caption": picture.caption, "crop": picture.edit.crop, "left_out": picture.edit.left_out,
        "mask": picture.has_mask, "size": picture.size, "problem": picture.problem, "repeats": picture.repeats,
        "words": picture.words, "stamp": picture.stamp,
    }  # fmt: skip
