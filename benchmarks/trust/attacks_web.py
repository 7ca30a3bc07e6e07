"""Attacks on the server itself: files, addresses, pages of others, logins, floods, other people's sessions (A1 to A12)."""

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks.trust.target import LOGIN, Reply, Target, as_text, files_below, picture
from studio.settings import ROOT

Case = tuple[str, Callable[[Target], None]]  # what it is called, and what raises AssertionError if it gets through
META = {"_type": "gradio.FileData"}


def refused(reply: Reply, what: str = "") -> None:
    """Raise unless a door stayed shut."""
    assert reply.refused, f"{what} is answered with {reply.status}: {reply.body[:160]!r}"


def cases(one: Target) -> Iterator[Case]:
    """Return all attacks of this file for a target."""
    yield from file_cases(one)
    yield from copy_cases(one)
    yield from address_cases(one)
    yield from page_cases(one)
    yield from door_cases(one)
    yield from body_cases(one)
    yield from session_cases(one)
    yield from flood_cases(one)


# A1: any file through a file route


def spellings(path: str) -> list[str]:
    """Return ways to write one absolute path in an address."""
    up = "/" + "../" * 12 + path.lstrip("/")
    bare = path.lstrip("/")
    dots = ("..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "....//", "..;/", "%252e%252e%252f", "..%c0%af", ".%2e/")
    found = [path, up, f"/{path}", f"/.{path}", f"{path}/", f"{path}/.", f"{path}%00.png", f"{path}%20", f"{path}#.png"]
    found += ["/" + one * 12 + bare for one in dots]
    found += [f"/proc/self/root{path}", "/proc/self/environ", "/proc/self/cwd/canary.txt", "/dev/stdin", "/etc/passwd"]
    found += [f"file://{path}", f"file:{path}", f"\\\\localhost\\{bare}", f"C:{path}", f"c:\\{bare}", "canary.txt"]
    found += ["../canary.txt", "data/canary.txt", "./data/studio.db", "%2Fetc%2Fpasswd", f"~{path}", "~/.netrc"]
    found += [
        path.replace("/", "%2f"),
        path.replace("/", "%252f"),
        path.replace("/", "\\"),
        path.upper(),
        f"{path}:$DATA",
    ]
    found += [
        f"{path}?x=.png",
        f"{path};.png",
        f"{path}%0a",
        f"{path}%0d%0a",
        f"{path}%2500",
        f"{path}\t",
        f"{path}%09",
        f"%00{path}",
    ]
    found += [
        f"//{bare}",
        f"///{bare}",
        f"/%2f{bare}",
        f"/x/..{path}",
        f"/tmp/gradio/..{up}",
        f"/./{bare}",
        f"/%2e/{bare}",
    ]
    return [*found, "CON", "NUL", "x" * 6000]


def file_cases(one: Target) -> Iterator[Case]:
    routes = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/")
    for number, spelled in enumerate(spellings(str(one.data / "canary.txt"))):

        def read(one: Target, spelled: str = spelled, number: int = number) -> None:
            ways = (("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=0-99"}))
            for route in routes if one.full else {routes[0], routes[number % len(routes)]}:
                for method, more in ways if one.full else (ways[number % len(ways)],):
                    reply = one.raw(method, (route + spelled).encode("latin-1", "replace"), headers=more)
                    refused(reply, f"{method} {route}")

        yield f"A1 file {spelled[:60]!r}", read
    names = (
        "..%2f..%2fcanary",
        "../canary",
        "%2e%2e%2fstudio.db",
        "x/../../canary",
        "canary%00",
        "..\\canary",
        "a" * 5000,
    )
    for place in ("image", "thumbnail", "metadata", "tool", "cover", "preview"):

        def own(one: Target, place: str = place) -> None:
            for name in names:
                refused(one.raw("GET", f"/studio/{place}/{name}"), place)

        yield f"A1 our own route {place}", own
    for secret in (one.data / "studio.db", one.data / "tokens.json", ROOT / "app.py", ROOT / "pyproject.toml"):
        yield (
            f"A1 {secret.name}",
            lambda one, secret=secret: refused(one.raw("GET", f"/gradio_api/file={secret}"), "file"),
        )


