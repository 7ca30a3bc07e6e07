"""The VAE check: what a model's autoencoder keeps of a picture."""

from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.parts import OWN_VAE, shape_problem
from studio.plots import label_of
from studio.store.library import Library
from studio.tools import ToolAnswer, VaeCheckCall
from studio.ui.services import Services
from studio.ui.text import TEXT

SHOWN = ("given", "decoded", "difference")


def vae_choices(library: Library, model_id: str) -> list[tuple[str, str]]:
    """Return (label, name) of what can turn a model's latents into colours: Automatic, its own, and every VAE that fits."""
    try:
        shape = library.get(model_id).shape
    except StudioError:
        shape = {}
    parts = [part.id for part in library.parts.parts("vae") if not part.problem and not shape_problem(part, shape)]
    return [(TEXT["vae.automatic"], ""), (TEXT["vae.own"], OWN_VAE), *((name, name) for name in parts)]


def offered(library: Library, model_id: str, chosen: str | None, first: int = 0) -> Any:
    """Return the update of a dropdown of VAEs for a model; a choice that does not fit it gives way to the first that is offered."""
    choices = vae_choices(library, model_id)[first:]
    return gr.update(choices=choices, value=chosen if chosen in {name for _, name in choices} else choices[0][1])


def build_vae_check(services: Services, model: Any, page: gr.Blocks) -> None:
    """Build the tool; `model` is the page's model dropdown."""
    gr.Markdown(TEXT["vae.info"])
    with gr.Row():
        with gr.Column(min_width=260):
            picture = gr.Image(
                type="filepath", format="png", image_mode=None, sources=["upload", "clipboard"],
                label=TEXT["vae.given"], elem_id="st-vae-image", height=220,
            )  # fmt: skip
            vae = gr.Dropdown(
                vae_choices(services.library, services.settings.model)[1:], value=OWN_VAE,
                label=label_of("vae"), info=TEXT["vae.choice"], elem_id="st-vae-choice",
            )  # fmt: skip
            run = gr.Button(TEXT["vae.run"], elem_id="st-vae-run")
        with gr.Column(min_width=260):
            result = gr.HTML(f'<div class="st-quiet">{TEXT["vae.empty"]}</div>', elem_id="st-vae-result", padding=False)

    def check(path: str | None, model_id: str, name: str | None) -> str:
        if not path:
            raise gr.Error(TEXT["image.none"], print_exception=False)
        try:
            found, part = services.library.get(model_id), services.library.vae_of(model_id, name)
            reference = services.gallery.blobs.add(Path(path), "image")
            call = VaeCheckCall(image=reference, model=services.library.reference(found), vae=part)
            return described(services.dispatcher.ask(call))
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def offer(model_id: str, name: str | None) -> Any:
        return offered(services.library, model_id, name, 1)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    model.change(offer, [model, vae], [vae], **quiet)
    page.load(offer, [model, vae], [vae], **quiet)
    run.click(check, [picture, model, vae], [result], api_visibility="private", concurrency_limit=2)


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
    numbers = "<br>".join([numbers, *values.get("notes", ())])
    return f'<div class="st-figures">{figures}</div><div>{numbers}</div>'
