"""What the dataset doctor says: findings, each with what a click does about it."""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["caption", "left_out", "crop", "mask"]
Level = Literal["problem", "doubt", "note"]
NAMED = 3  # pictures that a sentence names


@dataclass(frozen=True)
class Change:
    """One thing about one picture that becomes another; the picture's own file never changes.

    Attributes:
        picture: its path, relative to the dataset.
        kind: what changes.
        value: a caption; True for left out; a crop; `alpha` for a mask made of what is not transparent.
    """

    picture: str
    kind: Kind
    value: Any


@dataclass(frozen=True)
class Fix:
    """What a click does: `title` stands on the button."""

    title: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a dataset, or worth knowing.

    Attributes:
        code: what kind of thing.
        level: `problem`: training suffers; `doubt`: look at it; `note`: good to know.
        text: a sentence with the way out.
        pictures: that are meant, relative to the dataset; empty if all are.
        fix: what can be done at a click; None if only a person can.
    """

    code: str
    level: Level
    text: str
    pictures: tuple[str, ...] = ()
    fix: Fix | None = None

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "code": self.code,
            "level": self.level,
            "text": self.text,
            "pictures": list(self.pictures),
            "fix": self.fix.title if self.fix else None,
        }


def named(pictures: list[str] | tuple[str, ...]) -> str:
    """Name a few pictures: `1.png, 2.png and 5 more`."""
    first = ", ".join(pictures[:NAMED])
    return f"{first} and {len(pictures) - NAMED} more" if len(pictures) > NAMED else first


def leave_out(title: str, pictures: list[str] | tuple[str, ...]) -> Fix:
    """Return what leaves pictures out of training."""
    return Fix(title, tuple(Change(picture, "left_out", True) for picture in pictures))


def counted(number: int, one: str, several: str) -> str:
    """Begin a sentence with a number: `1 caption does`, `2 captions do`."""
    return f"{number} {one if number == 1 else several}"