# A2, A3: a component copies a file of the server, or fetches an address


def functions(one: Target) -> list[dict[str, Any]]:
    """Return the page's functions that the server runs and that take something."""
    return [each for each in one.config()["dependencies"] if each.get("backend_fn") and each["inputs"]]


def copy_cases(one: Target) -> Iterator[Case]:
    for each in functions(one):

        def copy(one: Target, each: dict[str, Any] = each) -> None:
            before = files_below(one.uploads)
            stolen = {"path": str(one.data / "canary.txt"), "meta": META}
            bare = {"path": str(one.folder / "canary.txt")}
            kinds = (stolen, {"background": stolen, "layers": [stolen], "composite": stolen}, [stolen], bare)
            for turn in range(len(kinds) if one.full else 1):
                one.run(
                    each["id"], [kinds[(place + turn) % len(kinds)] for place in range(len(each["inputs"]))], wait=6
                )
            fresh = files_below(one.uploads) - before
            found = [path for path in fresh if one.canary.encode() in path.read_bytes()]
            assert not found, f"the server copied its own file to {found[0]}"

        yield f"A2 function {each['id']} ({each.get('api_name') or 'private'})", copy


@contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """Wait for whoever can be made to call on a port of this machine."""
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        stop = threading.Event()

        def answer() -> None:
            while not stop.is_set():
                with suppress(OSError):
                    link, address = server.accept()
                    calls.append(str(address))
                    link.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1], calls
        stop.set()
        thread.join()


def takers(one: Target) -> list[tuple[int, int, int]]:
    """Return (function, place, number of inputs) of those that take a file."""
    config = one.config()
    files = {
        part["id"] for part in config["components"] if part["type"] in ("file", "image", "imageeditor", "uploadbutton")
    }
    found = []
    for each in config["dependencies"]:
        places = [place for place, part in enumerate(each["inputs"]) if part in files]
        found += [(each["id"], places[0], len(each["inputs"]))] if places and each.get("backend_fn") else []
    return found


def address_cases(one: Target) -> Iterator[Case]:
    forms = (
        "http://127.0.0.1:{p}/", "http://localhost:{p}/", "http://0.0.0.0:{p}/", "http://[::1]:{p}/", "http://[::ffff:127.0.0.1]:{p}/",
        "http://2130706433:{p}/", "http://0x7f.1:{p}/", "http://0177.0.0.1:{p}/", "http://127.1:{p}/", "HTTP://127.0.0.1:{p}/",
        "http://169.254.169.254/latest/meta-data/", "https://example.org/a.png", "http://localtest.me:{p}/", "ftp://127.0.0.1:{p}/",
        "file:///etc/passwd", "gopher://127.0.0.1:{p}/", "//127.0.0.1:{p}/", "http://127.0.0.1:{p}@example.org/",
    )  # fmt: skip
    chosen = takers(one)[: 4 if one.full else 1]
    for form in forms:

        def fetch(one: Target, form: str = form) -> None:
            with listener() as (port, calls):
                address = form.format(p=port)
                for function, place, number in chosen:
                    data: list[Any] = [None] * number
                    data[place] = {"path": address, "url": address, "meta": META}
                    one.run(function, data, wait=6)
                for route in ("/gradio_api/file=", "/file=", "/gradio_api/proxy=", "/proxy="):
                    refused(one.raw("GET", route + address), route)
                    refused(one.raw("HEAD", route + address.replace("http", "%68ttp").replace(":", "%3a", 1)), route)
                for field in ("image", "mask_image"):
                    one.call(
                        "img2img", image=address, prompt="x", settings={} if field == "image" else {field: address}
                    )
                assert not calls, f"somebody called from {calls[0]}"

        yield f"A3, A4 address {form[:40]}", fetch


# A5, A7, A10: pages of others, redirects, files that a browser would run


