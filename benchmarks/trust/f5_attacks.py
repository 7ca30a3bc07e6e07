"""Attacks on a launched app in three modes: all refused, no canary in any reply, no socket that goes out, and it still draws."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.trust import attacks_inputs, attacks_web
from benchmarks.trust.figure import Figure, Tally
from benchmarks.trust.target import MODES, Target, target

GOAL = "all of at least 250 refused in three modes, 0 leaks, 0 outbound sockets"
LEAST = 250


def attack(one: Target, tally: Tally, *, every: int = 1) -> None:
    """Run all attacks, or every n-th, against one app, and look whether it still works."""
    for name, run_one in itertools.islice(
        itertools.chain(attacks_web.cases(one), attacks_inputs.cases(one)), 0, None, every
    ):
        with tally.case(f"{one.mode}: {name}"):
            run_one(one)
    with tally.case(f"{one.mode}: a normal job afterwards"):
        one.draw(who="bob")
    with tally.case(f"{one.mode}: nothing leaked in {one.replies} replies"):
        assert not one.leaks, one.leaks[:5]
    with tally.case(f"{one.mode}: no socket went out"):
        assert not one.outbound(), one.outbound()[:5]


def run(full: bool, mutant: bool = False, modes: Sequence[str] = MODES, every: int = 1) -> Figure:
    """Attack; the mutant has no guard.

    Args:
        full: every variant of every attack.
        mutant: an app whose guard lets everything pass.
        modes: in which it is launched.
        every: only every n-th attack, for a look.
    """
    tally, replies, counts = Tally(), 0, {}
    for mode in ("space",) if mutant else modes:
        with tempfile.TemporaryDirectory(prefix="studio-trust-") as folder:
            with target(mode, Path(folder), mutant="no-guard" if mutant else "none") as one:
                one.full, before = full, tally.tried
                attack(one, tally, every=every)
                replies, counts = replies + one.replies, counts | {mode: tally.tried - before}
    enough = tally.tried >= LEAST or every > 1
    return tally.figure("F5", __doc__ or "", GOAL, passed=enough, cases=counts, replies=replies)
