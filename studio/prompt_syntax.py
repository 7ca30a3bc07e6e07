r"""A1111's prompt syntax as data: what the prompt is at each moment, how much each word counts, and where a chunk ends.

`(word)` counts 1.1 times, `[word]` 1 / 1.1 times, `(word:1.3)` as said, nested ones multiply; `\(` is a bracket itself. `BREAK` ends
a chunk of 75 tokens early. `[from:to:when]`, `[to:when]` and `[from::when]` change words on the way: `when` is a part of the steps, or
a number of steps if it is 1 or more. `[a|b]` takes turns at each step. What is not closed reaches to the end, what was not opened is
text.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from studio.errors import InvalidRequest

STEP = 1.1
WEIGHT_MAX = 10.0
DEPTH_MAX = 50
PAIRS = {"(": ")", "[": "]"}
ESCAPED = tuple("()[]\\:|{}_$")  # those of `dynamic_prompts` too, whose escapes stay in a prompt that was expanded
_WEIGHT = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)")
_WHEN = re.compile(r"\s*(?:\d+\.?\d*|\.\d+)\s*")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_PLAIN = re.compile(r"[^\\()\[\]:|]+")


@dataclass
class Piece:
    """Words that count alike; 1 is as usual."""

    text: str
    weight: float = 1.0


def moments(text: str, steps: int, field: str) -> list[tuple[float, str]]:
    """Say what a prompt is at each moment.

    Args:
        text: as a person wrote it.
        steps: of the whole job.
        field: name of the request's field, for messages.

    Returns:
        (part of the steps, prompt from there on without schedules), ascending from 0.

    Raises:
        InvalidRequest: if brackets are nested too deeply.
    """
    told = [(0.0, _resolved(text, 0, steps, field))]
    for step in range(1, steps if "[" in text else 1):  # only a square bracket changes words
        now = _resolved(text, step, steps, field)
        if now != told[-1][1]:
            told.append((step / steps, now))
    return told


def parse_prompt(text: str, field: str) -> list[list[Piece]]:
    """Read weights and breaks of a prompt without schedules.

    Args:
        text: one of `moments`.
        field: name of the request's field, for messages.

    Returns:
        The pieces of each section between two BREAKs; at least one section, which may be empty.

    Raises:
        InvalidRequest: for a weight beyond `WEIGHT_MAX`.
    """
    pieces: list[Piece] = []
    open_at: list[tuple[str, int]] = []
    place = 0
    while place < len(text):
        mark = text[place]
        weight = _WEIGHT.match(text, place) if mark == ":" and open_at and open_at[-1][0] == "(" else None
        if weight:
            _weigh(pieces, open_at.pop()[1], _number(weight[1], field))
            place = weight.end()
        elif mark in PAIRS:
            open_at.append((mark, len(pieces)))
            place += 1
        elif open_at and mark == PAIRS[open_at[-1][0]]:
            _weigh(pieces, open_at.pop()[1], STEP if mark == ")" else 1 / STEP)
            place += 1
        else:
            words, place = _words(text, place)
            pieces.append(Piece(words))
    for mark, start in open_at:
        _weigh(pieces, start, STEP if mark == "(" else 1 / STEP)
    return _sections(pieces)


def plain_text(sections: list[list[Piece]]) -> str:
    """Return the words alone, for a text encoder that knows no weights."""
    return " ".join("".join(piece.text for piece in section).strip() for section in sections)


def without_escapes(text: str) -> str:
    """Return a text for a model to which only `dynamic_prompts` means something: a brace stands for itself there."""
    return re.sub(r"\\([{}_$])", r"\1", text)


def spoken(text: str, steps: int, field: str) -> list[str]:
    """Return all words that a prompt says at any moment, in the pieces in which a tokenizer reads them."""
    said = [section for _, now in moments(text, steps, field) for section in parse_prompt(now, field)]
    return list(dict.fromkeys(piece.text for section in said for piece in section))


def _words(text: str, place: int) -> tuple[str, int]:
    """Return the words at a place without escapes, and where they end."""
    if text[place] == "\\" and text[place + 1 : place + 2] in ESCAPED:
        return text[place + 1], place + 2
    words = _PLAIN.match(text, place)
    return (words[0], words.end()) if words else (text[place], place + 1)


def _weigh(pieces: list[Piece], start: int, weight: float) -> None:
    for piece in pieces[start:]:
        piece.weight = round(piece.weight * weight, 6)


def _number(text: str, field: str) -> float:
    value = float(text)
    if abs(value) > WEIGHT_MAX:
        raise InvalidRequest(field, f"{field} has the weight {text[:20]}; use -{WEIGHT_MAX:g} to {WEIGHT_MAX:g}")
    return value


def _sections(pieces: list[Piece]) -> list[list[Piece]]:
    """Join neighbours of one weight, and cut at each BREAK."""
    sections: list[list[Piece]] = [[]]
    for piece in pieces:
        for number, part in enumerate(_BREAK.split(piece.text)):
            if number:
                sections.append([])
            last = sections[-1][-1] if sections[-1] else None
            if last is not None and last.weight == piece.weight:
                last.text += part
            elif part:
                sections[-1].append(Piece(part, piece.weight))
    return sections


def _resolved(text: str, step: int, steps: int, field: str) -> str:
    """Return a prompt as it is at a step, counted from 0; escapes and weights stay as they are written."""
    return "".join(_level(text, 0, "", (step, steps), field, 0)[0])


def _level(
    text: str, place: int, closer: str, moment: tuple[int, int], field: str, depth: int
) -> tuple[list[str], list[int], int]:
    """Read up to `closer`: what it says at the moment, in parts; where a `:` or `|` of this level stands among them; the end."""
    if depth > DEPTH_MAX:
        raise InvalidRequest(field, f"{field} has more than {DEPTH_MAX} brackets inside each other; close some")
    parts: list[str] = []
    marks: list[int] = []
    while place < len(text) and text[place] != closer:
        mark = text[place]
        if mark in PAIRS:
            inner, inner_marks, end = _level(text, place + 1, PAIRS[mark], moment, field, depth + 1)
            closed = end < len(text)
            whole = _chosen(inner, inner_marks, moment) if mark == "[" and closed else None
            parts += [mark, *inner, PAIRS[mark] * closed] if whole is None else [whole]
            place = end + 1
        elif mark in ":|":
            marks.append(len(parts))
            parts.append(mark)
            place += 1
        else:
            words = _PLAIN.match(text, place)
            end = words.end() if words else place + (2 if mark == "\\" else 1)
            parts.append(text[place:end])
            place = end
    return parts, marks, place


def _chosen(parts: list[str], marks: list[int], moment: tuple[int, int]) -> str | None:
    """Return what a square bracket says at a moment; None if it only weakens its words."""
    step, steps = moment
    edges = [-1, *marks, len(parts)]
    options = ["".join(parts[start + 1 : end]) for start, end in pairwise(edges)]
    kinds = {parts[mark] for mark in marks}
    if kinds == {"|"}:
        return options[step % len(options)]
    if kinds != {":"} or len(options) > 3 or not _WHEN.fullmatch(options[-1]):
        return None
    when = float(options[-1])
    before, after = options[:2] if len(options) == 3 else ("", options[0])
    return before if step < (when if when >= 1 else round(when * steps, 6)) else after
