"""X/Y/Z plots: a request and up to three of its fields with several values each, written as A1111's users write them."""

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import model_validator
from pydantic.fields import FieldInfo

from studio.errors import InvalidRequest, shown
from studio.fields import Frozen
from studio.loras import LoraSpec
from studio.parts import OWN_VAE
from studio.schedulers import SIGMA_LABELS
from studio.spec import RESIZE_LABELS, GenerationRequest, parse_request
from studio.units import IMAGE_FIELDS, UNIT_TYPES, UNITS_MAX

AXES = ("x", "y", "z")
CELLS_MAX = 200
CELLS_MAX_PUBLIC = 16
TEXT_MAX = 20_000
SINGLE = {"num_images_per_prompt": 1, "batch_size": 1}  # a cell is one picture
SEEDS = ("seed", "variation_seed")
LISTED: dict[str, type[Frozen]] = UNIT_TYPES | {"loras": LoraSpec}  # fields that hold several, each of its own
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
LABELS: dict[str, dict[Any, str]] = {"resize_mode": {**RESIZE_LABELS}, "sigmas": {**SIGMA_LABELS}}
N = r"([+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}))"
RANGE = re.compile(rf"{N}\s*-\s*{N}(?:\s*\(\s*{N}\s*\)|\s*\[\s*([0-9]+)\s*\])?")

Value = str | int | float | bool


class Axis(Frozen):
    """A field and its values as a person wrote them."""

    field: str
    values: str


class PlotSpec(Frozen):
    """A whole plot. Cells are numbered with X fastest, then Y, then Z."""

    base: GenerationRequest
    x: Axis | None = None
    y: Axis | None = None
    z: Axis | None = None

    @model_validator(mode="after")
    def axes_fit(self) -> "PlotSpec":
        given = dict(self.axes)
        if not given:
            raise InvalidRequest("x", 'a plot needs a field and its values, such as x with "guidance_scale=1,2,3"')
        named = [axis.field for axis in given.values() if axis.field != "prompt"]
        number = 1
        for name, axis in given.items():
            values = read_values(name, axis)
            if named.count(axis.field) > 1:
                raise refusal(name, f"{axis.field} is on another axis already; choose another field")
            word = str(values[0])
            if axis.field == "prompt" and not (
                word and (word in self.base.prompt or word in self.base.negative_prompt)
            ):
                raise refusal(
                    name, f"{shown(values[0])}, the first value, is looked for and replaced, but no prompt has it"
                )
            number *= len(values)
        check_number(number, CELLS_MAX)
        return self

    @property
    def axes(self) -> Iterator[tuple[str, Axis]]:
        """Yield the axes in use by their names, `x` first."""
        for name in AXES:
            if (axis := getattr(self, name)) is not None:
                yield name, axis


@dataclass(frozen=True)
class Cell:
    """One picture of a plot: its number on each axis, its values, its request."""

    place: tuple[int, int, int]
    values: dict[str, Value]
    request: GenerationRequest


class GridRecord(Frozen):
    """What a grid says about itself; `cells` are the ids of its pictures, X fastest, then Y, then Z."""

    id: str
    created: str
    spec: PlotSpec
    cells: tuple[str, ...]


def refusal(name: str, sentence: str) -> InvalidRequest:
    """Build the error about an axis."""
    return InvalidRequest(name, f"{name.upper()} axis: {sentence}")


def check_number(number: int, limit: int) -> None:
    """Refuse a plot of too many cells.

    Raises:
        InvalidRequest: if there are more than `limit`.
    """
    if number > limit:
        raise InvalidRequest("x", f"this plot has {number:,} pictures; at most {limit} are made, take fewer values")


def declared(field: str) -> FieldInfo:
    """Return where a field is declared; `controls.0.weight` is one of the first ControlNet unit."""
    name, _, rest = field.partition(".")
    unit = LISTED.get(name)
    return unit.model_fields[rest.partition(".")[2]] if unit and rest else GenerationRequest.model_fields[field]


def label_of(field: str) -> str:
    """Return what the page calls a field."""
    name, _, rest = field.partition(".")
    if not rest:
        return dict(extras(field))["label"]
    place, _, own = rest.partition(".")
    return f"{label_of(name)} {int(place) + 1}: {own}"


