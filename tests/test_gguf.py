"""GGUF: a file of a denoiser draws what bare diffusers draws with the numbers that its blocks stand for; a bad one is refused by name."""

import importlib.util
import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import GGUFLinear
from safetensors.torch import save_file

from studio.engine.devices import open_device
from studio.engine.engine import Engine
from studio.engine.gguf_files import load_gguf, numbers_of
from studio.engine.latents import denoiser
from studio.engine.places import bytes_of
from studio.errors import InvalidRequest, ModelError
from studio.families import FAMILIES
from studio.gguf_header import HEADER_MAX, TYPES, read_header
from studio.memory import ROOM
from studio.merging import merge, parse_merge
from studio.settings import ROOT
from studio.store.gallery import new_image_id, utc_now
from studio.store.library import Library
from studio.store.metadata import read_picture
from studio.training.models import training_problem
from tests import original, test_checkpoints, tiny
from tests.conftest import drawer, pixels
from tests.test_adapter_kinds import loha
from tests.test_memory_plans import Card
from tests.test_more_families import CALLS, trained_lora

State = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {"prompt": "a red circle", "width": 64, "height": 64, "seed": 1, "num_inference_steps": 3}
MADE: dict[str, Callable[[], Any]] = {
    "sd3": test_checkpoints.sd3, "flux": test_checkpoints.flux, "chroma": tiny.chroma, "flux2-klein": tiny.flux2_klein,
    "z-image": tiny.z_image, "qwen-image": tiny.qwen_image,
}  # fmt: skip
ASKED = CALLS | dict.fromkeys(("sd3", "flux"), ({"guidance_scale": 4.0}, {"guidance_scale": 4.0}))
KINDS = [(name, "Q8_0") for name in MADE]
KINDS += [("flux", "Q4_0"), ("z-image", "Q5_1"), ("sd3", "F16"), ("qwen-image", "BF16")]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library with a folder of each family, and its denoiser in GGUF below `files`."""
    folder = tmp_path_factory.mktemp("gguf")
    for number, (name, build) in enumerate(MADE.items()):
        torch.manual_seed(number)
        pipe = build()
        pipe.save_pretrained(folder / name)
        for family, kind in KINDS:
            if family == name:
                state = original.LONE[name](pipe.transformer.state_dict())
                original.save_gguf(state, folder / "files" / f"{name}-{kind}.gguf", kind)
    return Library((folder,), part_roots=(folder,))


@pytest.fixture(scope="module")
def draw(engine: Any, here: Library, blobs: Any) -> Callable[..., Any]:
    run = drawer(engine, here, blobs)
    return lambda **values: run(**SMALL | values)


def bare(here: Library, name: str, kind: str) -> Any:
    """Return the bare pipeline around the numbers that the blocks stand for, by the package gguf."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(here.get(name).path)
    pipe.set_progress_bar_config(disable=True)
    wanted = gguf.GGMLQuantizationType[kind]
    for weight in pipe.transformer.state_dict().values():
        if weight.ndim == 2 and weight.shape[1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0:
            blocks = gguf.quantize(weight.float().numpy(), wanted)
            weight.copy_(torch.from_numpy(gguf.dequantize(blocks, wanted).copy()))
    return pipe


def asked(here: Library, pipe: Any, name: str) -> np.ndarray:
    more = {"prompt": SMALL["prompt"], "num_inference_steps": 3, "output_type": "np"} | ASKED[name][1]
    image = pipe(width=64, height=64, generator=torch.Generator().manual_seed(1), **more).images[0]
    return (image * 255).round().astype(int)


def far(made: Any, wanted: np.ndarray) -> int:
    return int(np.abs(pixels(made.pictures[0]).astype(int) - wanted).max())


def held(engine: Any, here: Library, model: str) -> Any:
    return denoiser(engine.pipelines._weights(here.reference(here.get(model))).base)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_file_draws_what_its_numbers_draw(
    here: Library, draw: Callable[..., Any], engine: Any, name: str, kind: str
) -> None:
    file, folder = here.get(f"files/{name}-{kind}"), here.get(name)
    assert (file.family, file.kind, file.noise, file.problem) == (name, folder.kind, folder.noise, "")
    assert file.dtype == {"F16": "fp16", "BF16": "bf16"}.get(kind, kind.lower())
    assert {key: value for key, value in file.shape.items() if key in folder.shape} == folder.shape
    made = draw(model=file.id, **ASKED[name][0])
    pipe = bare(here, name, kind)
    assert far(made, asked(here, pipe, name)) <= 2  # diffusers multiplies a block's scale in half precision
    assert draw(model=file.id, **ASKED[name][0]).pictures == made.pictures
    record = made.records[0].model
    assert record.donor
    assert (record.sha256, record.donor.id) == (here.sha256(file), name)
    network = held(engine, here, file.id)
    blocks = [layer for layer in network.modules() if isinstance(layer, GGUFLinear)]
    assert bool(blocks) == (kind not in ("F16", "BF16"))
    if blocks:
        assert bytes_of(network) < bytes_of(pipe.transformer) / (2 if kind == "Q8_0" else 3)


@pytest.mark.parametrize("name", ["flux", "z-image"])
def test_a_lora_counts_as_it_does_without_blocks(
    here: Library, engine: Any, blobs: Any, tmp_path: Path, name: str
) -> None:
    pipe, model = bare(here, name, "Q8_0"), f"files/{name}-Q8_0"
    trained_lora(pipe, FAMILIES[name].lora_targets, tmp_path / "loras")
    run = drawer(engine, Library(here.folders, part_roots=(tmp_path,)), blobs)
    values = SMALL | {"model": model} | ASKED[name][0]
    plain = run(**values)
    strong = run(**values, loras=[{"name": "trained", "weight": 1}])
    pipe.load_lora_weights(tmp_path / "loras", weight_name="trained.safetensors", local_files_only=True)
    wanted = asked(here, pipe, name)
    assert far(strong, wanted) <= 2 < far(plain, wanted)
    assert run(**values).pictures == run(**values, loras=[{"name": "trained", "weight": 0}]).pictures == plain.pictures


def test_a_loha_adds_to_the_numbers(here: Library, engine: Any, blobs: Any, tmp_path: Path) -> None:
    pipe, rng, state = bare(here, "flux", "Q8_0"), np.random.default_rng(2), {}
    for path, module in pipe.transformer.named_modules():
        if path.endswith(("attn.to_q", "proj_mlp")):
            parts, delta = loha(rng, tuple(module.weight.shape))
            name = f"lycoris_{path.replace('.', '_')}"
            state |= {f"{name}.{part}": torch.from_numpy(np.asarray(one)).clone() for part, one in parts.items()}
            with torch.no_grad():
                module.weight += torch.from_numpy(delta).float()
    (tmp_path / "loras").mkdir()
    save_file(state, tmp_path / "loras" / "it.safetensors")
    run = drawer(engine, Library(here.folders, part_roots=(tmp_path,)), blobs)
    values = SMALL | {"model": "files/flux-Q8_0"} | ASKED["flux"][0]
    wanted = asked(here, pipe, "flux")
    assert far(run(**values, loras=[{"name": "it", "weight": 1}]), wanted) <= 2 < far(run(**values), wanted)


@pytest.mark.parametrize("plan", ["model-offload", "group-offload"])
def test_no_plan_changes_a_picture(here: Library, blobs: Any, draw: Callable[..., Any], plan: str) -> None:
    engine: Any = Engine(open_device("cpu", 1), utc_now, new_image_id)
    engine.pipelines = Card(engine.device)
    engine.pipelines.free = (
        ROOM + {"model-offload": 2**21, "group-offload": 0}[plan]
    )  # its VAE has 1.5 MB, all of it more than 2
    made = drawer(engine, here, blobs)(**SMALL, model="files/flux-Q4_0")
    assert [loaded.plan for loaded in engine.pipelines._loaded.values()] == [plan]
    assert made.pictures == draw(model="files/flux-Q4_0").pictures
    engine.unload()


def test_a_picture_tells_both_and_is_made_again(here: Library, tmp_path: Path) -> None:
    models = tmp_path / "data" / "models" / "checkpoints"
    shutil.copytree(here.get("z-image").path, models / "folder")
    shutil.copy(here.folders[0] / "files" / "z-image-Q8_0.gguf", models / "mine.gguf")
    (tmp_path / "r.json").write_text(json.dumps(SMALL | {"model": "mine", "guidance_scale": 1.0}))

    def run(*flags: Any) -> Any:
        command = [sys.executable, "-m", "studio", "--data-dir", tmp_path / "data", "--device", "cpu", *flags]
        return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)

    drawn = run("generate", "--request", tmp_path / "r.json", "--out", tmp_path / "out")
    assert drawn.returncode == 0, drawn.stderr
    picture = Path(json.loads(drawn.stdout)["path"])
    record = read_picture(picture).record
    assert record
    assert record.model.donor
    assert (record.model.id, record.model.donor.id) == ("mine", "folder")
    assert run("replay", picture, "--out", tmp_path / "again").stdout.strip() == "identical"
    shutil.rmtree(models / "folder")
    torch.manual_seed(9)
    tiny.z_image().save_pretrained(models / "folder")
    other = run("replay", picture, "--out", tmp_path / "other")
    assert other.returncode == 3, other.stderr
    assert f"rest of the model: {record.model.donor.sha256[:12]} then, " in other.stdout


