"""A beginner's first training, in a real browser: choose, press Start, and the run is there. Laptop and phone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import App, wait_for
from tests.test_browser import chrome, pytestmark, turn_to  # noqa: F401
from tests.training import draw_pictures


@pytest.fixture(scope="module")
def hearts(app: App) -> App:
    """The app of all tests that only use it, with pictures to learn from."""
    draw_pictures(app.data / "datasets" / "hearts")
    draw_pictures(app.data / "datasets" / "stars", 2)
    return app


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["laptop", "phone"])
def page(chrome: Any, hearts: App, request: pytest.FixtureRequest) -> Iterator[Any]:  # noqa: F811
    width, height = request.param
    context = chrome.new_context(viewport={"width": width, "height": height})
    tab: Any = context.new_page()
    tab.set_default_timeout(60_000)
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.goto(hearts.url, wait_until="domcontentloaded")
    tab.wait_for_selector("#st-viewer")
    yield tab
    assert tab.problems == []
    context.close()


def opened(page: Any) -> None:
    turn_to(page, "Train")
    page.wait_for_selector("#train-method input:checked")


def test_a_beginner_starts_a_run_in_five_clicks(page: Any, hearts: App) -> None:
    opened(page)  # the first click
    assert page.locator("#train-method label").count() == 6
    page.click("#train-start")  # nothing is chosen yet
    page.wait_for_selector("#train-dataset .train-problem:has-text('dataset is empty')")
    page.click("#train-dataset input")
    page.get_by_role("option", name="hearts").click()
    page.fill("#train-thing input, #train-thing textarea", "heart")
    before = {row["id"] for row in hearts.get("/studio/runs").json()["runs"]}
    page.click("#train-start")
    page.wait_for_selector("#train-message:has-text('is in the queue')", state="attached")  # the page turned to Runs
    (run_id,) = {row["id"] for row in hearts.get("/studio/runs").json()["runs"]} - before
    config = hearts.get(f"/studio/run/{run_id}").json()["config"]
    assert (config["instance_prompt"], config["class_prompt"]) == ("a sks heart", "a heart")
    assert config["dataset"] == "hearts" and config["with_prior_preservation"] and config["max_train_steps"] == 120
    wait_for(lambda: hearts.get(f"/studio/run/{run_id}").json()["state"] not in ("new", "queued"))
    httpx.post(f"{hearts.url}/studio/run/{run_id}/cancel", json={}, timeout=30)
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    page.wait_for_function("() => JSON.parse(localStorage.getItem('studio-train') || '{}').thing === 'heart'")
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#st-viewer")
    opened(page)
    page.wait_for_function(
        "() => document.querySelector('#train-thing input, #train-thing textarea').value === 'heart'"
    )


def test_wrong_values_are_told_beside_their_field_in_its_accordion(page: Any, hearts: App) -> None:
    opened(page)
    page.click("#train-method label:has-text('A style')")
    page.wait_for_selector("#train-about:has-text('lora-shapes')")
    page.click("#train-all > button")
    page.click("#train-group-network > button")
    page.fill("#train-rank input", "0")
    page.wait_for_selector("#train-rank .train-problem:has-text('rank=0 must be at least 1')")
    page.fill("#train-rank input", "4")
    page.wait_for_selector("#train-rank .train-problem", state="detached")
    page.click("#train-command-line > button")
    page.wait_for_function("() => document.querySelector('#train-command textarea')?.value.includes('rank: 4')")
    kept = json.loads(page.evaluate("() => localStorage.getItem('studio-train')"))
    assert kept["method"] == "lora" and kept["rank"] == 4
    folder = Path(hearts.data) / "runs"
    assert f"mkdir -p {folder}" in page.eval_on_selector("#train-command textarea", "box => box.value")
