"""Models: what is missing, damaged, unsafe or strange is refused in one sentence, before anything is loaded."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from studio.errors import InvalidRequest, ModelError, StudioError
from studio.spec import GenerationRequest
from studio.store.index import Database
from studio.store.library import Library, unknown_words
from tests.conftest import MODELS


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def copy(folder: Path) -> Path:
    shutil.copytree(MODELS / "shapes", folder / "bad")
    return folder / "bad"


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def to_pickle(model: Path) -> None:
    for file in (model / "vae").glob("*.safetensors"):
        file.unlink()
    (model / "vae" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Marker(model / "executed")))


def disguised_pickle(model: Path) -> None:
    next((model / "vae").glob("*.safetensors")).write_bytes(pickle.dumps(Marker(model / "executed")))


def cut(model: Path) -> None:
    file = next((model / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])


def custom_code(model: Path) -> None:
    edit_json(model / "model_index.json", unet=["my_unet", "MyUNet"])
    (model / "my_unet.py").write_text(f"open({str(model / 'executed')!r}, 'w')")


def link_out(model: Path) -> None:
    file = next((model / "vae").glob("*.safetensors"))
    (model.parent / "outside").mkdir()
    shutil.move(file, model.parent / "outside" / "weights")
    file.symlink_to(model.parent / "outside" / "weights")


def shard(model: Path, *names: str) -> Path:
    file = next((model / "vae").glob("*.safetensors"))
    index = {"metadata": {}, "weight_map": {str(place): name for place, name in enumerate(names)}}
    (model / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return file.rename(model / "vae" / "a.safetensors")


def shard_missing(model: Path) -> None:
    shard(model, "a.safetensors", "b.safetensors")


def shard_outside(model: Path) -> None:
    (model.parent / "secret").write_text("x")
    shard(model, "../../secret", "a.safetensors")


def shard_cut(model: Path) -> None:
    file = shard(model, "a.safetensors")
    file.write_bytes(file.read_bytes()[:-1])


def weights_are_a_folder(model: Path) -> None:
    file = next((model / "vae").glob("*.safetensors"))
    file.unlink()
    file.mkdir()


def header(content: dict[str, object]) -> Callable[[Path], object]:
    text = json.dumps(content).encode()
    return lambda m: next((m / "vae").glob("*.safetensors")).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (to_pickle, "is a pickle, which can run code; get the model as .safetensors"),
    "pickle in disguise": (disguised_pickle, "is no safetensors file"),
    "cut off": (cut, "is cut off"),
    "empty": (lambda m: next((m / "vae").glob("*.safetensors")).write_bytes(b""), "is empty or cut off"),
    "no weights": (lambda m: next((m / "vae").glob("*.safetensors")).unlink(), "vae has no weights"),
    "broken index": (lambda m: (m / "model_index.json").write_text("{"), "model_index.json is no valid JSON"),
    "other pipeline": (
        lambda m: edit_json(m / "model_index.json", _class_name="FooPipeline"),
        "pipeline 'FooPipeline' is not supported yet",
    ),
    "inpainting": (
        lambda m: [edit_json(m / "unet" / "config.json", in_channels=5), (m / "studio.yaml").unlink()],
        "5 input channels",
    ),
    "no scheduler": (lambda m: shutil.rmtree(m / "scheduler"), "scheduler is missing, which model_index.json names"),
    "a part is missing": (
        lambda m: shutil.rmtree(m / "text_encoder"),
        "text_encoder is missing, which model_index.json names",
    ),
    "a tokenizer is missing": (
        lambda m: shutil.rmtree(m / "tokenizer"),
        "tokenizer is missing, which model_index.json names",
    ),
    "no config": (lambda m: (m / "vae" / "config.json").unlink(), "vae/config.json is missing"),
    "a config is a list": (
        lambda m: (m / "vae" / "config.json").write_text("[1]"),
        "vae/config.json is no JSON object",
    ),
    "deep JSON": (
        lambda m: (m / "unet" / "config.json").write_text("[" * 100_000),
        "unet/config.json is no valid JSON",
    ),
    "another class": (
        lambda m: edit_json(m / "vae" / "config.json", _class_name="AutoencoderTiny"),
        "vae/config.json is of 'AutoencoderTiny' and model_index.json says 'AutoencoderKL'",
    ),
    "custom code": (
        custom_code,
        "unet is made by code of the model's own (my_unet, in my_unet.py), which is never run",
    ),
    "custom code by name": (
        lambda m: edit_json(m / "text_encoder" / "config.json", auto_map={"AutoModel": "evil.Model"}),
        "text_encoder/config.json asks for code of the model's own (auto_map)",
    ),
    "a link to elsewhere": (link_out, "is a link to a place outside of the model's folder; copy the file itself"),
    "a shard is missing": (shard_missing, "names b.safetensors, which is missing; copy the model folder again"),
    "a shard's path": (shard_outside, "names ../../secret, which is missing"),
    "a shard is cut": (shard_cut, "vae/a.safetensors is cut off"),
    "a huge header": (
        lambda m: next((m / "vae").glob("*.safetensors")).write_bytes(struct.pack("<Q", 2**62) + b"{}"),
        "is no safetensors file",
    ),
    "a header without places": (header({"x": {"dtype": "F32", "shape": [1]}}), "has a damaged header"),
    "a negative side": (
        header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        "has a damaged header",
    ),
    "weights are a folder": (weights_are_a_folder, "vae has no weights"),
    "a saved web page": (
        lambda m: next((m / "vae").glob("*.safetensors")).write_bytes(b"<!DOCTYPE html><html>Log in</html>"),
        "a page that was saved instead?",
    ),
    "yaml code": (
        lambda m: (m / "studio.yaml").write_text("!!python/object/apply:os.system ['true']"),
        "studio.yaml cannot be read",
    ),
    "yaml types": (lambda m: (m / "studio.yaml").write_text("latent_rgb: [1, 2]"), "cannot be understood"),
    "yaml default": (lambda m: (m / "studio.yaml").write_text("defaults: {widht: 64}"), "widht is not a field"),
    "yaml typo": (lambda m: (m / "studio.yaml").write_text("titel: x"), "studio.yaml must be a mapping with only"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_bad_model_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    damage, sentence = DAMAGE[name]
    model = copy(tmp_path)
    damage(model)
    with pytest.raises(InvalidRequest) as caught:
        Library((tmp_path,)).get("bad")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (model / "executed").exists()
    assert [(m.id, bool(m.problem)) for m in Library((tmp_path,)).models()] == [("bad", True)]


def test_weights_of_another_shape_are_refused_when_loaded(tmp_path: Path, draw: Callable, engine: object) -> None:
    model = copy(tmp_path)
    edit_json(model / "vae" / "config.json", block_out_channels=[8, 16, 32, 64])
    reference = Library((tmp_path,)).reference(Library((tmp_path,)).get("bad"))
    with pytest.raises(ModelError, match="could not be loaded"):
        engine.pipelines.warm(reference)  # type: ignore[attr-defined]
    assert draw(prompt="a red circle", seed=1).pictures


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "../models/shapes",
        "/etc",
        "shapes/unet",
        "",
        "shapes/../../presets",
        "a\0b",
        "..",
        "C:x",
        "shapes\\unet",
    ],
)
def test_only_names_in_the_library_are_models(library: Library, name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not in the library"):
        library.get(name)


def test_requests_are_filled_from_the_models_own_defaults(library: Library) -> None:
    request, model = library.resolve(GenerationRequest(prompt="x"), 5)
    assert (request.width, request.height, request.seed) == (128, 128, 5)
    assert (model.id, model.family, model.noise) == ("shapes", "sd1", "diffusion")
    assert len(model.sha256) == 64
    with pytest.raises(StudioError, match="EDM Euler"):
        library.resolve(GenerationRequest(scheduler="EDM Euler"), 5)


def test_an_edm_model_gets_edm_schedulers(tmp_path: Path) -> None:
    model = copy(tmp_path)
    edit_json(model / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler")
    (model / "studio.yaml").unlink()
    request, _ = Library((tmp_path,)).resolve(GenerationRequest(model="bad"), 5)
    assert request.scheduler == "EDM Euler"
    with pytest.raises(InvalidRequest, match="edm noise"):
        Library((tmp_path,)).resolve(GenerationRequest(model="bad", scheduler="Euler"), 5)


def test_hashes_are_remembered_and_notice_changes(tmp_path: Path) -> None:
    model = copy(tmp_path)
    library = Library((tmp_path,), Database(tmp_path / "studio.db"))
    first = library.reference(library.get("bad")).sha256
    assert library.reference(library.get("bad")).sha256 == first
    assert Library((tmp_path,)).reference(library.get("bad")).sha256 == first
    edit_json(model / "scheduler" / "scheduler_config.json", beta_end=0.02001)
    assert library.reference(library.get("bad")).sha256 != first


def test_unknown_words_are_named(library: Library) -> None:
    model = library.get("shapes")
    assert unknown_words("a red zebra, on a Blue background with 2 zebras zebra", model) == ["zebra", "zebras"]
    assert unknown_words("a big red circle on the left, outline style", model) == []


def test_a_linked_model_and_a1111_names_work(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    model = copy(tmp_path / "elsewhere")
    (model / "studio.yaml").write_text("defaults: {scheduler: euler_a}")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(model)
    request, _ = Library((tmp_path / "models",)).resolve(GenerationRequest(model="mine"), 5)
    assert request.scheduler == "Euler a"


def test_a_new_folder_appears_without_a_restart(tmp_path: Path) -> None:
    library = Library((tmp_path,))
    assert library.models() == []
    model = copy(tmp_path)
    assert [m.id for m in library.models()] == ["bad"]
    (model / "studio.yaml").write_text("title: Another name")
    assert library.get("bad").title == "Another name"
