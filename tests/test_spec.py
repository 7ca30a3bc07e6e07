"""Wrong input gets one sentence: field, value, what is allowed, the way out."""

import json

import pytest

from studio.errors import InvalidRequest
from studio.schedulers import SCHEDULERS, canonical, scheduler_problem
from studio.spec import GenerationRequest, parse_request
from studio.store.library import fill_defaults

WRONG = [
    ("width", 500, "width=500 must be a multiple of 8; use 496 or 504"),
    ("width", "500", "width='500' must be a multiple of 8; use 496 or 504"),
    ("width", 32, "width=32 must be at least 64"),
    ("height", 4096, "height=4096 must be at most 2048"),
    ("num_inference_steps", 0, "num_inference_steps=0 must be at least 1"),
    ("num_inference_steps", 20.5, "num_inference_steps=20.5: "),
    ("num_inference_steps", True, "True is not a number"),
    ("num_images_per_prompt", 65, "num_images_per_prompt=65 must be at most 64"),
    ("guidance_scale", float("nan"), "guidance_scale=nan must be a finite number"),
    ("guidance_scale", float("inf"), "guidance_scale=inf must be a finite number"),
    ("guidance_scale", 0.5, "guidance_scale=0.5 must be at least 1"),
    ("seed", -2, "seed=-2 must be at least -1"),
    ("seed", 2**32, "seed=4294967296 must be at most 4294967295"),
    ("eta", 1.5, "eta=1.5 must be at most 1"),
    ("scheduler", "Euler z", "scheduler='Euler z' is not known; use one of: DPM++ 2M, "),
    ("sigmas", "wavy", "sigmas='wavy': "),
    ("prompt", "x" * 1_000_000, "prompt has 1,000,000 characters; at most 20,000 are allowed"),
    ("typo", 1, "typo is not a field of this request"),
]


@pytest.mark.parametrize(
    ("field", "value", "sentence"), WRONG, ids=[f"{field}-{str(value)[:8]}" for field, value, _ in WRONG]
)
def test_a_wrong_value_gets_one_sentence(field: str, value: object, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_sliders_send_floats() -> None:
    assert parse_request({"num_inference_steps": 20.0, "width": 128.0}).num_inference_steps == 20


def test_combinations_that_run_wrong_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="does not work with DDIM; use one of: automatic, normal, sgm_uniform"):
        parse_request({"scheduler": "DDIM", "sigmas": "karras"})
    assert scheduler_problem("EDM Euler", "automatic", "diffusion")
    assert scheduler_problem("Euler", "automatic", "flow")
    assert scheduler_problem("Euler", "karras", "diffusion") is None


@pytest.mark.parametrize(
    "name", ["Euler a", "euler_a", "EulerAncestralDiscreteScheduler", "euler ancestral", " EULER A "]
)
def test_a1111_names_and_class_names_are_understood(name: str) -> None:
    assert canonical(name) == "Euler a"


def test_every_scheduler_is_a_diffusers_class_that_can_follow_its_schedules() -> None:
    import inspect

    import diffusers

    for name, scheduler in SCHEDULERS.items():
        parameters = inspect.signature(getattr(diffusers, scheduler.class_name).__init__).parameters
        for kind in ("karras", "exponential", "beta"):
            if kind in scheduler.sigmas and scheduler.noise == "diffusion":
                assert f"use_{kind}_sigmas" in parameters, (name, kind)
        assert "sgm_uniform" not in scheduler.sigmas or "timestep_spacing" in parameters, name
        for option in scheduler.overrides:
            assert option in parameters, (name, option)


def test_defaults_fill_only_what_is_open() -> None:
    defaults = {"width": 128, "height": 128, "num_inference_steps": 16, "guidance_scale": 2.0, "scheduler": "Euler"}
    filled = fill_defaults(GenerationRequest(prompt="x", width=64), defaults, 11)
    assert (filled.width, filled.height, filled.seed, filled.sigmas) == (64, 128, 11, "automatic")
    assert json.loads(filled.model_dump_json())["scheduler"] == "Euler"


def test_the_last_seed_must_fit() -> None:
    with pytest.raises(InvalidRequest, match="leaves no room for 2 images"):
        fill_defaults(GenerationRequest(seed=2**32 - 1, num_images_per_prompt=2), {}, 0)
