"""The accordion of kept words: styles to choose, embeddings and wildcards to put into the prompt; and the report's place."""

import html
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.parts import shape_problem
from studio.store.embeddings import embedding_rows
from studio.ui.services import Services
from studio.ui.text import TEXT

SHOWN_MAX = 200


class WordsPanel:
    """Builds the accordion; `inputs` are all its components by name.

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.inputs: dict[str, Any] = {}

    @property
    def usual(self) -> dict[str, Any]:
        """What tells that none is chosen, by the saved form's names."""
        return {"styles": []}

    def report(self, model: str) -> str:
        """Return the place of the prompt report, which the page's script fills, as HTML."""
        return f'<div id="st-report" data-model="{html.escape(model)}" hidden></div>'

    def build(self, model: str) -> None:
        """Build the accordion for a model."""
        with gr.Accordion(TEXT["group.words"], open=False, elem_id="group-words"):
            self.inputs["styles"] = gr.Dropdown(
                self._styles(),
                value=[],
                multiselect=True,
                label=TEXT["styles"],
                info=TEXT["styles.help"],
                elem_id="field-styles",
                allow_custom_value=True,
            )
            self._cards = gr.HTML(self.cards(model), padding=False, elem_id="st-words")

    def bind(self, page: gr.Blocks, model: Any) -> None:
        """Let choices and cards follow the model and the files."""
        private = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        model.change(self.cards, [model], [self._cards], **private)
        page.load(
            lambda chosen: [gr.update(choices=self._styles()), self.cards(chosen)],
            [model],
            [self.inputs["styles"], self._cards],
            **private,
        )

    def _styles(self) -> list[str]:
        """Return the styles; a file that cannot be read is told when one is used."""
        try:
            return list(self._services.library.texts.styles())
        except StudioError:
            return []

    def cards(self, model: str) -> str:
        """Return embeddings and wildcards as buttons that put their names into the prompt, as HTML."""
        library = self._services.library
        try:
            shape, wildcards = library.get(model).shape, list(library.texts.wildcards())
        except StudioError:
            return ""
        parts = library.parts.parts("embedding") if "text_widths" in shape else []
        rows = {row["id"]: row for row in embedding_rows(parts)}
        fitting, others = [], []
        for part in parts:
            if why := part.problem or shape_problem(part, shape):
                others.append(f"{part.id}: {why}")
            else:
                number = rows[part.id]["vectors"]
                fitting.append(_button(part.names[0], TEXT["embeddings.card"].format(number=number)))
        chips = [_button(f"__{name}__", TEXT["wildcards.card"]) for name in wildcards]
        told = [_row(TEXT["embeddings"], fitting or [TEXT["embeddings.empty"]])]
        if others and not self._services.public:
            told.append(
                f'<p class="st-quiet">{html.escape(TEXT["control.others"].format(others="; ".join(others)))}</p>'
            )
        return "".join([*told, _row(TEXT["wildcards"], chips or [TEXT["wildcards.empty"]])])

    def taken(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the request's field from the page's values."""
        return {"styles": values.get("styles") or []}

    def box_of(self, field: str, values: dict[str, Any]) -> str:
        """Return where the page shows what is wrong with a field: any of the styles belongs to their box."""
        return "styles" if field.partition(".")[0] == "styles" else field


def _button(text: str, title: str) -> str:
    """Return a button that `prompts.js` lets insert its text; names come from files that a stranger may have made."""
    plain = html.escape(text)
    return (
        f'<button type="button" class="st-button" data-insert="{plain}" title="{html.escape(title)}">{plain}</button>'
    )


def _row(title: str, pieces: list[str]) -> str:
    more = f'<span class="st-quiet">+ {len(pieces) - SHOWN_MAX}</span>' if len(pieces) > SHOWN_MAX else ""
    return f'<div class="st-panel-title">{title}</div><div class="st-row st-quiet">{"".join(pieces[:SHOWN_MAX])}{more}</div>'
