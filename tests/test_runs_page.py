"""What the Runs tab stands on: routes over a real run's folder, what is kept of it, votes, comparisons."""

import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from safetensors.numpy import load_file
from starlette.applications import Starlette
from starlette.testclient import TestClient

from studio.errors import InvalidRequest, StudioError
from studio.executors.runner import Runner
from studio.plots import cells_of
from studio.settings import Settings
from studio.spec import GenerationRequest
from studio.store import writer
from studio.store.blobs import BlobStore
from studio.store.headers import safetensors_problem
from studio.store.library import Library
from studio.store.lora_cards import write_notes
from studio.store.lora_facts import read_lora_facts
from studio.store.priority import read_priority
from studio.store.run_plots import cells_shown, comparison
from studio.store.run_results import Result, find_result, keep, results_by_step, zipped
from studio.store.runs import Runs, Story
from studio.store.votes import Vote, next_pair, pairs_of, ranking
from studio.ui.run_routes import RunRoutes
from studio.ui.runs_tab import RunsTab, without_run
from tests.training import config_of, content, draw_pictures, train

QUICK = {"width": 64, "height": 64, "num_inference_steps": 2}
PROMPTS = ["a sks heart", "a sks heart, on a blue background"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a real run of four steps, two checkpoints and their samples."""
    root = tmp_path_factory.mktemp("runs")
    config = config_of(
        "lora", draw_pictures(root / "hearts"), rank=2, output_name="heart", max_train_steps=4, checkpointing_steps=2,
        validation_prompts=PROMPTS, trigger_word="sks heart", save_kohya=True,
    )  # fmt: skip
    rows = [{"prompt": prompt, "model": "shapes", "seed": seed, **QUICK} for seed, prompt in enumerate(PROMPTS)]
    Runs(root / "data" / "runs").set_samples("heart", rows)
    train("lora", config, root, run="data/runs/heart")
    return root / "data"


class Page:
    """The routes over a copy of the run, and what they change."""

    def __init__(self, data: Path) -> None:
        self.settings = Settings(data_dir=data, device="cpu", cpu_threads=1)
        self.changes = 0
        self.runs = Runs(self.settings.runs)
        self.runner = Runner(self.settings, self.runs, self._changed, lambda: False)  # never started: nothing begins
        services: Any = SimpleNamespace(
            settings=self.settings,
            plotter=SimpleNamespace(get=lambda name: None),
            owner=lambda headers: "local",
            gallery=SimpleNamespace(blobs=BlobStore(data / "blobs")),
        )
        training: Any = SimpleNamespace(runs=self.runs, runner=self.runner)
        self.client = TestClient(Starlette(routes=RunRoutes(services, training).table()))

    def _changed(self) -> None:
        self.changes += 1

    def get(self, path: str, **more: Any) -> Any:
        return self.client.get(f"/studio/{path}", **more)

    def post(self, path: str, body: Any = None) -> Any:
        return self.client.post(f"/studio/{path}", json={} if body is None else body)

    def refused(self, path: str, body: Any = None) -> str:
        answer = self.post(path, body)
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]


@pytest.fixture
def page(trained: Path, tmp_path: Path) -> Page:
    shutil.copytree(trained / "runs", tmp_path / "data" / "runs")
    return Page(tmp_path / "data")


def test_a_run_is_told_with_all_that_a_page_shows(page: Page) -> None:
    told = page.get("run/heart").json()
    assert (told["state"], told["step"], told["steps"], told["method"]) == ("finished", 4, 4, "lora")
    assert [step for step, _ in told["curves"]["loss"]] == [1, 2, 3, 4]
    assert [(one["step"], one["name"], one["kind"]) for one in told["results"]] == [
        (2, "heart-000002", "lora"), (4, "heart-000004", "lora"), (-1, "heart", "lora"),
    ]  # fmt: skip
    assert all(one["kohya"] for one in told["results"])
    assert list(told["samples"]) == ["2", "4"] and told["prompts"] == PROMPTS
    assert {told["said"][name] for name in told["samples"]["2"]} == set(PROMPTS)
    assert "\n# heart\n" in told["card"] and told["config"]["rank"] == 2
    assert told["command"].startswith("python -m trainers lora --config ")
    folder = page.runs.folder("heart")
    (folder / "recommendation.json").write_text(json.dumps({"step": 2, "reason": "the best", "path": "x"}))
    assert page.post("run/heart/prompts", {"prompts": PROMPTS}).json() == {}, "an action lets the next page read anew"
    assert page.get("run/heart").json()["recommended"] == {"step": 2, "reason": "the best"}
    for wrong in ("nothing", "..", "heart%2f..%2fheart", ".trash"):
        assert page.get(f"run/{wrong}").status_code == 404


def test_what_many_pages_ask_is_read_once(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[str] = []
    real = page.runs.results
    monkeypatch.setattr(page.runs, "results", lambda run_id: (walks.append(run_id), real(run_id))[1])
    for _ in range(20):
        assert page.get("run/heart").status_code == 200
    assert len(walks) <= 2


def test_samples_and_files_are_sent(page: Page) -> None:
    (name, _) = page.runs.story("heart").samples[2]
    first = page.get(f"run/heart/sample/{name}")
    assert first.content == page.runs.sample_path("heart", name).read_bytes()
    again = page.get(f"run/heart/sample/{name}", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    large = Image.new("RGB", (640, 320), "red")
    large.save(page.runs.folder("heart") / "samples" / "step-000002-9-0.png")
    small = page.get("run/heart/sample/step-000002-9-0.png?small=1")
    assert small.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(small.content)).size == (320, 160)
    for step, path in page.runs.results("heart").items():
        assert page.get(f"run/heart/file/{'final' if step < 0 else step}").content == path.read_bytes()
    kohya = page.get("run/heart/file/final?keys=kohya")
    assert b"lora_unet_" in kohya.content[:9000] and "heart-kohya.safetensors" in kohya.headers["content-disposition"]
    assert page.runs.results("heart")[-1].with_name("heart-kohya.safetensors").read_bytes() == kohya.content
    for wrong in (
        "sample/..%2fconfig.yaml",
        "sample/config.yaml",
        "file/3",
        "file/x",
        "file/-2",
        "file/2.5",
        f"file/{9**30}",
    ):
        assert page.get(f"run/heart/{wrong}").status_code == 404, wrong
    assert page.get("run/nothing/file/final").status_code == 404


def test_class_images_are_shown_as_they_come(page: Page) -> None:
    folder = page.settings.data_dir / "cache" / "class" / ("a" * 32)
    folder.mkdir(parents=True)
    assert page.runner.runs.folder("heart") and page.get("run/heart").json()["class"] is None
    (page.runs.folder("heart") / "class.json").write_text(json.dumps({"folder": folder.name, "number": 3}))
    for name in ("000000.png", "000001.png", "other.png"):
        Image.new("RGB", (400, 200), "red").save(folder / name)
    page.post("run/heart/prompts", {"prompts": PROMPTS})  # an action lets the next page read anew
    assert page.get("run/heart").json()["class"] == {"number": 3, "pictures": ["000000.png", "000001.png"]}
    assert page.get("run/heart/class/000001.png").content == (folder / "000001.png").read_bytes()
    assert Image.open(io.BytesIO(page.get("run/heart/class/000001.png?small=1").content)).format == "WEBP"
    for wrong in ("other.png", "000002.png", "..%2f..%2fconfig.yaml"):
        assert page.get(f"run/heart/class/{wrong}").status_code == 404
    (page.runs.folder("heart") / "class.json").write_text('{"folder": "../x", "number": 3}')
    assert page.get("run/heart/class/000001.png").status_code == 404


def test_kohyas_keys_are_made_when_somebody_asks(page: Page, tmp_path: Path) -> None:
    written = page.runs.results("heart")[-1].with_name("heart-kohya.safetensors")
    theirs = content(written)
    written.unlink()
    late = page.get("run/heart/file/final?keys=kohya")
    assert late.headers["content-disposition"].endswith('"heart-kohya.safetensors"')
    assert int(late.headers["content-length"]) == len(late.content)
    (tmp_path / "late.safetensors").write_bytes(late.content)
    mine = content(tmp_path / "late.safetensors")
    assert mine.pop("__metadata__").items() >= theirs.pop("__metadata__").items()
    assert mine == theirs and load_file(tmp_path / "late.safetensors")
    first = page.get("run/heart/file/2?keys=kohya")
    assert b"lora_unet_" in first.content[:9000] and first.content != late.content
    assert safetensors_problem(tmp_path / "late.safetensors") is None
    path = page.runs.results("heart")[4]
    path.write_bytes(path.read_bytes().replace(b".lora_A.weight", b".hada_w1.weigh"))
    refused = page.get("run/heart/file/4?keys=kohya")
    assert refused.status_code == 404 and "heart-000004 is no plain LoRA" in refused.json()["error"]


def test_every_action_says_what_it_cannot_do(page: Page) -> None:
    assert "is finished; to train longer" in page.refused("run/heart/start")
    assert "neither works nor waits" in page.refused("run/heart/cancel")
    assert "does not wait" in page.refused("run/heart/move", {"offset": -1})
    for name in ("pause", "resume", "save", "sample"):
        assert "is not running; resume it first" in page.refused(f"run/heart/{name}")
    assert "action must be one of: start, cancel" in page.refused("run/heart/fly")
    assert "prompts must be a list" in page.refused("run/heart/prompts", {"prompts": "a"})
    assert "none of them empty" in page.refused("run/heart/prompts", {"prompts": [" "]})
    assert "must be a JSON object" in page.refused("run/heart/keep", [1])
    for action in ("start", "cancel", "move", "remove", "clean", "keep", "vote", "compare", "prompts"):
        assert "is not there; there is: heart" in page.refused(f"run/nothing/{action}", {"steps": []}), action


def test_a_run_waits_moves_and_goes_into_the_trash(page: Page) -> None:
    config = (page.runs.folder("heart") / "config.yaml").read_text().partition("\n")[2]
    made = [page.runs.create("lora", name, config) for name in ("a", "b")]
    for name in made:
        assert page.post(f"run/{name}/start").status_code == 200
    assert page.post("run/b/move", {"offset": -1}).status_code == 200
    assert {row["id"]: row["place"] for row in page.get("runs").json()["runs"]} == {"a": 2, "b": 1, "heart": 0}
    assert page.post("run/b/remove").status_code == 200
    assert page.runner.queue() == ["a"] and (page.runs.root / ".trash" / "b").is_dir()
    assert page.post("run/a/cancel").status_code == 200 and page.get("run/a").json()["state"] == "new"
    freed = page.post("run/heart/clean").json()["bytes"]
    assert freed > 10_000 and not list(page.runs.root.glob("heart/checkpoints/*/state"))
    assert len(page.runs.results("heart")) == 3
    assert page.post("run/heart/remove").status_code == 200 and page.get("run/heart").status_code == 404


def test_other_prompts_keep_what_stands_beside_them(page: Page) -> None:
    before = page.runs.samples("heart")
    assert page.post("run/heart/prompts", {"prompts": ["a star", *PROMPTS]}).status_code == 200
    rows = page.runs.samples("heart")
    assert [row["prompt"] for row in rows] == ["a star", *PROMPTS]
    assert [row["seed"] for row in rows] == [before[0]["seed"], before[1]["seed"], before[0]["seed"] + 2]


def test_who_goes_first_is_kept_and_every_page_hears(page: Page) -> None:
    for first in ("training", "ask", "pictures"):
        assert page.post(f"priority/{first}").json()["first"] == first
    page.post("priority/ask")
    assert page.post("priority/once").json() == {"runs": [], "first": "ask", "once": True}
    assert read_priority(page.settings.data_dir) == ("ask", True) and page.changes == 5
    assert "must be one of: pictures, training, ask" in page.refused("priority/me")


def test_a_kept_lora_outlives_its_run_and_draws_the_same(page: Page, trained: Path) -> None:
    cover = page.runs.story("heart").samples[2][0]
    body = {"step": 2, "name": "my-heart", "words": "sks heart", "weight": 0.8, "notes": "soft", "cover": cover}
    assert page.post("run/heart/keep", body).json() == {
        "where": "models/loras/my-heart.safetensors",
        "name": "my-heart",
    }
    library = Library(page.settings.model_folders, None, page.settings.part_roots, page.settings.runs)
    part = library.parts.get("lora", "my-heart", "loras.0.name")
    assert part.path.read_bytes() == page.runs.results("heart")[2].read_bytes()
    facts = read_lora_facts(part.path)
    told = facts.trigger_words, facts.recommended_weight, facts.notes, facts.cover
    assert told == (("sks heart",), 0.8, "soft", True)
    assert page.get("run/heart").json()["kept"] == [{"step": 2, "name": "my-heart"}]
    assert "models/loras has it already; choose another name" in page.refused("run/heart/keep", body)
    for wrong in ("", "../x", "a/b", "x.safetensors", ".hidden", "x" * 90):
        assert "must be letters, digits" in page.refused("run/heart/keep", body | {"name": wrong})
    for field, value in (("weight", "much"), ("weight", 9), ("notes", "x" * 5000), ("words", "x" * 600)):
        assert page.refused("run/heart/keep", body | {"name": "other", field: value}), field
    assert "step=7" in page.refused("run/heart/keep", body | {"name": "other", "step": 7}).replace("'", "")
    assert "no sample" in page.refused("run/heart/keep", body | {"name": "other", "cover": "../../x.png"})
    assert sorted(path.name for path in part.path.parent.iterdir()) == [
        "my-heart.json", "my-heart.preview.png", "my-heart.safetensors",
    ]  # fmt: skip
    page.post("run/heart/remove")
    assert library.parts.get("lora", "my-heart", "loras.0.name").path == part.path


def test_a_runs_own_results_take_no_card_and_stay_whole(page: Page) -> None:
    for step in (2, -1):
        with pytest.raises(StudioError, match="belongs to a training run"):
            write_notes(page.runs.results("heart")[step], "x")
    for folder in page.runs.root.glob("heart/checkpoints/step-*"):
        assert writer.verify_directory(folder) is None


def test_a_model_and_an_embedding_are_kept_in_their_own_places(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    for method, name in (("full", "m"), ("textual-inversion", "e"), ("unconditional", "u"), ("controlnet", "c")):
        folder = tmp_path / "runs" / runs.create(method, name, "model: shapes\n") / "final" / name
        if method == "textual-inversion":
            folder.parent.mkdir()
            folder.with_suffix(".safetensors").write_bytes(b"e")
            continue
        folder.mkdir(parents=True)
        (folder / ("config.json" if method == "controlnet" else "model_index.json")).write_text("{}")
        (folder / "unet").mkdir()
        (folder / "unet" / "w.safetensors").write_bytes(bytes(3_000_000))
    kinds = {name: results_by_step(runs, name)[-1].kind for name in runs.ids()}
    assert kinds == {"m": "model", "e": "embedding", "u": "wordless", "c": "controlnet"}
    assert find_result(runs, "e", "final").word == "e"
    for name, place in (
        ("m", "checkpoints/k"),
        ("e", "embeddings/k.safetensors"),
        ("c", "controlnets/k"),
        ("u", "checkpoints/u"),
    ):
        assert (
            keep(runs, name, find_result(runs, name, -1), tmp_path / "models", Path(place).stem, {})
            == f"models/{place}"
        )
    assert (tmp_path / "models/checkpoints/k/unet/w.safetensors").stat().st_size == 3_000_000
    pieces = list(zipped(find_result(runs, "m", "final").path))
    assert max(map(len, pieces)) < 1_200_000, "the archive is never whole in memory"
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.testzip() is None and sorted(archive.namelist()) == [
            "m/model_index.json",
            "m/unet/w.safetensors",
        ]


def test_votes_are_blind_fair_and_ranked(page: Page) -> None:
    first = page.get("run/heart/votes").json()
    assert set(first["steps"]) == {2, 4} and first["ranking"] == [] and first["pair"]["prompt"] in PROMPTS
    for _ in range(6):
        pair = page.get("run/heart/votes").json()["pair"]
        better = "left" if pair["left"].startswith("step-000002") else "right"
        told = page.post("run/heart/vote", {"left": pair["left"], "right": pair["right"], "better": better}).json()
    assert told["votes"] == 6
    assert [(row["step"], row["won"], row["lost"], row["score"]) for row in told["ranking"]] == [
        (2, 6, 0, 1),
        (4, 0, 6, 0),
    ]
    seen = {Vote.model_validate(row).left[12:] for row in json.loads((page.runs.root / "heart/votes.json").read_text())}
    assert len(seen) == 2, "every prompt is asked for"
    names = page.runs.story("heart").samples
    wrong = {"left": names[2][0], "right": names[4][1], "better": "left"}
    assert "of one prompt and of different steps" in page.refused("run/heart/vote", wrong)
    assert "of one prompt" in page.refused("run/heart/vote", wrong | {"right": names[2][0]})
    assert "there is no sample" in page.refused("run/heart/vote", wrong | {"right": "../x.png"})
    assert "better='me' must be one of" in page.refused("run/heart/vote", wrong | {"better": "me"})
    assert page.get("run/nothing/votes").status_code == 404
    (page.runs.root / "heart" / "votes.json").write_text("{torn")
    assert page.get("run/heart/votes").json()["votes"] == 0


def test_the_pair_that_was_compared_least_comes_next() -> None:
    story = Story(prompts={f"step-{step:06d}-{place}-0.png": f"p{place}" for step in (1, 2, 3) for place in (0, 1)})
    assert len(pairs_of(story)) == 6
    votes: list[Vote] = []
    rng = random.Random(0)
    for _ in range(12):
        pair = next_pair(story, votes, rng)
        assert pair
        votes.append(Vote(left=pair[0], right=pair[1], better="same"))
    counts = [sum({vote.left, vote.right} == set(pair) for vote in votes) for pair in pairs_of(story)]
    assert counts == [2] * 6
    assert {row["score"] for row in ranking(votes)} == {0.5}
    changed = Story(prompts={"step-000001-0-0.png": "a", "step-000002-0-0.png": "b"})
    assert next_pair(changed, [], rng) is None, "another prompt is no comparison"


def results(kind: str, *steps: int, word: bool = False) -> list[Result]:
    return [Result(n, f"r-{n:06d}", Path("x"), kind, f"r-{n:06d}" if word else "") for n in steps]


def test_checkpoint_times_weight_times_prompt_is_one_plot() -> None:
    base = GenerationRequest(seed=5)
    spec = comparison(base, {}, results("lora", 1, 2), PROMPTS, [0, 0.5, 1])
    cells = cells_of(spec)
    told = {(c.request.prompt, c.request.loras[0].name, c.request.loras[0].weight) for c in cells}
    assert len(cells) == len(told) == 12 and {c.request.seed for c in cells} == {5}
    assert {name for _, name, _ in told} == {"r-000001", "r-000002"} and {text for text, _, _ in told} == set(PROMPTS)
    shown = cells_shown(spec, [str(n) for n in range(11)] + [""])
    assert shown[0] == {"image": "0", "label": "LoRA 1: name: r-000001 · LoRA 1: weight: 0 · a sks heart"}
    assert len(shown) == 11
    alone = cells_of(comparison(base, {}, results("lora", 1), PROMPTS[:1], [0.5]))
    assert [(c.request.loras[0].name, c.request.loras[0].weight) for c in alone] == [("r-000001", 0.5)]
    models = cells_of(comparison(base, {"model": "shapes"}, results("model", 1, 2), ["a"], [1], untouched=True))
    assert [c.request.model for c in models] == ["shapes", "r-000001", "r-000002"]
    words = comparison(
        base, {"placeholder_token": "<h>"}, results("embedding", 1, 2, word=True), ["a <h>", "big <h>, red"], [1]
    )
    assert {c.request.prompt for c in cells_of(words)} == {
        f"{text} {name}{rest}" for name in ("r-000001", "r-000002") for text, rest in (("a", ""), ("big", ", red"))
    }
    control = GenerationRequest.model_validate({"prompt": "a", "controls": [{"model": "r", "image": "x.png"}]})
    nets = cells_of(comparison(control, {}, results("controlnet", 1, 2), ["a"], [1]))
    assert [c.request.controls[0].model for c in nets] == ["r-000001", "r-000002"]


@pytest.mark.parametrize(
    ("made", "prompts", "weights", "why"),
    [
        ([], ["a"], [1], "steps is empty"),
        (results("lora", 1), [], [1], "prompts must be 1 to 20"),
        (results("lora", 1), ["a"], [], "weights must be 1 to 10"),
        (results("wordless", 1), ["a"], [1], "draws without words"),
        (results("controlnet", 1), ["a"], [1], "no sample with a control picture"),
        (results("lora", 1, 2, word=True), ["a"], [1], "a word of its own"),
    ],
)
def test_what_cannot_be_compared_says_why(
    made: list[Result], prompts: list[str], weights: list[float], why: str
) -> None:
    with pytest.raises(StudioError, match=why):
        comparison(GenerationRequest(), {"placeholder_token": "<h>"}, made, prompts, weights)


def test_wrong_wishes_for_a_comparison(page: Page) -> None:
    body = {"steps": [2], "weights": [1], "prompts": ["a"]}
    for change, why in (
        ({"steps": "2"}, "steps must be a list"),
        ({"steps": [3]}, "has no result"),
        ({"weights": ["x"]}, "'x' is no number"),
        ({"weights": None}, "weights must be a list"),
        ({"prompts": []}, "prompts must be 1 to 20"),
    ):
        assert why in page.refused("run/heart/compare", body | change)


@pytest.mark.parametrize(
    ("method", "config", "files", "before", "after"),
    [
        ("lora", {}, ["n.safetensors"], "a cat <lora:n-000100:0.5>", "a cat <lora:n:1>"),
        ("lora", {"recommended_weight": 0.7}, ["n.safetensors"], "", "a sks heart <lora:n:0.7>"),
        ("textual-inversion", {"placeholder_token": "<h>"}, ["n.safetensors"], "a <h> n-000100", "a n n"),
        (
            "textual-inversion",
            {"placeholder_token": "<h>"},
            ["n.safetensors", "n_emb.safetensors"],
            "a <h>",
            "a n_emb <lora:n:1>",
        ),
        ("full", {}, ["n/model_index.json"], "a cat", "a cat"),
        ("controlnet", {}, ["n/config.json"], "a cat", "a cat"),
    ],
)
def test_using_a_result_fills_the_form(
    tmp_path: Path, method: str, config: dict[str, Any], files: list[str], before: str, after: str
) -> None:
    runs = Runs(tmp_path)
    runs.create(method, "n", json.dumps({"model": "base"} | config), [{"prompt": "a sks heart"}])
    for file in files:
        writer.write_file(tmp_path / "n" / "final" / file, b"{}")
    services: Any = SimpleNamespace(training=SimpleNamespace(runs=runs))
    models = [(name, name) for name in ("shapes", "base", *(["n"] if method == "full" else []))]
    form: Any = SimpleNamespace(model_choices=lambda: models)
    prompt, model, unit, on, tabs = RunsTab(services).use(form, json.dumps({"run": "n", "step": -1}), before, "shapes")
    assert prompt == after and tabs.selected == "generate"
    assert model["value"] == ("n" if method == "full" else "base")
    assert (on is True and unit["value"] == "n") == (method == "controlnet")
    for wrong in ("", "{}", "no json", json.dumps({"run": "n", "step": 7}), json.dumps({"run": "../n", "step": -1})):
        with pytest.raises(gr.Error):
            RunsTab(services).use(form, wrong, before, "shapes")


def test_using_a_model_of_classes_names_one(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.create("unconditional", "n", "architecture: dit\n")
    writer.write_file(tmp_path / "n" / "final" / "n" / "model_index.json", b"{}")
    library = SimpleNamespace(get=lambda name: SimpleNamespace(classes=("circle", "star")))
    services: Any = SimpleNamespace(training=SimpleNamespace(runs=runs), library=library)
    form: Any = SimpleNamespace(model_choices=lambda: [("n", "n")])
    for before, after in (("a red circle", "circle"), ("star", "star")):
        assert RunsTab(services).use(form, json.dumps({"run": "n", "step": -1}), before, "shapes")[0] == after


def test_two_checkpoints_of_one_run_are_never_in_one_prompt() -> None:
    prompt = "a sks heart <lora:heart-000100:0.8> <lora:other:1><lora:heart:1>"
    assert without_run(prompt, "heart", "") == "a sks heart <lora:other:1>"
    assert (
        without_run("a heart-000100 on heart_emb-000002", "heart", "heart-000200") == "a heart-000200 on heart-000200"
    )


def test_a_wrong_step_names_those_that_are_there(page: Page) -> None:
    with pytest.raises(InvalidRequest, match="there is: 2, 4, final"):
        find_result(page.runs, "heart", None)
