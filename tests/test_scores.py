"""What a run says of its own checkpoints: each score on pictures whose truth is known, the recommended step, and that nothing changes."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.shapes.render import render
from benchmarks.shapes.world import Scene, Thing
from studio.errors import InvalidRequest
from studio.settings import ROOT
from tests.tiny import clip_tokenizer
from tests.training import config_of, content, draw_pictures, killed_run, train
from trainers.recommendation import Scored, figures, recommend
from trainers.scorers.choice import choose_scorer, scorer_folders
from trainers.scorers.encoders import joined
from trainers.scorers.pixels import Pixels
from trainers.scorers.reading import judge
from trainers.scorers.shapes import Shapes, said_facts, suits
from trainers.trigger import without_trigger

CPU = torch.device("cpu")
ENCODER = ROOT / "presets" / "controlnets" / "shapes-ip" / "image_encoder"
PROMPTS = ("a sks heart on a blue background", "a sks heart on a white background")
STEPS = {"rank": 2, "max_train_steps": 4, "checkpointing_steps": 2, "trigger_word": "sks"}


def picture(colour: str, shape: str, background: str = "white", seed: int = 0, x: float = 0.5) -> np.ndarray:
    return render(Scene((Thing(colour, shape, x, 0.5, 0.25),), background), random.Random(seed))


@pytest.fixture(scope="module")
def hearts() -> list[np.ndarray]:
    return [picture("green", "heart", one, i) for i, one in enumerate(("white", "blue", "black", "yellow"))]


# scorers


@pytest.mark.parametrize("name", ["pixels", "shapes", "encoder"])
def test_a_copy_is_a_copy_and_the_same_picture_has_not_changed(hearts: list[np.ndarray], name: str) -> None:
    scorer = {"pixels": Pixels, "shapes": Shapes}[name]() if name != "encoder" else joined([ENCODER], CPU)
    training = scorer.read(hearts)
    copy, fresh, other = scorer.read([hearts[2], picture("green", "heart", "cyan", 9, 0.4), picture("red", "ring")])
    assert scorer.memorisation(copy, training) == pytest.approx(1, abs=1e-5)
    seen = scorer.memorisation(fresh, training)
    assert seen is not None and 0 <= seen < 0.98
    assert scorer.drift(copy, copy) == pytest.approx(0, abs=1e-5)
    changed = scorer.drift(other, copy)
    assert changed is not None and changed > 0.1


def test_pixels_know_pictures_of_one_colour() -> None:
    scorer = Pixels()
    white, black, again = scorer.read([np.full((64, 80, 3), level, np.uint8) for level in (255, 0, 255)])
    assert scorer.drift(white, again) == 0
    assert scorer.drift(white, black) == pytest.approx(1 / 3, abs=1e-6)
    assert scorer.subject(white, [white]) is None and scorer.prompt(white, "white") is None


def test_the_subject_is_what_the_pictures_share(hearts: list[np.ndarray]) -> None:
    scorer = Shapes()
    training = scorer.read(hearts)
    seen = scorer.read([picture("green", "heart", "pink"), picture("red", "heart"), picture("green", "star", "pink")])
    assert [scorer.subject(one, training) for one in seen] == [1, 0, 0]
    mixed = scorer.read([picture("red", "ring"), picture("blue", "star"), picture("pink", "cross")])
    assert scorer.subject(mixed[0], mixed) == 1  # all they share is that there is one flat thing


@pytest.mark.parametrize(
    ("prompt", "share"),
    [
        ("a green heart on a pink background", 1),
        ("a heart on a pink background", 1),
        ("a green heart on a blue background", 2 / 3),
        ("a red heart on a pink background", 2 / 3),
        ("two green hearts on a pink background", 2 / 3),
        ("a green heart and a red star on pink", 2 / 4),
        ("Pink background, masterpiece", 1),
        ("a green heart, outline style", 2 / 3),
        ("a photograph of my dog", None),
    ],
)
def test_facts_of_a_prompt_are_counted(prompt: str, share: float | None) -> None:
    scorer = Shapes()
    (seen,) = scorer.read([picture("green", "heart", "pink")])
    assert scorer.prompt(seen, prompt) == (pytest.approx(share) if share is not None else None)
    assert bool(said_facts(prompt, judge(picture("green", "heart")))) is (share is not None)


def test_an_encoder_that_knows_the_world_knows_the_subject(hearts: list[np.ndarray]) -> None:
    scorer = joined([ENCODER], CPU)
    training = scorer.read(hearts)
    same, other = scorer.read([picture("green", "heart", "pink", 5), picture("red", "ring", "pink", 5)])
    near, far = scorer.subject(same, training), scorer.subject(other, training)
    assert near is not None and far is not None and near > far + 0.05
    assert scorer.prompt(same, "a heart") is None


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny CLIP and a tiny DINOv2, and what is none."""
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    root = tmp_path_factory.mktemp("roots")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer: Any = clip_tokenizer()
    torch.manual_seed(6)  # with most others all prompts are worth less than nothing, which is told as 0
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 77}
    config: Any = CLIPConfig(text_config=tower | words, vision_config=tower | {"image_size": 32, "patch_size": 8})
    CLIPModel(config).save_pretrained(root / "scorers" / "clip")
    tokenizer.save_pretrained(root / "scorers" / "clip")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(root / "scorers" / "dino")
    (root / "scorers" / "bert").mkdir()
    (root / "scorers" / "bert" / "config.json").write_text('{"model_type": "bert"}')
    shutil.copytree(root / "scorers" / "dino", root / "scorers" / "pickled")
    (root / "scorers" / "pickled" / "model.safetensors").rename(root / "scorers" / "pickled" / "pytorch_model.bin")
    return root


