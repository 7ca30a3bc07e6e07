"""A slice of the scoreboard's attacks, isolation, load and silence, against apps that are really launched: one in each mode."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.trust import f4_load, f5_attacks, f9_isolation, f10_offline
from benchmarks.trust.attacks_web import spellings
from benchmarks.trust.figure import Tally
from benchmarks.trust.launched import MUTANTS
from benchmarks.trust.target import Reply, Target, joined, target
from benchmarks.trust.visiting import loras

EVERY = 8  # of the attacks, which one is tried here; `python -m benchmarks trust --only F5` tries all


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder: Path = tmp_path_factory.mktemp("attacked") / "space"
    loras(folder / "data")
    with target("space", folder) as one:
        yield one


@pytest.mark.parametrize("mode", ["local", pytest.param("share", marks=pytest.mark.slow)])
def test_attacks_at_home_and_on_a_link(mode: str, tmp_path: Path) -> None:
    tally = Tally()
    with target(mode, tmp_path / mode) as one:
        if mode == "local":
            f10_offline.work(one, tally)
        f5_attacks.attack(one, tally, every=EVERY)
    assert not tally.failures
    assert tally.tried > 20


def test_attacks_on_a_space(space: Target) -> None:
    tally = Tally()
    f5_attacks.attack(space, tally, every=EVERY)
    assert not tally.failures
    assert tally.tried > 25


def test_sixteen_visitors_get_their_own_pictures(space: Target) -> None:
    tally = Tally()
    f9_isolation.isolate(space, [f"visitor-{place}" for place in range(16)], 50, tally)
    assert not tally.failures
    assert tally.tried >= 54


def test_sixteen_visitors_at_work(space: Target) -> None:
    notes = f4_load.Notes(Tally())
    f4_load.work(space, 20, notes)
    assert not notes.tally.failures
    assert notes.done["submit"] >= 16
    assert notes.done["job"] == len(notes.submits)


def test_the_guard_matters(tmp_path: Path) -> None:
    """The attacks can succeed: without the guard many do, so that their silence elsewhere says something."""
    tally = Tally()
    with target("space", tmp_path / "open", mutant="no-guard") as one:
        from benchmarks.trust.attacks_web import page_cases

        for name, attack in page_cases(one):
            if name.startswith("A5"):
                with tally.case(name):
                    attack(one)
    assert len(tally.failures) >= 10


def test_the_harness_reads_what_comes_back() -> None:
    assert joined(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") == b"abcde"
    assert Reply().refused
    assert not Reply(200).refused
    assert not Reply(500).refused
    assert Reply(200, b"HTTP/1.1 200 OK\r\nX-A: b: c").header("x-a") == "b: c"
    assert len(set(spellings("/x/canary.txt"))) >= 55
    assert {"no-guard", "everybody", "lora-stays", "loses-jobs", "leaks", "phones-home"} <= set(MUTANTS)
