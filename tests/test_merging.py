"""Merging: what the new model draws, what is in its files, what is refused, and that nothing is left of what failed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.shapes.product import PRESETS
from benchmarks.shapes.score import load
from studio.__main__ import main
from studio.errors import InvalidRequest, StudioError
from studio.merge_main import attempt
from studio.merging import merge, parse_merge
from studio.store.library import Library
from tests.conftest import MODELS, drawer
from tests.test_adapter_kinds import adapter, pixels
from trainers.scorers.reading import judge

SMALL: dict[str, Any] = {"prompt": "a red circle on a yellow background", "seed": 3, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model twice: as it is, and with other weights."""
    root = tmp_path_factory.mktemp("merging")
    (root / "models" / "loras").mkdir(parents=True)
    shutil.copytree(MODELS / "shapes", root / "checkpoints" / "other")
    for path in (root / "checkpoints" / "other").rglob("*.safetensors"):
        source = torch.Generator().manual_seed(len(path.name))
        state = {
            key: (one + 0.02 * torch.randn(one.shape, generator=source)).to(one.dtype)
            for key, one in load_file(path).items()
        }
        save_file(state, path)
    for kind in ("loha", "dora", "lokr"):
        save_file(adapter(load(MODELS / "shapes"), kind)[0], root / "models" / "loras" / f"{kind}.safetensors")
    return root


@pytest.fixture(scope="module")
def library(root: Path) -> Library:
    return Library((MODELS, root / "checkpoints"), part_roots=(PRESETS, root / "models"))


