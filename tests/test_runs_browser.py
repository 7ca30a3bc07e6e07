"""A run in a real browser: it is watched, paused, sampled, ends, is used, kept and compared. Laptop, then phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.store.runs import Runs
from tests.conftest import App, launch, wait_for
from tests.test_browser import chrome, pytestmark  # noqa: F401
from tests.training import config_of, draw_pictures
from trainers.config_files import dump_config

LONG = 120_000  # milliseconds: training and a browser share two cores


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[App]:
    """An app of its own, because a run takes the device from the tests that draw."""
    running = launch(tmp_path / "data", "--cpu-threads", "1")
    yield running
    for run_id in Runs(running.data / "runs").ids():
        httpx.post(f"{running.url}/studio/run/{run_id}/cancel", json={})
        wait_for(lambda run_id=run_id: not Runs(running.data / "runs").alive(run_id))
    running.stop()


def opened(chrome: Any, app: App, width: int, height: int) -> Any:  # noqa: F811
    page = chrome.new_context(viewport={"width": width, "height": height}).new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(app.url, wait_until="domcontentloaded")
    page.wait_for_selector("#st-viewer", timeout=60_000)
    return page


def state(page: Any, name: str) -> None:
    page.wait_for_selector(f"#sr-state[data-state={name}]", timeout=LONG)


def press(page: Any, words: str) -> None:
    page.locator("#sr-buttons button:not([disabled])", has_text=words).click(timeout=LONG)


def create(app: App, pictures: Path) -> str:
    """Make a run without an end, whose samples are drawn in two steps."""
    config = config_of(
        "lora", pictures, rank=2, output_name="heart", trigger_word="sks heart", max_train_steps=100_000, checkpointing_steps=0
    )  # fmt: skip
    row = {"prompt": "a sks heart", "model": "shapes", "seed": 1, "width": 64, "height": 64, "num_inference_steps": 2}
    return Runs(app.data / "runs").create("lora", "heart", dump_config(config), [row])


def watched(page: Any) -> None:
    """Pause, reload, go on, sample twice: the page tells each."""
    page.wait_for_function(
        "() => /training heart, step \\d+ of 100000/.test(document.querySelector('#st-device').textContent)",
        timeout=LONG,
    )
    page.click("#st-device")
    state(page, "running")
    assert "% · heart" in page.title()
    press(page, "Pause")
    state(page, "paused")
    for words in ("Sample now", "Save now", "Pause"):
        assert page.locator("#sr-buttons button", has_text=words).is_disabled()
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#st-viewer", timeout=60_000)
    page.get_by_role("tab", name="Runs").click()
    state(page, "paused")
    press(page, "Resume")
    state(page, "running")
    for number in (1, 2):
        press(page, "Sample now")
        page.wait_for_function(f"() => document.querySelectorAll('.sr-strip figure').length === {number}", timeout=LONG)
    assert page.locator("#sr-chart-loss svg path").count() >= 1


def test_a_run_from_its_start_to_what_becomes_of_it(chrome: Any, studio: App, tmp_path: Path) -> None:  # noqa: F811
    page, phone = opened(chrome, studio, 1280, 900), opened(chrome, studio, 390, 844)
    page.get_by_role("tab", name="Runs").click()
    page.wait_for_selector("#sr-none:visible:has-text('start one in Train')", timeout=LONG)
    run_id = create(studio, draw_pictures(tmp_path / "hearts"))
    assert httpx.post(f"{studio.url}/studio/run/{run_id}/start", json={}).status_code == 200
    page.wait_for_selector("[data-run=heart]", timeout=LONG)
    watched(page)

    page.click("[data-first=ask]")
    page.wait_for_selector("[data-first=ask][aria-checked=true]")
    page.get_by_role("tab", name="Generate").click()
    page.fill("#field-prompt textarea", "a red circle on a blue background")
    page.click("#st-generate")
    page.wait_for_selector("#st-held:visible:has-text('Waits for the run heart, which asks you first')", timeout=LONG)
    page.locator("#st-held button", has_text="Draw now").click()
    page.wait_for_selector("#st-stage[data-state=done]", timeout=LONG)

    phone.evaluate("() => studio.runs.go('heart')")
    state(phone, "running")
    press(phone, "Stop")
    state(phone, "stopped")
    page.wait_for_function("() => document.title === '■ heart'", timeout=LONG)
    phone.evaluate("() => document.querySelectorAll('.sr-box').forEach((box) => { box.open = true; })")
    phone.click("#sr-vote [data-vote=left]")
    phone.wait_for_selector("#sr-ranking tr:nth-child(2)")
    phone.fill("#sr-keep-name", "my-heart")
    phone.click("#sr-keep-go")
    phone.wait_for_selector("#sr-kept:has-text('my-heart')")
    assert (studio.data / "models" / "loras" / "my-heart.safetensors").is_file()
    phone.fill("#sr-cmp-weights", "0, 1")
    phone.click("#sr-cmp-go")
    phone.wait_for_selector("#sr-cmp-grid", timeout=LONG)
    assert phone.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page scrolls sideways"
    )
    assert phone.locator("#sr-cmp-slider option", has_text="Grid:").count() >= 8

    page.evaluate("() => studio.runs.go('heart')")
    state(page, "stopped")
    page.locator("#sr-results tr button", has_text="Use in Generate").first.click()
    page.wait_for_function(
        "() => /^a red circle on a blue background <lora:heart-\\d{6}:1>$/.test(document.querySelector('#field-prompt textarea').value)",
        timeout=LONG,
    )
    assert page.problems == phone.problems == []
