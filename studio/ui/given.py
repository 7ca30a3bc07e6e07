"""What a caller of the public endpoints gives: pictures as text anywhere in a request, and settings beside parameters."""

from collections.abc import Callable
from typing import Any

from studio.errors import InvalidRequest
from studio.units import IMAGE_FIELDS, UNIT_FIELDS


def with_each_picture(values: dict[str, Any], change: Callable[[object, str], str]) -> dict[str, Any]:
    """Return plain values of a request in which every picture's text, those of units too, is changed."""
    made = dict(values)
    for name in IMAGE_FIELDS:
        if values.get(name):
            made[name] = change(values[name], name)
    for name in UNIT_FIELDS:
        if not isinstance(values.get(name), list | tuple):
            continue
        made[name] = units = [dict(unit) if isinstance(unit, dict) else unit for unit in values[name]]
        for place, unit in enumerate(units):
            if isinstance(unit, dict) and unit.get("image"):
                unit["image"] = change(unit["image"], f"{name}.{place}.image")
            if isinstance(unit, dict) and isinstance(unit.get("images"), list | tuple):
                unit["images"] = [change(text, f"{name}.{place}.images") for text in unit["images"]]
    return made


def joined(given: dict[str, Any], settings: object) -> dict[str, Any]:
    """Join an endpoint's own parameters with `settings`.

    Raises:
        InvalidRequest: if `settings` is no object, or says one of them again.
    """
    more = {} if settings is None else settings
    if not isinstance(more, dict):
        raise InvalidRequest("settings", "settings must be an object of field names and values")
    if twice := sorted(set(more) & set(given)):
        raise InvalidRequest("settings", f"settings says {twice[0]} too; give it once, as a parameter")
    return more | given
