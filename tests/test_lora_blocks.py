"""Block weights of a LoRA: which block is which, what the numbers do to the picture, and that wrong ones are told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from benchmarks.shapes.score import load
from studio.errors import InvalidRequest
from studio.lora_blocks import block_of, block_weights, blocks_of, blocks_problem
from studio.loras import LoraSpec, tag_of, take_tags
from studio.spec import parse_request
from studio.store.library import Library
from tests.conftest import MODELS, drawer
from tests.test_adapter_kinds import adapter, pixels
from tests.test_loras import random_lora

PROMPT = "a red circle on a yellow background"
SMALL: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 3}
CROSS, PLAIN, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D"
SD1 = {
    "down_block_types": [CROSS, CROSS, CROSS, PLAIN],
    "up_block_types": ["UpBlock2D", UP, UP, UP],
    "layers_per_block": 2,
}
SDXL = {"down_block_types": [PLAIN, CROSS, CROSS], "up_block_types": [UP, UP, "UpBlock2D"], "layers_per_block": 2}
FLUX = {"num_layers": 19, "num_single_layers": 38}


def test_the_numbers_that_people_paste() -> None:
    """The lists of the extension's own page for Stable Diffusion 1 and XL, for LoRA and for all layers."""
    seventeen = "IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"
    twelve = "IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"
    first, second, third = (blocks_of(config) for config in (SD1, SDXL, FLUX))
    assert first and second and third
    assert (" ".join(first.attending), first.counts) == (seventeen, [3, 17, 26])
    assert (" ".join(second.attending), second.counts) == (twelve, [3, 12, 20])
    assert third.counts == [58]
    weights = block_weights(range(17), first)
    assert (weights["BASE"], weights["IN01"], weights["OUT11"], weights["IN03"]) == (0, 1, 16, 0)
    assert block_weights((0.5, 1, 2), second) == {"BASE": 1.0} | {
        name: {"I": 0.5, "M": 1, "O": 2}[name[0]] for name in second.names
    }
    assert (
        "4 block weights do not fit this model, which takes 3 (down, mid, up) or 12 (BASE, IN04, IN05 … OUT05) or 20"
        in (blocks_problem((1, 1, 1, 1), second))
    )
    assert blocks_problem((1, 1, 1), None)


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("conv_in", "IN00"),
        ("time_embedding.linear_1", "IN00"),
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "IN02"),
        ("down_blocks.0.downsamplers.0.conv", "IN03"),
        ("down_blocks.3.resnets.1.conv1", "IN11"),
        ("mid_block.attentions.0.proj_in", "M00"),
        ("up_blocks.0.upsamplers.0.conv", "OUT02"),
        ("up_blocks.3.attentions.2.proj_out", "OUT11"),
        ("conv_out", "OUT11"),
    ],
)
def test_the_block_of_a_layer(module: str, block: str) -> None:
    """As ComfyUI's and kohya's conversions count `input_blocks`, `middle_block` and `output_blocks`."""
    blocks = blocks_of(SD1)
    assert blocks
    assert block_of(module, blocks) == block
    assert block in blocks.names


def test_the_blocks_of_a_transformer() -> None:
    blocks = blocks_of(FLUX)
    assert blocks
    named = ["transformer_blocks.18.attn.to_q", "single_transformer_blocks.0.proj_mlp", "x_embedder", "proj_out"]
    assert [block_of(name, blocks) for name in named] == ["B18", "B19", "B00", "B56"]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("<lora:x:0.8:lbw=1,0,0.5>", LoraSpec(name="x", weight=0.8, blocks=(1, 0, 0.5))),
        ("<lora:x:1:0.5:lbw=0,1,1>", LoraSpec(name="x", weight=0.5, text_encoder_weight=1, blocks=(0, 1, 1))),
        ("<lora:x:lbw=1,1,1,1>", LoraSpec(name="x", blocks=(1, 1, 1, 1))),
    ],
)
def test_tags(text: str, spec: LoraSpec) -> None:
    assert take_tags(text) == ("", [spec])
    assert take_tags(tag_of(spec))[1] == [spec]


