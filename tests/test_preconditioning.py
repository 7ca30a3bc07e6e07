"""Score models and EDM learn what their papers say, and are pipelines that diffusers draws with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from PIL import Image

from benchmarks.shapes.wordless import drawn
from studio.engine.devices import open_device
from studio.errors import InvalidRequest
from studio.settings import Settings
from tests.training import config_of, content, killed_run, losses, stop_after, train
from trainers.material import Material, Pictures
from trainers.models import Pixels
from trainers.preconditioning import preconditioning_of
from trainers.sheet import grid
from trainers.unconditional import UnconditionalMethod

TINY = {"channels": [8, 16], "layers_per_block": 1, "attention_from": 0, "validation_pictures": 2}
WAYS = {"ve": {"num_inference_steps": 4}, "edm": {"num_inference_steps": 3}}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make three pictures of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def told(way: str, pictures: Path, **values: Any) -> Any:
    own = TINY | WAYS[way] | {"preconditioning": way, "max_train_steps": 3, "checkpointing_steps": 1}
    return config_of("unconditional", pictures, **own | values)


def opened(config: Any, settings: Settings) -> tuple[UnconditionalMethod, Material]:
    shown = Pictures(config.told_concepts, settings.data_dir, captions=config.captions)
    method = UnconditionalMethod(config, Pixels(open_device("cpu", 1)))
    return method, Material(config, shown, None, settings.data_dir / "cache")


def test_edm_is_the_papers(pictures: Path, settings: Settings) -> None:
    config = told("edm", pictures, train_batch_size=3, sigma_data=0.6)
    method, material = opened(config, settings)
    batch = material.batch(0, 0)
    sigma = torch.exp(-1.2 + 1.2 * torch.special.ndtri(batch.quantiles.double())).float().view(-1, 1, 1, 1)
    scheduler = EDMEulerScheduler(sigma_data=0.6)
    noisy = batch.latents + sigma * batch.noise
    with torch.no_grad():
        loss = method(batch)
        said = method.network(scheduler.precondition_inputs(noisy, sigma), 0.25 * sigma.log().flatten()).sample
    made = scheduler.precondition_outputs(noisy, said, sigma)
    weight = (sigma**2 + 0.6**2) / (sigma * 0.6) ** 2  # lambda of table 1
    wanted = (weight * (made - batch.latents) ** 2).mean(dim=(1, 2, 3))
    assert torch.allclose(loss, wanted, rtol=1e-4) and batch.latents.min() < -0.9


def test_a_score_model_is_the_papers(pictures: Path, settings: Settings) -> None:
    config = told("ve", pictures, train_batch_size=3)
    method, material = opened(config, settings)
    batch = material.batch(0, 0)
    sigma = (0.01 * 5000 ** batch.quantiles.double()).float().view(-1, 1, 1, 1)
    clean = batch.latents / 2 + 0.5
    noisy = clean + sigma * batch.noise
    with torch.no_grad():
        loss, said = method(batch), method.network(noisy, sigma.flatten()).sample
    score = (clean - noisy) / sigma**2  # of the noise around the picture, equation 7
    wanted = (sigma**2 * (said - score) ** 2).mean(dim=(1, 2, 3))
    assert torch.allclose(loss, wanted, rtol=1e-3)
    sigmas = method._way.scheduler.sigmas  # what the sampler will ask about, 1 to nearly 0
    assert sigmas[0] == pytest.approx(50, rel=1e-3) and sigmas[-1] == pytest.approx(0.01, rel=1e-3)


def test_sigmas_are_spread_as_the_config_says(pictures: Path, settings: Settings) -> None:
    even = (torch.arange(1000) + 0.5) / 1000
    for way, values, mean, std in (
        ("edm", {}, -1.2, 1.2),
        ("edm", {"timestep_sampling": "log_normal", "logit_mean": 0.5, "logit_std": 0.7}, 0.5, 0.7),
        ("ve", {"sigma_min": 0.1, "sigma_max": 10}, 0, np.log(100) / 12**0.5),
    ):
        logs = opened(told(way, pictures, **values), settings)[0].process(even).times(even).log()
        assert logs.mean() == pytest.approx(mean, abs=0.01) and logs.std() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_exactly_and_diffusers_draws_its_samples(tmp_path: Path, pictures: Path, way: str) -> None:
    config = told(way, pictures)
    made = Path(train("unconditional", config, tmp_path, run="whole")["artifact"])
    train("unconditional", config, tmp_path, run="broken", should_stop=stop_after(2))
    again = Path(train("unconditional", config, tmp_path, run="broken", resume=True)["artifact"])
    assert content(made / WEIGHTS) == content(again / WEIGHTS)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    index = json.loads((made / "model_index.json").read_text())
    assert index["_class_name"] == {"ve": "ScoreSdeVePipeline", "edm": "ConsistencyModelPipeline"}[way]
    pipe: Any = DiffusionPipeline.from_pretrained(made)
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    images = pipe(batch_size=2, generator=seeds, num_inference_steps=config.num_inference_steps).images
    assert (tmp_path / "whole" / "samples" / "step-000003.png").read_bytes() == grid(images)
    assert np.array_equal(drawn(made, 2, config.num_inference_steps), [np.array(one) for one in images])
    card = made.with_name("README.md").read_text()
    assert f"{index['_class_name']}.from_pretrained('trained')" in card


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_goes_on_exactly(tmp_path: Path, pictures: Path, way: str) -> None:
    config = told(way, pictures, max_train_steps=4, validation_pictures=0)
    whole = Path(train("unconditional", config, tmp_path, run="whole")["artifact"])
    killed_run("unconditional", config, tmp_path, [0.5, 1.0])
    assert content(whole / WEIGHTS) == content(tmp_path / "killed" / "final" / "trained" / WEIGHTS)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_a_drawn_picture_is_what_was_learnt(tmp_path: Path) -> None:
    """One picture, learnt until it is drawn: noise, scales and steps of learning and drawing fit together."""
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (64, 64), (230, 60, 30)).save(folder / "0.png")
    values = {"learning_rate": 1e-2, "max_train_steps": 50, "checkpointing_steps": 0, "use_ema": False}
    config = told("edm", folder, train_batch_size=4, sigma_max=20, **values | {"validation_pictures": 0})
    picture = drawn(Path(train("unconditional", config, tmp_path)["artifact"]), 1, 8)[0].reshape(-1, 3)
    assert np.abs(picture.mean(axis=0) - (230, 60, 30)).max() < 40


class Exact(UNet2DModel):
    """The score of noise around one plain picture, in closed form."""

    COLOUR = (0.9, 0.25, 0.1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **more: Any) -> Any:  # pyright: ignore
        colour, sigma = torch.tensor(self.COLOUR).view(1, 3, 1, 1), timestep.view(-1, 1, 1, 1)
        return UNet2DOutput(sample=(colour - sample) / (sigma**2 + 1e-4))


def test_the_predictor_and_corrector_follow_the_score(pictures: Path) -> None:
    way = preconditioning_of(told("ve", pictures, sigma_max=90, num_inference_steps=60))
    network = Exact(
        sample_size=64,
        **(
            {"block_out_channels": (8,), "norm_num_groups": 8, "add_attention": False}
            | {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        ),
    )
    pipe = way.drawn(unet=network, scheduler=way.scheduler)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(num_inference_steps=60, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert made.shape == (1, 64, 64, 3)
    assert np.allclose(made.mean(axis=(0, 1, 2)), Exact.COLOUR, atol=0.01) and made.std(axis=(1, 2)).max() < 0.02


def test_an_earlier_result_of_another_kind_is_refused(tmp_path: Path, pictures: Path, settings: Settings) -> None:
    made = train("unconditional", told("edm", pictures, max_train_steps=1), tmp_path)["artifact"]
    assert opened(told("edm", pictures, init_from=made), settings)[0].network.config.sample_size == 64
    plain = config_of("unconditional", pictures, init_from=made, **TINY)
    with pytest.raises(InvalidRequest, match="use its own preconditioning and prediction_type"):
        opened(plain, settings)