def test_what_is_there_is_used(scorers: Path, hearts: list[np.ndarray]) -> None:
    folders = scorer_folders("automatic", [scorers])
    assert [one.name for one in folders] == ["clip", "dino"]
    captions = ["a photograph of my toy"] * len(hearts)
    both = choose_scorer("automatic", folders, CPU, hearts, captions)
    assert both is not None and both.title == "dino and clip"
    training = both.read(hearts)
    scores = both.subject(training[0], training), both.prompt(training[0], "a heart " * 100)
    assert all(one is not None and 0 <= one <= 1 for one in scores)
    both.close()
    assert both.read(hearts[:1])[0][0].tolist() == training[0][0].tolist()
    assert isinstance(choose_scorer("automatic", folders, CPU, hearts, ["a green heart"] * len(hearts)), Shapes)
    assert isinstance(choose_scorer("automatic", [], CPU, hearts, captions), Pixels)
    assert choose_scorer("none", [], CPU, hearts, captions) is None
    clip = choose_scorer("clip", scorer_folders("clip", [scorers]), CPU, hearts, captions)
    assert clip is not None and clip.title == "clip" and clip.prompt(clip.read(hearts[:1])[0], "a heart") is not None


def test_a_clip_says_of_text_and_picture_what_transformers_says(scorers: Path, hearts: list[np.ndarray]) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    folder = scorers / "scorers" / "clip"
    model: Any = CLIPModel.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(["a heart"], return_tensors="pt")
    size: Any = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    pixels = CLIPImageProcessor(**size)(hearts[:1], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(**tokens, pixel_values=pixels)
    wanted = 2.5 * float((out.text_embeds @ out.image_embeds.T)[0, 0])
    scorer = joined([folder], CPU)
    assert 0.1 < wanted < 0.9
    assert scorer.prompt(scorer.read(hearts[:1])[0], "a heart") == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bert", "scorer='bert' is of the kind bert; use one of clip, clip_vision_model, dinov2"),
        ("pickled", "scorer='pickled' has no .safetensors file"),
        (
            "nothing",
            "scorer='nothing' must be a folder with a CLIP or DINOv2, or automatic, none, shapes, pixels, bert",
        ),
        ("benchmarks.shapes.scorer:Scorer", "must be a folder with a CLIP or DINOv2"),
    ],
)
def test_what_is_no_scorer_is_refused(scorers: Path, name: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        scorer_folders(name, [scorers])
    assert said in str(error.value)


def test_the_judge_of_shapes_is_for_pictures_of_shapes(hearts: list[np.ndarray]) -> None:
    assert suits(hearts, ["a sks heart"] * len(hearts))
    assert not suits(hearts, ["a photograph of my dog"] * len(hearts))
    noise = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(3)]
    assert not suits(noise, ["a green heart on a blue background"] * 3)


