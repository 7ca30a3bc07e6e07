"""How a parameter is declared: once, with its range, its words for the page, and its place there."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SIZE_STEP = 8
LIMITS = ("ge", "gt", "le", "lt", "multiple_of", "max_length", "pattern")
EXTEND_MAX = 1024


class Frozen(BaseModel):
    """Base of all data that crosses a boundary: unknown fields and later changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def control(label: str, group: str, help_text: str, **extra: Any) -> Any:
    """Declare a field with what the page needs to know about it."""
    limits = {key: extra.pop(key) for key in LIMITS if key in extra}
    return Field(description=help_text, json_schema_extra={"label": label, "group": group, **extra}, **limits)


def extension(side: str) -> Any:
    """Declare how far the canvas grows on one side."""
    help_text = (
        f"Outpaint: pixels to add on the {side} side."
        if side in ("left", "right")
        else f"Outpaint: pixels to add at the {side}."
    )
    return control(f"Extend {side}", "outpaint", help_text, ge=0, le=EXTEND_MAX, multiple_of=SIZE_STEP, step=8)


def least_strength(steps: int) -> float:
    """Return the smallest strength, to three digits, that leaves a step of `steps`."""
    return math.ceil(1000 / steps) / 1000
