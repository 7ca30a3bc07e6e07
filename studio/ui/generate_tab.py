"""The Generate tab: the form on the left is built from GenerationRequest, the result on the right lives in page.js."""

import html
import json
import logging
from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import InvalidRequest, StudioError, listed
from studio.families import FAMILIES
from studio.fitting import greyed
from studio.memory import weights_choices
from studio.parts import OWN_VAE
from studio.schedulers import SCHEDULERS, SIGMA_LABELS
from studio.spec import EXTENSIONS, GenerationRequest, parse_request
from studio.store.models import Model
from studio.store.prompt_reports import unknown_to
from studio.ui.control_panel import ControlPanel
from studio.ui.editor import start_of
from studio.ui.forms import build_control, fields_of, from_page, to_page
from studio.ui.image_panel import ImagePanel
from studio.ui.lora_panel import LoraPanel
from studio.ui.services import Services
from studio.ui.text import EXAMPLES, TEXT
from studio.ui.upscale_panel import upscaler_choices
from studio.ui.vae_panel import offered, vae_choices
from studio.ui.words_panel import WordsPanel
from studio.upscalers import of_own_size

logger = logging.getLogger(__name__)

VIEWER = f"""
<div id="st-viewer">
  <div id="st-stage" data-state="empty"><img id="st-picture" hidden alt=""><div id="st-empty">{TEXT["empty"]}</div></div>
  <div class="st-track" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"><div id="st-bar"></div></div>
  <div id="st-line" aria-live="polite"></div>
  <div id="st-held" class="st-quiet" hidden></div>
  <div id="st-strip"></div>
  <div id="st-actions"></div>
  <div id="st-details" class="st-panel"></div>
  <div class="st-panel-title">{TEXT["queue"]}</div>
  <div id="st-queue-empty" class="st-quiet">{TEXT["queue.empty"]}</div>
  <ul id="st-queue"></ul>
</div>
"""


