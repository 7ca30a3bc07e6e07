"""The Control accordion: three units, each a picture to follow, how it is read, and the ControlNet or adapter that follows it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from studio.errors import InvalidRequest, StudioError
from studio.families import FAMILIES
from studio.fitting import unit_problem
from studio.parts import KINDS, UNIT_KINDS, shape_problem
from studio.preprocessors import PREPROCESSORS, weights_present
from studio.preprocessors import option_values as checked
from studio.store.blobs import BlobStore, encode
from studio.tools import PreprocessCall
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.units import MODE_LABELS, UNITS_MAX

OPTIONS = 2  # numbers that a preprocessor shows
USUAL: dict[str, Any] = {
    "on": False,
    "image": None,
    "more": None,
    "model": None,
    "preprocessor": "none",
    "pixel_perfect": True,
    "resolution": 512,
    "option0": 0,
    "option1": 0,
    "weight": 1.0,
    "start": 0.0,
    "end": 1.0,
    "mode": "balanced",
}
FIELD_OF = {kind: field for field, kind in UNIT_KINDS.items()}


class ControlPanel:
    """Builds the accordion; `inputs` are all its components by name (`unit0_weight`).

    Args:
        services: what the handlers work on.
        blobs: keeps the pictures that are submitted.
    """

    def __init__(self, services: Services, blobs: BlobStore) -> None:
        self._services, self._blobs = services, blobs
        self.inputs: dict[str, Any] = {}
        self._looks: list[tuple[list[Any], Any, Any]] = []

    @property
    def usual(self) -> dict[str, Any]:
        """What tells that no unit is on, by the saved form's names."""
        return {f"unit{place}_on": False for place in range(UNITS_MAX)}

    @property
    def saved(self) -> dict[str, Any]:
        """The components that a reload of the page keeps."""
        return {name: box for name, box in self.inputs.items() if not name.endswith(("_image", "_more"))}

    def build(self, model: str) -> None:
        """Build the accordion for a model."""
        choices, note = self.choices(model)
        with gr.Accordion(TEXT["group.control"], open=False, elem_id="group-control"):
            gr.Markdown(TEXT["control.help"], elem_classes="st-quiet")
            self._note = gr.Markdown(note, elem_classes="st-quiet", visible=bool(note))
            with gr.Tabs():
                for place in range(UNITS_MAX):
                    with gr.Tab(TEXT["control.unit"].format(number=place + 1), elem_id=f"field-unit{place}"):
                        self._build_unit(place, choices)

    def _build_unit(self, place: int, choices: list[tuple[str, str]]) -> None:
        made: dict[str, Any] = {"on": gr.Checkbox(False, label=TEXT["control.on"], info=TEXT["control.on.help"])}
        with gr.Row():
            with gr.Column(min_width=180):
                made["image"] = gr.Image(
                    type="filepath", format="png", image_mode=None, sources=["upload", "clipboard"],
                    label=TEXT["control.image"], height=200, elem_id=f"field-unit{place}-image",
                )  # fmt: skip
            with gr.Column(min_width=180):
                preview = gr.HTML(f'<div class="st-map st-quiet">{TEXT["control.map"]}</div>', padding=False)
                look = gr.Button(TEXT["control.preview"], size="sm")
        made["model"] = gr.Dropdown(
            choices, value=None, label=TEXT["control.model"], info=TEXT["control.model.help"], allow_custom_value=True,
            elem_id=f"field-unit{place}-model",
        )  # fmt: skip
        with gr.Row():
            made["preprocessor"] = gr.Dropdown(
                self._preprocessors(), value="none", label="Preprocessor", info=TEXT["control.preprocessor.help"],
                elem_id=f"field-unit{place}-preprocessor",
            )  # fmt: skip
            made["pixel_perfect"] = gr.Checkbox(True, label="Pixel perfect", info=TEXT["control.pixel.help"])
        made["resolution"] = gr.Slider(64, 2048, 512, step=8, label="Preprocessor resolution", visible=False)
        with gr.Row():
            for number in range(OPTIONS):
                made[f"option{number}"] = gr.Number(
                    0, label="Option", visible=False
                )  # its range is checked with the request
        with gr.Row():
            made["weight"] = gr.Slider(0, 2, 1.0, step=0.05, label="Control weight")
            made["start"] = gr.Slider(0, 1, 0.0, step=0.05, label="Starting control step")
            made["end"] = gr.Slider(0, 1, 1.0, step=0.05, label="Ending control step")
        made["mode"] = gr.Radio(
            [(label, mode) for mode, label in MODE_LABELS.items()], value="balanced", label="Control mode"
        )
        made["more"] = gr.File(
            file_count="multiple", type="filepath", label=TEXT["control.more"], visible=False, height=120
        )
        self.inputs |= {f"unit{place}_{name}": box for name, box in made.items()}
        self._bind_unit(made, look, preview)

    def _bind_unit(self, made: dict[str, Any], look: Any, preview: Any) -> None:
        private = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        options = [made[f"option{number}"] for number in range(OPTIONS)]
        made["preprocessor"].change(option_sliders, [made["preprocessor"]], options, **private)
        made["preprocessor"].input(option_values, [made["preprocessor"]], options, **private)
        made["pixel_perfect"].change(
            lambda perfect: gr.update(visible=not perfect), [made["pixel_perfect"]], [made["resolution"]], **private
        )
        made["model"].input(
            self.suggest, [made["model"], made["preprocessor"]], [made["preprocessor"], *options], **private
        )
        made["model"].change(
            shown_for, [made["model"]], [made["mode"], made["start"], made["end"], made["more"]], **private
        )
        made["image"].input(lambda path: bool(path), [made["image"]], [made["on"]], **private)
        names = ("image", "preprocessor", "pixel_perfect", "resolution", "option0", "option1")
        self._looks.append(([made[name] for name in names], look, preview))

    def bind(self, size: list[Any], editor: Any, start_of: Callable[[Any], Image.Image | None]) -> None:
        """Bind the Preview buttons.

        Args:
            size: the form's width, height and resize mode.
            editor: holds the form's own picture, which a unit without one follows.
            start_of: returns that picture from the editor's value.
        """

        def preview(*values: Any) -> str:
            return self.preview(start_of(values[0]), *values[1:])

        for boxes, look, shown in self._looks:
            look.click(preview, [editor, *size, *boxes], [shown], api_visibility="private", concurrency_limit=2)

    def _preprocessors(self) -> list[tuple[str, str]]:
        folder = self._services.settings.annotators
        return [
            (one.title if weights_present(name, folder) else f"{one.title} ({TEXT['control.no_weights']})", name)
            for name, one in PREPROCESSORS.items()
        ]

    def choices(self, model: str) -> tuple[list[tuple[str, str]], str]:
        """Return the parts that fit a model as (label, kind:id), and a sentence about those that do not."""
        try:
            found = self._services.library.get(model)
        except StudioError:
            return [], ""
        fitting, others = [], []
        for field, kind in UNIT_KINDS.items():
            barred = unit_problem(found.family, found.kind, field)
            for part in self._services.library.parts.parts(kind):
                why = barred or part.problem or shape_problem(part, found.shape)
                fitting += [] if why else [(f"{part.id} · {KINDS[kind].title}", f"{kind}:{part.id}")]
                others += [f"{part.id}: {why}"] if why else []
        if not fitting and not others:
            return [], TEXT["control.none"]
        notes = (
            [TEXT["control.others"].format(others="; ".join(others))] if others and not self._services.public else []
        )
        facts = FAMILIES[found.family]
        notes += [
            TEXT["control.no_mode"].format(mode=label, family=facts.title)
            for mode, label in MODE_LABELS.items()
            if fitting and mode not in facts.control_modes
        ]
        return fitting, " ".join(notes)

    def use_model(self, model: str, *chosen: str | None) -> list[Any]:
        """Offer what fits a model; return an update for the note and for each unit's model, whose choice stays if it fits."""
        choices, note = self.choices(model)
        values = {value for _, value in choices}
        boxes = [gr.update(choices=choices, value=one if one in values else None) for one in chosen]
        return [gr.update(value=note, visible=bool(note)), *boxes]

    def offer(self, model: str) -> list[Any]:
        """Offer what fits a model, and leave every choice as it is: the form is being restored."""
        choices, note = self.choices(model)
        return [gr.update(value=note, visible=bool(note)), *(gr.update(choices=choices) for _ in range(UNITS_MAX))]

    @property
    def models(self) -> list[Any]:
        """The units' model dropdowns."""
        return [self.inputs[f"unit{place}_model"] for place in range(UNITS_MAX)]

    @property
    def targets(self) -> list[Any]:
        """What `use_model` updates."""
        return [self._note, *self.models]

    def suggest(self, chosen: str | None, current: str) -> list[Any]:
        """Return the preprocessor whose pictures a ControlNet was trained on, and its numbers; a choice that was made stays."""
        kind, _, name = (chosen or "").partition(":")
        found = {part.id: part for part in self._services.library.parts.parts(kind)} if kind in KINDS else {}
        told = found[name].preprocessor if name in found else ""
        if current != "none" or told not in PREPROCESSORS:
            return [gr.skip()] * (1 + OPTIONS)
        return [told, *option_values(told)]

    def preview(self, start: Image.Image | None, *values: Any) -> str:
        """Return the preprocessor's result as HTML; without a picture of its own, a unit follows `start`."""
        width, height, resize_mode, image, preprocessor, perfect, resolution, *options = values
        given = Path(image) if image else encode(start) if start else None
        if given is None:
            raise gr.Error(TEXT["control.no_image"], print_exception=False)
        try:
            call = PreprocessCall(
                image=self._blobs.add(given, "image"),
                preprocessor=preprocessor,
                resolution=None if perfect else int(resolution),
                options=checked(preprocessor, options_of(preprocessor, options)),
                width=int(width),
                height=int(height),
                resize_mode=resize_mode,
            )
            answer = self._services.dispatcher.ask(call)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return f'<div class="st-map"><img src="studio/tool/{answer.pictures["map"]}" alt="{TEXT["control.preview"]}"></div>'

    def taken(self, values: dict[str, Any]) -> dict[str, Any]:
        """Store the units' pictures and return the request's fields.

        Raises:
            StudioError: if a picture cannot be used, or a unit has no model.
        """
        fields: dict[str, list[dict[str, Any]]] = {}
        for place, kind in active_units(values).items():
            unit = {name: values.get(f"unit{place}_{name}", usual) for name, usual in USUAL.items()}
            name = (unit["model"] or "").partition(":")[2]
            if not name:
                raise InvalidRequest(f"unit{place}", TEXT["control.no_model"].format(number=place + 1))
            pictures = [path for path in (unit["image"], *(unit["more"] or [])) if path]
            stored = [self._blobs.add(Path(path), f"unit {place + 1}") for path in pictures]
            entry = ip_entry(name, unit, stored) if kind == "ip_adapter" else drawn_entry(kind, name, unit, stored)
            fields.setdefault(FIELD_OF[kind], []).append(entry)
        return fields

    def box_of(self, field: str, values: dict[str, Any]) -> str:
        """Return where the page shows what is wrong with a field: units' fields (`controls.1.model`) belong to a unit's tab."""
        name, _, rest = field.partition(".")
        if name not in UNIT_KINDS or not rest:
            return field
        places = [place for place, kind in active_units(values).items() if kind == UNIT_KINDS[name]]
        return f"unit{places[int(rest.partition('.')[0])]}"

    def shown(self, values: dict[str, Any]) -> tuple[list[Any], list[str]]:
        """Return a value for each of `inputs` that shows a request's units, and notes about what is gone."""
        units = [(field, unit) for field in UNIT_KINDS for unit in values.get(field, ())]
        updates, notes = [], []
        if len(units) > UNITS_MAX:
            notes.append(TEXT["control.units.lost"].format(number=len(units), most=UNITS_MAX))
        for place in range(UNITS_MAX):
            unit = USUAL | {f"option{number}": gr.skip() for number in range(OPTIONS)}
            if place < len(units):
                unit |= self._unit_values(*units[place], notes)
            updates += [unit[name.partition("_")[2]] for name in self.inputs if name.startswith(f"unit{place}_")]
        return updates, notes

    def _unit_values(self, field: str, unit: dict[str, Any], notes: list[str]) -> dict[str, Any]:
        """Turn one unit of a request into values of the form."""
        pictures = unit.get("images") or ([unit["image"]] if unit.get("image") else [])
        image = None
        try:
            image = self._blobs.open(pictures[0], f"{field}.image") if pictures else None
        except StudioError as error:
            notes.append(str(error))
        if len(pictures) > 1:
            notes.append(TEXT["control.more.lost"])
        preprocessor = unit.get("preprocessor", "none")
        given = list(checked(preprocessor, unit.get("options", {})).values())
        return {
            "on": True,
            "image": image,
            "model": f"{UNIT_KINDS[field]}:{unit['model']}",
            "preprocessor": preprocessor,
            "pixel_perfect": unit.get("resolution") is None,
            "resolution": unit.get("resolution") or USUAL["resolution"],
            "weight": unit.get("weight", unit.get("scale", 1.0)),
            "mode": unit.get("mode", "balanced"),
            **{name: unit[name] for name in ("start", "end") if name in unit},
            **{f"option{number}": value for number, value in enumerate(given[:OPTIONS])},
        }