@pytest.mark.parametrize(
    ("prompt", "trigger", "class_prompt", "plain"),
    [
        ("a sks heart on a blue background", "sks", "", "a heart on a blue background"),
        ("a SKS heart", "sks", "", "a heart"),
        ("a photo of ohwx man, smiling", "ohwx man", "", "a photo of man, smiling"),
        ("a sks toy heart", "sks toy", "a heart", "a heart"),
        ("a (sks:1.2) heart", "sks", "", "a heart"),
        ("sks, 1girl, solo, sks", "sks", "", "1girl, solo"),
        ("a task of risks", "sks", "", "a task of risks"),
        ("a heart", "sks", "", "a heart"),
        ("a heart", "", "", "a heart"),
        ("sks", "sks", "", ""),
        (r"a \1 heart", r"\1", "", "a heart"),
    ],
)
def test_a_prompt_without_its_trigger(prompt: str, trigger: str, class_prompt: str, plain: str) -> None:
    assert without_trigger(prompt, trigger, class_prompt) == plain


# the recommended step


def scored(*rows: tuple[float, float, float, float]) -> list[Scored]:
    names = ("subject", "prompt", "drift", "memorisation")
    return [
        Scored(step=100 * i, path=f"step-{i}", scores=dict(zip(names, row, strict=True)))
        for i, row in enumerate(rows, 1)
    ]


@pytest.mark.parametrize(
    ("rows", "step", "why"),
    [
        ([(0.2, 0.9, 0.0, 0.5), (0.9, 0.9, 0.0, 0.6)], 200, "earlier steps are less good"),
        ([(0.9, 0.9, 0.1, 0.6), (0.9, 0.9, 0.6, 0.6)], 100, "later steps change the class more (step 200: drift 60 %)"),
        ([(0.9, 0.9, 0.1, 0.6), (0.9, 0.5, 0.1, 0.6)], 100, "later steps obey prompts less (step 200: prompt 50 %)"),
        (
            [(0.95, 0.9, 0.1, 0.6), (0.96, 0.9, 0.1, 0.98)],
            100,
            "later steps copy the pictures more (step 200: memorisation 0.98)",
        ),
        ([(0.9, 0.9, 0.1, 0.6), (0.9, 0.9, 0.1, 0.6)], 100, "later steps are no better"),
        ([(0.0, 0.9, 0.0, 0.1), (0.9, 0.9, 0.5, 0.9)], 200, "earlier steps are less good"),
        ([(0.5, 0.5, 0.5, 0.5)], 100, "it is the only checkpoint so far"),
    ],
)
def test_the_balance_decides_then_what_copies_least_then_the_first(rows: Any, step: int, why: str) -> None:
    found = recommend(scored(*rows))
    assert found is not None and found.step == step and found.reason.endswith(why)
    assert found.reason.startswith(f"step {step}: {figures(found.scores)}; ")


def test_without_likeness_or_obedience_the_last_is_taken_and_says_so() -> None:
    rows = [Scored(step=one, path="x", scores={"drift": 0.5 / one}) for one in (1, 2)]
    found = recommend(rows)
    assert found is not None and found.step == 2 and "a CLIP or DINOv2 folder in models/scorers would" in found.reason
    assert recommend([]) is None


# runs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("hearts"), 3)


def ready(root: Path, run: str = "run", prompts: tuple[str, ...] = PROMPTS, steps: int = 5) -> Path:
    """Write a run's sample requests, of few steps."""
    (root / run).mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": one, "seed": i, "num_inference_steps": steps} for i, one in enumerate(prompts)]
    (root / run / "samples.yaml").write_text(yaml.safe_dump(rows))
    return root / run


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if line]


def metrics(run: Path) -> dict[tuple[int, str], float]:
    names = ("subject", "prompt", "drift", "memorisation")
    told = [one for one in events(run) if one["type"] == "metric" and one["name"] in names]
    return {(one["step"], one["name"]): one["value"] for one in told}