def extras(field: str) -> dict[str, Any]:
    facts = declared(field).json_schema_extra
    return facts if isinstance(facts, dict) else {}


def kind_of(field: str) -> type | tuple[str, ...] | None:
    """Return a field's type (`str`, `int`, `float`, `bool`), the names that it may have, or None if it is no plain value."""
    annotation = declared(field).annotation
    if get_origin(annotation) in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not NoneType]
        annotation = parts[0] if len(parts) == 1 else None
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return annotation if annotation in (str, int, float, bool) else None


def plot_fields() -> dict[str, str]:
    """Return the fields that an axis can have, and their labels. Pictures are for the command line: the page has no paths."""
    names = [name for name in GenerationRequest.model_fields if name not in SINGLE]
    for name, unit in LISTED.items():
        own = [field for field in unit.model_fields if field != "image"]
        names += [f"{name}.{place}.{field}" for place in range(UNITS_MAX) for field in own]
    return {name: label_of(name) for name in names if kind_of(name) is not None}


def put(values: dict[str, Any], field: str, value: Value) -> None:
    """Set a field of a plain request.

    Raises:
        InvalidRequest: if it is one of a unit that the request does not have.
    """
    name, _, rest = field.partition(".")
    if not rest:
        values[field] = value
        return
    place, _, own = rest.partition(".")
    units = [dict(unit) for unit in values[name]]
    if int(place) >= len(units):
        raise InvalidRequest(
            field, f"{field}: the request has {len(units)} {name}; give it the unit, or plot another field"
        )
    units[int(place)][own] = value
    values[name] = units


def axis_from(text: str, name: str) -> Axis:
    """Read `FIELD=VALUES`.

    Raises:
        InvalidRequest: if there is no equals sign.
    """
    field, equals, values = text.partition("=")
    if not equals:
        raise refusal(name, f'{shown(text)} must be FIELD=VALUES, such as "guidance_scale=1,2,3"')
    return Axis(field=field.strip(), values=values)


def read_values(name: str, axis: Axis) -> tuple[Value, ...]:
    """Read the values of an axis by its field's type.

    Numbers may be ranges: `1-5`, `1-5 (+2)` with a step, `1-10 [4]` with a count. Names and texts stand between commas, in
    quotes if they have commas themselves.

    Raises:
        InvalidRequest: naming the axis and the value.
    """
    if axis.field in SINGLE:
        raise refusal(name, f"{axis.field} cannot be plotted, because every cell is one picture")
    if axis.field not in plot_fields():
        raise refusal(
            name,
            f"{shown(axis.field)} is no field that can be plotted; use one of a unit, such as controls.0.weight, or one of: "
            + ", ".join(field for field in plot_fields() if "." not in field),
        )
    if len(axis.values) > TEXT_MAX:
        raise refusal(name, f"the values have {len(axis.values):,} characters; at most {TEXT_MAX:,} are read")
    try:
        lines = csv.reader(io.StringIO(axis.values), skipinitialspace=True, strict=True)
        parts = [part.strip() for part in itertools.chain.from_iterable(lines)]
    except csv.Error:
        raise refusal(name, f"{shown(axis.values)} has a quote that is not closed") from None
    kind = kind_of(axis.field)
    if kind is not str or not any(parts):  # an empty text is a value: it takes a word away
        parts = [part for part in parts if part]
    values: list[Value] = []
    for part in parts:
        values += read_part(name, axis.field, part, CELLS_MAX - len(values))
    if not values:
        raise refusal(name, f"{label_of(axis.field)} has no values; write some, such as: {example(axis.field)}")
    return tuple(values)


