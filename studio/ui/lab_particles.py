"""The Lab in two dimensions on the page: a canvas to draw points on, and films of particles, which lab_plane.js draws."""

import html
import json
from typing import Any

import gradio as gr

from studio.lab import Particles
from studio.lab_plane import DRAWN_MAX, REACH
from studio.ui.lab_text import LAB_TEXT, WORDS


def build_points(panel: str, name: str, label: str, info: str) -> Any:
    """Build the canvas; return the hidden box that holds its points as JSON."""
    place = f"lab-{panel}-{name}"
    gr.HTML(
        f'<div class="lab-draw" data-into="{place}" data-reach="{REACH}" data-most="{DRAWN_MAX}">'
        f'<div class="st-panel-title">{html.escape(label)}</div><div class="st-quiet">{html.escape(info)}</div>'
        f'<canvas role="img" aria-label="{html.escape(label)}"></canvas>'
        f'<div class="st-row"><button type="button" class="st-button">{LAB_TEXT["lab.clear"]}</button>'
        f'<span class="st-quiet">{LAB_TEXT["lab.points"].format(number=0)}</span></div></div>',
        padding=False,
    )
    return gr.Textbox("", visible="hidden", elem_id=place)


def bind_points(box: Any, shape: Any) -> None:
    """Let the choice of a shape follow what is drawn."""
    script = '(text, shape) => text && text !== "[]" ? "drawn" : (shape === "drawn" ? "moons" : shape)'
    box.change(None, inputs=[box, shape], outputs=[shape], js=script, api_visibility="private")


def particles_html(films: tuple[Particles, ...]) -> str:
    """Return films of particles beside each other, and one slider over their moments."""
    if not films:
        return ""
    data = json.dumps([film.model_dump(mode="json") for film in films], separators=(",", ":"))
    figures = "".join(
        f"<figure><figcaption>{html.escape(WORDS.get(film.name, film.name))}</figcaption>"
        f'<canvas class="lab-square" role="img" aria-label="{LAB_TEXT["lab.square"]}"></canvas>'
        f'<canvas class="lab-along" role="img" aria-label="{LAB_TEXT["lab.along"]}"></canvas></figure>'
        for film in films
    )
    last = len(films[0].clouds) - 1
    return (
        f'<div class="lab-particles" data-films="{html.escape(data)}">'
        f'<div class="lab-squares">{figures}</div>'
        f'<div class="lab-play"><button type="button" class="st-button">{LAB_TEXT["lab.play"]}</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="{LAB_TEXT["lab.film"]}">'
        f'<span class="lab-caption"></span></div><div class="st-quiet">{LAB_TEXT["lab.particles"]}</div></div>'
    )
