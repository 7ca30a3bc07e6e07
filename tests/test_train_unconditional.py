"""A model without words learns what the DDPM paper says, and is a pipeline that diffusers loads."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from studio.engine.devices import open_device
from studio.errors import InvalidRequest
from studio.settings import Settings
from studio.store.models import read_model
from trainers.config_files import check_config
from trainers.material import Material, Pictures
from trainers.models import Pixels
from trainers.session import Session
from trainers.sheet import grid
from trainers.unconditional import UnconditionalMethod
from trainers.unconditional_configs import UnconditionalConfig

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Make three pictures without captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (64, 80, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def config_of(dataset: Path, **values: Any) -> UnconditionalConfig:
    tiny = {"channels": [8, 16], "layers_per_block": 1, "attention_from": 0, "train_batch_size": 2}
    return check_config(UnconditionalConfig, {"dataset": str(dataset), "validation_pictures": 0} | tiny | values)


def opened(config: UnconditionalConfig, settings: Settings) -> tuple[UnconditionalMethod, Material]:
    pictures = Pictures(config.told_concepts, settings.data_dir, captions=config.captions)
    material = Material(config, pictures, None, settings.data_dir / "cache")
    return UnconditionalMethod(config, Pixels(open_device("cpu", 1))), material


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_loss_is_the_papers(dataset: Path, settings: Settings, prediction: str, schedule: str) -> None:
    config = config_of(dataset, prediction_type=prediction, beta_schedule=schedule, ddpm_num_steps=200)
    method, material = opened(config, settings)
    batch = material.batch(0, 0)
    if schedule == "linear":
        betas = torch.linspace(1e-4, 0.02, 200)
        alphas = torch.cumprod(1 - betas, 0)  # (T,)
    else:
        bar = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
        betas = torch.tensor([min(1 - bar((i + 1) / 200) / bar(i / 200), 0.999) for i in range(200)])
        alphas = torch.cumprod(1 - betas, 0).float()
    times = (batch.quantiles * 200).long()
    signal, spread = (part.view(-1, 1, 1, 1) for part in (alphas[times].sqrt(), (1 - alphas[times]).sqrt()))
    clean, noise = batch.latents, batch.noise
    wanted = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - spread * clean}[prediction]
    with torch.no_grad():
        loss, made = method(batch).mean(), method.network(signal * clean + spread * noise, times).sample
    assert abs(loss - F.mse_loss(made, wanted)) < 1e-5
    assert clean.shape == (2, 3, 64, 64) and clean.min() >= -1 and clean.max() <= 1


def run(config: UnconditionalConfig, settings: Settings, folder: Path, *, until: str = "", resume: bool = False) -> Any:
    """Train; with `until` the run is asked to stop once that file or folder is there."""
    stop = lambda: bool(until) and (folder / until).exists()  # noqa: E731
    return Session("unconditional", config, settings, folder, stop).run(resume=resume)


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(dataset: Path, settings: Settings, tmp_path: Path) -> None:
    config = config_of(
        dataset,
        max_train_steps=3,
        checkpointing_steps=1,
        random_flip=True,
        validation_pictures=3,
        num_inference_steps=2,
        learning_rate=1e-3,
    )
    answer = run(config, settings, tmp_path / "whole")
    broken = run(config, settings, tmp_path / "broken", until="checkpoints/step-000001")
    assert broken["status"] == "stopped" and broken["step"] == 2
    assert run(config, settings, tmp_path / "broken", resume=True)["step"] == 3
    made = Path(answer["artifact"])
    assert (made / WEIGHTS).read_bytes() == (tmp_path / "broken" / "final" / "trained" / WEIGHTS).read_bytes()

    pipe: Any = DDPMPipeline.from_pretrained(made)
    assert pipe(num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    drawn = pipe(batch_size=3, generator=seeds, num_inference_steps=2).images
    samples = tmp_path / "whole" / "samples"
    assert [path.name for path in sorted(samples.iterdir())] == [f"step-00000{i}.png" for i in (1, 2, 3)]
    assert (samples / "step-000003.png").read_bytes() == grid(drawn)
    card = (made.parent / "README.md").read_text()
    assert "DDPMPipeline.from_pretrained('trained')" in card and "base_model" not in card
    assert "samples/step-000003.png" in (tmp_path / "whole" / "events.jsonl").read_text()
    model = read_model("whole", made)
    assert (model.problem, model.family, model.defaults["scheduler"]) == ("", "unconditional", "DDIM")
    assert (model.defaults["width"], model.defaults["num_inference_steps"]) == (64, 2)


def test_what_is_saved_is_the_average(dataset: Path, settings: Settings, tmp_path: Path) -> None:
    plain, mean = (
        Path(run(config_of(dataset, max_train_steps=2, use_ema=ema), settings, tmp_path / str(ema))["artifact"])
        for ema in (False, True)
    )
    state = load_file(tmp_path / "True" / "checkpoints" / "step-000002" / "state" / "tensors.safetensors")
    first, weights, averaged = state["average.unet.0"], load_file(plain / WEIGHTS), load_file(mean / WEIGHTS)
    name = next(name for name, value in averaged.items() if torch.equal(value, first))
    assert torch.equal(weights[name], state["weight.unet.0"]) and not torch.equal(weights[name], first)


def test_an_earlier_result_goes_on(dataset: Path, settings: Settings, tmp_path: Path) -> None:
    made = Path(run(config_of(dataset, max_train_steps=1), settings, tmp_path / "first")["artifact"])
    method, _ = opened(config_of(dataset, init_from=str(made)), settings)
    saved = load_file(made / WEIGHTS)
    assert all(torch.equal(value, saved[name]) for name, value in method.network.state_dict().items())
    for values, sentence in (
        ({"init_from": str(made), "channels": [8, 8]}, r"block_out_channels is \[8, 16\] there and \(8, 8\) here"),
        ({"init_from": str(dataset)}, "has no unet/config.json; choose a folder that unconditional made"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            opened(config_of(dataset, **values), settings)


def test_attention_is_where_pictures_are_small_and_the_scheduler_is_saved(dataset: Path, settings: Settings) -> None:
    config = config_of(
        dataset,
        channels=[8, 8, 24],
        attention_from=16,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        mixed_precision="bf16",
    )
    method, material = opened(config, settings)
    assert method.network.config.down_block_types == ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    method(material.batch(0, 0)).mean().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in method.network.parameters())
    made = method.save(settings.data_dir, "zero", {})
    scheduler: Any = DDPMScheduler.from_pretrained(made / "scheduler")
    assert scheduler.alphas_cumprod[-1] == 0 and scheduler.config.timestep_spacing == "trailing"


def test_a_grid_is_about_square() -> None:
    picture = Image.open(io.BytesIO(grid([Image.new("RGB", (10, 10), "red")] * 5)))
    assert picture.size == (30, 20) and picture.getpixel((25, 15)) == (255, 255, 255)
    assert picture.getpixel((15, 15)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model": "shapes"}, "model means nothing to this method; leave it out"),
        ({"validation_prompts": "a cat"}, "validation_prompts means nothing to this method"),
        ({"concepts": [{"dataset": "x", "instance_prompt": "y"}]}, "instance_prompt means nothing to this method"),
        ({"resolution": 72, "channels": [8] * 5}, "resolution=72 must be a multiple of 16 for 5 levels of channels"),
        ({"resolution": [64, 128]}, "resolution must be one size"),
        ({"channels": [12]}, "channels=12 must be a multiple of 8 from 8 to 2048"),
        ({"channels": []}, "channels has 0 levels; give 1 to 8"),
        ({"ddpm_num_steps": 20}, "num_inference_steps=50 must be at most ddpm_num_steps=20"),
        ({"ema_decay": 1}, "ema_decay=1 must be less than 1"),
        (
            {"sigma_max": 10},
            "sigma_max means nothing with preconditioning=ddpm; leave it out, or use preconditioning=ve",
        ),
        ({"preconditioning": "edm", "beta_schedule": "squaredcos_cap_v2"}, "beta_schedule means nothing with"),
        ({"preconditioning": "ve", "sigma_data": 1}, "sigma_data means nothing with preconditioning=ve"),
        ({"preconditioning": "ve", "sigma_max": 1}, "sigma_max=1 must be at least 2"),
        ({"preconditioning": "edm", "timestep_sampling": "logit_normal"}, "use log_normal or uniform"),
        ({"vae": "shapes"}, "vae means nothing with architecture=unet; leave it out, or use architecture=dit"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr needs prediction_type=v_prediction"),
        ({"beta_schedule": "cosine"}, "beta_schedule='cosine': input should be 'linear' or 'squaredcos_cap_v2'"),
    ],
)
def test_a_wrong_config_is_told_in_a_sentence(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        config_of(tmp_path, **values)
    assert sentence in str(error.value)