def read_part(name: str, field: str, part: str, room: int) -> list[Value]:
    """Read what stands between two commas: a value, or a range of numbers.

    Raises:
        InvalidRequest: naming the axis and the value.
    """
    if room < 1:
        raise refusal(name, f"there are more than {CELLS_MAX} values; take fewer")
    kind, wrong = kind_of(field), f"{label_of(field)} {shown(part)}"
    if isinstance(kind, tuple):
        known = {text.casefold(): value for value, text in LABELS.get(field, {}).items()}
        known |= {value.casefold(): value for value in kind}
        if part.casefold() not in known:
            raise refusal(name, f"{wrong} must be one of: {', '.join(kind)}")
        return [known[part.casefold()]]
    if kind is bool:
        if part.casefold() not in WORDS:
            raise refusal(name, f"{wrong} must be true or false")
        return [WORDS[part.casefold()]]
    if kind is str:
        return [part]
    if found := RANGE.fullmatch(part):
        return read_range(name, found, kind is int, room)
    try:
        number = float(part)
        return [int(part) if kind is int and re.fullmatch(r"[+-]?[0-9]{1,18}", part) else number]
    except ValueError:
        raise refusal(name, f"{wrong} is no number and no range, such as: {example(field)}") from None


def read_range(name: str, found: re.Match[str], whole: bool, room: int) -> list[Value]:
    """Return the numbers of a range, both ends included where the step meets them.

    Raises:
        InvalidRequest: if it leads nowhere, or to too many numbers.
    """
    start, end = Decimal(found[1]), Decimal(found[2])
    if found[4]:
        count = int(found[4]) if len(found[4]) < 9 else room + 1
        step = (end - start) / (count - 1) if count > 1 else Decimal(0)
    else:
        step = Decimal(found[3]) if found[3] else Decimal(1 if end >= start else -1)
        if not step or (end - start) / step < 0:
            raise refusal(name, f"the step of {shown(found[0])} does not lead from {found[1]} to {found[2]}")
        count = int((end - start) / step) + 1
    if not 1 <= count <= room:
        raise refusal(name, f"{shown(found[0])} must be from 1 to {CELLS_MAX} values, not {count:,}")
    numbers = [start + step * place for place in range(count)]
    if whole and (found[4] or all(number == int(number) for number in numbers)):
        return [int(number) for number in numbers]
    return [float(round(number, 10)) for number in numbers]


def example(field: str) -> str:
    """Return values that a field could have, as they are written."""
    kind, facts = kind_of(field), extras(field)
    if isinstance(kind, tuple):
        return ", ".join(kind)
    if kind is bool:
        return "true, false"
    special = {
        "prompt": 'circle, square, "star, outline style"',
        "negative_prompt": 'blurry, "blurry, dark"',
        "model": "shapes, my-model",
        "scheduler": "Euler, Euler a, DPM++ 2M",
        "vae": f"{OWN_VAE}, my-vae",
        "width": "512, 768 or 512-768 (+128)",
        "height": "512, 768 or 512-768 (+128)",
        "guidance_scale": "3, 5, 7.5 or 1-10 [4]",
        "num_inference_steps": "10, 20, 30 or 10-50 (+20)",
        "seed": "1, 2, 3 or 1-4 or -1, -1",
        "variation_seed": "1, 2, 3 or 1-4 or -1, -1",
    }
    shift = facts.get("shown_offset", 0)
    if field in special or kind is str:
        return special.get(field, "one, another")
    return f"{1 + shift}-{4 + shift}" if kind is int else "0.2, 0.6 or 0-1 [5]"


def shifted(name: str, axis: Axis) -> Axis:
    """Turn what a person reads on the page into the field's own values: Clip skip counts from one there.

    Raises:
        InvalidRequest: if a value cannot be read.
    """
    offset = extras(axis.field).get("shown_offset", 0) if axis.field in plot_fields() else 0
    if not offset:
        return axis
    return Axis(field=axis.field, values=", ".join(f"{float(v) - offset:g}" for v in read_values(name, axis)))


def fix_seeds(spec: PlotSpec, draw: Callable[[], int]) -> PlotSpec:
    """Draw every random seed once, so that the cells differ in nothing but the axes; each -1 on a seed's axis is drawn apart."""
    changes: dict[str, Any] = {}
    for name, axis in spec.axes:
        if axis.field in SEEDS and -1 in (values := read_values(name, axis)):
            fixed = ", ".join(str(draw() if value == -1 else value) for value in values)
            changes[name] = Axis(field=axis.field, values=fixed)
    plotted = {axis.field for _, axis in spec.axes}
    used = SEEDS if spec.base.variation_strength or "variation_strength" in plotted else ("seed",)
    drawn = {name: draw() for name in used if name not in plotted and getattr(spec.base, name) == -1}
    changes["base"] = spec.base.model_copy(update=SINGLE | drawn)
    return spec.model_copy(update=changes)


