"""Masks on the Datasets tab: which part of a picture counts; painted, found, or taken from what is transparent."""

from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from studio.errors import InvalidRequest, StudioError
from studio.findings import Change
from studio.store.blobs import decode, encode, read_file
from studio.store.datasets import mask_file
from studio.tools import CutoutCall
from studio.ui.editor import empty, strokes
from studio.ui.image_panel import PAINT
from studio.ui.services import Services
from studio.ui.text import TEXT

SHOWN = 768  # pixels of the long side at which a picture is painted on; the mask becomes as large as the picture
COUNTED = (255, 77, 79, 150)  # `PAINT`, so that what is below stays visible
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
SLOW: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1}


class MaskPanel:
    """Builds the accordion.

    Args:
        services: what the handlers work on.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def build(self, chosen: gr.Dropdown, changed: gr.Number) -> None:
        """Build the controls and bind their events.

        Args:
            chosen: the datasets' names.
            changed: counted up when files changed.
        """
        with gr.Accordion(TEXT["mask"], open=False, elem_id="sd-mask"):
            gr.Markdown(TEXT["mask.help"], elem_classes="st-quiet")
            picture = gr.Dropdown(
                [], value=None, label=TEXT["mask.picture"], info=TEXT["mask.picture.help"], elem_id="sd-mask-picture"
            )
            editor = gr.ImageEditor(
                type="pil", format="png", image_mode="RGBA", sources=[], transforms=[], layers=False,
                brush=gr.Brush(colors=[PAINT], color_mode="fixed"), canvas_size=(512, 512), show_label=False,
                label=TEXT["mask"], elem_id="sd-mask-editor", height=420,
            )  # fmt: skip
            gr.Markdown(TEXT["mask.find.help"], elem_classes="st-quiet")
            with gr.Row():
                find = gr.Button(TEXT["mask.find"], size="sm", min_width=130, elem_id="sd-mask-find")
                alpha = gr.Button(TEXT["mask.alpha"], size="sm", min_width=130, elem_id="sd-mask-alpha")
                save = gr.Button(TEXT["mask.save"], size="sm", variant="primary", min_width=130, elem_id="sd-mask-save")
                remove = gr.Button(TEXT["mask.remove"], size="sm", min_width=130, elem_id="sd-mask-remove")
            said = gr.Markdown(elem_id="sd-mask-said")
        which, result = [chosen, picture], [editor, said, changed]
        gr.on([chosen.change, changed.change], self.pictures, which, [picture], **QUIET)
        picture.change(self.show, which, [editor, said], **QUIET)
        find.click(self.find, [*which, editor], [editor, said], **SLOW)
        save.click(self.save, [*which, editor, changed], result, **SLOW)
        alpha.click(self.from_alpha, [*which, changed], result, **SLOW)
        remove.click(self.remove, [*which, changed], result, **SLOW)

    def pictures(self, chosen: str | None, picture: str | None) -> Any:
        """Offer the pictures of a dataset; the one at hand stays chosen."""
        if chosen not in self._services.datasets.names():
            return gr.update(choices=[], value=None)
        found = self._services.datasets.pictures(chosen)
        names = [(f"{one.name}{' ◐' * one.has_mask}", one.name) for one in found if not one.problem]
        return gr.update(choices=names, value=picture if picture in [name for _, name in names] else None)

    def show(self, chosen: str | None, picture: str | None) -> list[Any]:
        """Put a picture and its mask into the editor."""
        if not chosen or not picture:
            return [None, ""]
        try:
            image = self._services.datasets.image(chosen, picture)
            file = mask_file(self._services.datasets.path(chosen, picture))
            mask = luminance(decode(read_file(file))) if file.is_file() else None
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [in_editor(image, mask), ""]

    def find(self, chosen: str | None, picture: str | None, editor: dict[str, Any] | None) -> list[Any]:
        """Look for the subject; what is painted already belongs to it."""
        try:
            image = self._image(chosen, picture)
            blobs = self._services.gallery.blobs
            small = shown(flat(image))
            painted = painted_on(editor, small.size)
            call = CutoutCall(
                image=blobs.add(encode(small), "image"),
                painted=blobs.add(encode(painted.convert("RGB")), "painted") if painted else None,
            )
            answer = self._services.dispatcher.ask(call)
            mask = Image.open(self._services.settings.tool_pictures / f"{answer.pictures['mask']}.png").convert("L")
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if not answer.values["part"]:
            return [gr.skip(), TEXT["mask.nothing"]]
        return [in_editor(image, mask), TEXT["mask.found"].format(part=f"{answer.values['part']:.0%}")]

    def save(self, chosen: str | None, picture: str | None, editor: dict[str, Any] | None, changed: float) -> list[Any]:
        """Keep what is painted as the picture's mask."""
        try:
            image = self._image(chosen, picture)
            painted = painted_on(editor, image.size)
            if painted is None:
                raise InvalidRequest("mask", TEXT["mask.unpainted"])
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return self._change(chosen, picture, painted, changed)

    def from_alpha(self, chosen: str | None, picture: str | None, changed: float) -> list[Any]:
        """Make the mask of what is opaque."""
        return self._change(chosen, picture, "alpha", changed)

    def remove(self, chosen: str | None, picture: str | None, changed: float) -> list[Any]:
        """Let all of the picture count."""
        return self._change(chosen, picture, None, changed)

    def _image(self, chosen: str | None, picture: str | None) -> Image.Image:
        if not chosen or not picture:
            raise InvalidRequest("picture", TEXT["mask.none"])
        return self._services.datasets.image(chosen, picture)

    def _change(self, chosen: str | None, picture: str | None, mask: Any, changed: float) -> list[Any]:
        try:
            self._image(chosen, picture)
            change = Change(picture or "", "mask", mask)
            self._services.changes.make(chosen or "", [change], TEXT["mask.remove" if mask is None else "mask.save"])
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        editor, _ = self.show(chosen, picture)
        if mask is None:
            return [editor, TEXT["mask.removed"].format(picture=picture), changed + 1]
        kept = np.asarray(
            decode(read_file(mask_file(self._services.datasets.path(chosen or "", picture or "")))).convert("L")
        )
        part = f"{float((kept > 127).mean()):.0%}"
        return [editor, TEXT["mask.saved"].format(part=part, picture=picture), changed + 1]


