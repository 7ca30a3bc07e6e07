"""SDXL, Stable Diffusion 3 and Flux.1 through the engine, on tiny models: the same numbers as diffusers' own, or a clear refusal."""

import importlib
import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from studio.engine.engine import Engine
from studio.engine.latents import encode_picture
from studio.engine.pipelines import PipelineManager
from studio.engine.prompts import encode_prompts
from studio.errors import DeviceError, InvalidRequest
from studio.events import Preview, Progress
from studio.families import FAMILIES, pipelines_of
from studio.parts import KINDS, shape_problem
from studio.settings import Settings
from studio.spec import GenerationRequest
from studio.store.library import Library
from tests.conftest import Made

Draw = Callable[..., Made]
PROMPT = "a red circle on a blue background"
NEW = ["sdxl", "sd3", "flux"]
LONG = "a red circle, " * 20  # more than 77 tokens


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(made: Made, number: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(made.pictures[number])).convert("RGB")).astype(int)


def squares() -> np.ndarray:
    colours = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.kron(colours, np.ones((8, 8, 1), np.uint8))


def middle() -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    return mask


PICTURE, MASK = squares(), middle()
INPAINT: dict[str, Any] = {"image": png(PICTURE), "mask_image": png(MASK), "mask_blur": 0, "strength": 0.9}


@pytest.fixture(scope="module")
def manager(engine: Any) -> PipelineManager:
    return engine.pipelines


def pipeline(
    manager: PipelineManager, library: Library, name: str, **values: Any
) -> tuple[Any, GenerationRequest, Any]:
    """Return the pipeline, the resolved request and the model, outside of the engine."""
    request = GenerationRequest(model=name, width=64, height=64, num_inference_steps=3, seed=1, **values)
    resolved, model = library.resolve(request, 1)
    with manager.configured(resolved, model, [1]) as pipe:
        return pipe, resolved, model


def test_a_folder_tells_its_family(tiny_library: Library) -> None:
    found = {model.id: (model.family, model.kind, model.noise, model.problem) for model in tiny_library.models()}
    assert found == {
        "sdxl": ("sdxl", "", "diffusion", ""),
        "sd3": ("sd3", "", "flow", ""),
        "flux": ("flux", "", "flow", ""),
        "sdxl-inpaint": ("sdxl", "inpaint", "diffusion", ""),
        "depth": ("sd2", "depth", "diffusion", ""),
        "sdxl-refiner": ("sdxl", "refiner", "diffusion", ""),
    }
    assert {tiny_library.get(name).defaults["scheduler"] for name in ("sd3", "flux")} == {"Flow Euler"}


def test_every_class_that_a_family_names_exists() -> None:
    for family in FAMILIES.values():
        tables = [family.pipelines, family.pag_pipelines, *family.kinds.values()]
        for name in itertools.chain.from_iterable(table.values() for table in tables):
            assert hasattr(importlib.import_module(family.module), name), name
        channels = min(family.channels) // (4 if 64 in family.channels else 1)
        assert len(family.latent_rgb) in (0, channels + 1)


@pytest.mark.parametrize("name", NEW)
def test_the_same_seed_gives_the_same_bytes(draw_tiny: Draw, name: str) -> None:
    previews: list[bytes] = []
    one = draw_tiny(model=name, prompt=PROMPT)
    again = draw_tiny(model=name, prompt=PROMPT, preview=lambda data: previews.append(data) or "preview")
    assert again.pictures == one.pictures
    assert draw_tiny(model=name, prompt=PROMPT, seed=2).pictures != one.pictures
    assert draw_tiny(model=name, prompt="green", seed=1).pictures != one.pictures
    assert [Image.open(io.BytesIO(data)).size for data in previews] == [(8, 8)] * 3
    assert len([event for event in again.events if isinstance(event, Preview)]) == 3


@pytest.mark.parametrize("name", NEW)
def test_a_batch_is_the_same_seeds_alone(draw_tiny: Draw, name: str) -> None:
    for given in ({}, {"image": png(PICTURE)}, INPAINT | {"masked_content": "latent noise"}):
        values = {"model": name, "prompt": PROMPT, "negative_prompt": "green"} | given
        together = draw_tiny(**values, num_images_per_prompt=2, batch_size=2)
        for number in range(2):
            assert np.abs(pixels(draw_tiny(**values, seed=1 + number)) - pixels(together, number)).max() <= 2


