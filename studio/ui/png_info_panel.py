"""PNG Info in the Tools tab: reads how a picture was made and sends that to the form."""

import json
from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.store.metadata import Found, read_picture
from studio.ui.generate_tab import GenerateTab
from studio.ui.text import TEXT


def describe(found: Found) -> str:
    """Return what was read as plain text."""
    if found.source == "none" and not found.values:
        return " ".join([TEXT["info.nothing"], *found.notes])
    facts = found.text or json.dumps(found.values, indent=1, ensure_ascii=False)
    return "\n".join([facts, "", f"Read as: {found.source}", *found.notes])


def build_png_info(generate: GenerateTab, tabs: gr.Tabs) -> None:
    """Build the tool; `generate` is the form that it fills."""
    private = {"api_visibility": "private", "queue": False}
    gr.Markdown(TEXT["info.help"])
    with gr.Row():
        picture = gr.File(
            label="Picture", file_types=[".png", ".jpg", ".jpeg", ".webp"], type="filepath", elem_id="st-info-file"
        )
        text = gr.Textbox(label="What it says", lines=10, interactive=False, elem_id="st-info-text")
    values = gr.State({})
    send = gr.Button(TEXT["info.send"], interactive=False, elem_id="st-info-send")

    def read(path: str | None) -> tuple[str, dict[str, Any], Any]:
        if path is None:
            return "", {}, gr.update(interactive=False)
        try:
            found = read_picture(Path(path))
        except StudioError as error:
            return str(error), {}, gr.update(interactive=False)
        return describe(found), found.values, gr.update(interactive=bool(found.values))

    def send_values(found: dict[str, Any]) -> list[Any]:
        shown, notes = generate.form_values(found, pictures=not generate.public)
        if notes:
            gr.Info(" ".join(notes))
        return [*shown, gr.Tabs(selected="generate")]

    picture.change(read, [picture], [text, values, send], **private)
    send.click(send_values, [values], [*generate.filled, tabs], **private)
