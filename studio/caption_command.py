"""`python -m studio caption`: a model describes the pictures of a dataset."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from studio.captioning import CaptionSpec, captioners, parse_captioning
from studio.doctor_command import own_name
from studio.settings import Settings
from studio.store.captions import Captions
from studio.store.changes import Changes
from studio.store.collections import Datasets
from studio.store.tokens import Tokens

DONE = 0


def add_caption_flags(commands: Any) -> None:
    """Declare the command; its flags are the fields of `CaptionSpec`."""
    parser = commands.add_parser("caption", help="let a model describe the pictures of a dataset")
    parser.add_argument(
        "dataset", nargs="?", help="name of a dataset of the data root; without one captioners are listed"
    )
    parser.add_argument(
        "--captioner", dest="model", default="", help="name in models/captioners, folder, or owner/name on the Hub"
    )
    for name, field in CaptionSpec.model_fields.items():
        if name != "model":
            usual = f" ({field.default})" if field.default != "" else ""
            parser.add_argument(f"--{name.replace('_', '-')}", default=None, help=f"{field.description}{usual}")
    parser.add_argument("--json", action="store_true")


def caption(settings: Settings, flags: argparse.Namespace) -> int:
    """`caption`: one line a picture; what was there before can be put back with `dataset-doctor NAME --undo`."""
    if not flags.dataset:
        rows = [
            {"name": one.name, "kind": one.kind, "problem": one.problem, "path": str(one.path)}
            for one in captioners(settings)
        ]
        lines = [f"{row['name']}  {row['problem'] or row['kind']}" for row in rows]
        print(json.dumps(rows, indent=1) if flags.json else "\n".join(lines or ["no captioner in models/captioners"]))
        return DONE
    given = {name: getattr(flags, name) for name in CaptionSpec.model_fields}
    spec = parse_captioning({name: value for name, value in given.items() if value is not None})
    datasets = Datasets(settings.data_dir / "datasets")
    made = Captions(settings, datasets, Changes(datasets), Tokens(settings.data_dir / "tokens.json"))

    def told(event: dict[str, Any]) -> None:
        if event["event"] == "caption":
            print(json.dumps(event) if flags.json else f"{event['picture']}: {event['text']}", flush=True)
        elif event["event"] == "refused":
            print(event["text"], file=sys.stderr)

    state = made.run(own_name(datasets, flags.dataset), spec, told, near=Path())
    print(f"{state['written']} of {state['total']} captions written", file=sys.stderr)
    return DONE
