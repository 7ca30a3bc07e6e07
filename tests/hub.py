"""A small server that speaks the few words of the Hub and of Civitai that a download needs, over real files, with faults on demand."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """A server on a free port of this computer.

    Attributes:
        repos: repository -> name -> content.
        gated: repositories that want the token.
        token: the one that is accepted.
        slow: seconds after each piece of a large file.
        served: (path, first byte) of each file that was asked for.
        broken: names of files whose content arrives changed.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.token, self.slow = "hf_right", 0.0
        self.served: list[tuple[str, int]] = []
        self.authorised: list[str] = []
        self.broken: set[str] = set()
        self.versions: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, to: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(to.path).path)
        given = to.headers.get("Authorization", "").removeprefix("Bearer ")
        self.authorised.append(given)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.about(to, "/".join(parts[2:4]), "/".join(parts[5:]) or "main", given)
        if parts[:2] == ["api", "v1"]:
            found = self.versions.get("/".join(parts[2:]))
            return self.send(to, json.dumps(found or {"error": "none"}).encode(), {}, 200 if found else 404, body=True)
        if parts[:2] == ["api", "download"]:
            return self.content(to, path, self.files[path], {}, body=body)
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        if self.refused(to, repo, given):
            return None
        data = self.repos[repo][name]
        if name in self.broken:
            data = bytes(reversed(data))
        etag = hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else hashlib.sha1(data).hexdigest()
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{etag}"',
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{etag}"',
        }
        return self.content(to, path, data, headers, body=body)

    def refused(self, to: BaseHTTPRequestHandler, repo: str, given: str) -> bool:
        if repo not in self.repos:
            self.send(to, b"{}", {"X-Error-Code": "RepoNotFound"}, 404)
            return True
        if repo in self.gated and given != self.token:
            code = "GatedRepo" if not given or given.startswith("hf_") else "Unauthorized"
            self.send(to, b"{}", {"X-Error-Code": code, "X-Error-Message": "gated"}, 403 if given else 401)
            return True
        return False

    def about(self, to: BaseHTTPRequestHandler, repo: str, revision: str, given: str) -> None:
        if self.refused(to, repo, given):
            return
        if revision not in ("main", COMMIT):
            self.send(to, b"{}", {"X-Error-Code": "RevisionNotFound"}, 404)
            return
        siblings = []
        for name, data in self.repos[repo].items():
            one: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if name.endswith(".safetensors"):
                one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(one)
        told = {
            "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "gated": "auto" if repo in self.gated else False,
            "siblings": siblings, "tags": [], "downloads": 0, "cardData": {"license": "openrail"},
        }  # fmt: skip
        self.send(to, json.dumps(told).encode(), {"Content-Type": "application/json"}, 200)

    def content(
        self, to: BaseHTTPRequestHandler, path: str, data: bytes, headers: dict[str, str], *, body: bool
    ) -> None:
        start = int(to.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        if body:
            self.served.append((path, start))
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.send(to, data[start:], headers, 206 if start else 200, body=body)

    def send(
        self, to: BaseHTTPRequestHandler, data: bytes, headers: dict[str, str], status: int, *, body: bool = True
    ) -> None:
        to.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data)), "Accept-Ranges": "bytes"}).items():
            to.send_header(name, value)
        to.end_headers()
        if not body or to.command == "HEAD":
            return
        try:
            for place in range(0, len(data), 65536):
                to.wfile.write(data[place : place + 65536])
                if self.slow and len(data) > 65536:
                    time.sleep(self.slow)
        except OSError:  # the client was killed
            to.close_connection = True
