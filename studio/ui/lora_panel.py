"""The LoRA accordion: what is applied and how strongly, with the words that call each."""

import html
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from studio.errors import InvalidRequest, StudioError
from studio.loras import PLAIN, LoraSpec, tag_of
from studio.parts import shape_problem
from studio.store.lora_cards import write_cover, write_notes
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
                    self.inputs[f"lora{place}_blocks"] = gr.Textbox(
                        "",
                        label=TEXT["lora.blocks"],
                        placeholder=TEXT["lora.blocks.help"],
                        max_lines=1,
                        scale=2,
                        min_width=160,
                    )
                self._rows.append(row)
            self._card = gr.HTML("", padding=False, elem_id="st-lora-card")
            self._words = gr.Button(TEXT["lora.words"], size="sm", visible=False, elem_id="st-lora-words")
            if not self._services.public:
                self._build_card()

    def _build_card(self) -> None:
        """Build what changes the card of the first LoRA."""
        with gr.Accordion(TEXT["lora.card"], open=False, elem_id="st-lora-edit"):
            self._notes = gr.Textbox(label=TEXT["lora.notes"], info=TEXT["lora.notes.help"], lines=2)
            with gr.Row():
                self._save = gr.Button(TEXT["lora.notes.save"], size="sm", min_width=120)
                self._cover = gr.Button(TEXT["lora.cover"], size="sm", min_width=200)
            self._picture = gr.Textbox(visible="hidden")

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
        if not self._services.public:
            first = self.names[0]
            first.change(self.notes_of, [first], [self._notes], **private)
            self._save.click(self.save_notes, [first, self._notes, *self.names], [self._card], **private)
            self._cover.click(
                self.save_cover,
                [first, self._picture, *self.names],
                [self._card],
                js="(first, _, ...names) => [first, studio.shown() ?? '', ...names]",
                **private,
            )

    def _file(self, name: str) -> Path:
        """Return where a LoRA lies; raises gr.Error if there is none."""
        try:
            return self._services.library.parts.get("lora", name, "LoRA 1").path
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def notes_of(self, name: str) -> str:
        """Return the notes on a LoRA."""
        facts = self._known([name]).get(name)
        return facts.notes if facts else ""

    def save_notes(self, name: str, notes: str, *chosen: str) -> str:
        """Keep the notes beside the file."""
        path = self._file(name)
        try:
            write_notes(path, notes)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        gr.Info(TEXT["lora.notes.saved"].format(name=name))
        return self.cards(*chosen)

    def save_cover(self, name: str, image_id: str, *chosen: str) -> str:
        """Make a picture of the gallery the cover."""
        path = self._file(name)
        if not image_id:
            raise gr.Error(TEXT["lora.cover.none"], print_exception=False)
        try:
            write_cover(path, self._services.gallery.path(image_id).read_bytes())
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        gr.Info(TEXT["lora.cover.saved"].format(name=name))
        return self.cards(*chosen)

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
        words = any(facts.trigger_words for facts in known.values())
        return [
            *(gr.update(visible=place <= used + 1) for place in range(SLOTS)),
            self.cards(*chosen),
            gr.update(visible=words),
        ]

    def cards(self, *chosen: str) -> str:
        """Return what is known of the chosen ones as HTML."""
        return "".join(card(name, facts) for name, facts in self._known([name for name in chosen if name]).items())

    def add_words(self, prompt: str, *chosen: str) -> str:
        """Append the trigger words that the prompt does not have yet."""
        known = self._known([name for name in chosen if name]).values()
        missing = [word for facts in known for word in facts.trigger_words if word.lower() not in prompt.lower()]
        return ", ".join(filter(None, [prompt.strip().rstrip(","), *dict.fromkeys(missing)]))

    def taken(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the request's field from the page's values."""
        return {
            "loras": [
                {
                    "name": values[f"lora{place}_name"],
                    "weight": values[f"lora{place}_weight"],
                    "blocks": numbers_of(values.get(f"lora{place}_blocks") or "", f"loras.{number}.blocks"),
                }
                for number, place in enumerate(_used(values))
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
        rows = [(True, one.name, one.weight, ", ".join(f"{number:g}" for number in one.blocks)) for one in plain]
        rows += [(True, "", 1.0, "")] * (SLOTS - len(plain))
        return (
            [value for row in rows for value in row],
            " ".join(tag_of(spec) for spec in here if spec not in plain),
            notes,
        )


def _used(values: dict[str, Any]) -> list[int]:
    """Return the places of the rows that are on and have a LoRA."""
    return [place for place in range(SLOTS) if values.get(f"lora{place}_name") and values.get(f"lora{place}_on")]


def numbers_of(text: str, field: str) -> tuple[float, ...]:
    """Read block weights.

    Raises:
        InvalidRequest: if they are no numbers between commas.
    """
    try:
        return tuple(float(number) for number in text.split(",")) if text.strip() else ()
    except ValueError:
        raise InvalidRequest(field, TEXT["lora.blocks.wrong"].format(text=text[:60])) from None


def card(name: str, facts: LoraFacts) -> str:
    """Return what is known of a LoRA as HTML; everything in it comes from a file that a stranger may have made."""
    said = {
        "Kind": facts.method if facts.method != PLAIN else "",
        "Trigger words": ", ".join(facts.trigger_words),
        "Rank": facts.rank,
        "Weight": "" if facts.recommended_weight is None else f"{facts.recommended_weight:g}",
        "Trained on": facts.base,
        "Trained for": facts.trained,
        "": facts.notes[:300],
    }
    parts = [
        f"{label}: {html.escape(str(value))}" if label else html.escape(str(value))
        for label, value in said.items()
        if value
    ]
    cover = f'<img src="studio/cover/{html.escape(quote(name))}" alt="" loading="lazy">' if facts.cover else ""
    return f'<div class="st-lora">{cover}<b>{html.escape(name)}</b> · {" · ".join(parts)}</div>'
