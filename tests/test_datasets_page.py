"""The Datasets tab in a real browser: bring pictures, write what is to be seen, reload, it is still there. Laptop and phone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import App
from tests.test_browser import chrome, page, pytestmark, turn_to

SAVED = "() => document.querySelector('.sd-mark')?.textContent === 'saved'"


def open_tab(page: Any) -> None:
    turn_to(page, "Datasets")
    page.wait_for_selector("#sd", timeout=120_000)


def create(page: Any, name: str) -> None:
    open_tab(page)
    page.fill("#sd-new input, #sd-new textarea", name)
    page.click("#sd-create")
    page.wait_for_function("() => !document.querySelector('#sd-body').hidden", timeout=120_000)
    page.wait_for_function("() => document.querySelector('#sd-count').textContent.startsWith('No pictures yet')")


def pictures(folder: Path, number: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        noise = np.random.default_rng(i).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((400, 300)).save(folder / f"photo {i}.jpg")
    return [str(path) for path in sorted(folder.iterdir())]


def cards(page: Any, number: int) -> None:
    page.wait_for_function(
        f"() => document.querySelectorAll('.sd-card').length === {number} && document.querySelector('#sd-progress').hidden",
        timeout=120_000,
    )


def fits(page: Any) -> None:
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"


def reload(page: Any) -> None:
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#st-viewer", timeout=120_000)
    open_tab(page)


def test_what_is_brought_and_written_is_still_there(page: Any, app: App, tmp_path: Path) -> None:
    name = f"ball {page.viewport_size['width']}"
    create(page, name)
    fits(page)
    files = pictures(tmp_path / "dog", 2)
    (tmp_path / "dog" / "photo 1.txt").write_text("a ball, red")
    (tmp_path / "dog" / "bad <img src=x onerror=alert(1)>.png").write_text("no picture")
    page.set_input_files("#sd-files", [*files, *(str(path) for path in (tmp_path / "dog").glob("*.[tp][xn]*"))])
    cards(page, 2)
    told = page.inner_text("#sd-told")
    assert "bad <img src=x onerror=alert(1)>.png is not a picture" in told and "2 pictures added" in told
    evil = "<img src=x onerror=alert(1)> a ball"
    page.fill(".sd-card:first-child textarea", evil)
    page.wait_for_function(SAVED, timeout=120_000)
    assert (app.data / "datasets" / name / "photo 0.txt").read_text() == evil
    page.fill(".sd-card:last-child textarea", "a ball, blue")
    reload(page)  # at once: what was typed a moment ago is not lost
    cards(page, 2)
    assert [box.input_value() for box in page.query_selector_all(".sd-card textarea")] == [evil, "a ball, blue"]
    page.wait_for_function("() => document.querySelector('.sd-card img')?.naturalWidth === 320")
    fits(page)

    page.locator(".sd-card").first.get_by_role("button", name="Crop", exact=True).click()
    for side, value in (("Left", 100), ("Top", 0), ("Right", 400), ("Bottom", 300)):
        page.get_by_label(f"{side}, pixels").fill(str(value))
    page.wait_for_function(
        "() => document.querySelector('#sd-crop').innerText.includes('300 x 300 pixels → bucket 128 x 128')"
    )
    page.get_by_role("button", name="Save crop").click()
    page.wait_for_function("() => document.querySelector('.sd-line')?.textContent.includes('cropped')")
    edit = app.data / "datasets" / name / "photo 0.edit.json"
    assert json.loads(edit.read_text()) == {"crop": [0.25, 0, 1, 1]}

    page.locator(".sd-card").last.get_by_role("button", name="Leave out").click()
    page.wait_for_function("() => document.querySelector('#sd-count').textContent.includes('1 left out')")
    page.locator(".sd-card").last.get_by_role("button", name="Remove").click()
    cards(page, 1)
    page.click("#sd-restore")
    cards(page, 2)
    assert page.locator(".sd-card").last.locator("textarea").input_value() == "a ball, blue"


def test_a_second_tab_sees_it_and_the_last_one_wins(page: Any, app: App, tmp_path: Path) -> None:
    name = f"two {page.viewport_size['width']}"
    create(page, name)
    page.set_input_files("#sd-files", pictures(tmp_path / "dog", 1))
    cards(page, 1)
    other = page.context.new_page()
    other.goto(app.url, wait_until="domcontentloaded")
    other.wait_for_selector("#st-viewer", timeout=120_000)
    open_tab(other)
    cards(other, 1)
    for tab, text in ((page, "first"), (other, "second")):
        tab.fill(".sd-card textarea", text)
        tab.wait_for_function(SAVED, timeout=120_000)
    assert (app.data / "datasets" / name / "photo 0.txt").read_text() == "second"
    reload(page)
    cards(page, 1)
    assert page.input_value(".sd-card textarea") == "second"
    other.close()


def test_drop_change_all_captions_and_import(page: Any, app: App, tmp_path: Path) -> None:
    width = page.viewport_size["width"]
    create(page, f"drop {width}")
    page.evaluate(
        """async () => {
          const picture = await new Promise((done) => { const c = document.createElement("canvas"); c.width = c.height = 64; c.toBlob(done, "image/png"); });
          const data = new DataTransfer();
          data.items.add(new File([picture], "dropped.png"));
          data.items.add(new File(["a circle, red"], "dropped.txt"));
          document.querySelector("#sd-drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
    )
    cards(page, 1)
    assert page.input_value(".sd-card textarea") == "a circle, red"
    page.click("#sd-bulk summary")
    page.fill("#sd-text", "sks")
    page.get_by_role("button", name="Trigger word in front").click()
    page.wait_for_function("() => document.querySelector('.sd-card textarea')?.value === 'sks, a circle, red'")
    page.click("#sd-undo")
    page.wait_for_function("() => document.querySelector('.sd-card textarea')?.value === 'a circle, red'")
    page.click("#sd-buckets summary")
    page.wait_for_function("() => document.querySelector('#sd-bucket-rows').innerText.includes('128 x 128')")
    page.fill("#sd-resolution", "500")
    page.dispatch_event("#sd-resolution", "change")
    page.wait_for_function(
        "() => document.querySelector('#sd-size-problem').textContent.includes('must be a multiple of 8')"
    )
    fits(page)

    pictures(tmp_path / f"kohya {width}" / "3_sks ball", 1)
    page.click("#sd-import > button")
    page.wait_for_selector("#sd-path textarea, #sd-path input", timeout=120_000)
    page.fill("#sd-path textarea, #sd-path input", str(tmp_path / f"kohya {width}"))
    page.click("#sd-import-run")
    page.wait_for_function(
        "() => document.querySelector('#sd-said').innerText.includes('1 pictures and 0 captions')", timeout=120_000
    )
    cards(page, 1)
    page.wait_for_function("() => document.querySelector('.sd-line')?.textContent.includes('shown 3 times')")
    page.fill("#sd-path textarea, #sd-path input", str(tmp_path / "nowhere"))
    page.click("#sd-import-run")
    page.wait_for_function(
        "() => document.querySelector('#sd-said').innerText.includes('is no folder on this computer')"
    )
