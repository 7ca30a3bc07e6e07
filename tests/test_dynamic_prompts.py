"""Wildcards, choices and styles: what becomes of a prompt, what the pictures show, and what is kept of it."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.__main__ import main
from studio.dynamic_prompts import expand
from studio.errors import InvalidRequest
from studio.loras import take_tags
from studio.prompt_syntax import moments, parse_prompt, plain_text, without_escapes
from studio.settings import ROOT
from studio.spec import parse_request
from studio.store.blobs import BlobStore
from studio.store.jobs import JobStore
from studio.store.library import Library
from studio.store.metadata import read_picture
from studio.store.texts import TextLibrary, read_styles
from studio.styles import styled
from tests.conftest import MODELS, Made, drawer, pixels
from trainers.scorers.reading import judge

LINES = {"colour": ("red", "green", "blue"), "deep/shape": ("circle", "3::star"), "loop": ("__loop__ x",), "empty": ()}
SMALL: dict[str, Any] = {"num_inference_steps": 2}


def said(text: str, seed: int = 0, **more: Any) -> str:
    return expand(text, LINES, seed, "prompt", **more)


@pytest.mark.parametrize(
    ("text", "all_of_it"),
    [
        ("a {red|blue} cat", {"a red cat", "a blue cat"}),
        ("{ a | b }", {"a", "b"}),
        ("{a}", {"a"}),
        ("{|a}", {"", "a"}),
        ("{0::a|b}", {"b"}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{1-2$$a|b}", {"a", "b", "a, b", "b, a"}),
        ("{-1$$a|b}", {"a", "b"}),
        ("{0$$a|b}", {""}),
        ("{a|{b|c} d}", {"a", "b d", "c d"}),
        ("__colour__", {"red", "green", "blue"}),
        ("__deep/*__", {"circle", "star"}),
        ("{2$$__colour__}", {f"{a}, {b}" for a in LINES["colour"] for b in LINES["colour"] if a != b}),
        ("{__colour__|x}", {"red", "green", "blue", "x"}),
        ("[a|b] {[c|d]|e}", {"[a|b] [c|d]", "[a|b] e"}),
        ("{[a|b}", {"[a", "b"}),
        ("(x:1.2) {(a:1.3)|<lora:b:0.5>}", {"(x:1.2) (a:1.3)", "(x:1.2) <lora:b:0.5>"}),
        (r"\{a|b\} \__colour__ {a\|b}", {r"\{a|b\} \__colour__ a\|b"}),
        ("{a|b", {"{a|b"}),
        ("a|b} __ x __", {"a|b} __ x __"}),
        ("____", {"____"}),
        ("snake_case __init", {"snake_case __init"}),
    ],
)
def test_what_it_becomes(text: str, all_of_it: set[str]) -> None:
    found = {said(text, seed) for seed in range(80)}
    assert found == all_of_it
    assert said(text, 5) == said(text, 5)


def test_weights_count() -> None:
    found = Counter(said("{3::a|b}", seed) for seed in range(2000))
    assert 0.70 < found["a"] / 2000 < 0.80
    found = Counter(said("__deep/shape__", seed) for seed in range(2000))
    assert 0.70 < found["star"] / 2000 < 0.80


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("__missing__", r"^prompt names the wildcard __missing__, which is no file in `models/wildcards`; there is: colour, deep"),
        ("__empty__", "names the wildcard __empty__, which has no lines"),
        ("__loop__", "more than 20 choices or wildcards inside each other; a wildcard may name itself"),
        ("{" * 30 + "}" * 30, "more than 20 choices"),
        ("{3$$a|b}", r"prompt has \{3\$\$a\|b\}, which asks for 3 of 2 choices; ask for fewer"),
        ("{2-1$$a|b}", "asks for 1 of 2 choices"),
        ("{0::a|0::b}", "all that is left has the weight 0; give one more"),
        ("${x=1} ${x}", r"has a variable"),
        ("{a|b}" * 1001, "more than 1000 choices"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence) as caught:
        said(text)
    assert caught.value.field == "prompt"
    assert "\n" not in str(caught.value)


def test_unknown_names_can_be_collected() -> None:
    missing: list[str] = []
    assert said("a __none__ {__other__|__other__}", missing=missing) == "a __none__ __other__"
    assert missing == ["none", "other"]


def test_a_wildcard_that_grows_without_end_is_refused() -> None:
    bomb = {f"w{i}": (f"__w{i + 1}__ " * 10,) for i in range(12)} | {"w12": ("x" * 1000,)}
    with pytest.raises(InvalidRequest, match=r"more than 1000 choices|becomes too long"):
        expand("__w0__", bomb, 0, "prompt")


@settings(max_examples=10_000, deadline=None)
@given(st.text(alphabet="ab {}|$:_<>lor()[]\\.0123-BREAK\n", max_size=80), st.integers(0, 3))
def test_any_text_is_read_or_refused(text: str, seed: int) -> None:
    """Whatever somebody writes: a prompt, or one sentence."""
    with contextlib.suppress(InvalidRequest):
        words, _ = take_tags(expand(text, {"a": ("b", "{a|b}"), "b": ("__a__",)}, seed, "prompt"))
        without_escapes(words)
        for _, now in moments(words, 5, "prompt"):
            assert plain_text(parse_prompt(now, "prompt")) is not None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a data root with wildcards and styles."""
    (tmp_path / "models" / "wildcards" / "deep").mkdir(parents=True)
    (tmp_path / "models" / "wildcards" / "colour.txt").write_text("# colours\n\nred\n  blue  \n")
    (tmp_path / "models" / "wildcards" / "deep" / "thing.txt").write_text("\ufeffa __colour__ circle\n")
    (tmp_path / "styles.csv").write_text(
        '\ufeffname,prompt,negative_prompt\nWhite,"{prompt} on a white background",black\nStriped,striped style,\n----,,\n'
    )
    return tmp_path


