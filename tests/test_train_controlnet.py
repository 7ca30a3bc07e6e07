"""A ControlNet begins by changing nothing, learns what its paper says, and is at once a unit that draws."""

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from benchmarks.shapes.follow import placed_scene
from benchmarks.shapes.render import render
from benchmarks.shapes.world import plain_caption
from studio.engine.devices import open_device
from studio.errors import InvalidRequest
from studio.settings import Settings
from studio.spec import parse_request
from studio.store.library import Library
from studio.training.models import training_problem
from tests.conftest import MODELS, drawer, pixels
from trainers.config_files import check_config
from trainers.controlnet import ControlNetMethod
from trainers.data import Batch
from trainers.material import Material, Pictures
from trainers.models import load_parts
from trainers.network_configs import ControlNetConfig
from trainers.session import Session

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Make three captioned pictures of 64 x 64."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        rng = random.Random(f"train-{number}")
        scene = placed_scene(rng)
        Image.fromarray(render(scene, rng, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(plain_caption(scene))
    return folder


def config_of(dataset: Path, **values: Any) -> ControlNetConfig:
    usual = {"dataset": str(dataset), "resolution": 64, "preprocessor": "canny", "train_batch_size": 2}
    return check_config(ControlNetConfig, usual | values)


def opened(
    config: ControlNetConfig, settings: Settings, models: Path, dtype: torch.dtype = torch.float32
) -> tuple[ControlNetMethod, Material]:
    """Load what a run would."""
    library, device = Library((models,)), open_device("cpu", 1)
    pictures = Pictures(config.told_concepts, settings.data_dir)
    ControlNetMethod.check(config, pictures, settings)
    parts = load_parts(library.reference(library.get(config.model)), device, dtype)
    conditions = ControlNetMethod.conditions(config, settings, device)
    material = Material(config, pictures, parts, settings.data_dir / "cache")
    assert conditions is not None
    material.follow(conditions)
    method = ControlNetMethod(config, parts)
    method.prepare(material)
    return method, material


def disturb(network: torch.nn.Module) -> None:
    """Take a ControlNet out of its first state, in which it says nothing."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)


def written_out(model: Path, control: Any, batch: Batch, *, by: float = 1.0) -> torch.Tensor:
    """Compute the loss with bare diffusers: noise a picture, let the ControlNet speak to the UNet, compare.

    Args:
        model: folder.
        control: the ControlNet.
        batch: what is shown.
        by: how much the ControlNet's answers count.
    """
    unet: Any = UNet2DConditionModel.from_pretrained(model / "unet").float()
    schedule: Any = DDPMScheduler.from_pretrained(model / "scheduler")
    config = UNet2DConditionModel.load_config(model / "unet")
    factor = {"shapes": 1.0, "sdxl": 0.13025}[model.name]
    latents, times = batch.latents * factor, (batch.quantiles * 1000).long()
    noisy, words = schedule.add_noise(latents, batch.noise, times), batch.told["prompt_embeds"]
    added = {}
    if config["addition_embed_type"] == "text_time":
        ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * len(times))  # original size, crop, size
        added = {"added_cond_kwargs": {"text_embeds": batch.told["pooled_prompt_embeds"], "time_ids": ids}}
    down, middle = control(
        noisy, times, encoder_hidden_states=words, controlnet_cond=batch.conditioning, return_dict=False, **added
    )
    made = unet(
        noisy,
        times,
        encoder_hidden_states=words,
        down_block_additional_residuals=[by * level for level in down],
        mid_block_additional_residual=by * middle,
        **added,
    ).sample
    epsilon = schedule.config.prediction_type == "epsilon"
    return F.mse_loss(made, batch.noise if epsilon else schedule.get_velocity(latents, batch.noise, times))


@pytest.fixture(params=["shapes", "sdxl"])
def model(request: pytest.FixtureRequest, tiny_library: Library) -> Path:
    return MODELS / "shapes" if request.param == "shapes" else tiny_library.folders[0] / "sdxl"


def test_the_loss_is_the_papers_and_at_first_the_models_own(model: Path, dataset: Path, settings: Settings) -> None:
    method, material = opened(config_of(dataset, model=model.name), settings, model.parent)
    batch = material.batch(0, 0)
    with torch.no_grad():
        first, own = method(batch).mean(), written_out(model, method.network, batch, by=0.0)
        assert torch.equal(first, method(batch).mean())
        assert abs(first - own) < 1e-6
        disturb(method.network)
        now, formula = method(batch).mean(), written_out(model, method.network, batch)
    assert abs(now - formula) < 1e-5 < abs(now - own)


def test_only_the_controlnet_learns_and_all_of_it_but_words_it_does_not_read(dataset: Path, settings: Settings) -> None:
    method, material = opened(config_of(dataset), settings, MODELS)
    disturb(method.network)
    method(material.batch(0, 0)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.network.parameters())
    assert all(not p.requires_grad for p in method.parts.denoiser.network.parameters())


def test_bf16_keeps_the_controlnet_in_float32(dataset: Path, settings: Settings) -> None:
    config = config_of(dataset, mixed_precision="bf16", gradient_checkpointing=True)
    method, material = opened(config, settings, MODELS, torch.bfloat16)
    exact, _ = opened(config_of(dataset), settings, MODELS)
    disturb(method.network)
    disturb(exact.network)
    batch = material.batch(0, 0)
    loss = method(batch).mean()
    loss.backward()
    assert {p.dtype for p in method.network.parameters()} == {torch.float32}
    assert torch.isclose(loss, exact(batch).mean(), rtol=0.05)


def test_what_it_follows_are_the_edges_of_what_is_shown(dataset: Path, settings: Settings) -> None:
    config = config_of(dataset, random_flip=True, preprocessor_options={"low_threshold": 50}, caption_dropout=1)
    _, material = opened(config, settings, MODELS)
    flips = set()
    for step in range(4):
        batch = material.batch(step, 0)
        assert batch.conditioning is not None and batch.captions == ["", ""]
        for one, draw in zip(batch.conditioning, batch.draws, strict=True):
            path = material.pictures.examples[material.plan.items[draw.item].example].path
            picture = np.array(Image.open(path).convert("RGB"))
            shown = np.ascontiguousarray(picture[:, ::-1] if draw.flip else picture)
            assert np.array_equal(one[0].numpy() * 255, cv2.Canny(shown, 50, 200))
            flips.add(draw.flip)
    assert flips == {False, True}


def test_pictures_that_a_dataset_brings_are_taken_as_they_are(dataset: Path, settings: Settings) -> None:
    (dataset / "conditioning").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number * 50, 0, 255)).save(dataset / "conditioning" / f"{number}.png")
    _, material = opened(config_of(dataset, preprocessor="none"), settings, MODELS)
    batch = material.batch(0, 0)
    assert batch.conditioning is not None
    for one, draw in zip(batch.conditioning, batch.draws, strict=True):
        example = material.plan.items[draw.item].example
        assert (one * 255).round().mean(dim=(1, 2)).tolist() == [example * 50, 0, 255]
    _, mixed = opened(config_of(dataset), settings, MODELS)
    assert mixed.pictures.notes == ["3 of 3 pictures bring their own control picture, which is taken as it is"]
    (dataset / "conditioning" / "1.png").unlink()
    with pytest.raises(InvalidRequest, match=r"^1 of 3 pictures have no control picture \(1.png …\); put one of"):
        opened(config_of(dataset, preprocessor="none"), settings, MODELS)


def run(config: ControlNetConfig, settings: Settings, folder: Path, *, until: str = "", resume: bool = False) -> Any:
    """Train; with `until` the run is asked to stop once that file or folder is there."""
    stop = lambda: bool(until) and (folder / until).exists()  # noqa: E731
    return Session("controlnet", config, settings, folder, stop).run(resume=resume)


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(
    dataset: Path, settings: Settings, tmp_path: Path, engine: Any, blobs: Any
) -> None:
    config = config_of(dataset, max_train_steps=3, checkpointing_steps=1, learning_rate=0.01)
    drawing = config.model_copy(update={"validation_prompts": ("a red circle",), "checkpointing_steps": 0})
    answer = run(drawing, settings, tmp_path / "whole")
    broken = run(config, settings, tmp_path / "broken", until="checkpoints/step-000001")
    assert broken["status"] == "stopped" and broken["step"] == 2
    assert run(config, settings, tmp_path / "broken", resume=True)["step"] == 3
    made = Path(answer["artifact"])
    assert (made / WEIGHTS).read_bytes() == (tmp_path / "broken" / "final" / "trained" / WEIGHTS).read_bytes()

    bare: Any = ControlNetModel.from_pretrained(made)
    saved = load_file(made / WEIGHTS)
    assert all(torch.equal(value, saved[name]) for name, value in bare.state_dict().items())
    assert "as a ControlNet unit with the preprocessor `canny`" in (made.parent / "README.md").read_text()

    root = tmp_path / "models"
    (root / "controlnets").mkdir(parents=True)
    (root / "controlnets" / "mine").symlink_to(made)
    library = Library((MODELS,), part_roots=(root,))
    assert library.parts.get("controlnet", "mine", "model").preprocessor == "canny"
    draw, size = drawer(engine, library, blobs), {"width": 64, "height": 64, "seed": 0, "prompt": "a red circle"}
    unit = {"model": "mine", "image": dataset / "0.png", "preprocessor": "canny"}
    steered, plain = (pixels(draw(**size, **more).pictures[0]) for more in ({"controls": [unit]}, {}))
    assert np.abs(steered.astype(int) - plain).mean() > 1
    sample = np.array(Image.open(tmp_path / "whole" / "samples" / "step-000003-0-0.png"))
    assert np.array_equal(sample, steered)  # drawn from the checkpoint as Generate draws


def test_an_sdxl_controlnet_is_trained_and_draws(
    dataset: Path, settings: Settings, tmp_path: Path, tiny_library: Library
) -> None:
    settings = settings.model_copy(update={"extra_models": tiny_library.folders})
    config = config_of(dataset, model="sdxl", max_train_steps=1, learning_rate=0.01)
    made = Path(run(config, settings, tmp_path / "sdxl")["artifact"])
    assert ControlNetModel.load_config(made)["addition_embed_type"] == "text_time"
    again = run(config.model_copy(update={"init_from": str(made)}), settings, tmp_path / "more")
    first, second = (load_file(folder / WEIGHTS) for folder in (made, Path(again["artifact"])))
    middle = "controlnet_mid_block.weight"
    assert 0 < (second[middle] - first[middle]).abs().max() < 0.011 < second[middle].abs().max() + 0.002
    with pytest.raises(
        InvalidRequest, match="init_from='trained' was made for another model: cross_attention_dim is 72"
    ):
        run(config_of(dataset, init_from=str(made)), settings, tmp_path / "other")


def test_a_request_names_a_controlnet_by_its_path(tmp_path: Path) -> None:
    library = Library((MODELS,), part_roots=(MODELS.parent,))
    folder = MODELS.parent / "controlnets" / "shapes-canny"
    (tmp_path / "near" / "mine").mkdir(parents=True)
    for file in folder.iterdir():
        (tmp_path / "near" / "mine" / file.name).symlink_to(file)
    units = [{"model": name, "image": "x.png"} for name in ("near/mine", "shapes-canny")]
    request = library.with_files(parse_request({"prompt": "", "controls": units}), tmp_path)
    assert [unit.model for unit in request.controls] == ["mine", "shapes-canny"]
    assert library.parts.get("controlnet", "mine", "model").path == tmp_path / "near" / "mine"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"preprocessor": "cany"}, "preprocessor='cany' is not known; use one of: none"),
        ({"preprocessor_options": {"x": 1}}, "preprocessor='canny' has no option 'x'; it has low_threshold"),
        ({"preprocessor_options": {"low_threshold": 0}}, "low_threshold=0.0 must be a whole number from 1 to 255"),
        ({"trigger_word": "sks"}, "trigger_word means nothing to this method; leave it out"),
        ({"preproces": "canny"}, "preproces is not a field of this method; did you mean preprocessor?"),
    ],
)
def test_a_wrong_config_is_told_in_a_sentence(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        config_of(tmp_path, **values)
    assert sentence in str(error.value)


def test_models_and_files_that_do_not_fit_are_refused(
    dataset: Path, settings: Settings, tiny_library: Library, tmp_path: Path
) -> None:
    problem = training_problem("controlnet", tiny_library.get("sd3"))
    assert "whose ControlNets cannot be trained; choose Stable Diffusion 1.x" in problem
    with pytest.raises(InvalidRequest, match="is no ControlNet folder"):
        opened(config_of(dataset, init_from=str(tmp_path / "nothing")), settings, MODELS)
    with pytest.raises(InvalidRequest, match=r"preprocessor='softedge_hed' needs ControlNetHED\.pth in"):
        opened(config_of(dataset, preprocessor="softedge_hed"), settings, MODELS)
