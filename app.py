"""Studio's page: `python app.py`. The composition root: flags become settings, settings become objects, objects become the page."""

import argparse
import errno
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from studio.errors import StudioError
from studio.memory import PLANS
from studio.settings import ROOT, Settings, read_settings
from studio.store import writer
from studio.store.apart import Apart
from studio.store.blobs import limit_pillow
from studio.store.captions import Captions
from studio.store.changes import Changes
from studio.store.collections import Datasets
from studio.store.downloads import Downloads
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.store.jobs import JobStore
from studio.store.library import Library
from studio.store.runs import Runs
from studio.store.tokens import Tokens
from studio.ui.guard import Policy, gradio_environment, make_login, policy_for
from studio.visitors import Limits, Visitors

if TYPE_CHECKING:
    from studio.ui.services import Services, Training

logger = logging.getLogger("studio")

PORTS = range(7860, 7960)
UPLOAD_MAX = "64mb"
PIXELS_PUBLIC = 24_000_000
OFF = "training, datasets, downloads, merging, deleting, tokens, server paths, the pictures of others"


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """Read the command line; a flag that is not given is None."""
    parser = argparse.ArgumentParser(prog="app.py", description="Studio: generate pictures in the browser.")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1; 0.0.0.0 needs --auth)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument(
        "--share",
        action="store_true",
        default=None,
        help="open a public gradio.live link; makes a login if --auth is not given",
    )
    parser.add_argument("--auth", metavar="USER:PASS", help="ask for this login")
    parser.add_argument("--data-dir", type=Path, help="folder for models, pictures, runs (default ./data)")
    parser.add_argument("--model", help="id of the model to start with (default shapes)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps or auto (default)")
    parser.add_argument(
        "--executor",
        choices=["inline", "worker"],
        help="where pictures are made (default: worker, a process of its own)",
    )
    parser.add_argument(
        "--extra-models",
        type=Path,
        action="append",
        metavar="DIR",
        help="another folder with models, read in place; may be repeated",
    )
    parser.add_argument(
        "--mcp", action="store_true", default=None, help="serve the public endpoints to MCP clients too"
    )
    parser.add_argument(
        "--no-preview", dest="preview", action="store_false", default=None, help="no pictures of half-made latents"
    )
    parser.add_argument(
        "--cpu-threads", type=int, help="threads of PyTorch on the CPU; part of what makes a picture the same"
    )
    parser.add_argument(
        "--memory-plan",
        choices=["automatic", *PLANS],
        help="where models' parts lie (default automatic: the fastest that fits); no plan changes a picture",
    )
    flags = vars(parser.parse_args(arguments))
    flags["extra_models"] = tuple(flags["extra_models"]) if flags["extra_models"] else None
    return flags


def space_defaults(environment: dict[str, str]) -> dict[str, Any]:
    """Return what a Hugging Face Space needs instead of our own defaults; {} elsewhere."""
    if not environment.get("SPACE_ID"):
        return {}
    persistent = Path("/data")
    return {"host": "0.0.0.0", "port": 7860} | ({"data_dir": persistent} if os.access(persistent, os.W_OK) else {})


def space_author(environment: dict[str, str]) -> str:
    """Return whose Space this is, or "" where nobody can prove to be it.

    Without Hugging Face's secret Gradio would sign sessions with a key that everybody knows.
    """
    complete = all(environment.get(f"OAUTH_{name}") for name in ("CLIENT_ID", "CLIENT_SECRET", "SCOPES"))
    known = complete and environment.get("OPENID_PROVIDER_URL") and importlib.util.find_spec("authlib")
    return environment.get("SPACE_AUTHOR_NAME", "") if known else ""


def mode_line(policy: Policy) -> str:
    """Say in one line who may use this app, and what is off therefore."""
    words = {
        "local": "local, for this computer; nothing is off",
        "lan": "network, for whoever has the login; nothing is off",
        "share": f"share, for whoever has link and login; off: {OFF}",
        "space": f"Space, for everybody; off: {OFF}",
    }
    more = f"; {policy.author}, logged in, has no limits" if policy.author else ""
    return f"Mode: {words[policy.mode]}{more}"


