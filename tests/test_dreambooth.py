"""DreamBooth: what is kept of the class, what it costs, and that without all that it is plain fine-tuning."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.errors import InvalidRequest
from tests.training import config_of, content, draw_pictures, losses, stop_after, train

PRIOR = {"with_prior_preservation": True, "class_prompt": "a heart", "num_class_images": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("hearts"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def run(pictures: Path, root: Path, name: str, method: str = "dreambooth", **values: Any) -> dict[str, Any]:
    told = {"max_train_steps": 2, "checkpointing_steps": 0, **values}
    return train(method, config_of(method, pictures, **told), root, run=name)


@pytest.mark.parametrize(("method", "values"), [("lora", {"rank": 2}), ("full", {})])
def test_without_prior_it_is_plain_fine_tuning(pictures: Path, root: Path, method: str, values: dict[str, Any]) -> None:
    plain = run(pictures, root, f"plain {method}", method, **values)
    other = run(pictures, root, f"dreambooth {method}", train_weights=method, **values)
    assert losses(root / f"plain {method}") == losses(root / f"dreambooth {method}")
    for answer in (plain, other):
        files = [Path(answer["artifact"]), *sorted(Path(answer["artifact"]).rglob("unet/*.safetensors"))]
        answer["tensors"] = [
            {name: one for name, one in content(file).items() if name != "__metadata__"}
            for file in files
            if file.is_file()
        ]
    assert plain["tensors"] == other["tensors"] and plain["tensors"][0]


def test_a_prior_of_weight_0_changes_nothing(pictures: Path, root: Path) -> None:
    run(pictures, root, "without", rank=2)
    run(pictures, root, "weight 0", rank=2, prior_loss_weight=0, **PRIOR)
    assert losses(root / "without") == losses(root / "weight 0")


@pytest.mark.parametrize("source", ["images", "model"])
def test_the_prior_counts_and_goes_on_exactly(pictures: Path, root: Path, source: str) -> None:
    values = {"rank": 2, **PRIOR, "prior_source": source}
    run(pictures, root, f"whole {source}", **values)
    config = config_of("dreambooth", pictures, max_train_steps=2, checkpointing_steps=0, **values)
    train("dreambooth", config, root, run=f"broken {source}", should_stop=stop_after(1))
    train("dreambooth", config, root, run=f"broken {source}", resume=True)
    whole = losses(root / f"whole {source}")
    assert whole == losses(root / f"broken {source}")
    plain = losses(root / "without") if (root / "without").exists() else {}
    if source == "images":
        told = json.loads((root / f"whole {source}" / "class.json").read_text())
        assert told["number"] == 2
        assert len(list((root / "data" / "cache" / "class" / told["folder"]).glob("00000?.png"))) == 2
        assert all(whole[step] > plain[step] for step in plain)
    elif plain:
        assert whole[1] == plain[1] and whole[2] > plain[2]  # nothing has changed yet at the first step


def test_the_frozen_model_is_asked_without_the_adapter(pictures: Path, root: Path) -> None:
    from trainers.dreambooth import switched_off

    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_k = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.to_k(x)

    from peft import LoraConfig, inject_adapter_in_model

    network = Inner()
    x = torch.randn(1, 4)
    before = network(x)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), network)
    with switched_off(network):
        assert torch.equal(network(x), before)
    assert not torch.equal(network(x), before)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {
        "to_k.lora_A.default.weight",
        "to_k.lora_B.default.weight",
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"with_prior_preservation": True}, "needs class_prompt"),
        ({"class_prompt": "a dog"}, "class_prompt does nothing without with_prior_preservation"),
        ({"use_ema": True}, "use_ema works with train_weights=full only"),
        ({"train_weights": "full", "rank": 4}, "rank does nothing with train_weights=full"),
        (
            {**PRIOR, "prior_source": "model", "class_data_dir": "x"},
            "class_data_dir does nothing with prior_source=model",
        ),
        ({**PRIOR, "num_class_images": 0}, "num_class_images=0 must be at least 1"),
    ],
)
def test_what_means_nothing_is_refused(pictures: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        config_of("dreambooth", pictures, **values)
