"""The guard in front of every route and socket, Gradio's and ours: host, origin, size, path, login.

Facts of Gradio 6.31 that it answers: no Host check, every Origin is reflected on a public host, `/login` has no limit,
`file=https://…` fetches any public address, own routes are outside the login, and the login page lists the endpoints.
"""

import ipaddress
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE = "studio_client"
CLIENT = re.compile(r"[0-9a-f]{32}")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
FILE_ROUTES = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/")
# One letter before the colon is a Windows drive; two slashes of any kind are a Windows share.
ADDRESS = re.compile(r"[\s/\\]*[a-z][a-z0-9+.-]+:|[/\\]{2}", re.IGNORECASE)
CLOSED = (
    "/proxy=", "/gradio_api/proxy=", "/monitoring", "/gradio_api/monitoring", "/openapi.json", "/docs", "/redoc",
    "/gradio_api/vibe-", "/gradio_api/undo-vibe-", "/gradio_api/dev/", "/gradio_api/profiling/",
)  # fmt: skip
# What the login page needs, and what says nothing. Everything else is behind the login.
OPEN = frozenset({
    "", "/config", "/login", "/healthz", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon",
    "/gradio_api/theme.css", "/gradio_api/login_check", "/gradio_api/token", "/gradio_api/app_id",
})  # fmt: skip
OPEN_FOLDERS = ("/login/", "/assets/", "/static/", "/svelte/", "/pwa_icon/")
# Gradio writes every `<` of the JSON as \u003c, so the first end tag is the right one.
API_INFO = re.compile(rb"(window\.gradio_api_info = ).*?(;</script>)", re.DOTALL)
NO_API_INFO = rb'\1{"named_endpoints": {}, "unnamed_endpoints": {}}\2'


@dataclass(frozen=True)
class Policy:
    """Who may talk to this server: `lan` comes of --host, `share` is Gradio's tunnel, `space` is on Hugging Face."""

    mode: Literal["local", "lan", "share", "space"] = "local"
    hosts: frozenset[str] = frozenset()  # further names that a browser may use: lower case, without port
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    max_body: int = 64 * 2**20  # bytes in one request, all its files together

    @property
    def public(self) -> bool:
        """Whether strangers may be looking."""
        return self.mode in ("share", "space")

    def allows(self, name: str) -> bool:
        """Say whether `name` (lower case, no port) is ours. No DNS server can point an IP literal elsewhere."""
        if name in LOOPBACK or name in self.hosts:  # Gradio's own start check asks localhost in every mode
            return True
        if self.mode == "share":
            return name.endswith(".gradio.live")
        return self.mode in ("lan", "space") and parse_ip(name) is not None


def policy_for(*, host: str, share: bool, auth: tuple[str, str] | None, space_host: str | None = None) -> Policy:
    """Build the policy that belongs to the flags; `space_host` is `SPACE_HOST`, a list with commas for own domains.

    Raises:
        ValueError: one sentence with the way out, when strangers could use this computer.
    """
    if space_host:
        return Policy("space", frozenset(filter(None, map(str.strip, space_host.lower().split(",")))), auth)
    name = host.strip().lower().strip("[]")
    address = parse_ip(name)
    own = frozenset({f"[{address}]" if address and address.version == 6 else name})
    if name == "localhost" or (address and address.is_loopback):
        return Policy("share", own, auth or make_login()) if share else Policy("local", own, auth)
    if share:
        raise ValueError(f"--share works without --host {host}: leave it out, the link reaches this computer anyway")
    if auth is None:
        raise ValueError(f"--host {host} needs --auth USER:PASSWORD: anyone in the network could use this computer")
    machine = socket.gethostname().lower()
    return Policy("lan", own | {machine, f"{machine.partition('.')[0]}.local"}, auth)


def make_login() -> tuple[str, str]:
    """Make the login of a share link that was started without one."""
    return "studio", secrets.token_urlsafe(16)