def prepare_environment() -> None:
    """Set what libraries read from the environment before they are imported: no telemetry, no remote code, no surprises."""
    for name, value in gradio_environment().items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    limit_pillow()


def set_up_logging(data_dir: Path) -> None:
    """Log to the terminal and to `logs/app.log`."""
    folder = data_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(sys.stderr), logging.FileHandler(folder / "app.log", encoding="utf-8")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=handlers)
    for noisy in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def choose_port(host: str, wanted: int | None) -> int:
    """Return the wanted port, or the first free one.

    Raises:
        StudioError: if the wanted port, or every port, is taken, or the address is none of this machine's.
    """
    for port in [wanted] if wanted else PORTS:
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                if os.name != "nt":  # on Windows this would make a port that is in use look free
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", None)):
                raise StudioError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
            continue
        return port
    if wanted:
        raise StudioError(
            f"port {wanted} is in use; choose another one with --port, or leave --port out to take the next free one"
        )
    raise StudioError(f"all ports from {PORTS.start} to {PORTS.stop - 1} are in use; choose one with --port")


def serve(host: str, wanted: int | None, start: Callable[[int], object]) -> int:
    """Start a server on the wanted port, or on the first free one; return which.

    Args:
        host: address to listen on.
        wanted: port, if a person named one.
        start: starts it on a port.

    Raises:
        StudioError: as `choose_port` does.
        OSError: if it does not start.
    """
    for last in (False, False, True):
        port = choose_port(host, wanted)
        try:
            start(port)
        except OSError:  # another program was quicker, or a busy machine slower than Gradio waits
            if last:
                raise
        else:
            return port
    raise AssertionError


def addresses(host: str, port: int) -> str:
    """Say under which addresses the page can be opened."""
    if host not in ("0.0.0.0", "::"):
        return f"http://{'localhost' if host == '127.0.0.1' else f'[{host}]' if ':' in host else host}:{port}"
    found = [a.address for card in psutil.net_if_addrs().values() for a in card if a.family == socket.AF_INET]
    others = [address for address in found if not address.startswith("127.")]
    return f"http://localhost:{port}" + "".join(
        f" (in your network: http://{address}:{port})" for address in others[:1]
    )


