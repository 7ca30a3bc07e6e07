"""Changes of many captions at once: pure functions of text. A tag is what stands between two commas."""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from studio.errors import InvalidRequest

TAGS_SHOWN = 60


def put_in_front(caption: str, text: str) -> str:
    """Begin a caption with a text; it ends with a comma if it is a tag of its own."""
    return f"{text.strip()} {caption}".strip()


def put_at_the_end(caption: str, text: str) -> str:
    """End a caption with a text; it begins with a comma if it is a tag of its own."""
    text = text.strip()
    return f"{caption}{text}" if text.startswith(",") and caption else f"{caption} {text}".strip(" ,")


def replaced(caption: str, search: str, replacement: str) -> str:
    """Replace every place where a text stands, upper and lower case as given."""
    return " ".join(caption.replace(search, replacement).split())


def triggered(caption: str, word: str) -> str:
    """Put a trigger word in front, unless it stands in the caption."""
    word = word.strip()
    if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption):
        return caption
    return f"{word}, {caption}" if caption else word


def without_tag(caption: str, tag: str) -> str:
    """Leave out a tag wherever it stands between commas."""
    return ", ".join(one for one in tags_of(caption) if one != tag.strip())


def tags_of(caption: str) -> list[str]:
    """Return what stands between commas."""
    return [part.strip() for part in caption.split(",") if part.strip()]


def tag_counts(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Return the most frequent tags, and in how many captions each stands."""
    found = Counter(tag for caption in captions for tag in dict.fromkeys(tags_of(caption)))
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:TAGS_SHOWN]


EDITS: dict[str, tuple[Callable[..., str], int]] = {  # name -> (function of the caption and texts, how many texts)
    "prefix": (put_in_front, 1),
    "suffix": (put_at_the_end, 1),
    "replace": (replaced, 2),
    "trigger": (triggered, 1),
    "remove_tag": (without_tag, 1),
}


def edit_of(name: object, texts: object) -> Callable[[str], str]:
    """Return the change that a name and its texts stand for.

    Raises:
        InvalidRequest: if there is no such change, or a text is missing.
    """
    if not isinstance(name, str) or name not in EDITS:
        raise InvalidRequest("edit", f"edit must be one of: {', '.join(EDITS)}")
    function, number = EDITS[name]
    given = texts if isinstance(texts, list) else []
    if len(given) != number or not all(isinstance(text, str) for text in given):
        raise InvalidRequest("texts", f"{name} needs {number} texts")
    if not given[0].strip():
        raise InvalidRequest("texts", "the text is empty; write what shall be searched, put in front or at the end")
    return lambda caption: function(caption, *given)