@pytest.mark.parametrize("name", NEW)
def test_strength_0_is_the_image_itself_and_more_changes_it(draw_tiny: Draw, name: str) -> None:
    values = {"model": name, "prompt": PROMPT, "image": png(PICTURE)}
    assert np.array_equal(pixels(draw_tiny(**values, strength=0)), PICTURE)
    weak, strong = (draw_tiny(**values, strength=strength) for strength in (0.4, 1.0))
    assert weak.pictures != strong.pictures


@pytest.mark.parametrize("name", [*NEW, "sdxl-inpaint"])
def test_inpaint_keeps_what_is_not_masked(draw_tiny: Draw, name: str) -> None:
    made = {}
    for content in ("original", "fill", "latent noise", "latent nothing"):
        after = pixels(draw_tiny(model=name, prompt=PROMPT, masked_content=content, **INPAINT | {"strength": 0.5}))
        assert np.array_equal(after[MASK == 0], PICTURE[MASK == 0])
        assert not np.array_equal(after[MASK > 0], PICTURE[MASK > 0])
        made[content] = after.tobytes()
    assert len(set(made.values())) == 4


def test_a_model_that_only_inpaints_says_so(tiny_library: Library) -> None:
    with pytest.raises(InvalidRequest, match="Stable Diffusion XL model can only inpaint"):
        tiny_library.resolve(GenerationRequest(model="sdxl-inpaint"), 1)


def test_a_depth_model_changes_a_picture_and_does_nothing_else(draw_tiny: Draw, tiny_library: Library) -> None:
    values = {"model": "depth", "prompt": PROMPT, "image": png(PICTURE)}
    made = draw_tiny(**values)
    assert draw_tiny(**values).pictures == made.pictures
    assert draw_tiny(**values | {"prompt": "a green star"}).pictures != made.pictures
    together = draw_tiny(**values, seed=0, num_images_per_prompt=2, batch_size=2)
    assert np.abs(pixels(together, 1) - pixels(made)).max() <= 2
    for given in ({}, {"image": "x", "mask_image": "y"}):
        with pytest.raises(InvalidRequest, match=r"Stable Diffusion 2.x model cannot do .* it can: image2image"):
            tiny_library.resolve(GenerationRequest(model="depth", **given), 1)


def test_a_depth_model_is_told_the_depth_of_the_picture(draw_tiny: Draw, tiny_library: Library) -> None:
    told: list[torch.Tensor] = []

    def listen(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, diffusers.UNet2DConditionModel):
            told.append(given[0])

    with torch.nn.modules.module.register_module_forward_pre_hook(listen):
        draw_tiny(model="depth", prompt=PROMPT, image=png(PICTURE), guidance_scale=3.0)
    bare: Any = diffusers.StableDiffusionDepth2ImgPipeline.from_pretrained(tiny_library.get("depth").path)
    with torch.inference_mode():
        depth = bare.prepare_depth_map(
            Image.fromarray(PICTURE.astype(np.uint8)), None, 1, True, torch.float32, torch.device("cpu")
        )
    assert told and depth.std() > 0.1
    for given in told:
        assert (given[:, 4:] - depth).abs().max() < 0.01


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("negative", ["", "a green star"])
def test_a_short_prompt_is_encoded_as_the_pipeline_does(
    manager: PipelineManager, tiny_library: Library, name: str, negative: str
) -> None:
    more = {"true_cfg_scale": 2.0} if name == "flux" else {}
    pipe, request, model = pipeline(manager, tiny_library, name, prompt=PROMPT, negative_prompt=negative, **more)
    with torch.inference_mode():
        ours = encode_prompts(pipe, request, model)
        if name == "flux":
            own = [pipe.encode_prompt(text, None)[:2] for text in (PROMPT, negative)]
            states, negatives, pooled, negative_pooled = own[0][0], own[1][0], own[0][1], own[1][1]
        else:
            names = ("prompt", "prompt_2", "prompt_3")[: 2 if name == "sdxl" else 3]
            texts: dict[str, Any] = dict.fromkeys(names) | {"prompt": PROMPT, "negative_prompt": negative or None}
            states, negatives, pooled, negative_pooled = pipe.encode_prompt(**texts)
    assert torch.equal(ours.positive["prompt_embeds"], states)
    assert torch.equal(ours.positive["pooled_prompt_embeds"], pooled)
    assert torch.equal(ours.negative["prompt_embeds"], negatives)
    assert torch.equal(ours.negative["pooled_prompt_embeds"], negative_pooled)
    assert bool(ours.negative["prompt_embeds"].any()) is (name != "sdxl" or bool(negative)), (
        "zeros where they were trained"
    )


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_clip_skip_means_what_diffusers_means(manager: PipelineManager, tiny_library: Library, name: str) -> None:
    pipe, request, model = pipeline(manager, tiny_library, name, prompt=PROMPT, clip_skip=1)
    more = {"prompt_2": None} | ({"prompt_3": None} if name == "sd3" else {})
    with torch.inference_mode():
        states = pipe.encode_prompt(PROMPT, **more, clip_skip=1)[0]
        assert torch.equal(encode_prompts(pipe, request, model).positive["prompt_embeds"], states)
        with pytest.raises(InvalidRequest, match="clip_skip=5 must be less than 3"):
            encode_prompts(pipe, request.model_copy(update={"clip_skip": 5}), model)


