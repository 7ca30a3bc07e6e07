"""Textual inversion: what learns and what does not, what bare diffusers makes of the files, resume, and a sentence per wrong config."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.shapes.teach import draw_lesson, teach
from studio.engine.devices import open_device
from studio.errors import InvalidRequest
from studio.settings import ROOT, Settings
from studio.store.blobs import BlobStore
from studio.store.library import Library
from studio.store.metadata import read_picture
from studio.word_facts import advice, look_up, rare_words
from tests.conftest import MODELS, drawer, pixels
from tests.tiny import WIDE, clip_tokenizer, sdxl, t5
from trainers.config_files import check_config, read_config
from trainers.inversion_configs import TextualInversionConfig
from trainers.material import Material, Pictures
from trainers.models import load_parts
from trainers.optimizers import build_optimizer
from trainers.session import Session
from trainers.textual_inversion import TEMPLATES, TextualInversion, spread

PROMPT = "a <toy> on a blue background"
SMALL: dict[str, Any] = {
    "placeholder_token": "<toy>",
    "initializer_token": "toy",
    "resolution": 64,
    "max_train_steps": 2,
    "checkpointing_steps": 0,
    "learning_rate": 0.05,
    "output_name": "toy",
}
LORA: dict[str, Any] = {"train_lora": True, "rank": 2, "embedding_learning_rate": 0.01}


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_lesson(tmp_path_factory.mktemp("lesson"), "<toy>")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny SDXL beside the embedded model."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    sdxl().save_pretrained(folder / "sdxl")
    return folder


@pytest.fixture
def begin(lesson: Path, models: Path, tmp_path: Path) -> Callable[..., tuple[TextualInversion, Material]]:
    """Load a model and build the method and what it learns from."""

    def make(**values: Any) -> tuple[TextualInversion, Material]:
        config = check_config(TextualInversionConfig, SMALL | {"dataset": str(lesson)} | values)
        library = Library((MODELS, models))
        dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
        parts = load_parts(library.reference(library.get(config.model)), open_device("cpu", 1), dtype)
        pictures = Pictures(config.told_concepts, tmp_path)
        material = Material(config, pictures, parts, tmp_path / "cache", words=False)
        method = TextualInversion(config, parts)
        method.prepare(material)
        return method, material

    return make


def learn(method: TextualInversion, material: Material, steps: int = 2) -> torch.optim.Optimizer:
    optimizer = build_optimizer(method.config, method.rates())
    for step in range(steps):
        optimizer.zero_grad()
        method(material.batch(step, 0)).mean().backward()
        optimizer.step()
        method.step_ended()
    return optimizer


def session(
    folder: Path, lesson: Path, models: Path, stop: Callable[[], bool] = lambda: False, **values: Any
) -> Session:
    config = check_config(TextualInversionConfig, SMALL | {"dataset": str(lesson)} | values)
    settings = Settings(data_dir=folder / "data", cpu_threads=1, device="cpu", extra_models=(models,))
    return Session("textual-inversion", config, settings, folder / "run", stop)


def digest(module: torch.nn.Module) -> str:
    told = hashlib.sha256()
    for name, one in sorted(module.state_dict().items()):
        told.update(name.encode() + one.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def bare(method: TextualInversion, model: Path, file: Path) -> Any:
    """Return diffusers' own pipeline with a saved file."""
    kind: Any = StableDiffusionXLPipeline if model.name == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(model, torch_dtype=torch.float32)
    state = load_file(file)
    if model.name != "sdxl":
        pipe.load_textual_inversion(str(file))
    for key, end in (("clip_l", ""), ("clip_g", "_2")) if model.name == "sdxl" else ():
        encoder, tokenizer = getattr(pipe, f"text_encoder{end}"), getattr(pipe, f"tokenizer{end}")
        pipe.load_textual_inversion(state[key], token="<toy>", text_encoder=encoder, tokenizer=tokenizer)
    return pipe


