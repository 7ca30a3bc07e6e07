"""The Runs tab: a static frame that runs.js fills from `/studio/runs` and `/studio/run/ID`; here is what reaches other tabs."""

import json
import re
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.loras import LoraSpec, tag_of
from studio.store.run_results import find_result
from studio.ui.generate_tab import GenerateTab
from studio.ui.services import Services, Training
from studio.ui.text import TEXT

FRAME = f"""
<div id="sr">
  <div id="sr-problem" class="st-problem" role="alert"></div>
  <div id="sr-head">
    <span class="st-quiet">{TEXT["runs.first"]}</span>
    <span id="sr-first" role="radiogroup" aria-label="{TEXT["runs.first"]}"></span>
    <label class="st-quiet" id="sr-notify-label" title="{TEXT["runs.notify.help"]}">
      <input type="checkbox" id="sr-notify"> {TEXT["runs.notify"]}</label>
  </div>
  <div id="sr-none" hidden>{TEXT["runs.none"]}</div>
  <div id="sr-columns"><div id="sr-list"></div><div id="sr-run"></div></div>
  <dialog id="sr-big"></dialog>
</div>
"""


class RunsTab:
    """Builds the tab; `chosen` is a hidden textbox whose value selects a run.

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.chosen = gr.Textbox(visible="hidden", elem_id="st-run-chosen", render=False)

    @property
    def _training(self) -> Training:
        assert self._services.training, "the tab is built only where one may train"
        return self._services.training

    def build(self, page: gr.Blocks, tab: gr.Tab, tabs: gr.Tabs) -> None:
        """Build the frame; runs.js fills it when the tab is opened."""
        gr.HTML(FRAME, padding=False)
        tab.select(None, js="() => { setTimeout(() => studio.runs.open(), 50); }", api_visibility="private")

    def build_sender(self, tabs: gr.Tabs, generate: GenerateTab) -> None:
        """Build what scripts click; outside of the tabs, because what is in one is not in the document until it is opened."""
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        self.chosen.render()
        self.chosen.change(
            None, inputs=[self.chosen], js="(id) => { studio.runs.choose(id); }", api_visibility="private"
        )
        show = gr.Button("to runs", elem_id="st-to-runs", elem_classes="st-hidden")
        show.click(lambda: gr.Tabs(selected="runs"), None, [tabs], **quiet).success(
            None, js="() => { setTimeout(() => studio.runs.open(), 50); }", api_visibility="private"
        )
        wanted = gr.Textbox(visible="hidden")
        use = gr.Button("use", elem_id="st-run-use", elem_classes="st-hidden")
        controls = generate.controls
        unit = [generate.control.inputs["unit0_model"], generate.control.inputs["unit0_on"]]
        use.click(
            lambda *told: self.use(generate, *told),
            [wanted, controls["prompt"], controls["model"]],
            [controls["prompt"], controls["model"], *unit, tabs],
            js="(_, prompt, model) => [studio.runs.using(), prompt, model]",
            **quiet,
        )

    def use(self, generate: GenerateTab, wanted: str, prompt: str, model: str) -> list[Any]:
        """Put a result into Generate's form: a tag, an embedding's word, a model, or a control unit's model.

        Args:
            generate: the form.
            wanted: JSON `{"run", "step"}`.
            prompt: that the form has.
            model: that the form has.

        Returns:
            Prompt, model, the first unit's model and switch, and the tabs.
        """
        runs = self._training.runs
        try:
            told = json.loads(wanted or "{}")
            run_id = str(told.get("run"))
            result, config = find_result(runs, run_id, told.get("step")), runs.config(run_id)
        except (StudioError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        samples = [str(row.get("prompt") or "") for row in runs.samples(run_id)]
        text = without_run(prompt, run_id, result.word) or next(filter(None, samples), "")
        if result.word:
            text = text.replace(str(config.get("placeholder_token") or result.word), result.word)
            text = text if result.word in text else f"{text} {result.word}".strip()
        if result.kind == "lora":
            weight = config.get("recommended_weight")
            text = f"{text} {tag_of(LoraSpec(name=result.name, weight=1.0 if weight is None else weight))}".strip()
        choices = generate.model_choices()
        drawn = config.get("validation_model") or config.get("model") or ""
        base = result.name if result.kind in ("model", "wordless") else str(drawn)
        here = base if base in {name for _, name in choices} else model
        if result.kind == "wordless" and here == base:
            classes = self._services.library.get(here).classes
            text = text if text in classes else next(iter(classes), text)
        unit = [gr.update(value=result.name), True] if result.kind == "controlnet" else [gr.skip(), gr.skip()]
        return [text, gr.update(choices=choices, value=here), *unit, gr.Tabs(selected="generate")]


def without_run(prompt: str, run_id: str, word: str) -> str:
    """Take a run's results out of a prompt, because two checkpoints of one run are never meant together.

    Args:
        prompt: a person's.
        run_id: whose LoRA tags go, and whose checkpoints' words become `word`.
        word: of an embedding; "" without one.
    """
    name = re.escape(run_id)
    text = re.sub(rf"\s*<(?:lora|lyco):{name}(?:-\d{{6}})?(?::[^<>]*)?>", "", prompt)
    return re.sub(rf"(?<!\w){name}(?:_emb)?-\d{{6}}(?!\w)", lambda _: word, text).strip()
