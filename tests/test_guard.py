"""The guard: on a tiny app every rule by itself, then in front of a really launched Gradio."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}  # before gradio and huggingface_hub

import asyncio
import re
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from studio.ui.guard import Guard, LoginLimiter, Policy, client_of, gradio_environment, policy_for

LOGIN = ("studio", "right password")
LOCAL = Policy()
SHARE = Policy("share", credentials=LOGIN)
SPACE = Policy("space", frozenset({"ada-studio.hf.space"}))
LAN = policy_for(host="0.0.0.0", share=False, auth=LOGIN)


# A tiny app, asked without a server, so that every header can be sent.


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"bytes": len(body), "client": request.state.client})


async def form(request: Request) -> Response:
    fields = await request.form()
    return JSONResponse(len(fields))


async def own_policy(_: Request) -> Response:
    return PlainTextResponse("x", headers={"Content-Security-Policy": "default-src 'self'"})


async def login(request: Request) -> Response:
    right = await request.body() == b"right"
    return JSONResponse(right, 200 if right else 400)


async def chat(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


TINY = Starlette(
    routes=[
        Route("/form", form, methods=["POST"]),
        Route("/login", login, methods=["POST"]),
        Route("/studio/own", own_policy),
        WebSocketRoute("/studio/progress", chat),
        Route("/{path:path}", echo, methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]),
    ]
)


class Answer(NamedTuple):
    status: int
    headers: httpx.Headers
    text: str
    sent: list[Message]


def ask(guard: Guard | Policy, path: str = "/", *, method: str = "GET", **more: Any) -> Answer:
    """Send one request to the tiny app behind the guard.

    `headers` are a list of pairs (Host is added if there is none), `chunks` the body, the rest goes into the scope.
    """
    guard = guard if isinstance(guard, Guard) else Guard(TINY, guard)
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in more.pop("headers", [])]
    if not any(name == b"host" for name, _ in headers):
        headers.insert(0, (b"host", b"localhost:7860"))
    chunks = list(more.pop("chunks", [b""]))
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "scheme": "http"}
    scope |= {"client": ("10.0.0.9", 5), "server": ("127.0.0.1", 7860), "root_path": ""} | more
    if scope["type"] == "websocket":
        del scope["method"]
    sent: list[Message] = []

    async def receive() -> Message:
        if scope["type"] == "websocket":
            return {"type": "websocket.connect"}
        if not chunks:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    start = next((message for message in sent if message["type"].endswith("response.start")), {})
    text = b"".join(message.get("body", b"") for message in sent).decode()
    return Answer(start.get("status", 0), httpx.Headers(start.get("headers", [])), text, sent)


def fake_gradio(**more: Any) -> SimpleNamespace:
    """Return what the guard looks at on Gradio's app."""
    return SimpleNamespace(**({"tokens": {"tok": "studio"}, "cookie_id": "id", "blocks": None} | more))


COOKIE = ("cookie", "access-token-id=tok")


# Host

HOSTS = {
    "localhost": "LOCAL SHARE SPACE LAN",
    "LOCALHOST:7860": "LOCAL SHARE SPACE LAN",
    "127.0.0.1:9": "LOCAL SHARE SPACE LAN",
    "[::1]:7860": "LOCAL SHARE SPACE LAN",
    "192.168.1.7:7860": "LAN SPACE",
    "[fe80::1]": "LAN SPACE",
    "0.0.0.0:7860": "LAN SPACE",
    socket.gethostname(): "LAN",
    "abc123.gradio.live": "SHARE",
    "ada-studio.hf.space": "SPACE",
    "bob-evil.hf.space": "",
    "evil.example": "",
    "evil.example:7860": "",
    "localhost.evil.example": "",
    "127.0.0.1.evil.example": "",
    "evilgradio.live": "",
    "localhost@evil.example": "",
    "evil.example#localhost": "",
    "localhost:7860:7860": "",
    "localhost:": "",
    "localhost, evil.example": "",
    "127.1": "",
    "2130706433": "",
    "": "",
}


@pytest.mark.parametrize("name", ["LOCAL", "SHARE", "SPACE", "LAN"])
@pytest.mark.parametrize("host", HOSTS)
def test_host(host: str, name: str) -> None:
    answer = ask(globals()[name], "/healthz", headers=[("Host", host)])
    assert answer.status == (200 if name in HOSTS[host].split() else 403)
    if answer.status == 403:
        assert answer.text.startswith(f"Host {host!r} is not allowed")
        assert answer.headers["content-type"].startswith("text/plain")


