"""What stands around the Train tab's form: presets, earlier runs and adapters to begin from, and the estimate."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from studio.errors import InvalidRequest, StudioError
from studio.training.origins import AGAIN, CONTINUE, LIKE, telling_adapters
from studio.training.presets import FILE_MAX, Preset, read_preset, save_preset
from studio.training.values import fields_of, to_form
from studio.ui.text import TEXT
from studio.ui.train_desk import GIB, remedy

if TYPE_CHECKING:
    from studio.ui.train_tab import TrainTab

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
OWN = "own:"


class PresetPanel:
    """Builds the accordion of presets: load, save, read a file.

    Args:
        tab: whose form is filled.
    """

    def __init__(self, tab: "TrainTab") -> None:
        self._tab = tab

    def build(self) -> None:
        """Build the accordion."""
        with gr.Accordion(TEXT["train.presets"], open=False, elem_id="train-presets"):
            with gr.Row():
                self._choice = gr.Dropdown(
                    self.choices(), value=None, label=TEXT["train.presets.choice"], info=TEXT["train.presets.help"],
                    elem_id="train-preset", min_width=220,
                )  # fmt: skip
                self._name = gr.Textbox(
                    label=TEXT["train.presets.name"], info=TEXT["train.presets.name.help"], max_lines=1,
                    elem_id="train-preset-name", min_width=220,
                )  # fmt: skip
            with gr.Row():
                self._file = gr.UploadButton(
                    TEXT["train.presets.file"], file_types=[".yaml", ".yml"], size="sm", elem_id="train-preset-file"
                )
                self._save = gr.Button(TEXT["train.presets.save"], size="sm", elem_id="train-preset-save")

    def bind(self, tab: gr.Tab) -> None:
        """Bind the events."""
        inputs, targets, result = self._tab.inputs, self._tab.targets, self._tab.result
        told = {"inputs": [result], "js": "(text) => { studio.train.told(text); }", "api_visibility": "private"}
        for event, box in ((self._choice.input, self._choice), (self._file.upload, self._file)):
            event(
                self.load if box is self._choice else self.read,
                inputs_kwargs={**inputs, "chosen": box}, outputs=[*targets, result], **QUIET,
            ).success(None, **told)  # fmt: skip
        self._save.click(
            self.save, inputs_kwargs={**inputs, "name": self._name}, outputs=[self._choice, result], **QUIET
        ).success(None, **told)
        tab.select(lambda: gr.update(choices=self.choices()), None, [self._choice], **QUIET)

    def choices(self) -> list[tuple[str, str]]:
        """Return (label, key) of all presets."""
        return [
            (TEXT["train.presets.own"].format(name=one.name) if one.own else one.name, key_of(one))
            for one in self._tab.desk.presets()
        ]

    def load(self, **values: Any) -> list[Any]:
        """Fill the form with a preset."""
        chosen = values.pop("chosen")
        found = next((one for one in self._tab.desk.presets() if key_of(one) == chosen), None)
        if found is None:
            return [
                *(gr.skip() for _ in self._tab.targets),
                json.dumps({"error": f"there is no preset {chosen!r} any more"}),
            ]
        return self._filled(found, values)

    def read(self, **values: Any) -> list[Any]:
        """Fill the form with a YAML file of this browser's."""
        path = Path(values.pop("chosen"))
        try:
            if path.stat().st_size > FILE_MAX:
                raise InvalidRequest("preset", f"{path.name} is larger than {FILE_MAX:,} bytes; that is no config")
            text = path.read_text(encoding="utf-8")
            found = read_preset(text, path.stem, self._tab.desk.training.methods, method=values["method"])
        except (StudioError, UnicodeDecodeError, OSError) as error:
            told = str(error) if isinstance(error, StudioError) else f"{path.name} is no text"
            return [*(gr.skip() for _ in self._tab.targets), json.dumps({"error": told})]
        return self._filled(Preset(found.name, found.method, found.values, own=True), values)

    def _filled(self, preset: Preset, values: dict[str, Any]) -> list[Any]:
        fields = fields_of(self._tab.desk.training.methods[preset.method])
        unknown = sorted(set(preset.values) - set(fields))
        try:
            filled = self._tab.load(preset, values)
        except StudioError as error:
            return [*(gr.skip() for _ in self._tab.targets), json.dumps({"error": str(error)})]
        told = {"error": f"not fields of this method, left out: {', '.join(unknown)}"} if unknown else {"ok": True}
        return [*filled, json.dumps(told)]

    def save(self, **values: Any) -> list[Any]:
        """Keep the form as a preset."""
        name, desk = values.pop("name"), self._tab.desk
        try:
            method, settled, _ = self._tab.settled(values)
            config = desk.training.dump(desk.config(method, settled))
            path = save_preset(desk.own_presets, name, method, config)
        except StudioError as error:
            return [gr.skip(), self._tab.problem(error, values)]
        told = TEXT["train.presets.saved"].format(path=path)
        return [gr.update(choices=self.choices(), value=None), json.dumps({"note": told})]


