"""A run in a real browser: it is watched, paused, sampled, ends, is used, kept and compared. Laptop, then phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.store.runs import Runs
from tests.conftest import App, launch
from tests.test_browser import chrome, pytestmark  # noqa: F401
from tests.training import config_of
from trainers.config_files import dump_config

LONG = 120_000  # milliseconds: training and a browser share two cores


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app of its own, because a run takes the device from the tests that draw."""
    running = launch(tmp_path_factory.mktemp("runs") / "data", "--cpu-threads", "1")
    yield running
    for run_id in Runs(running.data / "runs").ids():
        running.client.post(f"{running.url}/studio/run/{run_id}/cancel", json={})
    running.stop()


def opened(chrome: Any, app: App, width: int, height: int) -> Any:  # noqa: F811
    page = chrome.new_context(viewport={"width": width, "height": height}, accept_downloads=True).new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(app.url, wait_until="domcontentloaded")
    page.wait_for_selector("#st-viewer", timeout=60_000)
    return page


def state(page: Any, name: str) -> None:
    page.wait_for_selector(f"#sr-state[data-state={name}]", timeout=LONG)


def create(app: App, name: str, pictures: Path, **values: Any) -> str:
    told = {"rank": 2, "output_name": name, "trigger_word": "sks heart", "validation_prompts": ["a sks heart"]}
    return Runs(app.data / "runs").create("lora", name, dump_config(config_of("lora", pictures, **told | values)))
