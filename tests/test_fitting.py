"""What a model cannot do is known before anything is drawn: the form shows it, the rules refuse it, and both say the same."""

import pytest

from studio.errors import InvalidRequest
from studio.families import FAMILIES, pipelines_of
from studio.fitting import FOLLOWERS, barred, check_request, greyed, usable
from studio.spec import IMAGE2IMAGE, INPAINT, TEXT2IMAGE, GenerationRequest, parse_request

MODELS = [(name, kind) for name, family in FAMILIES.items() for kind in ("", *family.kinds)]
GIVEN = {TEXT2IMAGE: {}, IMAGE2IMAGE: {"image": "x"}, INPAINT: {"image": "x", "mask_image": "y"}}
PLAIN = {"width": 512, "height": 512, "num_inference_steps": 10, "guidance_scale": 3.0, "scheduler": "Flow Euler"}
# The least that switches each field on.
ON = {
    "eta": 0.5,
    "guidance_rescale": 0.5,
    "clip_skip": 1,
    "true_cfg_scale": 2.0,
    "prior_guidance_scale": 2.0,
    "refiner": "other",
    "guidance_start": 0.2,
    "guidance_end": 0.8,
    "pag_scale": 3.0,
    "variation_strength": 0.5,
    "hires_scale": 2.0,
    "prompt": "red",
    "negative_prompt": "green",
    "vae": "other",
    "vae_tiling": True,
    "vae_slicing": True,
    "guidance_scale": 4.0,
    "loras": [{"name": "one"}],
    "strength": 0.5,
    "masked_content": "fill",
}


@pytest.mark.parametrize(("family", "kind"), MODELS)
@pytest.mark.parametrize("task", [TEXT2IMAGE, IMAGE2IMAGE, INPAINT])
def test_what_is_barred_is_refused_and_nothing_else(family: str, kind: str, task: str) -> None:
    if task not in pipelines_of(family, kind):
        return
    off = barred(family, kind, task)
    assert set(off) <= set(ON)
    for name, value in ON.items():
        fixed = FAMILIES[family].fixed.get(kind, {})
        values = PLAIN | fixed | GIVEN[task] | {name: value}
        shown = greyed(family, kind)["image" if GIVEN[task] else "none"]
        if name in off:
            with pytest.raises(InvalidRequest) as caught:
                check_request(family, kind, parse_request(values))
            assert caught.value.field in (name, "guidance_start")
            assert name in shown or task != TEXT2IMAGE, "what is not shown as switched off is refused"
        else:
            check_request(family, kind, parse_request(values))
            assert name not in shown
        kept = usable(family, kind, values)
        assert set(values) - set(kept) == ({name} & set(shown)) - set(fixed)
        assert {key: kept[key] for key in fixed} == fixed


@pytest.mark.parametrize(("family", "kind"), MODELS)
def test_a_form_bars_with_an_image_what_neither_img2img_nor_inpaint_can_do(family: str, kind: str) -> None:
    off = greyed(family, kind)["image"]
    for task in {IMAGE2IMAGE, INPAINT} & set(pipelines_of(family, kind)):
        assert {name for name in off if name in ON} <= set(barred(family, kind, task))
    assert all(set(FOLLOWERS[name]) <= set(off) for name in FOLLOWERS if name in off)


def test_reasons_are_sentences() -> None:
    off = greyed("flux", "")
    assert off["none"]["clip_skip"] == "does not work with Flux.1"
    assert off["none"]["refiner_start"] == off["none"]["refiner"]
    assert off["image"]["hires_strength"] == off["image"]["variation_seed"] == "works only without an image"
    assert barred("sd1", "", INPAINT)["guidance_end"] == "does not work with Stable Diffusion 1.x and inpainting"


def test_an_image_that_is_only_enlarged_keeps_its_scale() -> None:
    values = {"image": "x", "strength": 0.0, "hires_scale": 2.0, "hires_upscaler": "lanczos", "variation_strength": 0.5}
    kept = usable("sd1", "", values)
    assert "variation_strength" not in kept
    assert kept["hires_scale"] == 2.0
    assert GenerationRequest.model_validate(kept).only_enlarges
