"""The card beside a result: its code runs and draws what was taught. And what a config needs of the machine is told first."""

import contextlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from studio.errors import InvalidRequest
from studio.settings import Settings
from tests.conftest import MODELS
from tests.training import config_of, draw_pictures, losses, train
from trainers.needs import compile_problem
from trainers.session import Session, Unheld

CARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 2, "recommended_weight": 0.7}),
    "dora with a text encoder": ("lora", {"rank": 2, "network_type": "dora", "train_text_encoder": True}),
    "full": ("full", {"learning_rate": 1e-5}),
    "textual inversion with a LoRA": (
        "textual-inversion",
        {"placeholder_token": "<toy>", "initializer_token": "heart", "train_lora": True, "rank": 2, "num_vectors": 2},
    ),
    "controlnet": ("controlnet", {"preprocessor": "canny"}),
    "unconditional": (
        "unconditional",
        {"channels": [8, 16], "layers_per_block": 1, "validation_pictures": 2, "num_inference_steps": 2},
    ),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("hearts"), 2, word="<toy> heart")


@pytest.mark.parametrize("name", CARDS)
def test_the_code_of_a_card_draws(tmp_path: Path, pictures: Path, name: str) -> None:
    method, values = CARDS[name]
    answer = train(method, config_of(method, pictures, max_train_steps=1, **values), tmp_path)
    folder = Path(answer["artifact"]).parent
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (folder / "shapes").symlink_to(MODELS / "shapes")  # the base model, by the name that the card says
    quick = code.replace("pipe('", "pipe(num_inference_steps=2, prompt='")
    assert quick != code or method == "unconditional"
    with contextlib.chdir(folder):
        exec(compile(quick, "card", "exec"), {})
    drawn = np.array(Image.open(folder / "picture.png"))
    assert drawn.shape[2] == 3 and drawn.std() > 5
    assert (folder / "samples.png").is_file() is (method == "unconditional")


def test_a_card_promises_nothing_that_diffusers_cannot(tmp_path: Path, pictures: Path) -> None:
    told = config_of("lora", pictures, rank=2, max_train_steps=1, network_type="loha")
    card = Path(train("lora", told, tmp_path)["artifact"]).with_name("README.md").read_text()
    assert "```python" not in card and "network_type: loha" in card


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_a_tracker_that_is_missing_is_told_before_anything_is_loaded(
    tmp_path: Path, pictures: Path, tracker: str
) -> None:
    if importlib.util.find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    told = config_of("lora", pictures, model="no such model", max_train_steps=1, report_to=tracker)
    with pytest.raises(InvalidRequest) as error:
        train("lora", told, tmp_path)
    assert str(error.value) == f"report_to={tracker} needs the package {tracker}: pip install {tracker}, or use none"
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_the_curves(tmp_path: Path, pictures: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = config_of("lora", pictures, rank=2, max_train_steps=3, report_to="tensorboard")
    train("lora", told, tmp_path)
    (log,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    found: Any = EventAccumulator(str(log))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "grad_norm", "learning_rate"}
    curve = {one.step: one.value for one in found.Scalars("loss")}
    assert curve == pytest.approx(losses(tmp_path / "run"))


def test_compile_without_a_compiler_is_refused(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compile_problem("cpu") == "needs a C++ compiler (no-such-compiler) on this device"
    with pytest.raises(InvalidRequest, match=r"compile needs a C\+\+ compiler .*; install it, or switch compile off"):
        train("lora", config_of("lora", pictures, compile=True), tmp_path)


@pytest.mark.parametrize("method", ["lora", "controlnet", "unconditional"])
def test_compile_reaches_the_networks_that_a_step_asks(tmp_path: Path, pictures: Path, method: str) -> None:
    if compile_problem("cpu"):
        pytest.skip("no compiler")
    own = CARDS[method][1] | {"max_train_steps": 1, "compile": True}
    session = Session(
        method, config_of(method, pictures, **own), Settings(data_dir=tmp_path, device="cpu"), tmp_path, bool
    )
    device, shown, reference = session._opened()
    trainer = session._trainer(Unheld(tmp_path), shown, reference, device, session._accelerator(device))
    compiled = [one for one in trainer.method.modules() if one._compiled_call_impl is not None]
    asked = trainer.method.asked
    assert len(asked) == (2 if method == "controlnet" else 1)
    assert all(network._compiled_call_impl is not None for network in asked) and compiled


@pytest.mark.slow
def test_compiled_steps_are_the_same_steps(tmp_path: Path, pictures: Path) -> None:
    if compile_problem("cpu"):
        pytest.skip("no compiler")
    from torch._dynamo.utils import counters

    values = CARDS["unconditional"][1] | {"max_train_steps": 3, "validation_pictures": 0, "learning_rate": 1e-3}
    for name, more in (("plain", {}), ("compiled", {"compile": True})):
        train("unconditional", config_of("unconditional", pictures, **values, **more), tmp_path, run=name)
    assert counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