def key_of(preset: Preset) -> str:
    """Return what a list knows a preset by: one of a person's own may be called like one of ours."""
    return f"{OWN if preset.own else ''}{preset.name}"


class OriginPanel:
    """Builds the accordion of what was trained before: do it again, or go on from it.

    Args:
        tab: whose form is filled.
    """

    def __init__(self, tab: "TrainTab") -> None:
        self._tab = tab

    def build(self) -> None:
        """Build the accordion."""
        choices = self.choices()
        with gr.Accordion(TEXT["train.origins"], open=False, elem_id="train-origins"):
            self._choice = gr.Dropdown(
                choices, value=None, label=TEXT["train.origins.choice"],
                info=TEXT["train.origins.help" if choices else "train.origins.none"], elem_id="train-origin",
            )  # fmt: skip
            with gr.Row():
                self._like = gr.Button(TEXT["train.origins.like"], size="sm", elem_id="train-like", interactive=False)
                self._continue = gr.Button(
                    TEXT["train.origins.continue"], size="sm", elem_id="train-continue", interactive=False
                )

    def bind(self, tab: gr.Tab) -> None:
        """Bind the events."""
        told = {
            "inputs": [self._tab.result],
            "js": "(text) => { studio.train.told(text); }",
            "api_visibility": "private",
        }
        buttons = [self._like, self._continue]
        self._choice.change(self.offered, [self._choice], buttons, **QUIET)
        for button, far in ((self._like, False), (self._continue, True)):
            button.click(
                self._filler(far=far), [self._choice], [*self._tab.targets, self._tab.result], **QUIET
            ).success(None, **told)  # fmt: skip
        tab.select(self._fresh, None, [self._choice], **QUIET)

    def _fresh(self) -> Any:
        choices = self.choices()
        return gr.update(choices=choices, info=TEXT["train.origins.help" if choices else "train.origins.none"])

    def choices(self) -> list[tuple[str, str]]:
        """Return (label, key) of runs and of adapters that say how they were trained."""
        desk = self._tab.desk
        runs = desk.training.runs.ids()
        adapters = list(telling_adapters(desk.library.parts))
        return [
            *((TEXT["train.origins.run"].format(name=name), f"{AGAIN}:{name}") for name in runs),
            *((name, f"{LIKE}:{name}") for name in adapters),
        ]

    def offered(self, chosen: str | None) -> list[Any]:
        """Switch on what can be done with a choice."""
        desk, (kind, _, name) = self._tab.desk, (chosen or "").partition(":")
        try:
            results = desk.training.runs.results(name) if kind == AGAIN else {}
            far = bool(results) or telling_adapters(desk.library.parts).get(name, False)
        except StudioError:
            far = False
        return [gr.update(interactive=bool(chosen)), gr.update(interactive=bool(chosen) and far)]

    def _filler(self, *, far: bool) -> Any:
        def filled(chosen: str | None) -> list[Any]:
            kind, _, name = (chosen or "").partition(":")
            if far:
                chosen = f"longer:{name}" if kind == AGAIN else f"{CONTINUE}:{name}"
            try:
                origin = self._tab.desk.origin(chosen or "")
                return [*self._tab.fill(origin.method, origin.values, origin.notes), json.dumps({"ok": True})]
            except StudioError as error:
                return [*(gr.skip() for _ in self._tab.targets), json.dumps({"error": str(error)})]

        return filled


