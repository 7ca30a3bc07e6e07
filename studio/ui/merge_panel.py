"""The Merge tool: a model out of two or three, or out of a model and LoRA."""

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.merging import DIFFERENCE, METHODS, PRECISIONS, SUM, merge, parse_merge
from studio.store.library import Library
from studio.ui.generate_tab import GenerateTab
from studio.ui.services import Services
from studio.ui.text import TEXT

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


def lora_choices(library: Library) -> list[str]:
    """Return the names of all LoRA that can be used; which fits is told when they are merged."""
    return [part.id for part in library.parts.parts("lora") if not part.problem]


def merged(services: Services, values: dict[str, Any]) -> dict[str, Any]:
    """Merge what plain values say; return what the API answers.

    Raises:
        StudioError: if this is a public page, or it cannot be done.
    """
    if services.public:
        raise StudioError("models are not merged on a public page")
    spec = parse_merge(values)
    path = merge(spec, services.library, services.settings.model_folders[1])
    return {"model": spec.name, "file": path.name}


class MergeApi:
    """The endpoint over the page's services."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def merge(
        self,
        models: list[str],
        name: str,
        method: str = "weighted-sum",
        ratios: list[float] | None = None,
        loras: list[dict[str, Any]] | None = None,
        precision: str = "keep",
    ) -> dict[str, Any]:
        """Make a new model out of two or three of one family, or out of a model and LoRA.

        Args:
            models: ids of A, B and C, see `models`; A alone with `loras`.
            name: of the new model.
            method: `weighted-sum`: A + ratio (B - A); `add-difference`: A + ratio (B - C).
            ratios: [0.5] if not given; two numbers, of B and of C, for a weighted sum of three.
            loras: LoRA to merge in, as in `txt2img`.
            precision: of the new weights: `keep` (as in A), `float16`, `bfloat16` or `float32`.

        Returns:
            {"model": its id, "file": its folder or file}.
        """
        values = {"models": models, "name": name, "method": method, "precision": precision}
        return merged(self._services, values | {"ratios": ratios or [0.5], "loras": loras or []})


class MergePanel:
    """Builds the tool.

    Args:
        services: what the handlers work on.
        generate: has the list of models, which the new one joins.
    """

    def __init__(self, services: Services, generate: GenerateTab) -> None:
        self._services, self._generate = services, generate

    def build(self, page: gr.Blocks) -> None:
        """Build the controls and bind their events."""
        gr.Markdown(TEXT["merge.help"])
        models = self._generate.model_choices()
        none = [(TEXT["lora.none"], ""), *models]
        with gr.Row():
            first = gr.Dropdown(models, value=models[0][1], label="A", info=TEXT["merge.first"], min_width=200)
            second = gr.Dropdown(
                none, value="", label="B", info=TEXT["merge.second"], min_width=200, elem_id="st-merge-b"
            )
            third = gr.Dropdown(models, value=None, label="C", info=TEXT["merge.third"], min_width=200, visible=False)
        with gr.Row():
            method = gr.Radio(
                [(title, name) for name, title in METHODS.items()], value=SUM, label=TEXT["merge.method"], min_width=260
            )
            ratio = gr.Slider(
                0, 1, 0.5, step=0.05, label=TEXT["merge.ratio"], info=TEXT["merge.ratio.help"], min_width=200
            )
        with gr.Row():
            loras = gr.Dropdown(
                lora_choices(self._services.library), value=[], multiselect=True, label=TEXT["merge.loras"],
                info=TEXT["merge.loras.help"], min_width=260, elem_id="st-merge-loras",
            )  # fmt: skip
            weight = gr.Slider(
                -2, 2, 1.0, step=0.05, label=TEXT["lora.weight"], info=TEXT["merge.weight.help"], min_width=200
            )
        with gr.Row():
            name = gr.Textbox(
                label=TEXT["merge.name"], info=TEXT["merge.name.help"], elem_id="st-merge-name", min_width=260
            )
            precision = gr.Dropdown(
                [*PRECISIONS],
                value="keep",
                label=TEXT["merge.precision"],
                info=TEXT["merge.precision.help"],
                min_width=200,
            )
        run = gr.Button(TEXT["merge.run"], variant="primary", elem_id="st-merge-run")
        said = gr.Markdown("", elem_id="st-merge-result")
        method.change(lambda chosen: gr.update(visible=chosen == DIFFERENCE), [method], [third], **QUIET)
        run.click(
            self.run,
            inputs_kwargs={
                **{"first": first, "second": second, "third": third, "method": method, "ratio": ratio},
                **{"loras": loras, "weight": weight, "name": name, "precision": precision},
            },
            outputs=[said, first, second, third, self._generate.controls["model"]],
            api_visibility="private",
            concurrency_limit=1,
        )
        page.load(lambda: [*self._offered(), gr.update(choices=lora_choices(self._services.library))],
                  outputs=[first, second, third, loras], **QUIET)  # fmt: skip

    def _offered(self) -> list[Any]:
        models = self._generate.model_choices()
        return [
            gr.update(choices=models),
            gr.update(choices=[(TEXT["lora.none"], ""), *models]),
            gr.update(choices=models),
        ]

    def run(self, **values: Any) -> list[Any]:
        """Merge what the form says; the new model is offered at once."""
        names = [values["first"], values["second"], values["third"] if values["method"] == DIFFERENCE else ""]
        chosen = {
            "models": [name for name in names if name],
            "method": values["method"],
            "ratios": [values["ratio"]],
            "loras": [{"name": name, "weight": values["weight"]} for name in values["loras"]],
            "name": (values["name"] or "").strip(),
            "precision": values["precision"],
        }
        try:
            made = merged(self._services, chosen)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        offered = self._offered()
        return [TEXT["merge.done"].format(name=made["model"]), *offered, offered[0]]
