"""Each family learns through the one loop: its loss is the script's formula, and bare diffusers loads what comes out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studio.engine.devices import open_device
from studio.errors import InvalidRequest
from studio.records import ModelRef
from studio.store.library import Library
from tests import tiny
from tests.training import config_of, draw_pictures, losses, stop_after, train
from trainers.denoisers import Frame
from trainers.models import load_parts

FAMILIES = {"sdxl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_models(tmp_path_factory.mktemp("models"))


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
        "train_text_encoder": name != "flux",
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
            "a red circle",
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
    pipe("a red circle", width=64, height=64, num_inference_steps=1, output_type="latent", guidance_scale=1.0)
    handle.remove()
    args, told, made = heard[0]
    said = parts.encode(["a red circle"])
    noisy = told["hidden_states"] if name in ("sd3", "flux") else args[0]
    steps = told["timestep"] if name in ("sd3", "flux") else args[1].reshape(1)
    if name == "flux":
        noisy, steps = pipe._unpack_latents(noisy, 64, 64, pipe.vae_scale_factor), steps * 1000
        parts.denoiser.guidance = 1.0
    frames = [Frame(64, 64, 0, 0)]
    ours = parts.denoiser.predict(network, noisy, steps, said, frames)
    wanted = pipe._unpack_latents(made[0], 64, 64, pipe.vae_scale_factor) if name == "flux" else made[0]
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


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
