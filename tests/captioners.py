"""Small captioners and taggers that really learnt a few colours: real classes of transformers and timm, built from config."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits as tag_loss

from benchmarks.shapes.render import render
from benchmarks.shapes.world import Scene, Thing

COLOURS = ("red", "green", "blue", "yellow")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "circle", *COLOURS)
SIDE = 32


def circle(colour: str, seed: int, side: int = 64) -> Image.Image:
    """Draw a circle of a colour on white, somewhere near the middle."""
    rng = random.Random(f"{colour} {seed}")
    spot = [0.5 + rng.uniform(-0.1, 0.1) for _ in range(2)]
    return Image.fromarray(render(Scene((Thing(colour, "circle", spot[0], spot[1], 0.3),), "white"), rng, side))


def lessons() -> list[tuple[Image.Image, str]]:
    return [(circle(colour, seed), colour) for seed in range(6) for colour in COLOURS]


def save_blip(folder: Path, *, steps: int = 100) -> Path:
    """Train and save a BLIP that says `a {colour} circle`."""
    from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, additional_special_tokens=["[DEC]"])
    processor = BlipProcessor(BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer)
    model = BlipForConditionalGeneration(blip_config()).train()
    pixels = processor(images=[picture for picture, _ in lessons()], return_tensors="pt").pixel_values
    ids = tokenizer([f"a {colour} circle" for _, colour in lessons()], return_tensors="pt").input_ids
    ids[:, 0] = WORDS.index("[DEC]")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        model(pixel_values=pixels, input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def blip_config() -> Any:
    from transformers import BlipConfig

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"initializer_range": 0.1, "projection_dim": 16}
    text = small | {"vocab_size": len(WORDS), "max_position_embeddings": 128, "encoder_hidden_size": 32}
    text |= {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vision = small | {"image_size": SIDE, "patch_size": 16}
    return BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)


TAG_ROWS = (
    ("general", "9"),
    ("circle_shape", "0"),
    *((colour, "0") for colour in COLOURS),
    ("^_^", "0"),
    ("hatsune_miku", "4"),
)


def save_tagger(folder: Path, *, steps: int = 20) -> Path:
    """Train and save a tagger as SmilingWolf's: blue comes first, a rating and a character among the words."""
    import timm
    from safetensors.torch import save_file
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(0)
    facts = {
        "input_size": (3, SIDE, SIDE),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    model: Any = timm.create_model("test_resnet", num_classes=len(TAG_ROWS), pretrained_cfg_overlay=facts)
    transform: Any = create_transform(**resolve_model_data_config(model))
    pixels = torch.stack([transform(picture)[[2, 1, 0]] for picture, _ in lessons()])
    said = ("circle_shape", "general")
    wanted = torch.tensor([[float(tag in (colour, *said)) for tag, _ in TAG_ROWS] for _, colour in lessons()])
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-2)
    for _ in range(steps):
        tag_loss(model(pixels), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "test_resnet",
        "num_classes": len(TAG_ROWS),
        "pretrained_cfg": facts,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "selected_tags.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([place, name, category, 1] for place, (name, category) in enumerate(TAG_ROWS))
    return folder