def gradio_environment() -> dict[str, str | None]:
    """Return what the environment must hold before gradio is imported; None means: not set. Nothing of Gradio stays."""
    names = "ALLOWED_PATHS BLOCKED_PATHS SHARE SHARE_SERVER_ADDRESS VIBE_MODE WATCH_DIRS HOT_RELOAD DEBUG PROFILING "
    names += "LOCAL_DEV_MODE MCP_SERVER SSR_MODE NUM_WORKERS RUN_HISTORY ROOT_PATH SERVER_NAME SERVER_PORT NUM_PORTS"
    unset = {f"GRADIO_{name}" for name in names.split()}
    unset.update(name for name in os.environ if name.startswith("GRADIO_") and name != "GRADIO_TEMP_DIR")
    quiet = dict.fromkeys(("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "DISABLE_TELEMETRY"), "1")
    return dict.fromkeys(unset) | quiet | {"GRADIO_ANALYTICS_ENABLED": "False"}


def client_of(headers: Mapping[str, str]) -> str:
    """Return the anonymous id of the browser that sent `headers`, or '' when there is none or it is malformed."""
    value = cookie_parser(headers.get("cookie") or "").get(COOKIE, "")
    return value if CLIENT.fullmatch(value) else ""


def parse_ip(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that an IP literal (IPv6 with or without brackets) names, or None."""
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


def route_path(scope: Scope) -> str:
    """Return the path as the router will match it, without the root path in front."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path


def host_problem(policy: Policy, headers: Headers) -> str | None:
    """Say why the Host header is refused: a page elsewhere may point its own name at this computer (DNS rebinding)."""
    values = headers.getlist("host")
    match = HOST.fullmatch(values[0].lower()) if len(values) == 1 else None
    if match and policy.allows(match[1]):
        return None
    return f"Host {', '.join(values)[:80]!r} is not allowed; open Studio by the address that it printed at its start."


def own_origins(policy: Policy, scope: Scope, headers: Headers) -> set[str]:
    """Return the origins of our own page: the Host, and behind a proxy the name that the browser used.

    A forwarded name counts only if it is listed exactly: Gradio's CORS lets any page add that header on a public host.
    """
    names, forwarded = [headers["host"].lower()], headers.get("x-forwarded-host", "").split(",")[0].strip().lower()
    if policy.mode == "space" and forwarded in policy.hosts:
        names.append(forwarded)
    link = getattr(getattr(scope.get("app"), "blocks", None), "share_url", None) if policy.mode == "share" else None
    return {f"{scheme}://{name}" for scheme in ("http", "https") for name in names} | {(link or "").rstrip("/")} - {""}


def origin_problem(policy: Policy, scope: Scope, headers: Headers, path: str) -> str | None:
    """Say why the page that sends the request is refused. Command-line clients name no page and may pass."""
    origins = headers.getlist("origin")
    if origins:
        if len(origins) == 1 and origins[0].lower() in own_origins(policy, scope, headers):
            return None
        return f"Requests from the page {origins[0][:80]!r} are not allowed."
    changes = scope.get("method") not in SAFE_METHODS or path == "/logout"  # a socket has no method: it changes things
    if changes and headers.get("sec-fetch-site", "").lower() in ("cross-site", "same-site"):
        return "Requests from a page of another site are not allowed."
    return None


def path_problem(path: str) -> str | None:
    """Say why a path is closed in every mode: doors of Gradio that Studio does not use."""
    if path.startswith(CLOSED):
        return "This address is switched off."
    route = next((route for route in FILE_ROUTES if path.startswith(route)), None)
    target = path[len(route) :] if route else ""
    for _ in range(8):  # percent signs may be encoded again and again
        if ADDRESS.match(re.sub(r"[\x00-\x1f\x7f]", "", target)):
            return "Only files of this server are served here, no other addresses."
        target = unquote(target)
    return None


def is_logged_in(scope: Scope, headers: Headers) -> bool:
    """Say whether Gradio's login cookie is valid; `scope["app"]` is Gradio's app, whose `tokens` map cookie to user."""
    app = scope.get("app")
    tokens, name = getattr(app, "tokens", {}), getattr(app, "cookie_id", None)
    cookies = cookie_parser(headers.get("cookie", ""))
    return any(cookies.get(f"access-token-{kind}{name}") in tokens for kind in ("", "unsecure-"))


def is_open(scope: Scope, path: str) -> bool:
    """Say whether a path may be seen without login; no socket may."""
    if path == "/gradio_api/startup-events":  # launch() calls it once, without a cookie, before it returns
        return getattr(scope.get("app"), "startup_events_triggered", True) is False
    return scope["type"] == "http" and (path.rstrip("/") in OPEN or path.startswith(OPEN_FOLDERS))


def is_login(scope: Scope, path: str) -> bool:
    """Say whether the request tries a password."""
    return scope.get("method") == "POST" and path.rstrip("/") == "/login"


def address_of(scope: Scope) -> str:
    """Return whom the limiter counts: an IPv4 address, or the /64 network of an IPv6 one, which is one customer's."""
    name = (scope.get("client") or ("", 0))[0]
    address = parse_ip(name.partition("%")[0])
    return str(ipaddress.ip_network((address, 64), strict=False)) if address and address.version == 6 else name


class LoginLimiter:
    """At most `each` wrong passwords a minute from an address and `total` in all; holds at most `total` entries."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, each: int = 5, total: int = 30) -> None:
        self.clock, self.each, self.total, self.window = clock, each, total, 60.0
        self.tries: dict[object, tuple[float, str]] = {}

    def wait(self, address: str) -> int:
        """Return the whole seconds that `address` has to wait, 0 for none."""
        now = self.clock()
        self.tries = {key: entry for key, entry in self.tries.items() if now - entry[0] < self.window}
        every = [at for at, _ in self.tries.values()]
        mine = [at for at, who in self.tries.values() if who == address]
        full = mine[:1] * (len(mine) >= self.each) + every[:1] * (len(every) >= self.total)
        return max((math.ceil(at + self.window - now) for at in full), default=0)

    def begin(self, address: str) -> object:
        """Count a try before its answer is known, so that many at once cannot slip through; returns its key."""
        key = object()
        self.tries[key] = self.clock(), address
        return key

    def end(self, key: object, status: int) -> None:
        """Keep a wrong password; forget everything else, and after a right one all that the address did."""
        if status in (400, 401):
            return
        _, address = self.tries.pop(key, (0.0, ""))
        if status == 200:  # the others still count in all
            self.tries = {other: (at, "" if who == address else who) for other, (at, who) in self.tries.items()}


class BodyTooLarge(MultiPartException):
    """More bytes than allowed. Gradio and Starlette delete their half-written uploads on this class only."""


class Exchange:
    """One request and its answer: counts the body, tells the status, keeps back what answers too long a body."""

    def __init__(self, receive: Receive, send: Send, limit: int, on_status: Callable[[int], None] | None) -> None:
        self._receive, self._send, self.limit, self.on_status = receive, send, limit, on_status
        self.size, self.started = 0, False

    async def receive(self) -> Message:
        """Receive, or raise BodyTooLarge."""
        message = await self._receive()
        self.size += len(message.get("body", b""))
        if self.size > self.limit:
            raise BodyTooLarge("The request is larger than the maximum allowed size.")
        return message

    async def send(self, message: Message) -> None:
        """Send, unless the guard has to answer instead."""
        if self.size > self.limit and not self.started:
            return
        if self.on_status and message["type"] == "http.response.start":
            self.on_status(message["status"])
        self.started = True
        await self._send(message)


class Guard:
    """ASGI middleware for `launch(app_kwargs={"middleware": [Middleware(Guard, policy=…)]})`."""

    def __init__(self, app: ASGIApp, policy: Policy, limiter: LoginLimiter | None = None) -> None:
        self.app, self.policy, self.limiter = app, policy, limiter or LoginLimiter()
        self.too_large = 413, f"A request may carry at most {policy.max_body:,} bytes.", 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, then let the app answer it."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers, path = Headers(scope=scope), route_path(scope)
        send = self._dress(scope, headers, path, send)
        refusal = self._refusal(scope, headers, path)
        if refusal:
            return await refuse(scope, receive, send, refusal)
        if self.policy.credentials and path in ("", "/") and not is_logged_in(scope, headers):
            send = without_api_info(send)
        on_status = partial(self.limiter.end, self.limiter.begin(address_of(scope))) if is_login(scope, path) else None
        exchange = Exchange(receive, send, self.policy.max_body, on_status)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BodyTooLarge:
            if exchange.started:
                raise
        if exchange.size > exchange.limit and not exchange.started:
            await refuse(scope, receive, send, self.too_large)

    def _refusal(self, scope: Scope, headers: Headers, path: str) -> tuple[int, str, int] | None:
        policy = self.policy
        problem = host_problem(policy, headers) or origin_problem(policy, scope, headers, path) or path_problem(path)
        if problem:
            return 403, problem, 0
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > policy.max_body:
            return self.too_large
        if policy.credentials and not is_open(scope, path) and not is_logged_in(scope, headers):
            return 401, "Log in first.", 0
        wait = self.limiter.wait(address_of(scope)) if is_login(scope, path) else 0
        return (429, f"Too many wrong passwords; try again in {wait} seconds.", wait) if wait else None

    def _dress(self, scope: Scope, headers: Headers, path: str, send: Send) -> Send:
        """Put the client's id into the scope; return a send that adds the security headers and, on `/`, the cookie."""
        known = client_of(headers)
        fresh = secrets.token_hex(16) if not known and path in ("", "/") and scope["type"] == "http" else ""
        scope.setdefault("state", {})["client"] = known or fresh
        # Not Strict: a link from another site would arrive without the cookie, and a new id would replace the old one.
        where = "; SameSite=None; Partitioned" if self.policy.mode == "space" else "; SameSite=Lax"
        where += "; Secure" if self.policy.mode == "space" or scope.get("scheme") == "https" else ""

        async def dressed(message: Message) -> None:
            if message["type"].endswith("http.response.start"):
                out = MutableHeaders(scope=message)
                out.update({"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"})
                if self.policy.mode != "space":  # there the page is a frame of huggingface.co
                    out["X-Frame-Options"] = "SAMEORIGIN"
                if path.startswith("/studio/"):
                    out.setdefault("Content-Security-Policy", "default-src 'none'; sandbox")
                    out.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                if fresh and message["status"] < 400:
                    out.append("Set-Cookie", f"{COOKIE}={fresh}; Path=/; Max-Age=31536000; HttpOnly{where}")
            await send(message)

        return dressed


def without_api_info(send: Send) -> Send:
    """Return a send that empties the list of endpoints which Gradio 6.31 writes even into its login page."""
    start: list[Message] = []
    body = bytearray()

    async def stripped(message: Message) -> None:
        if message["type"] == "http.response.start":
            return start.append(message)
        body.extend(message.get("body", b""))
        if message["type"] == "http.response.body" and not message.get("more_body"):
            page = API_INFO.sub(NO_API_INFO, bytes(body))
            MutableHeaders(scope=start[0])["Content-Length"] = str(len(page))
            await send(start[0])
            await send({"type": "http.response.body", "body": page})

    return stripped


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: tuple[int, str, int]) -> None:
    """Answer with status, sentence and seconds to wait; a socket that cannot carry them is closed before it opens."""
    status, text, wait = refusal
    if scope["type"] == "websocket" and "websocket.http.response" not in (scope.get("extensions") or {}):
        return await send({"type": "websocket.close", "code": 1008, "reason": text[:120]})
    extra = {"Connection": "close"} if scope["type"] == "http" else {}  # what is left of a body is not read
    extra |= {"Retry-After": str(wait)} if wait else {}
    await PlainTextResponse(text, status, extra)(scope, receive, send)
