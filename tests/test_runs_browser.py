"""Runs in a real browser: watched, paused, sampled, used, kept and compared; and the whole way from pictures to a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.store.runs import Runs
from tests.conftest import App, launch, wait_for
from tests.test_browser import chrome, pytestmark  # noqa: F401
from tests.test_datasets_page import SAVED, cards, open_tab
from tests.test_datasets_page import create as create_dataset
from tests.training import config_of, draw_pictures
from trainers.config_files import dump_config

LONG = 120_000  # milliseconds: training and a browser share two cores


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app of its own, because a run takes the device from the tests that draw."""
    running = launch(tmp_path_factory.mktemp("runs") / "data", "--cpu-threads", "1")
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
    page.wait_for_selector("#st-viewer", timeout=120_000)
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
    page.wait_for_selector("#st-viewer", timeout=120_000)
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

    assert httpx.post(f"{studio.url}/studio/priority/pictures", json={}).status_code == 200
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
    page.context.close()
    phone.context.close()


# ---- from five pictures to a picture of what was taught, as a person goes it: no command, no file by hand

SKY = "a sks heart on a blue background"


def bring(page: Any, folder: Path) -> None:
    """Make a dataset of five pictures, and write a caption under each."""
    open_tab(page)
    create_dataset(page, "hearts")
    page.set_input_files("#sd-files", [str(path) for path in sorted(draw_pictures(folder, captions=False).iterdir())])
    cards(page, 5)
    for place, ground in enumerate(("white", "green", "blue", "yellow", "black")):
        page.locator(".sd-card textarea").nth(place).fill(f"a sks heart on a {ground} background")
    page.locator(".sd-card textarea").last.blur()
    page.wait_for_function(SAVED)


def draw_with(page: Any, app: App, run_id: str, step: int) -> dict[str, Any]:
    """Use a checkpoint in Generate; return what the picture says of itself."""
    result, prompt = f"{run_id}-{step:06d}", page.locator("#field-prompt textarea")
    page.get_by_role("tab", name="Runs").click()
    page.locator(f"#sr-results tr[data-step='{step}'] button", has_text="Use in Generate").click(timeout=LONG)
    said = "(name) => document.querySelector('#field-prompt textarea').value.includes(name)"
    page.wait_for_function(said, arg=result)
    prompt.fill(f"{SKY} <lora:{result}:1>")
    before = pictures(app)
    page.click("#st-generate")
    (made,) = wait_for(lambda: pictures(app) - before)
    return app.get(f"/studio/metadata/{made}").json()["record"]


def pictures(app: App) -> set[str]:
    return {row["id"] for row in app.get("/studio/gallery").json()["images"]}


def test_from_pictures_to_a_picture(chrome: Any, studio: App, tmp_path: Path) -> None:  # noqa: F811
    page = opened(chrome, studio, 1280, 900)
    bring(page, tmp_path / "phone")
    page.click("#sd-train")
    page.wait_for_function("() => document.querySelector('#train-dataset input')?.value === 'hearts'")
    page.fill("#train-thing input, #train-thing textarea", "heart")
    page.click("#train-start")
    state(page, "running")
    page.wait_for_selector("#sr-chart-loss svg path", timeout=LONG)
    page.wait_for_selector(".sr-strip figure img", timeout=2 * LONG)
    run_id = Runs(studio.data / "runs").ids()[0]
    assert run_id != "heart", "not the run of the test before"
    record = draw_with(page, studio, run_id, 40)
    assert [lora["name"] for lora in record["request"]["loras"]] == [f"{run_id}-000040"]
    assert studio.get(f"/studio/run/{run_id}").json()["state"] in ("running", "yielded")  # it goes on meanwhile
    page.get_by_role("tab", name="Runs").click()
    press(page, "Stop")
    state(page, "stopped")
    last = max(Runs(studio.data / "runs").results(run_id))
    assert last > 40
    record = draw_with(page, studio, run_id, last)
    assert record["request"]["loras"][0]["name"] == f"{run_id}-{last:06d}"
    assert page.problems == []
