"""Z-Image, Flux.2 klein, Qwen-Image, Chroma, PixArt-Sigma, Sana and few-step models, on tiny models: the bare pipelines' pictures."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from studio.__main__ import main
from studio.engine.latents import encode_picture, unscaled
from studio.errors import InvalidRequest
from studio.events import Progress
from studio.families import FAMILIES
from studio.family_table import family_rows, family_table
from studio.few_steps import advice
from studio.fitting import check_request
from studio.settings import ROOT
from studio.spec import IMAGE2IMAGE, INPAINT, GenerationRequest, parse_request
from studio.store.blobs import BlobStore
from studio.store.library import Library
from studio.store.prompt_reports import PromptReports
from tests.conftest import Made, drawer
from tests.test_families import INPAINT as PAINTED
from tests.test_families import MASK, PICTURE, PROMPT, pixels, png
from tests.tiny import LATER_MODELS, save_models

Draw = Callable[..., Made]
FLOW = ["z-image", "flux2-klein", "qwen-image", "chroma"]
ALL = [*FLOW, "pixart-sigma", "sana", "lcm"]
# What a person gives, and the same in the words of the bare pipeline.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "z-image": (
        {"guidance_scale": 5.0, "negative_prompt": "green"},
        {"guidance_scale": 4.0, "negative_prompt": "green"},
    ),
    "flux2-klein": ({"guidance_scale": 4.0}, {"guidance_scale": 4.0}),
    "qwen-image": (
        {"guidance_scale": 4.0, "negative_prompt": "green"},
        {"true_cfg_scale": 4.0, "negative_prompt": "green"},
    ),
    "chroma": (
        {"guidance_scale": 5.0, "negative_prompt": "green"},
        {"guidance_scale": 5.0, "negative_prompt": "green"},
    ),
    "pixart-sigma": (
        {"guidance_scale": 4.5, "negative_prompt": "green"},
        {"guidance_scale": 4.5, "negative_prompt": "green", "use_resolution_binning": False, "clean_caption": False},
    ),
    "sana": (
        {"guidance_scale": 4.5, "negative_prompt": "green"},
        {"guidance_scale": 4.5, "negative_prompt": "green", "use_resolution_binning": False},
    ),
    "lcm": ({"guidance_scale": 8.0, "num_inference_steps": 4}, {"guidance_scale": 8.0, "num_inference_steps": 4}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library((save_models(tmp_path_factory.mktemp("later"), LATER_MODELS),))


@pytest.fixture(scope="module")
def make(engine: Any, models: Library, blobs: BlobStore) -> Draw:
    run = drawer(engine, models, blobs)
    return lambda **values: run(
        **{"width": 64, "height": 64, "num_inference_steps": 3, "seed": 1, "prompt": PROMPT} | values
    )


def bare(models: Library, name: str) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(models.get(name).path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def levels(image: Any) -> np.ndarray:
    return (np.asarray(image) * 255).round().astype(int)


def test_a_folder_tells_its_family_and_what_is_usual_for_it(models: Library) -> None:
    names = ("num_inference_steps", "guidance_scale", "width", "scheduler")
    found = {one.id: (one.family, one.kind, *(one.defaults.get(name) for name in names)) for one in models.models()}
    assert found == {
        "z-image": ("z-image", "", 50, 5.0, 1024, "Flow Euler"),
        "z-image-turbo": ("z-image", "", 8, 1.0, 1024, "Flow Euler"),
        "flux2-klein": ("flux2-klein", "", 28, 4.0, 1024, "Flow Euler"),
        "flux2-klein-distilled": ("flux2-klein", "distilled", 4, 1.0, 1024, "Flow Euler"),
        "qwen-image": ("qwen-image", "", 40, 4.0, 1328, "Flow Euler"),
        "chroma": ("chroma", "", 35, 5.0, 1024, "Flow Euler"),
        "pixart-sigma": ("pixart-sigma", "", 20, 4.5, 1024, "DPM++ 2M"),
        "sana": ("sana", "", 20, 4.5, 1024, "Flow DPM++ 2M"),
        "lcm": ("sd1", "lcm", 8, 8.0, 512, "LCM"),
        "sdxl-turbo": ("sdxl", "", 1, 1.0, 512, "Euler a"),
    }


@pytest.mark.parametrize("name", ALL)
def test_the_picture_is_the_bare_pipelines(make: Draw, models: Library, name: str) -> None:
    ours, theirs = CALLS[name]
    more = {"num_inference_steps": 3, "output_type": "np", "prompt": PROMPT} | theirs
    image = bare(models, name)(width=64, height=64, generator=torch.Generator().manual_seed(1), **more).images[0]
    made = make(model=name, **ours)
    assert np.abs(pixels(made) - levels(image)).max() <= (name == "qwen-image")
    assert make(model=name, **ours).pictures == made.pictures
    progress = [event for event in made.events if isinstance(event, Progress)]
    steps = ours.get("num_inference_steps", 3)
    assert [(event.step, event.steps) for event in progress] == [(step, steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize("name", [*FLOW, "lcm"])
def test_image_to_image_is_the_bare_pipelines(make: Draw, models: Library, name: str) -> None:
    ours, theirs = CALLS[name]
    family = FAMILIES[models.get(name).family]
    pipe = bare(models, name)
    second = getattr(diffusers, family.pipelines[IMAGE2IMAGE]).from_pipe(pipe)
    with torch.inference_mode():
        latents = encode_picture(pipe, PICTURE, print)
        image: Any = unscaled(pipe, latents) if name == "flux2-klein" else latents
    size = {} if name == "lcm" else {"width": 64, "height": 64}
    mask = {"mask_image": Image.new("L", (64, 64), 255)} if name == "flux2-klein" else {}
    if name in ("z-image", "chroma"):
        second.image_processor.register_to_config(vae_latent_channels=16)
    more = {"num_inference_steps": 3, "output_type": "np", "prompt": PROMPT} | theirs | size | mask
    image = second(image=image, strength=0.7, generator=torch.Generator().manual_seed(1), **more).images[0]
    made = make(model=name, image=png(PICTURE), strength=0.7, **ours)
    assert np.abs(pixels(made) - levels(image)).max() <= (name in ("flux2-klein", "qwen-image"))


@pytest.mark.parametrize("name", FLOW)
def test_inpainting_is_the_bare_pipelines(make: Draw, models: Library, name: str) -> None:
    ours, theirs = CALLS[name]
    second = getattr(diffusers, FAMILIES[models.get(name).family].pipelines[INPAINT]).from_pipe(bare(models, name))
    second.transformer.register_to_config(guidance_embeds=False)  # ChromaInpaintPipeline asks for it
    if name == "chroma":
        second.image_processor.register_to_config(vae_latent_channels=16)
    with torch.inference_mode():
        latents = encode_picture(second, PICTURE, print)
    given: Any = {
        "z-image": Image.fromarray(PICTURE),
        "flux2-klein": unscaled(second, latents),
    }.get(name, latents)
    more = {"num_inference_steps": 3, "output_type": "np", "prompt": PROMPT, "width": 64, "height": 64} | theirs
    if name in ("qwen-image", "chroma"):
        more["masked_image_latents"] = latents  # what a plain model is not shown
    image = second(
        image=given,
        mask_image=Image.fromarray(MASK),
        strength=0.9,
        generator=torch.Generator().manual_seed(1),
        **more,
    ).images[0]
    after = pixels(make(model=name, **PAINTED, **ours))
    assert np.array_equal(after[MASK == 0], PICTURE[MASK == 0])
    assert np.abs(after - levels(image))[MASK > 0].max() <= 1
    assert not np.array_equal(after[MASK > 0], PICTURE[MASK > 0])


@pytest.mark.parametrize("name", ALL)
def test_seeds_prompts_and_batches(make: Draw, name: str) -> None:
    ours, _ = CALLS[name]
    one = make(model=name, **ours)
    assert make(model=name, **ours, seed=2).pictures != one.pictures
    assert make(model=name, **ours, prompt="green").pictures != one.pictures
    tasks = ({}, {"image": png(PICTURE)}, PAINTED) if name in (*FLOW, "lcm") else ({},)
    for given in tasks:
        together = make(model=name, **ours, **given, num_images_per_prompt=2, batch_size=2)
        for number in range(2):
            alone = make(model=name, **ours, **given, seed=1 + number)
            assert np.abs(pixels(alone) - pixels(together, number)).max() <= 2


@pytest.mark.parametrize("name", ALL)
def test_guidance_off_drops_the_negative_prompt(make: Draw, name: str) -> None:
    if name == "lcm":
        few, many = (make(model=name, guidance_scale=scale) for scale in (2.0, 9.0))
        assert few.pictures != many.pictures, "it hears its guidance as a number"
        return
    plain, spoken = ({"model": name, "negative_prompt": text} for text in ("", "green star"))
    assert make(**plain, guidance_scale=1.0).pictures == make(**spoken, guidance_scale=1.0).pictures
    assert make(**plain, guidance_scale=4.0).pictures != make(**spoken, guidance_scale=4.0).pictures


@pytest.mark.parametrize("name", ALL)
def test_a_job_stops_and_the_next_one_works(make: Draw, name: str) -> None:
    before = make(model=name)
    stopped = make(model=name, stop=lambda made: "interrupt" if len(made.events) > 1 else "")
    assert stopped.finished.interrupted
    assert len([event for event in stopped.events if isinstance(event, Progress)]) == 1
    assert make(model=name).pictures == before.pictures


@pytest.mark.parametrize("name", ALL)
def test_previews_have_the_colours_of_the_picture(make: Draw, name: str) -> None:
    previews: list[bytes] = []
    seen = make(model=name, preview=lambda data: previews.append(data) or "preview")
    assert seen.pictures == make(model=name).pictures
    cell = 32 if name == "sana" else 8
    assert [Image.open(io.BytesIO(data)).size for data in previews] == [(64 // cell, 64 // cell)] * 3


@pytest.mark.parametrize("name", [*FLOW, "lcm"])
@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_the_second_pass_is_larger_and_counted(make: Draw, name: str, upscaler: str) -> None:
    made = make(model=name, hires_scale=1.5, hires_upscaler=upscaler, hires_strength=0.5)
    assert pixels(made).shape == (96, 96, 3)
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert {event.steps for event in progress} == {len(progress)} == {progress[-1].step}


@pytest.mark.parametrize("name", [*FLOW, "pixart-sigma", "sana"])
def test_a_variation_goes_from_one_seed_to_the_other(make: Draw, name: str) -> None:
    second = make(model=name, seed=900)
    assert make(model=name, variation_seed=900, variation_strength=1.0).pictures == second.pictures
    assert make(model=name, variation_seed=900, variation_strength=0.5).pictures != second.pictures


@pytest.mark.parametrize("name", ["z-image", "flux2-klein", "qwen-image", "chroma", "pixart-sigma", "sana"])
def test_a_prompt_that_is_too_long_is_refused(make: Draw, name: str) -> None:
    with pytest.raises(
        InvalidRequest, match=r"has \d+ tokens and .* reads .*; shorten it by what begins with"
    ) as problem:
        make(model=name, prompt="a " * 1100 + "red circle")
    assert problem.value.field == "prompt"


def test_capital_letters_are_counted_as_the_small_ones_that_are_read(make: Draw, models: Library) -> None:
    long = {"model": "pixart-sigma", "prompt": "A " * 250}  # in capital letters they would be two tokens each
    assert make(**long).pictures == make(**long | {"prompt": "a " * 250}).pictures
    said = PromptReports(models).report(parse_request(long))
    assert (said.prompt.tokens, said.problems) == (250, ())


@pytest.mark.parametrize(
    ("name", "values", "field"),
    [
        ("z-image", {"scheduler": "Flow Heun"}, "scheduler"),
        ("z-image", {"guidance_end": 0.5}, "guidance_end"),
        ("z-image", {"clip_skip": 1}, "clip_skip"),
        ("z-image", {"image": "x", "mask_image": "y", "masked_content": "latent noise"}, "masked_content"),
        ("flux2-klein", {"width": 72, "height": 64}, "width"),
        ("flux2-klein-distilled", {"guidance_scale": 4.0}, "guidance_scale"),
        ("flux2-klein-distilled", {"negative_prompt": "green"}, "negative_prompt"),
        ("qwen-image", {"true_cfg_scale": 2.0}, "true_cfg_scale"),
        ("qwen-image", {"scheduler": "Euler a"}, "scheduler"),
        ("pixart-sigma", {"image": "x"}, "model"),
        ("pixart-sigma", {"hires_scale": 2.0}, "hires_scale"),
        ("pixart-sigma", {"scheduler": "Flow Euler"}, "scheduler"),
        ("sana", {"width": 80, "height": 64}, "width"),
        ("sana", {"scheduler": "Flow Euler"}, "scheduler"),
        ("lcm", {"negative_prompt": "green"}, "negative_prompt"),
        ("lcm", {"pag_scale": 3.0}, "pag_scale"),
    ],
)
def test_what_a_family_cannot_do_is_told(models: Library, name: str, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as problem:
        models.resolve(GenerationRequest(model=name, **values), 1)
    assert problem.value.field == field
    assert "\n" not in str(problem.value)


def trained_lora(pipe: Any, targets: tuple[str, ...], folder: Path) -> None:
    """Train nothing, but leave behind what training does: PEFT's weights, as diffusers saves them."""
    torch.manual_seed(0)
    pipe.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), init_lora_weights="gaussian")
    )
    layers = get_peft_model_state_dict(pipe.transformer)
    layers = {key: torch.randn_like(one) * 0.3 if "lora_B" in key else one for key, one in layers.items()}
    metadata = {"transformer_lora_adapter_metadata": {"r": 4, "lora_alpha": 8, "target_modules": list(targets)}}
    pipe.save_lora_weights(folder, transformer_lora_layers=layers, weight_name="trained.safetensors", **metadata)
    pipe.transformer.delete_adapters("default")


