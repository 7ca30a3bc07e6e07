"""The Image accordion: a picture to start from, a mask painted on it or given as a file, and how far the canvas grows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import ImageChops

from studio.errors import StudioError
from studio.spec import EXTENSIONS, RESIZE_LABELS, GenerationRequest
from studio.store.blobs import encode
from studio.store.inputs import fitting_size
from studio.transparency import over
from studio.ui.batch_panel import FILES, BatchPanel, Panel
from studio.ui.editor import background, start_of, strokes
from studio.ui.forms import build_control, fields_of
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.units import IMAGE_FIELDS

PAINT = "#ff4d4f"


class ImagePanel:
    """Builds the accordion; the picture and its painted mask live in `editor`, a mask of one's own in `mask`.

    Args:
        services: what the handlers work on.
        panels: of the form, which count for a batch too.
    """

    def __init__(self, services: Services, panels: Sequence[Panel]) -> None:
        self._blobs = services.gallery.blobs
        self.batch = BatchPanel(services, panels)
        self.editor: Any = None
        self.mask: Any = None

    def build(self, values: dict[str, Any]) -> dict[str, Any]:
        """Build the controls; return those of the request's plain fields by name."""
        controls: dict[str, Any] = {}
        with gr.Accordion(TEXT["group.image"], open=False, elem_id="group-image"):
            gr.Markdown(TEXT["image.help"], elem_classes="st-quiet")
            self.editor = gr.ImageEditor(
                type="pil",
                format="png",
                image_mode="RGBA",
                sources=["upload", "clipboard"],
                transforms=[],
                layers=False,
                brush=gr.Brush(colors=[PAINT], color_mode="fixed"),
                canvas_size=(512, 512),
                show_label=False,
                label="Image",
                elem_id="field-image",
                height=420,
            )
            with gr.Row():
                self._open = gr.UploadButton(TEXT["image.open"], file_types=FILES, size="sm", min_width=150)
                self._size = gr.Button(TEXT["image.size"], size="sm", min_width=150)
                self._remove = gr.Button(TEXT["image.remove"], size="sm", min_width=110, elem_id="st-remove-image")
            for name in fields_of(GenerationRequest, "image"):
                controls[name] = self._control(name, values)
            with gr.Accordion(TEXT["group.inpaint"], open=False, elem_id="group-inpaint"):
                self.mask = gr.Image(
                    type="filepath",
                    format="png",
                    image_mode=None,
                    sources=["upload"],
                    label=TEXT["image.mask"],
                    elem_id="field-mask_image",
                    height=200,
                )
                for name in fields_of(GenerationRequest, "inpaint"):
                    controls[name] = self._control(name, values)
            with gr.Accordion(TEXT["group.outpaint"], open=False, elem_id="group-outpaint"):
                for name in fields_of(GenerationRequest, "outpaint"):
                    controls[name] = self._control(name, values)
            self.batch.build()
        return controls

    def _control(self, name: str, values: dict[str, Any]) -> Any:
        choices = [(label, mode) for mode, label in RESIZE_LABELS.items()] if name == "resize_mode" else None
        return build_control(GenerationRequest, name, values[name], choices=choices)

    def bind(self, controls: dict[str, Any]) -> None:
        """Bind the panel's own buttons."""
        private = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        self.targets = [
            *(self.editor, self.mask, controls["width"], controls["height"]),
            *(controls[name] for name in EXTENSIONS),
        ]
        self._open.upload(self.open, [self._open], self.targets, **private)
        self._size.click(self.size, [self.editor], [controls["width"], controls["height"]], **private)
        none = [None, None, gr.skip(), gr.skip(), *(0 for _ in EXTENSIONS)]
        self._remove.click(lambda: none, None, self.targets, **private)

    def open(self, path: str) -> list[Any]:
        """Put a file of any kind that we read into the editor, turned upright; return a value for each of `targets`."""
        try:
            reference = self._blobs.add(Path(path), "image")
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        image = self._blobs.open(reference, "image")
        return [background(image), None, *fitting_size(*image.size), *(0 for _ in EXTENSIONS)]

    def size(self, editor: dict[str, Any] | None) -> list[Any]:
        """Return the picture's own size, rounded to what a model can draw."""
        image = editor.get("background") if editor else None
        if image is None:
            raise gr.Error(TEXT["image.none"], print_exception=False)
        return list(fitting_size(*image.size))

    def taken(self, editor: dict[str, Any] | None, mask: str | None) -> dict[str, str]:
        """Store what the editor and the mask field hold; return the request's fields.

        Raises:
            InvalidRequest: if a file cannot be used.
        """
        image = start_of(editor)
        if editor is None or image is None:
            return {"mask_image": self._blobs.add(Path(mask), "mask_image")} if mask else {}
        fields = {"image": self._blobs.add(encode(image), "image")}
        painted = strokes(editor.get("layers") or [], image.size)
        if mask:
            fields["mask_image"] = self._blobs.add(Path(mask), "mask_image")
            given = over(self._blobs.open(fields["mask_image"], "mask_image"), "black").convert("L")
            if painted is None or given.size != painted.size:
                return fields  # another size is told when the request is checked
            painted = ImageChops.lighter(painted, given)
        if painted is not None:
            fields["mask_image"] = self._blobs.add(encode(painted.convert("RGB")), "mask_image")
        return fields

    def shown(self, values: dict[str, Any]) -> tuple[list[Any], list[str]]:
        """Return what editor and mask field show for the values of a request, and notes about pictures that are gone."""
        found, notes = {}, []
        for name in IMAGE_FIELDS:
            try:
                found[name] = self._blobs.open(values[name], name) if values.get(name) else None
            except StudioError as error:
                notes.append(str(error))
        image = found.get("image")
        return [background(image) if image else None, found.get("mask_image")], notes
