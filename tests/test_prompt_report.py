"""What a model really gets of a prompt: the same tokens as the engine's, and a word about everything that is lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from benchmarks.shapes.score import load
from studio.__main__ import main
from studio.engine.prompts import chunk_prompts
from studio.errors import InvalidRequest, ModelError
from studio.prompt_report import PromptReport
from studio.settings import ROOT
from studio.spec import parse_request
from studio.store.library import Library
from studio.store.prompt_reports import PromptReports
from studio.store.tokenizers import Tokenizers
from tests.conftest import MODELS

FOLDER = MODELS / "shapes" / "tokenizer"


@pytest.fixture(scope="module")
def reports(tiny_library: Library, tmp_path_factory: pytest.TempPathFactory) -> PromptReports:
    root = tmp_path_factory.mktemp("root") / "models"
    (root / "embeddings").mkdir(parents=True)
    save_file({"emb_params": torch.zeros(3, 128)}, root / "embeddings" / "azure.safetensors")
    save_file({"emb_params": torch.zeros(1, 768)}, root / "embeddings" / "wide.safetensors")
    (root / "wildcards").mkdir()
    (root / "wildcards" / "colour.txt").write_text("red\n")
    folders = (MODELS, *tiny_library.folders)
    return PromptReports(Library(folders, part_roots=(ROOT / "presets", root)))


def made(reports: PromptReports, prompt: str, **values: Any) -> PromptReport:
    return reports.report(parse_request({"prompt": prompt, **values}))


@pytest.fixture(scope="module")
def old_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tokenizer as folders before transformers 5 have it."""
    folder = tmp_path_factory.mktemp("old")
    told = json.loads((FOLDER / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(told["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in told["merges"])]))
    return folder


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_tokens_are_those_of_transformers(text: str, old_folder: Path) -> None:
    theirs = clip()(text, add_special_tokens=False).input_ids
    tokenizers = Tokenizers()
    assert tokenizers.get(FOLDER).ids(text) == theirs
    assert tokenizers.get(old_folder).ids(text) == theirs


def clip() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle", "a (red:1.3) [circle]", "a " * 160, "x BREAK (y BREAK z:0.5)", "unbelievable, ünï 日本"],
)
def test_chunks_and_weights_are_the_engines(reports: PromptReports, prompt: str) -> None:
    tokenizer = clip()
    ids, weights = chunk_prompts(tokenizer, {"prompt": prompt})
    (found,) = made(reports, prompt).prompt.encoders
    assert len(found.chunks) == ids.shape[1]
    for number, chunk in enumerate(found.chunks):
        assert ids[0, number, len(chunk) + 1] == tokenizer.eos_token_id
        assert [one.weight for one in chunk] == pytest.approx(weights[0, number, 1 : len(chunk) + 1].tolist())
        assert [one.text for one in chunk] == [
            tokenizer.decode([one]).strip() for one in ids[0, number, 1 : len(chunk) + 1]
        ]


def test_the_counter(reports: PromptReports) -> None:
    text = made(reports, "a red circle on a blue background").prompt
    assert (text.tokens, text.limit) == (7, 75)
    text = made(reports, "a " * 76).prompt
    assert (text.tokens, text.limit) == (76, 150)
    text = made(reports, "{a|a} __colour__ azure [b:c d e:0.5] <lora:red-to-blue:1>", styles=["Shapes: striped"]).prompt
    assert (text.text, text.tokens) == ("a red azure [b:c d e:0.5], striped style", 11)


def test_names_that_are_there_and_names_that_are_not(reports: PromptReports) -> None:
    told = made(
        reports,
        "a red (azure:1.2) circle <lora:red-to-blue:1> <lora:none:1> __nothing__ embedding:gone",
        styles=["Nobody"],
        loras=[{"name": "neither"}],
    )
    assert told.loras == ("red-to-blue",)
    assert told.unknown == {
        "lora": ("neither", "none"),
        "wildcard": ("nothing",),
        "style": ("Nobody",),
        "embedding": ("gone",),
    }
    told = made(reports, "a red (azure:1.2) zorp, circle, 12")
    assert (told.embeddings, told.unknown, told.unknown_words, told.problems) == (("azure",), {}, ("zorp",), ())
    vectors = [one for one in told.prompt.encoders[0].chunks[0] if one.embedding]
    assert [(one.text, one.weight) for one in vectors] == [("azure", 1.2)] * 3


def test_what_is_ignored_or_refused(reports: PromptReports) -> None:
    assert not made(reports, "x", negative_prompt="y").notes
    (note,) = made(reports, "x", negative_prompt="y", guidance_scale=1).notes
    assert note == "The negative prompt is ignored because CFG Scale is 1."
    assert made(reports, "x", guidance_scale=1).negative_prompt.ignored == note
    (problem,) = made(reports, "by wide").problems
    assert "'wide', which does not fit model='shapes'" in problem
    (problem,) = made(reports, "(a:11)").problems
    assert "weight 11" in problem
    (problem,) = made(reports, "<lora:x:y>").problems
    assert "which must be <lora:NAME:WEIGHT>" in problem
    (problem,) = made(reports, "{3$$a|b}").problems
    assert "asks for 3 of 2" in problem
    with pytest.raises(InvalidRequest, match="model='none' is not in the library"):
        made(reports, "x", model="none")


def test_each_encoder_of_other_families(reports: PromptReports) -> None:
    told = made(reports, "a (red:1.2) circle", model="sdxl")
    assert [(one.name, one.kind, one.tokens) for one in told.prompt.encoders] == [
        ("tokenizer", "clip", 3),
        ("tokenizer_2", "clip", 3),
    ]
    assert not told.notes
    told = made(reports, "a (red:1.2) circle", model="sd3")
    assert [one.kind for one in told.prompt.encoders] == ["clip", "clip", "t5"]
    assert {one.weight for one in told.prompt.encoders[2].chunks[0]} == {1.0}
    assert told.notes == ("T5 hears the words alone: weights and BREAK are ignored there, and count in the two CLIPs.",)
    told = made(reports, "a (red:1.2) circle", model="flux", negative_prompt="y")
    assert told.notes == (
        "The negative prompt is ignored because True CFG is 1.",
        "Flux.1 takes brackets and BREAK as text: weights and changing words are ignored.",
    )
    assert "(" in [one.text for one in told.prompt.encoders[0].chunks[0]]
    assert (told.prompt.limit, told.prompt.encoders[1].kind) == (511, "t5")
    assert not told.embeddings


def test_what_is_cut_is_named(reports: PromptReports, draw_tiny: Any) -> None:
    long = "red " * 600 + "the end"
    told = made(reports, long, model="flux")
    first, second = told.prompt.encoders
    assert first.cut.startswith("red")
    assert first.cut.endswith("the end")
    assert first.tokens == 75
    assert second.cut.replace(" ", "").endswith("theend")
    with pytest.raises(InvalidRequest) as caught:
        draw_tiny(model="flux", prompt=long)
    assert str(caught.value).partition(";")[0] == told.problems[0].partition(";")[0]
    assert not made(reports, "red " * 100, model="flux").problems


def test_folders_that_cannot_be_counted(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json, so that its tokens cannot be counted here"):
        Tokenizers().get(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ModelError, match="cannot be read: .*; copy it again"):  # noqa: RUF043
        Tokenizers().get(tmp_path)
    shutil.copytree(MODELS / "shapes", tmp_path / "models" / "mine")
    (tmp_path / "models" / "mine" / "tokenizer" / "tokenizer.json").unlink()
    told = PromptReports(Library((tmp_path / "models",))).report(parse_request({"prompt": "x", "model": "mine"}))
    assert "cannot be counted here" in told.prompt.encoders[0].problem


@settings(max_examples=1000, deadline=None)
@given(text=st.text(alphabet="ab {}|$:_<>lor()[]\\.0123-BREAK\nazure", max_size=60))
def test_any_text_gets_a_report(reports: PromptReports, text: str) -> None:
    told = made(reports, text, negative_prompt=text)
    assert told.prompt.encoders or told.problems


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["prompt-report", "a (red:1.5) zorp", "--negative", "x"]) == 0
    out = capsys.readouterr().out
    assert "/75 tokens\n  tokenizer, chunk 1: a red(1.5) " in out
    assert "red(1.5)" in out
    assert "words it does not know: zorp" in out
    (tmp_path / "r.json").write_text(json.dumps([{"prompt": "a"}, {"prompt": "b c"}]))
    assert main(["prompt-report", "--request", str(tmp_path / "r.json"), "--json", "--set", "guidance_scale=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["prompt"]["tokens"] for one in told] == [1, 2]
    assert main(["prompt-report"]) == 2
    assert main(["prompt-report", "x", "--model", "none"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_no_torch_is_needed() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom studio.__main__ import main\nassert main(['prompt-report', 'a red star']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'diffusers') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_a_chunk_is_as_long_as_the_engines() -> None:
    tokenizer = load(MODELS / "shapes").tokenizer
    assert Tokenizers().get(FOLDER).length == tokenizer.model_max_length
