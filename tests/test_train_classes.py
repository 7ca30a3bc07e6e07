"""A DiT learns classes in an autoencoder's latents, and is a pipeline that diffusers draws with."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline
from PIL import Image

from benchmarks.shapes.render import render
from benchmarks.shapes.wordless import drawn, labels_of, obedience
from benchmarks.shapes.world import Scene, Thing
from studio.errors import InvalidRequest
from studio.settings import ROOT, Settings
from tests.training import config_of, content, killed_run, losses, stop_after, train
from trainers.dit import NO_CLASS, class_of
from trainers.session import Session, Unheld
from trainers.sheet import grid

TINY = {
    **{"architecture": "dit", "vae": "shapes", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16},
    **{"validation_pictures": 3, "num_inference_steps": 2, "caption_dropout": 0.5, "random_flip": True},
}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a red circle and two blue squares, in kohya's folders."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour, number in (("circle", "red", 1), ("square", "blue", 2)):
        (folder / f"1_{name}").mkdir()
        for i in range(number):
            scene = Scene((Thing(colour, name, 0.5, 0.4 + i / 10, 0.25),), "white")
            Image.fromarray(render(scene, random.Random(i), 64)).save(folder / f"1_{name}" / f"{i}.png")
    return folder


def told(pictures: Path, **values: Any) -> Any:
    own = TINY | {"max_train_steps": 3, "checkpointing_steps": 1}
    return config_of("unconditional", pictures, **own | values)


def opened(config: Any, settings: Settings, folder: Path) -> Any:
    """Return a trainer that has not begun."""
    session = Session("unconditional", config, settings, folder, lambda: False)
    device, shown, reference = session._opened()
    return session._trainer(Unheld(folder), shown, reference, device, session._accelerator(device))


def test_the_loss_is_the_papers(pictures: Path, settings: Settings, tmp_path: Path) -> None:
    trainer = opened(told(pictures, train_batch_size=3), settings, tmp_path)
    method, batch = trainer.method, trainer.material.batch(1, 0)
    dropped = [draw.drop for draw in batch.draws]
    assert any(dropped) and not all(dropped)
    labels = [["circle", "square"].index(said) if said else NO_CLASS for said in batch.captions]
    assert [label == NO_CLASS for label in labels] == dropped
    assert method.told(batch)["class_labels"].tolist() == labels
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    times = (batch.quantiles * 1000).long()
    signal, spread = (part.view(-1, 1, 1, 1) for part in (alphas[times].sqrt(), (1 - alphas[times]).sqrt()))
    with torch.no_grad():
        made = method.network(signal * batch.latents + spread * batch.noise, times, torch.tensor(labels)).sample
        loss = method(batch)
    assert torch.allclose(loss, ((made - batch.noise) ** 2).mean(dim=(1, 2, 3)), rtol=1e-4)
    assert batch.latents.shape == (3, 4, 8, 8) and made.abs().max() == 0  # adaLN-Zero begins so
    vae = AutoencoderKL.from_pretrained(ROOT / "presets" / "models" / "shapes" / "vae", torch_dtype=torch.float32)
    shown = Image.open(trainer.material.pictures.examples[0].path)
    pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    cached = trainer.material._latents.get(trainer.material.first_shown(1)[0].key, "mean")
    assert trainer.method.parts.components["unet"] is None and cached.shape == latents[0].shape


def test_classes_are_dropped_for_all_blocks_alike(pictures: Path, settings: Settings, tmp_path: Path) -> None:
    trainer = opened(told(pictures, caption_dropout=0), settings, tmp_path)
    batch = trainer.material.batch(0, 0)
    for _ in range(3):
        for parameter in trainer.method.network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        trainer.method.train()
        learnt = [trainer.method(batch) for _ in range(4)]
        trainer.method.eval()
        assert all(torch.equal(one, trainer.method(batch)) for one in learnt)


def test_a_run_goes_on_exactly_and_diffusers_draws_its_samples(tmp_path: Path, pictures: Path) -> None:
    config = told(pictures)
    made = Path(train("unconditional", config, tmp_path, run="whole")["artifact"])
    train("unconditional", config, tmp_path, run="broken", should_stop=stop_after(2))
    again = Path(train("unconditional", config, tmp_path, run="broken", resume=True)["artifact"])
    assert content(made / WEIGHTS) == content(again / WEIGHTS)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    pipe: Any = DiTPipeline.from_pretrained(made)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.labels == {"circle": 0, "square": 1} and pipe.get_label_ids(["square"]) == [1]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    images = pipe(class_labels=[0, 1, 0], generator=seeds, num_inference_steps=2, guidance_scale=4.0).images
    assert (tmp_path / "whole" / "samples" / "step-000003.png").read_bytes() == grid(images)
    assert images[0].size == (64, 64)
    same = drawn(made, 3, 2, 4.0)
    assert np.array_equal(same, [np.array(one) for one in images]) and labels_of(made, 3) == [
        "circle",
        "square",
        "circle",
    ]
    shown = [np.array(Image.open(pictures / name / "0.png")) for name in ("1_circle", "1_square")]
    assert obedience(shown, ["circle", "square"]) == 1 and obedience(shown, ["circle", "circle"]) == 0.5
    assert "pipe.get_label_ids(['circle'])" in made.with_name("README.md").read_text()
    files = [path for path in made.rglob("*.safetensors") if path.stat().st_size > 10**7]
    assert not files


def test_a_killed_run_goes_on_exactly(tmp_path: Path, pictures: Path) -> None:
    config = told(pictures, max_train_steps=4, validation_pictures=0)
    whole = Path(train("unconditional", config, tmp_path, run="whole")["artifact"])
    killed_run("unconditional", config, tmp_path, [0.5, 1.0])
    assert content(whole / WEIGHTS) == content(tmp_path / "killed" / "final" / "trained" / WEIGHTS)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_a_class_is_drawn_as_it_was_learnt(tmp_path: Path, pictures: Path) -> None:
    values = {"max_train_steps": 60, "checkpointing_steps": 0, "learning_rate": 1e-2, "use_ema": False}
    config = told(pictures, prediction_type="v_prediction", random_flip=False, **values | {"caption_dropout": 0.0})
    pipe: Any = DiTPipeline.from_pretrained(train("unconditional", config, tmp_path)["artifact"])
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(1) for _ in range(2)]
    made = pipe([0, 1], generator=noise, num_inference_steps=10, guidance_scale=1.0, output_type="np").images
    inner = made[:, 20:40, 24:40].mean(axis=(1, 2))  # (2, 3)
    assert inner[0][0] > inner[0][2] + 0.2 and inner[1][2] > inner[1][0] + 0.2, inner


def test_an_earlier_result_goes_on(tmp_path: Path, pictures: Path, settings: Settings) -> None:
    made = train("unconditional", told(pictures, max_train_steps=1, use_ema=False), tmp_path)["artifact"]
    trainer = opened(told(pictures, init_from=made), settings, tmp_path / "next")
    before: Any = DiTPipeline.from_pretrained(made)
    saved = before.transformer.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in trainer.method.network.state_dict().items())
    with pytest.raises(InvalidRequest, match="num_layers is 2 there and 3 here"):
        opened(told(pictures, init_from=made, num_layers=3), settings, tmp_path / "next")


@pytest.mark.parametrize(
    ("caption", "classes", "wanted"),
    [
        ("a red circle on a blue background", ("circle", "ring"), "circle"),
        ("Two Boxes", ("box", "ox"), "box"),
        ("an earring", ("ring", "earring"), "earring"),
        ("whatever it is", (), "whatever it is"),
    ],
)
def test_a_caption_says_its_class(caption: str, classes: tuple[str, ...], wanted: str) -> None:
    assert class_of(caption, classes) == wanted


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"classes": ["circle"]}, "0.png ('square') says none of 'circle'; each picture has one class"),
        ({"classes": ["circle", "Circle"]}, "classes must be words, none of them twice"),
        ({"vae": ""}, "architecture=dit needs vae: a model whose VAE it draws with, such as shapes"),
        ({"vae": "nothing"}, "vae='nothing'"),
        ({"resolution": 72}, "resolution=72 must be a multiple of 16: 8 pixels a latent of this vae"),
        ({"preconditioning": "edm"}, "preconditioning=edm needs architecture=unet; use ddpm"),
        ({"channels": [8]}, "channels means nothing with architecture=dit"),
        ({"attention_head_dim": 20}, "attention_head_dim=20 must be a multiple of 8"),
    ],
)
def test_a_wrong_config_is_told_in_a_sentence(
    tmp_path: Path, pictures: Path, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        train("unconditional", told(pictures, **values), tmp_path)
    assert sentence in str(error.value)


def test_pictures_without_a_class_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(InvalidRequest, match=r"a.png has no caption; put .txt files beside"):
        train("unconditional", told(tmp_path), tmp_path / "root")
    assert not (tmp_path / "root" / "run").exists()
