"""From five pictures to a picture of what was taught, in a real browser, as a person goes it: no command, no file by hand."""

from pathlib import Path
from typing import Any

from studio.store.runs import Runs
from tests.conftest import App, wait_for
from tests.test_browser import chrome, pytestmark  # noqa: F401
from tests.test_datasets_page import SAVED, cards, create, open_tab
from tests.test_runs_browser import LONG, opened, press, state, studio  # noqa: F401
from tests.training import draw_pictures

SKY = "a sks heart on a blue background"


def bring(page: Any, folder: Path) -> None:
    """Make a dataset of five pictures, and write a caption under each."""
    open_tab(page)
    create(page, "hearts")
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
    (run_id,) = Runs(studio.data / "runs").ids()
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
