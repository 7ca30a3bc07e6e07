"""The model that ships: small files, diffusers' own format, a card with measured scores, and a latent space others can build on."""

import json
import re

import yaml

from studio.settings import ROOT

FOLDER = ROOT / "presets" / "models" / "shapes"


def test_it_is_small_enough_for_a_plain_repository() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 10_000_000, sizes
    assert sum(sizes.values()) < 30_000_000
    everything = [path.stat().st_size for path in (ROOT / "presets").rglob("*") if path.is_file()]
    assert max(everything) < 10_000_000
    assert sum(everything) < 60_000_000


def test_it_is_in_diffusers_format_with_77_positions() -> None:
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {index[part][1] for part in ("vae", "unet", "text_encoder", "tokenizer")} == {
        "AutoencoderKL",
        "UNet2DConditionModel",
        "CLIPTextModel",
        "CLIPTokenizer",
    }
    assert json.loads((FOLDER / "text_encoder" / "config.json").read_text())["max_position_embeddings"] == 77
    assert json.loads((FOLDER / "unet" / "config.json").read_text())["in_channels"] == 4


def test_it_names_no_folder_of_the_machine_that_made_it() -> None:
    for path in (ROOT / "presets").rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_its_facts_are_complete() -> None:
    facts = yaml.safe_load((FOLDER / "studio.yaml").read_text())
    assert facts["defaults"]["width"] == facts["defaults"]["height"] == 128
    assert facts["defaults"]["num_inference_steps"] <= 20
    assert len(facts["latent_rgb"]) == 5
    for word in "red orange yellow green cyan blue purple pink white black circle square triangle star heart diamond cross ring".split():
        assert word in facts["words"]


def test_its_card_states_measured_scores() -> None:
    card = (FOLDER / "README.md").read_text()
    assert re.search(r"^license: apache-2.0$", card, re.MULTILINE)
    assert "python -m benchmarks.shapes.score" in card
    assert "score --prompts 500" in card
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("| ")
    ]
    heads = next(row for row in table if row[0] == "set")
    scores = {row[0]: dict(zip(heads, row, strict=True)) for row in table if len(row) == len(heads)}
    least = {"background": 98, "colour": 98, "position": 95, "size": 95, "shape": 90}
    for fact, must in least.items():
        one, other = float(scores["one object"][fact]), float(scores["held-out pairs"][fact])
        assert one >= must, fact
        assert abs(one - other) <= 5, f"{fact} of pairs that training never showed"
    assert min(float(scores["two objects"][fact]) for fact in ("order", "colour")) >= 90
    assert float(scores["counts"]["exactly n objects"]) >= 90


def test_its_latents_are_white() -> None:
    import random

    import torch
    from diffusers import AutoencoderKL

    from benchmarks.shapes.autoencoder import pictures

    vae = AutoencoderKL.from_pretrained(FOLDER / "vae", dtype=torch.float32)
    with torch.no_grad():
        latents = vae.encode(pictures(random.Random(1), 64, doodles=0.0)).latent_dist.mean
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.15
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.15
    assert vae.config.scaling_factor == 1.0