class GenerateTab:
    """Builds the tab; `controls` maps field names to components.

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.controls: dict[str, Any] = {}
        self.control = ControlPanel(services, services.gallery.blobs)
        self.loras = LoraPanel(services)
        self.words = WordsPanel(services)
        self._panels = (self.control, self.loras, self.words)
        self.image = ImagePanel(services, self._panels)
        self._model = services.library.get(services.settings.model)

    @property
    def public(self) -> bool:
        """Whether strangers may be looking."""
        return self._services.public

    def build_model_choice(self) -> None:
        """Build the model dropdown, which stands in the page's head."""
        self.controls["model"] = gr.Dropdown(
            self.model_choices(),
            value=self._model.id,
            show_label=False,
            container=False,
            label="Model",
            elem_id="field-model",
        )

    def model_choices(self) -> list[tuple[str, str]]:
        """Return (label, id) of all models that can be used."""
        models = [model for model in self._services.library.models() if not model.problem]
        return [
            (
                f"{model.title} · {model.bytes / 2**20:,.0f} MB" + (f" · {model.kind} only" if model.kind else ""),
                model.id,
            )
            for model in models
        ]

    def build(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        """Build the tab's content and bind its events."""
        model = self._model
        values = GenerationRequest.model_construct(**model.defaults).model_dump() | {
            "sigmas": "automatic",
            "refiner": "",
            "vae": "",
        }
        with gr.Row(elem_id="st-columns"):
            with gr.Column(scale=5, min_width=320):
                run = self._build_left(values)
            with gr.Column(scale=6, min_width=320, elem_id="st-result"):
                gr.HTML(VIEWER, padding=False)
        self._bind(run, page, tabs)

    def _build_left(self, values: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name in fields_of(GenerationRequest, "prompt"):
            self.controls[name] = build_control(GenerationRequest, name, values[name])
        with gr.Row():
            made["generate"] = gr.Button(
                TEXT["generate"], variant="primary", elem_id="st-generate", scale=3, min_width=120
            )
            made["interrupt"] = gr.Button(TEXT["interrupt"], elem_id="st-interrupt", scale=1, min_width=80)
            made["skip"] = gr.Button(TEXT["skip"], elem_id="st-skip", scale=1, min_width=60)
        message = '<div id="st-message" role="alert" hidden></div>'
        gr.HTML(message + self.words.report(self._model.id), padding=False)
        made["demo"] = gr.Markdown(
            self._demo(),
            visible=self._services.settings.model == "shapes",
            elem_id="st-demo",
        )
        with gr.Row(elem_classes="st-examples", visible=self._services.settings.model == "shapes") as made["examples"]:
            for example in EXAMPLES:
                button = gr.Button(example, size="sm", min_width=140)
                button.click(
                    None, outputs=[self.controls["prompt"]], js=f"() => {json.dumps(example)}", api_visibility="private"
                )
        with gr.Row(elem_id="st-model-asks"):
            made["asks"] = gr.Markdown(asks(self._model), elem_classes="st-quiet")
            made["reset"] = gr.Button(TEXT["model.reset"], size="sm", scale=0, min_width=230, elem_id="st-model-reset")
        self.controls |= self.image.build(values)
        self.words.build(self._model.id)
        self.loras.build(self._model.id)
        self.control.build(self._model.id)
        with gr.Row():
            self.controls["seed"] = build_control(GenerationRequest, "seed", -1)
            with gr.Column(scale=0, min_width=130):
                made["random"] = gr.Button(TEXT["seed.random"], size="sm")
                made["reuse"] = gr.Button(TEXT["seed.reuse"], size="sm")
        for group in ("size", "sampling", "refiner", "hires", "variation", "more", "memory"):
            with gr.Accordion(TEXT[f"group.{group}"], open=False, elem_id=f"group-{group}"):
                for name in fields_of(GenerationRequest, group):
                    self.controls[name] = build_control(
                        GenerationRequest,
                        name,
                        values[name],
                        choices=self._choices(name),
                        most=self._services.most(name),
                    )
        made["forever"] = gr.Checkbox(
            False,
            visible=not self._services.public,
            label=TEXT["forever"],
            info=TEXT["forever.help"],
            elem_id="st-forever",
        )
        made["result"] = gr.Textbox(visible="hidden", elem_id="st-result-text")
        made["restore"] = gr.Button("restore", elem_id="st-restore")
        made["restore_id"] = gr.Textbox(visible="hidden")
        made["greyed"] = gr.Textbox(visible="hidden")
        made["to_image"] = gr.Button("to image", elem_id="st-to-image", elem_classes="st-hidden")
        return made

    def _demo(self) -> str:
        """Say what the demo model is; strangers do not hear where models lie."""
        if self.public:
            return TEXT["demo.public"]
        folder = self._services.settings.model_folders[1]
        near = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        return TEXT["demo"].format(folder=html.escape(str(near)))

    def _choices(self, name: str) -> list | None:
        """Return all options; a pair that cannot work is refused with the reason, so that no restored form can jam."""
        options = {"scheduler": list(SCHEDULERS), "sigmas": [(label, kind) for kind, label in SIGMA_LABELS.items()]}
        options |= {"hires_upscaler": self._upscalers(), "refiner": self._refiners()}
        options["weights"] = weights_choices()
        options["vae"] = vae_choices(self._services.library, self._model.id)
        return options.get(name)

    def _refiners(self) -> list[tuple[str, str]]:
        able = {name for name, family in FAMILIES.items() if "refiner" in family.options}
        models = [model for model in self._services.library.models() if not model.problem and model.family in able]
        return [(TEXT["refiner.none"], ""), *((model.title, model.id) for model in models)]

    def greyed(self, model_id: str) -> str:
        """Return what a model cannot use, and why, as JSON for the page."""
        try:
            model = self._services.library.get(model_id)
        except StudioError:
            return "{}"
        return json.dumps(greyed(model.family, model.kind))

    def asks(self, model_id: str) -> str:
        """Say what a model changes in the form when it is chosen."""
        try:
            return asks(self._services.library.get(model_id))
        except StudioError as error:
            return html.escape(str(error))

    def _upscalers(self) -> list[tuple[str, str]]:
        return upscaler_choices(self._services.library, drawing=True)

    def _bind_model(self, made: dict[str, Any], page: gr.Blocks, private: dict[str, Any]) -> None:
        """Let the form follow the model; at a page load choices stay, because the form is being restored."""
        controls, library = self.controls, self._services.library
        model, vae = controls["model"], controls["vae"]
        names = ("width", "height", "num_inference_steps", "guidance_scale", "scheduler", "sigmas")
        usual = [*(controls[name] for name in names), made["demo"], made["examples"]]
        gr.on([model.input, made["reset"].click], self.use_model, [model], usual, **private)
        gr.on([model.change, page.load], self.asks, [model], [made["asks"]], **private)
        model.change(self.control.use_model, [model, *self.control.models], self.control.targets, **private)
        page.load(self.control.offer, [model], self.control.targets, **private)
        self.loras.bind(page, model, controls["prompt"])
        self.words.bind(page, model)
        model.change(lambda *chosen: offered(library, *chosen), [model, vae], [vae], **private)
        page.load(lambda chosen: gr.update(choices=vae_choices(library, chosen)), [model], [vae], **private)
        for event in (model.change, page.load):
            event(self.greyed, [model], [made["greyed"]], **private).success(
                None, inputs=[made["greyed"]], js="(text) => { studio.fit(text); }", api_visibility="private"
            )
        page.load(lambda: gr.update(choices=self.model_choices()), outputs=[model], **private)
        page.load(lambda: gr.update(choices=self._refiners()), outputs=[controls["refiner"]], **private)
        page.load(lambda: gr.update(choices=self._upscalers()), outputs=[controls["hires_upscaler"]], **private)

    def _bind(self, made: dict[str, Any], page: gr.Blocks, tabs: gr.Tabs) -> None:
        controls, private = self.controls, {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        kept = controls | self.control.saved | self.loras.inputs | self.words.inputs
        names, boxes = list(kept), list(kept.values())
        made["generate"].click(
            self.submit,
            inputs_kwargs=self.inputs | {"forever": made["forever"]},
            outputs=[made["result"]],
            **private,
        ).success(None, inputs=[made["result"]], js="(text) => { studio.submitted(text); }", api_visibility="private")
        made["interrupt"].click(None, js="() => { studio.interrupt(); }", api_visibility="private")
        made["skip"].click(None, js="() => { studio.skip(); }", api_visibility="private")
        made["random"].click(None, outputs=[controls["seed"]], js="() => -1", api_visibility="private")
        made["reuse"].click(
            None,
            inputs=[controls["seed"]],
            outputs=[controls["seed"]],
            js="(seed) => studio.lastSeed(seed)",
            api_visibility="private",
        )
        made["restore"].click(
            self.restore,
            [made["restore_id"]],
            [*self.filled, tabs, made["result"]],
            js="() => [studio.pending()]",
            **private,
        ).success(None, inputs=[made["result"]], js="(text) => { studio.submitted(text); }", api_visibility="private")
        self.image.bind(controls)
        size = [controls[name] for name in ("width", "height", "resize_mode")]
        self.control.bind(size, self.image.editor, start_of)
        self.image.batch.bind(self.inputs, made["result"])
        made["to_image"].click(
            self.to_image,
            [made["restore_id"]],
            [*self.image.targets, tabs, made["result"]],
            js="() => [studio.pending()]",
            **private,
        ).success(None, inputs=[made["result"]], js="(text) => { studio.opened(text); }", api_visibility="private")
        gr.on(
            [box.change for box in boxes],
            None,
            inputs=boxes,
            js=f"(...values) => {{ studio.saveForm({json.dumps(names)}, values); }}",
            api_visibility="private",
        )
        self._bind_model(made, page, private)
        marks = usual() | {"control": self.control.usual, "lora": self.loras.usual, "words": self.words.usual}
        page.load(
            None,
            inputs=boxes,
            outputs=boxes,
            js=f"(...values) => {{ window.studioUsual = {json.dumps(marks)};"
            f" return studio.restoreForm({json.dumps(names)}, values); }}",
            api_visibility="private",
        )

    def submit(self, request: gr.Request, **values: Any) -> str:
        """Queue what the form says; return JSON for the page: {"job", "note"} or {"error", "field"}."""
        forever, units = bool(values.pop("forever")), dict(values)
        try:
            if forever:
                self._services.check_home(request.headers, "Generate forever is not offered")
            wanted = self.wanted(values)
            job = self._services.dispatcher.submit(wanted, self._services.owner(request.headers), forever=forever)
        except StudioError as error:
            field = error.field if isinstance(error, InvalidRequest) else ""
            for panel in self._panels:
                field = panel.box_of(field, units)
            return json.dumps({"error": str(error), "field": field})
        except Exception:  # a process boundary: the page shall hear of it, and go on
            logger.exception("submit")
            return json.dumps({"error": "This is a fault in Studio; the log has the details.", "field": ""})
        return json.dumps({"job": job.id, "note": self._note(job.request)})

    @property
    def inputs(self) -> dict[str, Any]:
        """Return the components that `wanted` reads, by name."""
        panels = self.control.inputs | self.loras.inputs | self.words.inputs
        return self.controls | panels | {"editor": self.image.editor, "mask": self.image.mask}

    def wanted(self, values: dict[str, Any]) -> GenerationRequest:
        """Read the form, whose pictures are stored.

        Raises:
            InvalidRequest: naming the first wrong field.
        """
        editor, mask = values.pop("editor"), values.pop("mask")
        units = {name: values.pop(name) for panel in self._panels for name in panel.inputs}
        plain = from_page(GenerationRequest, values)
        parse_request(plain | dict.fromkeys(EXTENSIONS, 0))  # before a picture is stored
        pictures = self.image.taken(editor, mask)
        if "image" not in pictures:  # sliders of a closed accordion, left from another picture
            plain |= dict.fromkeys(EXTENSIONS, 0)
        usable = self._services.library.usable(plain | pictures)
        for panel in self._panels:
            usable |= panel.taken(units)
        return of_own_size(parse_request(usable))

    def _note(self, request: GenerationRequest) -> str:
        notes = []
        if words := unknown_to(self._services.library, request):
            notes.append(TEXT["unknown"].format(words=", ".join(words[:8])))
        if request.negative_prompt and request.guidance_scale == 1:
            notes.append(TEXT["negative.ignored"])
        return " ".join(notes)

    def use_model(self, model_id: str) -> list[Any]:
        """Set size, steps, guidance and sampler to the model's own."""
        try:
            model = self._services.library.get(model_id)
        except StudioError as error:
            raise gr.Error(str(error)) from error
        values = model.defaults
        demo = model_id == "shapes"
        names = ("width", "height", "num_inference_steps", "guidance_scale", "scheduler")
        return [*(values[name] for name in names), "automatic", gr.update(visible=demo), gr.update(visible=demo)]

    def restore(self, image_id: str, request: gr.Request) -> list[Any]:
        """Put all settings of a picture into the form and show the tab."""
        try:
            found = self._services.gallery.found(image_id, self._services.limit(request.headers))
        except StudioError as error:
            problem = json.dumps({"error": str(error), "field": ""})
            return [*(gr.skip() for _ in self.filled), gr.skip(), problem]
        shown, notes = self.form_values(found.values)
        return [
            *shown,
            gr.Tabs(selected="generate"),
            json.dumps({"note": " ".join([*found.notes, *notes])}),
        ]

    def to_image(self, image_id: str, request: gr.Request) -> list[Any]:
        """Put a picture into the image panel, as what the next one starts from."""
        try:
            path = self._services.gallery.path(image_id, self._services.limit(request.headers))
        except StudioError as error:
            return [*(gr.skip() for _ in self.image.targets), gr.skip(), json.dumps({"error": str(error), "field": ""})]
        return [*self.image.open(str(path)), gr.Tabs(selected="generate"), json.dumps({"open": "group-image"})]

    @property
    def filled(self) -> list[Any]:
        """All components that `form_values` fills."""
        panels = self.control.inputs | self.loras.inputs | self.words.inputs
        return [*self.controls.values(), self.image.editor, self.image.mask, *panels.values()]

    def form_values(self, values: dict[str, Any], *, pictures: bool = True) -> tuple[list[Any], list[str]]:
        """Return one update for each of `filled`, for values read from a picture, and notes; what is not known stays.

        Args:
            values: plain fields of a request.
            pictures: whether to open the pictures that it names; a stranger's file may name them, but opens none.
        """
        known = {model.id for model in self._services.library.models() if not model.problem}
        upscalers = {name for _, name in self._upscalers()}
        refiners = {name or None for _, name in self._refiners()}
        vaes = {None, OWN_VAE, *(part.id for part in self._services.library.parts.parts("vae") if not part.problem)}
        wanted = {"model": known, "hires_upscaler": upscalers, "refiner": refiners, "vae": vaes}
        usable = {name: value for name, value in values.items() if name not in wanted or value in wanted[name]}
        usable |= {name: usable[name] or "" for name in ("refiner", "vae") if name in usable}
        lost = [TEXT["vae.missing"].format(name=values["vae"])] if "vae" in values and "vae" not in usable else []
        usable |= {"vae": ""} if lost else {}
        rows, tags, missing = self.loras.filled(values.get("loras") or [])
        if tags:
            usable["prompt"] = f"{usable.get('prompt', '')} {tags}"
        shown = to_page(GenerationRequest, usable)
        updates = [gr.skip() if shown.get(name) is None else shown[name] for name in self.controls]
        images, notes = self.image.shown(values if pictures else {})
        units, more = self.control.shown(values if pictures else {})
        styles = list(values.get("styles") or ())  # a finished picture's prompt has them already
        return [*updates, *images, *units, *rows, styles], [*lost, *notes, *more, *missing]


def asks(model: Model) -> str:
    """Say what a model changes in the form when it is chosen."""
    classes = TEXT["model.classes"].format(names=html.escape(listed(model.classes))) if model.classes else ""
    return TEXT["model.asks"].format(title=html.escape(model.title), **model.defaults) + classes


def usual() -> dict[str, dict[str, Any]]:
    """Return the usual values, as the page shows them, of groups whose fields do not depend on the model."""
    plain = GenerationRequest().model_dump() | {"vae": ""}  # as its dropdown says it
    groups = ("hires", "variation", "outpaint", "inpaint", "more", "memory")
    return {
        group: to_page(GenerationRequest, {name: plain[name] for name in fields_of(GenerationRequest, group)})
        for group in groups
    }
