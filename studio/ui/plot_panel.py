"""X/Y/Z plot in the Tools tab: three axes over the form's settings; what was started lives in plots.js."""

import json
import logging
import math
from typing import Any

import gradio as gr

from studio.errors import InvalidRequest, StudioError
from studio.plots import (
    AXES,
    CELLS_MAX,
    CELLS_MAX_PUBLIC,
    Axis,
    PlotSpec,
    check_number,
    example,
    plot_fields,
    read_values,
    shifted,
)
from studio.ui.generate_tab import GenerateTab
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.units import IMAGE_FIELDS

logger = logging.getLogger(__name__)

FRAME = """
<div id="sp-problem" class="st-problem" role="alert"></div>
<div id="sp-list"></div>
<div id="sp-grid"></div>
"""
SUGGESTED = ("guidance_scale", "seed", "")  # what the three dropdowns begin with


class PlotPanel:
    """Builds the section.

    Args:
        services: what the handlers work on.
        generate: the form whose settings are the base.
    """

    def __init__(self, services: Services, generate: GenerateTab) -> None:
        self._services, self._generate = services, generate

    def build(self, tools: gr.Tab, section: gr.Tab) -> None:
        """Build the tool, which stands in `section` of `tools`, and bind its events."""
        fields = [(TEXT["plot.nothing"], "")]
        fields += [(label, name) for name, label in plot_fields().items() if name not in IMAGE_FIELDS]
        rows: dict[str, Any] = {}
        gr.Markdown(TEXT["plot.help"], elem_classes="st-quiet")
        for name, field in zip(AXES, SUGGESTED, strict=True):
            with gr.Row(elem_classes="sp-axis"):
                label = TEXT[f"plot.{name}"]
                rows[f"{name}_field"] = gr.Dropdown(
                    fields,
                    value=field,
                    label=label,
                    filterable=True,
                    scale=2,
                    min_width=150,
                    elem_id=f"field-{name}",
                )
                rows[f"{name}_values"] = gr.Textbox(
                    label=TEXT["plot.values"],
                    placeholder=placeholder(field),
                    scale=4,
                    min_width=200,
                    elem_id=f"sp-values-{name}",
                )
        count = gr.Markdown(TEXT["plot.count.none"], elem_id="sp-count", elem_classes="st-quiet")
        start = gr.Button(TEXT["plot.start"], variant="primary", elem_id="sp-start")
        result = gr.Textbox(visible="hidden")
        gr.HTML(FRAME, padding=False)
        for event in (tools.select, section.select):  # the frame is in the document from then on
            event(None, js="() => { setTimeout(() => studio.plots.draw(), 50); }", api_visibility="private")
        self._bind(rows, count, start, result)

    def _bind(self, rows: dict[str, Any], count: Any, start: Any, result: Any) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        for name in AXES:
            field, values = rows[f"{name}_field"], rows[f"{name}_values"]
            field.input(lambda chosen: gr.update(placeholder=placeholder(chosen)), [field], [values], **private)
        gr.on(
            [box.change for box in rows.values()],
            self.count,
            inputs_kwargs=rows,
            outputs=[count],
            trigger_mode="always_last",
            **private,
        )
        start.click(self.start, inputs_kwargs=self._generate.inputs | rows, outputs=[result], **private).success(
            None, inputs=[result], js="(text) => { studio.plots.started(text); }", api_visibility="private"
        )

    @property
    def _most(self) -> int:
        return CELLS_MAX_PUBLIC if self._services.public else CELLS_MAX

    def count(self, **rows: Any) -> str:
        """Say how many pictures the axes make, or what is wrong with them."""
        try:
            axes = axes_of(rows)
            numbers = [len(read_values(name, axis)) for name, axis in axes.items()]
            check_number(math.prod(numbers), self._most)
        except StudioError as error:
            return str(error)
        if not numbers:
            return TEXT["plot.count.none"]
        product = " × ".join(map(str, numbers))
        return TEXT["plot.count"].format(product=product, number=math.prod(numbers))

    def start(self, request: gr.Request, **values: Any) -> str:
        """Queue the cells; return JSON for the page: {"plot"} or {"error"}."""
        rows = {key: values.pop(key) for name in AXES for key in (f"{name}_field", f"{name}_values")}
        try:
            axes = axes_of(rows)
            if not axes:
                raise InvalidRequest("x", TEXT["plot.none"])
            base = self._generate.wanted(values)
            owner = self._services.owner(request.headers)
            plot = self._services.plotter.begin(PlotSpec(base=base, **axes), owner, limit=self._most)
        except StudioError as error:
            return json.dumps({"error": str(error)})
        except Exception:  # a process boundary: the page shall hear of it, and go on
            logger.exception("plot")
            return json.dumps({"error": "This is a fault in Studio; the log has the details."})
        return json.dumps({"plot": plot.id})


def axes_of(rows: dict[str, Any]) -> dict[str, Axis]:
    """Return the axes that the page's rows name; a row without field or values is left out.

    Raises:
        InvalidRequest: if a value cannot be read.
    """
    filled = [(name, rows[f"{name}_field"], rows[f"{name}_values"] or "") for name in AXES]
    return {
        name: shifted(name, Axis(field=field, values=values))
        for name, field, values in filled
        if field and values.strip()
    }


def placeholder(field: str) -> str:
    """Return what an empty values box shows."""
    return TEXT["plot.example"].format(example=example(field)) if field in plot_fields() else ""
