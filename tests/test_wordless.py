"""Models without words on a tiny UNet of pixels: Generate draws what diffusers' own pipelines draw, or says why it does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    UNet2DModel,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.consistency_models.pipeline_consistency_models import ConsistencyModelPipeline
from diffusers.pipelines.deprecated.score_sde_ve.pipeline_score_sde_ve import ScoreSdeVePipeline
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler

from studio.errors import InvalidRequest
from studio.fitting import usable
from studio.store.blobs import BlobStore
from studio.store.library import Library
from studio.store.models import read_model
from studio.ui.generate_tab import asks
from tests.conftest import Made, drawer
from tests.test_families import PICTURE, pixels, png

Draw = Callable[..., Made]
PLAIN: dict[str, Any] = {"model": "plain", "seed": 1, "num_inference_steps": 4}


def network(**more: Any) -> UNet2DModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    told: dict[str, Any] = {
        "sample_size": 64,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    } | blocks
    return UNet2DModel(**told | more).eval()


def edm() -> Any:
    scheduler = EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5)
    return ConsistencyModelPipeline(network(), cast(Any, scheduler))


def score() -> Any:
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=4, sigma_max=90, snr=0.1)
    return ScoreSdeVePipeline(network(time_embedding_type="fourier"), scheduler)


def dit(**more: Any) -> Any:
    torch.manual_seed(0)
    told: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 16}
    net: Any = DiTTransformer2DModel(**told, in_channels=4, out_channels=8, num_embeds_ada_norm=1000, **more).eval()
    for weights in net.parameters():  # a fresh one says nothing
        torch.nn.init.normal_(weights, std=0.1)
    vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, **four_levels())
    pipe: Any = DiTPipeline(net, vae, cast(Any, DDIMScheduler(clip_sample=False)))
    pipe.register_to_config(id2label={"0": "circle, disc", "1": "star"})
    return pipe


def four_levels() -> dict[str, Any]:
    return {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("wordless")
    DDPMPipeline(network(), DDPMScheduler()).save_pretrained(folder / "plain")
    edm().save_pretrained(folder / "edm")
    score().save_pretrained(folder / "score")
    dit().save_pretrained(folder / "dit")
    return Library((folder,))


@pytest.fixture(scope="module")
def make(engine: Any, models: Library, blobs: BlobStore) -> Draw:
    run = drawer(engine, models, blobs)
    return lambda **values: run(**PLAIN | values)


def bare(models: Library, pipeline: Any, name: str = "plain", **more: Any) -> np.ndarray:
    pipe = pipeline.from_pretrained(models.get(name).path)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(num_inference_steps=4, generator=torch.Generator().manual_seed(1), output_type="np", **more)
    return (made.images[0] * 255).round().astype(int)


@pytest.mark.parametrize(("scheduler", "pipeline"), [("DDPM", DDPMPipeline), ("DDIM", DDIMPipeline)])
def test_it_draws_what_diffusers_draws(models: Library, make: Draw, scheduler: str, pipeline: Any) -> None:
    shown: list[bytes] = []
    made = make(scheduler=scheduler, preview=lambda png: (shown.append(png), "here")[1])
    assert np.array_equal(pixels(made), bare(models, pipeline))
    assert len(shown) == 4
    assert make(scheduler=scheduler).pictures == made.pictures


def test_eta_and_a_batch_and_a_variation(models: Library, make: Draw) -> None:
    assert np.array_equal(pixels(make(scheduler="DDIM", eta=0.5)), bare(models, DDIMPipeline, eta=0.5))
    both = make(scheduler="DDIM", num_images_per_prompt=2, batch_size=2)
    alone = make(scheduler="DDIM", seed=2)
    assert np.abs(pixels(both, 1).astype(int) - pixels(alone)).max() <= 1
    varied = make(scheduler="DDIM", variation_seed=9, variation_strength=1.0)
    assert np.array_equal(pixels(varied), pixels(make(scheduler="DDIM", seed=9)))


@pytest.mark.parametrize("scheduler", ["Euler a", "Heun", "DPM++ 2M", "DPM++ SDE", "UniPC", "PNDM"])
def test_other_samplers_draw_from_noise_and_from_a_picture(make: Draw, scheduler: str) -> None:
    for given in ({}, {"image": png(PICTURE), "strength": 0.5}):
        made = make(scheduler=scheduler, num_inference_steps=6, **given)
        assert (
            pixels(made).std() > 5
            and make(scheduler=scheduler, num_inference_steps=6, **given).pictures == made.pictures
        )


def test_little_strength_keeps_the_picture(make: Draw) -> None:
    given = {"image": png(PICTURE), "width": 64, "height": 64, "scheduler": "DDIM", "num_inference_steps": 100}
    own = pixels(make(**given, strength=0)).astype(int)
    little, much = (np.abs(pixels(make(**given, strength=part)) - own).mean() for part in (0.02, 1.0))
    assert little < 10 < much


def test_a_second_pass_makes_it_larger(make: Draw) -> None:
    for upscaler in ("latent", "lanczos"):
        made = make(scheduler="DDIM", hires_scale=2, hires_upscaler=upscaler, hires_strength=0.5)
        assert pixels(made).shape == (128, 128, 3)


def test_edm_s_networks_draw_with_edm_s_samplers(models: Library, make: Draw) -> None:
    model = models.get("edm")
    assert (model.family, model.noise, model.defaults["scheduler"]) == ("unconditional", "edm", "EDM DPM++ 2M")
    made, other = (make(model="edm", scheduler=name) for name in ("EDM DPM++ 2M", "EDM Euler"))
    assert pixels(made).std() > 5 and made.pictures != other.pictures
    with pytest.raises(InvalidRequest, match="does not work with this model"):
        make(model="edm", scheduler="DDIM")


def test_a_score_model_draws_by_predictor_and_corrector(models: Library, make: Draw) -> None:
    model = models.get("score")
    assert (model.family, model.noise, model.defaults["scheduler"]) == ("score", "ve", "Predictor-corrector")
    made = make(model="score")
    assert np.array_equal(pixels(made), bare(models, ScoreSdeVePipeline, "score"))
    both = make(model="score", num_images_per_prompt=2, batch_size=2)
    assert np.abs(pixels(both, 1).astype(int) - pixels(make(model="score", seed=2))).max() <= 1
    with pytest.raises(InvalidRequest, match="does not work with this model"):
        make(model="score", scheduler="DDIM")
    with pytest.raises(InvalidRequest, match="cannot do image2image"):
        make(model="score", image=png(PICTURE))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_dit_draws_the_class_that_its_prompt_names(models: Library, make: Draw, guidance: float) -> None:
    model = models.get("dit")
    assert (model.family, model.defaults["width"], model.defaults["scheduler"]) == ("dit", 128, "DDIM")
    assert model.classes == ("circle", "star")
    assert "Its prompt is one of: circle, star." in asks(model)
    wanted = bare(models, DiTPipeline, "dit", class_labels=[1], guidance_scale=guidance)
    made = make(model="dit", prompt="Star", guidance_scale=guidance)
    assert np.abs(pixels(made).astype(int) - wanted).max() <= 1
    other = make(model="dit", prompt="disc", guidance_scale=guidance)
    assert other.pictures == make(model="dit", prompt="circle", guidance_scale=guidance).pictures != made.pictures


def test_a_dit_s_other_wishes(make: Draw) -> None:
    star = {"model": "dit", "prompt": "star", "guidance_scale": 3.0}
    late, plain = make(**star, guidance_start=0.5), make(**star)
    assert late.pictures != plain.pictures != make(**star | {"prompt": ""}).pictures
    never, one = (
        pixels(make(**values)) for values in (star | {"guidance_start": 0.99}, star | {"guidance_scale": 1.0})
    )
    assert np.abs(never.astype(int) - one).max() <= 1
    assert pixels(make(**star, width=64, height=64, scheduler="DPM++ 2M")).shape == (64, 64, 3)
    with pytest.raises(InvalidRequest, match="width=64 and height=96 must be the same: a DiT draws squares"):
        make(**star, width=64, height=96)
    both = make(**star, num_images_per_prompt=2, batch_size=2)
    assert np.abs(pixels(both, 1).astype(int) - pixels(make(**star, seed=2))).max() <= 1
    with pytest.raises(
        InvalidRequest, match="prompt='a red star' is no class of this model; it has: circle, disc, star"
    ):
        make(**star | {"prompt": "a red star"})
    with pytest.raises(InvalidRequest, match="negative_prompt does not work with DiT"):
        make(**star, negative_prompt="circle")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"prompt": "a cat"}, "prompt does not work with Unconditional; set it back to nothing"),
        ({"negative_prompt": "a cat"}, "negative_prompt does not work with Unconditional"),
        ({"guidance_scale": 3.0}, "guidance_scale does not work with Unconditional; set it back to 1"),
        ({"vae_tiling": True}, "vae_tiling does not work with Unconditional"),
        ({"width": 72}, "Unconditional draws multiples of 32 pixels"),
        ({"pag_scale": 2.0}, "pag_scale does not work with Unconditional"),
    ],
)
def test_what_it_cannot_do_is_refused(make: Draw, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        make(**values)


def test_a_form_s_words_are_left_out() -> None:
    assert usable("unconditional", "", {"prompt": "a cat", "seed": 3, "guidance_scale": 7.0}) == {
        "prompt": "",
        "seed": 3,
        "guidance_scale": 1.0,
    }


def test_the_size_is_the_one_that_was_learnt_and_others_say_why_not(tmp_path: Path) -> None:
    DDPMPipeline(network(sample_size=(64, 96)), DDPMScheduler()).save_pretrained(tmp_path / "wide")
    DDPMPipeline(network(sample_size=32), DDPMScheduler()).save_pretrained(tmp_path / "small")
    DDPMPipeline(network(num_class_embeds=3), DDPMScheduler()).save_pretrained(tmp_path / "classes")
    found = read_model("wide", tmp_path / "wide")
    assert (found.problem, found.defaults["width"], found.defaults["height"]) == ("", 96, 64)
    assert "draws 32 x 32 pixels; sides of 64 and more" in read_model("small", tmp_path / "small").problem
    assert "wants the number of a class" in read_model("classes", tmp_path / "classes").problem
    index = tmp_path / "wide" / "scheduler" / "scheduler_config.json"
    told = json.loads(index.read_text()) | {"_class_name": "CMStochasticIterativeScheduler"}
    index.write_text(json.dumps(told))
    assert "does not work with Unconditional" in read_model("wide", tmp_path / "wide").problem
