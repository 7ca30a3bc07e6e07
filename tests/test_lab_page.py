"""The Lab on the page and through the API: run, look at the film, take the settings over. Laptop and phone."""

from collections.abc import Iterator
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from studio.ui.lab_text import LAB_TEXT
from tests.conftest import App, wait_for
from tests.test_browser import CHROMIUM, FLAGS, pytestmark, turn_to

__all__ = ["pytestmark"]


def test_the_endpoint_answers_with_numbers_and_pictures(app: App) -> None:
    client = Client(app.url, verbose=False)
    found = client.predict(panel="forward", settings={"timestep": 20, "frames": 2}, api_name="/lab")
    assert [row[0] for row in found["tables"][0]["rows"]] == [0, 20]
    names = [name for frame in found["films"][0]["frames"] for name in frame["pictures"].values()]
    assert set(names) == set(found["urls"])
    assert all(app.get(url).content[:4] == b"\x89PNG" for url in found["urls"].values())
    for wrong, sentence in (
        ({"panel": "forward", "settings": {"timestep": 0}}, "timestep=0 must be at least 1"),
        ({"panel": "forward", "settings": {"image": "no picture"}}, "must be a picture file as base64"),
        ({"panel": "other"}, "use one of: forward"),
        ({"panel": "forward", "model": "gone"}, "is not in the library"),
    ):
        with pytest.raises(AppError, match=sentence):
            client.predict(api_name="/lab", **wrong)


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["laptop", "phone"])
def page(app: App, request: pytest.FixtureRequest) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    width, height = request.param
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab: Any = browser.new_context(viewport={"width": width, "height": height}).new_page()
        tab.set_default_timeout(120_000)
        tab.problems = []
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.goto(app.url, wait_until="domcontentloaded")
        tab.wait_for_selector("#st-viewer")
        yield tab
        assert tab.problems == []
        browser.close()


def show_panel(page: Any, name: str) -> None:
    """Open the Lab and a panel; on a phone it may be behind the dots of the Lab's own tabs."""
    turn_to(page, "Lab")
    page.wait_for_selector("#lab-forward-run")
    lab, title = page.locator("#st-lab"), LAB_TEXT[f"lab.panel.{name}"]
    tab = lab.get_by_role("tab", name=title, exact=True)
    if not tab.is_visible():
        lab.locator(".overflow-menu > button").first.click()
        tab = lab.locator(".overflow-dropdown button", has_text=title)
    tab.click()


def test_a_panel_runs_shows_its_film_and_hands_its_settings_over(page: Any) -> None:
    show_panel(page, "reverse")
    page.fill("#lab-reverse-num_inference_steps input[type=number]", "3")
    page.fill("#lab-reverse-frames input[type=number]", "2")
    page.fill("#lab-reverse-prompt textarea", "a green star on a white background")
    page.click("#lab-reverse-run")
    film = page.locator("#lab-reverse-result .lab-film")
    film.wait_for()
    assert page.locator("#lab-reverse-result .lab-table").count() == 2
    page.wait_for_selector("#lab-reverse-plot-distance canvas, #lab-reverse-plot-distance svg")
    (last,) = film.locator("img").evaluate_all("all => all.map((one) => one.src)")
    film.locator("input").fill("0")
    shown = film.locator("img").evaluate_all("all => all.map((one) => one.src)")
    assert len(shown) == 3 and last not in shown
    wait_for(lambda: film.locator("img").evaluate_all("all => all.every((one) => one.naturalWidth > 0)"))
    assert film.locator(".lab-caption").inner_text().startswith("1 of 3")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing hangs over the edge"
    page.click("#lab-reverse-take")
    page.wait_for_selector("#field-prompt textarea")
    wait_for(lambda: "green star" in page.input_value("#field-prompt textarea"))


def test_stop_ends_a_panel_that_would_take_long(page: Any) -> None:
    show_panel(page, "ranking")
    page.fill("#lab-ranking-candidates input[type=number]", "32")
    page.fill("#lab-ranking-steps input[type=number]", "10")
    page.click("#lab-ranking-run")
    page.wait_for_function(
        "() => /[1-9]\\d+(\\.0)?\\/320/.test(document.querySelector('#st-lab').innerText)"
    )  # one is drawn
    page.click("#lab-ranking-stop")
    page.wait_for_selector("#lab-ranking-result .lab-film")
    assert page.locator("#lab-ranking-result tbody tr").count() < 32


def test_points_are_drawn_by_hand_and_particles_follow(page: Any) -> None:
    show_panel(page, "plane")
    canvas = page.locator(".lab-draw[data-ready] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(box["x"] + 40 + 20 * step, box["y"] + 40)
    page.mouse.up()
    wait_for(lambda: page.input_value("#lab-plane-shape input") == "drawn by hand")
    page.fill("#lab-plane-training_steps input[type=number]", "50")
    page.fill("#lab-plane-steps input[type=number]", "5")
    page.click("#lab-plane-run")
    page.wait_for_selector(".lab-particles[data-ready]")
    squares = page.locator(".lab-square")
    assert squares.count() == 3
    drawn = "all => all.map((one) => one.toDataURL())"
    last = squares.evaluate_all(drawn)
    assert len(set(last)) == 3
    page.locator(".lab-particles input").fill("0")
    assert all(one != other for one, other in zip(last, squares.evaluate_all(drawn), strict=True))
    assert page.locator(".lab-particles .lab-caption").inner_text() == "0 / 5"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing hangs over the edge"


def test_the_best_candidate_goes_to_generate(page: Any) -> None:
    show_panel(page, "ranking")
    page.fill("#lab-ranking-candidates input[type=number]", "3")
    page.fill("#lab-ranking-steps input[type=number]", "4")
    page.fill("#lab-ranking-seed input", "40")
    page.click("#lab-ranking-run")
    page.wait_for_selector("#lab-ranking-result .lab-film")
    rows = page.locator("#lab-ranking-result tbody tr")
    assert rows.count() == 3
    best = rows.first.locator("td").nth(1).inner_text()
    page.click("#lab-ranking-take")
    wait_for(lambda: page.input_value("#field-seed input") == best)
