"""A really launched app in one of three modes, and what a stranger can send to it: raw bytes, as two visitors, with canaries around."""

import base64
import io
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.processes import end, environment, free_port
from benchmarks.trust.launched import SOCKETS
from studio.settings import ROOT

MODES = ("local", "share", "space")
SPACE = "me-studio.hf.space"
LOGIN = ("studio", "correct-horse-battery")
PATIENCE = 300.0  # seconds until the app is up
CANARY = b"c4n4ry"


@dataclass(frozen=True)
class Reply:
    """What came back: 0 and nothing if the connection was closed without an answer."""

    status: int = 0
    head: bytes = b""
    body: bytes = b""

    @property
    def refused(self) -> bool:
        """Whether the door stayed shut: no answer, a redirect to nowhere, or an error that is the sender's."""
        return self.status == 0 or 300 <= self.status < 500

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str:
        """Return a header's value, "" if it is not there."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return ""


@dataclass
class Target:
    """A running app.

    Attributes:
        mode: `local`, `share` or `space`.
        port: of 127.0.0.1.
        folder: everything that is its own: data, canaries, uploads, logs.
        visitors: name -> Cookie header of two strangers.
        process: of the app.
    """

    mode: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    canary: str
    visitors: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    replies: int = 0
    leaks: list[str] = field(default_factory=list)
    watched_from: int = 0
    full: bool = False  # whether every variant of an attack is tried, or one of each in turn
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def public(self) -> bool:
        return self.mode != "local"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    @property
    def marker(self) -> Path:
        """A file that only code of an attacker would make."""
        return self.folder / "marker"

    @property
    def host(self) -> str:
        return SPACE if self.mode == "space" else f"127.0.0.1:{self.port}"

    def raw(
        self,
        method: str,
        path: str | bytes,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        who: str = "bob",
        timeout: float = 20.0,
        until: bytes = b"",
    ) -> Reply:
        """Send exactly these bytes and read the answer; whatever it says is searched for canaries.

        Args:
            method: of HTTP.
            path: as it shall stand in the request line.
            headers: beside Host, cookie and length; those named `Host`, `Cookie` or `Content-Length` stand in their place.
            body: of the request.
            who: of `visitors`; "" is nobody.
            timeout: seconds.
            until: stop reading when this was read.
        """
        given = {"Host": self.host, "Connection": "close", "Content-Length": str(len(body))}
        given |= {"Cookie": self.visitors[who]} if self.visitors.get(who) else {}
        given |= dict(headers or {})
        lines = [f"{name}: {value}".encode("latin-1", "replace") for name, value in given.items() if value is not None]
        target = path if isinstance(path, bytes) else path.encode()
        start = method.encode() + b" " + target + b" HTTP/1.1"
        received = bytearray()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as link:
            link.sendall(b"\r\n".join([start, *lines]) + b"\r\n\r\n" + body)
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline and (piece := link.recv(65536)):
                received += piece
                if until and until in received:
                    break
        return self.heard(bytes(received), f"{method} {target[:120]!r}")

    def heard(self, received: bytes, what: str) -> Reply:
        """Read an answer and search it."""
        with self.lock:
            self.replies += 1
            if self.canary.encode() in received:
                self.leaks.append(f"{what}: a canary")
            elif self.public and str(self.data).encode() in received:
                self.leaks.append(f"{what}: a path of the server")
            elif b"Traceback (most recent call last)" in received:
                self.leaks.append(f"{what}: a traceback")
        head, _, body = received.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        status = int(words[1]) if len(words) > 1 and words[1][:3].isdigit() else 0
        if b"transfer-encoding: chunked" in head.lower():
            body = joined(body)
        return Reply(status, head, body)

    def post(self, path: str, value: Any, **more: Any) -> Reply:
        """Post JSON."""
        headers = {"Content-Type": "application/json"} | more.pop("headers", {})
        return self.raw("POST", path, headers=headers, body=json.dumps(value).encode(), **more)

    def call(self, name: str, /, *, who: str = "bob", session: str = "", **values: Any) -> Reply:
        """Call a public endpoint with the values that are not its defaults."""
        data = list((self.defaults.get(name, {}) | values).values()) if name in self.defaults else list(values.values())
        return self.post(
            f"/gradio_api/run/{name}",
            {"data": data} | ({"session_hash": session} if session else {}),
            who=who,
            timeout=120,
        )

    def run(self, function: int, data: list[Any], *, who: str = "bob", session: str = "", wait: float = 20.0) -> bytes:
        """Call any function of the page by its number, as the page does; return all that is answered."""
        session = session or secrets.token_hex(6)
        body = {"fn_index": function, "data": data, "session_hash": session}
        direct = self.post("/gradio_api/run/predict", body, who=who, timeout=wait)
        if direct.status != 404:
            return direct.head + direct.body
        queued = self.post("/gradio_api/queue/join", body, who=who, timeout=wait)
        if queued.status != 200:
            return queued.head + queued.body
        news = self.raw(
            "GET", f"/gradio_api/queue/data?session_hash={session}", who=who, timeout=wait, until=b"process_completed"
        )
        return news.head + news.body

    def config(self) -> dict[str, Any]:
        """Return what the page is made of, without searching it."""
        return self.raw("GET", "/config").json()

    def draw(self, who: str = "bob", **values: Any) -> dict[str, Any]:
        """Draw a tiny picture; raises AssertionError if that does not work."""
        values = {"prompt": "a red circle", "width": 64, "height": 64, "num_inference_steps": 1} | values
        answer = self.call("txt2img", who=who, **values)
        assert answer.status == 200, f"a normal job is answered with {answer.status}: {answer.body[:200]!r}"
        made = answer.json()["data"][0]
        assert made["state"] == "done", made
        return made

    def outbound(self) -> list[str]:
        """Return who was to be reached since the app is up."""
        file = self.folder / "sockets.txt"
        return file.read_bytes()[self.watched_from :].decode().splitlines() if file.exists() else []

    def log(self) -> str:
        """Return all that the app printed and logged."""
        files = [self.folder / "log.txt", *self.data.glob("logs/*.log")]
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files if path.exists())


def joined(body: bytes) -> bytes:
    """Return a chunked body as one."""
    whole = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            break
        whole += rest[:length]
        body = rest[length + 2 :]
    return bytes(whole)


def picture(width: int = 96, height: int = 64, colour: str = "red", **more: Any) -> bytes:
    """Return a PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG", **more)
    return buffer.getvalue()


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def target(mode: str, folder: Path, *, mutant: str = "none", executor: str = "worker") -> Iterator[Target]:
    """Launch the app with canaries in its data root, its working directory and its environment.

    Args:
        mode: one of `MODES`.
        folder: for everything of it.
        mutant: see `launched.MUTANTS`.
        executor: see `app.py --help`.
    """
    canary = f"{CANARY.decode()}-{secrets.token_hex(12)}"
    data, port = folder / "data", free_port()
    data.mkdir(parents=True, exist_ok=True)
    for place in (folder / "canary.txt", data / "canary.txt", data / "canary.png", data / "tokens.json"):
        place.write_text(json.dumps({"hub": f"hf_{canary}"}))
    flags = [
        "--data-dir",
        str(data),
        "--port",
        str(port),
        "--device",
        "cpu",
        "--cpu-threads",
        "1",
        "--executor",
        executor,
    ]
    flags += {"share": ["--share", "--auth", ":".join(LOGIN)], "space": ["--host", "127.0.0.1"]}.get(mode, [])
    settings = environment(folder) | {"PYTHONPATH": str(ROOT), SOCKETS: str(folder / "sockets.txt")}
    settings |= {"HF_TOKEN": f"hf_{canary}", "GRADIO_TEMP_DIR": str(folder / "uploads")}
    settings |= {"SPACE_ID": "me/studio", "SPACE_HOST": SPACE} if mode == "space" else {}
    settings |= {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "benchmarks.trust.launched", mutant, *flags]
    one = started(Target(mode, port, folder, launch(command, folder, settings), canary), command, settings)
    try:
        meet(one)
        yield one
    finally:
        end(one.process)  # pyright: ignore[reportArgumentType]