def active_units(values: dict[str, Any]) -> dict[int, str]:
    """Return the kind of each unit that is switched on, by its place; "" where no model is chosen."""
    on = [place for place in range(UNITS_MAX) if values.get(f"unit{place}_on")]
    return {place: (values.get(f"unit{place}_model") or "").partition(":")[0] for place in on}


def options_of(preprocessor: str, values: list[Any]) -> dict[str, float]:
    """Name a preprocessor's numbers."""
    return {option.name: value for option, value in zip(PREPROCESSORS[preprocessor].options, values, strict=False)}


def option_sliders(preprocessor: str) -> list[Any]:
    """Show the sliders that a preprocessor has; their values stay, because a form that is restored has its own."""
    options = PREPROCESSORS[preprocessor].options[:OPTIONS]
    updates = [
        gr.update(label=one.label, info=f"{one.minimum:g} to {one.maximum:.10g}", visible=True) for one in options
    ]
    return updates + [gr.update(visible=False)] * (OPTIONS - len(options))


def option_values(preprocessor: str) -> list[Any]:
    """Return a preprocessor's usual numbers."""
    values: list[Any] = [one.default for one in PREPROCESSORS[preprocessor].options[:OPTIONS]]
    return values + [gr.skip()] * (OPTIONS - len(values))


