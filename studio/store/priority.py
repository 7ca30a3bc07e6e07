"""Who goes first on a device that a training run and pictures share: a file in the data root, which runs read between two steps."""

import json
from pathlib import Path
from typing import Literal, get_args

from studio.errors import InvalidRequest
from studio.store import writer

First = Literal["pictures", "training", "ask"]
FILE = "priority.json"


def read_priority(data_dir: Path) -> tuple[First, bool]:
    """Return who goes first, and whether pictures that wait may go once although they are not first."""
    try:
        told = json.loads((data_dir / FILE).read_text(encoding="utf-8"))
        return (told["first"] if told["first"] in get_args(First) else "pictures"), told["once"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return "pictures", False


def set_priority(data_dir: Path, first: str, *, once: bool = False) -> None:
    """Decide who goes first.

    Args:
        data_dir: the data root.
        first: `pictures`: a run lets them go between two steps; `training`: they wait until no run needs the device; `ask`: they
            wait until a person lets them go.
        once: lets those go that wait now.

    Raises:
        InvalidRequest: if `first` is something else.
    """
    if first not in get_args(First):
        raise InvalidRequest("first", f"first={first!r} must be one of: {', '.join(get_args(First))}")
    writer.write_json(data_dir / FILE, {"first": first, "once": once})


def pictures_first(data_dir: Path) -> bool:
    """Whether a run should let pictures go now."""
    first, once = read_priority(data_dir)
    return first == "pictures" or once
