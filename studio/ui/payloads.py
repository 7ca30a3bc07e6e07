"""What a request to Gradio may say: no address that the server would fetch, no session of another visitor.

Gradio 6.31 downloads a file input whose `path` is an address, whole and without a limit; and it tells a session's news to
whoever knows the session's name, which a browser draws with `Math.random`.
"""

import re
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.types import Scope

from studio.ui.traffic import Refusal

SESSIONS = 20_000  # that are remembered
ESCAPED = re.compile(rb"\\u00([0-7][0-9a-f])", re.IGNORECASE)
FETCHED = re.compile(rb'"path"\s*:\s*"\s*https?:', re.IGNORECASE)
SESSION = re.compile(rb'"session_hash"\s*:\s*"([^"\\]{1,200})"')
STREAMS = ("/gradio_api/queue/data", "/gradio_api/heartbeat/", "/gradio_api/upload_progress")
NO_ADDRESS: Refusal = 403, "Addresses are not fetched; upload the file itself.", 0
NOT_YOURS: Refusal = 403, "This session belongs to another visitor; load the page again.", 0
NOT_UTF8: Refusal = 400, "The body must be JSON in UTF-8.", 0


class Sessions:
    """Whose a session of Gradio is: the first visitor who uses it has it. Visitors without a name have none."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    def refuses(self, session: str, client: str) -> bool:
        """Take a session for a visitor; return whether it is another one's."""
        owner = self._owners.setdefault(session, client) if client else self._owners.get(session, "")
        while len(self._owners) > SESSIONS:
            del self._owners[next(iter(self._owners))]
        return owner != client

    def refuses_stream(self, scope: Scope, path: str, client: str) -> bool:
        """Say whether a request asks for the news of another visitor's session."""
        if not path.startswith(STREAMS):
            return False
        named = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [])
        named += [path.rpartition("/")[2]] if path.startswith(STREAMS[1]) else []
        return any(self.refuses(name, client) for name in named)


def payload_check(path: str, client: str, sessions: Sessions | None) -> Callable[[bytes], Refusal | None] | None:
    """Return what judges a body that goes to Gradio; None for our own routes, which read no addresses."""
    if not path.startswith("/gradio_api/"):
        return None

    def check(body: bytes) -> Refusal | None:
        if b"\0" in body[:4] or body[:2] in (b"\xff\xfe", b"\xfe\xff"):  # Python would read UTF-16 and UTF-32 too
            return NOT_UTF8
        if b"\\u00" in body:
            body = ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), body)
        if FETCHED.search(body):
            return NO_ADDRESS
        named = SESSION.findall(body) if sessions else ()
        if sessions and any(sessions.refuses(name.decode("latin-1"), client) for name in named):
            return NOT_YOURS
        return None

    return check