@pytest.mark.parametrize("name", [*FLOW, "sana"])
def test_a_lora_counts_as_it_does_in_the_bare_pipeline(
    engine: Any, models: Library, blobs: BlobStore, tmp_path: Path, name: str
) -> None:
    ours, theirs = CALLS[name]
    pipe = bare(models, name)
    trained_lora(pipe, FAMILIES[models.get(name).family].lora_targets, tmp_path / "loras")
    run = drawer(engine, Library(models.folders, part_roots=(tmp_path,)), blobs)
    values = {"width": 64, "height": 64, "num_inference_steps": 3, "seed": 1, "prompt": PROMPT, "model": name} | ours
    plain, strong, none, half = (
        run(**values, loras=[{"name": "trained", "weight": w}] if w is not None else []) for w in (None, 1, 0, 0.5)
    )
    assert strong.pictures != plain.pictures == none.pictures
    assert half.pictures not in (plain.pictures, strong.pictures)
    assert run(**values).pictures == plain.pictures
    pipe.load_lora_weights(tmp_path / "loras", weight_name="trained.safetensors", local_files_only=True)
    more = {"num_inference_steps": 3, "output_type": "np", "prompt": PROMPT} | theirs
    image = pipe(width=64, height=64, generator=torch.Generator().manual_seed(1), **more).images[0]
    assert np.abs(pixels(strong) - levels(image)).max() <= 1


