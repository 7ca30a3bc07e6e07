"""What each kind of adapter learnt in memory is what its file draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.shapes.product import Product
from benchmarks.shapes.score import load
from studio.settings import Settings
from tests.conftest import MODELS
from tests.training import config_of, draw_pictures
from trainers.session import Session

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora_alpha": 2, "use_rslora": True},
    "lora of all": {"network_type": "lora", "target_modules": "all"},
    "dora": {"network_type": "dora"},
    "loha": {"network_type": "loha", "target_modules": "all", "lora_alpha": 2},
    "lokr": {"network_type": "lokr"},
}
ASKED = {"prompt": "a red circle on a yellow background", "seed": 3, "num_inference_steps": 3, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("hearts"), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_draws_what_was_learnt(tmp_path: Path, pictures: Path, kind: str) -> None:
    told = {"rank": 4, "max_train_steps": 4, "checkpointing_steps": 0, "learning_rate": 2e-2} | KINDS[kind]
    session = Session(
        "lora",
        config_of("lora", pictures, **told),
        Settings(data_dir=tmp_path, cpu_threads=1),
        tmp_path / "run",
        lambda: False,
    )
    answer = session.run()
    assert answer and session.trainer
    product = Product(tmp_path / "blobs")
    made = product.draw(**ASKED, loras=[{"name": answer["artifact"]}])
    pipe = load(MODELS / "shapes")
    pipe.unet = session.trainer.method.parts.denoiser.network
    source = torch.Generator().manual_seed(3)
    wanted = pipe(
        ASKED["prompt"], num_inference_steps=3, guidance_scale=2.0, generator=source, output_type="np"
    ).images[0]
    assert np.abs(made.astype(int) - (wanted * 255).round().astype(int)).max() <= 1
    assert np.abs(made.astype(int) - product.draw(**ASKED)).max() > 10