def made(library: Library, root: Path, **values: Any) -> Path:
    return merge(
        parse_merge(values), library, root / "checkpoints", run=attempt
    )  # the command line's test has the child


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a model by file and name."""
    return {
        f"{path.parent.name}/{key}": one
        for path in sorted(folder.rglob("*.safetensors"))
        for key, one in load_file(path).items()
    }


def test_a_model_with_itself_is_itself_to_the_bit(engine: Any, blobs: Any, library: Library, root: Path) -> None:
    for number, more in enumerate(
        (
            {"models": ["shapes", "shapes"], "ratios": [0.3]},
            {"models": ["shapes", "shapes", "shapes"], "ratios": [0.2, 0.5]},
            {"models": ["other", "shapes", "shapes"], "method": "add-difference", "ratios": [0.7]},
        )
    ):
        out = made(library, root, name=f"same{number}", **more)
        old, new = weights(library.get(more["models"][0]).path), weights(out)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype for name in old)
    run = drawer(engine, library, blobs)
    assert run(**SMALL, model="same0").records[0].model.id == "same0"
    assert pixels(run(**SMALL, model="same0")).tobytes() == pixels(run(**SMALL)).tobytes()
    assert library.get("same0").title == "same0"


def test_sums_and_differences_are_what_they_say(library: Library, root: Path) -> None:
    one, two = weights(MODELS / "shapes"), weights(root / "checkpoints" / "other")
    third = weights(made(library, root, name="third", models=["shapes", "other"], ratios=[0.25], precision="float32"))
    for name in one:
        wanted = 0.75 * one[name].double() + 0.25 * two[name].double()
        assert third[name].dtype == torch.float32
        assert torch.allclose(third[name].double(), wanted, atol=1e-6)
    whole = weights(made(library, root, name="whole", models=["shapes", "other"], ratios=[1]))
    assert all(torch.equal(whole[name], two[name]) for name in one)
    difference = made(
        library, root, name="difference", models=["third", "other", "shapes"], method="add-difference", ratios=[1.5]
    )
    for name, value in weights(difference).items():
        wanted = third[name].double() + 1.5 * (two[name].double() - one[name].double())
        assert torch.allclose(value.double(), wanted, atol=1e-5)
    of_three = weights(
        made(library, root, name="three", models=["shapes", "other", "third"], ratios=[0.5, 0.3], precision="float32")
    )
    for name, value in of_three.items():
        assert torch.allclose(
            value.double(), 0.2 * one[name].double() + 0.5 * two[name].double() + 0.3 * third[name].double(), atol=1e-6
        )


@pytest.mark.parametrize("name", ["red-to-blue", "loha", "lokr", "dora"])
def test_a_model_merged_with_a_lora_draws_what_the_two_draw(
    engine: Any, blobs: Any, library: Library, root: Path, name: str
) -> None:
    made(library, root, name=f"with-{name}", models=["shapes"], loras=[{"name": name}], precision="float32")
    run = drawer(engine, library, blobs)
    together, merged = run(**SMALL, loras=[{"name": name}]), run(**SMALL, model=f"with-{name}")
    assert np.abs(pixels(together) - pixels(merged)).max() <= 1
    assert np.abs(pixels(together) - pixels(run(**SMALL))).max() > 20


def test_what_a_lora_taught_stays_in_half_precision_with_weights_and_blocks(
    engine: Any, blobs: Any, library: Library, root: Path
) -> None:
    made(library, root, name="bluer", models=["shapes"], loras=[{"name": "red-to-blue"}])
    values = SMALL | {"num_inference_steps": 12}
    run = drawer(engine, library, blobs)
    assert judge(pixels(run(**values, model="bluer")).astype(np.uint8)).things[0].colour == "blue"
    stack = [
        {"name": "red-to-blue", "weight": 0.6, "blocks": [1, 0, 0.5]},
        {"name": "loha", "weight": -0.3, "text_encoder_weight": 0.2},
    ]
    made(library, root, name="both", models=["shapes"], loras=stack, precision="float32")
    assert np.abs(pixels(run(**SMALL, loras=stack)) - pixels(run(**SMALL, model="both"))).max() <= 1


def test_where_it_comes_from_is_in_its_files(library: Library, root: Path) -> None:
    out = made(
        library, root, name="told", models=["shapes", "other"], ratios=[0.25], loras=[{"name": "loha", "weight": 0.5}]
    )
    file = next(out.glob("unet/*.safetensors"))
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["studio.merge"])
    assert [(one["name"], len(one["sha256"])) for one in facts["models"]] == [("shapes", 64), ("other", 64)]
    assert (facts["method"], facts["ratios"], facts["loras"][0]["weight"]) == ("weighted-sum", [0.25], 0.5)
    assert facts["models"][0]["sha256"] == library.reference(library.get("shapes")).sha256


def sgm(name: str, layers: int = 1) -> str:
    """Name a tensor of the embedded model's UNet as Stable Diffusion's first code does."""
    parts = name.split(".")
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    outer = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
    }
    for ours, theirs in outer.items():
        if name.startswith(ours):
            return name.replace(ours, theirs)
    if parts[0] == "mid_block":
        place = "middle_block.1" if parts[1] == "attentions" else f"middle_block.{2 * int(parts[2])}"
        rest = parts[3:]
    else:
        level, kind, number = int(parts[1]), parts[2], int(parts[3])
        if parts[0] == "down_blocks":
            block = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else number)
            place, rest = f"input_blocks.{block}.{int(kind == 'attentions')}", parts[4:]
            rest = ["op", *rest[1:]] if kind == "downsamplers" else rest
        else:
            block = level * (layers + 1) + (layers if kind == "upsamplers" else number)
            attends = level < 2
            place, rest = (
                f"output_blocks.{block}.{(2 if attends else 1) if kind == 'upsamplers' else int(kind == 'attentions')}",
                parts[4:],
            )
    if rest[0] in inner:
        rest = [inner[rest[0]], *rest[1:]]
    return f"{place}.{'.'.join(rest)}"


def test_single_files_and_a_lora_into_one(
    library: Library, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint as A1111 has it, of the embedded model's weights; the tensors are those of the folder's merge."""
    own = weights(MODELS / "shapes")
    names = {name: f"model.diffusion_model.{sgm(name[5:])}" for name in own if name.startswith("unet/")}
    names |= {
        name: f"cond_stage_model.transformer.text_model.{name[13:].removeprefix('text_model.')}"
        for name in own
        if name.startswith("text_encoder/")
    }
    names |= {name: f"first_stage_model.{name[4:]}" for name in own if name.startswith("vae/")}
    for file, state in (("one", own), ("two", weights(root / "checkpoints" / "other"))):
        save_file({theirs: state[ours] for ours, theirs in names.items()}, tmp_path / f"{file}.safetensors")
    lora = root / "models" / "loras" / "loha.safetensors"
    command = [
        "--data-dir",
        str(tmp_path / "data"),
        "merge",
        str(tmp_path / "one.safetensors"),
        str(tmp_path / "two.safetensors"),
    ]
    assert main([*command, "--ratio", "0.5", "--lora", f"{lora}:0.5", "--name", "single", "--json"]) == 0
    out = load_file(json.loads(capsys.readouterr().out)["path"])
    folder = weights(
        made(library, root, name="folder", models=["shapes", "other"], loras=[{"name": "loha", "weight": 0.5}])
    )
    assert out.keys() == set(names.values())
    assert all(torch.equal(out[names[name]], folder[name]) for name in names)
    assert not torch.equal(
        folder["unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"],
        own["unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"],
    )


