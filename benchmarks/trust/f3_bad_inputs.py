"""Bad pictures, datasets, adapters, pickles, archives, configs, requests, hub replies: one sentence each, with file and cure."""

import contextlib
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import psutil

from benchmarks.trust import bad_adapters, bad_files, bad_pictures
from benchmarks.trust.drawing import Drawing
from benchmarks.trust.figure import Figure, Tally
from studio.errors import StudioError
from studio.store import blobs
from studio.store.blobs import BlobStore, Refused

SECONDS = 60  # in which each must be refused; a child of its own may load torch in it
MEMORY_MAX = 400 * 2**20  # bytes that pictures may take more than before
CURE = re.compile(
    r";|: |\bmust\b|\bat most\b|\bmore than\b|choose|give|copy|save it|pack it|make it|did you mean"
    r"|cannot be (read|decoded)|is no YAML|needs|is missing"
)
Cases = Iterator[tuple[str, str, bad_files.Said]]


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise TimeoutError in a block that takes too long (in the main thread)."""

    def late(*_: object) -> None:
        raise TimeoutError(f"a hang: more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refusal(work: Callable[[], object]) -> str:
    """Return the sentence with which something is refused.

    Raises:
        AssertionError: if it is not.
    """
    try:
        with limited():
            said = work()
    except (StudioError, Refused) as error:
        return str(error)
    if not isinstance(said, str) or not said:
        raise AssertionError("it was taken")
    return said


def check_sentence(said: str, named: str) -> None:
    """Check that a sentence is one, names the file or field, and says what to do.

    Raises:
        AssertionError: if it is not.
    """
    assert "\n" not in said and len(said) < 500, f"no sentence: {said[:300]!r}"
    assert "Traceback" not in said and "object at 0x" not in said, f"of the machine room: {said!r}"
    assert re.search(named, said), f"it does not name {named}: {said!r}"
    assert CURE.search(said), f"without a cure: {said!r}"


def files(tally: Tally, kind: str, cases: Cases) -> None:
    for name, named, work in cases:
        with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder, tally.case(f"{kind}: {name}"):
            check_sentence(refusal(lambda work=work, folder=folder: work(Path(folder))), named)


def pictures(tally: Tally) -> None:
    """Bring 80 files where a picture is expected."""
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
        store, place = BlobStore(Path(folder) / "blobs"), Path(folder) / "odd.png"
        before = psutil.Process().memory_info().rss
        for name, data in bad_pictures.refused():
            place.write_bytes(data)
            with tally.case(f"picture: {name}"):
                check_sentence(refusal(lambda: store.add(place, "image") and None), "odd.png")
        for name, data in bad_pictures.doubtful():
            place.write_bytes(data)
            with tally.case(f"picture: {name}"), limited():
                try:
                    store.open(store.add(place, "image"), "image")
                except StudioError as error:
                    check_sentence(str(error), "odd.png")
        with tally.case("memory of the pictures"):
            more = psutil.Process().memory_info().rss - before
            assert more < MEMORY_MAX, f"{more / 2**20:.0f} MB more than before"


def adapters(tally: Tally) -> None:
    """Draw with 60 files where a LoRA is expected; the model is afterwards what it was."""
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
        drawing = Drawing(Path(folder))
        plain, place = drawing.draw(num_inference_steps=1), Path(folder) / "loras"
        before = drawing.weights()
        unet = next(reversed(drawing.engine.pipelines._loaded.values())).base.unet
        place.mkdir()
        for number, (name, data) in enumerate(bad_adapters.adapters(unet)):
            (place / f"odd-{number}.safetensors").write_bytes(data)
            with tally.case(f"adapter: {name}"):
                loras = [{"name": f"odd-{number}", "weight": 1.0}]
                said = refusal(lambda loras=loras: drawing.draw(loras=loras, num_inference_steps=1) and None)
                check_sentence(said, f"odd-{number}")
            (place / f"odd-{number}.safetensors").unlink()
        with tally.case("adapter: the model afterwards"):
            assert drawing.weights() == before, "the model's weights are others"
            pixels = [_pixels(png) for png in drawing.draw(num_inference_steps=1)]
            assert pixels == [_pixels(png) for png in plain], "the picture is another"


def _pixels(png: bytes) -> bytes:
    return blobs.decode(png).tobytes()


class Replies:
    """A hub that answers everything with one reply."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        told = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self.send_response(told.status)
                self.send_header("Content-Length", str(len(told.body)))
                self.send_header("Content-Type", "application/json")
                if told.status == 302:
                    self.send_header("Location", self.path)
                self.end_headers()
                self.wfile.write(told.body if self.command == "GET" else b"")

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


def replies(tally: Tally, number: int) -> None:
    """Ask for a model at a hub that answers oddly."""
    from studio.sources import Source
    from studio.store.downloads import Downloads
    from studio.store.tokens import Tokens

    hub = Replies()
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
        told = {"HF_ENDPOINT": hub.url, "CIVITAI_ENDPOINT": hub.url, "HF_HOME": f"{folder}/hf", "NO_PROXY": "127.0.0.1"}
        with patch.dict(os.environ, told):
            for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
                os.environ.pop(name, None)
            downloads = Downloads(Path(folder) / "data", Tokens(Path(folder) / "tokens.json"))
            for name, (status, body) in list(bad_files.REPLIES.items())[:number]:
                hub.status, hub.body = status, body
                with tally.case(f"hub: {name}"):
                    source = Source(site="hub", name="anna/model")
                    said = refusal(lambda source=source: downloads.run(source, lambda event: None) and None)
                    check_sentence(said, "anna/model|model|127.0.0.1|disk|repository")
                    left = list(Path(folder).rglob("*.safetensors"))
                    assert not left, f"something was kept: {left}"
            downloads.close()
    hub.server.shutdown()
    hub.server.server_close()


@contextlib.contextmanager
def gate_left_open(mutant: bool) -> Iterator[None]:
    """Take the judging of sizes and kinds away, as a program has it that trusts Pillow."""
    from PIL import Image

    def trusting(data: bytes) -> Image.Image:
        import io

        return Image.open(io.BytesIO(data)).convert("RGB")

    with patch.object(blobs, "decode", trusting) if mutant else contextlib.nullcontext():
        yield


KINDS: dict[str, Callable[[Tally, bool], None]] = {
    "pictures": lambda tally, full: pictures(tally),
    "datasets": lambda tally, full: files(tally, "dataset", bad_files.datasets()),
    "archives": lambda tally, full: files(tally, "archive", bad_files.archives()),
    "configs": lambda tally, full: files(tally, "config", bad_files.configs()),
    "pickles": lambda tally, full: files(tally, "pickle", bad_files.pickles()),
    "adapters": lambda tally, full: adapters(tally),
    "replies": lambda tally, full: replies(tally, len(bad_files.REPLIES)),
}


def run(full: bool, mutant: bool = False, only: Iterable[str] = ()) -> Figure:
    """Bring them all; the mutant decodes pictures as a program does that trusts its library."""
    from studio.store.blobs import limit_pillow

    limit_pillow()
    tally, counts = Tally(), {}
    with gate_left_open(mutant):
        for name in ["pictures"] if mutant else only or KINDS:
            before = tally.tried
            KINDS[name](tally, full)
            counts[name] = tally.tried - before
    return tally.figure("F3", __doc__ or "", "at least 300, each one sentence; 0 hangs", **counts)
