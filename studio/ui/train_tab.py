"""The Train tab: three decisions, and below them everything that a run can be told."""

import html
import json
import logging
from collections.abc import Iterable
from typing import Any

import gradio as gr

from studio.errors import InvalidRequest, StudioError
from studio.training.decisions import ASKED, DERIVED, FOLLOWING, Decisions, decisions_of, kept
from studio.training.models import TAUGHT
from studio.training.presets import Preset
from studio.training.values import fields_of, plain
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.ui.train_desk import Proposed, TrainDesk
from studio.ui.train_form import ALL, NAMES, PROMPTS, TrainForm
from studio.ui.train_panels import EstimatePanel, OriginPanel, PresetPanel

logger = logging.getLogger(__name__)

CARDS = ("dreambooth", "lora", "textual-inversion", "full", "controlnet", "unconditional")
# A field that follows from a decision -> the decision's control, beside which a mistake is told while that is empty.
DECIDED = {"class_prompt": "thing", "initializer_token": "thing", "instance_prompt": "word"}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
RUNS, TRAIN = "runs", "train"


class TrainTab:
    """Builds the tab; `targets` are what `fill` fills, for events of other tabs.

    Args:
        services: what the handlers work on; `training` must be there.
    """

    def __init__(self, services: Services) -> None:
        self.desk = TrainDesk(services)
        self.form = TrainForm(self.desk.training.methods)
        self._panels = (PresetPanel(self), OriginPanel(self))
        self._estimate = EstimatePanel(self)

    @property
    def inputs(self) -> dict[str, Any]:
        """The components that `settled` reads, by name."""
        own = {"method": self.method, "word": self.word, "thing": self.thing, "base": self.base, "device": self.device}
        return own | self.form.controls

    @property
    def targets(self) -> list[Any]:
        """The components that `fill` fills, in order."""
        own = [self.method, self.word, self.thing, self.base, self.device]
        return [*own, self._about, self._barred, *self.form.outputs]

    def build_wish(self) -> None:
        """Build `wish`, outside of all tabs, so that it is there before this one is first opened.

        Other tabs put into it what the form shall be filled with: see `begin_from`.
        """
        self.wish = gr.Textbox(visible="hidden", elem_id="st-train-like")

    def build(self, page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs) -> None:
        """Build the content and bind its events.

        Args:
            page: the whole.
            tab: in which this is built.
            tabs: that shows the queue after Start.
        """
        self.tabs = tabs
        method, model = CARDS[0], self.desk.settings.model
        names = self.desk.dataset_names()
        decided = Decisions(names[0] if len(names) == 1 else "", self.desk.word(model))
        proposed = self.desk.propose(method, model, decided)
        self._empty = gr.Markdown(self._no_pictures(), visible=not names, elem_id="train-empty")
        gr.Markdown(TEXT["train.teach"])
        cards = [(TEXT[f"train.card.{name}"], name) for name in CARDS]
        self.method = gr.Radio(cards, value=method, show_label=False, container=False, elem_id="train-method")
        self._build_pictures(method, proposed, decided)
        with gr.Accordion(TEXT["train.prompts"], open=False, elem_id=NAMES):
            for name in PROMPTS:
                self.form.build(name, method, proposed.values.get(name, self.form.fields[name].default))
        gr.Markdown(TEXT["train.go"])
        self._about = gr.Markdown(self._told(proposed), elem_id="train-about", elem_classes="st-quiet")
        with gr.Row():
            start = gr.Button(TEXT["train.start"], variant="primary", elem_id="train-start", scale=3, min_width=160)
            self._estimate.build_buttons()
        gr.HTML('<div id="train-message" role="status" hidden></div>', padding=False, elem_classes="train-said")
        self._estimate.build_answer()
        with gr.Accordion(TEXT["train.all"], open=False, elem_id=ALL):
            self.form.build_all(method, proposed.values)
        for panel in self._panels:
            panel.build()
        self._build_hidden(proposed)
        self._bind(page, tab, start)
        for panel in (*self._panels, self._estimate):
            panel.bind(tab)
        self._bind_wish()

    def _build_pictures(self, method: str, proposed: Proposed, decided: Decisions) -> None:
        """Build the second decision, and the model that learns."""
        gr.Markdown(TEXT["train.pictures"])
        with gr.Row():
            self.form.build(
                "dataset", method, decided.dataset, choices=self.desk.dataset_names(), allow_custom_value=True,
                label=TEXT["train.dataset"], info=TEXT["train.dataset.help"],
            )  # fmt: skip
            self.word = gr.Textbox(
                decided.word, max_lines=1, min_width=200, elem_id="train-word", **self._asked("word", method)
            )
            self.thing = gr.Textbox(max_lines=1, min_width=200, elem_id="train-thing", **self._asked("thing", method))
        self._seen = gr.HTML(self._looked(decided, "", ""), padding=False, elem_id="train-seen")
        with gr.Row():
            self.form.build(
                "model", method, proposed.values["model"], choices=self._models(), info=TEXT["train.model.help"]
            )
            self.device = gr.Dropdown(
                elem_id="train-device", label=TEXT["train.device"], info=TEXT["train.device.help"], min_width=200,
                **self.desk.device_choice(""),
            )  # fmt: skip
        gr.HTML(
            '<div id="train-refused" class="st-bad" role="alert" hidden></div>',
            padding=False,
            elem_classes="train-said",
        )

    def _build_hidden(self, proposed: Proposed) -> None:
        with gr.Accordion(TEXT["train.command"], open=False, elem_id="train-command-line"):
            gr.Markdown(TEXT["train.command.help"], elem_classes="st-quiet")
            self._command = gr.Textbox(
                lines=3, max_lines=14, show_label=False, buttons=["copy"], interactive=False, elem_id="train-command"
            )
        self.base = gr.Textbox(self._based(CARDS[0], proposed), visible="hidden")
        self._barred = gr.Textbox(visible="hidden")
        self.result = gr.Textbox(visible="hidden")
        self._saved = gr.Textbox(visible="hidden")
        self._refresh = gr.Button("refresh", elem_id="train-refresh", elem_classes="st-hidden")

    def _bind(self, page: gr.Blocks, tab: gr.Tab, start: gr.Button) -> None:
        controls, inputs = self.form.controls, self.inputs
        told = {"inputs": [self.result], "js": "(text) => { studio.train.told(text); }", "api_visibility": "private"}
        barred = {"inputs": [self._barred], "js": "(text) => { studio.train.bar(text); }", "api_visibility": "private"}
        gr.on(
            [self.method.input, controls["model"].input], self.refill, inputs_kwargs=inputs, outputs=self.targets,
            trigger_mode="always_last", **QUIET,
        ).success(None, **barred)  # fmt: skip
        following = [controls[name] for name in FOLLOWING]
        self._refresh.click(
            self.refresh, inputs_kwargs=inputs,
            outputs=[*following, self.base, self._command, self._seen, self.result],
            trigger_mode="always_last", **QUIET,
        ).success(None, **told)  # fmt: skip
        start.click(self.start, inputs_kwargs=inputs, outputs=[self.result, self.tabs], **QUIET).success(None, **told)
        gr.on(
            [box.change for box in inputs.values()], None, inputs=list(inputs.values()),
            js=f"(...values) => {{ studio.train.changed({json.dumps(list(inputs))}, values); }}", api_visibility="private",
        )  # fmt: skip
        choices = [controls["dataset"], controls["model"], self.device, self._empty, self._barred]
        asked = [self.method, controls["dataset"], controls["model"], self.device]
        tab.select(self.choices, asked, choices, **QUIET).success(None, **barred)
        controls["dataset"].focus(
            lambda: gr.update(choices=self.desk.dataset_names()), None, controls["dataset"], **QUIET
        )
        tab.select(
            self.restore, [self._saved], self.targets, js="() => [studio.train.saved()]", **QUIET
        ).success(None, **barred)  # fmt: skip

    def _bind_wish(self) -> None:
        told = {"inputs": [self.result], "js": "(text) => { studio.train.told(text); }", "api_visibility": "private"}
        self.wish.change(
            self.begin_from, inputs_kwargs={**self.inputs, "wish": self.wish},
            outputs=[*self.targets, self.tabs, self.wish, self.result],
            js="(...values) => studio.train.claimed(values)", **QUIET,
        ).success(None, **told)  # fmt: skip

    def follow(self, model: Any) -> None:
        """Let the model that learns be the one that a person chooses at the head of the page.

        Args:
            model: the page's dropdown of models.
        """
        model.input(
            lambda chosen, **values: self.refill(**(values | {"model": chosen})),
            inputs_kwargs={**self.inputs, "chosen": model}, outputs=self.targets, **QUIET,
        )  # fmt: skip

    # ---- what is shown ---------------------------------------------------------------------------------------------

    def _no_pictures(self) -> str:
        return TEXT["train.empty.datasets"].format(folder=self.desk.datasets)

    def _models(self) -> list[tuple[str, str]]:
        return [(model.title, model.id) for model in self.desk.library.models() if not model.problem]

    @staticmethod
    def _asked(decision: str, method: str) -> dict[str, Any]:
        """Return how a decision's control is called for a method, and whether there is one."""
        if decision not in ASKED.get(method, ()):
            return {"visible": False}
        key = f"train.{decision}.{method}"
        return {"visible": True, "label": TEXT[key], "info": TEXT[f"{key}.help"]}

    def _told(self, proposed: Proposed, *, chosen: bool = False) -> str:
        if not proposed.preset:
            line = TEXT["train.preset.none"]
        else:
            line = TEXT["train.preset.chosen" if chosen else "train.preset"].format(name=proposed.preset)
        return " ".join([line, *proposed.notes])

    @staticmethod
    def _based(method: str, proposed: Proposed, chosen: str = "") -> str:
        """Return what was proposed, for a later look at what a person changed."""
        return json.dumps({"method": method, "values": proposed.values, "preset": chosen})

    def _looked(self, decided: Decisions, method: str, model: str) -> str:
        """Return what can be said of the pictures and the word, as HTML."""
        lines = [self.desk.seen(decided.dataset)]
        if method in ("dreambooth", "lora"):
            lines.append(self.desk.word_advice(model, decided.word))
        return "".join(f'<div class="st-quiet">{html.escape(line)}</div>' for line in lines if line)

    # ---- handlers --------------------------------------------------------------------------------------------------

    def settled(self, values: dict[str, Any], *, lenient: bool = False) -> tuple[str, dict[str, Any], Proposed]:
        """Read the form: what a person did not touch follows what they decided, even if the page did not hear of it yet.

        Args:
            values: of `inputs`.
            lenient: leave what cannot be read as it was proposed.

        Returns:
            The method, plain values of all its fields, and what is proposed now.

        Raises:
            InvalidRequest: if what is typed cannot be read.
        """
        method, before = values["method"], json.loads(values["base"] or "{}")
        decided = self._decided(values)
        preset = self._preset(before.get("preset", ""), method)
        proposed = self.desk.propose(method, values["model"] or self.desk.settings.model, decided, preset)
        read = self.form.read_what_can if lenient else self.form.read
        return method, kept(read(method, values), before.get("values", {}), proposed.values), proposed

    @staticmethod
    def _decided(values: dict[str, Any]) -> Decisions:
        return Decisions(str(values["dataset"] or "").strip(), values["word"] or "", values["thing"] or "")

    def _preset(self, name: str, method: str) -> Preset | None:
        found = (one for one in self.desk.presets() if one.name == name and one.method == method)
        return next(found, None) if name else None

    def refill(self, **values: Any) -> list[Any]:
        """Show another method or model: what a person did not touch becomes what is usual for it."""
        method, shown, proposed = self.settled(values, lenient=True)
        return self._shown(method, shown, proposed, self._decided(values), "")

    def _shown(
        self, method: str, shown: dict[str, Any], proposed: Proposed, decided: Decisions, chosen: str, about: str = "",
        *, device: str | None = None,
    ) -> list[Any]:  # fmt: skip
        """Return one update for each of `targets`; the device stays as it is if None."""
        return [
            method,
            gr.update(value=decided.word, **self._asked("word", method)),
            gr.update(value=decided.thing, **self._asked("thing", method)),
            self._based(method, proposed, chosen),
            gr.skip() if device is None else gr.update(**self.desk.device_choice(device)),
            about or self._told(proposed, chosen=bool(chosen)),
            self._bars(method, str(shown.get("model", ""))),
            *self.form.updates(method, shown),
        ]

    def fill(self, method: str, values: dict[str, Any], notes: Iterable[str] = ()) -> list[Any]:
        """Return one update for each of `targets`: the form with exactly these values; what they leave out is as proposed.

        Args:
            method: as on the command line.
            values: plain, of some or all of its fields.
            notes: sentences that are shown.
        """
        fields, notes = fields_of(self.desk.training.methods[method]), list(notes)
        given = {name: plain(name, fields[name], value) for name, value in values.items() if name in fields}
        given = {name: value for name, value in given.items() if (method, name) not in DERIVED}
        model = str(given.get("model") or self.desk.settings.model)
        if method in TAUGHT and self.desk.model(method, model) is None:
            other = self.desk.settings.model
            notes.append(TEXT["train.model.gone"].format(name=model, other=other))
            given["model"] = model = other
        if given.get("dataset") and not self.desk.there(given["dataset"]):
            notes.append(TEXT["train.dataset.gone"].format(name=given["dataset"]))
        decided = decisions_of(method, given)
        proposed = self.desk.propose(method, model, decided)
        about = " ".join([TEXT["train.filled"], *notes])
        return self._shown(method, proposed.values | given, proposed, decided, "", html.escape(about, quote=False))

    def load(self, preset: Preset, values: dict[str, Any]) -> list[Any]:
        """Return one update for each of `targets`: the form with a preset's values."""
        if preset.own:
            return self.fill(preset.method, {"dataset": values["dataset"], "model": values["model"]} | preset.values)
        model = str(preset.values.get("model", ""))
        model = model if self.desk.model(preset.method, model) else values["model"] or self.desk.settings.model
        decided = self._decided(values)
        proposed = self.desk.propose(preset.method, model, decided, preset)
        return self._shown(preset.method, proposed.values, proposed, decided, preset.name)

    def refresh(self, **values: Any) -> list[Any]:
        """Follow what was typed: prompts, the command line, what is wrong."""
        nothing = [gr.skip() for _ in range(len(FOLLOWING) + 3)]
        before = json.loads(values["base"] or "{}")
        model = before.get("values", {}).get("model", values["model"])
        if before.get("method") != values["method"] or model != values["model"]:
            return [*nothing, json.dumps({})]  # the form is about to be filled anew
        try:
            method, now, proposed = self.settled(values, lenient=True)
            shown = self.form.read_what_can(method, values)
            following = [
                gr.skip() if now.get(name) == shown.get(name) else gr.update(value=_of_control(now[name]))
                for name in FOLLOWING
            ]
            command, problem = self._checked(values)
            seen = self._looked(self._decided(values), method, values["model"] or "")
        except Exception:  # a process boundary: what is typed must never be lost
            logger.exception("refresh")
            return [*nothing, json.dumps({})]
        return [*following, self._based(method, proposed, before.get("preset", "")), command, seen, problem]

    def _checked(self, values: dict[str, Any]) -> tuple[str, str]:
        """Return the command line, or what is wrong, the latter as JSON for the page."""
        try:
            method, settled, _ = self.settled(values)
            config = self.desk.config(method, settled)
        except StudioError as error:
            return f"# {error}", self.problem(error, values, quiet=True)
        return self.desk.command(method, config, values["device"] or ""), json.dumps({"ok": True})

    def problem(self, error: StudioError, values: dict[str, Any], *, quiet: bool = False) -> str:
        """Return a mistake as JSON for the page: the sentence, the field, and the accordions around it."""
        field, said = (error.field if isinstance(error, InvalidRequest) else "").partition(".")[0], str(error)
        decision, method = DECIDED.get(field, ""), str(values.get("method"))
        if decision in ASKED.get(method, ()) and not values.get(decision):
            if quiet:  # nothing is wrong with a question that was not answered yet
                return json.dumps({"ok": True})
            field, said = decision, TEXT["train.needed"].format(help=TEXT[f"train.{decision}.{method}.help"])
        return json.dumps({"error": said, "field": field, "home": self.form.home_of(field), "quiet": quiet})

    def start(self, **values: Any) -> list[Any]:
        """Put a run of what the form says into the queue, and show the queue."""
        try:
            method, settled, _ = self.settled(values)
            run_id = self.desk.start(method, settled, device=values["device"] or "")
        except StudioError as error:
            return [self.problem(error, values), gr.skip()]
        except Exception:  # a process boundary: the page shall hear of it, and go on
            logger.exception("start")
            return [
                json.dumps({"error": "This is a fault in Studio; the log has the details.", "field": ""}),
                gr.skip(),
            ]
        there = any(getattr(child, "id", None) == RUNS for child in self.tabs.children)
        told = TEXT["train.started"].format(run=run_id, folder=self.desk.settings.runs / run_id)
        return [json.dumps({"run": run_id, "note": told}), gr.Tabs(selected=RUNS) if there else gr.skip()]

    def choices(self, method: str, dataset: str, model: str, device: str | None) -> list[Any]:
        """Offer the datasets, models and devices that there are now."""
        names = self.desk.dataset_names()
        first: dict[str, Any] = {"value": names[0]} if len(names) == 1 and not dataset else {}
        return [
            gr.update(choices=names, **first),
            gr.update(choices=self._models()),
            gr.update(**self.desk.device_choice(device or "")),
            gr.update(visible=not (names or dataset)),
            self._bars(method, model),
        ]

    def _bars(self, method: str, model: str) -> str:
        """Return which cards the model bars, and why the chosen one does not work, as JSON for the page."""
        barred = self.desk.barred(model) if model else {}
        rows = [barred.get(name, "") for name in CARDS]
        return json.dumps({"cards": rows, "problem": barred.get(method, "")})

    def restore(self, saved: str) -> list[Any]:
        """Show the form that this browser kept; nothing if it kept none, or it was shown already."""
        try:
            values = json.loads(saved or "{}")
            if values.get("method") not in self.desk.training.methods:
                raise ValueError
            values = {name: values.get(name) for name in self.inputs}
            method, shown, proposed = self.settled(values, lenient=True)
        except (ValueError, TypeError, AttributeError):
            return [gr.skip() for _ in self.targets]
        chosen = json.loads(values["base"] or "{}").get("preset", "")
        device = str(values.get("device") or "")
        return self._shown(method, shown, proposed, self._decided(values), chosen, device=device)

    def begin_from(self, **values: Any) -> list[Any]:
        """Fill the form as another tab asks: `run:ID`, `longer:ID`, `like:NAME`, `continue:NAME`, or `dataset:NAME`."""
        text = values.pop("wish")
        nothing = [gr.skip() for _ in self.targets]
        if not text:
            return [*nothing, gr.skip(), "", json.dumps({})]
        try:
            if text.startswith("dataset:"):
                values["dataset"] = text.removeprefix("dataset:")
                filled = self.refill(**values)
            else:
                origin = self.desk.origin(text)
                filled = self.fill(origin.method, origin.values, origin.notes)
        except StudioError as error:
            return [*nothing, gr.Tabs(selected=TRAIN), "", self.problem(error, values)]
        return [*filled, gr.Tabs(selected=TRAIN), "", json.dumps({"ok": True})]


def _of_control(value: Any) -> Any:
    return "\n".join(value) if isinstance(value, list) else value