def test_what_needs_the_weights_themselves_is_refused(here: Library, draw: Callable[..., Any], tmp_path: Path) -> None:
    for keeping in ("float8", "int8"):
        if keeping == "int8" and importlib.util.find_spec("torchao") is None:
            continue
        with pytest.raises(InvalidRequest, match="whose weights are GGUF's already; use full") as caught:
            draw(model="files/flux-Q8_0", weights=keeping)
        assert caught.value.field == "weights"
    file = here.get("files/flux-Q8_0")
    assert training_problem("lora", file).endswith("learn nothing here; train on the model's diffusers folder")
    spec = parse_merge({"name": "both", "models": ["files/flux-Q8_0", "files/flux-Q4_0"]})
    with pytest.raises(InvalidRequest, match="is GGUF, which is not merged; choose the safetensors file or the folder"):
        merge(spec, here, tmp_path)


def test_the_same_denoiser_in_safetensors_takes_the_same_from_a_folder(here: Library, draw: Callable[..., Any]) -> None:
    for name in ("chroma", "flux2-klein", "z-image", "qwen-image"):
        pipe = diffusers.DiffusionPipeline.from_pretrained(here.get(name).path)
        path = here.folders[0] / "files" / f"{name}-plain.safetensors"
        original.save(original.LONE[name](pipe.transformer.state_dict()), path)
        made, whole = (draw(model=one, **ASKED[name][0]) for one in (f"files/{name}-plain", name))
        assert far(made, pixels(whole.pictures[0]).astype(int)) <= 1, name
        path.unlink()