def cells_of(spec: PlotSpec) -> list[Cell]:
    """Return the cells of a plot, X fastest, each a request of its own.

    Raises:
        InvalidRequest: naming axis and value, if one of them cannot be made.
    """
    axes = {name: (axis, read_values(name, axis)) for name, axis in spec.axes}
    plain: dict[str, Any] = spec.base.model_dump() | SINGLE
    made: list[Cell] = []
    for place in itertools.product(*(range(len(axes[name][1]) if name in axes else 1) for name in reversed(AXES))):
        at: dict[str, int] = dict(zip(reversed(AXES), place, strict=True))
        values, chosen = {**plain}, {name: axes[name][1][at[name]] for name in axes}
        for name, (axis, every) in axes.items():
            if axis.field == "prompt":
                for text in ("prompt", "negative_prompt"):
                    values[text] = values[text].replace(str(every[0]), str(chosen[name]))
        try:
            for name, (axis, _) in axes.items():
                if axis.field != "prompt":
                    put(values, axis.field, chosen[name])
            request = parse_request(values)
        except InvalidRequest as error:
            raise cell_refusal(spec, chosen, error) from None
        made.append(Cell((at["x"], at["y"], at["z"]), chosen, request))
    return made


def cell_refusal(spec: PlotSpec, chosen: dict[str, Value], error: InvalidRequest) -> InvalidRequest:
    """Say which axis and value a refused cell has: the one that the error is about, or all of them."""
    axes = dict(spec.axes)
    guilty = [name for name in chosen if axes[name].field == error.field] or list(chosen)
    if len(guilty) == 1 and str(error).startswith(f"{error.field}="):
        return refusal(guilty[0], str(error))
    what = ", ".join(f"{name.upper()} axis, {axes[name].field}={shown(chosen[name])}" for name in guilty)
    return InvalidRequest(guilty[0], f"{what}: {error}")


def run_order(cells: list[Cell]) -> list[int]:
    """Return the numbers of the cells in the order to make them: all of one model before the next is loaded."""
    return sorted(range(len(cells)), key=lambda number: cells[number].request.model)


def axis_labels(spec: PlotSpec) -> dict[str, list[str]]:
    """Return what a grid writes beside its rows, columns and sections; an unused axis has one empty label."""
    labels = {name: [""] for name in AXES}
    for name, axis in spec.axes:
        labels[name] = [value_label(axis.field, value) for value in read_values(name, axis)]
    return labels


def value_label(field: str, value: Value) -> str:
    """Return a value with its field's label, as A1111 writes it; a prompt's words and a picture's name stand alone."""
    if field == "prompt" or field in IMAGE_FIELDS:
        return str(value).replace("\\", "/").rpartition("/")[2] if field in IMAGE_FIELDS else str(value) or "(nothing)"
    if isinstance(value, bool):
        return f"{label_of(field)}: {'yes' if value else 'no'}"
    if isinstance(value, int | float):
        value += extras(field).get("shown_offset", 0)
        return f"{label_of(field)}: {value:g}" if isinstance(value, float) else f"{label_of(field)}: {value}"
    return f"{label_of(field)}: {LABELS.get(field, {}).get(value, value)}"


def describe_plot(spec: PlotSpec) -> str:
    """Say in a few lines what a grid shows."""
    number = math.prod(map(len, axis_labels(spec).values()))
    lines = [f"X/Y/Z plot of {number} pictures"]
    lines += [f"{name.upper()}: {label_of(axis.field)} = {axis.values.strip()}" for name, axis in spec.axes]
    lines.append(f"Prompt: {spec.base.prompt}")
    if spec.base.negative_prompt:
        lines.append(f"Negative prompt: {spec.base.negative_prompt}")
    return "\n".join(lines)


def grid_sentence(record: GridRecord, name: str) -> str:
    """Say that a picture is a grid, and how it is made again."""
    axes = ", ".join(f"{axis.field}={axis.values.strip()}" for _, axis in record.spec.axes)
    return (
        f"{name} is a grid of {len(record.cells)} pictures ({shown(axes, 200)}), not one picture; "
        f"make it again with `python -m studio xyz --request {name} --out DIR`, or replay its cells one by one"
    )