def test_what_diffusers_loads_no_lora_for_takes_none(models: Library) -> None:
    with pytest.raises(InvalidRequest, match="loras does not work with PixArt-Sigma; set it back to nothing"):
        check_request("pixart-sigma", "", parse_request({"loras": [{"name": "a"}], "width": 64, "height": 64}))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (
            "lcm-lora-sdv1-5",
            {"num_inference_steps": 20},
            "LCM, at most 8 steps, CFG Scale 1 to 2; here it is Euler a, 20 steps",
        ),
        ("lcm-lora-sdv1-5", {"scheduler": "LCM", "num_inference_steps": 6, "guidance_scale": 1.5}, ""),
        (
            "speed/sdxl_lightning_4step",
            {"num_inference_steps": 4, "scheduler": "Euler", "guidance_scale": 7.0},
            "here it is Euler, 4 steps, CFG Scale 7",
        ),
        ("SDXL-Hyper", {"num_inference_steps": 4, "scheduler": "TCD", "guidance_scale": 1.0}, ""),
        ("Hyper-SD15-12steps-CFG-lora", {"num_inference_steps": 12}, ""),
        ("my cat", {"num_inference_steps": 30}, ""),
        ("volcmore", {"num_inference_steps": 30}, ""),
    ],
)
def test_a_lora_for_few_steps_tells_what_it_wants(name: str, values: dict[str, Any], said: str) -> None:
    plain = {"width": 512, "height": 512, "scheduler": "Euler a", "guidance_scale": 7.0, "num_inference_steps": 20}
    told = list(advice(parse_request(plain | values | {"loras": [{"name": name}]}), "diffusion"))
    assert bool(told) is bool(said)
    assert not told or said in told[0]
    assert not list(advice(parse_request(plain | values | {"loras": [{"name": name, "weight": 0}]}), "diffusion"))