class EstimatePanel:
    """Builds the estimate: what a run takes, and a button that makes it fit.

    Args:
        tab: whose form is asked about.
    """

    def __init__(self, tab: "TrainTab") -> None:
        self._tab = tab
        self._cancelled: dict[str, threading.Event] = {}  # by the browser's session

    def build_buttons(self) -> None:
        """Build the buttons."""
        self._ask = gr.Button(TEXT["train.estimate"], elem_id="train-estimate", scale=2, min_width=140)
        self._stop = gr.Button(TEXT["train.cancel"], elem_id="train-cancel", scale=1, min_width=80, visible=False)

    def build_answer(self) -> None:
        """Build what is said."""
        self._said = gr.Markdown("", elem_id="train-estimated", visible=False)
        self._advice = gr.Textbox(visible="hidden")
        self._remedy = gr.Button("", size="sm", visible=False, elem_id="train-remedy")

    def bind(self, tab: gr.Tab) -> None:
        """Bind the events."""
        result = self._tab.result
        told = {"inputs": [result], "js": "(text) => { studio.train.told(text); }", "api_visibility": "private"}
        shown = [self._said, self._advice, self._remedy, self._ask, self._stop, result]
        self._ask.click(
            self.ask, inputs_kwargs=self._tab.inputs, outputs=shown, api_visibility="private", show_progress="hidden",
            concurrency_limit=2,
        ).success(None, **told)  # fmt: skip
        self._stop.click(self.stop, None, None, **QUIET)
        self._remedy.click(
            self.apply, inputs_kwargs={**self._tab.inputs, "advice": self._advice},
            outputs=[*self._tab.form.controls.values(), self._said, self._remedy], **QUIET,
        )  # fmt: skip

    def ask(self, request: gr.Request, **values: Any) -> Iterator[list[Any]]:
        """Say how long a run of what the form says takes, and how much memory."""
        session = str(request.session_hash)
        event = self._cancelled[session] = threading.Event()
        idle = [gr.update(interactive=True), gr.update(visible=False)]
        hidden = ["", gr.update(visible=False)]
        yield [
            gr.update(value=TEXT["train.estimating"], visible=True), *hidden, gr.update(interactive=False),
            gr.update(visible=True), json.dumps({}),
        ]  # fmt: skip
        try:
            method, settled, _ = self._tab.settled(values)
            found = self._tab.desk.estimate(method, settled, event.is_set, device=values["device"] or "")
        except StudioError as error:
            yield [gr.update(value="", visible=False), *hidden, *idle, self._tab.problem(error, values)]
            return
        finally:
            self._cancelled.pop(session, None)
        if found is None:
            yield [gr.update(value=TEXT["train.cancelled"], visible=True), *hidden, *idle, json.dumps({})]
            return
        first = next(iter(found["advice"]), "")
        button = gr.update(value=TEXT["train.remedy"].format(advice=first), visible=bool(first))
        yield [gr.update(value=answer(found), visible=True), first, button, *idle, json.dumps({"ok": True})]

    def stop(self, request: gr.Request) -> None:
        """Give up an estimate."""
        if event := self._cancelled.get(str(request.session_hash)):
            event.set()

    def apply(self, **values: Any) -> list[Any]:
        """Do what the estimate advised."""
        advice = values.pop("advice")
        method, settled, _ = self._tab.settled(values, lenient=True)
        fields = fields_of(self._tab.desk.training.methods[method])
        changed = remedy(advice, settled)
        controls = [
            gr.update(value=to_form(fields[name], changed[name])) if name in changed else gr.skip()
            for name in self._tab.form.controls
        ]
        return [*controls, TEXT["train.remedied"].format(advice=advice), gr.update(visible=False)]


def answer(found: dict[str, Any]) -> str:
    """Return an estimate in words."""
    peak, room, advice = found["peak_memory"], found["memory"], found["advice"]
    first = next(iter(advice), "")
    if found["fits"]:
        fits = TEXT["train.tight"].format(advice=first) if first else TEXT["train.fits"]
    else:
        fits = TEXT["train.unfit"].format(advice=first) if first else TEXT["train.unfit.none"]
    time = spoken(found["seconds"])
    return TEXT["train.estimated"].format(
        steps=found["steps"], epochs=found["epochs"], time=time, peak=peak / GIB, room=room / GIB, fits=fits
    )


def spoken(seconds: float) -> str:
    """Return a length of time in words, to two figures."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
