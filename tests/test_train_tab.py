"""The Train tab without a browser: what is proposed, what follows, what Start makes; and one visit with a browser."""

import inspect
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import yaml
from safetensors.numpy import save_file

from studio.errors import InvalidRequest, StudioError
from studio.events import Place, Ready
from studio.executors.dispatcher import Dispatcher
from studio.executors.runner import Runner
from studio.executors.worker import make_executor
from studio.families import FAMILIES
from studio.settings import ROOT, Settings
from studio.store.changes import Changes
from studio.store.collections import Datasets
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.store.jobs import JobStore
from studio.store.library import Library
from studio.store.models import Model
from studio.store.runs import Runs
from studio.training.decisions import DERIVED, Decisions, kept
from studio.training.kohya import from_kohya
from studio.training.models import TAUGHT, training_problem
from studio.training.presets import nearest, preset_values, read_preset, read_presets
from studio.training.values import fields_of, from_form, kind_of, to_form
from studio.ui.guard import policy_for
from studio.ui.services import Services, Training
from studio.ui.train_desk import TrainDesk, remedy
from studio.ui.train_form import GROUPS
from studio.ui.train_tab import CARDS, TrainTab
from studio.ui.training_api import TrainingApi
from tests.training import config_of, draw_pictures, train
from trainers.__main__ import parse_flags
from trainers.config_files import check_config, dump_config, read_config
from trainers.methods import METHODS

CLASSES = {name: config for name, (config, _) in METHODS.items()}
PRESETS = ROOT / "presets" / "train"
HEARTS = Decisions("hearts", "sks", "heart")


def services_of(data: Path) -> Services:
    """The objects of an app that neither draws nor trains."""
    settings = Settings(port=None, data_dir=data, device="cpu", cpu_threads=1, executor="inline")
    database = Database(data / "studio.db")
    gallery = Gallery(data / "images", ImageIndex(database))
    library = Library(settings.model_folders, database, settings.part_roots, settings.runs)
    executor = make_executor(settings, gallery, lambda event: None)
    dispatcher = Dispatcher(executor, JobStore(database), library, gallery.blobs)
    runner = Runner(settings, Runs(settings.runs), lambda: None, lambda: False, device=dispatcher.device)
    training = Training(runner.runs, runner, CLASSES, check_config, dump_config, PRESETS)
    nothing: Any = None
    policy = policy_for(host="127.0.0.1", share=False, auth=None)
    datasets = Datasets(data / "datasets")
    kept = [nothing, nothing, datasets, Changes(datasets), nothing]  # neither downloads nor captions
    return Services(settings, policy, dispatcher, nothing, gallery, library, *kept, training=training)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    data = tmp_path_factory.mktemp("data")
    draw_pictures(data / "datasets" / "hearts", 3)
    draw_pictures(data / "datasets" / "bare", 2, captions=False)
    (data / "datasets" / "nothing").mkdir()
    return services_of(data)


@pytest.fixture(scope="module")
def desk(services: Services) -> TrainDesk:
    return TrainDesk(services)


class Page:
    """The tab's form as a browser holds it: handlers are called with its values, their answers change it."""

    def __init__(self, tab: TrainTab) -> None:
        self.tab = tab
        self.values = {name: box.value for name, box in self.tab.inputs.items()}
        self.visible = {name: box.visible for name, box in self.tab.inputs.items()}
        self.names = {id(box): name for name, box in self.tab.inputs.items()}

    def type(self, **values: Any) -> "Page":
        """Type, as a person does; the page hears of it later."""
        assert set(values) <= set(self.values)
        self.values |= values
        return self

    def take(self, answer: list[Any], boxes: list[Any] | None = None) -> "Page":
        """Show what a handler answered."""
        boxes = self.tab.targets if boxes is None else boxes
        assert len(answer) >= len(boxes)
        for box, update in zip(boxes, answer, strict=False):
            name = self.names.get(id(box))
            if name is None:
                continue
            told = update if isinstance(update, dict) else {"value": update}
            self.values[name] = told.get("value", self.values[name])
            self.visible[name] = told.get("visible", self.visible[name])
        return self

    def choose(self, method: str, **more: Any) -> "Page":
        """Choose a method, and wait until the page has followed."""
        return self.take(self.tab.refill(**self.type(method=method, **more).values))

    def config(self) -> Any:
        method, settled, _ = self.tab.settled(self.values)
        return self.tab.desk.config(method, settled)