def test_host_must_come_once() -> None:
    twice = [("Host", "localhost"), ("Host", "localhost")]
    assert ask(LOCAL, headers=twice).status == 403
    raw: list[Message] = []

    async def keep(message: Message) -> None:
        raw.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(Guard(TINY, LOCAL)(scope, None, keep))  # pyright: ignore[reportArgumentType]
    assert raw[0]["status"] == 403


# Origin

OWN, FOREIGN = (
    "http://localhost:7860",
    ("https://evil.example", "null", "http://localhost:7861", "http://127.0.0.1:7860"),
)
STRANGE = (
    "file://",
    "http://localhost:7860.evil.example",
    "http://evil@localhost:7860",
    "ftp://localhost:7860",
    "",
    "*",
)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("origin", [None, OWN, OWN.upper(), *FOREIGN, *STRANGE])
def test_origin(origin: str | None, method: str) -> None:
    headers = [] if origin is None else [("Origin", origin)]
    expected = 200 if origin is None or origin.lower() == OWN else 403
    assert ask(LOCAL, "/x", method=method, headers=headers).status == expected
    assert ask(LOCAL, "/x", method=method, headers=[*headers, ("Host", "evil.example")]).status == 403


@pytest.mark.parametrize(
    ("method", "path", "site", "expected"),
    [
        ("GET", "/x", "cross-site", 200),  # a link
        ("GET", "/logout", "cross-site", 403),  # an <img> that logs everybody out
        ("GET", "/logout", "same-origin", 200),
        ("POST", "/x", "cross-site", 403),
        ("POST", "/x", "same-site", 403),
        ("POST", "/x", "same-origin", 200),
        ("POST", "/x", "none", 200),
    ],
)
def test_requests_without_origin(method: str, path: str, site: str, expected: int) -> None:
    assert ask(LOCAL, path, method=method, headers=[("Sec-Fetch-Site", site)]).status == expected


def test_two_origins_are_refused() -> None:
    assert ask(LOCAL, headers=[("Origin", OWN), ("Origin", OWN)]).status == 403


def test_a_forwarded_host_counts_only_by_its_exact_name() -> None:
    def post(policy: Policy, host: str, origin: str, forwarded: str, **more: Any) -> int:
        headers = [("Host", host), ("Origin", origin), ("X-Forwarded-Host", forwarded)]
        return ask(policy, "/login", method="POST", chunks=[b"right"], headers=headers, **more).status

    assert post(SPACE, "10.1.2.3:7860", "https://ada-studio.hf.space", "ada-studio.hf.space") == 200
    assert post(SPACE, "ada-studio.hf.space", "https://bob-evil.hf.space", "bob-evil.hf.space") == 403
    # Another share link is a stranger: its page could add the header, since Gradio's CORS allows every header.
    assert post(SHARE, "mine.gradio.live", "https://evil.gradio.live", "evil.gradio.live") == 403
    assert post(LOCAL, "localhost", "https://evil.example", "evil.example") == 403
    gradio = fake_gradio(blocks=SimpleNamespace(share_url="https://mine.gradio.live"))
    assert post(SHARE, "localhost:7860", "https://mine.gradio.live", "mine.gradio.live", app=gradio) == 200
    assert post(SHARE, "localhost:7860", "https://evil.gradio.live", "mine.gradio.live", app=gradio) == 403
    assert post(SHARE, "mine.gradio.live", "https://mine.gradio.live", "") == 200


# Sockets


@pytest.mark.parametrize("extensions", [None, {"websocket.http.response": {}}])
@pytest.mark.parametrize(
    ("policy", "headers", "expected"),
    [
        (LOCAL, [], 0),
        (LOCAL, [("Origin", OWN)], 0),
        (LOCAL, [("Origin", "https://evil.example")], 403),
        (LOCAL, [("Origin", "null")], 403),
        (LOCAL, [("Sec-Fetch-Site", "cross-site")], 403),
        (LOCAL, [("Host", "evil.example")], 403),
        (SHARE, [("Origin", OWN)], 401),
        (SHARE, [("Origin", OWN), ("cookie", "access-token-id=wrong")], 401),
        (SHARE, [("Origin", OWN), COOKIE], 0),
    ],
)
def test_socket(policy: Policy, headers: list, expected: int, extensions: dict | None) -> None:
    guard = Guard(TINY, policy)
    answer = ask(guard, "/studio/progress", type="websocket", headers=headers, extensions=extensions, app=fake_gradio())
    if not expected:
        assert answer.sent[0]["type"] == "websocket.accept"
    elif extensions:
        assert answer.sent[0]["type"] == "websocket.http.response.start"
        assert answer.status == expected
    else:
        assert answer.sent[0]["type"] == "websocket.close"
        assert len(answer.sent) == 1


