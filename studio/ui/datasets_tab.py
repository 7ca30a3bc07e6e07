"""The Datasets tab: choose or create a dataset; datasets.js fills the frame from the routes and sends every change there."""

import html
import json
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from studio.errors import InvalidRequest, StudioError
from studio.store.adding import Added
from studio.store.kohya import ENDINGS, read_kohya
from studio.ui.caption_panel import CaptionPanel
from studio.ui.doctor_panel import DoctorPanel
from studio.ui.mask_panel import MaskPanel
from studio.ui.services import Services
from studio.ui.text import TEXT

RESOLUTION, STEP, SMALL_STEP = 512, 64, 32
TOLD_MAX = 50
FRAME = f"""
<div id="sd">
  <div id="sd-none">{TEXT["datasets.none"]}</div>
  <div id="sd-body" hidden>
    <div id="sd-drop">{TEXT["datasets.drop"]}
      <div class="st-row">
        <label class="st-button">{TEXT["datasets.files"]}<input type="file" id="sd-files" multiple></label>
        <label class="st-button">{TEXT["datasets.folder"]}<input type="file" id="sd-folder" webkitdirectory></label>
      </div>
      <div class="st-quiet">{TEXT["datasets.kinds"]}</div>
    </div>
    <div id="sd-progress" hidden>
      <div class="st-row"><span id="sd-progress-line" class="st-quiet" role="status"></span>
        <button type="button" class="st-button" data-dataset="stop">{TEXT["datasets.stop"]}</button></div>
      <div class="st-track"><div id="sd-progress-bar"></div></div>
    </div>
    <ul id="sd-told" role="status" hidden></ul>
    <div id="sd-bar">
      <span id="sd-count"></span>
      <select id="sd-filter" aria-label="{TEXT["datasets.filter"]}" hidden>
        <option value="all">All pictures</option><option value="bare">Without a caption</option>
        <option value="out">Left out</option><option value="small">Enlarged</option><option value="bad">With a problem</option>
      </select>
      <button type="button" class="st-button" id="sd-restore" data-dataset="restore" hidden></button>
      <button type="button" class="st-button" id="sd-empty" data-dataset="empty" hidden>{TEXT["datasets.empty"]}</button>
      <button type="button" class="st-button" data-dataset="discard">{TEXT["datasets.discard"]}</button>
    </div>
    <div id="sd-tools" hidden>
      <details id="sd-bulk"><summary>{TEXT["datasets.bulk"]}</summary>
        <div class="st-quiet">{TEXT["datasets.bulk.help"]}</div>
        <div class="st-row">
          <input type="text" id="sd-text" placeholder="{TEXT["datasets.text"]}" aria-label="{TEXT["datasets.text"]}">
          <button type="button" class="st-button" data-dataset="trigger">{TEXT["datasets.trigger"]}</button>
          <button type="button" class="st-button" data-dataset="prefix">{TEXT["datasets.prefix"]}</button>
          <button type="button" class="st-button" data-dataset="suffix">{TEXT["datasets.suffix"]}</button>
        </div>
        <div class="st-row">
          <input type="text" id="sd-search" placeholder="{TEXT["datasets.search"]}" aria-label="{TEXT["datasets.search"]}">
          <input type="text" id="sd-replacement" placeholder="{TEXT["datasets.replacement"]}"
            aria-label="{TEXT["datasets.replacement"]}">
          <button type="button" class="st-button" data-dataset="replace">{TEXT["datasets.replace"]}</button>
          <button type="button" class="st-button" id="sd-undo" data-dataset="undo" disabled>{TEXT["datasets.undo"]}</button>
        </div>
        <div class="st-panel-title">{TEXT["datasets.tags"]}</div>
        <div id="sd-no-tags" class="st-quiet">{TEXT["datasets.tags.none"]}</div>
        <div id="sd-tags"></div>
      </details>
      <details id="sd-buckets"><summary>{TEXT["datasets.buckets"]}</summary>
        <div class="st-quiet">{TEXT["datasets.buckets.help"]}</div>
        <div class="st-row">
          <label>{TEXT["datasets.resolution"]}
            <input type="number" id="sd-resolution" value="[resolution]" min="64" max="4096" step="64"></label>
          <label>{TEXT["datasets.step"]} <input type="number" id="sd-step" value="[step]" min="8" max="256" step="8"></label>
          <span id="sd-size-problem" class="st-bad" role="alert"></span>
        </div>
        <div class="st-table"><table><tbody id="sd-bucket-rows"></tbody></table></div>
      </details>
    </div>
    <div id="sd-grid"></div>
    <dialog id="sd-crop"></dialog>
  </div>
  <details id="sd-discarded" hidden><summary>{TEXT["datasets.discarded"]}</summary>
    <div id="sd-discarded-rows" class="st-table" data-none="{TEXT["datasets.discarded.none"]}"></div></details>
</div>
"""


