"""The commands about datasets: `datasets` lists them."""

import argparse

from studio.model_commands import show
from studio.settings import Settings
from studio.store.collections import Datasets


def datasets(settings: Settings, flags: argparse.Namespace) -> int:
    """`datasets`: every dataset of the data root, with how many pictures and captions it has."""
    store = Datasets(settings.data_dir / "datasets")
    rows = [store.summary(name) for name in store.names()]
    if flags.json:
        return show(rows, True)
    lines = [
        {"name": row["name"]}
        | {key: f"{number} {key.replace('_', ' ')}" for key, number in row.items() if key != "name"}
        for row in rows
    ]
    return show(lines, False)
