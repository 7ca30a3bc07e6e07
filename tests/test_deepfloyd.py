"""DeepFloyd IF on tiny models: one stage or two draw what diffusers' own pipelines draw, or say clearly why not."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline
from diffusers.pipelines.deepfloyd_if.pipeline_if_img2img import IFImg2ImgPipeline
from diffusers.pipelines.deepfloyd_if.pipeline_if_inpainting import IFInpaintingPipeline
from diffusers.pipelines.deepfloyd_if.pipeline_if_superresolution import IFSuperResolutionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from studio.engine.pipelines import PipelineManager
from studio.errors import InvalidRequest, ModelError
from studio.events import Progress
from studio.families import FAMILIES
from studio.family_table import family_rows
from studio.fitting import greyed, usable
from studio.schedulers import SCHEDULERS
from studio.spec import GenerationRequest, parse_request
from studio.store.blobs import BlobStore
from studio.store.lab_calls import lab_call
from studio.store.library import Library
from studio.store.models import read_model
from studio.store.prompt_reports import PromptReports
from tests.conftest import Made, drawer
from tests.test_families import INPAINT as PAINTED
from tests.test_families import MASK, PICTURE, PROMPT, pixels, png
from tests.tiny import DEEPFLOYD_MODELS, save_models

Draw = Callable[..., Made]
GUIDED: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "green", "guidance_scale": 7.0, "num_inference_steps": 3}
BARE = {"clean_caption": False, "output_type": "np"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library((save_models(tmp_path_factory.mktemp("deepfloyd"), DEEPFLOYD_MODELS),))


@pytest.fixture(scope="module")
def make(engine: Any, models: Library, blobs: BlobStore) -> Draw:
    run = drawer(engine, models, blobs)
    return lambda **values: run(**{"model": "first", "width": 64, "height": 64, "seed": 1} | GUIDED | values)


def bare(models: Library, pipeline: Any = IFPipeline, name: str = "first") -> Any:
    left_out = dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"))
    pipe = pipeline.from_pretrained(models.get(name).path, requires_safety_checker=False, **left_out)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, **more: Any) -> np.ndarray:
    told = GUIDED | BARE | {"generator": torch.Generator().manual_seed(1)} | more
    return (pipe(**told).images[0] * 255).round().astype(int)


def test_a_folder_tells_its_stage(models: Library) -> None:
    names = ("width", "num_inference_steps", "guidance_scale", "scheduler")
    found = {one.id: (one.family, one.kind, one.problem, *map(one.defaults.get, names)) for one in models.models()}
    assert found == {
        "first": ("deepfloyd-if", "", "", 64, 100, 7.0, "DDPM"),
        "second": ("deepfloyd-if", "second stage", "", 256, 50, 4.0, "DDPM"),
    }
    with pytest.raises(InvalidRequest, match="only goes on from what a first stage drew") as problem:
        models.resolve(GenerationRequest(model="second"), 1)
    assert problem.value.field == "model"


def test_the_picture_is_the_bare_pipelines(make: Draw, models: Library) -> None:
    made = make()
    assert np.abs(pixels(made) - drawn(bare(models))).max() == 0
    assert make().pictures == made.pictures
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert [(event.step, event.steps) for event in progress] == [(1, 3), (2, 3), (3, 3)]
    wide = drawn(bare(models), width=96, height=64)
    assert np.abs(pixels(make(width=96)) - wide).max() == 0
    assert wide.shape == (64, 96, 3)


def test_two_stages_are_the_bare_pipelines(make: Draw, models: Library) -> None:
    generator, first = torch.Generator().manual_seed(1), bare(models)
    said = dict(
        zip(
            ("prompt_embeds", "negative_prompt_embeds"),
            first.encode_prompt(PROMPT, negative_prompt="green"),
            strict=True,
        )
    )
    small = first(**said, num_inference_steps=3, guidance_scale=7.0, generator=generator, output_type="pt").images
    image = bare(models, IFSuperResolutionPipeline, "second")(
        **said, image=small, generator=generator, output_type="np"
    ).images[0]
    made = make(refiner="second")
    assert pixels(made).shape == (256, 256, 3)
    assert np.abs(pixels(made) - (image * 255).round()).max() == 0
    assert made.pictures != make().pictures
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(1, 54))
    assert {event.steps for event in progress} == {53}
    (record,) = made.records
    assert record.model.refiner
    assert (record.model.refiner.id, record.model.refiner.sha256) == ("second", models.sha256(models.get("second")))
    assert make(**record.request.model_dump(exclude_none=True)).pictures == made.pictures


def test_a_batch_of_two_stages_is_the_same_seeds_alone(make: Draw) -> None:
    together = make(refiner="second", width=96, num_images_per_prompt=2, batch_size=2, guidance_scale=1.0)
    alone = make(refiner="second", width=96, seed=2, guidance_scale=1.0, negative_prompt="")
    assert pixels(alone).shape == (256, 384, 3)
    assert np.abs(pixels(alone) - pixels(together, 1)).max() <= 2


def test_a_job_stops_in_the_second_stage_and_the_next_one_works(make: Draw) -> None:
    before = make()
    stopped = make(refiner="second", stop=lambda made: "interrupt" if len(made.events) > 5 else "")
    assert stopped.finished.interrupted
    assert len([event for event in stopped.events if isinstance(event, Progress)]) == 5
    assert make().pictures == before.pictures


def test_image_to_image_is_the_bare_pipelines(make: Draw, models: Library) -> None:
    theirs = drawn(bare(models, IFImg2ImgPipeline), image=Image.fromarray(PICTURE), strength=0.7)
    made = make(image=png(PICTURE), strength=0.7)
    assert np.abs(pixels(made) - theirs).max() == 0
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert [(event.step, event.steps) for event in progress] == [(1, 2), (2, 2)]
    assert np.array_equal(pixels(make(image=png(PICTURE), strength=0)), PICTURE)


def test_inpainting_is_the_bare_pipelines(make: Draw, models: Library) -> None:
    given = {"image": Image.fromarray(PICTURE), "mask_image": Image.fromarray(MASK), "strength": 0.9}
    theirs = drawn(bare(models, IFInpaintingPipeline), **given)
    after = pixels(make(**PAINTED))
    assert np.array_equal(after[MASK == 0], PICTURE[MASK == 0])
    assert np.abs(after - theirs)[MASK > 0].max() == 0
    assert not np.array_equal(after[MASK > 0], PICTURE[MASK > 0])
    wide = make(**PAINTED | {"extend_right": 32, "masked_content": "latent noise"})
    assert pixels(wide).shape == (64, 96, 3)


@pytest.mark.parametrize("given", [{}, {"image": png(PICTURE)}, PAINTED], ids=["text", "image", "inpaint"])
def test_seeds_prompts_and_batches(make: Draw, given: dict[str, Any]) -> None:
    one = make(**given)
    assert make(**given, seed=2).pictures != one.pictures
    assert make(**given, prompt="green").pictures != one.pictures
    together = make(**given, num_images_per_prompt=2, batch_size=2)
    for number in range(2):
        assert np.abs(pixels(make(**given, seed=1 + number)) - pixels(together, number)).max() <= 2


def test_guidance_and_captions_as_written(make: Draw, models: Library) -> None:
    off = make(guidance_scale=1.0)
    assert off.pictures == make(guidance_scale=1.0, negative_prompt="").pictures
    assert np.abs(pixels(off) - drawn(bare(models), guidance_scale=1.0, negative_prompt=None)).max() == 0
    assert make().pictures != make(negative_prompt="").pictures
    without = drawn(bare(models), negative_prompt=None)
    assert np.abs(pixels(make(negative_prompt="")) - without).max() == 0
    assert make(prompt=f" {PROMPT.upper()}").pictures == make().pictures
    assert make(prompt="(a red:1.5) circle").pictures != make(prompt="a red circle").pictures


def test_every_sampler_that_is_offered_is_the_bare_one(make: Draw, models: Library) -> None:
    (row,) = [row for row in family_rows() if (row["name"], row["kind"]) == ("deepfloyd-if", "")]
    pipe = bare(models)
    config = pipe.scheduler.config
    assert len(row["schedulers"]) > 15
    assert row["lora"]
    for name in row["schedulers"]:
        made = make(scheduler=name)
        progress = [(event.step, event.steps) for event in made.events if isinstance(event, Progress)]
        assert progress == [(1, 3), (2, 3), (3, 3)], name
        known = SCHEDULERS[name]
        options = {key: value for key, value in known.overrides.items() if key != "clip_sample"}
        if known.seeded_sigmas:
            options["noise_sampler_seed"] = 1
        kind = config if name == "DDPM" else dict(config) | {"variance_type": "fixed_small"}
        pipe.scheduler = getattr(diffusers, known.class_name).from_config(kind, **options)
        assert np.abs(pixels(made) - drawn(pipe)).max() == 0, name
    assert make(scheduler="DDIM", eta=1.0).pictures != make(scheduler="DDIM").pictures


def test_previews_are_the_picture_as_it_becomes(make: Draw) -> None:
    previews: list[bytes] = []
    seen = make(preview=lambda data: previews.append(data) or "preview")
    assert seen.pictures == make().pictures
    shown = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in previews]
    assert [one.shape for one in shown] == [(64, 64, 3)] * 3
    assert np.abs(shown[-1] - pixels(seen)).max() <= 1


def test_a_variation_goes_from_one_seed_to_the_other(make: Draw) -> None:
    other = make(seed=900, scheduler="DDIM")
    assert make(variation_seed=900, variation_strength=1.0, scheduler="DDIM").pictures == other.pictures
    half = make(variation_seed=900, variation_strength=0.5)
    assert half.pictures not in (make().pictures, make(seed=900).pictures)
    assert make(variation_seed=900, variation_strength=0.5).pictures == half.pictures


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_the_second_pass_is_larger_and_counted(make: Draw, upscaler: str) -> None:
    made = make(hires_scale=1.5, hires_upscaler=upscaler, hires_strength=0.7)
    assert pixels(made).shape == (96, 96, 3)
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert {event.steps for event in progress} == {len(progress)} == {progress[-1].step}


def test_a_lora_counts_as_it_does_in_the_bare_pipeline(
    engine: Any, models: Library, blobs: BlobStore, tmp_path: Path
) -> None:
    pipe = bare(models)
    targets = list(FAMILIES["deepfloyd-if"].lora_targets)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights="gaussian"))
    layers = get_peft_model_state_dict(pipe.unet)
    layers = {key: torch.randn_like(one) * 0.3 if "lora_B" in key else one for key, one in layers.items()}
    told = {"unet_lora_adapter_metadata": {"r": 4, "lora_alpha": 8, "target_modules": targets}}
    pipe.save_lora_weights(tmp_path / "loras", unet_lora_layers=layers, weight_name="trained.safetensors", **told)
    pipe.unet.delete_adapters("default")
    run = drawer(engine, Library(models.folders, part_roots=(tmp_path,)), blobs)
    values = {"model": "first", "seed": 1} | GUIDED
    plain, strong, none, half = (
        run(**values, loras=[{"name": "trained", "weight": w}] if w is not None else []) for w in (None, 1, 0, 0.5)
    )
    assert strong.pictures != plain.pictures == none.pictures
    assert half.pictures not in (plain.pictures, strong.pictures)
    assert run(**values).pictures == plain.pictures
    pipe.load_lora_weights(tmp_path / "loras", weight_name="trained.safetensors", local_files_only=True)
    assert np.abs(pixels(strong) - drawn(pipe)).max() == 0


def test_a_prompt_that_is_too_long_is_refused_and_reported(make: Draw, models: Library) -> None:
    assert make(prompt="A " * 76).pictures
    reports = PromptReports(models)
    for name in ("prompt", "negative_prompt"):
        long = {name: "a " * 76 + "red circle"}
        with pytest.raises(InvalidRequest, match="reads 77; shorten it by what begins with 'red circle'") as problem:
            make(**long)
        assert problem.value.field == name
        said = reports.report(parse_request({"model": "first"} | long))
        assert any("reads 77; shorten it by what begins with 'red circle'" in one for one in said.problems)
        assert getattr(said, name).encoders[0].cut == "red circle"
    said = reports.report(parse_request({"model": "first", "prompt": "A (RED:1.2) circle"})).prompt
    assert said.limit == 76
    assert said.encoders[0].kind == "t5"
    assert "".join(one.text for one in said.encoders[0].chunks[0]) == "a(red:1.2)circle"


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"vae": "other"}, "vae", "does not work with DeepFloyd IF; set it back to nothing"),
        ({"vae_tiling": True}, "vae_tiling", "does not work with DeepFloyd IF"),
        ({"guidance_end": 0.5}, "guidance_end", "does not work"),
        ({"scheduler": "Flow Euler"}, "scheduler", "diffusion noise"),
        ({"clip_skip": 1}, "clip_skip", "does not work"),
        ({"pag_scale": 3.0}, "pag_scale", "does not work"),
        ({"refiner": "first"}, "refiner", "must do second stage"),
        ({"refiner": "second", "refiner_start": 0.5}, "refiner_start", "begins anew; set it back to 0.8"),
        ({"refiner": "second", "width": 1024}, "width", "4096 pixels a side; at most 2048, so use 512"),
        ({"refiner": "second", "hires_scale": 2.0}, "hires_scale", "does not work together with refiner"),
        ({"refiner": "second", "image": "x"}, "refiner", "works only without an image"),
        ({"model": "second", "image": "x"}, "model", "this as its refiner"),
    ],
)
def test_what_it_cannot_do_is_told(models: Library, values: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as problem:
        models.resolve(GenerationRequest(**{"model": "first", "width": 64, "height": 64} | values), 1)
    assert problem.value.field == field
    assert "\n" not in str(problem.value)


def test_a_form_shows_what_means_nothing() -> None:
    off = greyed("deepfloyd-if", "")["none"]
    assert {"refiner_start", "vae", "vae_tiling"} <= set(off)
    assert "refiner" not in off
    kept = usable("deepfloyd-if", "", {"prompt": "red", "refiner": "second", "refiner_start": 0.5, "vae_tiling": True})
    assert kept == {"prompt": "red", "refiner": "second", "vae_tiling": False}


def test_nothing_of_a_folder_is_loaded_that_is_left_out(models: Library, engine: Any, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(models.get(name).path, tmp_path / name)
        for part in ("safety_checker", "feature_extractor", "watermarker"):
            shutil.rmtree(tmp_path / name / part)
        assert not read_model(name, tmp_path / name).problem
    library, manager = Library((tmp_path,)), PipelineManager(engine.device)
    request, model = library.resolve(GenerationRequest(model="first", refiner="second"), 1)
    assert model.refiner
    with manager.configured(request, model, [1]) as pipe:
        assert set(pipe.components) == {"tokenizer", "text_encoder", "unet", "scheduler"}
    with manager.configured(request, model.refiner, [1], task="second stage") as pipe:
        assert set(pipe.components) == {"unet", "scheduler", "image_noising_scheduler"}
    with pytest.raises(ModelError, match="has no autoencoder: it draws pixels"):
        manager.vae(model)


def test_the_lab_asks_its_network(models: Library, engine: Any) -> None:
    call = lab_call(models, "reverse", {"num_inference_steps": 2, "frames": 2, "sampler": "DDIM"}, "first")
    _, pictures = engine.use_tool(call, lambda *_: Image.new("RGB", (8, 8)))
    assert Image.open(io.BytesIO(pictures["result"])).size == (64, 64)