def test_no_socket_is_open_without_login() -> None:
    for path in ("/", "/login", "/healthz", "/assets/x"):
        assert ask(SHARE, path, type="websocket", app=fake_gradio()).sent[0]["type"] == "websocket.close"


# Size

SMALL = Policy(max_body=1000)


@pytest.mark.parametrize("path", ["/x", "/form"])
@pytest.mark.parametrize(
    ("declared", "chunks", "expected"),
    [
        ("1000", [b"x" * 1000], 200),
        (None, [b"x" * 400, b"x" * 600], 200),
        ("1001", [b"x"], 413),
        ("9" * 40, [b"x"], 413),
        (None, [b"x" * 1001], 413),
        (None, [b"x" * 400] * 5, 413),
        ("10", [b"x" * 400] * 5, 413),
    ],
)
def test_body(path: str, declared: str | None, chunks: list[bytes], expected: int) -> None:
    headers = [("Content-Type", "application/x-www-form-urlencoded")]
    headers += [("Content-Length", declared)] if declared else []
    answer = ask(SMALL, path, method="POST", headers=headers, chunks=chunks)
    assert answer.status == expected
    if expected == 413:
        assert answer.text == "A request may carry at most 1,000 bytes."
        assert answer.headers["connection"] == "close"
        assert [message["type"] for message in answer.sent] == ["http.response.start", "http.response.body"]