@pytest.mark.parametrize(("name", "chunk", "tail"), [("sdxl", 77, 0), ("sd3", 77, 256), ("flux", 0, 512)])
def test_long_prompts_are_read_to_their_end(
    draw_tiny: Draw, manager: PipelineManager, tiny_library: Library, name: str, chunk: int, tail: int
) -> None:
    pipe, request, model = pipeline(manager, tiny_library, name, prompt=LONG + "star")
    with torch.inference_mode():
        first = encode_prompts(pipe, request, model).positive["prompt_embeds"]
        second = encode_prompts(pipe, request.model_copy(update={"prompt": LONG + "heart"}), model)
    assert first.shape[1] == 2 * chunk + tail
    assert not torch.equal(first, second.positive["prompt_embeds"])
    if name == "sdxl":
        values = {"model": name, "guidance_scale": 20.0, "negative_prompt": "green"}
        star, heart = (draw_tiny(**values, prompt=LONG + word) for word in ("star", "heart"))
        assert star.pictures != heart.pictures


def test_a_prompt_that_t5_cannot_hold_is_refused(
    draw_tiny: Draw, manager: PipelineManager, tiny_library: Library
) -> None:
    pipe, request, model = pipeline(manager, tiny_library, "sd3", prompt="a " * 300)
    with torch.inference_mode():
        states = encode_prompts(pipe, request, model).positive["prompt_embeds"]
    assert states.shape[1] == 4 * 77 + 512, "four chunks of CLIP, and the longer of T5's lengths"
    for name, limit in (("sd3", 512), ("flux", 512)):
        with pytest.raises(InvalidRequest, match=f"has 515 tokens and .* reads {limit}; .* 'a red circle'") as problem:
            draw_tiny(model=name, prompt="a " * 512 + "red circle")
        assert problem.value.field == "prompt"


@pytest.mark.parametrize("name", NEW)
def test_the_picture_is_the_bare_pipelines(
    draw_tiny: Draw, manager: PipelineManager, tiny_library: Library, name: str
) -> None:
    folder, values = tiny_library.get(name).path, {"prompt": PROMPT, "negative_prompt": "green", "guidance_scale": 4.0}
    more = {"true_cfg_scale": 2.0} if name == "flux" else {}
    bare: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np", **values, **more}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = pipe(width=64, height=64, generator=torch.Generator().manual_seed(1), **bare).images[0]
    ours = draw_tiny(model=name, **values, **more)
    assert np.array_equal(pixels(ours), (image * 255).round().astype(int))
    second = getattr(diffusers, FAMILIES[name].pipelines["image2image"]).from_pipe(pipe)
    with torch.inference_mode():
        latents = encode_picture(pipe, PICTURE, print)
    size = {} if name == "sdxl" else {"width": 64, "height": 64}
    generator = torch.Generator().manual_seed(1)
    image = second(image=latents, strength=0.7, generator=generator, **size, **bare).images[0]
    ours = draw_tiny(model=name, image=png(PICTURE), strength=0.7, **values, **more)
    assert np.array_equal(pixels(ours), (image * 255).round().astype(int))


