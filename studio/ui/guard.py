"""The guard in front of every route and socket, Gradio's and ours: host, origin, size, path, login.

Facts of Gradio 6.31 that it answers: no Host check, every Origin is reflected on a public host, `/login` has no limit,
`file=https://…` fetches any public address, own routes are outside the login, and the login page lists the endpoints.
"""

import contextlib
import ipaddress
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.errors import StudioError
from studio.ui.payloads import NOT_YOURS, Sessions, payload_check
from studio.ui.traffic import BodyRefused, Exchange, LoginLimiter, Rates, Refusal
from studio.visitors import Visitors, is_global

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE = "studio_client"
# The guard's own words to the handlers: what a browser sends under these names is thrown away.
SENDER, ROLE, HOST_ROLE = "x-studio-sender", "x-studio-role", "host"
UPLOAD_MIN = 100_000  # bytes from which on a request counts as an upload
CLIENT = re.compile(r"[0-9a-f]{32}")
PUBLIC_BODY, PUBLIC_FILES = 32 * 2**20, 20
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
FILE_ROUTES = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/")
# One letter before the colon is a Windows drive; two slashes of any kind are a Windows share.
ADDRESS = re.compile(r"[\s/\\]*[a-z][a-z0-9+.-]+:|[/\\]{2}", re.IGNORECASE)
CLOSED = (
    "/proxy=", "/gradio_api/proxy=", "/monitoring", "/gradio_api/monitoring", "/openapi.json",
    "/gradio_api/openapi.json", "/docs", "/redoc",
    "/gradio_api/run-history", "/gradio_api/process_recording", "/gradio_api/stream/", "/gradio_api/deep_link",
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
    max_files: int = 1_000
    author: str = ""  # who may do more on a Space, once Hugging Face says that it is they

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


def policy_for(
    *, host: str, share: bool, auth: tuple[str, str] | None, space_host: str | None = None, author: str = ""
) -> Policy:
    """Build the policy that belongs to the flags.

    Args:
        host: address to listen on.
        share: whether a public link is opened.
        auth: user and password.
        space_host: `SPACE_HOST`, a list with commas for own domains.
        author: whose Space it is, if people can log in there with Hugging Face.

    Raises:
        ValueError: one sentence with the way out, when strangers could use this computer.
    """
    if space_host:
        own = frozenset(filter(None, map(str.strip, space_host.lower().split(","))))
        return Policy("space", own, auth, PUBLIC_BODY, PUBLIC_FILES, author)
    name = host.strip().lower().strip("[]")
    address = parse_ip(name)
    own = frozenset({f"[{address}]" if address and address.version == 6 else name})
    if name == "localhost" or (address and address.is_loopback):
        if share:
            return Policy("share", own, auth or make_login(), PUBLIC_BODY, PUBLIC_FILES)
        return Policy("local", own, auth)
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


def address_of(scope: Scope, policy: Policy | None = None) -> str:
    """Return whom the limiter counts: an IPv4 address, or the /64 network of an IPv6 one, which is one customer's.

    On a Space every connection comes from Hugging Face's own network, whose proxy adds the sender at the end of X-Forwarded-For.
    """
    name = (scope.get("client") or ("", 0))[0]
    if policy and policy.mode == "space" and not is_global(name):
        told = [value for key, value in scope["headers"] if key == b"x-forwarded-for"]
        last = told[-1].decode("latin-1").rpartition(",")[2].strip() if told else ""
        name = last if parse_ip(last) else name
    address = parse_ip(name.partition("%")[0])
    return str(ipaddress.ip_network((address, 64), strict=False)) if address and address.version == 6 else name


def is_host(scope: Scope, policy: Policy) -> bool:
    """Say whether Hugging Face has told, in Gradio's signed session, that this is whose Space it is."""
    told = scope.get("session", {}).get("oauth_info") if policy.author and policy.mode == "space" else None
    if not isinstance(told, dict) or told.get("expires_at", 0) < time.time():
        return False
    return told.get("userinfo", {}).get("preferred_username") == policy.author


class Guard:
    """ASGI middleware for `launch(app_kwargs={"middleware": [Middleware(Guard, policy=…)]})`.

    Args:
        app: behind it.
        policy: who may talk to it.
        limiter: of wrong passwords.
        visitors: counts what strangers bring, on public pages.
        rates: counts their requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: Policy,
        limiter: LoginLimiter | None = None,
        visitors: Visitors | None = None,
        rates: Rates | None = None,
    ) -> None:
        self.app, self.policy, self.limiter = app, policy, limiter or LoginLimiter()
        self.visitors, self.rates = visitors, rates or Rates()
        self.sessions = Sessions() if policy.public else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, then let the app answer it."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        scope = self._marked(scope)
        headers, path = Headers(scope=scope), route_path(scope)
        send = self._dress(scope, headers, path, send)
        if refusal := self._refusal(scope, headers, path):
            return await refuse(scope, receive, send, refusal)
        if not self.policy.public or headers.get(ROLE) == HOST_ROLE:
            return await self._pass(scope, headers, path, receive, send)
        sender = self._sender(scope)
        if not self.rates.enter(sender):
            return await refuse(scope, receive, send, (429, "Too many requests are open; close some pages.", 1))
        try:
            refusal = self._too_much(scope, headers, sender)
            if refusal:
                return await refuse(scope, receive, send, refusal)
            await self._pass(scope, headers, path, receive, send)
        finally:
            self.rates.leave(sender)

    async def _pass(self, scope: Scope, headers: Headers, path: str, receive: Receive, send: Send) -> None:
        """Let the app answer, and answer in its place where the body is refused."""
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        if self.policy.credentials and path in ("", "/") and not is_logged_in(scope, headers):
            send = without_api_info(send)
        address = address_of(scope, self.policy)
        on_status = partial(self.limiter.end, self.limiter.begin(address)) if is_login(scope, path) else None
        client, policy = client_of(headers), self.policy
        if self.sessions and self.sessions.refuses_stream(scope, path, client):
            return await refuse(scope, receive, send, NOT_YOURS)
        check = payload_check(path, client, self.sessions)
        exchange = Exchange(
            receive, send, headers, limit=policy.max_body, files=policy.max_files, on_status=on_status, check=check
        )
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BodyRefused:
            if exchange.started:
                raise
        finally:
            self._count_upload(scope, headers, exchange.size)
        if exchange.refusal and not exchange.started:
            await refuse(scope, receive, send, exchange.refusal)

    def _marked(self, scope: Scope) -> Scope:
        """Return the scope with our words to the handlers, and without what a browser sends under their names."""
        kept = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(b"x-studio-")]
        if self.policy.public:
            kept.append((SENDER.encode(), address_of(scope, self.policy).encode()))
        if is_host(scope, self.policy):
            kept.append((ROLE.encode(), HOST_ROLE.encode()))
        scope["headers"] = kept  # in place: what stands around us, and Gradio's own routes, shall see the same
        return scope

    def _sender(self, scope: Scope) -> str:
        """Return who is counted: an address of the internet, else the browser."""
        address = address_of(scope, self.policy)
        return address if is_global(address) else client_of(Headers(scope=scope)) or address

    def _too_much(self, scope: Scope, headers: Headers, sender: str) -> Refusal | None:
        """Say why a stranger's request has to wait."""
        if scope.get("method") in SAFE_METHODS:
            return None
        if wait := self.rates.begin(sender):
            return 429, f"Too many requests; try again in {wait} seconds.", wait
        length = headers.get("content-length", "")
        size = int(length[:20]) if length.isdecimal() else 0
        if self.visitors and (size > UPLOAD_MIN or not length):
            if client := client_of(headers):
                self.visitors.seen(client, address_of(scope, self.policy))
            try:
                self.visitors.check_disk(size)
                self.visitors.spend(client, "bytes of uploads", 0 if not length else size, self._bytes_a_day)
            except StudioError as error:
                return 429, f"{str(error)[:1].upper()}{str(error)[1:]}.", 0
        return None

    @property
    def _bytes_a_day(self) -> int:
        return self.visitors.limits.upload_bytes if self.visitors else 0

    def _count_upload(self, scope: Scope, headers: Headers, size: int) -> None:
        """Count a body that did not say its length before."""
        if self.visitors and self.policy.public and size and not headers.get("content-length"):
            with contextlib.suppress(StudioError):  # the next one is refused
                self.visitors.spend(
                    client_of(headers), "bytes of uploads", min(size, self._bytes_a_day), self._bytes_a_day
                )

    def _refusal(self, scope: Scope, headers: Headers, path: str) -> Refusal | None:
        policy = self.policy
        problem = host_problem(policy, headers) or origin_problem(policy, scope, headers, path) or path_problem(path)
        if problem:
            return 403, problem, 0
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > policy.max_body:
            return 413, f"A request may carry at most {policy.max_body:,} bytes.", 0
        if policy.credentials and not is_open(scope, path) and not is_logged_in(scope, headers):
            return 401, "Log in first.", 0
        wait = self.limiter.wait(address_of(scope, policy)) if is_login(scope, path) else 0
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


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    """Answer with status, sentence and seconds to wait; a socket that cannot carry them is closed before it opens."""
    status, text, wait = refusal
    if scope["type"] == "websocket" and "websocket.http.response" not in (scope.get("extensions") or {}):
        return await send({"type": "websocket.close", "code": 1008, "reason": text[:120]})
    extra = {"Connection": "close"} if scope["type"] == "http" else {}  # what is left of a body is not read
    extra |= {"Retry-After": str(wait)} if wait else {}
    await PlainTextResponse(text, status, extra)(scope, receive, send)
