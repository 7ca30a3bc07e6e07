"""`python -m studio merge`: models, and LoRA into a model, become a new model."""

import argparse
import json
from pathlib import Path
from typing import Any

from studio.errors import InvalidRequest
from studio.loras import take_tags
from studio.merging import METHODS, PRECISIONS, SUM, parse_merge
from studio.merging import merge as write_merged
from studio.settings import Settings
from studio.store.library import Library

DONE = 0


def add_merge_flags(commands: Any) -> None:
    """Declare the command."""
    merge = commands.add_parser("merge", help="make a model out of several, or out of a model and LoRA")
    merge.add_argument(
        "models", nargs="+", metavar="MODEL", help="A, B and C: names of the library, or .safetensors files"
    )
    merge.add_argument("--name", required=True, help="of the new model, in models/checkpoints of the data folder")
    merge.add_argument("--method", choices=list(METHODS), default=SUM, help="; ".join(METHODS.values()))
    merge.add_argument("--ratio", type=float, nargs="+", default=None, help="of B, and of C in a sum of three (0.5)")
    merge.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME[:WEIGHT]",
        help="as in a prompt: NAME:0.8 or NAME:1:lbw=1,0,1",
    )
    merge.add_argument("--precision", choices=PRECISIONS, default="keep", help="of the new weights; keep: as in A")
    merge.add_argument("--json", action="store_true")


def merge(settings: Settings, flags: argparse.Namespace) -> int:
    """`merge`: write a new model and say where it is."""
    loras = []
    for text in flags.lora:
        rest, found = take_tags(f"<lora:{text}>")
        if rest or len(found) != 1:
            raise InvalidRequest("lora", f"--lora {text} must be NAME or NAME:WEIGHT")
        loras.append(found[0].model_dump())
    ratios = flags.ratio or ([0.5] if len(flags.models) < 3 or flags.method != SUM else [1 / 3, 1 / 3])
    values = {"models": flags.models, "method": flags.method, "ratios": ratios, "loras": loras}
    spec = parse_merge(values | {"name": flags.name, "precision": flags.precision})
    library = Library(settings.model_folders, part_roots=settings.part_roots, runs=settings.runs)
    path = write_merged(spec, library, settings.model_folders[1], near=Path())
    print(json.dumps({"model": spec.name, "path": str(path)}) if flags.json else f"{spec.name}: {path}")
    return DONE