def flat(image: Image.Image) -> Image.Image:
    """Return a picture as training sees it: transparent parts white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def luminance(mask: Image.Image) -> Image.Image:
    """Return a mask's white, transparent parts black, as training reads it."""
    if mask.mode == "RGBA":
        mask = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask)
    return mask.convert("L")


def shown(image: Image.Image) -> Image.Image:
    """Return a picture small enough to be painted on."""
    scale = min(1.0, SHOWN / max(image.size))
    return (
        image if scale == 1 else image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    )


def in_editor(image: Image.Image, mask: Image.Image | None) -> dict[str, Any]:
    """Return what the editor shows: a picture, and its mask as paint that can be erased."""
    background = shown(flat(image)).convert("RGBA")
    layers = []
    if mask is not None:
        paint = Image.new("RGBA", background.size, COUNTED)
        white = mask.resize(background.size).point([0] * 128 + [255] * 128)
        layers = [Image.composite(paint, Image.new("RGBA", background.size), white)]
    return {"background": background, "layers": layers, "composite": None}


def painted_on(editor: dict[str, Any] | None, size: tuple[int, int]) -> Image.Image | None:
    """Return what is painted as a mask of a size; None if nothing is, or no picture is shown."""
    image = editor.get("background") if editor else None
    if editor is None or image is None or empty(image):
        return None
    painted = strokes(editor.get("layers") or [], image.size)
    return painted.resize(size).point([0] * 128 + [255] * 128) if painted else None