def tensors(path: Path | str) -> dict[str, Any]:
    return {name: one for name, one in content(path).items() if name != "__metadata__"}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("judged")
    run = ready(root)
    return run, train("lora", config_of("lora", pictures, **STEPS), root)


def test_each_checkpoint_is_scored_and_one_is_recommended(judged: tuple[Path, dict[str, Any]]) -> None:
    run, answer = judged
    told = metrics(run)
    assert sorted(told) == [(step, name) for step in (2, 4) for name in ("drift", "memorisation", "prompt", "subject")]
    for step in (2, 4):
        kept = json.loads((run / "scores" / f"step-{step:06d}.json").read_text())
        assert kept["scores"] == {name: value for (at, name), value in told.items() if at == step}
        assert kept["scorer"] == "shapes" and all((run / row["path"]).is_file() for row in kept["pictures"])
        seen = [judge(Image.open(run / row["path"])) for row in kept["pictures"]]
        right = [
            len(one.things) == 1 and one.things[0].shape == "heart" and one.things[0].colour == "orange" for one in seen
        ]
        assert kept["scores"]["subject"] == pytest.approx(np.mean(right), abs=1e-3)
    found = json.loads((run / "recommendation.json").read_text())
    assert (run / found["path"]).is_file() and found["reason"].startswith(f"step {found['step']}: subject ")
    assert "later" in found["reason"] or "earlier" in found["reason"]
    assert [one["type"] for one in events(run) if one["type"] == "image"] == ["image"] * 4  # the class is no sample
    metadata = content(answer["artifact"])["__metadata__"]
    assert metadata["recommended_step"] == str(found["step"]) and metadata["recommendation"] == found["reason"]
    assert json.loads(metadata["scores"])["subject"] == told[4, "subject"]


def test_the_class_is_drawn_by_the_checkpoint_and_by_the_untouched_model(judged: tuple[Path, dict[str, Any]]) -> None:
    from benchmarks.shapes.product import Product

    run, _ = judged
    folder = run / "samples" / "class"
    assert len(list(folder.glob("base-*.png"))) == 2 and len(list(folder.glob("step-*.png"))) == 4
    own = Product(run.parent / "blobs")
    asked = {"prompt": "a heart on a blue background", "seed": 0, "num_inference_steps": 5}
    bases = [np.array(Image.open(path).convert("RGB")) for path in folder.glob("base-*.png")]
    drawn = own.draw(**asked)
    assert any(np.array_equal(drawn, one) for one in bases)
    weights = run / "checkpoints" / "step-000004" / "weights" / "trained-000004.safetensors"
    now = own.draw(**asked, loras=[{"name": str(weights)}])
    assert np.array_equal(now, np.array(Image.open(folder / "step-000004-0-0.png").convert("RGB")))
    assert not np.array_equal(now, drawn)


def test_scores_change_nothing_that_is_learnt(tmp_path: Path, pictures: Path, judged: Any) -> None:
    plain = train("lora", config_of("lora", pictures, scorer="none", **STEPS), tmp_path)
    assert tensors(plain["artifact"]) == tensors(judged[1]["artifact"])
    assert not (tmp_path / "run" / "scores").exists() and not (tmp_path / "run" / "recommendation.json").exists()


def test_the_card_has_samples_and_scores(judged: tuple[Path, dict[str, Any]]) -> None:
    run, answer = judged
    card = (Path(answer["artifact"]).parent / "README.md").read_text()
    sheet = Image.open(Path(answer["artifact"]).parent / "samples.png")
    assert sheet.size == (256, 128) and "![Samples of step 4](samples.png)" in card
    assert "| step | subject | prompt | drift | memorisation |" in card and "| 2 | " in card and "| 4 | " in card
    assert "Recommended: " + json.loads((run / "recommendation.json").read_text())["reason"] in card