def test_a_body_that_grows_after_the_answer_began_ends_the_request() -> None:
    async def eager(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()

    with pytest.raises(Exception, match="at most 1,000 bytes"):
        ask(Guard(eager, SMALL), method="POST", chunks=[b"x" * 1001])


# Paths

ADDRESSES = [
    "https://example.org/x", "http://127.0.0.1:9/", "HTTPS://example.org", "hTTp:/example.org", "ftp://example.org/x",
    "file:///etc/passwd", "data:text/html,x", "gopher://x", "http:example.org", "//example.org/x", "\\\\example.org\\x",
    "/\\example.org", "\\/example.org", " https://example.org", "/https://example.org", "\thttps://example.org",
    "ht\ntps://example.org", "%68ttps://example.org", "%2568ttps://example.org", "https%3A//example.org",
    "https%253A%252F%252Fexample.org", "%2F%2Fexample.org", "%5C%5Cexample.org", "%09https://example.org",
]  # fmt: skip


@pytest.mark.parametrize("route", ["/gradio_api/file=", "/file=", "/gradio_api/file/"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_the_file_route_is_no_proxy(route: str, address: str) -> None:
    assert ask(LOCAL, f"{route}{address}").status == 403
    assert ask(LOCAL, f"/ui{route}{address}", root_path="/ui").status == 403


@pytest.mark.parametrize(
    "path", ["/tmp/gradio/0a1b/cat.webp", "C:\\Temp\\gradio\\cat.webp", "/tmp/a: b/50%.png", "cat.png"]
)
def test_the_file_route_serves_files(path: str) -> None:
    assert ask(LOCAL, f"/gradio_api/file={path}").status == 200


def test_closed_paths() -> None:
    closed = (
        "/proxy=https://x.hf.space /monitoring /monitoring/summary /openapi.json /docs /docs/oauth2-redirect /redoc"
    )
    closed += " /gradio_api/proxy=x /gradio_api/monitoring/summary /gradio_api/vibe-edit /gradio_api/dev/reload"
    for path in closed.split():
        assert ask(LOCAL, path).status == 403, path
        assert ask(LAN, path, headers=[COOKIE], app=fake_gradio()).status == 403, path


# Login


def test_login_is_needed_for_everything_but_the_login_page() -> None:
    opened = (
        "/ /config /config/ /login /login/ /assets/a.js /static/a.png /svelte/a.js /theme.css /favicon.ico /healthz"
    )
    opened += " /manifest.json /robots.txt /gradio_api/theme.css /gradio_api/login_check /gradio_api/token"
    shut = "/studio/own /studio/ /studio /logout /gradio_api/info /gradio_api/cancel /gradio_api/reset /gradio_api/runs"
    shut += (
        " /gradio_api/startup-events /gradio_api/upload /assets /configs /assetsx /gradio_api /gradio_api/theme.css/x"
    )
    for path in opened.split():
        assert ask(LAN, path, app=fake_gradio()).status in (200, 405), path
    for path in shut.split():
        answer = ask(LAN, path, app=fake_gradio())
        assert (answer.status, answer.text) == (401, "Log in first."), path
        assert ask(LAN, path, app=fake_gradio(), headers=[COOKIE]).status == 200, path
        assert ask(Policy(), path).status == 200, path


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        ("access-token-id=tok", 200),
        ("access-token-unsecure-id=tok", 200),
        ("access-token-id=old; access-token-unsecure-id=tok", 200),
        ("access-token-id=", 401),
        ("access-token-id=studio", 401),
        ("access-token-other=tok", 401),
        ("access-token-None=tok", 401),
        ("tok", 401),
    ],
)
def test_login_cookie(cookie: str, expected: int) -> None:
    assert ask(LAN, "/studio/own", headers=[("cookie", cookie)], app=fake_gradio()).status == expected


def test_without_gradio_nobody_is_logged_in() -> None:
    assert ask(LAN, "/studio/own", headers=[COOKIE]).status == 401


def test_the_start_check_of_gradio_passes_only_once() -> None:
    path = "/gradio_api/startup-events"
    assert ask(LAN, path, app=fake_gradio(startup_events_triggered=False)).status == 200
    assert ask(LAN, path, app=fake_gradio(startup_events_triggered=True)).status == 401


class Tries:
    """A guard whose clock stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.limiter = LoginLimiter(lambda: self.now)
        self.guard = Guard(TINY, LAN, self.limiter)

    def __call__(self, password: str = "wrong", address: str = "10.0.0.9", path: str = "/login") -> int:
        return self.answer(password, address, path).status

    def answer(self, password: str, address: str, path: str = "/login") -> Answer:
        return ask(self.guard, path, method="POST", chunks=[password.encode()], client=(address, 1))


def test_five_wrong_passwords_a_minute() -> None:
    tries = Tries()
    for _ in range(5):
        assert tries() == 400
        tries.now += 1
    answer = tries.answer("right", "10.0.0.9")  # not even the right one is looked at
    assert (answer.status, answer.headers["retry-after"]) == (429, "55")
    assert tries(path="/login/") == 429
    assert tries(address="10.0.0.10") == 400
    tries.now += 55
    assert [tries(), tries()] == [400, 429]


def test_a_right_password_resets_the_address() -> None:
    tries = Tries()
    statuses = [tries(password) for password in ["wrong"] * 4 + ["right"] + ["wrong"] * 6]
    assert statuses == [400] * 4 + [200] + [400] * 5 + [429]


def test_thirty_wrong_passwords_a_minute_in_all() -> None:
    tries = Tries()
    statuses = [tries(address=f"10.0.{i // 250}.{i % 250}") for i in range(2000)]
    assert statuses.count(400) == 30
    assert statuses.count(429) == 1970
    assert len(tries.limiter.tries) == 30
    tries.now += 60
    assert tries() == 400
    assert len(tries.limiter.tries) == 1


def test_right_passwords_are_not_limited() -> None:
    tries = Tries()
    assert {tries("right") for _ in range(100)} == {200}
    assert not tries.limiter.tries


def test_an_ipv6_customer_is_one_address() -> None:
    tries = Tries()
    assert [tries(address=f"2001:db8::{i}") for i in range(6)] == [400] * 5 + [429]
    assert tries(address="2001:db8:0:1::1") == 400


def test_many_tries_at_once_do_not_slip_through() -> None:
    limiter = LoginLimiter(lambda: 0.0)
    for _ in range(5):
        assert limiter.wait("a") == 0
        limiter.begin("a")  # none of them is answered yet
    assert limiter.wait("a") == 60


# Headers and the client's cookie


@pytest.mark.parametrize("policy", [LOCAL, LAN, SHARE, SPACE])
@pytest.mark.parametrize("headers", [[], [("Host", "evil.example")]])
def test_headers(policy: Policy, headers: list) -> None:
    answer = ask(policy, "/healthz", headers=headers)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers.get("x-frame-options") == (None if policy is SPACE else "SAMEORIGIN")
    assert "content-security-policy" not in answer.headers


def test_headers_of_own_routes() -> None:
    answer = ask(LOCAL, "/studio/image/1")
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert ask(LOCAL, "/studio/own").headers.get_list("content-security-policy") == ["default-src 'self'"]


@pytest.mark.parametrize(
    ("policy", "scheme", "attributes"),
    [
        (LOCAL, "http", {"SameSite=Lax"}),
        (LAN, "http", {"SameSite=Lax"}),
        (SHARE, "https", {"SameSite=Lax", "Secure"}),
        (SPACE, "https", {"SameSite=None", "Secure", "Partitioned"}),
    ],
)
def test_client_cookie(policy: Policy, scheme: str, attributes: set[str]) -> None:
    first = ask(policy, scheme=scheme)
    value, *rest = first.headers["set-cookie"].split("; ")
    assert set(rest) == {"Path=/", "Max-Age=31536000", "HttpOnly"} | attributes
    assert re.fullmatch(r"studio_client=[0-9a-f]{32}", value)
    assert f'"client":"{value[14:]}"' in first.text  # the first handler knows it already
    again = ask(policy, headers=[("cookie", value)])
    assert "set-cookie" not in again.headers
    assert again.text == first.text
    assert ask(policy).headers["set-cookie"] != first.headers["set-cookie"]


def test_client_cookie_only_on_the_page() -> None:
    answer = ask(LOCAL, "/studio/state")
    assert "set-cookie" not in answer.headers
    assert '"client":""' in answer.text
    assert "set-cookie" not in ask(LOCAL, headers=[("Host", "evil.example")]).headers


@pytest.mark.parametrize("value", ["", "x", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 31 + "\n", "../" + "0" * 29])
def test_malformed_client_cookie(value: str) -> None:
    assert client_of({"cookie": f"a=b; studio_client={value}"}) == ""
    assert "set-cookie" in ask(LOCAL, headers=[("cookie", f"studio_client={value}".strip())]).headers


def test_client_of() -> None:
    assert client_of({"cookie": f"a=b; studio_client={'0af1' * 8}; c=d"}) == "0af1" * 8
    assert client_of({}) == ""


# Policies and the environment


def test_policies() -> None:
    assert policy_for(host="127.0.0.1", share=False, auth=None).mode == "local"
    assert policy_for(host="localhost", share=False, auth=LOGIN).credentials == LOGIN
    assert policy_for(host="::1", share=False, auth=None).allows("[::1]")
    assert policy_for(host="127.0.0.5", share=False, auth=None).allows("127.0.0.5")
    assert policy_for(host="0.0.0.0", share=False, auth=LOGIN).mode == "lan"
    assert policy_for(host="Studio.lan", share=False, auth=LOGIN).allows("studio.lan")
    space = policy_for(host="0.0.0.0", share=False, auth=None, space_host="Ada-studio.hf.space, art.example")
    assert space.mode == "space"
    assert space.allows("ada-studio.hf.space")
    assert space.allows("art.example")
    assert not space.allows("")
    assert LOGIN[1] not in repr(SHARE)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "studio.lan", ""])
def test_a_network_needs_a_login(host: str) -> None:
    sentence = f"--host {host} needs --auth USER:PASSWORD: anyone in the network could use this computer"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        policy_for(host=host, share=False, auth=None)
    with pytest.raises(ValueError, match="--share works without --host"):
        policy_for(host=host, share=True, auth=LOGIN)


def test_a_share_link_always_has_a_login() -> None:
    first, second = (policy_for(host="127.0.0.1", share=True, auth=None).credentials for _ in range(2))
    assert first
    assert second
    assert first[0] == "studio"
    assert len(first[1]) >= 22
    assert first != second
    assert policy_for(host="127.0.0.1", share=True, auth=LOGIN).credentials == LOGIN


def test_gradio_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SOMETHING_NEW", "1")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/mine")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "1")
    table = gradio_environment()
    assert table["GRADIO_SOMETHING_NEW"] is None
    assert "GRADIO_TEMP_DIR" not in table
    for name in ("ALLOWED_PATHS", "BLOCKED_PATHS", "SHARE", "VIBE_MODE", "WATCH_DIRS", "LOCAL_DEV_MODE", "ROOT_PATH"):
        assert table[f"GRADIO_{name}"] is None
    assert {name: value for name, value in table.items() if value is not None} == {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "DISABLE_TELEMETRY": "1",
    }


# A really launched Gradio


class Live(NamedTuple):
    url: str
    app: Any
    tries: Tries
    uploads: Path


def launch(guarded: bool) -> tuple[Any, Tries]:
    import gradio as gr

    def whisper(text: str, request: gr.Request) -> str:
        """Say a thing that strangers may not know of."""
        return f"{text} from {client_of(request.headers)!r}"

    async def secret(_: Request) -> Response:
        return PlainTextResponse("secret")

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    with gr.Blocks(analytics_enabled=False) as page:
        gr.api(whisper, api_name="whisper")  # pyright: ignore[reportPrivateImportUsage]
    tries = Tries()
    policy = Policy("local", credentials=LOGIN, max_body=1_000_000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page.queue(max_size=8).launch(
        server_name="127.0.0.1", server_port=port, share=False, prevent_thread_lock=True, quiet=True,
        auth=LOGIN if guarded else None, enable_monitoring=False, ssr_mode=False, mcp_server=False, run_history=False,
        app_kwargs={
            "middleware": [Middleware(Guard, policy=policy, limiter=tries.limiter)] if guarded else [],
            "routes": [Route("/studio/secret", secret), Route("/healthz", healthz)],
            "docs_url": None, "redoc_url": None, "openapi_url": None,
        },
    )  # fmt: skip
    return page, tries


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    uploads = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        warnings.simplefilter("ignore")
        page, tries = launch(guarded=True)
        yield Live(page.local_url.rstrip("/"), page.app, tries, uploads)
        page.close(verbose=False)


@pytest.fixture
def member(live: Live) -> Iterator[httpx.Client]:
    """A browser that has logged in."""
    live.tries.now += 61
    with httpx.Client(base_url=live.url, timeout=10) as browser:
        answer = browser.post("/login", data={"username": LOGIN[0], "password": LOGIN[1]})
        assert answer.status_code == 200
        # httpx, like a browser, does not send the Secure one over http: the other must do.
        yield browser


def all_routes(routes: list[Any]) -> Iterator[tuple[str, set[str]]]:
    """Walk FastAPI's routes, with those of its included routers."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route.path, route.methods
        else:
            yield from all_routes(inner.routes)


OPENED = {
    "/", "/config", "/config/", "/login", "/login/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt",
    "/pwa_icon", "/pwa_icon/{size}", "/static/{path:path}", "/assets/{path:path}", "/svelte/{path:path}", "/healthz",
    "/gradio_api/theme.css", "/gradio_api/login_check", "/gradio_api/login_check/", "/gradio_api/token",
    "/gradio_api/token/", "/gradio_api/app_id", "/gradio_api/app_id/",
}  # fmt: skip


def test_live_sweep_without_login(live: Live) -> None:
    checked = 0
    with httpx.Client(base_url=live.url, timeout=5) as stranger:
        for path, methods in all_routes(live.app.routes):
            for method in methods:
                answer = stranger.request(method, re.sub(r"\{[^}]*\}", "1", path))
                checked += 1
                if path in OPENED:
                    assert answer.status_code < 500, path
                else:
                    assert answer.status_code in (401, 403), f"{method} {path}: {answer.status_code}"
                assert answer.headers["x-content-type-options"] == "nosniff"
    assert checked > 70, "the sweep has lost Gradio's routes"


def test_live_login_page(live: Live) -> None:
    live.tries.now += 61
    with httpx.Client(base_url=live.url, timeout=10) as browser:
        page = browser.get("/")
        assert page.status_code == 200
        assert '"auth_required":true' in page.text
        assert "whisper" not in page.text
        assert "strangers may not know" not in page.text
        assert browser.get("/?all_endpoints=true").text.count("whisper") == 0
        assert 'window.gradio_api_info = {"named_endpoints": {}, "unnamed_endpoints": {}};</script>' in page.text
        assert client_of({"cookie": f"studio_client={browser.cookies['studio_client']}"})
        parts = set(re.findall(r'(?:href|src)="(?:\./|/)([^"]+\.(?:js|css|json))"', page.text))
        assert len(parts) >= 3
        for part in parts:
            assert browser.get(f"/{part}").status_code == 200, part
        own = {"Origin": live.url, "Sec-Fetch-Site": "same-origin"}
        assert browser.get("/config").status_code == 401
        assert browser.post("/login", data={"username": "studio", "password": "x"}, headers=own).status_code == 400
        assert browser.post("/login", data={"username": "studio", "password": LOGIN[1]}, headers=own).status_code == 200
        assert browser.get("/config").json()["username"] == "studio"
        assert "whisper" in browser.get("/").text
        assert browser.get("/studio/secret").text == "secret"
        assert browser.get("/gradio_api/file=https://example.org/x").status_code == 403
        assert browser.get("/gradio_api/file=/etc/passwd").status_code == 403
        browser.get("/logout")
        assert browser.get("/studio/secret").status_code == 401


def test_live_gradio_client(live: Live) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AuthenticationError

    live.tries.now += 61
    with pytest.raises(AuthenticationError):
        Client(live.url, verbose=False)
    client = Client(live.url, auth=LOGIN, verbose=False)
    try:
        assert client.predict("hello", api_name="/whisper") == "hello from ''"
    finally:
        client.close()


def test_live_handlers_know_the_client(live: Live, member: httpx.Client) -> None:
    name = "0af1" * 8
    member.cookies.set("studio_client", name)
    joined = member.post("/gradio_api/call/whisper", json={"data": ["hello"]})
    result = member.get(f"/gradio_api/call/whisper/{joined.json()['event_id']}")
    assert f"hello from '{name}'" in result.text


@pytest.mark.parametrize("path", ["/", "/config", "/studio/secret", "/gradio_api/info", "/assets/x.js", "/login"])
@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}], ids=str
)
def test_live_strangers(live: Live, member: httpx.Client, path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "HEAD", "POST", "DELETE"):
        assert member.request(method, path, headers=headers).status_code == 403, method


