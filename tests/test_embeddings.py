"""Textual inversions by name: what the picture shows, the layouts that people have, and that the model is afterwards what it was."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from benchmarks.shapes.score import load
from studio.__main__ import main
from studio.embeddings import Naming, layout_of, names_of
from studio.engine.inversions import Inversions, read_inversions
from studio.engine.prompts import chunk_prompts
from studio.errors import InvalidRequest, ModelError
from studio.records import PartRef
from studio.spec import parse_request
from studio.store.blobs import BlobStore
from studio.store.embeddings import embedding_rows
from studio.store.library import Library
from studio.store.metadata import read_picture
from tests.conftest import MODELS, Made, drawer, pixels
from tests.tiny import WIDE
from trainers.scorers.reading import judge

Draw = Callable[..., Made]
SMALL: dict[str, Any] = {"seed": 3, "num_inference_steps": 4}
SDXL_SECOND = 40


def shown(made: Made) -> list[bytes]:
    return [pixels(png).tobytes() for png in made.pictures]


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return load(MODELS / "shapes")


def vectors(pipe: Any, words: str) -> torch.Tensor:
    """Return what the model itself knows of some words, (tokens, width)."""
    ids = pipe.tokenizer(words, add_special_tokens=False).input_ids
    return pipe.text_encoder.get_input_embeddings().weight[ids].detach().clone()


@pytest.fixture(scope="module")
def folder(pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put embeddings that say what words of the model say beside it, and some that cannot be used."""
    root = tmp_path_factory.mktemp("root") / "models"
    place = root / "embeddings"
    (place / "sub").mkdir(parents=True)
    blue, thing = vectors(pipe, "blue"), vectors(pipe, "a blue circle")
    save_file({"emb_params": blue}, place / "azure.safetensors")
    save_file({"emb_params": thing}, place / "sub" / "the-thing.safetensors")
    save_file({"<blau>": blue[0]}, place / "learned_embeds.safetensors")
    save_file({"string_to_param.*": blue.half()}, place / "half.safetensors")
    save_file({"emb_params": torch.zeros(2, 768)}, place / "wide.safetensors")
    save_file({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, place / "xl.safetensors")
    save_file({"emb_params": torch.full((1, 128), float("nan"))}, place / "nan.safetensors")
    save_file({"emb_params": torch.zeros(1, 128, dtype=torch.int32)}, place / "whole.safetensors")
    save_file({"emb_params": torch.zeros(76, 128)}, place / "many.safetensors")
    save_file({"a": torch.zeros(1, 128), "b": torch.zeros(1, 128)}, place / "two.safetensors")
    save_file({"clip_l": torch.zeros(1, 128)}, place / "onlyl.safetensors")
    save_file({"emb_params": torch.zeros(1, 2, 128)}, place / "cube.safetensors")
    save_file({"emb_params": blue}, place / "odd(name).safetensors")
    (place / "cutoff.safetensors").write_bytes((place / "azure.safetensors").read_bytes()[:-10])
    torch.save({"x": torch.zeros(2)}, place / "pickled.pt")
    (root.parent / "embeddings").mkdir()
    save_file({"emb_params": vectors(pipe, "yellow")}, root.parent / "embeddings" / "beside.safetensors")
    return root


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return Library((MODELS,), part_roots=(folder,))


@pytest.fixture(scope="module")
def draw(engine: Any, library: Library, blobs: BlobStore) -> Draw:
    return drawer(engine, library, blobs)


@pytest.mark.parametrize(
    ("named", "plain"),
    [
        ("a azure circle on a white background", "a blue circle on a white background"),
        ("a AZURE circle on a white background", "a blue circle on a white background"),
        ("a <blau> circle on a white background", "a blue circle on a white background"),
        ("a learned_embeds circle on a white background", "a blue circle on a white background"),
        ("a embedding:azure circle on a white background", "a blue circle on a white background"),
        ("the-thing on a white background", "a blue circle on a white background"),
        ("sub/the-thing on a white background", "a blue circle on a white background"),
        ("a circle on a beside background", "a circle on a yellow background"),
        ("a (azure:1.3) circle, azure (the-thing:0.7)", "a (blue:1.3) circle, blue (a blue circle:0.7)"),
        ("a [azure:red:0.5] circle", "a [blue:red:0.5] circle"),
        (f"{'so ' * 100} BREAK a azure circle", f"{'so ' * 100} BREAK a blue circle"),
    ],
)
def test_a_name_draws_what_its_vectors_say(draw: Draw, named: str, plain: str) -> None:
    """Vectors that are a word's own make the word's own picture, to the byte."""
    made = draw(prompt=named, **SMALL)
    assert shown(made) == shown(draw(prompt=plain, **SMALL))
    assert {part.kind for part in made.records[0].parts} == {"embedding"}


def test_the_picture_shows_it(draw: Draw) -> None:
    made = draw(prompt="azure circle on a beside background", seed=3)
    reading = judge(pixels(made.pictures[0]))
    assert (reading.things[0].colour, reading.background) == ("blue", "yellow")
    again = draw(prompt="a circle on a white background", negative_prompt="azure", guidance_scale=3, **SMALL)
    assert shown(again) == shown(
        draw(prompt="a circle on a white background", negative_prompt="blue", guidance_scale=3, **SMALL)
    )


def fingerprint(model: Any) -> str:
    digest = hashlib.sha256(json.dumps(model.tokenizer.get_vocab(), sort_keys=True).encode())
    for name, one in sorted(model.text_encoder.state_dict().items()):
        digest.update(name.encode() + one.numpy().tobytes())
    table = model.text_encoder.get_input_embeddings()
    digest.update(str((len(table._forward_hooks), len(table._forward_pre_hooks), table.weight.shape)).encode())
    return digest.hexdigest()


def test_the_model_is_what_it_was_after_success_failure_and_interrupt(
    engine: Any, draw: Draw, library: Library, folder: Path
) -> None:
    plain = shown(draw(prompt="a red star on a white background", **SMALL))
    request, model = library.resolve(parse_request(SMALL), 1)
    with engine.pipelines.configured(request, model, [1]) as pipe:
        before = fingerprint(pipe)
        draw(prompt="a azure star", **SMALL)
        assert fingerprint(pipe) == before
        for name in ("nan", "whole"):
            with pytest.raises(ModelError, match=f"embedding {name} holds what no vector is"):
                draw(prompt=f"azure {name}", **SMALL)
            assert fingerprint(pipe) == before
        assert draw(
            prompt="a azure star", stop=lambda made: "interrupt" if len(made.events) > 2 else "", **SMALL
        ).finished
        assert fingerprint(pipe) == before
    assert shown(draw(prompt="a red star on a white background", **SMALL)) == plain


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("by wide", r"prompt names the embedding 'wide', which does not fit model='shapes': it was made for another family: "
         r"text_widths is 768 \(Stable Diffusion 1.x\) there and 128 in this model; leave the word out or rename the file"),
        ("by xl", r"768 and 1280 \(Stable Diffusion XL\) there and 128"),
        ("by cutoff", r"'cutoff', which cannot be used: cutoff.safetensors is cut off"),
        ("by pickled", r"'pickled', which cannot be used: it is a pickle, which can run code; make a safe copy"),
        ("by many", r"it has 76 vectors; at most 75 fit"),
        ("by two", r"it has 2 tensors, as no embedding has"),
        ("by onlyl", r"it has clip_l; an embedding of Stable Diffusion XL has clip_g and clip_l alone"),
        ("by cube", r"it has the shape \[1, 2, 128\], as no embedding has"),
        ("embedding:missing here", r"prompt names the embedding 'missing', which is not there; there is: "),
    ],
)  # fmt: skip
def test_what_is_refused(library: Library, prompt: str, sentence: str) -> None:
    request, _ = library.resolve(parse_request({"prompt": prompt}), 1)
    with pytest.raises(InvalidRequest, match=sentence) as caught:
        library.parts_of(request)
    assert caught.value.field == "prompt"