def test_what_no_shape_says_is_the_folders(here: Library, tmp_path: Path) -> None:
    torch.manual_seed(4)
    for name, pipe in {"turbo": tiny.z_image(shift=3.0), "few": tiny.flux2_klein(distilled=True)}.items():
        pipe.save_pretrained(tmp_path / name)
    library = Library((here.folders[0], tmp_path))
    for name, path in {"turbo": "z-image", "few": "flux2-klein"}.items():
        source = here.folders[0] / "files" / f"{path}-Q8_0.gguf"
        (tmp_path / f"mine-{name}.gguf").write_bytes(source.read_bytes())
        (tmp_path / f"mine-{name}.studio.yaml").write_text(
            f"parts_from: {name}\ndefaults: {{num_inference_steps: 6}}\n"
        )
        mine, folder = library.get(f"mine-{name}"), library.get(name)
        assert mine.defaults == folder.defaults | {"num_inference_steps": 6}
        assert (mine.kind, library.reference(mine).donor.id) == (folder.kind, name)  # type: ignore[union-attr]
    assert library.get("files/z-image-Q8_0").defaults == here.get("z-image").defaults


def test_a_folder_need_not_have_a_denoisers_weights(
    here: Library, draw: Callable[..., Any], engine: Any, blobs: Any, tmp_path: Path
) -> None:
    for name in ("flux", "z-image"):
        shutil.copytree(here.get(name).path, tmp_path / name)
        (weights,) = (tmp_path / name / "transformer").glob("*.safetensors")
        weights.unlink()
        source = here.folders[0] / "files" / f"{name}-Q8_0.gguf"
        (tmp_path / f"{name}-Q8_0.gguf").write_bytes(source.read_bytes())
        library = Library((tmp_path,))
        made = drawer(engine, library, blobs)(**SMALL, model=f"{name}-Q8_0")
        assert made.pictures == draw(model=f"files/{name}-Q8_0").pictures
        with pytest.raises(
            InvalidRequest, match=r"transformer has no weights .* only serve single files of its family"
        ):
            library.get(name)
        (tmp_path / name / "transformer" / "model.bin").write_bytes(b"x")
        with pytest.raises(InvalidRequest, match="lacks vae and"):
            library.get(f"{name}-Q8_0")


