"""LoRA: what the picture shows, the layouts that people have, weights, and that the model is afterwards what it was before."""

import hashlib
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.shapes.product import PRESETS
from benchmarks.shapes.recolour import recolouring
from benchmarks.shapes.render import render
from benchmarks.shapes.score import load
from benchmarks.shapes.world import Scene, Thing
from studio.errors import InvalidRequest, ModelError, StudioError
from studio.loras import LoraSpec, tag_of, take_tags
from studio.spec import parse_request
from studio.store.blobs import BlobStore, encode
from studio.store.library import Library
from tests.conftest import MODELS, Made, drawer
from tests.conftest import pixels as decoded
from trainers.scorers.reading import judge

PROMPT = "a red circle on a yellow background"
SMALL: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 4}
Draw = Callable[..., Any]


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return load(MODELS / "shapes")


def random_lora(pipe: StableDiffusionPipeline, seed: int, rank: int = 4) -> dict[str, torch.Tensor]:
    """Make weights for the UNet's attention and the text encoder, in PEFT's keys."""
    source, made = torch.Generator().manual_seed(seed), {}
    for network in ("unet", "text_encoder"):
        for name, module in getattr(pipe, network).named_modules():
            if name.endswith(("to_q", "to_k", "to_v", "to_out.0", "q_proj", "v_proj")):
                rows, columns = module.weight.shape
                made[f"{network}.{name}.lora_A.weight"] = 0.2 * torch.randn(rank, columns, generator=source)
                made[f"{network}.{name}.lora_B.weight"] = 0.2 * torch.randn(rows, rank, generator=source)
    return made


def oldest(key: str) -> str:
    """Name a key as diffusers did when LoRA were attention processors."""
    name = re.sub(r"\.to_(q|k|v|out)(?:\.0)?\.lora_([AB])", r".processor.to_\1_lora.\2", key)
    return name.replace("_lora.A", "_lora.down").replace("_lora.B", "_lora.up")