@pytest.fixture
def library(root: Path) -> Library:
    return Library((MODELS,), part_roots=(ROOT / "presets", root / "models"))


@pytest.fixture
def draw(engine: Any, library: Library, blobs: BlobStore) -> Callable[..., Made]:
    return drawer(engine, library, blobs)


def test_each_picture_gets_its_own_words_and_shows_them(draw: Callable[..., Made]) -> None:
    template = "__deep/thing__ on a white background"
    made = draw(prompt=template, seed=1, num_images_per_prompt=6)
    words = [record.request.prompt for record in made.records]
    assert set(words) == {"a red circle on a white background", "a blue circle on a white background"}
    shown = [judge(pixels(png)).things[0].colour for png in made.pictures]
    assert shown == [text.split()[1] for text in words]
    assert {record.template.prompt for record in made.records if record.template} == {template}
    alone = draw(prompt=words[3], seed=4)
    assert pixels(alone.pictures[0]).tobytes() == pixels(made.pictures[3]).tobytes()
    assert alone.records[0].template is None


def test_pictures_made_at_once_share_their_words(draw: Callable[..., Made]) -> None:
    made = draw(prompt="a {red|blue|green|yellow} star", seed=2, num_images_per_prompt=6, batch_size=3, **SMALL)
    words = [record.request.prompt for record in made.records]
    assert words[0] == words[1] == words[2]
    assert words[3] == words[4] == words[5]
    again = draw(prompt="a {red|blue|green|yellow} star", seed=2, num_images_per_prompt=6, batch_size=3, **SMALL)
    assert [record.request.prompt for record in again.records] == words


def test_loras_may_be_chosen_too(draw: Callable[..., Made]) -> None:
    made = draw(prompt="a red star {<lora:red-to-blue:1>|}", seed=0, num_images_per_prompt=8, **SMALL)
    used = [bool(record.request.loras) for record in made.records]
    assert set(used) == {True, False}
    assert [bool(record.parts) for record in made.records] == used


