r"""Dynamic prompts and wildcards, as A1111's extensions write them: chosen once, when a request is submitted.

`{a|b}` takes one of them, `{3::a|b}` the first three times as often, `{2$$a|b|c}` two different ones with a comma between,
`{1-2$$a|b}` one or two, `{2$$ and $$a|b|c}` with other words between. `__name__` takes a line of the wildcard file `name.txt`,
`__name*__` of all files that fit. Both may stand within each other. Braces that do not close are text, and so is what a backslash
stands before: `\{`, `\__name__`.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

from studio.errors import InvalidRequest

DEPTH_MAX = 20
CHOICES_MAX = 1000
LENGTH_MAX = 200_000  # on the way; a request holds less
NAMES_SHOWN = 12
WILDCARD = re.compile(r"__([^\s_|{}\[\]()<>:\\][^|{}\[\]()<>:\\\n]*?)__")
_AMOUNT = re.compile(r"\s*(\d{1,3})?(-)?(\d{1,3})?\s*\$\$")
_WEIGHT = re.compile(r"\s*(\d{1,6}\.?\d{0,6}|\.\d{1,6})::")
_VARIABLE = re.compile(r"(?<!\\)\$\{")

Wildcards = Mapping[str, Sequence[str]]


class Braces(NamedTuple):
    """Where a brace closes, and where the bars of its level stand."""

    close: int
    bars: list[int]


def expand(text: str, wildcards: Wildcards, seed: int, field: str, *, missing: list[str] | None = None) -> str:
    """Choose what a prompt says; the same seed and files choose the same.

    Args:
        text: as a person wrote it.
        wildcards: name -> lines.
        seed: any number.
        field: name of the request's field, for messages.
        missing: collects the names of unknown wildcards, which are left as they stand then.

    Raises:
        InvalidRequest: if a wildcard is unknown, too much is nested, or a choice cannot be read.
    """
    if _VARIABLE.search(text):
        raise InvalidRequest(
            field, f"{field} has a variable (${{…}}), which Studio does not know; write \\${{ for the signs"
        )
    return _Expansion(wildcards, Random(f"{field}-{seed}"), field, missing).text(text, 0)


class _Expansion:
    """One prompt's choices.

    Args:
        wildcards: name -> lines.
        random: chooses.
        field: for messages.
        missing: see `expand`.
    """

    def __init__(self, wildcards: Wildcards, random: Random, field: str, missing: list[str] | None) -> None:
        self._wildcards, self._random, self._field, self._missing = wildcards, random, field, missing
        self._choices = self._length = 0

    def text(self, text: str, depth: int) -> str:
        """Return a text with everything chosen."""
        if depth > DEPTH_MAX:
            raise self._refusal(
                f"has more than {DEPTH_MAX} choices or wildcards inside each other; a wildcard may name itself"
            )
        braces, said, place = _braces(text), [], 0
        while place < len(text):
            mark = text[place]
            wildcard = WILDCARD.match(text, place) if mark == "_" else None
            if mark == "\\":
                said.append(text[place : place + 2])
                place += 2
            elif place in braces:
                said.append(self._chosen(text, place, braces[place], depth))
                place = braces[place].close + 1
            elif wildcard:
                said.append(self._line(wildcard[1], wildcard[0], depth))
                place = wildcard.end()
            else:
                said.append(mark)
                place += 1
        return "".join(said)

    def _chosen(self, text: str, start: int, braces: Braces, depth: int) -> str:
        edges = [start, *braces.bars, braces.close]
        options = [text[a + 1 : b] for a, b in pairwise(edges)]
        least = most = 1
        joiner = ", "
        if amount := _AMOUNT.match(options[0]):
            options[0] = options[0][amount.end() :]
            least, most = _range(amount, len(options))
            if "$$" in options[0]:
                joiner, _, options[0] = options[0].partition("$$")
            if len(options) == 1 and (lone := WILDCARD.fullmatch(options[0].strip())):
                options = self._lines(lone[1]) or options
                least, most = _range(amount, len(options))
        weighed = [_weighed(option) for option in options]
        told = text[start : min(braces.close + 1, start + 40)]
        if not least <= most <= len(options):
            raise self._refusal(f"has {told}, which asks for {most} of {len(options)} choices; ask for fewer")
        number = self._random.randint(least, most) if most > least else most
        picked = [self._pick(weighed, told) for _ in range(number)]
        return joiner.join(self.text(option.strip(), depth + 1) for option in picked)

    def _pick(self, weighed: list[tuple[float, str]], told: str) -> str:
        """Take one out of what is left."""
        weights = [weight for weight, _ in weighed]
        if not sum(weights):
            raise self._refusal(f"has {told}, in which all that is left has the weight 0; give one more")
        (index,) = self._random.choices(range(len(weighed)), weights)
        self._count()
        return weighed[index][1] if len(weighed) == 1 else weighed.pop(index)[1]

    def _line(self, name: str, whole: str, depth: int) -> str:
        lines = self._lines(name)
        if not lines:
            return whole
        said = self.text(self._pick([_weighed(line) for line in lines], whole), depth + 1)
        self._length += len(said)
        if self._length > LENGTH_MAX:
            raise self._refusal("becomes too long when its wildcards are filled in; use fewer")
        return said

    def _lines(self, name: str) -> list[str]:
        """Return all lines of a wildcard; none if it is unknown and that is only collected."""
        names = [one for one in self._wildcards if fnmatch.fnmatchcase(one.lower(), name.lower())]
        lines = [line for one in names for line in self._wildcards[one]]
        if not lines and self._missing is None:
            there = sorted(self._wildcards)
            more = f" and {len(there) - NAMES_SHOWN} more" if len(there) > NAMES_SHOWN else ""
            known = ", ".join(there[:NAMES_SHOWN]) + more or "none"
            what = "has no lines" if names else "is no file in `models/wildcards`"
            raise self._refusal(f"names the wildcard __{name}__, which {what}; there is: {known}")
        if not lines and self._missing is not None:
            self._missing.append(name)
        return lines

    def _count(self) -> None:
        self._choices += 1
        if self._choices > CHOICES_MAX:
            raise self._refusal(f"has more than {CHOICES_MAX} choices; use fewer")

    def _refusal(self, message: str) -> InvalidRequest:
        return InvalidRequest(self._field, f"{self._field} {message}")


def _range(amount: re.Match[str], number: int) -> tuple[int, int]:
    """Return the least and the most that `2$$`, `1-2$$`, `1-$$` or `-2$$` asks for."""
    low, dash, high = amount.groups()
    if not dash:
        exact = int(low or 1)
        return exact, exact
    return int(low or 1), int(high or number)


def _weighed(option: str) -> tuple[float, str]:
    found = _WEIGHT.match(option)
    return (float(found[1]), option[found.end() :]) if found else (1.0, option)


def _braces(text: str) -> dict[int, Braces]:
    """Find the braces that close; `|` within square brackets (A1111's turns) belongs to those."""
    found: dict[int, Braces] = {}
    open_at: list[tuple[str, int, list[int]]] = []
    place = 0
    while place < len(text):
        mark = text[place]
        if mark == "\\":
            place += 1
        elif mark in "{[":
            open_at.append((mark, place, []))
        elif mark == "|" and open_at:
            open_at[-1][2].append(place)
        elif mark == "]" and open_at and open_at[-1][0] == "[":
            open_at.pop()
        elif mark == "}" and any(opener == "{" for opener, _, _ in open_at[-DEPTH_MAX * 2 :]):
            lost: list[int] = []
            while open_at[-1][0] != "{":  # a square bracket that does not close is text
                lost += open_at.pop()[2]
            _, start, bars = open_at.pop()
            found[start] = Braces(place, sorted(bars + lost))
        place += 1
    return found
