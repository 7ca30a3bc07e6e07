"""A really launched app, driven over HTTP as a program would: one client, one connection kept open."""

import io
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.processes import children, cpu_seconds, free_port, log_end, started
from studio.settings import ROOT

LIMIT = 300.0  # seconds
SESSION = "benchmark"
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Drawn:
    """One job: wall seconds from the submit to the news that it is done, seconds until its id was known, picture ids."""

    seconds: float
    submit: float
    images: list[str]


class Served:
    """The running app.

    Args:
        client: knows its address.
        process: of the app.
        data: its data root.
    """

    def __init__(self, client: httpx.Client, process: subprocess.Popen[str], data: Path) -> None:
        self.client, self.data = client, data
        self.process = process
        self._defaults: dict[str, Any] = {}

    @property
    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far, of the app and of its worker."""
        return cpu_seconds(self.process.pid), sum(map(cpu_seconds, children(self.process.pid)))

    def draw(self, **values: Any) -> Drawn:
        """Submit a job through the public endpoint and follow `/studio/state` until it is done.

        Raises:
            RuntimeError: if the job fails.
        """
        version = self._state(-1)["version"]
        began = time.perf_counter()
        name = self._txt2img(values | {"wait": False})["job"]
        submit = time.perf_counter() - began
        while True:
            state = self._state(version)
            version = state["version"]
            job = next(job for job in state["jobs"] if job.get("id") == name)
            if job["state"] in ENDED:
                break
        seconds = time.perf_counter() - began
        if job["state"] != "done":
            raise RuntimeError(f"the job {job['state']}: {job['error']}")
        return Drawn(seconds, submit, job["images"])

    def call(self, **values: Any) -> float:
        """Draw with `wait=True`, one request whose answer comes when the picture is there; return wall seconds.

        Raises:
            RuntimeError: if the job fails.
        """
        began = time.perf_counter()
        self._txt2img(values)
        return time.perf_counter() - began

    def _txt2img(self, values: dict[str, Any]) -> dict[str, Any]:
        """Call the public endpoint in the client's one session: Gradio builds a new session's state anew, for tens of milliseconds."""
        body = {"data": list((self._defaults | values).values()), "session_hash": SESSION}
        answer = self.client.post("/gradio_api/run/txt2img", json=body)
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"the job failed: {answer.text}")
        return answer.json()["data"][0]

    def picture(self, image_id: str) -> bytes:
        """Return a picture's file."""
        return self.client.get(f"/studio/image/{image_id}").raise_for_status().content

    def record(self, image_id: str) -> dict[str, Any]:
        """Return what a picture says about itself."""
        return self.client.get(f"/studio/metadata/{image_id}").raise_for_status().json()["record"]

    def wait_until_ready(self) -> None:
        """Return when the worker has loaded its libraries.

        Raises:
            RuntimeError: if the app ends or takes too long.
        """
        until = time.monotonic() + LIMIT
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self._state(-1)["device"]["state"] == "ready":
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            raise RuntimeError(f"the app is not ready: {log_end(self.data)}")
        info = self.client.get("/gradio_api/info").raise_for_status().json()
        parameters = info["named_endpoints"]["/txt2img"]["parameters"]
        self._defaults = {one["parameter_name"]: one.get("parameter_default") for one in parameters}

    def _state(self, since: int) -> dict[str, Any]:
        return self.client.get("/studio/state", params={"since": since}).raise_for_status().json()


@contextmanager
def served(data: Path, model: str, extra_models: Sequence[Path], cpu_threads: int) -> Iterator[Served]:
    """Launch `app.py` with its worker process and previews on, on the CPU, and wait until it can draw."""
    port = free_port()
    command = [sys.executable, str(ROOT / "app.py"), "--data-dir", str(data), "--port", str(port), "--device", "cpu"]
    command += ["--model", model, "--cpu-threads", str(cpu_threads)]
    command += [part for folder in extra_models for part in ("--extra-models", str(folder.resolve()))]
    with started(command, data) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT, trust_env=False) as client:
            app = Served(client, process, data)
            app.wait_until_ready()
            yield app


def pixels(png: bytes) -> np.ndarray:
    """Return a picture's colours, (H, W, 3) uint8."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))