def test_open_clip_s_layers_are_found_in_their_rows() -> None:
    from studio.engine.single_names import single_names

    block = "conditioner.embedders.1.model.transformer.resblocks.3."
    places = single_names(
        {f"{block}attn.in_proj_weight": (12, 4), f"{block}mlp.c_fc.weight": (16, 4), f"{block}ln_1.weight": (4,)}
    )
    layer = "text_model.encoder.layers.3."
    assert places[("text_encoder_2", f"{layer}self_attn.k_proj")] == (f"{block}attn.in_proj_weight", (4, 8))
    assert places[("text_encoder_2", f"{layer}mlp.fc1")] == (f"{block}mlp.c_fc.weight", None)
    assert len(places) == 4


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"models": ["shapes"]}, "models has one entry and loras none"),
        ({"models": ["shapes", "other"], "method": "add-difference"}, "add-difference takes three"),
        ({"models": ["shapes", "other", "other"]}, "ratios has 1 numbers; weighted-sum of 3 models takes 2"),
        (
            {"models": ["shapes", "other"], "ratios": [1.5]},
            r"ratios=\[1\.5\] must be at least 0 and together at most 1",
        ),
        *(
            ({"models": ["shapes", "other"], "name": name}, "must be a plain name without slashes")
            for name in ("../x", "nul.txt", "CON", "x.", "-x", "a\nb", "\u202ex")
        ),
        ({"models": ["shapes", "other"], "name": "other"}, "name='other' is taken by"),
        ({"models": ["shapes", "zebra"]}, "models.1='zebra' is not in the library; there is: shapes"),
        ({"models": ["shapes"], "loras": [{"name": "zebra"}]}, r"loras\.0\.name='zebra' is no LoRA"),
        (
            {"models": ["shapes"], "loras": [{"name": "loha", "blocks": [1, 2]}]},
            r"loras\.0\.blocks: 2 block weights do not fit",
        ),
        ({"models": ["shapes", "other"], "typo": 1}, "typo"),
    ],
)
def test_wrong_values_are_one_sentence(library: Library, root: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as caught:
        made(library, root, **{"name": "new"} | values)
    assert "\n" not in str(caught.value)
    assert not (root / "checkpoints" / "new").exists()


def test_models_that_do_not_go_together(library: Library, tiny_library: Library, root: Path) -> None:
    every = Library((*library.folders, *tiny_library.folders))
    with pytest.raises(
        InvalidRequest,
        match=r"shapes is Stable Diffusion 1.* and sdxl is Stable Diffusion XL; merge models of one family",
    ):
        made(every, root, name="new", models=["shapes", "sdxl"])

    def broken(name: str, change: Any) -> None:
        folder = root / "checkpoints" / name
        shutil.copytree(MODELS / "shapes", folder)
        path = folder / "text_encoder" / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)

    broken("lacking", lambda state: state.pop(min(state)))
    broken("nan", lambda state: state[min(state)].view(-1)[:1].fill_(float("nan")))
    broken("wide", lambda state: state.update({min(state): torch.zeros(3, 3)}))
    for name, sentence in (
        ("lacking", "lacking lacks 1 of the .* weights of shapes, such as text_encoder/"),
        ("nan", "of nan holds NaN or infinite numbers; copy that model again"),
        ("wide", r"in shapes and \(3, 3\) in wide"),
    ):
        with pytest.raises((InvalidRequest, StudioError), match=sentence):
            made(library, root, name="new", models=["shapes", name])
        assert not [path for path in (root / "checkpoints").iterdir() if path.name.startswith((".part", "new"))]


def test_numbers_too_large_for_half_precision_are_told(library: Library, root: Path) -> None:
    state = load_file(root / "models" / "loras" / "loha.safetensors")
    huge = {key: one * 400 if "hada" in key else one for key, one in state.items()}
    save_file(huge, root / "models" / "loras" / "huge.safetensors")
    with pytest.raises(InvalidRequest, match="too large for float16; merge with precision float32"):
        made(library, root, name="new", models=["shapes"], loras=[{"name": "huge"}])
