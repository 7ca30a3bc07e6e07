"""Builds controls from a model's fields: their type, range, step, label and help are declared once, in the model."""

from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def facts_of(field: FieldInfo) -> dict[str, Any]:
    """Return what a field says about its control: label, group, step, lines, ge, le …"""
    facts: dict[str, Any] = {**(field.json_schema_extra or {})}  # pyright: ignore[reportGeneralTypeIssues]
    for rule in field.metadata:
        for name in ("ge", "le", "multiple_of", "max_length"):
            if getattr(rule, name, None) is not None:
                facts[name] = getattr(rule, name)
    return facts


def fields_of(model: type[BaseModel], group: str) -> list[str]:
    """Return the names of the fields in one group that have a plain control, in the order of their declaration."""
    facts = {name: facts_of(field) for name, field in model.model_fields.items()}
    return [name for name, fact in facts.items() if fact.get("group") == group and fact.get("shown", True)]


def build_control(
    model: type[BaseModel],
    name: str,
    value: Any,
    *,
    choices: list | None = None,
    place: str = "field",
    most: int | None = None,
) -> Component:
    """Build the control of one field.

    Args:
        model: declares the field.
        name: of the field.
        value: to start with.
        choices: make it a dropdown of (label, value) pairs.
        place: begins the control's element id, `field-<name>`; another one for another form of the page.
        most: lowers the range's upper end.
    """
    field = model.model_fields[name]
    facts = facts_of(field)
    common: dict[str, Any] = {
        "label": facts["label"],
        "info": field.description,
        "elem_id": f"{place}-{name}",
        "value": value,
    }
    if choices is None and get_origin(field.annotation) is Literal:
        choices = [(str(choice).capitalize(), choice) for choice in get_args(field.annotation)]
    if choices is not None:
        return gr.Dropdown(choices, filterable=True, **common)
    if field.annotation is bool:
        return gr.Checkbox(**common)
    if "lines" in facts:
        help_text = common.pop("info")
        return gr.Textbox(lines=facts["lines"], max_lines=12, placeholder=help_text, **common)
    if facts.get("ge") == -1:
        return gr.Number(precision=0, minimum=facts["ge"], maximum=facts["le"], step=facts["step"], **common)
    offset = facts.get("shown_offset", 0)
    upper = (facts["le"] if most is None else most) + offset
    return gr.Slider(facts["ge"] + offset, upper, step=facts["step"], **(common | {"value": value + offset}))


def from_page(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Turn the page's values into the model's: counts that people know from one are shifted back."""
    result = dict(values)
    for name in values:
        if offset := facts_of(model.model_fields[name]).get("shown_offset", 0):
            result[name] = values[name] - offset
    return result


def to_page(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `from_page`."""
    return {
        name: value + facts_of(model.model_fields[name]).get("shown_offset", 0)
        if isinstance(value, int) and not isinstance(value, bool)
        else value
        for name, value in values.items()
    }