@pytest.mark.parametrize("name", NEW)
def test_latents_have_the_scale_and_shift_of_the_family(
    manager: PipelineManager, tiny_library: Library, name: str
) -> None:
    pipe = pipeline(manager, tiny_library, name)[0]
    config = pipe.vae.config
    with torch.inference_mode():
        pixels = torch.from_numpy(PICTURE).permute(2, 0, 1)[None] / 127.5 - 1
        raw = pipe.vae.encode(pixels).latent_dist.mode()
        ours = encode_picture(pipe, PICTURE, print)
    assert torch.equal(ours, (raw - (config.shift_factor or 0.0)) * config.scaling_factor)


def test_inpainting_with_sd3_does_not_forget_the_shift(
    draw_tiny: Draw, manager: PipelineManager, tiny_library: Library
) -> None:
    """With the whole picture masked and strength 1, inpainting is drawing: the same noise, steps and decoder."""
    whole = INPAINT | {"mask_image": png(np.full((64, 64), 255, np.uint8)), "strength": 1.0}
    for name in ("sd3", "sdxl"):
        painted, drawn = draw_tiny(model=name, prompt=PROMPT, **whole), draw_tiny(model=name, prompt=PROMPT)
        assert np.array_equal(pixels(painted), pixels(drawn)), name


def test_guidance_off_drops_the_negative_prompt(draw_tiny: Draw) -> None:
    for name, off, on in (
        ("sdxl", {"guidance_scale": 1.0}, {"guidance_scale": 4.0}),
        ("sd3", {"guidance_scale": 1.0}, {"guidance_scale": 4.0}),
        ("flux", {"true_cfg_scale": 1.0}, {"true_cfg_scale": 4.0}),
    ):
        plain, spoken = ({"model": name, "prompt": PROMPT, "negative_prompt": text} for text in ("", "green star"))
        assert draw_tiny(**plain, **off).pictures == draw_tiny(**spoken, **off).pictures
        assert draw_tiny(**plain, **on).pictures != draw_tiny(**spoken, **on).pictures
    plain, strong = (draw_tiny(model="flux", prompt=PROMPT, guidance_scale=scale) for scale in (1.5, 9.0))
    assert plain.pictures != strong.pictures, "Flux hears its guidance as a number"


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_guidance_for_a_part_of_the_steps(draw_tiny: Draw, name: str) -> None:
    values = {"model": name, "prompt": PROMPT, "negative_prompt": "green", "guidance_scale": 9.0}
    full, none = draw_tiny(**values), draw_tiny(**values | {"guidance_scale": 1.0})
    assert draw_tiny(**values, guidance_start=0.9).pictures == none.pictures
    early, late = draw_tiny(**values, guidance_end=0.5), draw_tiny(**values, guidance_start=0.5)
    assert len({made.pictures[0] for made in (full, none, early, late)}) == 4
    together = draw_tiny(**values, guidance_start=0.5, num_images_per_prompt=2, batch_size=2)
    assert np.abs(pixels(together) - pixels(late)).max() <= 2


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_the_second_pass_is_larger_and_counted(draw_tiny: Draw, name: str, upscaler: str) -> None:
    values = {"hires_scale": 1.5, "hires_upscaler": upscaler, "hires_strength": 0.5}
    made = draw_tiny(model=name, prompt=PROMPT, **values)
    assert pixels(made).shape == (96, 96, 3)
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert {event.steps for event in progress} == {len(progress)} == {progress[-1].step}


@pytest.mark.parametrize("name", NEW)
def test_a_variation_goes_from_one_seed_to_the_other(draw_tiny: Draw, name: str) -> None:
    values = {"model": name, "prompt": PROMPT, "variation_seed": 900}
    second = draw_tiny(model=name, prompt=PROMPT, seed=900)
    assert draw_tiny(**values, variation_strength=1.0).pictures == second.pictures
    assert draw_tiny(**values, variation_strength=0.5).pictures != second.pictures


def test_a_refiner_goes_on_where_the_model_stopped(draw_tiny: Draw) -> None:
    values = {"model": "sdxl", "prompt": PROMPT, "negative_prompt": "green", "num_inference_steps": 5}
    plain = draw_tiny(**values)
    for start in (0.3, 0.5, 0.8):
        assert draw_tiny(**values, refiner="sdxl", refiner_start=start).pictures == plain.pictures, "its own refiner"
    made = draw_tiny(**values, refiner="sdxl-refiner", refiner_start=0.6)
    assert made.pictures != plain.pictures
    assert made.records[0].model.refiner is not None
    assert made.records[0].model.refiner.kind == "refiner"
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert [(event.step, event.steps) for event in progress] == [(step, 5) for step in range(1, 6)]
    assert draw_tiny(**values, refiner="sdxl-refiner", refiner_start=0.6).pictures == made.pictures


