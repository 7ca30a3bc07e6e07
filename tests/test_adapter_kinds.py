"""LoHa, LoKr, DoRA and their kin: the picture is that of the dense weights, worked out here in another way."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import save_file

from benchmarks.shapes.score import load
from studio.errors import InvalidRequest, ModelError
from studio.loras import kind_of, rank_of, trained_for
from studio.store.blobs import BlobStore
from studio.store.library import Library
from studio.store.lora_facts import read_lora_facts
from tests.conftest import MODELS, Made, drawer
from tests.conftest import pixels as decoded
from tests.test_loras import random_lora, to_kohya

PROMPT = "a red circle on a yellow background"
SMALL: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 3}
RANK = 3
Parts = dict[str, np.ndarray]
Draw = Callable[..., Made]


def some(rng: np.random.Generator, *shape: int, size: float = 0.5) -> np.ndarray:
    return (size * rng.standard_normal(shape)).astype(np.float32)


def loha(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
    """LoHa with alpha 2: the product of two low-rank matrices, number by number."""
    out, inner = shape[0], int(np.prod(shape[1:]))
    parts = {f"hada_w{i}_a": some(rng, out, RANK) for i in (1, 2)} | {
        f"hada_w{i}_b": some(rng, RANK, inner) for i in (1, 2)
    }
    delta = np.empty((out, inner))
    for row in range(out):
        delta[row] = (parts["hada_w1_a"][row] @ parts["hada_w1_b"]) * (parts["hada_w2_a"][row] @ parts["hada_w2_b"])
    return parts | {"alpha": np.float32(2.0)}, (2 / RANK * delta).reshape(shape)


def tucker_of(core: np.ndarray, second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Put a core (R, R, kh, kw) between (R, in) and (R, out)."""
    return np.tensordot(first.T, np.tensordot(second.T, core, (1, 1)), (1, 1)).reshape(
        first.shape[1], second.shape[1], *core.shape[2:]
    )