def page_cases(one: Target) -> Iterator[Case]:
    hosts = (
        "evil.example",
        f"evil.example:{one.port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "2130706433",
    )
    for host in hosts:

        def rebound(one: Target, host: str = host) -> None:
            for method in ("GET", "POST", "DELETE", "OPTIONS"):
                for path in ("/", "/config", "/gradio_api/queue/join", "/studio/state", "/gradio_api/run/txt2img"):
                    refused(one.raw(method, path, headers={"Host": host}, body=b"{}"), f"{method} {path}")

        yield f"A5 Host {host!r}", rebound
    origins = (
        "https://evil.example",
        "null",
        "http://localhost:1",
        "http://evil@localhost",
        "https://evil.gradio.live",
    )
    for origin in (*origins, "https://bob-evil.hf.space"):

        def foreign(one: Target, origin: str = origin) -> None:
            for method in ("GET", "POST", "PUT", "DELETE"):
                for path in (
                    "/config",
                    "/gradio_api/queue/join",
                    "/studio/images",
                    "/logout",
                    "/login",
                    "/gradio_api/upload",
                ):
                    reply = one.raw(method, path, headers={"Origin": origin}, body=b"{}")
                    refused(reply, f"{method} {path}")
            upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
            key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Origin": origin}
            assert one.raw("GET", "/studio/state", headers=upgrade | key, timeout=3).status != 101

        yield f"A5 Origin {origin!r}", foreign
    for site in ("cross-site", "same-site"):
        sent = {"Sec-Fetch-Site": site}
        yield (
            f"A5 {site} form",
            lambda one, sent=sent: refused(one.post("/gradio_api/queue/join", {}, headers=sent), "a form"),
        )
    targets = (
        "//evil.example",
        "////evil.example",
        "/\\evil.example",
        "https:evil.example",
        "%2f%2fevil.example",
        "https://evil.example",
    )
    for place in targets:

        def redirect(one: Target, place: str = place) -> None:
            for path in (
                f"/login/callback?_target_url={place}",
                f"/logout?_target_url={place}",
                f"/{place}",
                f"/?next={place}",
            ):
                where = one.raw("GET", path).header("location")
                assert "evil.example" not in where.removeprefix(f"http://{one.host}"), f"{path} leads to {where}"

        yield f"A7 redirect {place!r}", redirect
    page = b"<script>alert(1)</script>"
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    kinds = (
        ("a.html", page),
        ("a.svg", svg),
        ("a.xhtml", page),
        ("a.js", b"alert(1)"),
        ("a.png", page),
        ("a.html", picture() + page),
    )
    for name, content in (*kinds, ("a.svgz", svg), ("a.htm", page), ("a.xml", svg), ("a.mht", page)):
        yield (
            f"A10 upload {name} ({len(content)} bytes)",
            lambda one, name=name, content=content: uploaded(one, name, content),
        )


