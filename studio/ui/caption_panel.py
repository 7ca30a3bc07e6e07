"""Auto-captioning on the Datasets tab: choose a captioner, start it, watch it, undo it."""

import html
from typing import Any

import gradio as gr

from studio.captioning import KINDS, CaptionSpec, captioners, parse_captioning
from studio.errors import StudioError
from studio.sources import readable
from studio.store.captions import FAILED, RUNNING, TITLE
from studio.ui.doctor_panel import undone_line
from studio.ui.forms import build_control
from studio.ui.services import Services
from studio.ui.text import TEXT

POLL = 1.0  # seconds
EXAMPLE = "Salesforce/blip-image-captioning-base"
FIELDS = ("prompt", "prefix", "existing", "max_length", "threshold", "character_threshold")
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


class CaptionPanel:
    """Builds the accordion.

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def build(self, chosen: gr.Dropdown, changed: gr.Number) -> None:
        """Build the controls and bind their events.

        Args:
            chosen: the datasets' names.
            changed: counted up when files changed.
        """
        usual = CaptionSpec(model="any")
        with gr.Accordion(TEXT["caption"], open=False, elem_id="sd-caption"):
            gr.Markdown(TEXT["caption.help"], elem_classes="st-quiet")
            model = gr.Dropdown(
                self.offered(), value=None, allow_custom_value=True, label=TEXT["caption.model"],
                info=TEXT["caption.custom"].format(example=EXAMPLE), elem_id="sd-caption-model",
            )  # fmt: skip
            controls = {}
            for names in (FIELDS[:3], FIELDS[3:]):
                with gr.Row():
                    for name in names:
                        controls[name] = build_control(CaptionSpec, name, getattr(usual, name), place="sd-caption")
            with gr.Row():
                run = gr.Button(TEXT["caption.run"], variant="primary", elem_id="sd-caption-run", min_width=180)
                cancel = gr.Button(
                    TEXT["caption.cancel"], elem_id="sd-caption-cancel", min_width=100, interactive=False
                )
                undo = gr.Button(visible=False, elem_id="sd-caption-undo", min_width=140)
            said = gr.HTML("", padding=False, elem_id="sd-caption-said")
        timer, running = gr.Timer(POLL, active=False), gr.State(False)
        shown = [said, timer, cancel, running, changed]
        run.click(
            self.start,
            inputs_kwargs={"chosen": chosen, "model": model, "changed": changed} | controls,
            outputs=shown,
            **QUIET,
        )
        cancel.click(self.cancel, [running, changed], shown, **QUIET)
        timer.tick(self.shown, [running, changed], shown, **QUIET)
        chosen.change(self.shown, [running, changed], shown, **QUIET)
        chosen.change(lambda: gr.update(choices=self.offered()), None, [model], **QUIET)
        gr.on([chosen.change, changed.change], self.undoable, [chosen], [undo], **QUIET)
        undo.click(self.undo, [chosen, changed], [said, changed], **QUIET)

    def offered(self) -> list[tuple[str, str]]:
        """Return (label, name) of the captioners that are here; one that cannot be used says why when it is chosen."""
        return [
            (f"{one.name} · {KINDS[one.kind]}" if one.kind else f"{one.name} · cannot be used", one.name)
            for one in captioners(self._services.settings)
        ]

    def start(self, chosen: str | None, model: str | None, changed: float, **values: Any) -> list[Any]:
        """Begin to make captions."""
        try:
            if not chosen:
                raise StudioError(TEXT["doctor.none"])
            spec = parse_captioning(
                {"model": (model or "").strip()} | {k: v for k, v in values.items() if v is not None}
            )
            self._services.captions.start(chosen, spec)
        except StudioError as error:
            line = f'<div class="st-problem" role="alert">{html.escape(str(error))}</div>'
            return [line, gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        return self.shown(True, changed)

    def undoable(self, chosen: str | None) -> Any:
        """Return what the button says that brings the old captions back; it is there only if they were changed last."""
        title = self._services.changes.last(chosen) if chosen in self._services.datasets.names() else ""
        return gr.update(visible=title.startswith(TITLE), value=TEXT["doctor.undo"].format(title=title))

    def undo(self, chosen: str | None, changed: float) -> list[Any]:
        """Put the captions back that were there before."""
        try:
            undone = self._services.changes.undo(chosen or "")
        except StudioError as error:
            return [f'<div class="st-problem" role="alert">{html.escape(str(error))}</div>', gr.skip()]
        return [f'<div class="st-quiet">{html.escape(undone_line(undone))}</div>', changed + 1]

    def cancel(self, running: bool, changed: float) -> list[Any]:
        """Stop; what is made stays."""
        self._services.captions.cancel()
        return self.shown(running, changed)

    def shown(self, running: bool, changed: float) -> list[Any]:
        """Return how far it is; when it ends, the grid is read anew."""
        state = self._services.captions.state()
        active = state.get("state") == RUNNING
        ended = running and not active
        return [
            progress_line(state) if state else "",
            gr.Timer(POLL, active=active),
            gr.update(interactive=active),
            active,
            changed + 1 if ended else gr.skip(),
        ]


def progress_line(state: dict[str, Any]) -> str:
    """Return as HTML what is being done, how far it is, and what could not be read."""
    key = f"caption.{state['what'] if state['state'] == RUNNING else state['state']}"
    told = state | {"have": readable(state["bytes"]), "size": readable(state["size"])}
    line = html.escape(TEXT[key].format(**told)) if state["state"] != FAILED else ""
    part = (
        state["bytes"] / state["size"]
        if state["what"] == "downloading" and state["size"]
        else state["done"] / state["total"]
    )
    track = f'<div class="st-track"><div class="st-fill" style="width:{100 * part:.1f}%"></div></div>'
    problems = [state["error"]] * bool(state["error"]) + state["refused"]
    bad = "".join(f'<div class="st-bad">{html.escape(text)}</div>' for text in problems)
    return f"<div><b>{html.escape(state['dataset'])}</b> {line}</div>{track if state['state'] == RUNNING else ''}{bad}"
