"""Kandinsky 2.2 on tiny models: a decoder with its prior draws what diffusers' combined pipelines draw, or refuses clearly."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from studio.engine.pipelines import PipelineManager
from studio.errors import InvalidRequest
from studio.events import Progress
from studio.family_table import family_rows
from studio.fitting import usable
from studio.spec import GenerationRequest
from studio.store.blobs import BlobStore
from studio.store.lab_calls import lab_call
from studio.store.library import Library
from studio.tools import VaeCheckCall
from tests.conftest import Made, drawer
from tests.test_families import INPAINT as PAINTED
from tests.test_families import MASK, PICTURE, PROMPT, pixels, png
from tests.tiny import KANDINSKY_MODELS, kandinsky, save_models

Draw = Callable[..., Made]
GUIDED: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "green", "guidance_scale": 4.0, "num_inference_steps": 3}
REPAINT: dict[str, Any] = PAINTED | {"model": "kandinsky-inpaint", "strength": 1.0}
WIDE = np.concatenate([PICTURE, PICTURE[::-1]], axis=1)
DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPM": ("DDPMScheduler", {"variance_type": "learned_range"}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library((save_models(tmp_path_factory.mktemp("kandinsky"), KANDINSKY_MODELS),))


@pytest.fixture(scope="module")
def make(engine: Any, models: Library, blobs: BlobStore) -> Draw:
    run = drawer(engine, models, blobs)
    plain = {"model": "kandinsky", "width": 64, "height": 64, "seed": 1} | GUIDED
    return lambda **values: run(**plain | values)


def bare(models: Library, task: str, name: str = "kandinsky") -> Any:
    pipe = getattr(diffusers, f"KandinskyV22{task}CombinedPipeline").from_pretrained(models.get(name).path)
    for part in (pipe, pipe.prior_pipe, pipe.decoder_pipe):
        part.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, width: int = 64, height: int = 64, **more: Any) -> np.ndarray:
    told = GUIDED | {"width": width, "height": height, "generator": torch.Generator().manual_seed(1)} | more
    return (pipe(**told, output_type="np").images[0] * 255).round().astype(int)


def test_a_decoder_is_whole_with_its_prior_beside_it(models: Library, tmp_path: Path) -> None:
    found = {one.id: (one.family, one.kind, bool(one.problem)) for one in models.models()}
    assert found == {
        "kandinsky": ("kandinsky-2.2", "", False),
        "kandinsky-inpaint": ("kandinsky-2.2", "inpaint", False),
        "hub/decoder": ("kandinsky-2.2", "", False),
        "hub/prior": ("kandinsky-2.2", "prior", True),
    }
    with pytest.raises(InvalidRequest, match="only reads prompts for Kandinsky"):
        models.get("hub/prior")
    shutil.copytree(models.get("hub/decoder").path, tmp_path / "models" / "alone")
    alone = Library((tmp_path / "models",))
    with pytest.raises(
        InvalidRequest, match=r"its prior, which reads the prompts, is missing; put it \(kandinsky-comm"
    ):
        alone.get("alone")
    kandinsky("prior", 40).save_pretrained(tmp_path / "models" / "too-wide")
    assert alone.models()[0].problem, "a prior that makes other embeddings is none for it"
    shutil.copytree(models.folders[0] / "hub" / "prior", tmp_path / "models" / "deep" / "prior")
    assert (donor := alone.reference(alone.get("alone")).donor)
    assert donor.id == "deep/prior"
    (tmp_path / "models" / "alone" / "studio.yaml").write_text("parts_from: too-wide\n")
    assert "parts_from='too-wide' is no Kandinsky 2.2 model" in alone.models()[0].problem
    (tmp_path / "models" / "alone" / "studio.yaml").unlink()
    (tmp_path / "models" / "deep" / "prior" / "prior" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")
    assert "is missing" in alone.models()[0].problem


def test_the_picture_is_the_combined_pipelines(make: Draw, models: Library) -> None:
    made = make()
    assert np.abs(pixels(made) - drawn(bare(models, ""))).max() == 0
    assert make().pictures == made.pictures
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert [(event.step, event.steps) for event in progress] == [(1, 3), (2, 3), (3, 3)]
    without = drawn(bare(models, ""), negative_prompt=None)
    assert np.abs(pixels(make(negative_prompt="")) - without).max() == 0


def test_a_decoder_and_a_prior_in_two_folders_draw_what_they_do_alone(make: Draw, models: Library) -> None:
    hub = models.folders[0] / "hub"
    generator = torch.Generator().manual_seed(1)
    prior = diffusers.KandinskyV22PriorPipeline.from_pretrained(hub / "prior")
    decoder = diffusers.KandinskyV22Pipeline.from_pretrained(hub / "decoder")
    one, other = prior(PROMPT, "green", generator=generator, return_dict=False)
    image = decoder(one, other, 64, 64, num_inference_steps=3, generator=generator, output_type="np").images[0]
    made = make(model="hub/decoder")
    assert np.abs(pixels(made) - (image * 255).round()).max() == 0
    assert made.records[0].model.donor
    assert made.records[0].model.donor.id == "hub/prior"


def test_image_to_image_is_the_combined_pipelines(make: Draw, models: Library) -> None:
    pipe = bare(models, "Img2Img")
    given = Image.fromarray(PICTURE)
    made = make(image=png(PICTURE), strength=0.7)
    assert np.abs(pixels(made) - drawn(pipe, image=given, strength=0.7)).max() == 0
    assert np.array_equal(pixels(make(image=png(PICTURE), strength=0)), PICTURE)
    pipe.decoder_pipe.image_processor.register_to_config(do_resize=False)  # diffusers swaps width and height
    wide = make(image=png(WIDE), strength=0.7, width=128, height=64)
    theirs = drawn(pipe, 128, 64, image=Image.fromarray(WIDE), strength=0.7)
    assert np.abs(pixels(wide) - theirs).max() == 0
    assert pixels(wide).shape == (64, 128, 3)


def test_inpainting_is_the_combined_pipelines(make: Draw, models: Library) -> None:
    theirs = drawn(
        bare(models, "Inpaint", "kandinsky-inpaint"), image=Image.fromarray(PICTURE), mask_image=Image.fromarray(MASK)
    )
    after = pixels(make(**REPAINT))
    assert np.array_equal(after[MASK == 0], PICTURE[MASK == 0])
    assert np.abs(after - theirs)[MASK > 0].max() == 0
    assert not np.array_equal(after[MASK > 0], PICTURE[MASK > 0])


@pytest.mark.parametrize("given", [{}, {"image": png(PICTURE)}, REPAINT], ids=["text", "image", "inpaint"])
def test_seeds_prompts_and_batches(make: Draw, given: dict[str, Any]) -> None:
    one = make(**given)
    assert make(**given, seed=2).pictures != one.pictures
    assert make(**given, prompt="green").pictures != one.pictures
    together = make(**given, num_images_per_prompt=2, batch_size=2)
    for number in range(2):
        assert np.abs(pixels(make(**given, seed=1 + number)) - pixels(together, number)).max() <= 2


def test_guidance(make: Draw, models: Library) -> None:
    off = make(guidance_scale=1.0)
    assert off.pictures == make(guidance_scale=1.0, negative_prompt="").pictures
    assert np.abs(pixels(off) - drawn(bare(models, ""), guidance_scale=1.0, negative_prompt=None)).max() == 0
    assert make().pictures != make(negative_prompt="").pictures != off.pictures
    for scale in (1.0, 9.0):
        assert (
            np.abs(pixels(make(prior_guidance_scale=scale)) - drawn(bare(models, ""), prior_guidance_scale=scale)).max()
            == 0
        )
    for given in ({}, {"image": png(PICTURE), "strength": 1.0}):
        half = [make(**given, **part).pictures for part in ({"guidance_end": 0.5}, {"guidance_start": 0.5})]
        assert len({*half[0], *half[1], *make(**given).pictures, *make(**given, guidance_scale=1.0).pictures}) == 4


def test_a_job_stops_while_the_prior_reads_and_the_next_one_works(make: Draw) -> None:
    before, asked = make(), []
    stopped = make(stop=lambda made: asked.append(1) or ("interrupt" if len(asked) > 3 else ""))
    assert stopped.finished.interrupted
    assert len(asked) == 4
    assert not [event for event in stopped.events if isinstance(event, Progress)]
    assert make().pictures == before.pictures


def test_previews_and_variations(make: Draw) -> None:
    previews: list[bytes] = []
    seen = make(preview=lambda data: previews.append(data) or "preview")
    assert seen.pictures == make().pictures
    assert [Image.open(io.BytesIO(data)).size for data in previews] == [(8, 8)] * 3
    assert make(variation_seed=900, variation_strength=0.5).pictures != seen.pictures


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_the_second_pass_is_larger_and_counted(make: Draw, upscaler: str) -> None:
    made = make(hires_scale=2.0, hires_upscaler=upscaler, hires_strength=0.7, num_images_per_prompt=2, batch_size=2)
    assert pixels(made).shape == (128, 128, 3)
    progress = [event for event in made.events if isinstance(event, Progress)]
    assert {event.steps for event in progress} == {5} == {progress[-1].step}
    alone = make(hires_scale=2.0, hires_upscaler=upscaler, hires_strength=0.7, seed=2)
    assert np.abs(pixels(alone) - pixels(made, 1)).max() <= 2


def test_every_sampler_that_is_offered_is_the_bare_one(make: Draw, models: Library) -> None:
    (row,) = [row for row in family_rows() if (row["name"], row["kind"]) == ("kandinsky-2.2", "")]
    assert set(row["schedulers"]) == set(DRAWN)
    pipe = bare(models, "")
    config = dict(pipe.scheduler.config) | {"variance_type": "fixed_small"}
    for name, (class_name, options) in DRAWN.items():
        pipe.decoder_pipe.scheduler = getattr(diffusers, class_name).from_config(config, **options)
        assert np.abs(pixels(make(scheduler=name)) - drawn(pipe)).max() == 0


def test_a_prompt_that_is_too_long_is_refused(make: Draw) -> None:
    assert make(prompt="a " * 75).pictures
    for name in ("prompt", "negative_prompt"):
        with pytest.raises(InvalidRequest, match="reads 77; shorten it by what begins with 'red circle'") as problem:
            make(**{name: "a " * 75 + "red circle"})
        assert problem.value.field == name


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"scheduler": "Euler a"}, "scheduler"),
        ({"width": 96}, "width"),
        ({"hires_scale": 1.5}, "hires_scale"),
        ({"eta": 0.5}, "eta"),
        ({"clip_skip": 1}, "clip_skip"),
        ({"true_cfg_scale": 2.0}, "true_cfg_scale"),
        ({"pag_scale": 3.0}, "pag_scale"),
        ({"image": "x", "mask_image": "y"}, "model"),
        ({"model": "kandinsky-inpaint"}, "model"),
        ({"model": "kandinsky-inpaint", "image": "x", "mask_image": "y"}, "strength"),
        (
            {"model": "kandinsky-inpaint", "image": "x", "mask_image": "y", "strength": 1, "masked_content": "fill"},
            "masked_content",
        ),
    ],
)
def test_what_it_cannot_do_is_told(models: Library, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as problem:
        models.resolve(GenerationRequest(**{"model": "kandinsky", "width": 64, "height": 64} | values), 1)
    assert problem.value.field == field
    assert "\n" not in str(problem.value)


def test_a_form_gives_what_can_have_one_value_only() -> None:
    values = {"model": "kandinsky-inpaint", "image": "x", "mask_image": "y", "strength": 0.75, "clip_skip": 1}
    assert usable("kandinsky-2.2", "inpaint", values) == {
        "model": "kandinsky-inpaint",
        "image": "x",
        "mask_image": "y",
        "strength": 1.0,
    }


def test_its_autoencoder_is_its_own(make: Draw, models: Library, blobs: BlobStore, engine: Any) -> None:
    with pytest.raises(InvalidRequest, match="cannot work in tiles"):
        make(vae_tiling=True)
    with pytest.raises(InvalidRequest, match="cannot work one picture at a time; switch VAE slicing off"):
        make(vae_slicing=True)
    call = VaeCheckCall(image=blobs.add(png(PICTURE), "image"), model=models.reference(models.get("hub/decoder")))
    for kept in (engine.pipelines, PipelineManager(engine.device)):  # one loads it alone
        kept.vae(call.model)
    values, pictures = engine.use_tool(call, blobs.open)
    assert values["latents"] == [4, 8, 8]
    assert set(pictures) == {"given", "decoded", "difference"}


def test_the_lab_asks_its_decoder(models: Library, engine: Any) -> None:
    call = lab_call(models, "reverse", {"num_inference_steps": 2, "frames": 2, "sampler": "DDIM"}, "kandinsky")
    size = {"request": call.job.request.model_copy(update={"width": 64, "height": 64})}
    smaller = call.model_copy(update={"job": call.job.model_copy(update=size)})
    _, pictures = engine.use_tool(smaller, lambda *_: Image.new("RGB", (8, 8)))
    assert Image.open(io.BytesIO(pictures["result"])).size == (64, 64)
