"""The controls of a training config: one for each field of any method, shown as far as the chosen method has the field."""

from collections.abc import Mapping
from typing import Any, get_args

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from studio.errors import InvalidRequest
from studio.training.decisions import DERIVED
from studio.training.values import fields_of, from_form, kind_of, limits_of, plain, to_form
from studio.ui.forms import facts_of
from studio.ui.text import TEXT

# What stands outside of "All settings": what a person decides first, and what follows from that.
FIRST = ("model", "dataset")
PROMPTS = (
    *("instance_prompt", "trigger_word", "placeholder_token", "initializer_token", "with_prior_preservation"),
    *("class_prompt", "validation_prompts", "output_name"),
)
GROUPS = ("data", "words", "steps", "prior", "network", "loss", "samples", "speed", "output")
ALL, NAMES = "train-all", "train-prompts"
LINES = {"words": 3, "concepts": 2}


class TrainForm:
    """Builds the controls; `controls` maps the fields of all methods to components, whose element ids are `train-<field>`.

    Args:
        methods: name -> its config class.
    """

    def __init__(self, methods: Mapping[str, type[Any]]) -> None:
        self._methods = methods
        self.fields: dict[str, FieldInfo] = {}
        for config_class in methods.values():
            for name, field in fields_of(config_class).items():
                self.fields.setdefault(name, field)
        self.controls: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        self._told: dict[str, set[str]] = {}  # field -> what its component was told in place of the field's own

    def group_of(self, name: str) -> str:
        """Return the group in which a field is shown."""
        return str(facts_of(self.fields[name])["group"])

    def home_of(self, name: str) -> list[str]:
        """Return the accordions around a field's control, the outer one first."""
        if name in FIRST or name not in self.fields:
            return []
        return [NAMES] if name in PROMPTS else [ALL, f"train-group-{self.group_of(name)}"]

    def build(self, name: str, method: str, value: Any, **more: Any) -> Component:
        """Build the control of a field, for a method.

        Args:
            name: of the field.
            method: decides label, help, and whether it is shown.
            value: plain.
            more: what the component is told besides.
        """
        field = self._field(name, method)
        self._told[name] = set(more)
        kind, empty = kind_of(field)
        common: dict[str, Any] = {
            "label": facts_of(field)["label"],
            "info": self.help_of(field),
            "value": to_form(field, value),
            "elem_id": f"train-{name}",
            "visible": name in fields_of(self._methods[method]) and (method, name) not in DERIVED,
            "min_width": 200,
        } | more
        made: Any
        if "choices" in more:
            made = gr.Dropdown(**common)
        elif kind == "bool":
            made = gr.Checkbox(**common)
        elif kind == "choice":
            choices = [(TEXT["train.none"], None)] * empty + [(str(one), one) for one in get_args(field.annotation)]
            made = gr.Dropdown(choices, **common)
        elif kind in ("int", "float"):
            made = gr.Number(placeholder=TEXT["train.none"] if empty else None, **common)
        else:
            made = gr.Textbox(lines=LINES.get(kind, 1), max_lines=12 if kind in LINES else 1, **common)
        self.controls[name] = made
        return made

    def build_all(self, method: str, values: Mapping[str, Any]) -> None:
        """Build the accordions of all fields that stand nowhere else."""
        placed = {*FIRST, *PROMPTS}
        mine = fields_of(self._methods[method])
        for group in GROUPS:
            names = [name for name in self.fields if name not in placed and self.group_of(name) == group]
            shown = any(name in mine for name in names)
            with gr.Accordion(
                TEXT[f"train.group.{group}"], open=False, visible=shown, elem_id=f"train-group-{group}"
            ) as self._groups[group]:
                for start in range(0, len(names), 3):
                    with gr.Row():
                        for name in names[start : start + 3]:
                            self.build(name, method, values.get(name, self.fields[name].default))

    @property
    def outputs(self) -> list[Any]:
        """The components that `updates` fills, in order."""
        return [*self.controls.values(), *self._groups.values()]

    def updates(self, method: str, values: Mapping[str, Any]) -> list[Any]:
        """Return an update for each of `outputs`: the method's fields are shown with these plain values."""
        mine = fields_of(self._methods[method])
        made: list[Any] = []
        for name in self.controls:
            field = mine.get(name)
            if field is None or (method, name) in DERIVED:
                made.append(gr.update(visible=False))
                continue
            told = {"label": facts_of(field)["label"], "info": self.help_of(field)}
            told = {key: text for key, text in told.items() if key not in self._told[name]}
            made.append(gr.update(visible=True, value=to_form(field, values[name]), **told))
        placed = {*FIRST, *PROMPTS}
        groups = {self.group_of(name) for name in mine if name not in placed}
        return [*made, *(gr.update(visible=group in groups) for group in self._groups)]

    def read(self, method: str, shown: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain values of the method's fields.

        Raises:
            InvalidRequest: if what is typed cannot be read as what a field holds.
        """
        fields = fields_of(self._methods[method])
        return {
            name: from_form(name, field, shown[name])
            for name, field in fields.items()
            if name in shown and (method, name) not in DERIVED
        }

    def read_what_can(self, method: str, shown: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain values of those fields that can be read."""
        made = {}
        for name, field in fields_of(self._methods[method]).items():
            if (method, name) in DERIVED:
                continue
            try:
                made[name] = plain(name, field, from_form(name, field, shown[name]))
            except (InvalidRequest, KeyError):
                continue
        return made

    def _field(self, name: str, method: str) -> FieldInfo:
        return fields_of(self._methods[method]).get(name, self.fields[name])

    @staticmethod
    def help_of(field: FieldInfo) -> str:
        """Return a field's help, with what it takes."""
        kind, empty = kind_of(field)
        limits = [limits_of(field)] if kind in ("int", "float") else []
        ways = [TEXT[f"train.type.{kind}"]] if kind in ("words", "numbers", "wholes", "pairs", "concepts") else []
        more = "; ".join(filter(None, [*limits, *ways, TEXT["train.empty"] if empty else ""]))
        return f"{field.description} {more[:1].upper()}{more[1:]}." if more else str(field.description)