def to_kohya(state: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """Write a LoRA as kohya's scripts do, which know the text encoder as it was before transformers 5.6."""
    made = {}
    for key, tensor in state.items():
        network, _, rest = key.partition(".")
        name, end = (
            (rest.removesuffix(".lora_A.weight"), "lora_down")
            if "lora_A" in rest
            else (rest.removesuffix(".lora_B.weight"), "lora_up")
        )
        prefix = "lora_unet_" if network == "unet" else "lora_te_text_model_"
        made[f"{prefix}{name.replace('.', '_')}.{end}.weight"] = tensor
        made[f"{prefix}{name.replace('.', '_')}.alpha"] = torch.tensor(alpha)
    return made


@pytest.fixture(scope="module")
def folder(pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put LoRA beside the embedded model, and some that cannot be used."""
    root = tmp_path_factory.mktemp("root")
    loras = root / "loras"
    (loras / "style").mkdir(parents=True)
    save_file(recolouring(pipe, "red", "blue"), loras / "bluer.safetensors")
    save_file(recolouring(pipe, "yellow", "green"), loras / "style" / "greener.safetensors")
    both = random_lora(pipe, 1)
    save_file(both, loras / "both.safetensors")
    save_file(to_kohya(both, 4.0), loras / "kohya.safetensors")
    save_file(to_kohya(both, 2.0), loras / "half.safetensors")
    save_file(
        {
            key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): one
            for key, one in both.items()
            if "unet" in key
        },
        loras / "old.safetensors",
    )
    save_file({oldest(key): one for key, one in both.items() if "unet" in key}, loras / "oldest.safetensors")
    default = {"lora_A": "lora_A.default", "lora_B": "lora_B.default"}
    save_file(
        {re.sub("lora_[AB]", lambda found: default[found[0]], key): one for key, one in both.items() if "unet" in key},
        loras / "default.safetensors",
    )
    save_file(
        {key.removeprefix("unet."): one for key, one in both.items() if "unet" in key}, loras / "peft.safetensors"
    )
    save_file(
        {f"base_model.model.{key.removeprefix('unet.')}": one for key, one in both.items() if "unet" in key},
        loras / "peft2.safetensors",
    )
    save_file({key: one for key, one in both.items() if "unet" in key}, loras / "unet.safetensors")
    wide = {
        key: torch.zeros(4, 768) if "attn2.to_k.lora_A" in key or "attn2.to_v.lora_A" in key else one
        for key, one in both.items()
    }
    save_file(wide, loras / "sd15.safetensors")
    save_file(
        {key.replace("attn", "attention"): one for key, one in both.items() if "unet" in key},
        loras / "stranger.safetensors",
    )
    sizes = {key: torch.zeros(4, 99) if "attn1.to_q.lora_A" in key else one for key, one in both.items()}
    save_file(sizes, loras / "sizes.safetensors")
    save_file(
        both | {next(iter(both)): torch.full_like(next(iter(both.values())), float("nan"))}, loras / "nan.safetensors"
    )
    save_file(
        {key.replace(".lora_A.weight", ".oft_blocks"): one for key, one in both.items()}, loras / "oft.safetensors"
    )
    save_file({"weight": torch.zeros(3)}, loras / "nothing.safetensors")
    torch.save({"x": torch.zeros(2)}, loras / "pickle.pt")
    (loras / "cut.safetensors").write_bytes((loras / "both.safetensors").read_bytes()[:-100])
    return root


@pytest.fixture(scope="module")
def draw(engine: Any, blobs: BlobStore, folder: Path) -> Draw:
    return drawer(engine, Library((MODELS,), part_roots=(folder,)), blobs)


def stack(*entries: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "weight": weight} for name, weight in entries]


def pixels(made: Made) -> np.ndarray:
    """Return the only picture that was made, (H, W, 3) uint8."""
    (png,) = made.pictures
    return decoded(png)


def weights_hash(network: Any) -> str:
    """Hash a network's own weights, whatever is around them."""
    digest = hashlib.sha256()
    for name, tensor in sorted((name.replace(".base_layer", ""), one) for name, one in network.state_dict().items()):
        if "lora" not in name:
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_the_picture_shows_what_a_lora_taught(draw: Draw) -> None:
    values = SMALL | {"num_inference_steps": 12}
    for seed in (3, 4, 5):
        plain = judge(pixels(draw(**values | {"seed": seed})))
        taught = judge(pixels(draw(**values | {"seed": seed}, loras=stack(("bluer", 1.0)))))
        assert (plain.things[0].colour, plain.background) == ("red", "yellow")
        assert (taught.things[0].colour, taught.background) == ("blue", "yellow")
    two = judge(pixels(draw(**values, loras=stack(("bluer", 1.0), ("greener", 1.0)))))
    assert two.things[0].colour == "blue"


def test_a_weight_of_nothing_is_the_same_picture_and_a_half_lies_between(draw: Draw) -> None:
    plain = draw(**SMALL)
    assert draw(**SMALL, loras=stack(("bluer", 0.0))).pictures == plain.pictures
    half, whole = (pixels(draw(**SMALL, loras=stack(("bluer", weight)))).astype(float) for weight in (0.5, 1.0))
    none = pixels(plain).astype(float)
    assert 0 < np.abs(half - none).mean() < np.abs(whole - none).mean()
    assert draw(**SMALL).pictures == plain.pictures


def test_the_second_pass_of_a_hires_fix_has_them_too(draw: Draw) -> None:
    """It starts almost from noise: without the LoRA it would draw a red circle again."""
    values = SMALL | {"num_inference_steps": 12, "hires_scale": 1.5, "hires_strength": 0.95}
    made = judge(pixels(draw(**values, loras=stack(("bluer", 1.0)))))
    assert (made.things[0].colour, made.background) == ("blue", "yellow")


def test_a_stack_draws_as_diffusers_does(draw: Draw, pipe: StableDiffusionPipeline, folder: Path) -> None:
    both = {"name": "both", "weight": 0.4, "text_encoder_weight": 0.2}
    made = draw(**SMALL, loras=[*stack(("unet", 0.7), ("bluer", -0.5)), both])
    for name in ("unet", "bluer", "both"):
        pipe.load_lora_weights(dict(load_file(folder / "loras" / f"{name}.safetensors")), adapter_name=name)
    pipe.set_adapters(["unet", "bluer", "both"], [0.7, -0.5, {"unet": 0.4, "text_encoder": 0.2}])
    bare = pipe(
        PROMPT, num_inference_steps=4, guidance_scale=2.0, generator=torch.Generator().manual_seed(3), output_type="np"
    ).images[0]
    pipe.unload_lora_weights()
    assert np.abs(pixels(made).astype(int) - (bare * 255).round().astype(int)).max() <= 1


def test_every_layout_is_the_same_lora(draw: Draw) -> None:
    """kohya's keys with alpha, PEFT's, diffusers' old and new ones."""
    both, unet = draw(**SMALL, loras=stack(("both", 0.5))), draw(**SMALL, loras=stack(("unet", 0.5)))
    assert both.pictures != unet.pictures
    assert draw(**SMALL, loras=stack(("kohya", 0.5))).pictures == both.pictures
    for name in ("old", "oldest", "default", "peft", "peft2"):
        assert draw(**SMALL, loras=stack((name, 0.5))).pictures == unet.pictures, name
    half = pixels(draw(**SMALL, loras=stack(("half", 1.0)))).astype(int)  # alpha is half of the rank
    assert np.abs(half - pixels(both)).max() <= 1


def test_the_prompt_names_loras_and_they_are_kept_apart_from_it(draw: Draw) -> None:
    made = draw(**SMALL | {"prompt": f"{PROMPT} <lora:bluer:0.8>"})
    request = made.records[0].request
    assert (request.prompt, request.loras) == (PROMPT, (LoraSpec(name="bluer", weight=0.8),))
    assert pixels(made).tobytes() == pixels(draw(**SMALL, loras=stack(("bluer", 0.8)))).tobytes()
    below = draw(**SMALL | {"prompt": f"<lora:greener:1>{PROMPT}"}).records[0]
    assert (below.request.loras[0].name, below.parts[0].id) == ("style/greener", "style/greener")


@pytest.mark.parametrize(
    ("text", "prompt", "specs"),
    [
        ("a cat", "a cat", []),
        ("a <lora:x> cat", "a cat", [("x", 1.0, None)]),
        ("<lora:x:0.5> a cat <lora:y:-1>", "a cat", [("x", 0.5, None), ("y", -1.0, None)]),
        ("a cat<lora:x y.2:0.5:1>", "a cat", [("x y.2", 1.0, 0.5)]),
        ("<lora:x:te=0:unet=.7>", "", [("x", 0.7, 0.0)]),
        ("<lyco:x:1>", "", [("x", 1.0, None)]),
        ("a < b > c <hypernet:x:1>", "a < b > c <hypernet:x:1>", []),
    ],
)
def test_tags(text: str, prompt: str, specs: list[tuple[str, float, float | None]]) -> None:
    found = take_tags(text)
    assert found == (prompt, [LoraSpec(name=n, weight=w, text_encoder_weight=t) for n, w, t in specs])
    assert take_tags(" ".join(map(tag_of, found[1])))[1] == found[1]


@pytest.mark.parametrize(
    "text", ["<lora:>", "<lora::1>", "<lora:x:much>", "<lora:x:9>", "<lora:x:1:1:1>", "<lora:x:dyn=1>"]
)
def test_a_tag_that_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"must be <lora:NAME:WEIGHT> with a weight from -4 to 4"):
        take_tags(text)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("zebra", r"loras\.0\.name='zebra' is no LoRA in .*; there is: .*bluer"),
        ("sd15", r"cross_attention_dim is 768 \(Stable Diffusion 1\.x\) there and 128 in this model"),
        ("oft", "it is an OFT, which Studio does not apply; use a LoRA"),
        ("nothing", "it has no LoRA weights"),
        ("cut", r"cut\.safetensors is cut off"),
        ("pickle", "is a pickle, which can run code; make a safe copy"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_loaded(draw: Draw, name: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        draw(**SMALL, loras=stack((name, 1.0)))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("stranger", "fits nothing in this model: none of its"),
        ("sizes", r"was trained for another model: unet\..*to_q is \(.*99\) there"),
        ("nan", r"what no weight is \(NaN, infinite or whole numbers, in unet"),
    ],
)
def test_what_does_not_fit_leaves_the_model_as_it_was(draw: Draw, engine: Any, name: str, sentence: str) -> None:
    plain = draw(**SMALL)
    model = next(reversed(engine.pipelines._loaded.values())).base
    before = [weights_hash(network) for network in (model.unet, model.text_encoder)]
    with pytest.raises(ModelError, match=sentence):
        draw(**SMALL, loras=stack(("bluer", 1.0), (name, 1.0)))
    assert [weights_hash(network) for network in (model.unet, model.text_encoder)] == before
    assert draw(**SMALL).pictures == plain.pictures


def test_an_interrupted_job_leaves_no_lora_behind(draw: Draw) -> None:
    plain = draw(**SMALL)
    steps = iter(range(100))
    stopped = draw(**SMALL, loras=stack(("both", 1.0)), stop=lambda made: "interrupt" if next(steps) > 1 else "")
    assert stopped.pictures == []
    assert draw(**SMALL).pictures == plain.pictures


def test_loras_that_are_not_used_any_more_are_let_go(draw: Draw, engine: Any, folder: Path) -> None:
    names = [f"copy{number}" for number in range(10)]
    for number, name in enumerate(names):
        state = {key: one * (1 + number / 10) for key, one in load_file(folder / "loras" / "bluer.safetensors").items()}
        save_file(state, folder / "loras" / f"{name}.safetensors")
        draw(**SMALL | {"num_inference_steps": 1}, loras=stack((name, 1.0)))
    model = next(reversed(engine.pipelines._loaded.values())).base
    assert len(model.get_list_adapters()["unet"]) <= 8
    assert draw(**SMALL, loras=stack(("bluer", 1.0))).pictures == draw(**SMALL, loras=stack(("bluer", 1.0))).pictures


def test_a_stack_is_limited_and_has_each_once() -> None:
    with pytest.raises(InvalidRequest, match="loras has 'x' twice"):
        parse_request({"loras": stack(("x", 1.0), ("x", 0.5))})
    with pytest.raises(InvalidRequest, match="loras has 17 entries; at most 16"):
        parse_request({"loras": stack(*((f"x{i}", 1.0) for i in range(17)))})
    with pytest.raises(InvalidRequest, match="weight"):
        parse_request({"loras": stack(("x", 5.0))})


TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj", "q_proj", "v_proj")


def family_lora(pipe: Any) -> dict[str, torch.Tensor]:
    """Make weights for the denoiser and the CLIP text encoders of any pipeline, in PEFT's keys."""
    source, made = torch.Generator().manual_seed(1), {}
    for network in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        module = getattr(pipe, network, None)
        clip = network.startswith("text_encoder") and "CLIP" in type(module).__name__
        for name, layer in module.named_modules() if module is not None and (clip or "text" not in network) else ():
            if name.endswith(TARGETS):
                rows, columns = layer.weight.shape
                made[f"{network}.{name}.lora_A.weight"] = 0.3 * torch.randn(2, columns, generator=source)
                made[f"{network}.{name}.lora_B.weight"] = 0.3 * torch.randn(rows, 2, generator=source)
    return made


@pytest.fixture(scope="module")
def families(tiny_library: Library, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The tiny models, and a LoRA for each."""
    root = tmp_path_factory.mktemp("families")
    (root / "loras").mkdir()
    for name in ("sdxl", "sd3", "flux"):
        pipe = DiffusionPipeline.from_pretrained(tiny_library.get(name).path)
        save_file(family_lora(pipe), root / "loras" / f"for-{name}.safetensors")
    return Library(tiny_library.folders, part_roots=(root,))


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_each_family_takes_its_own_loras(engine: Any, blobs: BlobStore, families: Library, name: str) -> None:
    draw = drawer(engine, families, blobs)
    values: dict[str, Any] = {"model": name, "prompt": PROMPT, "seed": 1, "num_inference_steps": 3}
    values |= {"width": 64, "height": 64, "guidance_scale": 3.0}
    plain = draw(**values)
    made = draw(**values, loras=stack((f"for-{name}", 0.8)))
    assert draw(**values).pictures == draw(**values, loras=stack((f"for-{name}", 0.0))).pictures == plain.pictures
    bare = DiffusionPipeline.from_pretrained(families.get(name).path, dtype=torch.float32)
    state = load_file(families.parts.get("lora", f"for-{name}", "lora").path)
    bare.load_lora_weights(state, adapter_name="it")
    bare.set_adapters(["it"], [0.8])
    record = made.records[0]
    own = bare(
        PROMPT, width=64, height=64, num_inference_steps=3, guidance_scale=3.0, output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images[0]  # fmt: skip
    assert record.parts[0].id == f"for-{name}"
    assert made.pictures != plain.pictures
    assert np.abs(pixels(made).astype(int) - (own * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_another_family_s_lora_is_refused_by_name(families: Library, name: str) -> None:
    alike = {"flux": "sd3"}.get(name)  # the tiny ones are 32 wide, both; the real ones 1536 or 2432, and 3072
    for other in {"sdxl", "sd3", "flux"} - {name, alike}:
        wanted = parse_request({"model": name, "width": 64, "height": 64, "loras": stack((f"for-{other}", 1.0))})
        with pytest.raises(
            InvalidRequest, match=rf"for-{other}' does not fit model='{name}': it was made for another family"
        ):
            families.parts_of(families.resolve(wanted, 1)[0])


def test_a_file_that_lies_twice_and_a_name_that_two_have(draw: Draw, folder: Path) -> None:
    for place in ("twin", "other"):
        (folder / "loras" / place).mkdir(exist_ok=True)
        (folder / "loras" / place / "same.safetensors").write_bytes(
            (folder / "loras" / "bluer.safetensors").read_bytes()
        )
    with pytest.raises(InvalidRequest, match="twin/same' and 'other/same' are the same file; give it once"):
        draw(**SMALL, loras=stack(("other/same", 1.0), ("twin/same", 0.5)))
    with pytest.raises(InvalidRequest, match=r"could be (twin|other)/same or (twin|other)/same; write which"):
        draw(**SMALL, loras=stack(("same", 1.0)))


def test_a_lora_goes_with_every_unit(engine: Any, blobs: BlobStore) -> None:
    """The word becomes blue, the place is the control picture's."""
    run = drawer(engine, Library((MODELS,), part_roots=(PRESETS,)), blobs)
    scene = Scene((Thing("white", "circle", 0.3, 0.3, 0.2),), "black")
    control = encode(Image.fromarray(render(scene, random.Random(1))))
    for field, model in (("controls", "shapes-canny"), ("t2i_adapters", "shapes-canny-t2i")):
        unit = {"model": model, "image": control, "preprocessor": "canny"}
        values = SMALL | {"num_inference_steps": 12, "loras": stack(("red-to-blue", 1.0)), field: [unit]}
        seen = judge(pixels(run(**values)))
        assert (seen.things[0].colour, seen.background) == ("blue", "yellow")
        assert abs(seen.things[0].x - 0.3) < 0.08
        assert abs(seen.things[0].y - 0.3) < 0.08


@pytest.mark.parametrize(
    "told",
    [
        "[1]",
        "no json",
        json.dumps({"unet.alpha_pattern": "x"}),
        json.dumps({"unet.lora_alpha": "much"}),
    ],
)
def test_metadata_that_no_tool_writes_is_told(
    draw: Draw, folder: Path, pipe: StableDiffusionPipeline, told: str
) -> None:
    path = folder / "loras" / f"odd-{hashlib.sha256(told.encode()).hexdigest()[:8]}.safetensors"
    save_file(random_lora(pipe, 9), path, metadata={"lora_adapter_metadata": told})
    with pytest.raises(ModelError, match="could not be read"):
        draw(**SMALL, loras=stack((path.stem, 1.0)))


def test_diffusers_metadata_says_the_scale(draw: Draw, folder: Path, pipe: StableDiffusionPipeline) -> None:
    """Rank 4 and alpha 2 of the denoiser, of which one module has alpha 8; the text encoder's is not told: its rank."""
    state = random_lora(pipe, 1)
    told = {"unet.lora_alpha": 2, "unet.r": 4, "unet.alpha_pattern": {"mid_block.attentions.0.proj_out": 8}}
    save_file(state, folder / "loras" / "alpha.safetensors", metadata={"lora_adapter_metadata": json.dumps(told)})
    halves = {key: one / 2 if "lora_B" in key and key.startswith("unet") else one for key, one in state.items()}
    save_file(halves, folder / "loras" / "halves.safetensors")
    assert draw(**SMALL, loras=stack(("alpha", 0.8))).pictures == draw(**SMALL, loras=stack(("halves", 0.8))).pictures


def test_weights_without_a_place_are_told(draw: Draw, folder: Path, pipe: StableDiffusionPipeline) -> None:
    more = {"unet.nowhere.lora_A.weight": torch.zeros(2, 3), "unet.nowhere.lora_B.weight": torch.zeros(3, 2)}
    save_file(random_lora(pipe, 1) | more, folder / "loras" / "more.safetensors")
    made = draw(**SMALL, loras=stack(("more", 0.5)))
    assert (
        made.records[0]
        .notes[0]
        .startswith("2 of 122 weights of the LoRA more have no place here, such as unet.nowhere")
    )
    assert made.pictures == draw(**SMALL, loras=stack(("both", 0.5))).pictures


def damaged(state: dict[str, torch.Tensor], kind: str, seed: int, path: Path) -> None:
    """Write a LoRA that is wrong in one way."""
    rng = random.Random(seed)
    key = rng.choice([key for key in state if "lora_A" in key])
    one, made = state[key], dict(state)
    if kind == "rank":
        made[key] = torch.cat([one, one])
    elif kind == "width":
        made[key] = one[:, :-1].clone()
    elif kind == "flat":
        made[key] = one.flatten()
    elif kind == "number":
        made[key] = one * torch.where(torch.rand(one.shape) < 0.1, rng.choice((float("nan"), float("inf"))), 1.0)
    elif kind == "flat B":
        made[key.replace("lora_A", "lora_B")] = one.flatten().clone()
    elif kind == "no rank":
        made[key], made[key.replace("lora_A", "lora_B")] = (
            one[:0].clone(),
            made[key.replace("lora_A", "lora_B")][:, :0].clone(),
        )
    elif kind == "integers":
        made[key] = one.int()
    elif kind == "strangers":
        made = {name.replace("attn", f"tune{seed}").replace("self_", "other_"): value for name, value in state.items()}
    elif kind == "halves":
        made = {name: value for name, value in state.items() if "lora_A" in name}
    save_file(made, path)
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: rng.randrange(len(data) - 1)]
    elif kind == "bit":  # in the length of the header, or its first brackets
        data[rng.randrange(10)] ^= 1 << rng.randrange(4, 8)
    elif kind == "pickle":
        buffer = io.BytesIO()
        torch.save({"x": torch.zeros(seed + 1)}, buffer)
        data = bytearray(buffer.getvalue())
    elif kind == "huge header":
        data[:8] = (2**40 + seed).to_bytes(8, "little")
    path.write_bytes(bytes(data))


DAMAGE = (
    "flat B",
    "no rank",
    "integers",
    "rank",
    "width",
    "flat",
    "number",
    "strangers",
    "halves",
    "cut",
    "bit",
    "pickle",
    "huge header",
)


@pytest.mark.parametrize("kind", DAMAGE)
def test_78_damaged_files_are_sentences_and_the_model_is_unharmed(
    draw: Draw, engine: Any, folder: Path, pipe: StableDiffusionPipeline, kind: str
) -> None:
    values = SMALL | {"num_inference_steps": 1}
    plain = draw(**values)
    model = next(reversed(engine.pipelines._loaded.values())).base
    before = [weights_hash(network) for network in (model.unet, model.text_encoder)]
    for seed in range(6):
        name = f"bad-{kind.replace(' ', '-')}-{seed}"
        damaged(random_lora(pipe, seed), kind, seed, folder / "loras" / f"{name}.safetensors")
        with pytest.raises(StudioError) as caught:
            draw(**values, loras=stack((name, 1.0)))
        assert name in str(caught.value)
        assert "; " in str(caught.value), "what to do about it"
    assert [weights_hash(network) for network in (model.unet, model.text_encoder)] == before
    assert draw(**values).pictures == plain.pictures