@pytest.fixture(scope="module")
def tab(services: Services) -> TrainTab:
    """The tab, built once: it holds nothing of a visitor."""
    made = TrainTab(services)
    with gr.Blocks() as page:
        made.build_wish()
        with gr.Tabs() as tabs, gr.Tab("Train", id="train") as place:
            made.build(page, place, tabs)
    return made


@pytest.fixture
def page(tab: TrainTab) -> Page:
    return Page(tab)


def beginner(page: Page, method: str) -> Page:
    """Decide the three things."""
    return page.choose(method).type(dataset="hearts", word="sks", thing="heart")


# ---- what can be taught ----------------------------------------------------------------------------------------------


def test_what_is_offered_is_what_the_trainers_can_ask() -> None:
    import diffusers

    from trainers.denoisers import DENOISERS

    for name, family in FAMILIES.items():
        pipeline = getattr(diffusers, next(iter(family.pipelines.values())))
        parameters = inspect.signature(pipeline.__init__).parameters
        network = (parameters.get("unet") or parameters["transformer"]).annotation
        asked = getattr(network, "__name__", str(network)) in DENOISERS
        asked &= (
            not family.prior and not family.pixels
        )  # what a prior has read, and pixels, the trainers do not ask about
        assert asked == (name in TAUGHT["lora"]), name
        assert name not in TAUGHT["textual-inversion"] or family.prompts in ("clip", "sdxl")
    assert set(TAUGHT) == set(METHODS) - {"unconditional"} and set(CARDS) == set(METHODS)


def test_what_cannot_be_taught_is_refused_with_the_way_out(tmp_path: Path) -> None:
    chroma = Model("chroma", tmp_path, "Chroma", "chroma")
    refiner = Model("xl", tmp_path, "SDXL", "sdxl", kind="refiner")
    single = Model("one", Path(__file__), "One", "sd1")
    assert "Chroma, which cannot be trained yet; choose Stable Diffusion 1.x" in training_problem("lora", chroma)
    assert "kind refiner, which is not trained" in training_problem("lora", refiner)
    assert "train a LoRA" in training_problem("full", single, whole=True)
    assert training_problem("lora", single) == training_problem("unconditional", chroma) == ""
    flux = Model("flux", tmp_path, "Flux", "flux")
    assert "no embeddings are made" in training_problem("textual-inversion", flux) and not training_problem(
        "lora", flux
    )


# ---- values ----------------------------------------------------------------------------------------------------------

