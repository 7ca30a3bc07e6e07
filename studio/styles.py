"""Styles: named pieces of prompts, as A1111 keeps them in `styles.csv`, put around or behind what a person wrote."""

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field

from studio.fields import Frozen

PLACE = "{prompt}"
STYLES_MAX = 20
StyleName = Annotated[str, Field(min_length=1, max_length=200)]


class Style(Frozen):
    """What a style adds; `{prompt}` in it is the place of what a person wrote, which otherwise comes first."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def styled(text: str, pieces: Iterable[str]) -> str:
    """Add the pieces of several styles to a prompt, one after the other, as A1111 does."""
    for piece in pieces:
        behind = ", ".join(filter(None, (text.strip(), piece.strip())))
        text = piece.replace(PLACE, text) if PLACE in piece else behind
    return text


def with_styles(texts: Mapping[str, str], styles: Iterable[Style]) -> dict[str, str]:
    """Apply styles to `prompt` and `negative_prompt`."""
    chosen = list(styles)
    return {name: styled(text, [getattr(style, name) for style in chosen]) for name, text in texts.items()}
