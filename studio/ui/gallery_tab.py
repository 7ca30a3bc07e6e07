"""The Gallery tab: a static frame that page.js fills from `GET /studio/gallery`."""

import gradio as gr

from studio.ui.text import TEXT

FRAME = f"""
<div id="sg">
  <div id="sg-bar">
    <input type="search" id="sg-words" placeholder="{TEXT["gallery.search"]}" aria-label="{TEXT["gallery.search"]}">
    <select id="sg-model" aria-label="Model"><option value="">All models</option></select>
    <select id="sg-day" aria-label="Day"><option value="">All days</option></select>
    <label class="st-quiet"><input type="checkbox" id="sg-star"> Starred</label>
    <span id="sg-picked" class="st-quiet"></span>
    <button type="button" class="st-button" id="sg-zip" data-gallery="zip" disabled>Download zip</button>
    <button type="button" class="st-button" id="sg-delete" data-gallery="remove" disabled>Delete</button>
    <button type="button" class="st-button" id="sg-trash" data-gallery="toggleTrash">Trash</button>
    <button type="button" class="st-button" id="sg-empty" data-gallery="emptyTrash" hidden>Empty trash</button>
  </div>
  <div id="sg-usage" class="st-quiet"></div>
  <div id="sg-problem" role="alert"></div>
  <div id="sg-none" class="st-quiet" hidden>{TEXT["gallery.none"]}</div>
  <div id="sg-grid"></div>
  <button type="button" class="st-button" id="sg-more" data-gallery="load" hidden>Show more</button>
  <dialog id="sg-detail"></dialog>
</div>
"""


def build_gallery_tab(tab: gr.Tab) -> None:
    """Build the frame and load the first page when the tab is opened."""
    gr.HTML(FRAME, padding=False)
    tab.select(None, js="() => { setTimeout(() => studio.gallery.open(), 50); }", api_visibility="private")
