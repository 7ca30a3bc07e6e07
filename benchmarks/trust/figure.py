"""Figure: what one family of checks counted; and how the families are found.

A family is a module `fN_name.py` of this package with

    def run(full: bool, mutant: bool = False) -> Figure

`full` asks for the nightly size, else minutes. `mutant` asks for the same checks against a product that is broken on purpose (a naive
writer, a gate left open), by an argument of the harness and never by a switch in the product: the figure must be red then. The
module's first docstring line is what the scoreboard calls it.
"""

import contextlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FAMILY = re.compile(r"f(\d+)([a-z]?)_\w+")
SHOWN = 20  # failures that a figure names; the rest is counted


@dataclass(frozen=True)
class Figure:
    """What a family counted.

    Args:
        id: `F1`, `F1b`, ….
        name: what was tried, in words.
        tried: how many cases were run.
        survived: in how many of them the promise held.
        details: whatever explains the figure: seeds, slopes, the first failures.
        seconds: wall time.
        goal: what must be reached, in words.
        passed: whether it was.
    """

    id: str
    name: str
    tried: int
    survived: int
    details: dict[str, Any]
    seconds: float
    goal: str
    passed: bool

    def row(self) -> dict[str, Any]:
        """Return the figure as plain data."""
        return asdict(self)


@dataclass
class Tally:
    """Counts cases and remembers why some failed."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Count a case; whatever it raises is its failure, and the next case is run."""
        self.tried += 1
        try:
            yield
        except Exception as error:  # a case is a boundary: what goes wrong in it is what is counted
            self.failures.append(f"{name}: {type(error).__name__}: {error}"[:400])

    @property
    def survived(self) -> int:
        return self.tried - len(self.failures)

    def figure(self, identity: str, name: str, goal: str, *, passed: bool = True, **details: Any) -> Figure:
        """Return the figure: passed if no case failed, at least one was tried, and `passed`."""
        if self.failures:
            details["failures"] = self.failures[:SHOWN]
        return Figure(
            identity,
            name,
            self.tried,
            self.survived,
            details,
            round(time.monotonic() - self.began, 1),
            goal,
            passed and self.tried > 0 and not self.failures,
        )


def families() -> dict[str, str]:
    """Return id -> module of every family, in order."""
    names = [one.name for one in pkgutil.iter_modules([str(Path(__file__).parent)])]
    found = [(match, name) for name in names if (match := FAMILY.fullmatch(name))]
    found.sort(key=lambda one: (int(one[0][1]), one[0][2]))
    return {f"F{match[1]}{match[2]}": f"{__package__}.{name}" for match, name in found}


def run_family(module: Callable[..., Figure], *, full: bool, mutant: bool) -> Figure:
    """Run a family; without a mutant it is called with `full` alone."""
    return module(full, mutant=True) if mutant else module(full)
