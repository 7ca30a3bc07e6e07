"""Reload at random moments while a person types: captions are on the server, the form of a run is in the browser, nothing is lost."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import App
from tests.test_browser import chrome, pytestmark, turn_to  # noqa: F401
from tests.test_datasets_page import cards, create, open_tab, pictures

CAPTION, WORD, THING = ".sd-card textarea", "#train-word :is(input, textarea)", "#train-thing :is(input, textarea)"
SETTLED = "(told) => told.every(([box, text]) => document.querySelector(box)?.value === text)"


@pytest.fixture
def page(chrome: Any, app: App) -> Iterator[Any]:  # noqa: F811
    context = chrome.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.set_default_timeout(60_000)
    tab.goto(app.url, wait_until="domcontentloaded")
    tab.wait_for_selector("#st-viewer")
    yield tab
    assert tab.problems == []
    context.close()


def open_train(page: Any) -> None:
    turn_to(page, "Train")
    page.wait_for_selector(THING)


def test_ten_reloads_lose_nothing(page: Any, app: App, tmp_path: Path) -> None:
    moments, caption = random.Random(7), ""
    create(page, "reloads")
    page.set_input_files("#sd-files", pictures(tmp_path / "dog", 1))
    cards(page, 1)
    for turn in range(10):
        caption, word, thing = f"{caption} word{turn}".strip(), f"sks{turn}", f"thing{turn}"
        parts = [(open_tab, [(CAPTION, caption)]), (open_train, [(WORD, word), (THING, thing)])]
        moments.shuffle(parts)
        for opened, texts in parts:
            opened(page)
            for box, text in texts:
                page.fill(box, text)
        page.wait_for_timeout(moments.choice((0, 0, 20, 100, 250, 450)))
        page.reload(wait_until="domcontentloaded")
        page.wait_for_selector("#st-viewer")
        for opened, texts in parts:
            opened(page)
            page.wait_for_function(SETTLED, arg=texts)
    assert (app.data / "datasets" / "reloads" / "photo 0.txt").read_text() == caption