def loha_tucker(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
    if len(shape) == 2:
        return loha(rng, shape)
    parts: Parts = {}
    halves = []
    for i in (1, 2):
        parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"] = some(rng, RANK, shape[0]), some(rng, RANK, shape[1])
        parts[f"hada_t{i}"] = some(rng, RANK, RANK, *shape[2:])
        halves.append(tucker_of(parts[f"hada_t{i}"], parts[f"hada_w{i}_b"], parts[f"hada_w{i}_a"]))
    return parts, halves[0] * halves[1]


def lokr(rng: np.random.Generator, shape: tuple[int, ...], *, full: bool = False) -> tuple[Parts, np.ndarray]:
    """LoKr: a Kronecker product, whose larger factor is of low rank (alpha 2) or whole (alpha counts not)."""
    small = (4, 2) if shape[1] % 2 == 0 else (4, 1)
    large = (shape[0] // small[0], shape[1] // small[1], *shape[2:])
    parts = {"lokr_w1": some(rng, *small), "alpha": np.float32(2.0)}
    if full:
        parts["lokr_w2"] = some(rng, *large, size=0.2)
        second, scale = parts["lokr_w2"], 1.0
    else:
        parts["lokr_w2_a"], parts["lokr_w2_b"] = some(rng, large[0], RANK), some(rng, RANK, int(np.prod(large[1:])))
        second, scale = (parts["lokr_w2_a"] @ parts["lokr_w2_b"]).reshape(large), 2 / RANK
    delta = np.empty(shape)
    for row in range(small[0]):
        for column in range(small[1]):
            place = np.s_[row * large[0] : (row + 1) * large[0], column * large[1] : (column + 1) * large[1]]
            delta[place] = scale * parts["lokr_w1"][row, column] * second
    return parts, delta


def locon(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
    """A LoRA, with a core between its two matrices where the layer is a convolution."""
    kernel = shape[2:]
    parts = {
        "lora_down.weight": some(rng, RANK, shape[1], *[1] * len(kernel)),
        "lora_up.weight": some(rng, shape[0], RANK, *[1] * len(kernel)),
    }
    down, up = (parts[f"lora_{side}.weight"].reshape(parts[f"lora_{side}.weight"].shape[:2]) for side in ("down", "up"))
    if not kernel:
        return parts, up @ down
    parts["lora_mid.weight"] = some(rng, RANK, RANK, *kernel, size=0.2)
    return parts, tucker_of(parts["lora_mid.weight"], down, up.T)


def ia3(rng: np.random.Generator, shape: tuple[int, ...], *, inputs: bool = False) -> tuple[Parts, None]:
    factor = some(rng, shape[1] if inputs else shape[0])
    return {"weight": factor if inputs else factor[:, None], "on_input": np.array(inputs)}, None


def difference(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
    delta = some(rng, *shape, size=0.1)
    return {"diff": delta, "diff_b": some(rng, shape[0], size=0.1)}, delta


def dora(rng: np.random.Generator, shape: tuple[int, ...], *, inputs: bool = False) -> tuple[Parts, np.ndarray]:
    down, up = some(rng, RANK, *shape[1:]), some(rng, shape[0], RANK, *[1] * (len(shape) - 2))
    scale = 1 + some(rng, *([1, shape[1]] if inputs else [shape[0], 1]), *[1] * (len(shape) - 2))
    delta = np.tensordot(up.reshape(shape[0], RANK), down, (1, 0))
    return {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": np.abs(scale)}, delta


def loha_dora(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
    parts, delta = loha(rng, shape)
    return parts | {"dora_scale": dora(rng, shape)[0]["dora_scale"]}, delta


KINDS: dict[str, tuple[str, Callable[..., tuple[Parts, Any]]]] = {
    "loha": ("LoHa", loha),
    "loha-tucker": ("LoHa", loha_tucker),
    "loha-dora": ("LoHa", loha_dora),
    "lokr": ("LoKr", lokr),
    "lokr-full": ("LoKr", lambda rng, shape: lokr(rng, shape, full=True)),
    "dora": ("DoRA", dora),
    "dora-inputs": ("DoRA", lambda rng, shape: dora(rng, shape, inputs=True)),
    "locon": ("LoCon", locon),
    "ia3": ("IA3", ia3),
    "ia3-inputs": ("IA3", lambda rng, shape: ia3(rng, shape, inputs=True)),
    "full": ("full", difference),
}
LAYERS = ("attn1.to_q", "attn2.to_k", "to_out.0", "resnets.0.conv1", "ff.net.2", "q_proj", "fc1")


def added(parts: Parts, delta: Any, own: np.ndarray) -> np.ndarray:
    """Return what the weight becomes at strength 1, less the weight."""
    if "on_input" in parts:
        factor = parts["weight"].flatten()
        return own * (
            factor.reshape(1, -1, *[1] * (own.ndim - 2))
            if parts["on_input"]
            else factor.reshape(-1, *[1] * (own.ndim - 1))
        )
    if "dora_scale" not in parts:
        return delta
    scale, merged, made = parts["dora_scale"], own + delta, np.empty_like(own)
    for number in range(scale.size):
        place = np.s_[number] if scale.shape[0] > 1 else np.s_[:, number]
        made[place] = merged[place] / np.sqrt((merged[place] ** 2).sum()) * scale.flatten()[number]
    return made - own


def adapter(pipe: Any, kind: str, seed: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, tuple[np.ndarray, Any]]]:
    """Make an adapter in kohya's keys for some layers of every sort; return it, and what it adds to weight and bias by module."""
    rng, state, dense = np.random.default_rng(seed), {}, {}
    for network, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for path, module in getattr(pipe, network).named_modules():
            if path.endswith(LAYERS) and hasattr(module, "weight"):
                parts, delta = KINDS[kind][1](rng, tuple(module.weight.shape))
                name = prefix + path.removeprefix("text_model.").replace(".", "_")
                state |= {f"{name}.{part}": torch.from_numpy(np.asarray(one)).clone() for part, one in parts.items()}
                dense[f"{network}.{path}"] = (
                    added(parts, delta, module.weight.detach().numpy().astype(np.float64)),
                    parts.get("diff_b"),
                )
    return state, dense


def merged(pipe: Any, dense: dict[str, tuple[np.ndarray, Any]], weight: float) -> Any:
    """Return a copy of a pipeline whose weights are the sums."""
    made = copy.deepcopy(pipe)
    for name, (delta, bias) in dense.items():
        network, _, path = name.partition(".")
        module = getattr(made, network).get_submodule(path)
        with torch.no_grad():
            module.weight += torch.from_numpy(weight * delta).float()
            if bias is not None:
                if module.bias is None:
                    module.bias = torch.nn.Parameter(torch.zeros(len(bias)))
                module.bias += weight * torch.from_numpy(bias)
    return made


def drawn(pipe: Any) -> np.ndarray:
    """Draw with the bare library, (H, W, 3)."""
    source = torch.Generator().manual_seed(3)
    made = pipe(PROMPT, num_inference_steps=3, guidance_scale=2.0, generator=source, output_type="np").images[0]
    return (made * 255).round().astype(int)


def pixels(made: Made) -> np.ndarray:
    (png,) = made.pictures
    return decoded(png).astype(int)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return load(MODELS / "shapes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinds")
    (root / "loras").mkdir()
    return root


@pytest.fixture(scope="module")
def draw(engine: Any, blobs: BlobStore, folder: Path) -> Draw:
    return drawer(engine, Library((MODELS,), part_roots=(folder,)), blobs)


def stack(*entries: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "weight": weight} for name, weight in entries]


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_that_of_the_dense_weights(draw: Draw, folder: Path, pipe: Any, kind: str) -> None:
    state, dense = adapter(pipe, kind)
    path = folder / "loras" / f"{kind}.safetensors"
    save_file(state, path)
    plain = draw(**SMALL)
    for weight in (1.0, -0.4):
        made = draw(**SMALL, loras=stack((kind, weight)))
        assert np.abs(pixels(made) - drawn(merged(pipe, dense, weight))).max() <= 1
        assert np.abs(pixels(made) - pixels(plain)).max() > 20
    assert draw(**SMALL, loras=stack((kind, 0.0))).pictures == draw(**SMALL).pictures == plain.pictures
    assert read_lora_facts(path).method == KINDS[kind][0]


def test_kinds_work_together_whatever_the_order(draw: Draw, folder: Path, pipe: Any) -> None:
    sums: dict[str, tuple[np.ndarray, Any]] = {}
    for kind, weight in (("loha", 0.3), ("dora", 0.5), ("lokr", -0.2)):
        state, dense = adapter(pipe, kind, seed=5)
        save_file(state, folder / "loras" / f"with-{kind}.safetensors")
        for name, (delta, _) in dense.items():
            sums[name] = (sums.get(name, (0.0, None))[0] + weight * delta, None)
    both = random_lora(pipe, 1)
    save_file(both, folder / "loras" / "plain.safetensors")
    copied = merged(pipe, sums, 1.0)
    copied.load_lora_weights(dict(both), adapter_name="plain")
    copied.set_adapters(["plain"], [0.4])
    wanted = drawn(copied)
    entries = [("with-loha", 0.3), ("plain", 0.4), ("with-dora", 0.5), ("with-lokr", -0.2)]
    for some_order in (entries, entries[::-1]):
        assert np.abs(pixels(draw(**SMALL, loras=stack(*some_order))) - wanted).max() <= 1


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA"])
def test_what_peft_saves_is_what_peft_draws(draw: Draw, folder: Path, pipe: Any, kind: str) -> None:
    """PEFT's own layers are the oracle: their random weights, their picture."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict

    names = {"target_modules": r".*(attn1\.to_q|attn2\.to_k|resnets\.0\.conv1)"}
    config = {
        "LoHa": lambda: LoHaConfig(r=2, alpha=2, init_weights=False, use_effective_conv2d=True, **names),
        "LoKr": lambda: LoKrConfig(r=2, alpha=2, init_weights=False, decompose_both=True, **names),
        "DoRA": lambda: LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, use_dora=True, **names),
    }[kind]()
    copied = copy.deepcopy(pipe)
    torch.manual_seed(4)
    network = get_peft_model(copied.unet, config)
    with torch.no_grad():
        for name, one in network.named_parameters():
            if "magnitude" in name or "hada" in name:
                one *= 2 if "hada" in name else 1.5
    state = {key: one.contiguous() for key, one in get_peft_model_state_dict(network).items()}
    save_file(state, folder / "loras" / f"peft-{kind}.safetensors")
    made = draw(**SMALL, loras=stack((f"peft-{kind}", 1.0)))
    assert np.abs(pixels(made) - drawn(copied)).max() <= 1
    assert np.abs(pixels(made) - pixels(draw(**SMALL))).max() > 5


def test_a_dora_in_kohya_s_keys_grows_from_nothing(draw: Draw, folder: Path, pipe: Any) -> None:
    save_file(adapter(pipe, "dora")[0], folder / "loras" / "growing.safetensors")
    none, little, whole = (pixels(draw(**SMALL, loras=stack(("growing", weight)))) for weight in (0.0, 0.01, 1.0))
    assert np.abs(little - none).mean() < 0.1 * np.abs(whole - none).mean()


def test_sdxl_in_the_names_of_the_first_code(
    engine: Any, blobs: BlobStore, tiny_library: Library, tmp_path: Path
) -> None:
    """kohya trains SDXL on another naming of the same layers; each name leads to the layer that the other one names."""
    pipe = DiffusionPipeline.from_pretrained(tiny_library.get("sdxl").path)
    rng, first, ours = np.random.default_rng(2), {}, {}
    pairs = {
        "input_blocks_3_1_transformer_blocks_0_attn1_to_q": "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "input_blocks_1_0_in_layers_2": "down_blocks_0_resnets_0_conv1",
        "middle_block_1_proj_in": "mid_block_attentions_0_proj_in",
        "output_blocks_1_1_transformer_blocks_0_attn2_to_v": "up_blocks_0_attentions_1_transformer_blocks_0_attn2_to_v",
        "output_blocks_2_0_emb_layers_1": "up_blocks_1_resnets_0_time_emb_proj",
    }
    modules = {path.replace(".", "_"): module for path, module in pipe.unet.named_modules()}
    for theirs, name in pairs.items():
        parts, _ = loha(rng, tuple(modules[name].weight.shape))
        for part, one in parts.items():
            first[f"lora_unet_{theirs}.{part}"] = ours[f"lora_unet_{name}.{part}"] = torch.from_numpy(
                np.asarray(one)
            ).clone()
    (tmp_path / "loras").mkdir()
    for name, state in (("first", first), ("ours", ours)):
        save_file(state, tmp_path / "loras" / f"{name}.safetensors")
    run = drawer(engine, Library(tiny_library.folders, part_roots=(tmp_path,)), blobs)
    values: dict[str, Any] = {
        "model": "sdxl",
        "prompt": PROMPT,
        "seed": 1,
        "num_inference_steps": 2,
        "width": 64,
        "height": 64,
    }
    made = {name: run(**values, loras=stack((name, 1.0))) for name in ("first", "ours")}
    assert not made["first"].records[0].notes
    assert pixels(made["first"]).tobytes() == pixels(made["ours"]).tobytes() != pixels(run(**values)).tobytes()


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_loha_of_a_transformer(
    engine: Any, blobs: BlobStore, tiny_library: Library, tmp_path: Path, name: str
) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_library.get(name).path)
    rng, state = np.random.default_rng(2), {}
    for path, module in pipe.transformer.named_modules():
        if path.endswith(("attn.to_q", "ff.net.2", "proj_mlp")):
            parts, delta = loha(rng, tuple(module.weight.shape))
            state |= {
                f"lycoris_{path.replace('.', '_')}.{part}": torch.from_numpy(np.asarray(one)).clone()
                for part, one in parts.items()
            }
            with torch.no_grad():
                module.weight += torch.from_numpy(delta).float()
    (tmp_path / "loras").mkdir()
    save_file(state, tmp_path / "loras" / "it.safetensors")
    run = drawer(engine, Library(tiny_library.folders, part_roots=(tmp_path,)), blobs)
    values = {
        "model": name,
        "prompt": PROMPT,
        "seed": 1,
        "num_inference_steps": 2,
        "width": 64,
        "height": 64,
        "guidance_scale": 3.0,
    }
    made = run(**values, loras=stack(("it", 1.0)))
    source = torch.Generator().manual_seed(1)
    own = pipe(
        PROMPT, num_inference_steps=2, width=64, height=64, guidance_scale=3.0, generator=source, output_type="np"
    ).images[0]
    assert np.abs(pixels(made) - (own * 255).round().astype(int)).max() <= 1
    assert made.pictures != run(**values).pictures


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda key, one: (key.replace("unet", "nowhere").replace("_te_", "_no_"), one), "fits nothing in this model"),
        (
            lambda key, one: (key, one[:-1] if "w1_a" in key and "conv1" in key else one),
            "was trained for another model, or is damaged",
        ),
        (
            lambda key, one: (key.replace("to_q.hada_w2_b", "to_q.hada_t2"), one),
            "is damaged: .* lacks 'hada_w2_b'; copy it",
        ),
        (lambda key, one: (key, one * float("nan") if "w1_a" in key else one), "holds what no weight is"),
        (
            lambda key, one: (key.replace("hada_w2_b", "hada_x"), one),
            "is no weight of a LoRA, LoHa, LoKr or DoRA; copy",
        ),
    ],
)
def test_damage_is_a_sentence_and_leaves_nothing(
    draw: Draw, folder: Path, pipe: Any, change: Any, sentence: str
) -> None:
    plain = draw(**SMALL)
    save_file(dict(change(*pair) for pair in adapter(pipe, "loha")[0].items()), folder / "loras" / "wrong.safetensors")
    with pytest.raises(ModelError, match=f"LoRA wrong .*{sentence}"):
        draw(**SMALL, loras=stack(("wrong", 1.0)))
    assert draw(**SMALL).pictures == plain.pictures


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr-full", "dora", "full"])
def test_another_family_s_is_refused_by_its_header(kind: str) -> None:
    """What reads the prompt tells how wide the prompt is."""
    rng = np.random.default_rng(1)
    parts, _ = KINDS[kind][1](rng, (320, 768))
    shapes = {
        f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.{name}": list(np.shape(one))
        for name, one in parts.items()
    }
    assert trained_for(shapes) == {"cross_attention_dim": 768}
    assert kind_of(shapes) == KINDS[kind][0]
    assert rank_of(shapes) == (0 if "full" in kind else RANK)


def test_what_has_no_formula_is_refused_by_name(draw: Draw, folder: Path) -> None:
    for name, key, title in (
        ("norms", "lora_unet_x.w_norm", "a difference of norms"),
        ("glora", "lora_unet_x.a1.weight", "a GLoRA"),
    ):
        save_file({key: torch.zeros(3)}, folder / "loras" / f"{name}.safetensors")
        with pytest.raises(
            InvalidRequest, match=f"it is {title}, which Studio does not apply; use a LoRA, LoHa, LoKr or DoRA"
        ):
            draw(**SMALL, loras=stack((name, 1.0)))


def test_a_lora_with_a_stranger_s_core_is_whole(draw: Draw, folder: Path, pipe: Any) -> None:
    """A file of which one layer has magnitudes is drawn like a plain one in all others."""
    plain = to_kohya(random_lora(pipe, 3), 4.0)
    first = next(key for key in plain if "attn1_to_q.lora_up" in key)
    module = next(
        m for path, m in pipe.unet.named_modules() if f"lora_unet_{path.replace('.', '_')}" == first.split(".")[0]
    )
    merged_weight = module.weight + plain[first] @ plain[first.replace("up", "down")]
    scale = merged_weight.detach().norm(dim=1, keepdim=True)  # magnitudes that change nothing
    save_file(plain, folder / "loras" / "all-plain.safetensors")
    save_file(plain | {f"{first.split('.')[0]}.dora_scale": scale}, folder / "loras" / "one-dora.safetensors")
    pictures = [pixels(draw(**SMALL, loras=stack((name, 1.0)))) for name in ("all-plain", "one-dora")]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
