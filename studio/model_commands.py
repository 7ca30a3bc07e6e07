"""The commands about models: `models` lists them with all that is known, `download` gets one."""

import argparse
import json
import sys
from typing import Any

from studio.settings import Settings
from studio.sources import parse_source, readable
from studio.store.downloads import Downloads
from studio.store.index import Database
from studio.store.library import Library
from studio.store.models import Model
from studio.store.tokens import Tokens


def add_download_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `download`."""
    parser.add_argument("source", help="owner/name on the Hub, or an address on huggingface.co or civitai.com")
    parser.add_argument("--revision", default="", help="branch, tag or commit (default main); the commit is recorded")
    parser.add_argument("--file", default="", help="the one .safetensors or .gguf file that is wanted")
    parser.add_argument("--plan", action="store_true", help="only say how large it is, and how much disk is free")
    parser.add_argument("--json", action="store_true")


def download(settings: Settings, flags: argparse.Namespace) -> int:
    """`download`: get a model; the same command goes on after an interruption."""
    source = parse_source(flags.source, flags.revision, flags.file)
    downloads = Downloads(settings.data_dir, Tokens(settings.data_dir / "tokens.json"))

    def told(event: dict[str, Any]) -> None:
        if event["event"] == "plan":
            print(plan_line(event), file=sys.stderr)
        elif event["event"] == "progress" and sys.stderr.isatty():
            print(
                f"\r{event['what']}: {readable(event['bytes'])} of {readable(event['total'])} ", end="", file=sys.stderr
            )

    answer = downloads.plan(source) if flags.plan else downloads.run(source, told)
    line = plan_line(answer) if flags.plan else f"{answer['name']}: {answer['path']}"
    print(json.dumps(answer) if flags.json else line)
    return 0


def plan_line(plan: dict[str, Any]) -> str:
    """Say what a download will do."""
    licence = f", licence: {plan['licence']}" if plan["licence"] else ""
    gated = ", gated" if plan["gated"] else ""
    there = ", already there" if plan["there"] else ""
    return (
        f"{plan['name']}: {plan['files']} files, {readable(plan['bytes'])}; free disk: {readable(plan['free'])}"
        f"{licence}{gated}{there}"
    )


def models(settings: Settings, flags: argparse.Namespace) -> int:
    """`models`: every model of the library, usable or not, with all that is known about it if that is wanted as JSON."""
    file = settings.data_dir / "studio.db"
    database = Database(file) if file.is_file() else None  # remembers the hashes of large files
    library = Library(settings.model_folders, database, runs=settings.runs)
    found = library.models()
    if flags.json:
        return show([model_row(model) | {"sha256": hash_of(library, model)} for model in found], True)
    keys = ("id", "title", "family", "path", "problem")
    return show([{key: value for key, value in model_row(model).items() if key in keys} for model in found], False)


def hash_of(library: Library, model: Model) -> str:
    return "" if model.problem else library.sha256(model)


def model_row(model: Model) -> dict[str, Any]:
    """Return what is known about a model, but for its hash, which takes time."""
    about = {key: model.about.get(key, "") for key in ("source", "revision")}
    return {
        "id": model.id, "title": model.title, "family": model.family, "kind": model.kind, "noise": model.noise,
        "prediction": model.prediction, "told_by": model.told_by, "format": "single file" if model.single else "diffusers",
        "bytes": model.bytes, "dtype": model.dtype, "licence": model.licence, "trigger_words": list(model.trigger_words),
        "classes": list(model.classes),
        **about, "takes_from_another": list(model.lacks), "defaults": model.defaults, "path": str(model.path),
        "problem": model.problem,
    }  # fmt: skip


def show(rows: list[dict[str, Any]], as_json: bool) -> int:
    """Print a table, or JSON."""
    if as_json:
        print(json.dumps(rows, indent=1, default=str))
        return 0
    for row in rows:
        print(
            "  ".join(
                f"{', '.join(value) if isinstance(value, (list, tuple)) else value}"
                for value in row.values()
                if value not in ("", None)
            )
        )
    return 0