def form(name: str, content: bytes) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a form with one file."""
    head = (
        f'--bnd\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: text/html\r\n\r\n'
    )
    return {"Content-Type": "multipart/form-data; boundary=bnd"}, head.encode() + content + b"\r\n--bnd--\r\n"


def uploaded(one: Target, name: str, content: bytes) -> None:
    """Upload a file and ask for it: no browser may run it, and no tool takes it for a picture."""
    headers, body = form(name, content)
    reply = one.raw("POST", "/gradio_api/upload", headers=headers, body=body)
    if reply.status != 200:
        return
    path = reply.json()[0]
    back = one.raw("GET", f"/gradio_api/file={path}")
    shown = back.header("content-type").startswith("image/") and "svg" not in back.header("content-type")
    told = shown or back.header("content-disposition").startswith("attachment")
    told = told and back.header("x-content-type-options") == "nosniff"
    assert back.refused or told, f"{name} comes back as {back.header('content-type')}, to be opened"
    refused_picture = one.call("img2img", image=as_text(content), prompt="x", wait=False)
    assert refused_picture.status != 200 or content.startswith(b"\x89PNG"), "it is taken for a picture"


# A6, A9: doors that shall be shut, passwords


def door_cases(one: Target) -> Iterator[Case]:
    shut = (
        "/monitoring", "/monitoring/summary", "/gradio_api/monitoring/summary", "/openapi.json", "/docs", "/redoc",
        "/gradio_api/openapi.json", "/gradio_api/vibe-edit", "/gradio_api/vibe-code", "/gradio_api/vibe-starter-queries",
        "/gradio_api/undo-vibe-edit", "/gradio_api/dev/reload", "/gradio_api/profiling/traces", "/gradio_api/run-history/connect",
        "/gradio_api/run-history/buckets", "/gradio_api/process_recording", "/gradio_api/stream/x", "/gradio_api/deep_link",
    )  # fmt: skip
    for path in shut:

        def knock(one: Target, path: str = path) -> None:
            for method in ("GET", "POST"):
                refused(
                    one.raw(method, path, body=b"{}", headers={"Content-Type": "application/json"}), f"{method} {path}"
                )

        yield f"A9 {path}", knock
    if one.mode != "share":
        return
    inner = ("/config", "/studio/state", "/studio/gallery", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x")
    for path in (
        *inner,
        "/gradio_api/run/txt2img",
        "/gradio_api/upload",
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/studio/zip",
    ):

        def stranger(one: Target, path: str = path) -> None:
            for method in ("GET", "POST"):
                for cookie in ("", "access-token-x=y", "studio_client=" + "a" * 32):
                    reply = one.raw(method, path, who="", headers={"Cookie": cookie}, body=b"{}")
                    assert reply.status in (401, 403) or (path == "/config" and b"auth_required" in reply.body), (
                        reply.status
                    )

        yield f"A6 without login {path}", stranger
    yield "A9 two hundred passwords", passwords


def passwords(one: Target) -> None:
    """Guess: nearly all guesses must wait, and who is in stays in."""

    def guess(number: int) -> int:
        body = f"username={LOGIN[0]}&password={number}".encode()
        return one.raw(
            "POST", "/login", headers={"Content-Type": "application/x-www-form-urlencoded"}, body=body, who=""
        ).status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(guess, range(200)))
    assert statuses.count(429) >= 190, f"only {statuses.count(429)} of 200 had to wait"
    assert one.raw("GET", "/studio/gallery").status == 200


# A8: bodies


def body_cases(one: Target) -> Iterator[Case]:
    def endless(one: Target) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", one.port), timeout=20) as link:
            head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {one.host}\r\nCookie: {one.visitors['bob']}\r\n"
            link.sendall(
                (head + "Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n").encode()
            )
            block, sent = b"%x\r\n" % 2**20 + b"x" * 2**20 + b"\r\n", 0
            with suppress(OSError):
                for sent in range(200):  # noqa: B007 - how far it came is what counts
                    link.sendall(block)
            assert sent < 150, "200 MB were taken"

    def many_files(one: Target) -> None:
        headers, body = form("a.png", b"x")
        reply = one.raw(
            "POST",
            "/gradio_api/upload",
            headers=headers,
            body=body.replace(b"--bnd--\r\n", b"") * 1001 + b"--bnd--\r\n",
        )
        assert reply.refused, f"1,001 files are answered with {reply.status}"

    def lines(one: Target) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=bnd"}
        began = time.monotonic()
        reply = one.raw("POST", "/gradio_api/upload", headers=headers, body=b"\r\n" * 500_000)
        assert reply.refused or reply.json() == [], f"a megabyte of line ends: {reply.body[:99]!r}"
        assert time.monotonic() - began < 20

    def declared(one: Target) -> None:
        began = time.monotonic()
        reply = one.raw("POST", "/gradio_api/upload", headers={"Content-Length": str(10**12)}, body=b"x", timeout=10)
        assert reply.status == 413 and time.monotonic() - began < 8

    def deep(one: Target) -> None:
        for body in (b"[" * 190_000, b'{"a":' * 30_000, b'{"data": [NaN, Infinity, 1e999]}', b"\xff\xfe{", b'"x"', b""):
            for path in (
                "/gradio_api/run/txt2img",
                "/gradio_api/queue/join",
                "/studio/zip",
                "/studio/job/cancel",
                "/studio/images",
            ):
                reply = one.raw("POST", path, headers={"Content-Type": "application/json"}, body=body)
                assert reply.refused or (reply.status == 500 and len(reply.body) < 300), f"{path}: {reply.status}"

    def slow(one: Target) -> None:
        links = []
        for _ in range(50):
            link = socket.create_connection(("127.0.0.1", one.port), timeout=5)
            head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {one.host}\r\nCookie: {one.visitors['ann']}\r\n"
            head += "Content-Length: 9999\r\n\r\n"
            link.sendall(head.encode() + b"x")
            links.append(link)
        waits = []
        for _ in range(20):
            began = time.monotonic()
            assert one.raw("GET", "/healthz").status == 200
            waits.append(time.monotonic() - began)
        for link in links:
            link.close()
        assert sorted(waits)[-2] < 5, f"others wait {max(waits):.1f} s"

    named = {"endless": endless, "1,001 files": many_files, "line ends": lines, "a terabyte declared": declared}
    for name, attack in (named | {"deep and odd JSON": deep, "fifty slow bodies": slow}).items():
        if one.public or name not in ("1,001 files",):
            yield f"A8 {name}", attack


# A11: sessions, jobs and pictures of others


def session_cases(one: Target) -> Iterator[Case]:
    if not one.public:
        return
    session, secret = secrets.token_hex(6), f"a red circle {one.canary}"
    made = one.draw(who="ann", prompt=secret)
    one.leaks.clear()  # ann may read her own words
    one.call("job", who="ann", session=session, job=made["job"])
    image, job = made["images"][0]["id"], made["job"]
    gets = (f"/studio/image/{image}", f"/studio/thumbnail/{image}", f"/studio/metadata/{image}", f"/studio/preview/{job}",
            f"/gradio_api/heartbeat/{session}", f"/gradio_api/queue/data?session_hash={session}")  # fmt: skip
    for path in gets:

        def look(one: Target, path: str = path) -> None:
            for who in ("bob", ""):
                reply = one.raw("GET", path, who=who, timeout=3)
                assert reply.status in (401, 403, 404), f"{path} is answered with {reply.status}"

        yield f"A11 {path.split('/')[2]}", look
    for action in ("cancel", "skip", "move", "retry"):
        yield (
            f"A11 job {action}",
            lambda one, action=action: refused(one.post(f"/studio/job/{action}", {"job": job}), action),
        )
    for action in ("star", "trash", "restore", "empty"):
        body = {"action": action, "ids": [image]}
        yield f"A11 images {action}", lambda one, body=body: refused(one.post("/studio/images", body), "a change")
    for name in ("job", "cancel"):
        yield f"A11 endpoint {name}", lambda one, name=name: assert_error(one.call(name, job=job))

    def lists(one: Target) -> None:
        for path in ("/studio/gallery", "/studio/state?since=-1"):
            assert image not in one.raw("GET", path).body.decode() and job not in one.raw("GET", path).body.decode()
        assert image.encode() not in one.call("gallery").body
        assert b".png" not in one.post("/studio/zip", {"ids": [image]}).body
        assert one.canary.encode() not in one.call("gallery", words=one.canary).body

    yield "A11 lists", lists


def assert_error(reply: Reply) -> None:
    """Raise unless an endpoint refused."""
    assert reply.refused or reply.status == 500, f"answered with {reply.status}: {reply.body[:160]!r}"


# A12: floods


def flood_cases(one: Target) -> Iterator[Case]:
    if not one.public:
        return

    def flood(one: Target) -> None:
        long = {"prompt": "a red circle", "num_inference_steps": 50, "num_images_per_prompt": 4, "wait": False}
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: one.call("txt2img", who="ann", **long), range(60)))
        taken = [reply.json()["data"][0]["job"] for reply in replies if reply.status == 200]
        began = time.monotonic()
        try:
            one.draw(who="bob")
            waited = time.monotonic() - began
        finally:
            for job in taken:
                one.call("cancel", who="ann", job=job)
        assert len(taken) <= 16, f"{len(taken)} jobs of one visitor were taken"
        assert waited < 90, f"the second visitor waited {waited:.0f} s"

    yield "A12 sixty jobs of one visitor", flood

    def names(one: Target) -> None:
        for number in range(300):
            one.raw("GET", "/", who="", headers={"Cookie": f"studio_client={number:032x}"}, timeout=5)
        assert json.loads(one.raw("GET", "/healthz").body)["status"] == "ok"

    yield "A12 three hundred sessions", names