def test_only_whole_words_are_names(library: Library) -> None:
    for prompt in ("azures and myazure", "widely", "azure_sky", ""):
        assert library.parts_of(library.resolve(parse_request({"prompt": prompt}), 1)[0]) == ()
    naming = Naming(["bad", "bad hands", "bad-hands"])
    assert naming.found(["Bad hands, bad-hands-5 (BAD)"]) == ["bad hands", "bad-hands", "bad"]
    assert naming.unknown(["embedding:bad embedding:good, (embedding:worse:1.2)"]) == ["good", "worse"]


def test_the_one_that_fits_is_taken_of_two_with_a_name(library: Library, folder: Path, tmp_path: Path) -> None:
    for name, source in (("a/same", "wide"), ("b/same", "azure"), ("c/twice", "azure"), ("d/twice", "half")):
        path = tmp_path / "models" / "embeddings" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((folder / "embeddings" / f"{source}.safetensors").read_bytes())
    mine = Library((MODELS,), part_roots=(tmp_path / "models",))
    assert [part.id for part in mine.parts_of(mine.resolve(parse_request({"prompt": "same"}), 1)[0])] == ["b/same"]
    with pytest.raises(InvalidRequest, match="could be c/twice or d/twice; rename one file"):
        mine.parts_of(mine.resolve(parse_request({"prompt": "twice"}), 1)[0])
    assert [part.id for part in mine.parts_of(mine.resolve(parse_request({"prompt": "d/twice"}), 1)[0])] == ["d/twice"]