def test_the_refiners_half_is_diffusers_own(draw_tiny: Draw, tiny_library: Library) -> None:
    values: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": 4.0, "num_inference_steps": 4}
    base = diffusers.DiffusionPipeline.from_pretrained(tiny_library.get("sdxl").path)
    second = diffusers.DiffusionPipeline.from_pretrained(tiny_library.get("sdxl-refiner").path)
    generator = torch.Generator().manual_seed(1)
    for pipe in (base, second):
        pipe.set_progress_bar_config(disable=True)
    cut = {"width": 64, "height": 64, "denoising_end": 0.5, "output_type": "latent"}
    latents = base(**values, **cut, generator=generator).images
    image = second(**values, image=latents, denoising_start=0.5, generator=generator, output_type="np").images[0]
    made = draw_tiny(model="sdxl", refiner="sdxl-refiner", refiner_start=0.5, **values)
    assert np.array_equal(pixels(made), (image * 255).round().astype(int))


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"refiner": "nobody"}, "refiner", "is not in the library"),
        ({"refiner": "sd3"}, "refiner", "Stable Diffusion 3"),
        ({"refiner": "sdxl-inpaint"}, "refiner", "must do image2image"),
        ({"refiner": "sdxl", "image": png(PICTURE)}, "refiner", "only without an image"),
        ({"refiner": "sdxl", "hires_scale": 2.0}, "hires_scale", "together with refiner"),
        ({"refiner": "sdxl", "scheduler": "Heun"}, "scheduler", "twice a step"),
        ({"refiner": "sdxl", "refiner_start": 0.05}, "refiner_start", "0 of 3 steps to the model"),
        ({"model": "sd3", "refiner": "sd3"}, "refiner", "does not work with Stable Diffusion 3"),
        ({"model": "flux", "pag_scale": 3.0}, "pag_scale", "Flux.1"),
        ({"pag_scale": 3.0, "guidance_end": 0.5}, "guidance_end", "together with pag_scale"),
    ],
)
def test_refiners_and_pag_that_cannot_work_are_told(
    draw_tiny: Draw, values: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as problem:
        draw_tiny(**{"model": "sdxl", "prompt": PROMPT} | values)
    assert problem.value.field == field


def test_perturbed_attention_guides_every_task_and_leaves_no_trace(draw_tiny: Draw, draw: Draw) -> None:
    for run, model in ((draw_tiny, "sdxl"), (draw, "shapes")):
        values: dict[str, Any] = {"model": model, "prompt": PROMPT, "num_inference_steps": 3, "width": 64, "height": 64}
        cases = ({}, {"guidance_scale": 1.0}, {"image": png(PICTURE)}, INPAINT, {"hires_scale": 1.5})
        for given in cases if model == "sdxl" else cases[:1]:
            plain, made = run(**values | given), run(**values | given, pag_scale=3.0)
            assert made.pictures != plain.pictures
            assert run(**values | given).pictures == plain.pictures
        before = run(**values)
        stopped = run(**values, pag_scale=3.0, stop=lambda made: "interrupt" if len(made.events) > 1 else "")
        assert stopped.finished.interrupted
        assert run(**values).pictures == before.pictures, "as before, though the pipeline was stopped"


@pytest.mark.parametrize(
    ("name", "values", "field"),
    [
        ("sdxl", {"scheduler": "Flow Euler"}, "scheduler"),
        ("sdxl", {"true_cfg_scale": 2.0}, "true_cfg_scale"),
        ("sd3", {"scheduler": "Euler"}, "scheduler"),
        ("sd3", {"scheduler": "DPM++ 2M"}, "scheduler"),
        ("sd3", {"eta": 0.5}, "eta"),
        ("sd3", {"guidance_rescale": 0.5}, "guidance_rescale"),
        ("sd3", {"width": 72, "height": 64}, "width"),
        ("sd3", {"hires_scale": 1.125, "width": 64, "height": 64}, "hires_scale"),
        ("sd3", {"hires_scale": 2, "guidance_end": 0.5}, "guidance_end"),
        ("flux", {"scheduler": "Euler a"}, "scheduler"),
        ("flux", {"scheduler": "Flow Heun"}, "scheduler"),
        ("flux", {"clip_skip": 1}, "clip_skip"),
        ("flux", {"guidance_end": 0.5}, "guidance_end"),
    ],
)
def test_what_a_family_cannot_do_is_told(tiny_library: Library, name: str, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as problem:
        tiny_library.resolve(GenerationRequest(model=name, **values), 1)
    assert problem.value.field == field
    assert "\n" not in str(problem.value)


def test_guidance_is_rescaled_with_an_image_where_the_pipeline_can(draw_tiny: Draw, library: Library) -> None:
    values = {"model": "sdxl", "prompt": PROMPT, "image": png(PICTURE), "strength": 0.9, "guidance_scale": 8.0}
    assert draw_tiny(**values, guidance_rescale=0.7).pictures != draw_tiny(**values).pictures
    with pytest.raises(InvalidRequest, match=r"guidance_rescale does not work with Stable Diffusion 1\.x and an image"):
        library.resolve(GenerationRequest(model="shapes", image="x", guidance_rescale=0.5), 1, (128, 128))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flow_schedulers_work(draw_tiny: Draw, name: str) -> None:
    made = {draw_tiny(model=name, prompt=PROMPT).pictures[0]}
    for sigmas in ("karras", "exponential", "beta"):
        made.add(draw_tiny(model=name, prompt=PROMPT, sigmas=sigmas).pictures[0])
    assert len(made) == 4
    if name == "sd3":
        heun = {"model": name, "prompt": PROMPT, "scheduler": "Flow Heun"}
        assert draw_tiny(**heun).pictures[0] not in made
        assert draw_tiny(**heun, **INPAINT).pictures


def test_a_picture_sets_a_size_that_the_family_can_draw(tiny_library: Library) -> None:
    for name, side in (("sdxl", 88), ("sd3", 80), ("flux", 80)):
        assert tiny_library.resolve(GenerationRequest(model=name, image="x"), 1, (88, 88))[0].width == side


def test_a_scheduler_of_another_world_is_refused(tmp_path: Path, tiny_library: Library) -> None:
    shutil.copytree(tiny_library.get("sd3").path, tmp_path / "odd")
    path = tmp_path / "odd" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "EulerDiscreteScheduler"}))
    with pytest.raises(InvalidRequest, match="'EulerDiscreteScheduler' does not work with Stable Diffusion 3"):
        Library((tmp_path,)).get("odd")


