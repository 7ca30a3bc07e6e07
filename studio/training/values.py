"""A config's fields between YAML, a form and a person: what kind of value each has, how it is shown and read. No torch."""

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from studio.errors import InvalidRequest, shown

SEVERAL = ("words", "numbers", "wholes", "pairs", "concepts")
_LOW = {"ge": "{:,.15g}", "gt": "more than {:,.15g}"}
_HIGH = {"le": "{:,.15g}", "lt": "less than {:,.15g}"}


def fields_of(config_class: type[Any]) -> dict[str, FieldInfo]:
    """Return the fields that mean something to a method, in the order of their declaration."""
    return {name: field for name, field in config_class.model_fields.items() if name not in config_class.idle}


def kind_of(field: FieldInfo) -> tuple[str, bool]:
    """Return what a field holds, and whether it may be empty.

    Returns:
        bool, choice, int, float, str, words, numbers, wholes, pairs or concepts.
    """
    annotation, empty = field.annotation, False
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
        empty = True
    if get_origin(annotation) is Literal:
        return "choice", empty
    if get_origin(annotation) is dict:
        return "pairs", empty
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return "concepts", empty
        return {str: "words", int: "wholes", float: "numbers"}[inner], empty
    return annotation.__name__, empty  # type: ignore[union-attr]  # bool, int, float or str


def limits_of(field: FieldInfo) -> str:
    """Say in a few words which numbers a field takes; "" if it holds none, or any."""
    ends = []
    for words in (_LOW, _HIGH):
        told = [
            (name, value)
            for rule in field.metadata
            for name in words
            if (value := getattr(rule, name, None)) is not None
        ]
        ends.append(words[told[0][0]].format(told[0][1]) if told else "")
    return " to ".join(end for end in ends if end)


def defaults_of(config_class: type[Any]) -> dict[str, Any]:
    """Return the plain defaults of the fields that mean something to a method."""
    made = config_class.model_construct().model_dump(mode="json")
    return {name: made[name] for name in fields_of(config_class)}


def plain(name: str, field: FieldInfo, value: Any) -> Any:
    """Return a value as a config dumps it: YAML has `1e-4` as a word, and one value where several may stand.

    Raises:
        InvalidRequest: if it cannot be read.
    """
    kind, empty = kind_of(field)
    if value is None and empty:
        return None
    if kind in ("words", "numbers", "wholes"):
        several = list(value) if isinstance(value, list | tuple) else [value]
        return several if kind == "words" else [_number(name, one) for one in several]
    if kind in ("int", "float") and not isinstance(value, bool):
        return _number(name, value)
    return value


def to_form(field: FieldInfo, value: Any) -> Any:
    """Return a plain value as a control shows it."""
    kind, _ = kind_of(field)
    if kind == "words":
        return "\n".join(map(str, value or ()))
    if kind in ("numbers", "wholes"):
        return ", ".join(f"{one:.15g}" for one in value or ())
    if kind == "pairs":
        return ", ".join(f"{key}={number:.15g}" for key, number in (value or {}).items())
    if kind == "concepts":
        return "\n".join(
            " | ".join(str(one[name]) for name in ("dataset", "instance_prompt", "repeats")) for one in value
        )
    return value


def from_form(name: str, field: FieldInfo, value: Any) -> Any:
    """Read a control; the inverse of `to_form`.

    Raises:
        InvalidRequest: if text cannot be read as what the field holds.
    """
    kind, empty = kind_of(field)
    if kind in SEVERAL:
        return _several(name, kind, str(value or ""))
    if kind in ("int", "float"):
        if value is None or value == "":
            if empty:
                return None
            raise InvalidRequest(name, f"{name} is empty; give a number")
        number = _number(name, value)
        return int(number) if kind == "int" and number == int(number) else number
    if kind == "str":
        return str(value or "")
    return value


def _several(name: str, kind: str, text: str) -> Any:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
    if kind == "words":
        return lines
    if kind == "concepts":
        return [_concept(name, line) for line in lines]
    if kind == "pairs":
        pairs = [part.partition("=") for part in parts]
        if bad := next((part for part, (_, equals, _) in zip(parts, pairs, strict=True) if not equals), None):
            raise InvalidRequest(name, f"{name}: {shown(bad)} must be NAME=NUMBER, with commas between several")
        return {key.strip(): _number(name, number) for key, _, number in pairs}
    numbers = [_number(name, part) for part in parts]
    return [int(one) if kind == "wholes" and one == int(one) else one for one in numbers]


def _concept(name: str, line: str) -> dict[str, Any]:
    folder, prompt, repeats = ([part.strip() for part in line.split("|")] + ["", ""])[:3]
    if line.count("|") > 2 or not folder or (repeats and not repeats.isdigit()):
        raise InvalidRequest(name, f"{name}: {shown(line)} must be FOLDER | PROMPT | REPEATS, one folder a line")
    return {"dataset": folder, "instance_prompt": prompt, "repeats": int(repeats or 1)}


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise InvalidRequest(name, f"{name}={shown(value)} must be a number") from None
