"""What our plain routes read and answer."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studio.errors import StudioError

BODY_MAX = 200_000


def whole(text: str) -> int:
    """Read a whole number from a query; what is none counts as -1."""
    return int(text) if text.lstrip("-").isdigit() and len(text) < 20 else -1


async def read_body(request: Request) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StudioError: if the body is no JSON object of a sensible size.
    """
    data = await request.body()
    try:
        body = json.loads(data) if len(data) <= BODY_MAX else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise StudioError("the body must be a JSON object")
    return body


def problem(error: StudioError, status: int = 400) -> Response:
    return JSONResponse({"error": str(error)}, status_code=status)
