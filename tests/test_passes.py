"""Second passes, mixed seeds and guidance for a part of the steps, judged by what the picture shows and by bytes."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from studio.engine.passes import slerp
from studio.errors import InvalidRequest
from studio.events import Progress
from studio.spec import parse_request
from studio.store.metadata import from_texts, picture_texts
from tests.conftest import Made
from trainers.scorers.reading import judge

Draw = Callable[..., Made]
PROMPT = "a big red square on a white background"


def pixels(made: Made, number: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(made.pictures[number])).convert("RGB"))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_the_second_pass_makes_the_same_picture_larger(draw: Draw, upscaler: str) -> None:
    plain = draw(prompt=PROMPT, seed=4)
    made = draw(prompt=PROMPT, seed=4, hires_scale=1.5, hires_upscaler=upscaler, hires_strength=0.5)
    assert pixels(made).shape == (192, 192, 3)
    reading, before = judge(pixels(made)), judge(pixels(plain))
    assert reading.background == before.background == "white"
    assert (reading.things[0].colour, reading.things[0].shape) == (before.things[0].colour, before.things[0].shape)
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(1, 16 + 8 + 1))
    assert {event.steps for event in progress} == {16 + 8}


def test_no_second_pass_is_no_change(draw: Draw) -> None:
    few = {"prompt": PROMPT, "seed": 4, "num_inference_steps": 3}
    assert np.array_equal(pixels(draw(**few)), pixels(draw(**few, hires_strength=0.2, hires_steps=9)))


def test_a_variation_goes_from_one_seed_to_the_other(draw: Draw) -> None:
    values: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 6}
    first, second = (pixels(draw(**values, seed=seed)) for seed in (11, 900))
    mixed = {s: pixels(draw(**values, seed=11, variation_seed=900, variation_strength=s)) for s in (0.0, 0.15, 1.0)}
    assert np.array_equal(mixed[0.0], first)
    assert np.array_equal(mixed[1.0], second)
    assert 0 < distance(mixed[0.15], first) < distance(mixed[0.15], second)


def test_variations_of_one_job_share_the_seed_and_replay_one_by_one(draw: Draw) -> None:
    values: dict[str, Any] = {"prompt": PROMPT, "seed": 11, "variation_strength": 0.5, "num_inference_steps": 4}
    together = draw(**values, variation_seed=70, num_images_per_prompt=3)
    assert [record.seed for record in together.records] == [11, 11, 11]
    for index, record in enumerate(together.records):
        said = from_texts(picture_texts(record)).values
        assert said["variation_seed"] == 70 + index
        alone = draw(**{name: value for name, value in said.items() if value is not None})
        assert np.array_equal(pixels(alone), pixels(together, index))
    assert not np.array_equal(pixels(together, 0), pixels(together, 1))


def test_a_random_variation_seed_is_written_down(draw: Draw) -> None:
    record = draw(prompt=PROMPT, variation_strength=0.3, num_inference_steps=1).records[0]
    assert record.request.variation_seed >= 0


def test_guidance_for_a_part_of_the_steps(draw: Draw) -> None:
    values: dict[str, Any] = {"prompt": PROMPT, "seed": 2, "guidance_scale": 4.0, "num_inference_steps": 8}
    full, none = pixels(draw(**values)), pixels(draw(**values | {"guidance_scale": 1.0}))
    early = pixels(draw(**values, guidance_end=0.5))
    late = pixels(draw(**values, guidance_start=0.95))
    assert np.array_equal(late, none), "no step begins after 95 % of eight"
    assert not np.array_equal(early, full)
    assert distance(early, full) < distance(none, full)
    assert not np.array_equal(pixels(draw(**values, guidance_rescale=0.7)), full)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"image": "x", "hires_scale": 2}, "hires_scale"),
        ({"image": "x", "variation_strength": 0.5}, "variation_strength"),
        ({"image": "x", "mask_image": "y", "guidance_end": 0.5}, "guidance_start"),
        ({"guidance_start": 0.6, "guidance_end": 0.5}, "guidance_end"),
        ({"hires_scale": 2, "hires_strength": 0.05, "num_inference_steps": 10}, "hires_strength"),
        ({"hires_scale": 4, "width": 1024, "height": 512}, "hires_scale"),
    ],
)
def test_what_cannot_work_together_is_told(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as problem:
        parse_request(values)
    assert problem.value.field == field


def test_a1111s_words_for_a_second_pass_are_read_back(draw: Draw) -> None:
    made = draw(prompt=PROMPT, seed=4, num_inference_steps=4, hires_scale=1.25, hires_steps=3, hires_strength=0.4)
    text = picture_texts(made.records[0])["parameters"]
    assert "Hires upscale: 1.25, Hires steps: 3, Hires upscaler: Latent" in text
    values = from_texts({"parameters": text}).values
    assert (values["hires_scale"], values["hires_steps"], values["hires_strength"]) == (1.25, 3, 0.4)
    assert "strength" not in values


def test_slerp_keeps_the_length() -> None:
    one, other = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for fraction in (0.0, 0.3, 1.0):
        assert abs(float(slerp(fraction, one, other).std()) - 1) < 0.05
    assert torch.equal(slerp(0.0, one, other), one)
    assert torch.equal(slerp(1.0, one, other), other)
