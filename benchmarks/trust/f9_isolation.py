"""Sixteen visitors at once with LoRA and prompts of their own: each picture is the one drawn alone, and seen by its owner only."""

import itertools
import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.target import Target, target
from benchmarks.trust.visiting import VISITORS, loras, meet, pixels_hash, prompt_of

SIZES = {True: 1000, False: 48}
STEPS, SEED = 2, 7
GOAL = "every picture equal to the one drawn alone, none seen by another"


def wanted(place: int, seed: int, names: list[str]) -> dict[str, Any]:
    """Return what a visitor asks for."""
    more = {"prompt": prompt_of(place), "seed": seed, "num_inference_steps": STEPS, "width": 64, "height": 64}
    return more | {"loras": [{"name": names[place], "weight": 0.5 + place / 16}] if place % 4 != 3 else []}


def drawn(one: Target, who: str, values: dict[str, Any]) -> tuple[str, str]:
    """Draw one picture; return its id and the hash of its pixels."""
    made = one.draw(who=who, **values)
    image = made["images"][0]
    reply = one.raw("GET", image["url"], who=who)
    assert reply.status == 200, f"the owner's own picture is answered with {reply.status}"
    return image["id"], pixels_hash(reply.body)


def run(full: bool, mutant: bool = False) -> Figure:
    """Launch a public page and let all visitors draw; the mutant keeps the last job's LoRA."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="studio-trust-") as name:
        folder = Path(name)
        made = loras(folder / "data")
        how: dict[str, Any] = {"mutant": "lora-stays", "executor": "inline"} if mutant else {}
        with target("space", folder, **how) as one:
            if mutant:
                keeps_loras(one, made, tally)
            else:
                isolate(one, made, SIZES[full], tally)
    return tally.figure("F9", __doc__ or "", GOAL, visitors=VISITORS, pictures=SIZES[full], seed=SEED)


def isolate(one: Target, made: list[str], number: int, tally: Tally) -> None:
    """Draw references one after the other, then `number` pictures at once in a random order."""
    rng, who = random.Random(SEED), meet(one)
    kinds = list(itertools.product(range(VISITORS), range(1 if number < 200 else 4)))
    reference = {kind: drawn(one, who[kind[0]], wanted(*kind, made))[1] for kind in kinds}
    work = [kinds[n % len(kinds)] for n in range(number)]
    rng.shuffle(work)
    owned = visit(one, who, work, made, reference, tally)
    strangers(one, who, owned, rng, tally, looks=min(number, 64))


def keeps_loras(one: Target, made: list[str], tally: Tally) -> None:
    """Draw a few pictures where the first, of an app that drew nothing before, tells what is right."""
    who = meet(one)
    reference = {(0, 0): drawn(one, who[0], wanted(0, 0, made))[1]}
    visit(one, who, [(1, 0), *[(0, 0)] * 5], made, reference, tally)


def visit(
    one: Target,
    who: list[str],
    work: list[tuple[int, int]],
    made: list[str],
    reference: dict[tuple[int, int], str],
    tally: Tally,
) -> dict[str, str]:
    """Let all visitors draw at once, each one picture after the other; return image id -> owner."""
    owned: dict[str, str] = {}
    lock = threading.Lock()

    def draw_all(place: int) -> None:
        for kind in (kind for kind in work if kind[0] == place):
            try:
                image, found = drawn(one, who[place], wanted(*kind, made))
                problem = (
                    "" if found == reference.get(kind, found) else "the picture is not the one that is drawn alone"
                )
            except Exception as error:  # a visitor is a boundary: the others go on, and it is counted below
                image, problem = "", f"{type(error).__name__}: {error}"
            with lock:
                owned[image] = who[place]
                with tally.case(f"visitor {place}, seed {kind[1]}"):
                    assert not problem, problem

    with ThreadPoolExecutor(VISITORS) as pool:
        list(pool.map(draw_all, range(VISITORS)))
    owned.pop("", None)
    return owned


def strangers(
    one: Target, who: list[str], owned: dict[str, str], rng: random.Random, tally: Tally, *, looks: int
) -> None:
    """Let visitors ask for each other's pictures, and for their own lists."""
    for image in rng.sample(sorted(owned), min(looks, len(owned))):
        other = rng.choice([name for name in who if name != owned[image]])
        with tally.case("a picture of another"):
            for kind in ("image", "thumbnail", "metadata"):
                status = one.raw("GET", f"/studio/{kind}/{image}", who=other).status
                assert status == 404, f"{kind} of another's picture is answered with {status}"
    for name in who[: 4 if looks < 64 else VISITORS]:
        with tally.case("an own list"):
            listed = [row["id"] for row in one.raw("GET", "/studio/gallery", who=name).json()["images"]]
            assert all(owned.get(image, name) == name for image in listed), "a list has another's picture"
