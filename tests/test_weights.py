"""Weights that are kept in less: the picture still shows what was asked for, and a picture without them is the one from before."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from studio.engine.latents import denoiser
from studio.engine.places import bytes_of
from studio.errors import InvalidRequest
from studio.memory import KEEPINGS, weights_choices
from studio.spec import parse_request
from studio.store.blobs import BlobStore
from studio.store.library import Library
from tests.conftest import MODELS, Made, drawer, pixels
from tests.test_adapter_kinds import adapter, load
from trainers.scorers.reading import judge

Draw = Callable[..., Made]
ASKED: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": 5, "num_inference_steps": 6}
SMALL: dict[str, Any] = {"prompt": "a red circle", "seed": 3, "num_inference_steps": 2, "width": 64, "height": 64}
HERE = [name for name in KEEPINGS if name != "full" and not KEEPINGS[name].cuda]


def held(engine: Any, keeping: str) -> Any:
    """Return the denoiser that was loaded last with its weights kept in a way."""
    (found,) = [one.base for key, one in engine.pipelines._loaded.items() if key[1] == keeping]
    return denoiser(found)


@pytest.fixture(params=HERE)
def keeping(request: pytest.FixtureRequest) -> str:
    for package in KEEPINGS[request.param].packages:
        pytest.importorskip(package)
    return request.param


def test_a_picture_shows_what_was_asked_for_and_full_weights_are_as_before(
    draw: Draw, engine: Any, keeping: str
) -> None:
    before = draw(**ASKED)
    made = draw(**ASKED, weights=keeping)
    seen = judge(pixels(made.pictures[0]))
    assert [(one.colour, one.shape) for one in seen.things] == [("red", "circle")]
    assert seen.background == "blue"
    assert made.pictures != before.pictures, "the weights are others"
    assert made.records[0].request.weights == keeping
    full, less = (bytes_of(held(engine, one)) for one in ("full", keeping))
    assert less < full * (0.3 if keeping == "float8" else 0.8)
    assert draw(**ASKED).pictures == before.pictures


def test_a_lora_and_a_second_pass_work_with_less(draw: Draw, keeping: str) -> None:
    plain = draw(**ASKED, weights=keeping)
    stack = [{"name": "red-to-blue", "weight": 1.0}]
    values = ASKED | {"prompt": "a red circle on a yellow background"}
    seen = judge(pixels(draw(**values, weights=keeping, loras=stack).pictures[0]))
    assert (seen.things[0].colour, seen.background) == ("blue", "yellow")
    assert draw(**ASKED, weights=keeping).pictures == plain.pictures
    twice = draw(**SMALL, weights=keeping, hires_scale=2, hires_steps=2)
    assert pixels(twice.pictures[0]).shape == (128, 128, 3)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_other_families_keep_less(draw_tiny: Draw, engine: Any, name: str, keeping: str) -> None:
    before = draw_tiny(model=name, prompt="a red circle")
    made = draw_tiny(model=name, prompt="a red circle", weights=keeping)
    assert bytes_of(held(engine, keeping)) < bytes_of(held(engine, "full"))
    far = np.abs(pixels(made.pictures[0]).astype(int) - pixels(before.pictures[0])).mean()
    assert far < 20
    assert draw_tiny(model=name, prompt="a red circle").pictures == before.pictures


def test_what_is_not_installed_or_not_possible_here_is_refused(draw: Draw, library: Library, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="'full', 'float8', 'int8' or 'nf4'"):
        parse_request({"weights": "half"})
    for name, keeping in KEEPINGS.items():
        lacking = [one for one in keeping.packages if importlib.util.find_spec(one) is None]
        assert (dict(map(reversed, weights_choices()))[name] == keeping.title) == (not lacking)
        if lacking:
            with pytest.raises(InvalidRequest, match=f"`pip install {lacking[0]}`, or use float8 or full") as caught:
                library.resolve(parse_request(SMALL | {"weights": name}), 1)
            assert caught.value.field == "weights"
        elif keeping.cuda:
            with pytest.raises(InvalidRequest, match="needs a CUDA device, not CPU; use float8 or full"):
                draw(**SMALL, weights=name)
    assert json.loads(parse_request({}).model_dump_json())["weights"] == "full"


@pytest.mark.parametrize("kind", ["loha", "dora"])
def test_other_kinds_of_lora_say_the_same_to_less(engine: Any, blobs: BlobStore, kind: str, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    state, _ = adapter(load(MODELS / "shapes"), kind)
    save_file(state, tmp_path / "loras" / f"{kind}.safetensors")
    here = drawer(engine, Library((MODELS,), part_roots=(tmp_path,)), blobs)
    stack = [{"name": kind, "weight": 1.0}]
    plain, full, less = (
        pixels(here(**SMALL, **values).pictures[0]).astype(int)
        for values in ({}, {"loras": stack}, {"loras": stack, "weights": "float8"})
    )
    assert np.abs(full - less).mean() < np.abs(full - plain).mean() / 2
