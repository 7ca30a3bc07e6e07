"""What is wrong with a dataset's captions: missing, without the trigger word, with too much of the class word, all alike."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from studio.findings import Change, Finding, Fix, counted, named
from studio.word_facts import WordFacts, advice

ALIKE_FROM, SIDED_FROM = 3, 5  # captions from which on it means something that all say the same
PLAIN = frozenset(  # words that say nothing about what is shown
    "a an the and or of on in at to with by for from over under near next is are it its this that there one some very "
    "as into onto photo photograph picture image drawing painting background foreground view shot style".split()
)
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Caption:
    """What is said with a picture."""

    picture: str
    text: str


def caption_findings(captions: Sequence[Caption], trigger: str, class_word: str) -> Iterator[Finding]:
    """Yield what is wrong with captions.

    Args:
        captions: of all pictures that are trained on.
        trigger: word that calls the new thing; "" if none is used.
        class_word: what kind of thing it is; "" if that is not said.
    """
    if without := [one.picture for one in captions if not one.text.strip()]:
        yield _missing(without, trigger, class_word)
    said = [one for one in captions if one.text.strip()]
    if trigger:
        yield from _trigger(said, trigger)
    if class_word:
        yield from _class(said, trigger, class_word)
    yield from _sided(said, trigger, class_word)


def trigger_finding(facts: WordFacts | None, proposals: Sequence[str]) -> Iterator[Finding]:
    """Yield what the model's tokenizer says against a trigger word."""
    if facts is None or facts.rare or facts.word.startswith("<"):  # the paper's placeholders become tokens of their own
        return
    yield Finding("trigger-word", "doubt" if facts.whole else "note", f"The trigger word {advice(facts, proposals)}.")


def count(text: str, word: str) -> int:
    """Count how often a word, or several, stand in a text as whole words."""
    return len(_places(text, word))


def _places(text: str, word: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _missing(without: list[str], trigger: str, class_word: str) -> Finding:
    number = counted(len(without), "picture", "pictures")
    text = f"{number} without a caption: {named(without)}. Write one, or let Auto-captioning do it"
    if not trigger:
        return Finding("no-caption", "problem", f"{text}; or give the training an instance prompt.", tuple(without))
    words = f"{trigger} {class_word}".strip()
    fix = Fix(f"Caption with “{words}”", tuple(Change(picture, "caption", words) for picture in without))
    return Finding("no-caption", "problem", f"{text}.", tuple(without), fix)


def _trigger(said: Sequence[Caption], trigger: str) -> Iterator[Finding]:
    without = [one for one in said if not count(one.text, trigger)]
    if without:
        changes = tuple(Change(one.picture, "caption", f"{trigger}, {one.text}") for one in without)
        names = tuple(one.picture for one in without)
        yield Finding(
            "no-trigger",
            "problem",
            f"{counted(len(without), 'caption does', 'captions do')} "
            f"not have the trigger word {trigger!r}: {named(names)}. What they show is not learnt "
            "as yours.",
            names,
            Fix("Put it in front", changes),
        )
    twice = [one for one in said if count(one.text, trigger) > 1]
    if twice:
        changes = tuple(Change(one.picture, "caption", _once(one.text, trigger)) for one in twice)
        names = tuple(one.picture for one in twice)
        yield Finding(
            "trigger-twice",
            "doubt",
            f"{counted(len(twice), 'caption has', 'captions have')} "
            f"the trigger word {trigger!r} more than once: {named(names)}. Once is enough.",
            names,
            Fix("Keep the first", changes),
        )


def _once(text: str, word: str) -> str:
    """Take a word out of a text but for its first place."""
    for place in reversed(_places(text, word)[1:]):
        text = text[: place.start()] + text[place.end() :]
    return tidy(text)


def tidy(text: str) -> str:
    """Close the gaps that words leave behind which were taken out of a caption."""
    parts = [" ".join(part.split()) for part in text.split(",")]
    return ", ".join(part for part in parts if part)


def _class(said: Sequence[Caption], trigger: str, class_word: str) -> Iterator[Finding]:
    """Find captions that say the class word again: what the picture shows is then learnt for the whole class."""
    again = [one for one in said if count(one.text, class_word) > 1]
    if not again:
        return
    names = tuple(one.picture for one in again)
    shorter = [(one.picture, _without_repeats(one.text, class_word)) for one in again]
    changes = tuple(Change(picture, "caption", text) for picture, text in shorter if text)
    text = (
        f"{counted(len(again), 'caption repeats', 'captions repeat')} "
        f"the class word {class_word!r}: {named(names)}. What they show leaks into every "
        f"{class_word}; say it once, beside {trigger or 'the trigger word'!r}"
    )
    whole = len(changes) == len(again)
    fix = Fix("Take out the repeats between commas", changes) if changes else None
    yield Finding("class-word", "doubt", text + ("." if whole else " (sentences are for you to shorten)."), names, fix)


def _without_repeats(text: str, word: str) -> str:
    """Leave out later parts between commas that are only the word; "" if the word would still stand there twice."""
    parts, seen = [], False
    for part in (one.strip() for one in text.split(",")):
        alone = WORD.findall(part.casefold())
        only = [one for one in alone if one not in PLAIN] == WORD.findall(word.casefold())
        if not (only and seen):
            parts.append(part)
        seen = seen or count(part, word) > 0
    made = ", ".join(parts)
    return made if count(made, word) == 1 else ""


def _sided(said: Sequence[Caption], trigger: str, class_word: str) -> Iterator[Finding]:
    texts = [" ".join(one.text.casefold().split()) for one in said]
    if len(texts) >= ALIKE_FROM and len(set(texts)) == 1:
        yield Finding(
            "same-captions",
            "doubt",
            f"All {len(texts)} captions are the same, so that what differs between the pictures (place, light, pose) is learnt "
            "as part of the subject. Say in each what is special about it; Auto-captioning helps.",
        )
    elif len(texts) >= SIDED_FROM:
        own = {word for text in (trigger, class_word) for word in WORD.findall(text.casefold())}
        often = Counter(word for text in texts for word in {*WORD.findall(text)} - own - PLAIN)
        always = sorted(word for word, number in often.items() if number == len(texts))
        if always:
            yield Finding(
                "one-sided",
                "doubt",
                f"Every caption says {', '.join(map(repr, always[:5]))}: that becomes part of what is learnt. Add pictures "
                "without it, or leave the word out if it belongs to the subject.",
            )
