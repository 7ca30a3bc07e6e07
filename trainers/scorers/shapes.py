"""The scorer for the demo model's world: pictures of coloured shapes are read back into facts, and facts are counted."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.scorers import pixels
from trainers.scorers.figures import COLOURS, SHAPES
from trainers.scorers.reading import Found, Reading, judge
from trainers.scorers.scorer import Picture, Scorer

AGREED = 0.8  # share of the training pictures that must share a fact for it to be the subject's
COUNTS = {"two": 2, "three": 3, "four": 4}
STYLES = ("outline", "striped", "pixel art")
_WORDS = re.compile(r"[a-z]+")
_BACKGROUND = re.compile(rf"\b({'|'.join(COLOURS)}) background\b|\b(?:on|with) (?:an? )?({'|'.join(COLOURS)})[^a-z]*$")


@dataclass(frozen=True)
class Seen:
    """A picture: what it shows, and how it looks."""

    reading: Reading
    looks: np.ndarray

    @property
    def facts(self) -> dict[str, Any]:
        """Colour, shape and style of the largest thing, and how many things there are."""
        things = self.reading.things
        first = things[0] if things else Found("", "", 0, 0, 0, "")
        return {"colour": first.colour, "shape": first.shape, "style": first.style, "count": len(things)}


class Shapes(Scorer):
    """Shares of facts. The subject is what most training pictures have in common."""

    title = "shapes"

    def read(self, pictures: Sequence[Picture]) -> list[Any]:
        return [Seen(judge(one), pixels.features(one)) for one in pictures]

    def subject(self, sample: Any, training: Sequence[Any]) -> float | None:
        agreed = common_facts([one.facts for one in training])
        if not agreed:
            return None
        return float(all(sample.facts[name] == value for name, value in agreed.items()))

    def prompt(self, sample: Any, prompt: str) -> float | None:
        shown = said_facts(prompt, sample.reading)
        return sum(shown.values()) / len(shown) if shown else None

    def chance(self, sample: Any, prompt: str) -> float | None:
        shown = [said_facts(other, sample.reading) for other in other_prompts(prompt)]
        facts = [fact for one in shown for fact in one.values()]
        return sum(facts) / len(facts) if facts else None

    def drift(self, now: Any, before: Any) -> float | None:
        facts = [one.facts | {"background": one.reading.background} for one in (now, before)]
        return sum(facts[0][name] != facts[1][name] for name in facts[0]) / len(facts[0])

    def memorisation(self, sample: Any, training: Sequence[Any]) -> float | None:
        return max(pixels.likeness(sample.looks, [one.looks for one in training]))


def common_facts(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts that at least `AGREED` of the pictures share."""
    most = {name: Counter(one[name] for one in told).most_common(1)[0] for name in told[0]} if told else {}
    return {name: value for name, (value, number) in most.items() if number >= AGREED * len(told)}


def other_prompts(prompt: str) -> list[str]:
    """Return prompts of the same form, with every colour and every shape exchanged for others."""
    turned = {f"{shape}{end}": (SHAPES, shape, end) for shape in SHAPES for end in ("", "s", "es")}
    turned |= {colour: (tuple(COLOURS), colour, "") for colour in COLOURS}

    def other(word: str, step: int) -> str:
        if word not in turned:
            return word
        kinds, name, end = turned[word]
        return kinds[(kinds.index(name) + step) % len(kinds)] + end

    return [
        _WORDS.sub(lambda found, step=step: other(found[0], step), prompt.lower()) for step in range(1, len(SHAPES))
    ]


def said_facts(prompt: str, reading: Reading) -> dict[str, bool]:
    """Return for each fact that a prompt says (background, things with their colours, how many, style) whether a picture shows it."""
    text = prompt.lower()
    found = _BACKGROUND.search(text)
    facts: dict[str, bool] = {}
    if found:
        facts["background"] = reading.background == (found[1] or found[2])
        text = text[: found.start()] + text[found.end() :]
    words = _WORDS.findall(text)
    number = 0
    for place, word in enumerate(words):
        shape = next((one for one in SHAPES if word in (one, f"{one}s", f"{one}es")), "")
        if not shape:
            continue
        number += next((COUNTS[before] for before in words[max(0, place - 3) : place] if before in COUNTS), 1)
        colour = words[place - 1] if place and words[place - 1] in COLOURS else ""
        facts[f"{colour} {shape}"] = any(
            thing.shape == shape and colour in ("", thing.colour) for thing in reading.things
        )
    if number:
        facts["count"] = len(reading.things) == number
    for style in STYLES:
        if f"{style} style" in text:
            facts[style] = bool(reading.things) and all(thing.style == style for thing in reading.things)
    return facts


def suits(pictures: Sequence[Picture], captions: Sequence[str]) -> bool:
    """Tell whether pictures are of this world: whether most show what their captions say of it."""
    facts = [
        shown
        for picture, caption in zip(pictures, captions, strict=True)
        for shown in said_facts(caption, judge(picture)).values()
    ]
    return len(facts) >= len(pictures) > 0 and sum(facts) >= AGREED * len(facts)
