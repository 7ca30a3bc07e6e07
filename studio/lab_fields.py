"""What the requests of the Lab's panels are made of."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from studio.fields import Frozen, control
from studio.spec import SEED_MAX

Values = dict[str, Any]


def whole(value: Any) -> Any:
    """Accept 20.0 (what sliders send), refuse 20.5 and true."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def several(value: Any) -> Any:
    """Accept numbers between commas or blanks, as a text box and `--set` send them."""
    if isinstance(value, int | float):
        return (value,)
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def named(value: Any) -> Any:
    """Accept names between commas, as `--set` sends them."""
    return tuple(part for one in value.split(",") if (part := one.strip())) if isinstance(value, str) else value


def numbers(name: str, low: float, high: float, most: int) -> Any:
    """Return what checks a list of numbers: each within limits, none twice, at most so many."""

    def check(values: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(values) <= most:
            raise ValueError(f"{name} has {len(values)} numbers; give 1 to {most}, with commas between them")
        for value in values:
            if not low <= value <= high:
                raise ValueError(f"{name}={value:g} must be from {low:g} to {high:g}")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} names a number twice; give each once")
        return values

    return AfterValidator(check)


Whole = Annotated[int, BeforeValidator(whole)]
Seed = Annotated[
    Whole,
    control("Seed", "lab", "The same seed begins with the same noise.", kind="number", ge=0, le=SEED_MAX - 64),
]


class LabRequest(Frozen):
    """Base of all panels' requests."""


class Drawn(LabRequest):
    """What is asked of a model with a prompt and a seed."""

    prompt: Annotated[
        str, control("Prompt", "lab", "What the model is asked to draw; one that stays for all steps.", lines=2)
    ] = "a red circle on a blue background"
    seed: Seed = 1
