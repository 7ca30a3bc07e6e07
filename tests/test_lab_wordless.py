"""The Lab's panel of models without words: what it shows is what Generate draws, whatever kind of model it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from studio.errors import StudioError
from studio.store.blobs import BlobStore
from studio.store.lab_calls import lab_call
from studio.store.library import Library
from studio.tools import NOBODY, ToolWatch
from tests.conftest import drawer, pixels
from tests.test_wordless import models

__all__ = ["models"]

FEW: dict[str, Any] = {"num_inference_steps": 4, "pictures": 2, "frames": 3, "seed": 3}
Panel = Callable[..., tuple[dict[str, Any], dict[str, bytes]]]


@pytest.fixture(scope="module")
def panel(engine: Any, models: Library) -> Panel:
    def run(model: str, watch: ToolWatch = NOBODY, **values: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
        call = lab_call(models, "wordless", FEW | values, model)
        return engine.use_tool(call, lambda reference, field: None, watch)

    return run


def shown(found: dict[str, Any], pictures: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Return the last moment of the film: title -> picture."""
    last = found["films"][0]["frames"][-1]["pictures"]
    return {title: pixels(pictures[name]).astype(int) for title, name in last.items()}


@pytest.mark.parametrize(
    ("model", "values", "evaluations"),
    [
        ("plain", {"sampler": "DDPM"}, 4),
        ("plain", {"sampler": "DDIM"}, 4),
        ("plain", {"sampler": "Heun"}, 7),
        ("edm", {"sampler": "EDM Euler"}, 4),
        ("score", {}, 8),
        ("dit", {"classes": "star", "guidance_scale": 3.0}, 4),
    ],
)
def test_it_shows_what_generate_draws(
    engine: Any, models: Library, blobs: BlobStore, panel: Panel, model: str, values: dict[str, Any], evaluations: int
) -> None:
    found, pictures = panel(model, **values)
    told = {"scheduler": values["sampler"]} if "sampler" in values else {}
    told |= {"prompt": "star", "guidance_scale": 3.0} if "classes" in values else {}
    draw = drawer(engine, models, blobs)
    for place, picture in enumerate(shown(found, pictures).values()):
        made = draw(model=model, seed=3 + place, num_inference_steps=4, **told)
        assert np.abs(picture - pixels(made.pictures[0])).max() <= 1
    assert found["tables"][0]["rows"][0][2] == evaluations
    assert [plot["name"] for plot in found["plots"]] == ["distance", "deviation"]
    assert len(found["films"][0]["frames"]) == 3


def test_a_dit_s_classes_come_in_turn(panel: Panel) -> None:
    found, pictures = panel("dit", pictures=4)
    seen = shown(found, pictures)
    assert [*seen] == ["circle, seed 3", "disc, seed 4", "star, seed 5", "circle, seed 6"]
    alone, same = (shown(*panel("dit", classes=name, pictures=1, seed=5)) for name in ("star", "STAR"))
    assert np.abs(alone["star, seed 5"] - seen["star, seed 5"]).max() <= 1
    assert np.array_equal(alone["star, seed 5"], same["STAR, seed 5"])


@pytest.mark.parametrize(
    ("model", "values", "sentence"),
    [
        ("dit", {"classes": "dog"}, "prompt='dog' is no class of this model; it has: circle, disc, star"),
        ("plain", {"classes": "star"}, "plain has none; leave them empty"),
        ("plain", {"sampler": "Predictor-corrector"}, "does not work with this model"),
        ("score", {"sampler": "DDIM"}, "does not work with this model"),
        ("plain", {"num_inference_steps": 1}, "num_inference_steps=1 must be at least 2"),
        ("plain", {"pictures": 17}, "pictures=17 must be at most 16"),
    ],
)
def test_what_it_cannot_show_is_told(panel: Panel, model: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudioError, match=sentence):
        panel(model, **values)


def test_a_model_with_words_is_refused_with_the_way_out(engine: Any, library: Library) -> None:
    with pytest.raises(StudioError, match=r"reads prompts; .*Train one \(Train, From nothing"):
        engine.use_tool(lab_call(library, "wordless", {}, "shapes"), lambda reference, field: None, NOBODY)


def test_a_stop_shows_what_there_is(panel: Panel) -> None:
    told: list[int] = []
    watch = ToolWatch(lambda step, steps: told.append(step), lambda: len(told) > 1)
    found, _ = panel("score", watch, num_inference_steps=50)
    assert found["notes"] == ["Stopped after 2 of 50 steps."]
    assert found["tables"][0]["rows"][0][2] == 4