def test_vectors_of_one_name_stay_in_one_chunk(pipe: StableDiffusionPipeline) -> None:
    inversions = Inversions([{"text_encoder": torch.zeros(10, 128)}], [("name",)])
    ids, weights = chunk_prompts(pipe.tokenizer, {"prompt": "red " * 70 + "(name:1.5) blue"}, inversions)
    assert [int((row < 0).sum()) for row in ids[0]] == [0, 10]
    assert ids[0, 1, 1:11].tolist() == [-1 - i for i in range(10)]
    assert weights[0, 1, 1:12].tolist() == [1.5] * 10 + [1.0]
    assert int((ids[0, 0] == pipe.tokenizer.eos_token_id).sum()) == 6  # the rest of the chunk stays empty


@pytest.fixture(scope="module")
def tiny(tiny_library: Library, tmp_path_factory: pytest.TempPathFactory) -> Library:
    root = tmp_path_factory.mktemp("tiny")
    (root / "embeddings").mkdir()
    source = torch.Generator().manual_seed(1)
    both = {"clip_l": torch.randn(2, WIDE, generator=source), "clip_g": torch.randn(2, SDXL_SECOND, generator=source)}
    save_file(both, root / "embeddings" / "zwei.safetensors")
    save_file({"emb_params": both["clip_l"]}, root / "embeddings" / "eins.safetensors")
    return Library(tiny_library.folders, part_roots=(root,))


def test_both_encoders_of_sdxl_read_it(engine: Any, tiny: Library, blobs: BlobStore) -> None:
    draw, small = drawer(engine, tiny, blobs), {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 1}
    plain = draw(model="sdxl", prompt="red star", **small)
    named = draw(model="sdxl", prompt="red zwei star", **small)
    assert shown(named) != shown(plain)
    assert shown(draw(model="sdxl", prompt="red (zwei:1.0) star", **small)) == shown(named)
    assert shown(draw(model="sdxl", prompt="red (zwei:1.4) star", **small)) != shown(named)
    assert shown(draw(model="sdxl", prompt="red star", **small)) == shown(plain)
    request, model = tiny.resolve(parse_request({"model": "sdxl", "prompt": "zwei", **small}), 1)
    states = {}
    with engine.pipelines.configured(request, model, [1]) as pipe, torch.inference_mode():
        for first, second in ((1, 1), (0, 1), (1, 0)):
            part = tiny.parts.get("embedding", "zwei", "prompt")
            both = read_inversions([tiny.parts.reference(part)])._vectors
            one = {"text_encoder": first * both["text_encoder"], "text_encoder_2": second * both["text_encoder_2"]}
            from studio.engine.prompts import encode_prompts

            states[first, second] = encode_prompts(pipe, request, model, Inversions([one], [("zwei",)])).positive
    whole = states[1, 1]["prompt_embeds"]
    assert not torch.equal(states[0, 1]["prompt_embeds"][..., :WIDE], whole[..., :WIDE])
    assert torch.equal(states[0, 1]["prompt_embeds"][..., WIDE:], whole[..., WIDE:])
    assert not torch.equal(states[1, 0]["prompt_embeds"][..., WIDE:], whole[..., WIDE:])
    assert not torch.equal(states[1, 0]["pooled_prompt_embeds"], states[1, 1]["pooled_prompt_embeds"])


