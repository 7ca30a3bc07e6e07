"""Builds the page: the head line and one tab a file."""

from pathlib import Path

import gradio as gr

from studio.ui.api import Api
from studio.ui.gallery_tab import build_gallery_tab
from studio.ui.generate_tab import GenerateTab
from studio.ui.plot_panel import PlotPanel
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.ui.tools_tab import build_tools_tab
from studio.ui.upscale_panel import UpscalePanel
from studio.ui.vae_panel import build_vae_check

HERE = Path(__file__).parent
SCRIPTS = ("page.js", "plots.js")
HEAD = '<div id="st-title">Studio</div>'
CHIP = f'<span id="st-device" class="st-chip" data-state="starting">…</span> <span id="st-offline" hidden>{TEXT["offline"]}</span>'


def build_ui(services: Services) -> gr.Blocks:
    """Build the page over the given services; starts nothing."""
    with gr.Blocks(title=TEXT["title"], analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        generate = GenerateTab(services)
        with gr.Row(elem_id="st-head"):
            with gr.Column(scale=0, min_width=90):
                gr.HTML(HEAD, padding=False)
            with gr.Column(scale=3, min_width=220):
                generate.build_model_choice()
            with gr.Column(scale=2, min_width=200):
                gr.HTML(CHIP, padding=False)
        with gr.Tabs(selected="generate") as tabs:
            with gr.Tab(TEXT["tab.generate"], id="generate"):
                generate.build(page, tabs)
            with gr.Tab(TEXT["tab.gallery"], id="gallery") as tab:
                build_gallery_tab(tab)
            with gr.Tab(TEXT["tab.tools"], id="tools") as tab:
                build_tools_tab(generate, tabs)
                PlotPanel(services, generate).build(tab)
                UpscalePanel(services).build(page, tabs)
                build_vae_check(services, generate.controls["model"], page)
        Api(services).register()
    return page


def page_head() -> str:
    """Return the scripts of the page for `launch(head=…)`."""
    return "".join(f"<script>{(HERE / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)


def page_css() -> str:
    """Return the style of the page for `launch(css=…)`."""
    return (HERE / "page.css").read_text(encoding="utf-8")
