"""What Studio tells people when something cannot be done: one sentence with the field, the value, what is allowed, the way out."""

from collections.abc import Sequence

from pydantic import ValidationError


class StudioError(Exception):
    """Base of all errors that are meant for people; the text is shown as it is."""

    code = "error"


class InvalidRequest(StudioError):
    """A value that cannot be used. `field` says beside which control the page shows it."""

    code = "invalid"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ModelError(StudioError):
    """A model that is missing, damaged, unsafe or of an unknown kind."""

    code = "model"


class StorageError(StudioError):
    """Something could not be written: the disk is full, or a folder is read-only."""

    code = "storage"


class DeviceError(StudioError):
    """The device cannot do it: not there, out of memory, or lost."""

    code = "device"


BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def shown(value: object, limit: int = 60) -> str:
    """Return a value as text that is short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_problem(error: ValidationError) -> InvalidRequest:
    """Turn pydantic's report into one sentence about the first wrong field."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "request"
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return InvalidRequest(field, f"{field}={shown(value)} must be {words} {context[key]}")
    if kind == "multiple_of":
        step = context["multiple_of"]
        below = int(float(value) // step * step)
        return InvalidRequest(
            field, f"{field}={shown(value)} must be a multiple of {step:g}; use {below} or {below + int(step)}"
        )
    if kind == "finite_number":
        return InvalidRequest(field, f"{field}={shown(value)} must be a finite number")
    if kind == "extra_forbidden":
        return InvalidRequest(
            field, f"{field} is not a field of this request; `python -m studio generate --help` lists the fields"
        )
    if kind == "string_too_long":
        return InvalidRequest(
            field, f"{field} has {len(value):,} characters; at most {context['max_length']:,} are allowed"
        )
    if kind == "string_pattern_mismatch":
        return InvalidRequest(field, f"{field}={shown(value)} must match {context['pattern']}")
    if kind == "value_error":
        return InvalidRequest(field, f"{field}: {context['error']}" if "." in field else str(context["error"]))
    if kind == "missing":
        return InvalidRequest(field, f"{field} is missing")
    return InvalidRequest(field, f"{field}={shown(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}")


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return names with commas between for a sentence; of many the first."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
