"""What a page of the gallery costs in a large index: CPU milliseconds of `ImageIndex.page` for 50 pictures, measured in turns.

`newest` is the first page, `deep` the one before row rows / 10, `model` and `starred` are filters (one model of four; one picture
in 500), `words` is a search for two words that one prompt in 80 has, `rare` for two that one in 400 has. The baseline `offset` reads
the same rows as `deep` with LIMIT/OFFSET.

Without a goal: `typed` searches for a word and the first letter of another; `owner` is the first page of a visitor of a public page
who made ten pictures long ago; `choices` and `usage` are what the route `/studio/gallery` asks with every page.

CPU is that of this process (`time.process_time`): SQLite works in it. Rows go in through one call of `ImageIndex.add`.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure
from studio.store.index import Database, ImageIndex

COLOURS = "red orange yellow green cyan blue purple pink white black".split()
SHAPES = "circle square triangle star heart diamond cross ring".split()
OFFSET = "SELECT * FROM images WHERE trashed = 0 ORDER BY seq DESC LIMIT 50 OFFSET ?"
GOALS = {f"{name}_ms": ("<=", 1.0) for name in ("newest", "deep", "model", "starred", "words", "rare")}
PAGE = 50


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--rows", type=int, default=100_000)


def make_rows(number: int) -> Iterator[dict[str, object]]:
    """Yield pictures as a year of use would leave them, the same for every run."""
    draw = random.Random(1)
    for i in range(number):
        prompt = f"a {draw.choice(COLOURS)} {draw.choice(SHAPES)} on a {draw.choice(COLOURS)} background"
        prompt += ", lighthouse" * (draw.random() < 0.05) + ", watercolour" * (draw.random() < 0.05)
        day = f"2025-{1 + i * 12 // number:02}-{1 + i * 336 // number % 28:02}"
        yield {
            "id": f"{day}-{i:08}",
            "path": f"{day}/{day}-{i:08}.png",
            "day": day,
            "model": draw.choice(("shapes", "sd15", "photo", "anime")),
            "prompt": prompt,
            "width": 512,
            "height": 512,
            "seed": i,
            "owner": "visitor" if i < 10 else "local",
            "bytes": 400_000,
            "starred": int(i % 500 == 7),
            "trashed": 0,
        }


def cpu_ms(ask: Callable[[], object]) -> float:
    """Return the CPU milliseconds of a call."""
    began = time.process_time()
    ask()
    return 1000 * (time.process_time() - began)


def questions(index: ImageIndex, database: Database, rows: int) -> dict[str, Callable[[], Any]]:
    """Return what is asked, by name."""
    before = rows // 10
    return {
        "newest": lambda: index.page(limit=PAGE),
        "deep": lambda: index.page(before=before, limit=PAGE),
        "offset": lambda: [dict(row) for row in database.rows(OFFSET, [rows - before + 1])],
        "model": lambda: index.page(model="photo", limit=PAGE),
        "starred": lambda: index.page(starred=True, limit=PAGE),
        "words": lambda: index.page(words="red circle", limit=PAGE),
        "rare": lambda: index.page(words="lighthouse watercolour", limit=PAGE),
        "typed": lambda: index.page(words="red c", limit=PAGE),
        "owner": lambda: index.page(owner="visitor", limit=PAGE),
        "choices": index.choices,
        "usage": index.usage,
    }


def run(flags: argparse.Namespace) -> dict[str, Any]:
    """Build the index, check that both deep pages are the same, measure.

    Raises:
        RuntimeError: if keyset and OFFSET do not answer with the same rows, or a filter with none.
    """
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        database = Database(Path(folder) / "studio.db")
        try:
            index = ImageIndex(database)
            index.add(make_rows(flags.rows))
            asked = questions(index, database, flags.rows)
            answers = {name: ask() for name, ask in asked.items()}
            if answers["deep"] != answers["offset"] or not all(answers.values()):
                raise RuntimeError("the pages are not what they should be: nothing is measured")
            columns: dict[str, list[float]] = {f"{name}_ms": [] for name in asked}
            for _ in range(flags.runs):
                for name, ask in asked.items():
                    columns[f"{name}_ms"].append(cpu_ms(ask))
        finally:
            database.close()
    columns["offset_to_deep"] = measure.pairwise(columns["offset_ms"], columns["deep_ms"])
    result = measure.report(columns, GOALS)
    return {"ratio": result["median"]["offset_to_deep"], "rows": flags.rows} | result