def picture(pipe: Any, **words: Any) -> np.ndarray:
    """Draw with diffusers, (H, W, 3) int."""
    shape = {"width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "np"}
    made = pipe(**words, **shape, generator=torch.Generator().manual_seed(1)).images[0]
    return np.round(made * 255).astype(int)


@pytest.mark.parametrize("model", ["shapes", "sdxl"])
@pytest.mark.parametrize("number", [1, 3])
def test_bare_diffusers_draws_what_was_trained(
    model: str, number: int, begin: Callable, models: Path, tmp_path: Path
) -> None:
    method, material = begin(model=model, num_vectors=number)
    learn(method, material)
    file = method.save(tmp_path, "toy", {"method": "textual-inversion"})
    assert {key: tuple(one.shape) for key, one in load_file(file).items()} == (
        {"<toy>": (number, 128)} if model == "shapes" else {"clip_l": (number, WIDE), "clip_g": (number, 40)}
    )
    path = (models if model == "sdxl" else MODELS) / model
    pipe = bare(method, path, file)
    with torch.no_grad():
        said = method.parts.encode([PROMPT], method.inversions())
    theirs, ours = picture(pipe, prompt=PROMPT), picture(pipe, **said)
    assert abs(theirs - ours).max() <= 1
    assert abs(theirs - picture(pipe, prompt=PROMPT.replace("<toy>", "toy"))).max() > 1, "the vectors count"


@pytest.mark.parametrize("model", ["shapes", "sdxl"])
def test_only_the_vectors_change(model: str, begin: Callable) -> None:
    method, material = begin(model=model)
    networks = [one for one in method.parts.pipe.components.values() if isinstance(one, torch.nn.Module)]
    before, first = [digest(one) for one in networks], [one.detach().clone() for one in method.vectors.values()]
    learn(method, material)
    assert [digest(one) for one in networks] == before
    assert all(p.grad is None for one in networks for p in one.parameters())
    for was, now in zip(first, method.vectors.values(), strict=True):
        assert bool((was != now).all())
    for encoder in method.parts.text_encoders().values():
        table = encoder.get_input_embeddings()
        assert not table._forward_hooks and not table._forward_pre_hooks


def test_the_loss_is_the_papers(begin: Callable, tmp_path: Path) -> None:
    """Equation 2: the squared error of the noise, with the caption as bare diffusers encodes it."""
    method, material = begin(num_vectors=2, train_batch_size=2)
    batch = material.batch(0, 0)
    file = method.save(tmp_path, "toy", {})
    pipe: Any = bare(method, MODELS / "shapes", file)
    noise: Any = DDPMScheduler.from_config(pipe.scheduler.config)
    with torch.no_grad():
        states = pipe.encode_prompt(batch.captions, "cpu", 1, False)[0]
        latents, times = batch.latents * pipe.vae.config.scaling_factor, (batch.quantiles * 1000).long()
        made = pipe.unet(noise.add_noise(latents, batch.noise, times), times, states).sample
        wanted = (
            noise.get_velocity(latents, batch.noise, times)
            if noise.config.prediction_type != "epsilon"
            else batch.noise
        )
        assert torch.allclose(method(batch), (made - wanted).square().mean(dim=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("more", [{}, LORA], ids=["alone", "with LoRA"])
def test_memory_can_be_saved(more: dict[str, Any], begin: Callable) -> None:
    gradients = []
    for saving in ({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "mixed_precision": "bf16"}):
        method, material = begin(model="sdxl", **more, **saving)
        method(material.batch(0, 0)).mean().backward()
        assert all(one.dtype == torch.float32 for one in method.vectors.values())
        gradients.append([one.grad for one in method.vectors.values()])
    for plain, kept, half in zip(*gradients, strict=True):
        assert torch.allclose(plain, kept, rtol=1e-4, atol=1e-9)
        assert torch.nn.functional.cosine_similarity(plain.flatten(), half.flatten(), dim=0) > 0.8


def test_weight_decay_and_rates_are_the_vectors_own(begin: Callable) -> None:
    method, material = begin(**LORA)
    groups = learn(method, material, 1).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.01, 0.0), (0.05, 0.01)]
    asked, material = begin(embedding_weight_decay=0.1)
    assert learn(asked, material, 1).param_groups[0]["weight_decay"] == 0.1


def test_vectors_can_keep_the_length_of_words(begin: Callable) -> None:
    method, material = begin(preserve_embedding_norm=True, num_vectors=2)
    learn(method, material)
    table = method.parts.pipe.text_encoder.get_input_embeddings().weight
    wanted = table.norm(dim=1).median()
    assert torch.allclose(method.vectors["text_encoder"].norm(dim=1), wanted.expand(2), rtol=1e-4)


def test_vectors_begin_as_known_words(begin: Callable) -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    assert spread(rows, 3).tolist() == rows.tolist()
    assert spread(rows, 1).tolist() == [[2.0, 3.0]]
    assert spread(rows, 2).tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert spread(rows[:2], 4).tolist() == [[0.0, 1.0], [0.0, 1.0], [2.0, 3.0], [2.0, 3.0]]
    method, _ = begin(initializer_token="orange heart", num_vectors=2)
    tokenizer = method.parts.pipe.tokenizer
    ids = tokenizer("orange heart", add_special_tokens=False).input_ids
    table = method.parts.pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(method.vectors["text_encoder"], table[ids])


def test_pictures_without_captions_are_shown_with_the_papers_templates(
    begin: Callable, lesson: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for path in lesson.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    method, material = begin(dataset=str(folder), learnable_property="style")
    batch = material.batch(0, 0)
    said = {method.said(batch.captions[0], seed) for seed in range(300)}
    assert said == {template.format("<toy>") for template in TEMPLATES["style"]}
    assert method.said(PROMPT, 1) == PROMPT
    assert bool(torch.isfinite(method(batch)).all())


@pytest.mark.parametrize("more", [{}, LORA], ids=["alone", "with LoRA"])
def test_a_resumed_run_ends_as_the_unbroken_one(
    more: dict[str, Any], lesson: Path, models: Path, tmp_path: Path
) -> None:
    values = {"max_train_steps": 4, "checkpointing_steps": 2, "validation_prompts": (), "caption_dropout": 0.3} | more
    whole = session(tmp_path / "whole", lesson, models, **values).run()
    broken = tmp_path / "broken"
    reached = broken / "run" / "checkpoints" / "step-000002"
    stopped = session(broken, lesson, models, reached.exists, **values).run()
    assert whole and stopped and (stopped["status"], stopped["step"]) == ("stopped", 3)
    resumed = session(broken, lesson, models, **values).run(resume=True)
    assert resumed and resumed["status"] == "finished"
    names = ["toy.safetensors", *(["toy_emb.safetensors"] if more else [])]
    for name in names:
        files = [Path(answer["artifact"]).with_name(name) for answer in (whole, resumed)]
        first, second = map(load_file, files)
        assert all(torch.equal(first[key], second[key]) for key in first) and set(first) == set(second)
        with safe_open(files[0], "pt") as file:
            facts = file.metadata()
        assert json.loads(facts["trigger_words"]) == ["<toy>"] and facts["base_model_sha256"]
    assert [path.name for path in sorted(Path(whole["artifact"]).parent.glob("*.safetensors"))] == names


@pytest.mark.parametrize("more", [{}, LORA], ids=["alone", "with LoRA"])
def test_samples_are_what_generate_draws(
    more: dict[str, Any], lesson: Path, models: Path, tmp_path: Path, engine: Any, blobs: BlobStore
) -> None:
    words: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 4}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples.yaml").write_text(json.dumps([words]))
    session(tmp_path, lesson, models, max_train_steps=1, num_vectors=2, **more).run()
    sample = tmp_path / "run" / "samples" / "step-000001-0-0.png"
    record = read_picture(sample).record
    assert record
    name = "toy-000001_emb" if more else "toy-000001"
    files = {"embedding": name} | ({"lora": "toy-000001"} if more else {})
    assert {part.kind: part.id for part in record.parts} == files
    assert record.request.prompt == f"a {name} on a blue background"
    library = Library((MODELS,), part_roots=(tmp_path / "none",))
    for kind, own in files.items():
        path = tmp_path / "run" / "checkpoints" / "step-000001" / "weights" / f"{own}.safetensors"
        library.parts.add_file(kind, own, path)
    loras = [{"name": "toy-000001"}] if more else []
    draw = drawer(engine, library, blobs)
    shown = pixels(sample.read_bytes())
    assert (pixels(draw(**words, loras=loras).pictures[0]) == shown).all(), "the placeholder calls it too"
    begun = draw(**words | {"prompt": PROMPT.replace("<toy>", "toy toy")})
    assert (pixels(begun.pictures[0]) != shown).any(), "the step counts"


def test_files_of_every_layout_are_called_by_the_placeholder(begin: Callable, models: Path, tmp_path: Path) -> None:
    place = tmp_path / "parts" / "embeddings"
    place.mkdir(parents=True)
    for name, values in {"xl": {"model": "sdxl"}, "plain": {"embedding_layout": "emb_params"}, "own": {}}.items():
        begin(**values)[0].save(place, name, {})
    assert list(load_file(place / "plain.safetensors")) == ["emb_params"]
    found = {part.id: part for part in Library((MODELS,), part_roots=(tmp_path / "parts",)).parts.parts("embedding")}
    assert {name: (part.problem, part.names) for name, part in found.items()} == {
        name: ("", (name, "<toy>")) for name in ("xl", "plain", "own")
    }


def test_a_run_can_go_on_from_an_earlier_result(begin: Callable, tmp_path: Path) -> None:
    for more in ({}, LORA):
        first, material = begin(num_vectors=2, **more)
        learn(first, material)
        file = first.save(tmp_path, "earlier", {})
        second, _ = begin(num_vectors=2, init_from=str(file), initializer_token="", **more)
        for (_, mine), (_, its) in zip(first.parameters_by_name(), second.parameters_by_name(), strict=True):
            assert torch.equal(mine, its)
    with pytest.raises(InvalidRequest, match="has 2 vectors of width 128, and this run num_vectors=3 of width 128"):
        begin(num_vectors=3, init_from=str(tmp_path / "earlier_emb.safetensors"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"initializer_token": " "}, "initializer_token is empty; give a word that the model knows"),
        ({"initializer_token": "zqx"}, "initializer_token='zqx' is unknown to the model, which reads z, q, x"),
        ({"placeholder_token": "a toy"}, "placeholder_token='a toy' must be one word without"),
        ({"placeholder_token": "to:y"}, "placeholder_token='to:y' must be one word without"),
        ({"placeholder_token": ""}, "placeholder_token='' must be one word without"),
        ({"placeholder_token": "clip_l"}, "placeholder_token='clip_l' means something else in a file"),
        ({"placeholder_token": "heart"}, "placeholder_token='heart' is a word that the model knows already"),
        ({"placeholder_token": "<cat>"}, "5 of 5 captions do not say placeholder_token='<cat>', such as that of 0.png"),
        ({"num_vectors": 76}, "num_vectors=76 must be at most 75"),
        ({"rank": 4}, "rank does nothing without train_lora"),
        ({"weight_decay": 0.1}, "weight_decay does nothing without train_lora"),
        ({"trigger_word": "cat"}, "trigger_word='cat' must be the placeholder_token '<toy>'"),
        ({"model": "sdxl", "embedding_layout": "emb_params"}, "embedding_layout=emb_params is for one text encoder"),
        (
            {"initialiser_token": "toy"},
            "initialiser_token is not a field of this method; did you mean initializer_token",
        ),
    ],
)
def test_wrong_configs_are_told_in_a_sentence(values: dict[str, Any], sentence: str, begin: Callable) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        begin(**values)
    assert str(refusal.value).startswith(sentence)
    assert "\n" not in str(refusal.value)