def shown_for(chosen: str | None) -> list[Any]:
    """Show what a kind of unit has: an adapter no mode, an IP-Adapter no steps but more pictures."""
    kind = (chosen or "controlnet").partition(":")[0]
    steps = gr.update(visible=kind != "ip_adapter")
    return [gr.update(visible=kind == "controlnet"), steps, steps, gr.update(visible=kind == "ip_adapter")]


def ip_entry(name: str, unit: dict[str, Any], stored: list[str]) -> dict[str, Any]:
    """Return an IP-Adapter unit as plain values."""
    return {"model": name, "images": stored, "scale": unit["weight"]}


def drawn_entry(kind: str, name: str, unit: dict[str, Any], stored: list[str]) -> dict[str, Any]:
    """Return a ControlNet or T2I-Adapter unit as plain values."""
    entry = {
        "model": name,
        "image": stored[0] if stored else None,
        "preprocessor": unit["preprocessor"],
        "resolution": None if unit["pixel_perfect"] else int(unit["resolution"]),
        "options": options_of(unit["preprocessor"], [unit[f"option{number}"] for number in range(OPTIONS)]),
        **{field: unit[field] for field in ("weight", "start", "end")},
    }
    return entry | ({"mode": unit["mode"]} if kind == "controlnet" else {})