def test_a_scorer_that_fails_is_told_and_the_run_goes_on(tmp_path: Path, pictures: Path, judged: Any) -> None:
    broken = tmp_path / "data" / "models" / "scorers" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text('{"model_type": "dinov2", "hidden_size": 16}')
    (broken / "model.safetensors").write_bytes(b"nothing")
    run = ready(tmp_path)
    answer = train("lora", config_of("lora", pictures, scorer="broken", **STEPS), tmp_path)
    assert answer["status"] == "finished" and tensors(answer["artifact"]) == tensors(judged[1]["artifact"])
    said = [one["message"] for one in events(run) if one["type"] == "notice"]
    assert [one.partition(":")[0] for one in said] == ["no scores for step 2", "no scores for step 4"]
    assert not metrics(run) and len(list((run / "samples").glob("*.png"))) == 4


def test_a_run_that_was_killed_before_its_scores_makes_up_for_them(
    tmp_path: Path, pictures: Path, judged: tuple[Path, dict[str, Any]]
) -> None:
    shutil.copytree(judged[0], tmp_path / "run")
    run = tmp_path / "run"
    for path in ("final", "recommendation.json", "scores/step-000004.json", "samples/step-000004-0-0.png"):
        shutil.rmtree(run / path) if (run / path).is_dir() else (run / path).unlink()
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"checkpoint"' in line and '"step":4' in line)
    (run / "events.jsonl").write_text("".join(lines[: cut + 1]))
    train("lora", config_of("lora", pictures, **STEPS), tmp_path, resume=True)
    assert metrics(run) == metrics(judged[0])
    assert (run / "recommendation.json").read_bytes() == (judged[0] / "recommendation.json").read_bytes()
    assert (run / "scores/step-000004.json").read_bytes() == (judged[0] / "scores/step-000004.json").read_bytes()


def test_a_killed_run_has_the_same_scores(tmp_path: Path, pictures: Path, judged: tuple[Path, dict[str, Any]]) -> None:
    run = ready(tmp_path, "killed")
    rng = random.Random(3)
    assert killed_run("lora", config_of("lora", pictures, **STEPS), tmp_path, [rng.uniform(0.5, 4) for _ in range(4)])
    assert metrics(run) == metrics(judged[0])
    for name in ("recommendation.json", "scores/step-000002.json", "scores/step-000004.json"):
        assert (run / name).read_bytes() == (judged[0] / name).read_bytes()


def test_the_recommended_weights_stay(tmp_path: Path, pictures: Path) -> None:
    run = ready(tmp_path, prompts=PROMPTS[:1], steps=2)
    steps = STEPS | {"max_train_steps": 3, "checkpointing_steps": 1, "checkpoints_total_limit": 1}
    train("lora", config_of("lora", pictures, **steps), tmp_path)
    found = json.loads((run / "recommendation.json").read_text())
    assert [path.parent.name for path in (run / "checkpoints").glob("*/state")] == ["step-000003"]
    assert (run / found["path"]).is_file()


def test_a_run_without_a_trigger_word_uses_the_class_prompt(tmp_path: Path, pictures: Path) -> None:
    run = ready(tmp_path, prompts=PROMPTS[:1], steps=2)
    prior = {"with_prior_preservation": True, "class_prompt": "a heart", "num_class_images": 1}
    train("dreambooth", config_of("dreambooth", pictures, rank=2, max_train_steps=1, **prior), tmp_path)
    assert {name for _, name in metrics(run)} == {"subject", "prompt", "drift", "memorisation"}
    (base,) = (run / "samples" / "class").glob("base-*.png")
    assert json.loads(Image.open(base).text["studio"])["request"]["prompt"] == "a heart"  # type: ignore[attr-defined]


def test_a_new_word_alone_cannot_change_the_class(tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "toys", 2, word="<toy>")
    run = ready(tmp_path, prompts=("a <toy> on a blue background",), steps=2)
    told = {"placeholder_token": "<toy>", "initializer_token": "heart", "max_train_steps": 1}
    train("textual-inversion", config_of("textual-inversion", folder, scorer="shapes", **told), tmp_path)
    assert {name for _, name in metrics(run)} == {"subject", "prompt", "memorisation"}


def test_an_unknown_scorer_is_refused_before_the_run(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(InvalidRequest, match="scorer='clip-large' must be a folder"):
        train("lora", config_of("lora", pictures, scorer="clip-large", **STEPS), tmp_path)
    assert not (tmp_path / "run").exists()
