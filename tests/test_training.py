"""One run from its config to its result: what it writes, what it refuses, and that it goes on exactly where it stopped."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from studio.errors import InvalidRequest, StudioError
from studio.settings import ROOT
from studio.store.lora_facts import read_lora_facts
from tests.conftest import MODELS
from tests.training import (
    Forked,
    adapter,
    command_of,
    config_of,
    content,
    draw_pictures,
    killed_run,
    losses,
    stop_after,
    train,
)
from trainers.config_files import dump_config

STEPS = {"max_train_steps": 6, "checkpointing_steps": 2, "checkpoints_total_limit": None}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("hearts"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("unbroken")
    return root, train("lora", config_of("lora", pictures, rank=4, **STEPS), root)


def test_a_run_learns_and_tells(unbroken: tuple[Path, dict[str, Any]]) -> None:
    root, answer = unbroken
    assert answer["status"] == "finished" and answer["step"] == 6
    rows = [json.loads(line) for line in (root / "run" / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["type"] == "checkpoint"] == [2, 4, 6]
    assert {row["name"] for row in rows if row["type"] == "metric"} == {
        "loss", "grad_norm", "learning_rate", "memory",
    }  # fmt: skip
    assert rows[-1]["type"] == "finished" and sorted(losses(root / "run")) == [1, 2, 3, 4, 5, 6]
    weights = adapter(answer)
    assert any(one.abs().max() > 0 for name, one in weights.items() if "lora_B" in name)


def test_the_file_says_how_it_was_made(tmp_path: Path, pictures: Path) -> None:
    config = config_of(
        "lora", pictures, rank=2, max_train_steps=1, trigger_word="sks", recommended_weight=0.8, output_name="heart"
    )
    facts = read_lora_facts(Path(train("lora", config, tmp_path)["artifact"]))
    assert (facts.rank, facts.trigger_words, facts.recommended_weight, facts.base) == (2, ("sks",), 0.8, "shapes")
    assert facts.trained == "1 steps, 5 pictures, learning rate 0.001"


def test_the_same_config_gives_the_same_bytes(tmp_path: Path, pictures: Path, unbroken: Any) -> None:
    again = train("lora", config_of("lora", pictures, rank=4, **STEPS), tmp_path)
    assert content(again["artifact"]) == content(unbroken[1]["artifact"])


@pytest.mark.parametrize("stopped", [1, 3])
def test_a_stopped_run_goes_on_exactly(tmp_path: Path, pictures: Path, unbroken: Any, stopped: int) -> None:
    config = config_of("lora", pictures, rank=4, **STEPS)
    answer = train("lora", config, tmp_path, should_stop=stop_after(stopped))
    assert answer["status"] == "stopped" and answer["step"] == stopped
    answer = train("lora", config, tmp_path, resume=True)
    assert content(answer["artifact"]) == content(unbroken[1]["artifact"])
    assert losses(tmp_path / "run") == losses(unbroken[0] / "run")


EXACT = {
    "dora": ("lora", {"network_type": "dora", "rank": 2}),
    "text encoder, accumulation, dropout": (
        "lora",
        {
            "train_text_encoder": True,
            "text_encoder_lr": 1e-4,
            "gradient_accumulation_steps": 2,
            "lora_dropout": 0.1,
            "rank": 2,
        },
    ),
    "random crops, flips, shuffled captions": (
        "lora",
        {
            "crop": "random",
            "random_flip": True,
            "shuffle_caption": True,
            "caption_dropout": 0.3,
            "noise_offset": 0.1,
            "rank": 2,
        },
    ),
    "adafactor, cosine": (
        "lora",
        {"optimizer": "adafactor", "lr_scheduler": "cosine", "lr_warmup_steps": 2, "rank": 2},
    ),
    "muon, which has AdamW for vectors": ("lora", {"optimizer": "muon", "rank": 2, "network_type": "dora"}),
    "full, average": ("full", {"use_ema": True, "ema_decay": 0.5, "learning_rate": 1e-5}),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_kind_of_run_goes_on_exactly(tmp_path: Path, pictures: Path, name: str) -> None:
    method, values = EXACT[name]
    config = config_of(method, pictures, max_train_steps=3, checkpointing_steps=0, **values)
    whole = train(method, config, tmp_path, run="whole")
    train(method, config, tmp_path, run="broken", should_stop=stop_after(2))
    broken = train(method, config, tmp_path, run="broken", resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    for file in sorted(
        path for path in [Path(whole["artifact"]), *Path(whole["artifact"]).rglob("*")] if path.suffix == ".safetensors"
    ):
        other = Path(str(file).replace(str(tmp_path / "whole"), str(tmp_path / "broken")))
        assert content(file) == content(other), file
    assert broken["step"] == 3


KILLED = {
    "lora": {"rank": 2, "gradient_accumulation_steps": 2},
    "dreambooth": {"rank": 2, "with_prior_preservation": True, "class_prompt": "a heart", "num_class_images": 2},
    "full": {"use_ema": True, "learning_rate": 1e-5},
    "textual-inversion": {"placeholder_token": "<toy>", "initializer_token": "toy"},
    "controlnet": {"preprocessor": "canny"},
    "unconditional": {"channels": [8, 16], "layers_per_block": 1, "validation_pictures": 2, "num_inference_steps": 2},
}


def kill_and_compare(method: str, pictures: Path, root: Path, kills: int, seed: int) -> None:
    """Kill a run at random moments of its whole life; its result and its losses are those of one that was left alone."""
    if method == "textual-inversion":
        pictures = draw_pictures(root / "toys", word="<toy>")
    config = config_of(method, pictures, max_train_steps=5, checkpointing_steps=1, **KILLED[method])
    whole = train(method, config, root, run="whole")
    rng = random.Random(seed)
    killed_run(method, config, root, [rng.uniform(0.2, 2.5) for _ in range(kills)])
    files = [Path(whole["artifact"]), *Path(whole["artifact"]).rglob("*")]
    for file in sorted(path for path in files if path.suffix == ".safetensors"):
        assert content(file) == content(Path(str(file).replace(str(root / "whole"), str(root / "killed")))), file
    assert losses(root / "killed") == losses(root / "whole")
    assert not [path for path in (root / "killed").rglob(".part-*") if path.exists()]


@pytest.mark.parametrize("method", KILLED)
def test_a_killed_run_goes_on_exactly(tmp_path: Path, pictures: Path, method: str) -> None:
    kill_and_compare(method, pictures, tmp_path, 10 if method in ("lora", "dreambooth", "full") else 4, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
@pytest.mark.parametrize("method", KILLED)
def test_two_hundred_kills(tmp_path: Path, pictures: Path, method: str, trial: int) -> None:
    kill_and_compare(method, pictures, tmp_path, 10, seed=trial)


@pytest.mark.parametrize("method", ["lora"])
def test_a_killed_command_goes_on_exactly(tmp_path: Path, pictures: Path, method: str) -> None:
    config = config_of(method, pictures, max_train_steps=8, checkpointing_steps=1, **KILLED[method])
    (tmp_path / "c.yaml").write_text(dump_config(config))
    command = command_of(method, tmp_path / "c.yaml", tmp_path, "killed")
    process = Forked(command[3:], tmp_path / "log")
    while not (tmp_path / "killed" / "checkpoints" / "step-000003").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    again = Forked([*command[3:], "--resume"], tmp_path / "log")
    again.wait()
    assert again.returncode == 0
    whole = train(method, config, tmp_path, run="whole")
    assert content(whole["artifact"]) == content(tmp_path / "killed" / "final" / "trained.safetensors")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, pictures: Path, unbroken: Any) -> None:
    config = config_of("lora", pictures, rank=4, **STEPS)
    train("lora", config, tmp_path, should_stop=stop_after(4))
    damaged = tmp_path / "run" / "checkpoints" / "step-000004" / "state" / "tensors.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    answer = train("lora", config, tmp_path, resume=True)
    assert content(answer["artifact"]) == content(unbroken[1]["artifact"])
    assert list((tmp_path / "run" / "checkpoints").glob("damaged-step-000004-*"))


def test_old_states_go_and_weights_stay(tmp_path: Path, pictures: Path) -> None:
    config = config_of("lora", pictures, rank=2, max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)
    train("lora", config, tmp_path)
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [folder.name[-1] for folder in folders] == ["1", "2", "3", "4"]
    assert [(folder / "state").is_dir() for folder in folders] == [False, False, True, True]
    assert all(list((folder / "weights").glob("*.safetensors")) for folder in folders)


def test_a_changed_dataset_or_config_is_refused_on_resume(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "pictures", 3)
    config = config_of("lora", folder, rank=2, max_train_steps=2)
    train("lora", config, tmp_path, should_stop=stop_after(1))
    (folder / "1.txt").write_text("something else")
    with pytest.raises(InvalidRequest, match=r"dataset differs from the run's \(changed: '1.png'\)"):
        train("lora", config, tmp_path, resume=True)
    draw_pictures(folder, 3)
    with pytest.raises(InvalidRequest, match=r"learning_rate=0\.5 differs from the run's 0.001"):
        train("lora", config.model_copy(update={"learning_rate": 0.5}), tmp_path, resume=True)
    longer = config.model_copy(update={"max_train_steps": 3})
    assert train("lora", longer, tmp_path, resume=True)["step"] == 3
    with pytest.raises(InvalidRequest, match="holds a run already"):
        train("lora", longer, tmp_path)
    with pytest.raises(InvalidRequest, match="has no run to resume"):
        train("lora", longer, tmp_path, run="other", resume=True)


def test_a_run_that_never_learnt_may_begin_anew(tmp_path: Path, pictures: Path) -> None:
    wrong = config_of("lora", pictures, rank=2, max_train_steps=1, target_modules="nothing")
    with pytest.raises(InvalidRequest, match="target_modules=nothing fits no layer"):
        train("lora", wrong, tmp_path)
    assert train("lora", wrong.model_copy(update={"target_modules": ("attention",)}), tmp_path)["step"] == 1


def test_numbers_that_are_not_finite_stop_a_run_and_nothing_bad_is_saved(tmp_path: Path, pictures: Path) -> None:
    config = config_of(
        "lora", pictures, rank=2, max_train_steps=40, checkpointing_steps=1, learning_rate=10, max_grad_norm=0
    )
    config = config.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(StudioError, match=r"learning_rate=1e\+30 is high"):
        train("lora", config, tmp_path)
    for path in (tmp_path / "run" / "checkpoints").glob("*/weights/*.safetensors"):
        from safetensors.torch import load_file

        assert all(torch.isfinite(one).all() for one in load_file(path).values())
    assert json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])["type"] == "failed"


def test_a_sample_is_what_generate_makes(tmp_path: Path, pictures: Path) -> None:
    prompt = "a sks heart on a red background"
    config = config_of("lora", pictures, rank=4, max_train_steps=2, validation_prompts=[prompt], validation_seed=5)
    answer = train("lora", config, tmp_path)
    request = {"prompt": prompt, "seed": 5, "loras": [{"name": str(answer["artifact"])}]}
    (tmp_path / "r.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "studio", "--cpu-threads", "1", "generate", "--request", str(tmp_path / "r.json")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    made = Image.open(json.loads(done.stdout)["path"])
    sample = Image.open(tmp_path / "run" / "samples" / "step-000002-0-0.png")
    assert np.array_equal(np.array(made), np.array(sample))
    plain = Image.open(next((tmp_path / "out").glob("*.png")))
    assert plain.size == (128, 128)


def test_diffusers_loads_a_result(tmp_path: Path, pictures: Path, unbroken: Any) -> None:
    from diffusers import StableDiffusionPipeline

    def draw(pipe: Any) -> np.ndarray:
        noise = torch.Generator().manual_seed(0)
        return pipe("a heart", num_inference_steps=2, output_type="np", generator=noise).images[0]

    pipe = StableDiffusionPipeline.from_pretrained(MODELS / "shapes", safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    before = draw(pipe)
    pipe.load_lora_weights(str(Path(unbroken[1]["artifact"]).parent), weight_name="trained.safetensors")
    assert np.abs(draw(pipe) - before).max() > 1e-3
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), before)


@pytest.mark.parametrize(
    "values", [{"rank": 4}, {"rank": 4, "lora_alpha": 2, "use_rslora": True, "train_text_encoder": True}]
)
def test_kohyas_file_draws_the_same(tmp_path: Path, pictures: Path, values: dict[str, Any]) -> None:
    from benchmarks.shapes.product import Product

    config = config_of(
        "lora", pictures, max_train_steps=3, checkpointing_steps=0, save_kohya=True, learning_rate=1e-2, **values | {}
    )
    folder = Path(train("lora", config, tmp_path)["artifact"]).parent
    product = Product(tmp_path / "blobs")
    drawn = [
        product.draw(
            prompt="a red heart", seed=1, num_inference_steps=3, loras=[{"name": str(folder / f"{name}.safetensors")}]
        )
        for name in ("trained", "trained-kohya")
    ]
    plain = product.draw(prompt="a red heart", seed=1, num_inference_steps=3)
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1 and np.abs(drawn[0].astype(int) - plain).max() > 3
    from trainers.kohya import main as export

    later = tmp_path / "later.safetensors"
    assert export([str(folder / "trained.safetensors"), str(later)]) == 0  # of a run that ended without it
    made, wanted = content(later), content(folder / "trained-kohya.safetensors")
    assert made.pop("__metadata__").items() >= wanted.pop("__metadata__").items() and made == wanted
    assert export([str(later), str(tmp_path / "again.safetensors")]) == 2 == export([str(later), str(later)])
    with pytest.raises(InvalidRequest, match="save_kohya does not know dora"):
        config_of("lora", pictures, save_kohya=True, network_type="dora")


def test_held_out_pictures_are_not_learnt_from(tmp_path: Path, pictures: Path) -> None:
    config = config_of("lora", pictures, rank=2, max_train_steps=2, validation_size=2, validation_steps=1)
    train("lora", config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    held = [row["value"] for row in rows if row["type"] == "metric" and row["name"] == "held_out_loss"]
    assert len(held) == 2 and held[0] != held[1]
    with pytest.raises(InvalidRequest, match="leaves none of 5 pictures; use at most 4"):
        train("lora", config.model_copy(update={"validation_size": 5}), tmp_path, run="none")


def test_the_command(tmp_path: Path, pictures: Path) -> None:
    config = {"dataset": str(pictures), "resolution": 64, "bucket_step": 32, "max_train_steps": 2, "rank": 2}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    command = command_of("lora", tmp_path / "c.yaml", tmp_path)
    asked = Forked([*command[3:], "--estimate"], tmp_path / "log")
    asked.wait()
    told = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert asked.returncode == 0 and told["steps"] == 2 and told["fits"] and not (tmp_path / "run").exists()
    wrong = subprocess.run([*command, "--set", "rank=0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.strip() == "rank=0 must be at least 1"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == "finished" and Path(told["artifact"]).is_file()