@pytest.mark.parametrize(("name", "kind"), [("sd3", "F16"), ("z-image", "Q8_0")])
def test_a_first_side_of_one_may_be_left_out(here: Library, draw: Callable[..., Any], name: str, kind: str) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(here.get(name).path)
    state = original.LONE[name](pipe.transformer.state_dict())
    less = {f"model.diffusion_model.{key}": one[0] if one.shape[0] == 1 else one for key, one in state.items()}
    assert any(one.ndim < state[key.removeprefix("model.diffusion_model.")].ndim for key, one in less.items())
    path = original.save_gguf(less, here.folders[0] / "files" / "less.gguf", kind)
    plain = draw(model=f"files/{name}-{kind}").pictures[0]
    assert far(draw(model="files/less"), pixels(plain).astype(int)) <= 2  # what lost a side stays in full
    path.unlink()


def test_a_denoiser_of_another_size_says_what_to_get(here: Library, tmp_path: Path) -> None:
    (tmp_path / "alone.gguf").write_bytes((here.folders[0] / "files" / "z-image-Q8_0.gguf").read_bytes())
    for folders in ((tmp_path,), (tmp_path, here.folders[0])):
        if len(folders) == 2:
            state = original.LONE["z-image"](tiny.z_image().transformer.state_dict())
            wide = {name: torch.cat([one, one]) if name == "x_embedder.weight" else one for name, one in state.items()}
            original.save_gguf(wide, tmp_path / "alone.gguf")
        with pytest.raises(InvalidRequest) as caught:
            Library(folders).get("alone")
        said = "lacks vae and text_encoder and tokenizer and scheduler; put the Z-Image model that it was made of in diffusers'"
        assert said in str(caught.value)


def made(tmp_path: Path, state: State, architecture: str = "flux", kind: str = "F32") -> str:
    """Return what a library says of a file of these tensors."""
    original.save_gguf(state, tmp_path / "some.gguf", kind, architecture)
    return next(model.problem for model in Library((tmp_path,)).models() if model.id == "some")


def test_another_kind_of_file_is_named(here: Library, tmp_path: Path) -> None:
    some = torch.zeros(64, 64)
    assert made(tmp_path, {"blk.0.attn_q.weight": some}, "llama").startswith(
        "it is GGUF of the architecture 'llama': it is no model that Studio knows; single files can be"
    )
    for names, said in {
        ("input_blocks.0.0.weight",): "'sdxl': it holds only a part of a model",
        ("first_stage_model.encoder.x",): "it is a VAE; put it into",
        (
            "guidance_in.in_layer.weight",
            *original.LONE["flux2-klein"](tiny.flux2_klein().transformer.state_dict()),
        ): "Flux.2 dev",
    }.items():
        assert said in made(tmp_path, dict.fromkeys(names, some), "sdxl")


def test_a_hole_is_an_error_and_never_a_random_number(here: Library, draw: Callable[..., Any]) -> None:
    path = here.folders[0] / "files" / "hole.gguf"
    for name, lost in {"flux": "final_layer.linear.bias", "z-image": "layers.1.ffn_norm1.weight"}.items():
        pipe = diffusers.DiffusionPipeline.from_pretrained(here.get(name).path)
        state = original.LONE[name](pipe.transformer.state_dict())
        assert lost in state
        original.save_gguf({key: one for key, one in state.items() if key != lost}, path)
        with pytest.raises(ModelError, match=r"model='files/hole' could not be loaded: .*; copy the model file again"):
            draw(model="files/hole")
        path.unlink()


