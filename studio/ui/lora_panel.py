"""The LoRA accordion: what is applied and how strongly, with the words that call each."""

import html
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.loras import LoraSpec, tag_of
from studio.parts import shape_problem
from studio.store.lora_facts import LoraFacts, read_lora_facts
from studio.ui.services import Services
from studio.ui.text import TEXT

SLOTS = 6
WEIGHT_SHOWN = 2.0  # a slider's range; a request may go further


class LoraPanel:
    """Builds the accordion; `inputs` are all its components by name (`lora0_weight`).

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.inputs: dict[str, Any] = {}
        self._rows: list[Any] = []

    @property
    def usual(self) -> dict[str, Any]:
        """What tells that none is on, by the saved form's names."""
        return {f"lora{place}_name": "" for place in range(SLOTS)}

    @property
    def names(self) -> list[Any]:
        """The dropdowns."""
        return [self.inputs[f"lora{place}_name"] for place in range(SLOTS)]

    def build(self, model: str) -> None:
        """Build the accordion for a model."""
        choices, note = self.choices(model)
        with gr.Accordion(TEXT["group.lora"], open=False, elem_id="group-lora"):
            gr.Markdown(TEXT["lora.help"], elem_classes="st-quiet")
            self._note = gr.Markdown(note, elem_classes="st-quiet", visible=bool(note))
            for place in range(SLOTS):
                with gr.Row(visible=place == 0, elem_id=f"field-lora{place}") as row:
                    self.inputs[f"lora{place}_on"] = gr.Checkbox(
                        True, label=TEXT["lora.on"], container=False, scale=0, min_width=60
                    )
                    self.inputs[f"lora{place}_name"] = gr.Dropdown(
                        choices,
                        value="",
                        label=f"LoRA {place + 1}",
                        scale=3,
                        min_width=160,
                        elem_id=f"lora{place}-name",
                        allow_custom_value=True,
                    )
                    self.inputs[f"lora{place}_weight"] = gr.Slider(
                        -WEIGHT_SHOWN, WEIGHT_SHOWN, 1.0, step=0.05, label=TEXT["lora.weight"], scale=3, min_width=160
                    )
                self._rows.append(row)
            self._card = gr.HTML("", padding=False, elem_id="st-lora-card")
            self._words = gr.Button(TEXT["lora.words"], size="sm", visible=False, elem_id="st-lora-words")

    def bind(self, page: gr.Blocks, model: Any, prompt: Any) -> None:
        """Bind the panel's events; a page load keeps the choices, because the form is being restored."""
        private = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        for place, name in enumerate(self.names):
            name.input(self.suggest, [name], [self.inputs[f"lora{place}_weight"]], **private)
        gr.on(
            [name.change for name in self.names],
            self.shown,
            self.names,
            [*self._rows, self._card, self._words],
            trigger_mode="always_last",
            **private,
        )
        model.change(self.fitting, [model, *self.names], [self._note, *self.names], **private)
        page.load(self.offer, [model], [self._note, *self.names], **private)
        self._words.click(self.add_words, [prompt, *self.names], [prompt], **private)

    def choices(self, model: str) -> tuple[list[tuple[str, str]], str]:
        """Return the LoRA that fit a model as (label, id), and a sentence about the others."""
        try:
            shape = self._services.library.get(model).shape
        except StudioError:
            return [(TEXT["lora.none"], "")], ""
        fitting, others = [(TEXT["lora.none"], "")], []
        for part in self._services.library.parts.parts("lora"):
            why = part.problem or shape_problem(part, shape)
            if why:
                others.append(f"{part.id}: {why}")
            else:
                fitting.append((part.id, part.id))
        if len(fitting) == 1 and not others:
            return fitting, TEXT["lora.empty"]
        told = others and not self._services.public
        return fitting, TEXT["control.others"].format(others="; ".join(others)) if told else ""

    def fitting(self, model: str, *chosen: str) -> list[Any]:
        """Offer what fits a model; a choice that does not is taken back."""
        choices, note = self.choices(model)
        known = {value for _, value in choices}
        boxes = [gr.update(choices=choices, value=one if one in known else "") for one in chosen]
        return [gr.update(value=note, visible=bool(note)), *boxes]

    def offer(self, model: str) -> list[Any]:
        """Offer what fits a model, and leave every choice as it is."""
        choices, note = self.choices(model)
        return [gr.update(value=note, visible=bool(note)), *(gr.update(choices=choices) for _ in range(SLOTS))]

    def _known(self, chosen: list[str]) -> dict[str, LoraFacts]:
        """Return what the files of the chosen ones say, by id."""
        parts = {part.id: part for part in self._services.library.parts.parts("lora") if not part.problem}
        return {name: read_lora_facts(parts[name].path) for name in chosen if name in parts}

    def suggest(self, name: str) -> Any:
        """Return the weight that a LoRA's maker recommends."""
        facts = self._known([name]).get(name)
        told = facts.recommended_weight if facts else None
        return told if told is not None and abs(told) <= WEIGHT_SHOWN else 1.0

    def shown(self, *chosen: str) -> list[Any]:
        """Show a row more than are in use, and what is known of the chosen ones."""
        used = max((place for place, name in enumerate(chosen) if name), default=-1)
        known = self._known([name for name in chosen if name])
        cards = "".join(card(name, facts) for name, facts in known.items())
        words = any(facts.trigger_words for facts in known.values())
        return [*(gr.update(visible=place <= used + 1) for place in range(SLOTS)), cards, gr.update(visible=words)]

    def add_words(self, prompt: str, *chosen: str) -> str:
        """Append the trigger words that the prompt does not have yet."""
        known = self._known([name for name in chosen if name]).values()
        missing = [word for facts in known for word in facts.trigger_words if word.lower() not in prompt.lower()]
        return ", ".join(filter(None, [prompt.strip().rstrip(","), *dict.fromkeys(missing)]))

    def taken(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the request's field from the page's values."""
        return {
            "loras": [
                {"name": values[f"lora{place}_name"], "weight": values[f"lora{place}_weight"]}
                for place in _used(values)
            ]
        }

    def box_of(self, field: str, values: dict[str, Any]) -> str:
        """Return where the page shows what is wrong with a field: `loras.1.name` belongs to a row."""
        name, _, rest = field.partition(".")
        if name != "loras" or not rest:
            return field
        used, number = _used(values), int(rest.partition(".")[0])
        return f"lora{used[number]}" if number < len(used) else "prompt"  # its tags come after the rows

    def filled(self, loras: list[dict[str, Any]]) -> tuple[list[Any], str, list[str]]:
        """Show a request's LoRA.

        Returns:
            A value for each of `inputs`; what the rows cannot say, as tags for the prompt; notes about what is gone.
        """
        specs = [LoraSpec.model_validate(one) for one in loras]
        known = {part.id for part in self._services.library.parts.parts("lora") if not part.problem}
        notes = [TEXT["lora.missing"].format(name=spec.name) for spec in specs if spec.name not in known]
        here = [spec for spec in specs if spec.name in known]
        plain = [spec for spec in here if spec.text_encoder_weight is None and abs(spec.weight) <= WEIGHT_SHOWN][:SLOTS]
        rows = [(True, spec.name, spec.weight) for spec in plain] + [(True, "", 1.0)] * (SLOTS - len(plain))
        return (
            [value for row in rows for value in row],
            " ".join(tag_of(spec) for spec in here if spec not in plain),
            notes,
        )


def _used(values: dict[str, Any]) -> list[int]:
    """Return the places of the rows that are on and have a LoRA."""
    return [place for place in range(SLOTS) if values.get(f"lora{place}_name") and values.get(f"lora{place}_on")]


def card(name: str, facts: LoraFacts) -> str:
    """Return what is known of a LoRA as HTML; everything in it comes from a file that a stranger may have made."""
    said = {
        "Trigger words": ", ".join(facts.trigger_words),
        "Rank": facts.rank,
        "Trained on": facts.base,
        "Trained for": facts.trained,
        "": facts.notes[:300],
    }
    parts = [
        f"{label}: {html.escape(str(value))}" if label else html.escape(str(value))
        for label, value in said.items()
        if value
    ]
    return f'<div class="st-lora"><b>{html.escape(name)}</b> · {" · ".join(parts)}</div>'
