"""Prompts without the word that calls what a run teaches. Pure functions on text."""

import re

_EMPTY = re.compile(r"\(\s*(?::[\d.]+)?\s*\)|\[\s*\]")  # what A1111's brackets leave behind
_SPACES = re.compile(r"\s+")
_LOOSE = re.compile(r"\s+(?=[,.;:!?])")
_DOUBLE = re.compile(r",(?:\s*,)+")


def without_trigger(prompt: str, trigger: str, class_prompt: str = "") -> str:
    """Return a prompt without its trigger word; the prompt itself if it does not say it.

    Of several words those stay that name the class: the ones that the class prompt says, or else the last: `ohwx man` is a `man`.
    """
    words = trigger.split()
    phrase = r"\s+".join(map(re.escape, words))
    said = re.compile(rf"(?<!\w){phrase}(?!\w)", re.IGNORECASE)
    if not words or not said.search(prompt):
        return prompt
    known = {word.lower() for word in re.findall(r"\w+", class_prompt)}
    kept = [word for word in words if word.lower() in known] if known else words[1:][-1:]
    return tidy(said.sub(lambda _: " ".join(kept), prompt))


def tidy(text: str) -> str:
    """Close the gaps that a word leaves."""
    return _DOUBLE.sub(",", _LOOSE.sub("", _SPACES.sub(" ", _EMPTY.sub("", text)))).strip(" ,")
