"""`python -m studio dataset-doctor`: what is wrong with a dataset, and how to mend it."""

import argparse
import json
import sys
from typing import Any

from studio.dataset_doctor import Aim, Known, examine
from studio.errors import InvalidRequest
from studio.settings import Settings
from studio.store.changes import Changes
from studio.store.collections import Datasets
from studio.store.datasets import find_dataset
from studio.store.library import Library
from studio.store.tokenizers import Tokenizers
from studio.store.triggers import judge_trigger

DONE = 0


def add_doctor_flags(commands: Any) -> None:
    """Declare the command."""
    parser, usual = commands.add_parser("dataset-doctor", help="say what is wrong with a dataset, and mend it"), Aim()
    parser.add_argument("dataset", help="name of a dataset of the data root, or a folder of pictures")
    parser.add_argument("--trigger", default="", help="word that calls the new thing, such as sks")
    parser.add_argument("--class-word", default="", help="what kind of thing it is, such as dog")
    parser.add_argument("--resolution", type=int, default=usual.resolution, help="of the training, in pixels (512)")
    parser.add_argument("--bucket-step", type=int, default=usual.bucket_step, help="of the training, in pixels (64)")
    parser.add_argument("--model", default=None, help="whose tokenizer reads the trigger word (the demo model)")
    parser.add_argument(
        "--fix", nargs="+", default=[], metavar="CODE", help="mend these findings; `all` mends what can be"
    )
    parser.add_argument(
        "--undo", action="store_true", help="undo the latest mending, or the latest captions of a model"
    )
    parser.add_argument("--json", action="store_true")


def dataset_doctor(settings: Settings, flags: argparse.Namespace) -> int:
    """`dataset-doctor`: findings, one line each; with `--fix` they are mended, the pictures' files stay as they are."""
    datasets = Datasets(settings.data_dir / "datasets")
    folder, changes = find_dataset(flags.dataset, datasets.root), Changes(datasets)
    if flags.undo:
        undone = changes.undo(own_name(datasets, flags.dataset))
        print(f"undone: {undone.title} ({undone.number})", file=sys.stderr)
        if undone.changed_since:
            print(f"changed since, so left as they are: {', '.join(undone.changed_since)}", file=sys.stderr)
    model = Library(settings.model_folders).get(flags.model or settings.model)
    word, proposals = judge_trigger(Tokenizers(), model, flags.trigger)
    aim = Aim(flags.trigger, flags.class_word, flags.resolution, flags.bucket_step, word, tuple(proposals))
    known: Known = {}
    found = examine(folder, aim, known)
    for code in flags.fix:
        if code != "all" and code not in [one.code for one in found if one.fix]:
            codes = ", ".join(one.code for one in found if one.fix)
            raise InvalidRequest("fix", f"fix={code!r} mends nothing here; {codes or 'nothing'} can be mended")
        done: set[str] = set()
        while todo := [one for one in found if one.fix and one.code not in done and code in (one.code, "all")]:
            done.add(todo[0].code)
            for fix in (one.fix for one in todo if one.fix and one.code == todo[0].code):
                changes.make(own_name(datasets, flags.dataset), fix.changes, fix.title)
            found = examine(folder, aim, known)  # two findings may mean the same caption
    if flags.json:
        print(json.dumps([one.plain() for one in found], indent=1))
        return DONE
    for one in found:
        print(f"{one.level:<8} {one.code}: {one.text}" + (f" -> --fix {one.code}: {one.fix.title}" if one.fix else ""))
    if not found:
        print("nothing to complain about")
    return DONE


def own_name(datasets: Datasets, name: str) -> str:
    """Return the name of a dataset that may be changed.

    Raises:
        InvalidRequest: if it is a folder elsewhere, which is only read.
    """
    if name not in datasets.names():
        raise InvalidRequest(
            "dataset", f"dataset={name!r} is not in {datasets.root}, so it is only read; import it to change it"
        )
    return name