def test_without_the_package_it_is_named(here: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (found,) = [one for one in Library(here.folders).models() if one.id == "files/flux-Q8_0"]
    assert (
        found.problem
        == "flux-Q8_0.gguf is GGUF, which needs the package gguf; `pip install gguf` and start Studio again"
    )


def test_the_header_is_what_the_package_reads(here: Library) -> None:
    for path in sorted((here.folders[0] / "files").glob("*.gguf")):
        header, reader = read_header(path), gguf.GGUFReader(path)
        assert header.pop("__metadata__")["general.architecture"] == "flux"
        assert len(header) == len(reader.tensors)
        for tensor in reader.tensors:
            start = int(tensor.data_offset)
            told = {"dtype": tensor.tensor_type.name, "shape": list(map(int, tensor.shape))[::-1]}
            assert header[tensor.name] == told | {"data_offsets": [start, start + int(tensor.n_bytes)]}


@pytest.mark.parametrize(("kind", "block", "length"), TYPES.values())
def test_blocks_are_the_packages_numbers(tmp_path: Path, kind: str, block: int, length: int) -> None:
    wanted, rng = gguf.GGMLQuantizationType[kind], np.random.default_rng(1)
    assert gguf.GGML_QUANT_SIZES[wanted] == (block, length)
    raw = rng.integers(0, 32, (3, 2 * length), dtype=np.uint8)  # whatever it is, halves and all stay small
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "flux")
    writer.add_tensor("a.weight", raw, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = numbers_of(load_gguf(tmp_path / "one.gguf")["a.weight"]).float().numpy()
    assert found.shape == (3, 2 * block)
    assert np.allclose(found, gguf.dequantize(raw, wanted), rtol=2e-3, atol=1e-4)


def head(tensors: int, fields: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(*, name: bytes = b"a.weight", shape: tuple[int, ...] = (32,), kind: int = 8, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARRAY = text(b"a") + struct.pack("<I", 9)
BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no GGUF file"),
    "a page": (b"<!doctype html><title>404</title>", "is no GGUF file"),
    "only the magic": (b"GGUF" + bytes(60), "is GGUF of version 0, and 2 and 3 are read"),
    "cut within the counts": (b"GGUF\x03\x00", "is cut off"),
    "the first version": (head(1, 0, version=1), "is GGUF of version 1"),
    "the other byte order": (head(1, 0, version=3 << 24), "is GGUF of version"),
    "no tensors": (head(0, 0), "has a damaged header"),
    "tensors without end": (head(2**63, 0), "has a damaged header"),
    "fields without end": (head(1, 2**63), "has a damaged header"),
    "a long name": (head(1, 0, struct.pack("<Q", 2**62)), "is cut off"),
    "a long array": (head(1, 1, ARRAY + struct.pack("<IQ", 4, 2**62)), "is cut off"),
    "an array of long texts": (head(1, 1, ARRAY + struct.pack("<IQ", 8, 2**62) + text(b"x") * 9), "is cut off"),
    "an array of arrays": (head(1, 1, ARRAY + struct.pack("<IQ", 9, 2**62)), "has a damaged header"),
    "an unknown field": (head(1, 1, text(b"a") + struct.pack("<I", 99)), "has a damaged header"),
    "no text": (head(1, 1, text(b"\xff\xfe") + struct.pack("<I", 8)), "has a damaged header"),
    "no sides": (head(1, 0, entry(shape=())), "has a damaged header"),
    "many sides": (head(1, 0, entry(shape=(1,) * 9)), "has a damaged header"),
    "a side of nothing": (head(1, 0, entry(shape=(32, 0))), "has a damaged header"),
    "half a block": (head(1, 0, entry(shape=(33,))), "has a damaged header"),
    "a strange type": (head(1, 0, entry(kind=19)), "has weights of the type 19, which are not read; get it in one of F32"),
    "more than there is": (head(1, 0, entry(shape=(32, 2**40))), "is cut off: "),
    "beyond the end": (head(1, 0, entry(offset=2**62)), "is cut off: "),
    "one in another": (head(2, 0, entry(shape=(32, 4)) + entry(name=b"b", shape=(32, 4)) + bytes(151)), "has a damaged header"),
    "a name twice": (head(2, 0, entry() + entry(offset=64) + bytes(256)), "has a damaged header"),
    "our own name": (head(1, 0, entry(name=b"__metadata__") + bytes(99)), "has a damaged header"),
    "no alignment": (head(1, 1, text(b"general.alignment") + struct.pack("<II", 4, 0) + entry()), "has a damaged header"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, said = BROKEN[name]
    (tmp_path / "broken.gguf").write_bytes(content)
    (found,) = Library((tmp_path,)).models()
    assert found.problem.startswith(f"broken.gguf {said}")
    assert found.problem.endswith("; copy the file again")
    assert "\n" not in found.problem


def test_no_flipped_or_lost_byte_is_more_than_a_sentence(here: Library, tmp_path: Path) -> None:
    whole = (here.folders[0] / "files" / "flux-Q4_0.gguf").read_bytes()
    start = min(
        one["data_offsets"][0]
        for name, one in read_header(here.folders[0] / "files" / "flux-Q4_0.gguf").items()
        if name[0] != "_"
    )
    path, dice = tmp_path / "some.gguf", random.Random(1)
    for length in [*range(0, start, 97), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is cut off|is no GGUF file"):
            read_header(path)
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(dice.choice((1, 1, 4))):
            changed[dice.randrange(start)] = dice.randrange(256)
        path.write_bytes(changed)
        (found,) = Library((tmp_path,)).models()
        assert "\n" not in found.problem
    assert start < HEADER_MAX