def test_few_steps_along_a_flow_need_no_other_sampler() -> None:
    plain = {"width": 64, "height": 64, "scheduler": "Flow Euler", "loras": [{"name": "Qwen-Image-Lightning-4steps"}]}
    assert not list(advice(parse_request(plain | {"guidance_scale": 1.0, "num_inference_steps": 4}), "flow"))
    (told,) = advice(parse_request(plain | {"guidance_scale": 4.0, "num_inference_steps": 40}), "flow")
    assert "few steps: at most 8 steps, CFG Scale 1; here it is Flow Euler, 40 steps, CFG Scale 4" in told


def test_the_table_in_the_docs_is_the_descriptors(capsys: pytest.CaptureFixture[str]) -> None:
    table = family_table()
    assert table in (ROOT / "docs" / "families.md").read_text(encoding="utf-8"), "put in `python -m studio families`"
    assert main(["families"]) == 0
    assert capsys.readouterr().out.strip() == table
    rows = {(row["name"], row["kind"]): row for row in family_rows()}
    assert rows["pixart-sigma", ""]["tasks"] == ("text2image",)
    assert {"hires_scale", "loras", "clip_skip"} <= set(rows["pixart-sigma", ""]["not"])
    assert rows["flux2-klein", "distilled"]["fixed"]["guidance_scale"] == 1.0
    assert rows["z-image", ""]["schedulers"] == ("Flow Euler",)


def test_the_solvers_of_sana_and_pixart_work(make: Draw) -> None:
    assert make(model="sana").pictures != make(model="sana", scheduler="Flow UniPC").pictures
    made = {make(model="pixart-sigma", scheduler=name).pictures[0] for name in ("DPM++ 2M", "Euler", "Heun", "DDIM")}
    assert len(made) == 4
    heun = make(model="pixart-sigma", scheduler="Heun")
    progress = [event for event in heun.events if isinstance(event, Progress)]
    assert [(event.step, event.steps) for event in progress] == [(1, 3), (2, 3), (3, 3)]


def test_a_turbo_model_draws_in_one_step(make: Draw, models: Library) -> None:
    request, _ = models.resolve(GenerationRequest(model="sdxl-turbo", prompt=PROMPT, width=64, height=64, seed=1), 1)
    assert (request.num_inference_steps, request.guidance_scale) == (1, 1.0)
    image = bare(models, "sdxl-turbo")(
        prompt=PROMPT,
        width=64,
        height=64,
        num_inference_steps=1,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images[0]
    made = make(model="sdxl-turbo", num_inference_steps=1, guidance_scale=1.0)
    assert np.array_equal(pixels(made), levels(image))