def test_words_are_looked_up() -> None:
    tokenizer = clip_tokenizer()
    assert look_up(tokenizer, "sks").whole and look_up(tokenizer, "sks").rare
    assert not look_up(tokenizer, "red").rare and look_up(tokenizer, "red").whole
    assert look_up(tokenizer, "<toy>").pieces == ("<", "toy", ">")
    assert look_up(tokenizer, "zqx").spelled and not look_up(tokenizer, "orange heart").spelled
    assert not look_up(tokenizer, "!").spelled
    proposed = rare_words(tokenizer, 3)
    assert len(proposed) == 3 and all(look_up(tokenizer, word).rare for word in proposed)
    assert "a good name" in advice(look_up(tokenizer, "sks"))
    assert "use a rarer one, such as law or tree" in advice(look_up(tokenizer, "red"), ["law", "tree"])
    assert "is cut into 3 tokens (z, q, x)" in advice(look_up(tokenizer, "zqx"))
    assert "is no word" in advice(look_up(tokenizer, " "))
    unknown = look_up(t5()[0], "漢")
    assert unknown.spelled and not unknown.whole


@pytest.mark.parametrize(
    "path", sorted((ROOT / "presets" / "train").glob("textual-inversion-*.yaml")), ids=lambda p: p.stem
)
def test_presets_are_sound(path: Path) -> None:
    config = read_config(TextualInversionConfig, path, ["dataset=somewhere"])
    assert config.trigger_word == config.placeholder_token
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.slow
def test_the_demo_model_learns_a_new_word(tmp_path: Path) -> None:
    told: Any = teach("textual-inversion", tmp_path, [])
    assert told["after"]["subject"] >= told["before"]["subject"] + 0.5
