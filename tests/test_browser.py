"""A person's first minute, in a real browser: type a prompt, see the picture, reload, it is still there. Laptop and phone."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.store.metadata import read_picture
from tests.conftest import App, launch

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("STUDIO_REQUIRE_BROWSER"), reason="chromium is not installed"
    ),
]


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "chromium must be installed here (STUDIO_REQUIRE_BROWSER is set)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["laptop", "phone"])
def page(chrome: Any, app: App, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height = request.param
    context = chrome.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    tab = context.new_page()
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("dialog", lambda dialog: (tab.problems.append(dialog.message), dialog.dismiss()))
    tab.goto(app.url, wait_until="domcontentloaded")
    tab.wait_for_selector("#st-viewer", timeout=120_000)
    tab.wait_for_function(
        "() => /ready|drawing/.test(document.querySelector('#st-device').textContent)", timeout=120_000
    )
    yield tab
    assert tab.problems == []
    context.close()


def fill(page: Any, prompt: str) -> None:
    page.fill("#field-prompt textarea", prompt)


def type_number(page: Any, name: str, label: str, value: int) -> None:
    """Type into a number field until the form has it: the controls of an accordion just opened may still be arriving."""
    taken = f"() => (JSON.parse(localStorage.getItem('studio-form')) || {{}})['{name}'] === {value}"
    for _ in range(5):
        page.get_by_label(f"number input for {label}").fill(str(value))
        page.keyboard.press("Tab")
        page.wait_for_timeout(200)
        if page.evaluate(taken):
            return
    raise AssertionError(f"the form did not take {label} = {value}")


def finished_picture(page: Any, before: str | None) -> str:
    page.wait_for_function(
        "(before) => { const p = document.querySelector('#st-picture'); const s = document.querySelector('#st-stage').dataset.state;"
        " return s === 'done' && p.src.includes('/image/') && p.src !== before && p.complete && p.naturalWidth === 128; }",
        arg=before,
        timeout=120_000,
    )
    return page.eval_on_selector("#st-picture", "p => p.src")


def source(page: Any) -> str | None:
    return page.eval_on_selector("#st-picture", "p => p.src || null")


def test_from_prompt_to_a_picture_that_stays(page: Any, app: App) -> None:
    before = source(page)
    fill(page, "a red circle on a blue background")
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.click("#st-generate")
    made = finished_picture(page, before)
    assert [url for url in seen if "/studio/preview/" in url], "no preview was shown"
    identity = made.rsplit("/", 1)[1]
    (path,) = (app.data / "images").rglob(f"{identity}.png")
    assert page.request.get(made).body() == path.read_bytes()
    picture, form = page.locator("#st-picture").bounding_box(), page.locator("#field-prompt").bounding_box()
    if page.viewport_size["width"] < 700:
        assert picture["y"] < form["y"], "on a phone the result comes first"
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#st-picture[src*='/image/']", timeout=120_000)
    assert source(page) == made
    page.wait_for_function(
        "() => document.querySelector('#field-prompt textarea').value === 'a red circle on a blue background'"
    )


def test_keys_wrong_values_and_unknown_words(page: Any) -> None:
    fill(page, "a red zebra on a blue background")
    before = source(page)
    page.focus("#field-prompt textarea")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#st-message.st-note:has-text('does not know: zebra')", timeout=120_000)
    before = finished_picture(page, before)
    page.click("#group-size button")
    type_number(page, "num_images_per_prompt", "Number of images", 40)
    page.click("#st-generate")
    page.wait_for_function("() => document.querySelector('#st-stage').dataset.state === 'running'", timeout=120_000)
    page.wait_for_function("() => / of 40/.test(document.querySelector('#st-line').textContent)", timeout=120_000)
    page.keyboard.press("Escape")
    page.wait_for_selector("#st-stage[data-state=cancelled]", timeout=120_000)
    type_number(page, "num_images_per_prompt", "Number of images", 1)
    type_number(page, "width", "Width", 500)
    page.click("#st-generate")
    problem = page.wait_for_selector("#field-width .st-problem, #st-message:has-text('width')", timeout=120_000)
    assert "multiple of 8" in problem.inner_text()


def test_gallery_and_reuse(page: Any) -> None:
    fill(page, "three green hearts on a white background")
    before = source(page)
    page.click("#st-generate")
    finished_picture(page, before)
    fill(page, "something else")
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(".sg-card")
    page.fill("#sg-words", "three hearts")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.sg-card')].every(card => card.title.includes('hearts'))"
    )
    page.locator(".sg-card .st-button").first.click()
    page.wait_for_selector(".sg-card:has-text('★')")
    page.locator(".sg-card .st-button").first.click()
    page.locator(".sg-card input").first.check()
    with page.expect_download() as download:
        page.click("#sg-zip")
    assert Path(download.value.path()).read_bytes()[:2] == b"PK"
    page.locator(".sg-card img").first.click()
    page.wait_for_selector("#sg-detail[open] pre:has-text('Steps: ')")
    page.get_by_role("button", name="Send to Generate").click()
    page.wait_for_function(
        "() => document.querySelector('#field-prompt textarea')?.value === 'three green hearts on a white background'"
    )
    page.get_by_role("tab", name="Gallery").click()
    with page.expect_response(lambda response: "/studio/gallery" in response.url):
        page.fill("#sg-words", "")
    page.wait_for_timeout(100)  # the answer is drawn
    number = page.locator(".sg-card").count()
    page.locator(".sg-card input").first.check()
    page.click("#sg-delete")
    page.wait_for_function("(n) => document.querySelectorAll('.sg-card').length === n - 1 || n >= 50", arg=number)


def turn_to(page: Any, name: str) -> None:
    """Open a tab of the page; on a phone it may be behind the dots."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def test_png_info_reads_a_foreign_file(page: Any, tmp_path: Path) -> None:
    from PIL import Image, PngImagePlugin

    facts = PngImagePlugin.PngInfo()
    facts.add_text(
        "parameters",
        "<img src=x onerror=alert(1)> a cat\nNegative prompt: dog\nSteps: 12, Sampler: Euler a, CFG scale: 3, Seed: 77, Size: 64x64",
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png", pnginfo=facts)
    turn_to(page, "Tools")
    page.get_by_role("tab", name="PNG Info").click()
    page.set_input_files("#st-info-file input[type=file]", str(tmp_path / "other.png"))
    page.wait_for_function(
        "() => /Read as: a1111/.test(document.querySelector('#st-info-text textarea')?.value || '')", timeout=120_000
    )
    page.click("#st-info-send")
    page.wait_for_function(
        "() => document.querySelector('#field-prompt textarea')?.value.endsWith('a cat')", timeout=120_000
    )
    page.wait_for_function("() => document.querySelector('#field-seed input').value === '77'")


def test_send_to_upscale(page: Any) -> None:
    """The Tools tab was never opened: what lies in it is not in the document yet."""
    before = source(page)
    fill(page, "a yellow heart on a purple background")
    page.click("#st-generate")
    finished_picture(page, before)
    page.get_by_role("button", name="Send to Upscale").click()
    page.wait_for_selector("#st-upscale-image img")
    page.click("#st-upscale-run")
    page.wait_for_function("() => document.querySelector('#st-picture').naturalWidth === 256", timeout=120_000)


def start_from(page: Any, path: Path) -> None:
    """Open Image and put a picture into the editor."""
    page.click("#group-image button")
    page.wait_for_selector("#field-image canvas")
    page.wait_for_timeout(2000)  # the editor draws its canvas before it can take a picture
    page.set_input_files("#field-image input[type=file]", str(path))
    page.wait_for_function("() => !/Upload/.test(document.querySelector('#field-image').innerText)", timeout=120_000)
    page.wait_for_timeout(500)


def paint_a_bar(page: Any) -> None:
    """Paint over the upper half of the picture in the editor, as a person does."""
    canvas = page.locator("#field-image canvas").first
    canvas.scroll_into_view_if_needed()
    page.locator("#field-image button[aria-label='Brush']").first.click()
    box = canvas.bounding_box()
    middle, across = box["x"] + box["width"] / 2, min(box["width"], box["height"]) * 0.2
    page.mouse.move(middle - across, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    for step in range(11):
        page.mouse.move(middle - across + 2 * across * step / 10, box["y"] + box["height"] * 0.4)
    page.mouse.up()
    page.wait_for_timeout(1500)  # the editor takes the stroke a moment after it ends


def test_paint_over_a_part_and_only_that_is_drawn_anew(page: Any, app: App, tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    from studio.store.blobs import BlobStore
    from studio.store.metadata import read_picture

    source = Image.new("RGB", (128, 128), (40, 70, 215))
    ImageDraw.Draw(source).ellipse((32, 64, 96, 124), fill=(220, 30, 35))
    source.save(tmp_path / "mine.png")
    before = page.eval_on_selector("#st-picture", "p => p.src || null")
    fill(page, "a yellow circle on a blue background")
    start_from(page, tmp_path / "mine.png")
    paint_a_bar(page)
    page.click("#st-generate")
    identity = finished_picture(page, before).rsplit("/", 1)[1]
    (path,) = (app.data / "images").rglob(f"{identity}.png")
    record = read_picture(path).record
    assert record
    assert record.request.task == "inpaint"
    blobs = BlobStore(app.data / "blobs")
    given = blobs.open(str(record.request.image), "image")
    mask = blobs.open(str(record.request.mask_image), "mask_image").convert("L")
    assert given.tobytes() == source.tobytes(), "the editor changed the picture"
    left, _, right, bottom = mask.getbbox()  # type: ignore[misc]
    assert right - left > 30
    assert bottom < 100
    kept = (0, bottom + 16, 128, 128)
    assert Image.open(path).convert("RGB").crop(kept).tobytes() == source.crop(kept).tobytes()
    page.click("#st-remove-image")
    page.wait_for_function("() => /Upload/.test(document.querySelector('#field-image').innerText)", timeout=120_000)
    page.get_by_role("button", name="Send to img2img").click()
    page.wait_for_function("() => !/Upload/.test(document.querySelector('#field-image').innerText)", timeout=120_000)


def test_what_a_model_cannot_use_is_switched_off_and_says_why(page: Any, app: App, tmp_path: Path) -> None:
    from PIL import Image

    page.click("#group-sampling button")
    page.wait_for_selector("#field-true_cfg_scale.st-barred")
    why = "(name) => document.querySelector(`#field-${name}.st-barred`)?.dataset.why"
    assert page.evaluate(why, "true_cfg_scale") == "This does not work with Stable Diffusion 1.x."
    page.click("#group-hires button")
    page.wait_for_selector("#field-hires_scale:not(.st-barred)")
    type_number(page, "hires_scale", "Upscale by", 2)
    Image.new("RGB", (128, 128), (40, 70, 215)).save(tmp_path / "mine.png")
    start_from(page, tmp_path / "mine.png")
    page.wait_for_selector("#field-hires_strength.st-barred")
    assert page.evaluate(why, "hires_scale") == "This works only without an image."
    before = source(page)
    page.click("#st-generate")  # what is switched off has no part in it
    identity = finished_picture(page, before).rsplit("/", 1)[1]
    (path,) = (app.data / "images").rglob(f"{identity}.png")
    record = read_picture(path).record
    assert record
    assert (record.request.task, record.request.hires_scale) == ("image2image", 1)
    page.click("#st-remove-image")
    page.wait_for_selector("#field-hires_scale:not(.st-barred)")


def test_a_lora_is_chosen_its_word_added_and_it_comes_back(page: Any, app: App) -> None:
    fill(page, "a circle on a yellow background")
    page.click("#group-lora button")
    page.wait_for_selector("#lora0-name input", timeout=120_000)
    page.wait_for_timeout(1_000)  # the accordion's controls arrive one by one
    page.click("#lora0-name input")
    page.get_by_role("option", name="red-to-blue").click()
    page.wait_for_selector("#st-lora-card:has-text('Draws blue things')", timeout=120_000)
    page.wait_for_selector("#lora1-name", timeout=120_000)  # a row more than are in use
    page.click("#st-lora-words")
    page.wait_for_function("() => document.querySelector('#field-prompt textarea').value.endsWith('background, red')")
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    before = source(page)
    page.click("#st-generate")
    identity = finished_picture(page, before).rsplit("/", 1)[1]
    (path,) = (app.data / "images").rglob(f"{identity}.png")
    record = read_picture(path).record
    assert record
    assert [(lora.name, lora.weight) for lora in record.request.loras] == [("red-to-blue", 1.0)]
    page.wait_for_selector("#group-lora.st-active")
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#group-lora.st-active", timeout=120_000)
    page.click("#group-lora button")
    page.wait_for_function(
        "() => document.querySelector('#lora0-name input')?.value === 'red-to-blue'", timeout=120_000
    )


def test_a_lost_server_is_told_and_found_again(chrome: Any, tmp_path: Path) -> None:
    first = launch(tmp_path)
    port = first.url.rsplit(":", 1)[1]
    tab = chrome.new_page()
    tab.goto(first.url, wait_until="domcontentloaded")
    tab.wait_for_selector("#st-viewer", timeout=120_000)
    tab.wait_for_function("() => /ready/.test(document.querySelector('#st-device').textContent)", timeout=120_000)
    first.stop()
    tab.wait_for_selector("#st-offline:not([hidden])", timeout=120_000)
    second = launch(tmp_path, "--port", port)
    tab.wait_for_selector("#st-offline[hidden]", state="attached", timeout=120_000)
    tab.close()
    second.stop()


def test_a_unit_without_a_picture_previews_the_form_s_own(page: Any, tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    own = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(own).rectangle((30, 30, 90, 90), fill="black")
    own.save(tmp_path / "own.png")
    start_from(page, tmp_path / "own.png")
    page.click("#group-control button")
    page.wait_for_selector("#field-unit0-model input", timeout=120_000)
    page.wait_for_timeout(1_000)  # the accordion's controls arrive one by one
    page.get_by_role("button", name="Preview").first.click()
    page.wait_for_selector(".st-map img", timeout=120_000)


def test_a_picture_follows_another_one(page: Any, app: App, tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    shape = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(shape).rectangle((20, 40, 108, 90), fill="black")
    shape.save(tmp_path / "shape.png")
    fill(page, "a red square on a blue background")
    before = source(page)
    page.click("#group-control button")
    page.wait_for_selector("#field-unit0-image input[type=file]", state="attached", timeout=120_000)
    page.wait_for_timeout(1_000)  # the accordion's controls arrive one by one
    page.set_input_files("#field-unit0-image input[type=file]", str(tmp_path / "shape.png"))
    page.wait_for_selector("#field-unit0-image img", timeout=120_000)
    page.click("#field-unit0-model input")
    page.get_by_role("option", name="shapes-canny · ControlNet").click()
    page.wait_for_function(
        "() => document.querySelector('#field-unit0-preprocessor input').value === 'Canny'", timeout=120_000
    )
    page.get_by_role("button", name="Preview").first.click()
    page.wait_for_selector(".st-map img", timeout=120_000)
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    page.click("#st-generate")
    identity = finished_picture(page, before).rsplit("/", 1)[1]
    (path,) = (app.data / "images").rglob(f"{identity}.png")
    record = read_picture(path).record
    assert record
    assert [(unit.model, unit.preprocessor) for unit in record.request.controls] == [("shapes-canny", "canny")]


def test_the_prompt_counts_its_tokens_and_tells_what_the_model_gets(page: Any) -> None:
    """The counter follows the typing; a click opens the report; a click on a name puts it into the prompt."""
    page.fill("#field-prompt textarea", "a (red:1.3) zorp circle")
    page.wait_for_function("() => document.querySelector('#field-prompt .st-count')?.textContent === '6/75'")
    page.click("#field-prompt .st-count")
    report = page.wait_for_selector("#st-report:not([hidden])").inner_text()
    assert "red ×1.3" in report
    assert "does not know: zorp" in report
    page.fill("#field-prompt textarea", "a circle __nowhere__")
    page.wait_for_function(
        "() => document.querySelector('#st-report').textContent.includes('There is no wildcard: nowhere')"
    )
    page.click("#group-words > button")
    page.wait_for_selector("#st-words .st-panel-title")
    page.fill("#field-styles input", "Shapes: striped")
    page.keyboard.press("Enter")
    page.fill("#field-prompt textarea", "a circle")
    page.wait_for_function("() => document.querySelector('#field-prompt .st-count').textContent === '5/75'")