TYPED = {
    "lora": {"concepts": [{"dataset": "more", "instance_prompt": "a cat, red", "repeats": 3}], "text_encoder_lr": [1e-5]},
    "dreambooth": {"train_text_encoder": True, "lora_alpha": 4.5, "target_modules": ["all-linear", "to_k"], "prior_source": "model"},
    "full": {"train_text_encoder": True, "text_encoder_lr": [1e-6, 2e-6], "checkpoints_total_limit": None},
    "textual-inversion": {"train_lora": True, "num_vectors": 3, "embedding_learning_rate": 1e-3, "init_from": "/tmp/x y"},
    "controlnet": {"preprocessor_options": {"low_threshold": 50, "high_threshold": 120}, "snr_gamma": 5.0},
    "unconditional": {"channels": [32, 64], "random_flip": True, "validation_pictures": 4},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_method_is_reachable_and_no_other_is_shown(page: Page, method: str) -> None:
    page.choose(method)
    fields = set(fields_of(CLASSES[method])) - {name for own, name in DERIVED if own == method}
    shown = {name for name in page.tab.form.controls if page.visible[name]}
    assert shown == fields
    for name in fields:
        assert page.tab.form.group_of(name) in (*GROUPS, "model"), name
        box, field = page.tab.form.controls[name], fields_of(CLASSES[method])[name]
        kind, _ = kind_of(field)
        wanted = {"bool": gr.Checkbox, "choice": gr.Dropdown, "int": gr.Number, "float": gr.Number}
        assert isinstance(box, wanted.get(kind, gr.Dropdown if name in ("model", "dataset") else gr.Textbox)), name
        assert box.elem_id == f"train-{name}"


@pytest.mark.parametrize("method", METHODS)
def test_from_config_to_form_to_yaml_and_back(page: Page, desk: TrainDesk, method: str) -> None:
    for name in [path.stem for path in PRESETS.glob(f"{method}-*.yaml")]:
        told = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
        config = check_config(
            CLASSES[method], {**told, **({"model": "shapes"} if "model" in told else {}), "dataset": "hearts"}
        )
        page.take(page.tab.fill(method, config.model_dump(mode="json")))
        assert page.config() == config, name
    method_values = desk.propose(method, "shapes", HEARTS).values | {"train_text_encoder": True} | TYPED[method]
    config = check_config(
        CLASSES[method], {name: method_values[name] for name in fields_of(CLASSES[method]) if name in method_values}
    )
    page.take(page.tab.fill(method, config.model_dump(mode="json")))
    again = page.config()
    assert again == config
    file = read_preset(f"# method: {method}\n{dump_config(again)}", "mine", CLASSES)
    page.choose("lora").take(page.tab.fill(file.method, file.values))
    assert page.values["method"] == method and page.config() == config


def test_what_is_typed_wrong_is_told_in_a_sentence_beside_its_field(page: Page) -> None:
    beginner(page, "dreambooth")
    for name, typed, said in (
        ("max_train_steps", 0, "max_train_steps=0 must be at least 1"),
        ("max_train_steps", 2.5, "max_train_steps=2.5"),
        ("max_train_steps", None, "max_train_steps is empty; give a number"),
        ("resolution", "500, big", "resolution='big' must be a number"),
        ("resolution", "100", "resolution=100 must be a multiple of 8"),
        ("concepts", "a | b | c | d", "must be FOLDER | PROMPT | REPEATS"),
        ("output_name", "../x", "output_name='../x' must match"),
    ):
        before = page.values[name]
        run, _ = page.tab.start(**page.type(**{name: typed}).values)
        told = json.loads(run)
        assert said in told["error"] and told["field"] == name, told
        assert told["home"][0] in ("train-all", "train-prompts")
        page.type(**{name: before})
    with pytest.raises(InvalidRequest, match="must be NAME=NUMBER"):
        from_form("preprocessor_options", fields_of(CLASSES["controlnet"])["preprocessor_options"], "low")
    told = json.loads(page.tab.start(**page.type(thing="").values)[0])
    assert told["field"] == "thing" and "dog, heart, woman" in told["error"]


def test_a_control_shows_what_it_reads() -> None:
    for config_class in CLASSES.values():
        for name, field in fields_of(config_class).items():
            value = config_class.model_construct().model_dump(mode="json")[name]
            assert from_form(name, field, to_form(field, value)) == value, name


# ---- what follows ----------------------------------------------------------------------------------------------------


def test_prompts_samples_and_name_follow_the_decisions_unless_changed(page: Page) -> None:
    config = beginner(page, "dreambooth").config()
    assert (config.instance_prompt, config.class_prompt, config.trigger_word) == ("a sks heart", "a heart", "sks")
    assert config.validation_prompts == ("a sks heart", "a heart") and config.output_name == "sks-heart"
    assert config.with_prior_preservation and config.resolution == (128,)
    page.type(instance_prompt="my own", thing="star")
    following = [page.tab.form.controls[name] for name in page.tab.form.controls]
    assert following and page.config().instance_prompt == "my own" and page.config().class_prompt == "a star"


def test_the_page_follows_what_was_typed(page: Page) -> None:
    from studio.training.decisions import FOLLOWING

    boxes = [*(page.tab.form.controls[name] for name in FOLLOWING), page.tab.base]
    answer = page.tab.refresh(**beginner(page, "dreambooth").values)
    page.take(answer, boxes)
    assert page.values["class_prompt"] == "a heart" and page.values["validation_prompts"] == "a sks heart\na heart"
    assert "output_name: sks-heart" in answer[-3] and "3 pictures, 3 with a caption" in answer[-2]
    assert json.loads(answer[-1]) == {"ok": True}
    page.type(validation_prompts="mine", thing="star")
    page.take(page.tab.refresh(**page.values), boxes)
    assert page.values["class_prompt"] == "a star" and page.values["validation_prompts"] == "mine"
    stale = page.tab.refresh(**(page.values | {"method": "lora"}))  # the form is about to be filled anew
    assert all("value" not in one for one in stale[:-1])


def test_another_method_keeps_what_a_person_changed(page: Page) -> None:
    beginner(page, "dreambooth").type(learning_rate=3e-3, seed=7).choose("full")
    config = page.config()
    assert (config.learning_rate, config.seed) == (3e-3, 7)
    assert (config.train_batch_size, config.max_train_steps, config.use_ema) == (8, 500, True)  # full-shapes
    page.choose("textual-inversion")
    config = page.config()
    assert (config.placeholder_token, config.initializer_token, config.trigger_word) == ("<sks>", "heart", "<sks>")
    assert config.learning_rate == 3e-3 and config.seed == 7
    page.choose("dreambooth")
    assert page.config().class_prompt == "a heart" and page.config().trigger_word == "sks" and page.config().rank == 8


def test_kept_is_what_was_changed_since_it_was_proposed() -> None:
    now, before, fresh = {"a": 1, "b": 2, "d": 5}, {"a": 1, "b": 1}, {"a": 9, "b": 9, "c": 9, "d": 9}
    assert kept(now, before, fresh) == {"a": 9, "b": 2, "c": 9, "d": 9}


def test_the_nearest_preset_by_family_and_memory() -> None:
    presets = read_presets(PRESETS, CLASSES)

    def name(*wanted: Any) -> str:
        found = nearest(presets, *wanted)
        return found.name if found else ""

    assert name("lora", "sdxl", 12.0) == name("lora", "sdxl", 8.0) == "lora-sdxl-12gb"
    assert name("lora", "sdxl", 24.0) == name("lora", "sdxl") == "lora-sdxl"
    assert name("dreambooth", "sd35") == "lora-sd35" and name("full", "flux1") == "full-sdxl"
    assert name("controlnet", "sd15") == "" and name("controlnet", "shapes") == "controlnet-shapes"
    sd2 = Model("sd2", Path(), "SD 2", "sd2", defaults={"width": 768, "height": 768})
    assert preset_values(nearest(presets, "lora", "sd15"), "lora", sd2)["resolution"] == [768]
    flux = Model("f", Path(), "Flux", "flux", defaults={"width": 1024, "height": 1024})
    values = preset_values(nearest(presets, "full", "flux1"), "full", flux)
    assert "snr_gamma" not in values and values["learning_rate"] == "1e-6" and values["resolution"] == [1024]


def test_a_shipped_preset_and_ones_own(page: Page, services: Services) -> None:
    beginner(page, "lora").type(rank=3, learning_rate=2e-3)
    _, said = page.tab._panels[0].save(**page.values, name="my best")
    assert json.loads(said)["note"].endswith("presets/train/my best.yaml")
    own = read_presets(page.tab.desk.own_presets, CLASSES, own=True)
    assert [(one.name, one.method, one.values["rank"]) for one in own] == [("my best", "lora", 3)]
    page.take(page.tab._panels[0].load(**page.choose("full").values, chosen="textual-inversion-shapes"))
    assert page.values["method"] == "textual-inversion" and page.config().learning_rate == 5e-3
    page.take(page.tab._panels[0].load(**page.values, chosen="own:my best"))
    config = page.config()
    assert (page.values["method"], config.rank, config.learning_rate) == ("lora", 3, 2e-3)
    for wrong in ("", "../x", "a/b", ".x", "x" * 80):
        assert "must begin with a letter" in json.loads(page.tab._panels[0].save(**page.values, name=wrong)[1])["error"]
    for text, said in (("- a", "must be a mapping"), ("a: [", "is no YAML"), ("# method: x\na: 1", "must be one of")):
        with pytest.raises(InvalidRequest, match=said):
            read_preset(text, "file", CLASSES)


# ---- Start -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_start_makes_what_the_shown_command_reads(page: Page, services: Services, method: str) -> None:
    beginner(page, method)
    method, settled, _ = page.tab.settled(page.values)
    shown = page.tab.desk.command(method, page.config())
    told, _ = page.tab.start(**page.values)
    run_id = json.loads(told)["run"]
    assert services.training
    runs, runner = services.training.runs, services.training.runner
    assert run_id in runner.queue() and runs.method(run_id) == method
    made = (runs.folder(run_id) / "config.yaml").read_bytes()
    *file, words = shown.splitlines()
    (runs.folder(run_id) / "config.yaml").unlink()
    subprocess.run(["bash", "-c", "\n".join(file)], check=True)  # all but the training itself
    assert (runs.folder(run_id) / "config.yaml").read_bytes() == made
    assert words == " ".join(runner.command(run_id))
    flags = parse_flags(words.split()[3:])
    assert read_config(CLASSES[method], flags.config, []) == check_config(CLASSES[method], settled)
    assert (flags.method, flags.run_dir, flags.data_dir) == (method, runs.folder(run_id), services.settings.data_dir)


@pytest.mark.parametrize(
    ("typed", "field", "said"),
    [
        ({"dataset": ""}, "dataset", "dataset is empty"),
        ({"dataset": "gone"}, "dataset", "is no folder here"),
        ({"dataset": "nothing"}, "dataset", "has no pictures"),
        ({"dataset": "bare", "instance_prompt": ""}, "instance_prompt", "2 of 2 pictures have no caption"),
        ({"model": "gone"}, "model", "is not in the library"),
    ],
)
def test_what_cannot_begin_is_refused_before_there_is_a_run(
    page: Page, services: Services, typed: dict[str, Any], field: str, said: str
) -> None:
    assert services.training
    before = services.training.runs.ids()
    beginner(page, "dreambooth")
    page.take(page.tab.refresh(**page.values)[:8], [*_following(page), page.tab.base])
    told = json.loads(page.tab.start(**page.type(**typed).values)[0])
    assert said in told["error"] and told["field"] == field
    assert services.training.runs.ids() == before


def _following(page: Page) -> list[Any]:
    from studio.training.decisions import FOLLOWING

    return [page.tab.form.controls[name] for name in FOLLOWING]


def test_a_form_is_shown_again_as_the_browser_kept_it(page: Page, services: Services) -> None:
    beginner(page, "full").type(seed=5, resolution="64, 128")
    saved = json.dumps(page.values)
    other = Page(page.tab)
    other.take(other.tab.restore(saved))
    assert other.config() == page.config() and other.values["method"] == "full"
    for damaged in ("", "[]", "{}", '{"method": "x"}', "no", json.dumps({"method": "lora", "base": "x"})):
        assert all(one == gr.skip() for one in other.tab.restore(damaged))


def test_an_estimate_can_be_cancelled_and_its_advice_followed(services: Services, desk: TrainDesk) -> None:
    values = desk.propose("lora", "shapes", HEARTS).values
    assert desk.estimate("lora", values, lambda: True) is None
    assert remedy("gradient_checkpointing: true", values) == {"gradient_checkpointing": True}
    assert remedy("resolution: 256", values) == {"resolution": [256]}
    wide = remedy("train_batch_size: 1, with gradient_accumulation_steps in its place", values)
    assert wide == {"train_batch_size": 1, "gradient_accumulation_steps": 4}
    for advised in (
        "cache_latents: true",
        "mixed_precision: bf16",
        "train_text_encoder: false",
        "optimizer: adamw8bit",
    ):
        check_config(CLASSES["lora"], values | remedy(advised, values))


# ---- like an earlier one ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(services: Services) -> str:
    """A run that made a LoRA in a step."""
    root = services.settings.data_dir.parent
    config = config_of("lora", services.settings.data_dir / "datasets" / "hearts", rank=2, max_train_steps=1,
                       checkpointing_steps=0, output_name="first", trigger_word="sks")  # fmt: skip
    train("lora", config, root, run=f"{services.settings.data_dir.name}/runs/first")
    path = services.settings.data_dir / "runs" / "first" / "config.yaml"
    path.write_text(f"# method: lora\n{path.read_text().removeprefix('# method: lora' + chr(10))}")
    return "first"


def test_a_run_can_be_done_again_and_longer(page: Page, services: Services, trained: str, tmp_path: Path) -> None:
    assert services.training
    runs = services.training.runs
    wanted = check_config(CLASSES["lora"], runs.config(trained))
    page.take(page.tab.begin_from(**page.values, wish=f"run:{trained}"))
    assert page.values["method"] == "lora" and page.config() == wanted
    page.take(page.tab.begin_from(**page.values, wish=f"longer:{trained}"))
    config = page.config()
    final = runs.results(trained)[-1]
    assert config.init_from == str(final) and config.output_name == "first-longer"
    train("lora", config, tmp_path)  # begins with those weights, so the shapes fit
    page.take(page.tab.begin_from(**page.values, wish="dataset:bare"))
    assert page.values["dataset"] == "bare"
    told = json.loads(page.tab.begin_from(**page.values, wish="run:gone")[-1])
    assert "'gone' is not there" in told["error"]
    waiting = runs.create("lora", "waiting", dump_config(wanted))
    with pytest.raises(InvalidRequest, match="has saved nothing yet"):
        page.tab.desk.origin(f"longer:{waiting}")


def test_train_like_an_adapter_of_ours_or_continue_from_it(page: Page, services: Services, trained: str) -> None:
    assert services.training
    wanted = check_config(CLASSES["lora"], services.training.runs.config(trained))
    assert f"like:{trained}" in [key for _, key in page.tab._panels[1].choices()]
    assert [one["interactive"] for one in page.tab._panels[1].offered(f"like:{trained}")] == [True, True]
    page.take(page.tab.begin_from(**page.values, wish=f"like:{trained}"))
    assert page.config() == wanted
    page.take(page.tab.begin_from(**page.values, wish=f"continue:{trained}"))
    assert page.config() == wanted.model_copy(update={"init_from": page.config().init_from})
    assert page.config().init_from.endswith("first.safetensors")


KOHYA = {
    "ss_network_module": "networks.lora", "ss_network_dim": "32", "ss_network_alpha": "16.0", "ss_learning_rate": "0.0001",
    "ss_unet_lr": "0.0002", "ss_text_encoder_lr": "[5e-05]", "ss_lr_scheduler": "cosine_with_restarts",
    "ss_lr_warmup_steps": "100", "ss_max_train_steps": "1600", "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
    "ss_mixed_precision": "fp16", "ss_min_snr_gamma": "5.0", "ss_noise_offset": "0.05", "ss_seed": "42",
    "ss_gradient_checkpointing": "True", "ss_cache_latents": "True", "ss_max_grad_norm": "1.0", "ss_clip_skip": "2",
    "ss_multires_noise_iterations": "6", "ss_caption_dropout_rate": "0.0", "ss_output_name": "my style", "ss_steps": "1600",
    "ss_tag_frequency": json.dumps({"10_style": {"inkwork": 20, "a house": 3}}), "ss_sd_model_name": "base.safetensors",
    "ss_datasets": json.dumps([{"resolution": [768, 512], "batch_size_per_device": 2, "enable_bucket": True,
                                "subsets": [{"shuffle_caption": True, "keep_tokens": 1, "flip_aug": False}]}]),
}  # fmt: skip


def test_kohyas_words_are_mapped_and_what_is_not_is_named(page: Page, services: Services) -> None:
    values, lost = from_kohya(KOHYA, CLASSES["lora"])
    wanted = {
        "rank": 32, "lora_alpha": 16.0, "learning_rate": 0.0002, "text_encoder_lr": [5e-05], "train_text_encoder": True,
        "lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": 100, "max_train_steps": 1600, "optimizer": "adamw8bit",
        "weight_decay": 0.1, "snr_gamma": 5.0, "noise_offset": 0.05, "seed": 42, "gradient_checkpointing": True,
        "train_batch_size": 2, "shuffle_caption": True, "keep_tokens": 1, "resolution": [624], "output_name": "my-style",
        "network_type": "lora", "enable_bucket": True,
    }  # fmt: skip
    assert {name: values.get(name) for name in wanted} == wanted
    assert {one.partition("=")[0] for one in lost} == {
        "ss_mixed_precision", "ss_clip_skip", "ss_multires_noise_iterations", "ss_resolution"
    }  # fmt: skip
    check_config(CLASSES["lora"], values)
    folder = services.settings.data_dir / "models" / "loras"
    folder.mkdir(parents=True)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    import numpy as np

    weights = {
        f"{layer}.lora_down.weight": np.zeros((2, 64), np.float32),
        f"{layer}.lora_up.weight": np.zeros((8, 2), np.float32),
    }
    save_file(weights, folder / "ink.safetensors", KOHYA)
    save_file(weights, folder / "mute.safetensors", {"format": "pt"})
    origin = page.tab.desk.origin("like:ink")
    assert origin.values["trigger_word"] == "inkwork" and "ss_clip_skip=2" in origin.notes[-1]
    page.take(page.tab.fill(origin.method, origin.values, origin.notes))
    assert page.config().rank == 32 and page.config().trigger_word == "inkwork"
    assert [one["interactive"] for one in page.tab._panels[1].offered("like:ink")] == [True, False]
    for text, said in (
        ("continue:ink", "was not trained here"),
        ("like:mute", "does not say how"),
        ("x", "must be run:ID"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            page.tab.desk.origin(text)


# ---- endpoints -------------------------------------------------------------------------------------------------------


def test_programs_train_through_the_endpoints(services: Services, desk: TrainDesk) -> None:
    api = TrainingApi(services)
    values = desk.propose("lora", "shapes", Decisions("hearts", "ink")).values
    made = api.train("lora", values, [{"prompt": "a red circle", "seed": 3}])
    assert made["state"] == "queued" and made["config"]["trigger_word"] == "ink" and made["prompts"] == ["a red circle"]
    assert made["id"] in [row["id"] for row in api.runs()] and api.run(made["id"])["method"] == "lora"
    assert api.stop(made["id"]) == {"id": made["id"], "state": "new"}
    with pytest.raises(InvalidRequest, match="rank=0 must be at least 1"):
        api.train("lora", values | {"rank": 0})
    with pytest.raises(InvalidRequest, match="method='x' must be one of"):
        api.train("x", {})
    with pytest.raises(StudioError):
        api.train("lora", values, [{"prompt": "x", "width": 3}])


def test_a_run_is_given_its_device(page: Page, services: Services) -> None:
    assert services.training
    assert not page.visible["device"], "a choice of one is none"
    cards = [Place(name=f"cuda:{i}", title="RTX", memory=24 * 2**30) for i in range(2)]
    places = (*cards, Place(name="cpu", title="CPU"))
    services.dispatcher.hear(Ready(device="RTX", place="cuda:0", places=places))
    try:
        controls = page.tab.form.controls
        boxes = [controls["dataset"], controls["model"], page.tab.device]
        page.take(page.tab.choices("lora", "hearts", "shapes", None), boxes)
        assert page.visible["device"] and page.values["device"] == ""
        assert [name for _, name in page.tab.desk.places()] == ["", "cuda:1", "cpu"]
        assert page.tab.desk.places()[0][0] == "That of the app (RTX, 24 GiB)"
        beginner(page, "lora").type(device="cuda:1")
        assert page.values["device"] == "cuda:1" and "--device cuda:1" in page.tab._checked(page.values)[0]
        run_id = json.loads(page.tab.start(**page.values)[0])["run"]
        row = services.training.runner.row(run_id)
        assert (row["state"], row["device"]) == ("queued", "cuda:1")
        services.training.runner.set_device(run_id, "")
        assert services.training.runner.row(run_id)["device"] == ""
        other = Page(page.tab)
        other.take(other.tab.restore(json.dumps(page.values)))
        assert other.values["device"] == "cuda:1"
        told = json.loads(page.tab.start(**page.type(device="cuda:5").values)[0])["error"]
        assert told == "device='cuda:5' is not there; there is: cuda:0, cuda:1, cpu"
        other.take(other.tab.restore(json.dumps(page.values)))
        assert other.values["device"] == "", "a card that was taken out is not chosen"
    finally:
        services.dispatcher.hear(Ready(device="CPU"))
    with pytest.raises(InvalidRequest, match="device='gpu' is not there"):
        TrainingApi(services).train("lora", page.tab.settled(page.values)[1], device="gpu")


def test_strangers_are_refused(services: Services) -> None:
    from dataclasses import replace

    api = TrainingApi(replace(services, training=None))
    for call in (
        lambda: api.train("lora", {}),
        lambda: api.estimate("lora", {}),
        api.runs,
        lambda: api.run("x"),
        lambda: api.stop("x"),
    ):
        with pytest.raises(StudioError, match="not offered on a public page"):
            call()


@pytest.fixture(autouse=True)
def _empty_queue(services: Services) -> Iterator[None]:
    yield
    assert services.training
    for run_id in services.training.runner.queue():
        services.training.runner.cancel(run_id)
