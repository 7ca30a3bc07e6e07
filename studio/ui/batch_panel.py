"""Batch: several pictures are uploaded at once, and each becomes an img2img job with the form's settings."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from studio.errors import InvalidRequest, StudioError
from studio.spec import EXTENSIONS, GenerationRequest, parse_request
from studio.ui.editor import start_of
from studio.ui.forms import from_page
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.upscalers import of_own_size

logger = logging.getLogger(__name__)

FILES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"]
FILES_MAX = 200
FILES_MAX_PUBLIC = 16
TOLD = 3  # refused files that are named


class Panel(Protocol):
    """An accordion of the form that is read as a whole: its components by name, and what they say of a request."""

    inputs: dict[str, Any]

    def taken(self, values: dict[str, Any]) -> dict[str, Any]: ...


class BatchPanel:
    """Builds the accordion within Image.

    Args:
        services: what the handlers work on.
        panels: of the form, which count for each picture.
    """

    def __init__(self, services: Services, panels: Sequence[Panel]) -> None:
        self._services, self._panels = services, panels
        self._files: Any = None
        self._run: Any = None

    def build(self) -> None:
        """Build the accordion."""
        with gr.Accordion(TEXT["group.batch"], open=False, elem_id="group-batch"):
            gr.Markdown(TEXT["batch.help"], elem_classes="st-quiet")
            self._files = gr.File(
                file_count="multiple",
                type="filepath",
                file_types=FILES,
                show_label=False,
                label="Pictures",
                height=160,
                elem_id="field-batch",
            )
            self._run = gr.Button(TEXT["batch.run"], elem_id="st-batch")

    def bind(self, inputs: dict[str, Any], result: Any) -> None:
        """Bind the button: `inputs` are the form's components by name, `result` is where the page reads what came of it."""
        self._run.click(
            self.submit,
            inputs_kwargs=inputs | {"files": self._files},
            outputs=[result],
            api_visibility="private",
            show_progress="hidden",
            queue=False,
        ).success(None, inputs=[result], js="(text) => { studio.submitted(text); }", api_visibility="private")

    def submit(self, request: gr.Request, **values: Any) -> str:
        """Queue a job a picture; return JSON for the page: {"job", "note"} or {"error", "field"}."""
        files = [Path(path) for path in values.pop("files") or ()]
        held = start_of(values.pop("editor")) is not None
        values.pop("mask")  # painted for one picture, it means nothing for the others
        try:
            return json.dumps(self._submit_all(files, values, held, self._services.owner(request.headers)))
        except StudioError as error:
            return json.dumps({"error": str(error), "field": error.field if isinstance(error, InvalidRequest) else ""})
        except Exception:  # a process boundary: the page shall hear of it, and go on
            logger.exception("batch")
            return json.dumps({"error": "This is a fault in Studio; the log has the details.", "field": ""})

    def _submit_all(self, files: list[Path], values: dict[str, Any], held: bool, owner: str) -> dict[str, str]:
        """Queue what can be drawn; `held` says whether the form has a picture, because that switches some controls off.

        Raises:
            StudioError: if that is nothing.
        """
        most = FILES_MAX_PUBLIC if self._services.public else FILES_MAX
        if not files:
            raise InvalidRequest("batch", TEXT["batch.none"])
        if len(files) > most:
            raise InvalidRequest("batch", TEXT["batch.many"].format(number=len(files), most=most))
        units = {name: values.pop(name) for panel in self._panels for name in panel.inputs}
        plain = from_page(GenerationRequest, values)
        parse_request(plain | dict.fromkeys(EXTENSIONS, 0))
        plain = self._services.library.usable(plain | ({"image": "given"} if held else {}))
        parse_request(plain | {"image": "given"})  # before a picture is stored
        for panel in self._panels:
            plain |= panel.taken(units)
        dispatcher, jobs, refused = self._services.dispatcher, [], []
        dispatcher.check_room(len(files), owner)
        for path in files:
            try:
                picture = self._services.gallery.blobs.add(path, "image")
                jobs.append(dispatcher.submit(of_own_size(parse_request(plain | {"image": picture})), owner))
            except InvalidRequest as error:
                refused.append(str(error).removeprefix("image="))
        told = [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in refused[:TOLD]]
        if len(refused) > TOLD:
            told.append(TEXT["batch.more"].format(number=len(refused) - TOLD))
        if not jobs:
            raise InvalidRequest("batch", " ".join(told))
        return {"job": jobs[0].id, "note": " ".join([TEXT["batch.queued"].format(number=len(jobs)), *told])}