@pytest.mark.parametrize("text", ["<lora:x:1:lbw=MIDD>", "<lora:x:1:lbw=>", "<lora:x:1:lbw=1,9,1>"])
def test_a_tag_that_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(InvalidRequest, match="lbw= takes numbers between commas"):
        take_tags(text)


def test_what_counts_at_all() -> None:
    assert not LoraSpec(name="x", blocks=(0, 0, 0, 0)).active
    assert LoraSpec(name="x", blocks=(0, 0, 0)).active, "the text encoders are not in down, mid, up"
    assert LoraSpec(name="x", blocks=(1, 0, 0, 0), weight=0.5).words_weight == 0.5
    assert not LoraSpec(name="x", blocks=(1, 1, 1, 1), weight=0).active


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return load(MODELS / "shapes")


@pytest.fixture(scope="module")
def root(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("blocks")
    (root / "loras").mkdir()
    save_file(random_lora(pipe, 1), root / "loras" / "both.safetensors")
    save_file({k: one for k, one in random_lora(pipe, 1).items() if "unet" in k}, root / "loras" / "unet.safetensors")
    save_file(adapter(pipe, "loha")[0], root / "loras" / "loha.safetensors")
    return root


@pytest.fixture(scope="module")
def library(root: Path) -> Library:
    return Library((MODELS,), part_roots=(root,))


def test_each_block_counts_as_diffusers_lets_it(
    engine: Any, blobs: Any, library: Library, pipe: Any, root: Path
) -> None:
    run = drawer(engine, library, blobs)
    made = run(**SMALL, loras=[{"name": "unet", "weight": 0.8, "blocks": [0.2, 0, 1]}])
    pipe.load_lora_weights(dict(load_file(root / "loras" / "unet.safetensors")), adapter_name="it")
    pipe.set_adapters(["it"], [{"unet": {"down": 0.16, "mid": 0.0, "up": 0.8}}])
    source = torch.Generator().manual_seed(3)
    bare = pipe(PROMPT, num_inference_steps=3, guidance_scale=2.0, generator=source, output_type="np").images[0]
    pipe.unload_lora_weights()
    assert np.abs(pixels(made) - (bare * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["both", "loha"])
def test_nothing_everywhere_is_the_same_picture_and_all_is_all(
    engine: Any, blobs: Any, library: Library, name: str
) -> None:
    run = drawer(engine, library, blobs)
    plain, whole = run(**SMALL), run(**SMALL, loras=[{"name": name}])
    full = len(library.get("shapes").shape["blocks"].names) + 1
    assert run(**SMALL, loras=[{"name": name, "blocks": [0] * full}]).pictures == plain.pictures
    assert run(**SMALL, loras=[{"name": name, "blocks": [1] * full}]).pictures == whole.pictures != plain.pictures
    assert run(**SMALL, loras=[{"name": name, "blocks": [1, 1, 1]}]).pictures == whole.pictures
    only = [
        run(**SMALL, loras=[{"name": name, "blocks": numbers}]).pictures
        for numbers in ([1, 0, 0], [0, 1, 0], [0, 0, 1])
    ]
    assert len({pictures[0] for pictures in [*only, plain.pictures, whole.pictures]}) == 5
    words = run(**SMALL, loras=[{"name": name, "blocks": [1] + [0] * (full - 1)}])
    assert words.pictures == run(**SMALL, loras=[{"name": name, "weight": 0, "text_encoder_weight": 1}]).pictures
    tagged = run(**SMALL | {"prompt": f"{PROMPT}<lora:{name}:1:lbw=0,1,0>"})
    assert pixels(tagged).tobytes() == pixels(run(**SMALL, loras=[{"name": name, "blocks": [0, 1, 0]}])).tobytes()


def test_numbers_that_do_not_fit_are_told(library: Library) -> None:
    wanted = parse_request(SMALL | {"loras": [{"name": "unet", "blocks": [1] * 17}]})
    with pytest.raises(
        InvalidRequest, match=r"loras\.0\.blocks: 17 block weights do not fit this model, which takes 3 \(down"
    ):
        library.parts_of(library.resolve(wanted, 1)[0])