def test_styles(library: Library, draw: Callable[..., Made]) -> None:
    assert styled("a cat", ["x {prompt} y", "z"]) == "x a cat y, z"
    assert styled("", ["z"]) == "z"
    job = library.job(
        parse_request({"prompt": "a {red} star", "styles": ["White", "Striped"], "negative_prompt": "x"}), 1
    )
    assert job.request.prompt == "a red star on a white background, striped style"
    assert (job.request.negative_prompt, job.request.styles) == ("x, black", ())
    assert job.template
    assert (job.template.styles, job.given.prompt, job.expansions) == (("White", "Striped"), "a {red} star", ())
    assert library.job(job.given, 1).request.prompt == job.request.prompt
    made = draw(prompt="a big red square", styles=["White", "Shapes: striped"], seed=1)
    (thing,) = judge(pixels(made.pictures[0])).things
    assert (thing.colour, thing.style) == ("red", "striped")
    with pytest.raises(InvalidRequest, match=r"^styles.1='None' is no style; there is: Photograph, .*White, Striped$"):
        library.job(parse_request({"styles": ["White", "None"]}), 1)
    with pytest.raises(InvalidRequest, match="styles"):
        parse_request({"styles": ["x"] * 21})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "styles.csv"
    for content, sentence in (
        (b"\xff\xfe\x00", "is no UTF-8 text; save it again"),
        (b"a,b\n1,2\n", "must begin with the line: name,prompt,negative_prompt"),
        (b"", "must begin with the line"),
        (b'name,prompt\nx,"' + b"y" * 200_000, "cannot be read as a table: field larger than field limit"),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidRequest, match=sentence) as caught:
            read_styles(path)
        assert path.name in str(caught.value) and str(tmp_path) not in str(caught.value)
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "bad.txt").write_bytes(b"\xff\xff\x00")
    with pytest.raises(InvalidRequest, match=r"bad\.txt is no UTF-8 text"):
        TextLibrary((tmp_path,)).filled(parse_request({"prompt": "__bad__"}), 1)
    assert (
        TextLibrary((tmp_path,)).filled(parse_request({"prompt": "__../../etc/passwd"}), 1).prompt
        == "__../../etc/passwd"
    )
    with pytest.raises(InvalidRequest, match=r"wildcard __\.\./styles__, which is no file"):
        TextLibrary((tmp_path,)).filled(parse_request({"prompt": "__../styles__"}), 1)


def test_shipped_styles_are_read() -> None:
    names = [style.name for style in read_styles(ROOT / "presets" / "styles.csv")]
    assert len(names) == len(set(names)) >= 5
    known = set(read_facts_words())
    shapes = [style for style in read_styles(ROOT / "presets" / "styles.csv") if style.name.startswith("Shapes: ")]
    assert shapes
    assert all(set(style.prompt.removeprefix("{prompt}, ").split()) <= known for style in shapes)


def read_facts_words() -> list[str]:
    from studio.store.facts import read_facts

    return read_facts(MODELS / "shapes")["words"]


def test_the_command_line_keeps_the_template_and_replays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "r.json").write_text(json.dumps({"prompt": 'a __colour__ "star"', "num_images_per_prompt": 4, **SMALL}))
    data = ["--data-dir", str(root)]
    command = ["generate", "--request", str(root / "r.json"), "--out", str(root / "out"), "--set", "styles=[Striped]"]
    assert main([*data, *command, "--set", "seed=1"]) == 0
    paths = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    words = [found.values["prompt"] for found in map(read_picture, map(Path, paths))]
    assert set(words) == {'a red "star", striped style', 'a blue "star", striped style'}
    text = read_picture(Path(paths[0])).text
    assert 'Template: "a __colour__ \'star\'", Styles: "Striped"' in text
    (root / "models" / "wildcards" / "colour.txt").write_text("green\n")
    for path in paths[-2:]:
        assert main([*data, "replay", path, "--out", str(root / "again")]) == 0
    assert capsys.readouterr().out == "identical\nidentical\n"
    assert main([*data, *command, "--set", "prompt=__nothing__"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("prompt names the wildcard __nothing__, which is no file")
    assert error.count("\n") == 1


def test_the_queue_chooses_anew_when_it_goes_on_forever(library: Library, blobs: BlobStore, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from studio.events import Finished
    from studio.executors.dispatcher import Dispatcher
    from studio.store.index import Database

    database = Database(tmp_path / "studio.db")
    dispatcher = Dispatcher(SimpleNamespace(), JobStore(database), library, blobs)  # type: ignore[arg-type]
    job = dispatcher.submit(parse_request({"prompt": "a __colour__ {1|2|3|4|5|6|7|8|9} star"}), "me", forever=True)
    seen = [job.request.prompt]
    for _ in range(8):
        entry = dispatcher.jobs.claim()
        assert entry
        dispatcher._finish(entry, Finished(job=entry.id, images=1))
        (after,) = dispatcher.jobs.waiting(5)
        assert after.job.template == job.template
        seen.append(after.job.request.prompt)
    assert len(set(seen)) > 2
    assert dispatcher.retry(job.id, "me").request == job.request
    database.close()
