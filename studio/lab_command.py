"""`python -m studio lab PANEL`: the numbers that a panel of the Lab shows, as JSON, and its pictures as files."""

import argparse
import json
import signal
import tempfile
from pathlib import Path
from typing import Any

from studio.executors.base import open_engine
from studio.lab import PANELS
from studio.lease import DeviceLease
from studio.model_commands import show
from studio.settings import Settings
from studio.store.blobs import BlobStore
from studio.store.lab_calls import lab_call, picture_fields
from studio.store.library import Library
from studio.tools import ToolWatch
from studio.yaml_text import read_setting

DONE, INTERRUPTED = 0, 130
TEXTS = ("prompt", "negative_prompt", "other_prompt", "image", "classes")  # never read as numbers


def add_lab_flags(commands: Any) -> None:
    """Declare the command."""
    told = [
        f"{name}:\n"
        + "\n".join(f"  {field}: {facts.description}" for field, facts in panel.request.model_fields.items())
        for name, panel in PANELS.items()
    ]
    lab = commands.add_parser(
        "lab",
        help="see how diffusion works on a model: the Lab's numbers as JSON",
        epilog="panels and their settings:\n" + "\n".join(told),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    lab.add_argument("panel", metavar="PANEL", nargs="?", help=f"{', '.join(PANELS)}; none lists them")
    lab.add_argument("--model", default="shapes", help="id of the model (default shapes)")
    lab.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE", help="settings of the panel"
    )
    lab.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures")
    lab.add_argument("--json", action="store_true", help="the list of panels as JSON; a panel's numbers always are")


def lab(settings: Settings, flags: argparse.Namespace) -> int:
    """`lab`: one JSON object on stdout, or the list of panels."""
    if flags.panel is None:
        return show([{"panel": name, "settings": settings_of(name)} for name in PANELS], flags.json)
    library = Library(settings.model_folders, part_roots=settings.part_roots, runs=settings.runs)
    values = read_values(flags.set)
    with tempfile.TemporaryDirectory() as folder:
        blobs = BlobStore(Path(folder))
        named = [name for name in picture_fields(flags.panel) if values.get(name)]
        lab_call(library, flags.panel, values, flags.model)  # wrong values are told before a picture is read
        values |= {name: blobs.add(Path(values[name]), name) for name in named}
        call = lab_call(library, flags.panel, values, flags.model)
        asked = []
        before = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
        try:
            engine = open_engine(settings)
            with DeviceLease(engine.device.key).held(lambda: bool(asked)) as mine:
                if not mine:
                    return INTERRUPTED
                found, pictures = engine.use_tool(call, blobs.open, ToolWatch(stopped=lambda: bool(asked)))
        finally:
            signal.signal(signal.SIGINT, before)
    if flags.out:
        flags.out.mkdir(parents=True, exist_ok=True)
        for name, png in pictures.items():
            (flags.out / f"{name}.png").write_bytes(png)
    found["settings"] |= {name: flags_value for name, flags_value in read_values(flags.set).items() if name in named}
    print(json.dumps(found))
    return INTERRUPTED if asked else DONE


def settings_of(panel: str) -> dict[str, Any]:
    """Return a panel's settings with their defaults."""
    return PANELS[panel].request().model_dump(mode="json")


def read_values(given: list[str]) -> dict[str, Any]:
    """Read `FIELD=VALUE` words.

    Raises:
        InvalidRequest: naming what cannot be read.
    """
    return dict(read_setting(one, lambda name, text: name in TEXTS) for one in given)
