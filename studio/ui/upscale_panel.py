"""The Upscale tool: a finished picture becomes larger, as a job like any other."""

import json
from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import InvalidRequest, StudioError
from studio.spec import GenerationRequest, parse_request
from studio.store.library import Library
from studio.ui.forms import facts_of
from studio.ui.image_panel import FILES
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.upscalers import BUILT_IN, LANCZOS, LATENT, upscaler_label

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}


def upscaler_choices(library: Library, *, drawing: bool) -> list[tuple[str, str]]:
    """Return (label, id) of all upscalers that can be used; `latent` only while a model draws."""
    built_in = [name for name in BUILT_IN if drawing or name != LATENT]
    models = [part.id for part in library.parts.parts("upscaler") if not part.problem]
    return [(upscaler_label(name), name) for name in (*built_in, *models)]


def enlarging(image: str, scale: float, upscaler: str) -> dict[str, Any]:
    """Return the fields of a request that only enlarges a picture.

    Raises:
        InvalidRequest: if nothing would become larger.
    """
    if isinstance(scale, int | float) and scale == 1:
        raise InvalidRequest("hires_scale", "scale=1 leaves the picture as it is; use more than 1, at most 4")
    return {"image": image, "strength": 0, "hires_scale": scale, "hires_upscaler": upscaler}


class UpscalePanel:
    """Builds the tool.

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def build(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        """Build the controls and bind their events; the result shows where every picture does, on the Generate tab."""
        gr.Markdown(TEXT["upscale.info"], elem_id="st-upscale")
        with gr.Row():
            with gr.Column(min_width=260):
                picture = self._picture = gr.Image(
                    type="filepath",
                    format="png",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    label=TEXT["upscale.picture"],
                    elem_id="st-upscale-image",
                    height=260,
                )
                opener = gr.UploadButton(TEXT["image.open"], file_types=FILES, size="sm", min_width=150)
            with gr.Column(min_width=260):
                scale, upscaler = self._controls()
                run = gr.Button(TEXT["upscale.run"], variant="primary", elem_id="st-upscale-run")
        result = gr.Textbox(visible="hidden")
        opener.upload(self.open, [opener], [picture], **PRIVATE)
        run.click(
            self.submit,
            inputs_kwargs={"picture": picture, "scale": scale, "upscaler": upscaler},
            outputs=[result, tabs],
            **PRIVATE,
        ).success(None, inputs=[result], js="(text) => { studio.submitted(text); }", api_visibility="private")
        page.load(
            lambda: gr.update(choices=upscaler_choices(self._services.library, drawing=False)),
            outputs=[upscaler],
            **PRIVATE,
        )

    def build_sender(self, tabs: gr.Tabs, tools: gr.Tabs) -> None:
        """Build what page.js clicks; outside of the tabs, because what is in one is not in the document until it is opened."""
        sent = gr.Textbox(visible="hidden")
        send = gr.Button("to upscale", elem_id="st-to-upscale", elem_classes="st-hidden")
        send.click(self.take, [sent], [self._picture, tabs, tools], js="() => [studio.pending()]", **PRIVATE)

    def _controls(self) -> tuple[Any, Any]:
        """Build scale and upscaler; range and words are those of the request's fields."""
        facts = {name: facts_of(GenerationRequest.model_fields[name]) for name in ("hires_scale", "hires_upscaler")}
        most, step = facts["hires_scale"]["le"], facts["hires_scale"]["step"]
        scale = gr.Slider(
            1 + step, most, value=2.0, step=step, label=facts["hires_scale"]["label"], elem_id="st-upscale-scale"
        )
        upscaler = gr.Dropdown(
            upscaler_choices(self._services.library, drawing=False),
            value=LANCZOS,
            label=facts["hires_upscaler"]["label"],
            info=TEXT["upscale.models"],
            elem_id="st-upscale-upscaler",
        )
        return scale, upscaler

    def _owner(self, request: gr.Request) -> str | None:
        return self._services.limit(request.headers)

    def submit(self, request: gr.Request, picture: str | None, scale: float, upscaler: str) -> tuple[str, Any]:
        """Queue the job; return JSON for the page and the tab that shows it."""
        try:
            if not picture:
                raise StudioError(TEXT["image.none"])
            parse_request(enlarging("given", scale, upscaler))  # before a picture is stored
            reference = self._services.gallery.blobs.add(Path(picture), "image")
            wanted = parse_request(enlarging(reference, scale, upscaler))
            job = self._services.dispatcher.submit(wanted, self._services.owner(request.headers))
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return json.dumps({"job": job.id}), gr.Tabs(selected="generate")

    def open(self, path: str) -> Any:
        """Show a file of any kind that we read, turned upright."""
        try:
            return self._services.gallery.blobs.open(self._services.gallery.blobs.add(Path(path), "image"), "image")
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def take(self, image_id: str, request: gr.Request) -> tuple[Any, Any, Any]:
        """Put a picture of the gallery into the tool and show it."""
        try:
            path = self._services.gallery.path(image_id, self._owner(request))
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return self.open(str(path)), gr.Tabs(selected="tools"), gr.Tabs(selected="upscale")
