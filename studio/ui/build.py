"""Builds the page: the head line and one tab a file."""

from pathlib import Path

import gradio as gr

from studio.ui.api import Api
from studio.ui.datasets_tab import DatasetsTab
from studio.ui.gallery_tab import build_gallery_tab
from studio.ui.generate_tab import GenerateTab
from studio.ui.lab_tab import LabTab
from studio.ui.lab_text import LAB_TEXT
from studio.ui.merge_panel import MergePanel
from studio.ui.models_tab import ModelsTab
from studio.ui.plot_panel import PlotPanel
from studio.ui.png_info_panel import build_png_info
from studio.ui.runs_tab import RunsTab
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.ui.train_tab import TrainTab
from studio.ui.upscale_panel import UpscalePanel
from studio.ui.vae_panel import build_vae_check

HERE = Path(__file__).parent
RUNS = ("run_charts.js", "runs.js", "run_parts.js", "run_compare.js")
SCRIPTS = (
    *(
        "page.js",
        "plots.js",
        "prompts.js",
        "datasets.js",
        "dataset_trash.js",
        "doctor.js",
        "train.js",
        "lab.js",
        "lab_plane.js",
    ),
    *RUNS,
)
STYLES = ("page.css", "datasets.css", "doctor.css", "runs.css", "lab.css")
HEAD = '<div id="st-title">Studio</div>'
CHIP = (
    '<span id="st-device" class="st-chip" data-state="starting">…</span> '
    f'<button id="st-resume" class="st-button" type="button" title="{TEXT["resume.info"]}" hidden>{TEXT["resume"]}</button> '
    f'<span id="st-offline" hidden>{TEXT["offline"]}</span>'
)


def build_ui(services: Services) -> gr.Blocks:
    """Build the page over the given services; starts nothing."""
    with gr.Blocks(title=TEXT["title"], analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        Api(services).register()  # first: its names are theirs, whatever the page calls its own handlers
        generate, upscale = GenerateTab(services), UpscalePanel(services)
        train = TrainTab(services) if services.training else None
        runs = RunsTab(services) if services.training else None
        build_head(services, generate)
        if train:
            train.build_wish()
        with gr.Tabs(selected="generate") as tabs:
            with gr.Tab(TEXT["tab.generate"], id="generate"):
                generate.build(page, tabs)
            with gr.Tab(TEXT["tab.gallery"], id="gallery") as tab:
                build_gallery_tab(tab)
            if not services.public:
                with gr.Tab(TEXT["tab.datasets"], id="datasets") as tab:
                    datasets = DatasetsTab(services)
                    datasets.build(page, tab, generate.controls["model"])
                    if train:
                        datasets.build_sender(train.wish)
            if train:
                with gr.Tab(TEXT["tab.train"], id="train") as tab:
                    train.build(page, tab, tabs)
            if runs:
                with gr.Tab(TEXT["tab.runs"], id="runs") as tab:
                    runs.build(page, tab, tabs)
            with gr.Tab(TEXT["tab.models"], id="models") as tab:
                ModelsTab(services).build(tab)
            tools = build_tools(services, generate, upscale, page=page, tabs=tabs)
            if not services.public:
                with gr.Tab(LAB_TEXT["tab.lab"], id="lab"):
                    LabTab(services, generate).build(page, tabs)
        if train:
            train.follow(generate.controls["model"])
        upscale.build_sender(tabs, tools)
        if runs:
            runs.build_sender(tabs, generate)
    return page


def build_head(services: Services, generate: GenerateTab) -> None:
    """Build the line above the tabs."""
    with gr.Row(elem_id="st-head"):
        with gr.Column(scale=0, min_width=90):
            gr.HTML(HEAD, padding=False)
        with gr.Column(scale=3, min_width=220):
            generate.build_model_choice()
        with gr.Column(scale=2, min_width=200):
            gr.HTML(CHIP, padding=False)
    if services.policy.author:
        gr.LoginButton(size="sm", elem_id="st-login")


def build_tools(
    services: Services, generate: GenerateTab, upscale: UpscalePanel, *, page: gr.Blocks, tabs: gr.Tabs
) -> gr.Tabs:
    """Build the tab of tools; return its own tabs."""
    with gr.Tab(TEXT["tab.tools"], id="tools") as tab, gr.Tabs(elem_id="st-tools") as tools:
        with gr.Tab(TEXT["tools.upscale"], id="upscale"):
            upscale.build(page, tabs)
        with gr.Tab(TEXT["tools.plot"], id="plot") as section:
            PlotPanel(services, generate).build(tab, section)
        with gr.Tab(TEXT["tools.info"], id="info"):
            build_png_info(generate, tabs)
        with gr.Tab(TEXT["tools.vae"], id="vae"):
            build_vae_check(services, generate.controls["model"], page)
        if not services.public:
            with gr.Tab(TEXT["tools.merge"], id="merge"):
                MergePanel(services, generate).build(page)
    return tools


def page_head() -> str:
    """Return the scripts of the page for `launch(head=…)`."""
    return "".join(f"<script>{(HERE / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)


def page_css() -> str:
    """Return the style of the page for `launch(css=…)`."""
    return "".join((HERE / name).read_text(encoding="utf-8") for name in STYLES)
