"""The dataset doctor on the Datasets tab: findings, each with its click; and what a model already draws for a word."""

import html
from typing import Any
from urllib.parse import quote

import gradio as gr

from studio.dataset_doctor import Aim, Known, examine
from studio.errors import StudioError
from studio.findings import Finding
from studio.spec import parse_request
from studio.store.changes import Undone
from studio.store.jobs import CANCELLED, DONE, FAILED
from studio.store.tokenizers import Tokenizers
from studio.store.triggers import judge_trigger
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.word_facts import advice

POLL = 1.0  # seconds
DRAWN, SHOWN = 4, 8  # pictures of a word; pictures of a finding
PROGRESS = gr.Progress()  # as a default it is how Gradio knows that a handler tells how far it is
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


class DoctorPanel:
    """Builds the accordion.

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services, self._tokenizers = services, Tokenizers()
        self._known: Known = {}

    def build(self, chosen: gr.Dropdown, changed: gr.Number) -> None:
        """Build the controls and bind their events.

        Args:
            chosen: the datasets' names.
            changed: counted up when files changed.
        """
        with gr.Accordion(TEXT["doctor"], open=False, elem_id="sd-doctor"):
            gr.Markdown(TEXT["doctor.help"], elem_classes="st-quiet")
            with gr.Row():
                trigger = gr.Textbox(label=TEXT["doctor.trigger"], info=TEXT["doctor.trigger.help"], max_length=100,
                                     elem_id="sd-doctor-trigger", min_width=180)  # fmt: skip
                kind = gr.Textbox(label=TEXT["doctor.class"], info=TEXT["doctor.class.help"], max_length=100,
                                  elem_id="sd-doctor-class", min_width=180)  # fmt: skip
                resolution = gr.Number(
                    self._side(), label=TEXT["doctor.resolution"], info=TEXT["doctor.resolution.help"], precision=0, minimum=64,
                    maximum=4096, step=64, elem_id="sd-doctor-resolution", min_width=140,
                )  # fmt: skip
                model = gr.Dropdown(
                    self._models(), value=self._services.settings.model, label=TEXT["doctor.model"],
                    info=TEXT["doctor.model.help"], elem_id="sd-doctor-model", min_width=200,
                )  # fmt: skip
            with gr.Row():
                run = gr.Button(TEXT["doctor.run"], variant="primary", elem_id="sd-doctor-run", min_width=140)
                draw = gr.Button(TEXT["doctor.draw"], elem_id="sd-doctor-draw", min_width=260)
                undo = gr.Button(visible=False, elem_id="sd-doctor-undo", min_width=140)
            said = gr.HTML("", padding=False, elem_id="sd-doctor-said")
            drawn = gr.HTML("", padding=False, elem_id="sd-doctor-drawn")
        place, fix = gr.Textbox(visible="hidden"), gr.Button(elem_id="sd-doctor-fix", elem_classes="st-hidden")
        again = gr.Button(elem_id="sd-doctor-again", elem_classes="st-hidden")
        job, timer, found = gr.State(), gr.Timer(POLL, active=False), gr.State(())
        aim: dict[str, Any] = {
            "chosen": chosen,
            "trigger": trigger,
            "kind": kind,
            "resolution": resolution,
            "model": model,
        }
        slow: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1}
        run.click(self.examine, inputs_kwargs=aim, outputs=[said, found, undo], **slow)
        fix.click(None, None, [place], js="() => studio.doctor.fixing()", api_visibility="private").then(
            self.fix,
            inputs_kwargs={"place": place, "found": found, "changed": changed, **aim},
            outputs=[said, found, undo, changed],
            **slow,
        )
        undo.click(self.undo, inputs_kwargs={"changed": changed, **aim}, outputs=[said, found, undo, changed], **slow)
        gr.on([chosen.change, changed.change, again.click], self.offered, [chosen], [undo], **QUIET)
        chosen.change(lambda: ("", (), gr.update(choices=self._models())), None, [said, found, model], **QUIET)
        draw.click(self.draw, [trigger, model], [drawn, job, timer], **QUIET)
        timer.tick(self.drawn, [job], [drawn, timer], **QUIET)

    def _side(self) -> int:
        """Return the side at which the model that is there first is usually trained."""
        return int(self._services.library.get(self._services.settings.model).defaults.get("width", 512))

    def _models(self) -> list[tuple[str, str]]:
        return [(model.title, model.id) for model in self._services.library.models() if not model.problem]

    def _found(self, values: dict[str, Any], progress: gr.Progress) -> tuple[Finding, ...]:
        """Examine what the form says: `chosen`, `trigger`, `kind`, `resolution`, `model`."""
        if not values["chosen"]:
            raise StudioError(TEXT["doctor.none"])
        trigger, model = (values["trigger"] or "").strip(), self._services.library.get(values["model"])
        word, proposals = judge_trigger(self._tokenizers, model, trigger)
        aim = Aim(trigger, values["kind"] or "", int(values["resolution"] or 0), word=word, proposals=tuple(proposals))

        def heard(done: int, number: int) -> None:
            progress((done, number), desc=TEXT["doctor.run"])

        return examine(self._services.datasets.folder(values["chosen"]), aim, self._known, heard)

    def examine(self, progress: gr.Progress = PROGRESS, **values: Any) -> list[Any]:
        """Show what is wrong with a dataset."""
        chosen = values["chosen"]
        try:
            found = self._found(values, progress)
        except StudioError as error:
            return [problem(error), (), self.offered(chosen)]
        return [self._list(chosen, found), found, self.offered(chosen)]

    def fix(
        self,
        place: str,
        found: tuple[Finding, ...],
        changed: float,
        progress: gr.Progress = PROGRESS,
        **values: Any,
    ) -> list[Any]:
        """Mend what a click means, and look again."""
        chosen = values["chosen"]
        wanted = found[int(place)] if (place or "").isdigit() and int(place) < len(found) else None
        try:
            if not wanted or not wanted.fix or not chosen:
                raise StudioError(TEXT["doctor.gone"])
            self._services.changes.make(chosen, wanted.fix.changes, wanted.fix.title)
        except StudioError as error:
            return [problem(error), (), self.offered(chosen), changed + 1]
        return [*self.examine(progress, **values), changed + 1]

    def undo(self, changed: float, progress: gr.Progress = PROGRESS, **values: Any) -> list[Any]:
        """Undo what was mended last, and look again."""
        chosen = values["chosen"]
        try:
            undone = self._services.changes.undo(chosen or "")
        except StudioError as error:
            return [problem(error), (), self.offered(chosen), changed]
        shown, found, offered = self.examine(progress, **values)
        return [f'<div class="st-quiet">{html.escape(undone_line(undone))}</div>{shown}', found, offered, changed + 1]

    def offered(self, chosen: str | None) -> Any:
        """Return what the Undo button says."""
        title = self._services.changes.last(chosen) if chosen in self._services.datasets.names() else ""
        return gr.update(visible=bool(title), value=TEXT["doctor.undo"].format(title=title))

    def _list(self, name: str, found: tuple[Finding, ...]) -> str:
        if not found:
            number = sum(not one.edit.left_out for one in self._services.datasets.pictures(name))
            return f'<div class="st-quiet">{TEXT["doctor.clean"].format(number=number)}</div>'
        return "".join(finding_row(name, place, one) for place, one in enumerate(found))

    def draw(self, trigger: str, model: str, request: gr.Request) -> list[Any]:
        """Let a model draw a word, and say how its tokenizer reads it."""
        trigger = " ".join((trigger or "").split())
        try:
            if not trigger:
                raise StudioError(TEXT["doctor.draw.none"])
            word, proposals = judge_trigger(self._tokenizers, self._services.library.get(model), trigger)
            values = {"prompt": f"a {trigger}", "model": model, "num_images_per_prompt": DRAWN}
            job = self._services.dispatcher.submit(parse_request(values), self._services.owner(request.headers))
        except StudioError as error:
            return [problem(error), None, gr.Timer(POLL, active=False)]
        told = advice(word, proposals) if word else TEXT["doctor.draw.unknown"]
        line = f"{TEXT['doctor.draw.help'].format(trigger=trigger)} {told}."
        return [self._pictures(job.id, line), {"job": job.id, "line": line}, gr.Timer(POLL, active=True)]

    def drawn(self, job: dict[str, str] | None) -> list[Any]:
        """Show the pictures that there are by now."""
        if not job:
            return [gr.skip(), gr.Timer(POLL, active=False)]
        entry = self._services.dispatcher.jobs.get(job["job"])
        ended = entry is None or entry.state in (DONE, FAILED, CANCELLED)
        return [self._pictures(job["job"], job["line"]), gr.Timer(POLL, active=not ended)]

    def _pictures(self, job: str, line: str) -> str:
        entry = self._services.dispatcher.jobs.get(job)
        images = list(entry.images) if entry else []
        figures = "".join(
            f'<a href="studio/image/{one}" target="_blank"><img src="studio/thumbnail/{one}" alt=""></a>'
            for one in images
        )
        ended = entry is None or entry.state in (DONE, FAILED, CANCELLED)
        waits = "" if ended else TEXT["doctor.draw.waits"].format(done=len(images), number=DRAWN)
        failed = f'<div class="st-bad">{html.escape(entry.error)}</div>' if entry and entry.error else ""
        return (
            f'<div class="sd-drawn">{html.escape(line)}</div><div class="sd-thumbs">{figures}</div>'
            f'<div class="st-quiet">{waits}</div>{failed}'
        )


def undone_line(undone: Undone) -> str:
    """Say what an undo did."""
    said = TEXT["doctor.undone"].format(title=undone.title, number=undone.number)
    if undone.changed_since:
        said += TEXT["doctor.undone.since"].format(pictures=", ".join(undone.changed_since))
    return said


def problem(error: StudioError) -> str:
    return f'<div class="st-problem" role="alert">{html.escape(str(error))}</div>'


def finding_row(name: str, place: int, one: Finding) -> str:
    """Return a finding as HTML: how bad it is, what it is, the pictures that are meant, the click that mends it."""
    base = f"studio/datasets/{quote(name, safe='')}/thumbnail"
    thumbs = "".join(
        f'<img src="{base}/{quote(picture)}" title="{html.escape(picture)}" alt="{html.escape(picture)}" loading="lazy">'
        for picture in one.pictures[:SHOWN]
    )
    mend = (
        f'<button type="button" class="st-button" data-fix="{place}">{html.escape(one.fix.title)}</button>'
        if one.fix
        else ""
    )
    return (
        f'<div class="sd-finding" data-level="{one.level}" data-code="{one.code}"><div><b>{TEXT[f"doctor.{one.level}"]}</b> '
        f'{html.escape(one.text)}</div><div class="sd-thumbs">{thumbs}</div>{mend}</div>'
    )