def test_live_passwords_are_limited(live: Live, member: httpx.Client) -> None:
    live.tries.now += 61

    def guess(number: int, spread: bool) -> int:
        # uvicorn believes this header from 127.0.0.1, so the addresses here are as the attacker likes them
        headers = {"X-Forwarded-For": f"10.0.0.{number}"} if spread else {}
        data = {"username": "studio", "password": str(number)}
        return stranger.post("/login", data=data, headers=headers).status_code

    with httpx.Client(base_url=live.url, timeout=20) as stranger, ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(guess, range(200), [False] * 200))
        assert statuses.count(429) == 195
        assert statuses.count(400) == 5
        statuses = list(pool.map(guess, range(100), [True] * 100))
        assert statuses.count(429) == 75
        assert statuses.count(400) == 25
        assert member.get("/studio/secret").status_code == 200  # who is in stays in
        live.tries.now += 61
        assert guess(0, False) == 400


@pytest.mark.parametrize("declared", [True, False])
def test_live_upload_is_capped_and_leaves_nothing(live: Live, member: httpx.Client, declared: bool) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%d.png"\r\n\r\n'

    def body(parts: int) -> Iterator[bytes]:
        for part in range(parts):
            yield head % part + b"x" * 200_000 + b"\r\n"
        yield b"--b--\r\n"

    def upload(parts: int) -> httpx.Response:
        content = b"".join(body(parts)) if declared else body(parts)
        return member.post(
            "/gradio_api/upload", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"}
        )

    before = {path for path in live.uploads.rglob("*") if path.is_file()}
    assert upload(6).status_code == 413
    assert {path for path in live.uploads.rglob("*") if path.is_file()} == before
    assert upload(3).status_code == 200


def test_live_a_long_json_body_is_413(live: Live, member: httpx.Client) -> None:
    answer = member.post("/gradio_api/queue/join", content=iter([b"x" * 600_000] * 2))
    assert answer.status_code == 413


def test_live_mutant_without_guard() -> None:
    """The checks above can fail: the same app without the guard answers strangers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page, _ = launch(guarded=False)
    try:
        url = page.local_url.rstrip("/")
        assert httpx.get(f"{url}/config", headers={"Host": "evil.example"}).status_code == 200
        assert httpx.get(f"{url}/studio/secret", headers={"Origin": "https://evil.example"}).text == "secret"
        assert "x-content-type-options" not in httpx.get(f"{url}/").headers
    finally:
        page.close(verbose=False)