def launch(command: list[str], folder: Path, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the app; what it prints goes to `log.txt`."""
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=settings)


def started(one: Target, command: list[str], settings: dict[str, str]) -> Target:
    """Wait for the app; Gradio gives up when its own page takes three seconds, as on a very busy machine, so it is tried thrice."""
    for tries in range(3):
        try:
            wait_until_ready(one)
            break
        except RuntimeError as error:
            end(one.process)  # pyright: ignore[reportArgumentType]
            if tries == 2 or "localhost is not accessible" not in str(error):
                raise
            one.process = launch(command, one.folder, settings)
    return one


def wait_until_ready(one: Target) -> None:
    """Return when the app says that it is ready.

    Raises:
        RuntimeError: if it does not.
    """
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and one.process.poll() is None:
        if "Studio is ready at " in (one.folder / "log.txt").read_text(errors="replace"):
            sockets = one.folder / "sockets.txt"
            one.watched_from = sockets.stat().st_size if sockets.exists() else 0
            return
        time.sleep(0.1)
    raise RuntimeError(f"the app is not ready: {(one.folder / 'log.txt').read_text(errors='replace')[-1500:]}")


def meet(one: Target) -> None:
    """Let two visitors come to the page, log in where that is needed, and learn what the endpoints take."""
    for who in ("ann", "bob"):
        cookies = [cookie_of(one.raw("GET", "/", who=""))]
        if one.mode == "share":
            body = "&".join(
                f"{name}={value}" for name, value in zip(("username", "password"), LOGIN, strict=True)
            ).encode()
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            cookies.append(cookie_of(one.raw("POST", "/login", headers=form, body=body, who="")))
        one.visitors[who] = "; ".join(filter(None, cookies))
    info = one.raw("GET", "/gradio_api/info").json()["named_endpoints"]
    one.defaults = {
        name.strip("/"): {each["parameter_name"]: each.get("parameter_default") for each in endpoint["parameters"]}
        for name, endpoint in info.items()
    }


def cookie_of(reply: Reply) -> str:
    """Return the cookies that an answer sets, as a browser would send them back."""
    lines = [line for line in reply.head.split(b"\r\n") if line.lower().startswith(b"set-cookie:")]
    return "; ".join(line.partition(b":")[2].strip().partition(b";")[0].decode("latin-1") for line in lines)


def files_below(folder: Path) -> set[Path]:
    """Return all files below a folder."""
    return {Path(where) / name for where, _, names in os.walk(folder) for name in names}