def test_other_families(engine: Any, tiny: Library, blobs: BlobStore) -> None:
    draw, small = drawer(engine, tiny, blobs), {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 1}
    for model, prompt in (("sdxl", "eins"), ("sd3", "zwei"), ("sd3", "eins")):
        with pytest.raises(InvalidRequest, match=f"does not fit model='{model}': it was made for another family"):
            draw(model=model, prompt=prompt, **small)
    assert draw(model="flux", prompt="zwei", **small).records[0].parts == ()  # a word like others
    picture = draw(model="sdxl", prompt="zwei star", refiner="sdxl-refiner", **small)
    assert shown(picture) != shown(draw(model="sdxl", prompt="star", refiner="sdxl-refiner", **small))


def test_layouts() -> None:
    assert layout_of({"emb_params": [3, 768]}).vectors == 3
    assert layout_of({"<cat>": [768]}).token == "<cat>"
    assert layout_of({"cat:2": [768]}).token == ""  # a prompt cannot say it; its file's name can
    assert layout_of({"clip_g": [2, 1280], "clip_l": [2, 768]}).widths == (768, 1280)
    assert names_of("sd/cat", "<cat>") == ("cat", "sd/cat", "<cat>")
    for shapes in ({}, {"x": []}, {"x": [0, 768]}, {"clip_l": [1, 768], "clip_g": [2, 1280]}):
        with pytest.raises(ModelError):
            layout_of(shapes)


@pytest.mark.parametrize("shape", [[1 << 40, 128], [128, 0], [[]], None, "ab", [-1]])
def test_a_header_that_no_tool_writes_is_one_file_s_problem(tmp_path: Path, shape: Any) -> None:
    text = json.dumps({"emb_params": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "odd.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    (row,) = embedding_rows(Library((), part_roots=(tmp_path,)).parts.parts("embedding"))
    assert row["problem"]
    assert row["id"] == "odd"


def test_a_file_that_changed_after_it_was_read(tmp_path: Path) -> None:
    part = PartRef(kind="embedding", id="x", path=str(tmp_path / "x.safetensors"), sha256="0")
    with pytest.raises(ModelError, match=r"embedding x could not be read: .*; copy it again"):
        read_inversions([part])
    save_file({"emb_params": torch.zeros(1, 99)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="made for another model: its width is 99 there and 128 here"):
        with read_inversions([part]).applied(load(MODELS / "shapes")):
            pass


def test_list_hash_and_replay(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "models" / "embeddings"
    place.mkdir(parents=True)
    mine = place / "azure.safetensors"
    mine.write_bytes((folder / "embeddings" / "azure.safetensors").read_bytes())
    data = ["--data-dir", str(tmp_path)]
    assert main([*data, "adapters", "--json"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out) if row["kind"] == "embedding")
    assert (row["id"], row["vectors"], row["fits"], row["problem"]) == ("azure", 1, "text encoders 128 wide", "")
    (tmp_path / "r.json").write_text(json.dumps({"prompt": "a azure star", "seed": 1, "num_inference_steps": 4}))
    assert main([*data, "generate", "--request", str(tmp_path / "r.json"), "--out", str(tmp_path / "out")]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    text = Image.open(path).text["parameters"]  # type: ignore[attr-defined]
    record = read_picture(Path(path)).record
    assert record
    assert f'TI hashes: "azure: {record.parts[0].sha256[:12]}"' in text
    replay = [*data, "replay", path, "--out", str(tmp_path / "again")]
    assert main(replay) == 0
    (place / "star.safetensors").write_bytes((folder / "embeddings" / "half.safetensors").read_bytes())
    assert main(replay) == 0, "a new file must not change what an old picture's words mean"
    assert capsys.readouterr().out == "identical\nidentical\n"
    (place / "sub").mkdir()
    mine.rename(place / "sub" / "azure.safetensors")
    assert main(replay) == 0
    capsys.readouterr()
    save_file({"emb_params": torch.zeros(1, 128)}, place / "sub" / "azure.safetensors")
    assert main(replay) == 3
    assert "embedding azure: " in capsys.readouterr().out
    (place / "sub" / "azure.safetensors").unlink()
    assert main(replay) == 3
    assert "then, missing now" in capsys.readouterr().out
