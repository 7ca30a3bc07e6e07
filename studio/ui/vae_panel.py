"""The VAE check: what a model's autoencoder keeps of a picture."""

from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.tools import ToolAnswer, VaeCheckCall
from studio.ui.services import Services
from studio.ui.text import TEXT

SHOWN = ("given", "decoded", "difference")


def build_vae_check(services: Services, model: Any) -> None:
    """Build the tool; `model` is the page's model dropdown."""
    gr.Markdown(TEXT["vae.info"])
    with gr.Row():
        with gr.Column(min_width=260):
            picture = gr.Image(
                type="filepath", format="png", image_mode=None, sources=["upload", "clipboard"],
                label=TEXT["vae.given"], elem_id="st-vae-image", height=220,
            )  # fmt: skip
            run = gr.Button(TEXT["vae.run"], elem_id="st-vae-run")
        with gr.Column(min_width=260):
            result = gr.HTML(f'<div class="st-quiet">{TEXT["vae.empty"]}</div>', elem_id="st-vae-result", padding=False)

    def check(path: str | None, model_id: str) -> str:
        if not path:
            raise gr.Error(TEXT["image.none"], print_exception=False)
        try:
            reference = services.gallery.blobs.add(Path(path), "image")
            call = VaeCheckCall(image=reference, model=services.library.reference(services.library.get(model_id)))
            return described(services.dispatcher.ask(call))
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error

    run.click(check, [picture, model], [result], api_visibility="private", concurrency_limit=2)


def described(answer: ToolAnswer) -> str:
    """Return pictures and numbers of an answer as HTML; all of it comes from our own process."""
    figures = "".join(
        f'<figure><img src="studio/tool/{answer.pictures[name]}" alt="{name}">'
        f"<figcaption>{TEXT[f'vae.{name}']}</figcaption></figure>"
        for name in SHOWN
    )
    values = answer.values
    channels = ", ".join(
        f"{mean:g} ± {deviation:g}" for mean, deviation in zip(values["means"], values["deviations"], strict=True)
    )
    numbers = TEXT["vae.numbers"].format(channels=channels, **values)
    return f'<div class="st-figures">{figures}</div><div>{numbers}</div>'