class Studio:
    """All objects of one running app."""

    def __init__(self, settings: Settings) -> None:
        from studio.executors.dispatcher import Dispatcher
        from studio.executors.plotter import Plotter
        from studio.executors.runner import Runner
        from studio.executors.worker import make_executor
        from studio.lease import FolderLock
        from studio.store.plots import PlotStore

        self.lock = FolderLock(settings.data_dir)
        self.policy = self._policy(settings)
        self.settings = settings
        self.visitors = Visitors(Limits(), settings.data_dir) if self.policy.public else None
        if self.policy.public:  # forty threads may decode at once, before a gate of ours sees the picture
            limit_pillow(PIXELS_PUBLIC)
        print(mode_line(self.policy), flush=True)
        self.database = Database(settings.data_dir / "studio.db")
        decoder = Apart() if self.policy.public else None
        self.gallery = Gallery(settings.data_dir / "images", ImageIndex(self.database), decoder)
        self.library = Library(settings.model_folders, self.database, settings.part_roots, settings.runs)
        executor = make_executor(settings, self.gallery, lambda event: self.dispatcher.hear(event))
        self.dispatcher: Dispatcher = Dispatcher(
            executor,
            JobStore(self.database),
            self.library,
            self.gallery.blobs,
            preview=settings.preview,
            visitors=self.visitors,
        )
        self.library.get(settings.model)  # a typo is told now
        # the process that draws loads while the page is built and read
        self.dispatcher.start(settings.model)
        self.plotter = Plotter(self.dispatcher, self.gallery, PlotStore(settings.data_dir / "plots"))
        self.plotter.start()
        self.tokens = Tokens(settings.data_dir / "tokens.json")
        self.downloads = Downloads(settings.data_dir, self.tokens)
        self.runner = Runner(
            settings, Runs(settings.runs), self.dispatcher.announce, self.dispatcher.busy, device=self.dispatcher.device
        )
        if not self.policy.public:
            self.runner.start()
        self.datasets = Datasets(settings.data_dir / "datasets")
        self.changes = Changes(self.datasets)
        self.captions = Captions(settings, self.datasets, self.changes, self.tokens)

    def _policy(self, settings: Settings) -> Policy:
        credentials = settings.credentials
        if settings.share and credentials is None:
            credentials = make_login()
            print(f"Login for the public link: user {credentials[0]}, password {credentials[1]}", flush=True)
        try:
            return policy_for(
                host=settings.host, share=settings.share, auth=credentials, space_host=os.environ.get("SPACE_HOST"),
                author=space_author(dict(os.environ)),
            )  # fmt: skip
        except ValueError as error:
            raise StudioError(str(error)) from None

    @property
    def services(self) -> "Services":
        from studio.ui.services import Services

        return Services(
            self.settings, self.policy, self.dispatcher, self.plotter, self.gallery, self.library, self.downloads, self.tokens,
            self.datasets, self.changes, self.captions, self._training(), self.visitors,
        )  # fmt: skip

    def _training(self) -> "Training | None":
        from studio.ui.services import Training
        from trainers.config_files import check_config, dump_config
        from trainers.methods import METHODS

        if self.policy.public:
            return None
        methods = {name: config for name, (config, _) in METHODS.items()}
        return Training(self.runner.runs, self.runner, methods, check_config, dump_config, ROOT / "presets" / "train")

    def launch(self, *, block: bool) -> Any:
        """Build the page and serve it; returns the Gradio app.

        Args:
            block: serve until Ctrl+C; otherwise return at once (tests).
        """
        from starlette.middleware import Middleware

        from studio.ui.build import build_ui, page_css, page_head
        from studio.ui.guard import Guard
        from studio.ui.routes import Routes

        page = build_ui(self.services)
        page.queue(max_size=64, api_open=False)
        start = partial(
            page.launch,
            server_name=self.settings.host,
            share=self.settings.share,
            auth=self.policy.credentials,
            app_kwargs={
                "middleware": [Middleware(Guard, policy=self.policy, visitors=self.visitors)],
                "routes": Routes(self.services).table(),
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
            blocked_paths=[str(self.settings.data_dir), str(ROOT)],
            allowed_paths=[],
            max_file_size=UPLOAD_MAX,
            state_session_capacity=1000,
            enable_monitoring=False,
            strict_cors=True,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            mcp_server=self.settings.mcp,
            show_error=False,
            quiet=True,
            footer_links=["api"],
            css=page_css(),
            head=page_head(),
            prevent_thread_lock=True,
            _frontend=False,  # Gradio 6 asks its own page once, for 3 s, and ends if a run keeps the machine too busy to answer
        )
        port = serve(self.settings.host, self.settings.port, lambda free: start(server_port=free))
        threading.Thread(target=self._tidy, name="tidy", daemon=True).start()
        print(f"Studio is ready at {addresses(self.settings.host, port)}", flush=True)
        if page.share_url:
            print(f"Public link: {page.share_url}", flush=True)
        if block:
            page.block_thread()
        return page

    def _tidy(self) -> None:
        """Remove what a crash left half written, and enter pictures that the index does not know."""
        writer.sweep(self.gallery.root)
        self.datasets.uploads.clear()
        for old in self.settings.tool_pictures.glob("*.png"):
            old.unlink(missing_ok=True)
        self.gallery.reconcile()

    def close(self) -> None:
        """End the worker; what was running is queued again at the next start."""
        self.runner.close()
        self.downloads.close()
        self.captions.close()
        self.plotter.close()
        self.dispatcher.close()
        self.database.close()
        self.lock.release()


def main(arguments: list[str] | None = None) -> int:
    """Run the app; return the exit code."""
    try:
        given = parse_flags(sys.argv[1:] if arguments is None else arguments)
        settings = read_settings(given, dict(os.environ), space_defaults(dict(os.environ)))
        prepare_environment()
        try:
            set_up_logging(settings.data_dir)
        except OSError as error:
            raise StudioError(
                f"{settings.data_dir} cannot be written ({error.strerror}); choose another --data-dir"
            ) from None
        studio = Studio(settings)
    except StudioError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the worker and a public link are closed too
    try:
        studio.launch(block=True)
    except StudioError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    finally:
        studio.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