@pytest.mark.parametrize("name", NEW)
def test_tasks_share_weights(manager: PipelineManager, tiny_library: Library, name: str) -> None:
    reference = tiny_library.reference(tiny_library.get(name))
    request, _ = tiny_library.resolve(GenerationRequest(model=name), 1)
    made = []
    for task in pipelines_of(reference.family, reference.kind):
        with manager.configured(request, reference, [1], task=task) as pipe:
            parts = {part: value for part, value in pipe.components.items() if isinstance(value, torch.nn.Module)}
            made.append({part: id(value) for part, value in parts.items()})
            assert {value.dtype for value in parts.values()} == {torch.float32}
    assert made[0] == made[1] == made[2]


def test_a_model_that_fits_only_alone_takes_the_place_of_the_other(engine: Engine, tiny_library: Library) -> None:
    """The device has room for one model, and none of the earlier ones may make a job fail."""

    class Small(PipelineManager):
        def _load(self, *what: Any) -> Any:
            if self._loaded:
                raise torch.OutOfMemoryError("as a small device does")
            return super()._load(*what)

    small = Small(engine.device)
    for name in ("sdxl", "sd3", "sdxl"):
        small.warm(tiny_library.reference(tiny_library.get(name)))
    assert len(small._loaded) == 1

    class Tiny(PipelineManager):
        def _load(self, *what: Any) -> Any:
            raise torch.OutOfMemoryError

    with pytest.raises(DeviceError, match="does not fit into the memory"):
        Tiny(engine.device).warm(tiny_library.reference(tiny_library.get("sdxl")))


def test_every_part_that_ships_says_in_words_why_it_fits_no_other_model(tiny_library: Library) -> None:
    ours = [part for kind in KINDS for part in Library((), part_roots=Settings().part_roots).parts.parts(kind)]
    assert len(ours) >= 3 and len(tiny_library.models()) >= 5
    for model in tiny_library.models():
        for part in ours:
            problem = shape_problem(part, model.shape)
            assert "in this model" in problem, (model.id, part.id)
