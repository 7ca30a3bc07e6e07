"""Which checkpoint draws better: a person judges pairs of samples without knowing their steps, and the checkpoints are ranked."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from studio.errors import InvalidRequest, StudioError
from studio.fields import Frozen
from studio.store import writer
from studio.store.runs import Story

FILE = "votes.json"
Better = Literal["left", "right", "same"]
_SAMPLE = re.compile(r"step-(\d+)-([\w-]+)\.png")


class Vote(Frozen):
    """Two samples of one prompt and which is better; of pictures, their names in `samples/`."""

    left: str
    right: str
    better: Better


def place_of(name: str) -> tuple[int, str]:
    """Return a sample's step and its place: the prompt's number and the picture's.

    Raises:
        StudioError: if it is no sample's name.
    """
    if not (found := _SAMPLE.fullmatch(name)):
        raise StudioError(f"{name[:80]!r} is no sample")
    return int(found[1]), found[2]


def read_votes(folder: Path) -> list[Vote]:
    """Return the votes of a run; what cannot be read counts as none."""
    try:
        rows = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return [Vote.model_validate(row) for row in rows]
    except (OSError, ValueError, TypeError, ValidationError):
        return []


def add_vote(folder: Path, story: Story, left: object, right: object, better: object) -> None:
    """Keep a vote.

    Raises:
        StudioError: if the two are not samples of one prompt at different steps, or `better` is no answer.
    """
    if better not in get_args(Better):
        raise InvalidRequest("better", f"better={str(better)[:40]!r} must be one of: {', '.join(get_args(Better))}")
    for name in (left, right):
        if name not in story.prompts:
            raise StudioError(f"there is no sample {str(name)[:80]!r}")
    (a, place), (b, other) = place_of(str(left)), place_of(str(right))
    if a == b or place != other or story.prompts[str(left)] != story.prompts[str(right)]:
        raise StudioError("two samples are compared only if they are of one prompt and of different steps")
    vote = Vote.model_validate({"left": left, "right": right, "better": better})
    rows = [one.model_dump() for one in (*read_votes(folder), vote)]
    writer.write_json(folder / FILE, rows)


def pairs_of(story: Story) -> list[tuple[str, str]]:
    """Return all pairs of samples that can be compared: of one prompt, the earlier step first."""
    places: dict[tuple[str, str], list[str]] = {}
    for name, prompt in sorted(story.prompts.items()):
        if _SAMPLE.fullmatch(name):
            places.setdefault((place_of(name)[1], prompt), []).append(name)
    return [pair for names in places.values() for pair in itertools.combinations(names, 2)]


def next_pair(story: Story, votes: list[Vote], rng: random.Random) -> tuple[str, str] | None:
    """Return a pair, left and right drawn by lot, of those steps and prompts that were compared least; None if there is none."""
    told = Counter(frozenset((vote.left, vote.right)) for vote in votes)
    steps = Counter(frozenset((place_of(vote.left)[0], place_of(vote.right)[0])) for vote in votes)
    pairs = pairs_of(story)
    if not pairs:
        return None

    def often(pair: tuple[str, str]) -> tuple[int, int]:
        return steps[frozenset(place_of(name)[0] for name in pair)], told[frozenset(pair)]

    least = min(map(often, pairs))
    pair = rng.choice([one for one in pairs if often(one) == least])
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def ranking(votes: list[Vote]) -> list[dict[str, Any]]:
    """Return the steps, the best first: how often each won, lost, or was as good, and its score.

    The score is the share of wins, where "as good" is half a win; of equal ones the step that was judged more often comes first.
    """
    counts: dict[int, Counter[str]] = {}
    for vote in votes:
        for mine, side in ((vote.left, "left"), (vote.right, "right")):
            outcome = "same" if vote.better == "same" else "won" if vote.better == side else "lost"
            counts.setdefault(place_of(mine)[0], Counter())[outcome] += 1
    rows = [
        {"step": step, **{name: told[name] for name in ("won", "lost", "same")},
         "score": (told["won"] + told["same"] / 2) / told.total()}
        for step, told in counts.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["score"], -(row["won"] + row["lost"] + row["same"]), row["step"]))
