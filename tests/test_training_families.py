"""Each family learns through the one loop: its loss is the script's formula, and bare diffusers loads what comes out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studio.engine.devices import open_device
from studio.errors import InvalidRequest
from studio.records import ModelRef
from studio.store.library import Library
from studio.store.metadata import read_picture
from tests import tiny
from tests.training import config_of, draw_pictures, losses, stop_after, train
from trainers.denoisers import Frame
from trainers.models import load_parts

FAMILIES = {
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "z-image": "ZImagePipeline",
    "flux2-klein": "Flux2KleinPipeline",
}
CLIP_WORDS = ("sdxl", "sd3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    later = {name: tiny.LATER_MODELS[name] for name in ("z-image", "flux2-klein", "flux2-klein-distilled")}
    return tiny.save_models(tmp_path_factory.mktemp("models"), tiny.FAMILY_MODELS | later)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("hearts"), 3)


def reference(models: Path, name: str) -> ModelRef:
    library = Library((models,))
    return library.reference(library.get(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_learns_goes_on_exactly_and_loads(models: Path, pictures: Path, tmp_path: Path, name: str) -> None:
    values = {
        "model": name,
        "rank": 2,
        "max_train_steps": 3,
        "checkpointing_steps": 0,
        "train_text_encoder": name in CLIP_WORDS,
        "learning_rate": 1e-2,
    }
    config = config_of("lora", pictures, **values)
    whole = train("lora", config, tmp_path, run="whole", models=(models,))
    train("lora", config, tmp_path, run="broken", models=(models,), should_stop=stop_after(1))
    train("lora", config, tmp_path, run="broken", models=(models,), resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken") and len(losses(tmp_path / "whole")) == 3
    import diffusers

    pipe = getattr(diffusers, FAMILIES[name]).from_pretrained(models / name, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        return pipe(
            prompt="a red circle",
            width=64,
            height=64,
            num_inference_steps=2,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images[0]

    before = draw()
    path = Path(whole["artifact"])
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    assert np.abs(draw() - before).max() > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_denoiser_is_asked_as_its_pipeline_asks(models: Path, name: str) -> None:
    """What a pipeline tells its network in its first step, told by us, gives the same answer."""
    parts = load_parts(reference(models, name), open_device("cpu", 1), torch.float32)
    pipe, network = parts.pipe, parts.denoiser.network
    pipe.set_progress_bar_config(disable=True)
    heard: list[tuple[tuple, dict, Any]] = []
    handle = network.register_forward_hook(
        lambda module, args, told, made: heard.append((args, told, made)), with_kwargs=True
    )
    unguided = 0.0 if name == "z-image" else 1.0
    size = {"width": 64, "height": 64}
    pipe(prompt="a red circle", **size, num_inference_steps=1, output_type="latent", guidance_scale=unguided)
    handle.remove()
    args, told, made = heard[0]
    said, (answer, *_) = parts.encode(["a red circle"]), made
    noisy = told["hidden_states"] if "hidden_states" in told else args[0]
    steps = told["timestep"] if "timestep" in told else args[1].reshape(1)
    if name == "flux":
        noisy, answer = (pipe._unpack_latents(one, 64, 64, pipe.vae_scale_factor) for one in (noisy, answer))
        steps, parts.denoiser.guidance = steps * 1000, 1.0
    if name == "flux2-klein":
        ids = told["img_ids"]
        noisy, answer = (pipe._unpatchify_latents(pipe._unpack_latents_with_ids(one, ids)) for one in (noisy, answer))
        steps = steps * 1000
    if name == "z-image":
        noisy, answer, steps = torch.stack(noisy)[:, :, 0], -torch.stack(answer)[:, :, 0], 1000 - steps * 1000
    ours = parts.denoiser.predict(network, noisy, steps, said, [Frame(64, 64, 0, 0)])
    torch.testing.assert_close(ours, answer, rtol=1e-4, atol=1e-5)


def test_captions_of_several_lengths_learn_together(models: Path) -> None:
    """Behind a short caption nothing is read: what a network says of it does not depend on its neighbour."""
    parts = load_parts(reference(models, "z-image"), open_device("cpu", 1), torch.float32)
    torch.manual_seed(0)
    noisy, steps = torch.randn(2, 16, 8, 8), torch.tensor([300.0, 600.0])
    frames = [Frame(64, 64, 0, 0)] * 2
    captions = ["a circle", "a red circle and a small blue square on a green background"]
    ask = parts.denoiser.predict
    both = ask(parts.denoiser.network, noisy, steps, parts.encode(captions), frames)
    for i, caption in enumerate(captions):
        one = slice(i, i + 1)
        alone = ask(parts.denoiser.network, noisy[one], steps[one], parts.encode([caption]), frames[:1])
        torch.testing.assert_close(both[one], alone, rtol=1e-4, atol=1e-5)


def test_latents_get_the_scale_that_a_pipeline_gives_them(models: Path) -> None:
    parts = load_parts(reference(models, "flux2-klein"), open_device("cpu", 1), torch.float32)
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    wanted = parts.pipe._encode_vae_image(picture, None)
    ours = parts.denoiser.scaled(parts.pipe.vae.encode(picture).latent_dist.mode())
    torch.testing.assert_close(parts.pipe._patchify_latents(ours), wanted)


def test_a_distilled_model_is_warned_about_and_draws_what_its_base_learnt(
    models: Path, pictures: Path, tmp_path: Path
) -> None:
    values = {"rank": 2, "max_train_steps": 1, "validation_prompts": ["a heart"]}
    config = config_of("lora", pictures, model="flux2-klein-distilled", **values)
    train("lora", config, tmp_path, models=(models,))
    assert any("made to draw in few steps" in row["message"] for row in notices(tmp_path / "run"))
    config = config_of("lora", pictures, model="flux2-klein", validation_model="flux2-klein-distilled", **values)
    train("lora", config, tmp_path, run="base", models=(models,))
    assert not any("few steps" in row["message"] for row in notices(tmp_path / "base"))
    (sample,) = (tmp_path / "base" / "samples").glob("step-*.png")
    record = read_picture(sample).record
    assert record is not None and record.model.id == "flux2-klein-distilled" and record.request.guidance_scale == 1


def notices(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [row for row in rows if row["type"] == "notice"]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("sd3", {"snr_gamma": 5}, "snr_gamma means nothing to a flow model"),
        ("flux", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr means nothing to a flow model"),
        ("sd3", {"timestep_sampling": "log_normal"}, "log_normal is for diffusion models"),
        ("sdxl", {"rescale_betas_zero_snr": True}, "needs a v-prediction model; this one predicts epsilon"),
        (
            "sdxl",
            {"train_text_encoder": True, "text_encoder_lr": [1e-4, 1e-4, 1e-4]},
            "has 3 values and the model 2 text encoders",
        ),
        ("sdxl", {"target_modules": "nothing"}, "target_modules=nothing fits no layer"),
    ],
)
def test_what_a_family_cannot_do_is_refused(
    models: Path, pictures: Path, tmp_path: Path, name: str, values: dict[str, Any], said: str
) -> None:
    config = config_of("lora", pictures, model=name, rank=2, max_train_steps=1, **values)
    with pytest.raises(InvalidRequest, match=said):
        train("lora", config, tmp_path, models=(models,))


def test_a_model_of_a_kind_that_does_less_is_refused(models: Path, pictures: Path, tmp_path: Path) -> None:
    config = config_of("lora", pictures, model="sdxl-refiner", rank=2)
    with pytest.raises(InvalidRequest, match="is of the kind refiner, which is not trained"):
        train("lora", config, tmp_path, models=(models,))


def test_a_full_model_of_sdxl_is_a_folder_that_diffusers_loads(models: Path, pictures: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    config = config_of("full", pictures, model="sdxl", max_train_steps=1, train_text_encoder=True, learning_rate=1e-3)
    answer = train("full", config, tmp_path, models=(models,))
    made = StableDiffusionXLPipeline.from_pretrained(answer["artifact"], dtype=torch.float32)
    base = StableDiffusionXLPipeline.from_pretrained(models / "sdxl", dtype=torch.float32)
    for part in ("unet", "text_encoder", "text_encoder_2", "vae"):
        pairs = zip(getattr(made, part).parameters(), getattr(base, part).parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs) == (part != "vae"), part


@pytest.mark.parametrize("name", ["flux2-klein", "z-image"])
def test_a_full_transformer_is_a_folder_that_diffusers_loads(
    models: Path, pictures: Path, tmp_path: Path, name: str
) -> None:
    import diffusers

    config = config_of("full", pictures, model=name, max_train_steps=1, learning_rate=1e-3)
    answer = train("full", config, tmp_path, models=(models,))
    pipe = getattr(diffusers, FAMILIES[name])
    made, base = (pipe.from_pretrained(path, dtype=torch.float32) for path in (answer["artifact"], models / name))
    pairs = zip(made.transformer.parameters(), base.transformer.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(made.vae.parameters(), base.vae.parameters(), strict=True))