class DatasetsTab:
    """Builds the tab. It is not built where strangers may be looking.

    Args:
        services: what the handlers work on.

    Attributes:
        chosen: dropdown of the datasets' names.
        changed: a number that a panel counts up when files changed, so that the grid is read anew.
        train: what leads on to training.
    """

    chosen: gr.Dropdown
    changed: gr.Number
    train: gr.Button

    def __init__(self, services: Services) -> None:
        self._services = services

    def build(self, page: gr.Blocks, tab: gr.Tab, model: gr.Dropdown) -> None:
        """Build the content and bind its events.

        Args:
            page: the whole.
            tab: in which this is built.
            model: the page's choice of a model, whose buckets are shown.
        """
        with gr.Row():
            self.chosen = gr.Dropdown(
                [], value=None, label=TEXT["datasets.chosen"], info=TEXT["datasets.chosen.help"], elem_id="sd-chosen"
            )
            with gr.Column(min_width=240):
                name = gr.Textbox(
                    label=TEXT["datasets.name"], info=TEXT["datasets.name.help"], max_length=64, elem_id="sd-new"
                )
                create = gr.Button(TEXT["datasets.create"], size="sm", elem_id="sd-create")
        said = gr.HTML("", padding=False, elem_id="sd-said")
        remembered, self.changed = gr.Textbox(visible="hidden"), gr.Number(visible="hidden", value=0)
        refresh = gr.Button(elem_id="sd-refresh", elem_classes="st-hidden")
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        if self._services.policy.mode == "local":
            self._build_import(name, said)
        sizes = self._sizes(self._services.settings.model)
        frame = FRAME.replace("[resolution]", str(sizes["resolution"])).replace("[step]", str(sizes["step"]))
        gr.HTML(frame, padding=False)
        for panel in (DoctorPanel, CaptionPanel, MaskPanel):
            panel(self._services).build(self.chosen, self.changed)
        self.train = gr.Button(TEXT["datasets.train"], variant="primary", elem_id="sd-train")
        gr.on(
            [tab.select, refresh.click],
            self.names,
            [remembered],
            [self.chosen],
            js="() => [studio.datasets.remembered()]",
            **quiet,
        ).then(None, [self.chosen], js="(name) => { studio.datasets.show(name); }", api_visibility="private")
        self.chosen.input(None, [self.chosen], js="(name) => { studio.datasets.show(name); }", api_visibility="private")
        sizes = gr.Textbox(visible="hidden")
        model.change(lambda name: json.dumps(self._sizes(name)), [model], [sizes], **quiet).then(
            None, [sizes], js="(sizes) => { studio.datasets.sized(JSON.parse(sizes)); }", api_visibility="private"
        )
        self.changed.change(None, js="() => { studio.datasets.load(); }", api_visibility="private")
        gr.on([create.click, name.submit], self.create, [name], [self.chosen, name, said], **quiet).success(
            None, [self.chosen], js="(name) => { studio.datasets.show(name); }", api_visibility="private"
        )

    def _build_import(self, name: gr.Textbox, said: gr.HTML) -> None:
        """Build what reads folders of this computer: only where nobody else can reach the page."""
        with gr.Accordion(TEXT["datasets.import"], open=False, elem_id="sd-import"):
            gr.Markdown(TEXT["datasets.import.help"], elem_classes="st-quiet")
            with gr.Row():
                path = gr.Textbox(
                    label=TEXT["datasets.path"], placeholder=TEXT["datasets.path.example"], scale=4, elem_id="sd-path"
                )
                run = gr.Button(TEXT["datasets.import.run"], scale=1, min_width=120, elem_id="sd-import-run")
            config = gr.Code(
                language="yaml", label=TEXT["datasets.config"], visible=False, interactive=False, elem_id="sd-config"
            )
        run.click(
            self.bring,
            [path, name, self.chosen],
            [self.chosen, said, config],
            api_visibility="private",
            concurrency_limit=1,
        ).success(None, [self.chosen], js="(name) => { studio.datasets.show(name); }", api_visibility="private")

    def _sizes(self, model_id: str) -> dict[str, int]:
        """Return the resolution at which a model is usually trained, and the step of its buckets, as our presets have them."""
        try:
            side = int(self._services.library.get(model_id).defaults.get("width", RESOLUTION))
        except StudioError:
            side = RESOLUTION
        return {"resolution": side, "step": STEP if side >= RESOLUTION else SMALL_STEP}

    def build_sender(self, wish: gr.Textbox) -> None:
        """Let the Train tab begin with the chosen dataset; `wish` is what it listens to."""
        self.train.click(
            lambda chosen: f"dataset:{chosen}" if chosen else "",
            [self.chosen], [wish], show_progress="hidden", queue=False, api_visibility="private",
        )  # fmt: skip

    def names(self, remembered: str) -> Any:
        """Offer the datasets; the one that was open stays chosen."""
        names = self._services.datasets.names()
        return gr.update(choices=names, value=remembered if remembered in names else names[0] if names else None)

    def create(self, name: str) -> list[Any]:
        """Make an empty dataset and choose it."""
        try:
            made = self._services.datasets.create(name or "")
        except StudioError as error:
            return [gr.skip(), gr.skip(), problem(error)]
        return [gr.update(choices=self._services.datasets.names(), value=made), "", ""]

    def bring(self, path: str, name: str, chosen: str | None) -> list[Any]:
        """Copy a folder into a new dataset, or say what a kohya dataset file means to our trainers."""
        store, source = self._services.datasets, Path((path or "").strip().strip('"')).expanduser()
        try:
            if not (path or "").strip():
                raise InvalidRequest("path", TEXT["datasets.path.none"])
            if source.suffix.lower() in ENDINGS and source.is_file():
                told = read_kohya(source)
                text = yaml.safe_dump(told.fields, sort_keys=False, allow_unicode=True)
                return [gr.skip(), lines(told.notes), gr.update(value=text, visible=True)]
            if not source.is_dir():
                raise InvalidRequest("path", TEXT["datasets.path.wrong"].format(path=path))
            made = store.create(name or source.resolve().name)
            added = store.add_folder(made, source)
        except StudioError as error:
            return [gr.skip(), problem(error), gr.update(visible=False)]
        return [gr.update(choices=store.names(), value=made), report(added), gr.update(visible=False)]


def problem(error: StudioError) -> str:
    return f'<div class="st-problem" role="alert">{html.escape(str(error))}</div>'


def report(added: Added) -> str:
    """Say what became of a folder."""
    first = TEXT["datasets.added"].format(pictures=len(added.pictures), captions=added.captions)
    return lines((first, *added.refused, *added.notes))


def lines(sentences: tuple[str, ...]) -> str:
    """Return sentences as a list for the page."""
    shown = [*sentences[:TOLD_MAX], *([f"… {len(sentences) - TOLD_MAX} more"] if len(sentences) > TOLD_MAX else [])]
    return "".join(f'<div class="st-quiet">{html.escape(text)}</div>' for text in shown)
