"""The Lab: a panel each for what diffusion does, computed on the model at hand."""

import contextlib
import html
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.lab import PANELS, Film, Findings, Line, Panel, Plot, Table, parse_lab
from studio.store.lab_calls import lab_call, picture_fields
from studio.tools import ToolAnswer
from studio.ui.forms import build_control, facts_of
from studio.ui.generate_tab import GenerateTab
from studio.ui.lab_particles import bind_points, build_points, particles_html
from studio.ui.lab_text import LAB_TEXT, WORDS
from studio.ui.services import Services

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
FORMULAS = [{"left": "$", "right": "$", "display": False}]
HEIGHT = 260  # of a plot, in pixels


class LabTab:
    """Builds the tab.

    Args:
        services: what the handlers work on.
        generate: whose model counts, and whose form takes settings over.
    """

    def __init__(self, services: Services, generate: GenerateTab) -> None:
        self._services, self._generate = services, generate

    def build(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        """Build a panel each and bind their events."""
        gr.Markdown(LAB_TEXT["lab.info"], elem_classes="st-quiet")
        with gr.Tabs(elem_id="st-lab"):
            for name, panel in PANELS.items():
                with gr.Tab(LAB_TEXT[f"lab.panel.{name}"], id=f"lab-{name}"):
                    self._build_panel(name, panel, tabs)
        page.unload(self.leave)

    def _build_panel(self, name: str, panel: Panel, tabs: gr.Tabs) -> None:
        gr.Markdown(LAB_TEXT[f"lab.text.{name}"], latex_delimiters=FORMULAS, elem_classes="lab-text")
        with gr.Row(elem_classes="lab-columns"):
            with gr.Column(scale=2, min_width=280):
                controls = {field: build_setting(name, field) for field in panel.request.model_fields}
                if "drawn" in controls:
                    bind_points(controls["drawn"], controls["shape"])
                with gr.Row():
                    run = gr.Button(LAB_TEXT["lab.run"], variant="primary", elem_id=f"lab-{name}-run", min_width=90)
                    stop = gr.Button(LAB_TEXT["lab.stop"], elem_id=f"lab-{name}-stop", min_width=90)
                if panel.settings:
                    take = gr.Button(LAB_TEXT["lab.take"], elem_id=f"lab-{name}-take")
                status = gr.HTML(elem_id=f"lab-{name}-status", elem_classes="lab-status", padding=False)
            with gr.Column(scale=5, min_width=300):
                empty = f'<div class="st-quiet">{LAB_TEXT["lab.none"]}</div>'
                result = gr.HTML(empty, elem_id=f"lab-{name}-result", padding=False)
                plots = [build_plot(name, plot) for plot in panel.plots]
        taken = gr.State({})  # what the last run found that Generate shall take over
        model = self._generate.controls["model"]
        run.click(
            self._runner(name),
            inputs_kwargs={"model": model, **controls},
            outputs=[status, result, *plots, taken],
            show_progress_on=[status],
            concurrency_limit=2,
            api_visibility="private",
        )
        stop.click(self._stopper(name), **QUIET)
        if panel.settings:
            given: dict[str, Any] = controls | {"taken": taken}
            take.click(
                partial(self.take, name),
                inputs_kwargs=given,
                outputs=[*self._generate.filled, tabs],
                **QUIET,
            )

    def _runner(self, panel: str) -> Any:
        """Return the handler of a panel's Run button; Gradio looks at its own signature."""

        def run(request: gr.Request, progress: gr.Progress = gr.Progress(), **values: Any) -> list[Any]:  # noqa: B008
            return self.run(panel, request, progress, values)

        return run

    def _stopper(self, panel: str) -> Any:
        """Return the handler of a panel's Stop button, made like `_runner`."""

        def stop(request: gr.Request) -> None:
            self.stop(panel, request)

        return stop

    def run(self, panel: str, request: gr.Request, progress: gr.Progress, values: dict[str, Any]) -> list[Any]:
        """Let the device compute, tell how far it is, return what the page shows."""
        try:
            model = values.pop("model")
            given = self._given(panel, values)
            call = lab_call(self._services.library, panel, given, model)
            answer = self._services.dispatcher.ask(
                call, call_id(panel, request), lambda now: progress((now.step, now.steps), unit="")
            )
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        found = Findings.model_validate(answer.values)
        drawn = {plot.name: plot_update(plot) for plot in found.plots}
        plots = (drawn.get(name, gr.update(visible=False)) for name in PANELS[panel].plots)
        return ["", described(found, answer), *plots, found.taken]

    def _given(self, panel: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return a form's values as a panel's, its pictures stored."""
        plain = {name: value for name, value in values.items() if value is not None}
        named = [name for name in picture_fields(panel) if plain.get(name)]
        parse_lab(panel, plain)  # before a picture is stored
        return plain | {name: self._services.gallery.blobs.add(Path(plain[name]), name) for name in named}

    def stop(self, panel: str, request: gr.Request) -> None:
        """End what this page runs in a panel; what it has found so far is shown."""
        self._services.dispatcher.stop_tool(call_id(panel, request))

    def leave(self, request: gr.Request) -> None:
        """End everything that a page runs which was closed."""
        for panel in PANELS:
            self.stop(panel, request)

    def take(self, panel: str, taken: dict[str, Any], **values: Any) -> list[Any]:
        """Put a panel's settings and what its last run found into the Generate tab, whatever else is there stays."""
        settings = PANELS[panel].settings
        assert settings is not None
        try:
            wanted = settings(parse_lab(panel, self._given(panel, values))) | taken
            shown, _ = self._generate.form_values(wanted)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        number = len(self._generate.controls)
        kept = number + 2 if "image" in wanted else number  # the picture and its mask come after the controls
        return [*shown[:kept], *(gr.skip() for _ in shown[kept:]), gr.Tabs(selected="generate")]


def call_id(panel: str, request: gr.Request) -> str:
    """Return the id of what one page runs in one panel."""
    return f"lab-{panel}-{request.session_hash}"


def build_setting(panel: str, name: str) -> Any:
    """Build the control of a panel's setting."""
    request = PANELS[panel].request
    field = request.model_fields[name]
    facts, value = facts_of(field), field.get_default(call_default_factory=True)
    common: dict[str, Any] = {"label": facts["label"], "info": field.description, "elem_id": f"lab-{panel}-{name}"}
    kind = facts.get("kind")
    if kind == "picture":
        gr.Markdown(f"{facts['label']}: {field.description}", elem_classes="st-quiet")
        return gr.Image(
            type="filepath",
            format="png",
            image_mode=None,
            sources=["upload", "clipboard"],
            label=facts["label"],
            elem_id=f"lab-{panel}-{name}",
            height=180,
        )
    if kind == "points":
        return build_points(panel, name, facts["label"], str(field.description))
    if kind == "number":
        return gr.Number(value, precision=0, minimum=facts["ge"], maximum=facts["le"], step=1, **common)
    if kind == "numbers":
        return gr.Textbox(", ".join(f"{one:g}" for one in value), **common)
    if kind == "words":
        return gr.Textbox(", ".join(value), **common)
    if kind == "choices":
        return gr.Dropdown(
            [(word(choice), choice) for choice in facts["choices"]], value=list(value), multiselect=True, **common
        )
    choices = [(WORDS.get(choice, choice), choice) for choice in facts["choices"]] if "choices" in facts else None
    return build_control(request, name, value, choices=choices, place=f"lab-{panel}")


def build_plot(panel: str, name: str) -> Any:
    """Build an empty plot, shown once there are numbers."""
    return gr.LinePlot(
        x="x",
        y="y",
        color="line",
        title=LAB_TEXT[f"lab.plot.{panel}.{name}"],
        color_title="",
        height=HEIGHT,
        visible=False,
        elem_id=f"lab-{panel}-plot-{name}",
        elem_classes="lab-plot",
    )


def plot_update(plot: Plot) -> Any:
    """Return the update that shows a plot; logarithms are drawn as such, because a native plot has no other scale."""
    import pandas as pd  # at the first plot: it takes a third of a second

    rows = [row for line in plot.lines for row in points(line, plot.log)]
    titles = {axis: word(getattr(plot, axis)) for axis in ("x", "y")}
    titles |= {axis: LAB_TEXT["lab.log"].format(name=titles[axis]) for axis in plot.log}
    frame = pd.DataFrame(rows, columns=pd.Index(["x", "y", "line"]))
    return gr.update(value=frame, x_title=titles["x"], y_title=titles["y"], visible=True)


def points(line: Line, log: tuple[str, ...]) -> list[tuple[float, float, str]]:
    """Return a line's points as (x, y, name), without those that have no number."""
    found = []
    for x, y in zip(line.x, line.y, strict=True):
        with contextlib.suppress(ValueError, TypeError):  # no number, or 0 on a logarithmic axis
            found.append(
                (
                    math.log10(x) if "x" in log else x,
                    math.log10(y) if "y" in log else float(y),  # pyright: ignore[reportArgumentType]
                    word(line.name),
                )
            )
    return found


def word(name: str) -> str:
    """Return a quantity's name for people."""
    return WORDS.get(name, name.replace("_", " "))


def described(found: Findings, answer: ToolAnswer) -> str:
    """Return films, tables and notes as HTML."""
    notes = "".join(f'<div class="lab-note">{html.escape(note)}</div>' for note in found.notes)
    films = "".join(film_html(found.panel, film, answer.pictures) for film in found.films)
    tables = "".join(table_html(found.panel, table) for table in found.tables)
    return f"{notes}{particles_html(found.particles)}{films}{tables}"


def film_html(panel: str, film: Film, pictures: dict[str, str]) -> str:
    """Return a film: its pictures at one moment, and a slider over the moments, which lab.js follows."""
    frames = [
        {"caption": frame.caption, "pictures": [[word(name), pictures[key]] for name, key in frame.pictures.items()]}
        for frame in film.frames
    ]
    data = html.escape(json.dumps(frames))
    last = len(frames) - 1
    figures = "".join(
        f'<figure><img src="studio/tool/{key}" alt="{html.escape(name)}"><figcaption>{html.escape(name)}</figcaption></figure>'
        for name, key in frames[last]["pictures"]
    )
    return (
        f'<div class="lab-film" data-frames="{data}"><div class="st-panel-title">{LAB_TEXT[f"lab.film.{panel}.{film.name}"]}</div>'
        f'<div class="st-figures">{figures}</div>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="{LAB_TEXT["lab.film"]}"{"" if last else " hidden"}>'
        f'<div class="lab-caption">{html.escape(frames[last]["caption"])}</div></div>'
    )


def table_html(panel: str, table: Table) -> str:
    """Return a table that can be scrolled sideways."""
    head = "".join(f"<th>{html.escape(word(column))}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell_text(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    title = LAB_TEXT[f"lab.table.{panel}.{table.name}"]
    return (
        f'<details class="lab-table" open><summary>{title}</summary>'
        f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def cell_text(cell: str | float | None) -> str:
    """Return a cell's value for people."""
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else html.escape(word(str(cell)))
