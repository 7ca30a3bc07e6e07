"""What the Train tab and the public endpoints do with training: propose, check, estimate, start. No Gradio."""

import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from studio.errors import InvalidRequest, StudioError
from studio.settings import Settings
from studio.spec import parse_request
from studio.store.datasets import find_dataset
from studio.store.library import Library
from studio.store.models import Model
from studio.store.runs import CONFIG, METHOD_LINE
from studio.store.tokenizers import Tokenizers
from studio.store.triggers import judge_trigger
from studio.training.decisions import Decisions, proposal
from studio.training.models import TAUGHT, training_problem, whole_model
from studio.training.origins import Origin, origin_of
from studio.training.pictures import glance
from studio.training.presets import Preset, nearest, preset_family, read_presets
from studio.ui.services import Services
from studio.ui.text import TEXT
from studio.word_facts import advice
from studio.yaml_text import read_yaml

GIB = 2**30
SKS = "sks"  # the rare word of the DreamBooth paper's followers; taken where it is rare
END = "END_OF_CONFIG"
NEEDS = {"adamw8bit": ("bitsandbytes", "adafactor")}  # optimizer -> package, and what stands in for it in a proposal


@dataclass(frozen=True)
class Proposed:
    """What the form is filled with.

    Attributes:
        values: plain, of every field of the method.
        preset: whose values they are; "" if the class's own.
        notes: sentences.
    """

    values: dict[str, Any]
    preset: str
    notes: tuple[str, ...] = ()


class TrainDesk:
    """Training over the page's services.

    Args:
        services: with `training`.
    """

    def __init__(self, services: Services) -> None:
        assert services.training is not None
        self._services, self.training = services, services.training
        self._tokenizers = Tokenizers()

    @property
    def settings(self) -> Settings:
        """Where things are."""
        return self._services.settings

    @property
    def library(self) -> Library:
        """The models and adapters."""
        return self._services.library

    @property
    def datasets(self) -> Path:
        """Folder of the datasets."""
        return self.settings.data_dir / "datasets"

    def dataset_names(self) -> list[str]:
        """Return the datasets of the data root."""
        return self._services.datasets.names()

    @property
    def own_presets(self) -> Path:
        """Folder of a person's presets."""
        return self.settings.data_dir / "presets" / "train"

    def presets(self) -> list[Preset]:
        """Return all presets, a person's own first."""
        training = self.training
        return [
            *read_presets(self.own_presets, training.methods, own=True),
            *read_presets(training.presets, training.methods),
        ]

    def model(self, method: str, model_id: str) -> Model | None:
        """Return the model that a method begins with; None if it has none, or it is not there."""
        if method not in TAUGHT:
            return None
        try:
            return self.library.get(model_id)
        except StudioError:
            return None

    def problem(self, method: str, values: dict[str, Any]) -> str:
        """Say why a method cannot teach a model; "" if it can."""
        if method not in TAUGHT:
            return ""
        try:
            model = self.library.get(str(values.get("model")))
        except StudioError as error:
            return str(error)
        return training_problem(method, model, whole=whole_model(method, values))

    def barred(self, model_id: str) -> dict[str, str]:
        """Return the methods that cannot teach a model, each with the reason."""
        found = {name: self.problem(name, {"model": model_id}) for name in self.training.methods}
        return {name: why for name, why in found.items() if why}

    def propose(self, method: str, model_id: str, decided: Decisions, preset: Preset | None = None) -> Proposed:
        """Return values for a method and a model.

        Args:
            method: as on the command line.
            model_id: in the library.
            decided: by a person.
            preset: to take in place of the nearest.
        """
        model = self.model(method, model_id)
        preset = preset or nearest(self.presets(), method, preset_family(model), self.memory())
        values = proposal(method, self.training.methods[method], model, preset, decided)
        if "model" in values and model is None:
            values["model"] = model_id
        notes = []
        package, other = NEEDS.get(values["optimizer"], ("", ""))
        if package and find_spec(package) is None:
            notes.append(f"{values['optimizer']} needs {package}, which is not installed; {other} is proposed instead.")
            values["optimizer"] = other
        return Proposed(values, preset.name if preset else "", tuple(notes))

    def memory(self) -> float | None:
        """Return the memory of the device in GiB; None for a CPU, or if it is not known."""
        total = self._services.dispatcher.state("")["device"].get("memory_total")
        return total / GIB if total else None

    def word(self, model_id: str) -> str:
        """Propose a word that a model does not know."""
        model = self.model("lora", model_id)
        facts, others = judge_trigger(self._tokenizers, model, SKS) if model else (None, [])
        return SKS if facts is None or facts.whole or not others else others[0]

    def word_advice(self, model_id: str, word: str) -> str:
        """Say whether a word is a good name for something new; "" if nobody knows."""
        model = self.model("lora", model_id)
        facts, others = judge_trigger(self._tokenizers, model, word) if model and word.strip() else (None, [])
        return advice(facts, others) if facts else ""

    def there(self, dataset: str) -> bool:
        """Say whether there is such a dataset, or folder."""
        try:
            return bool(find_dataset(dataset, self.datasets))
        except InvalidRequest:
            return False

    def seen(self, dataset: str) -> str:
        """Say how many pictures a dataset has, and how many captions; "" if none is named."""
        if not dataset:
            return ""
        try:
            seen = glance(find_dataset(dataset, self.datasets))
        except (InvalidRequest, OSError) as error:
            return str(error)
        if not seen.pictures:
            return TEXT["train.seen.none"]
        return TEXT["train.seen"].format(pictures=seen.pictures, captions=seen.captions)

    def config(self, method: str, values: dict[str, Any]) -> Any:
        """Make a config.

        Raises:
            InvalidRequest: one sentence about the first wrong field.
        """
        if method not in self.training.methods:
            raise InvalidRequest("method", f"method={method!r} must be one of: {', '.join(self.training.methods)}")
        return self.training.check(self.training.methods[method], values)

    def checked(self, method: str, values: dict[str, Any]) -> Any:
        """Make a config that can begin: its model can be taught, its pictures are there and have words.

        Raises:
            InvalidRequest: one sentence about the first wrong field.
        """
        if method in self.training.methods and not values.get("dataset") and not values.get("concepts"):
            # told before all else, because it is what a page asks for first
            raise InvalidRequest("dataset", "dataset is empty; choose one, or give a folder of pictures")
        config = self.config(method, values)
        if problem := self.problem(method, config.model_dump()):
            raise InvalidRequest("model", problem)
        for concept in config.told_concepts:
            folder = find_dataset(concept.dataset, self.datasets)
            seen = glance(folder)
            if not seen.pictures:
                raise InvalidRequest("dataset", f"dataset={concept.dataset!r} has no pictures; put some into it")
            worded = "instance_prompt" in config.idle or concept.instance_prompt
            if not worded and seen.captions < seen.pictures:
                raise InvalidRequest(
                    "instance_prompt",
                    f"{seen.pictures - seen.captions} of {seen.pictures} pictures have no caption; give instance_prompt "
                    "for them, or write captions",
                )
        return config

    def places(self) -> list[tuple[str, str]]:
        """Return (label, name) of the devices on which a run can work, that of the app first and named ""."""
        found = self.training.runner.places()
        titles = {
            one["name"]: one["title"] + (f", {one['memory'] / GIB:.0f} GiB" if one["memory"] else "") for one in found
        }
        here = self._services.dispatcher.device().get("place", "")
        others = [
            (title if name == title.lower() else f"{name}: {title}", name)
            for name, title in titles.items()
            if name != here
        ]
        return [(TEXT["train.device.here"].format(name=titles.get(here, self.settings.device)), ""), *others]

    def device_choice(self, chosen: str) -> dict[str, Any]:
        """Return what the choice of a device shows; it is hidden where there is only one."""
        choices = self.places()
        known = chosen in [name for _, name in choices]
        return {"choices": choices, "value": chosen if known else "", "visible": len(choices) > 1}

    def start(
        self, method: str, values: dict[str, Any], samples: list[dict[str, Any]] | None = None, *, device: str = ""
    ) -> str:
        """Make a run and put it into the queue; return its id.

        Args:
            method: as on the command line.
            values: of its config.
            samples: requests that are drawn at each checkpoint; None draws the config's prompts.
            device: on which it works, as on the command line; "" is the app's.

        Raises:
            InvalidRequest: one sentence about the first wrong field.
        """
        config = self.checked(method, values)
        self.training.runner.check_device(device)
        for row in samples or ():
            parse_request(row)
        run_id = self.training.runs.create(method, config.output_name, self.training.dump(config), samples, device)
        self.training.runner.enqueue(run_id)
        return run_id

    def command(self, method: str, config: Any, device: str = "") -> str:
        """Return what a person types in a shell to do what Start does: the config as a file, and the command."""
        name, number = config.output_name, 1
        while (self.settings.runs / name).exists():
            number += 1
            name = f"{config.output_name}-{number}"
        folder = self.settings.runs / name
        path = shlex.quote(str(folder / CONFIG))
        file = f"{METHOD_LINE}{method}\n{self.training.dump(config)}"
        words = shlex.join(self.training.runner.words(method, folder, device=device))
        return f"mkdir -p {shlex.quote(str(folder))}\ncat > {path} <<'{END}'\n{file}{END}\n{words}"

    def origin(self, text: str) -> Origin:
        """Return what a run is filled with that follows another: see `training.origins.origin_of`.

        Raises:
            InvalidRequest: if there is no such thing.
        """
        return origin_of(text, self.training.runs, self.library.parts, self.training.methods)

    def estimate(
        self, method: str, values: dict[str, Any], cancelled: Any = lambda: False, *, device: str = ""
    ) -> dict[str, Any] | None:
        """Say how long a run takes and how much memory; None if it was cancelled. `device` as in `start`.

        Raises:
            StudioError: what is wrong.
        """
        config = self.checked(method, values)
        self.training.runner.check_device(device)
        return self.training.runner.estimate(method, self.training.dump(config), cancelled, device=device)


def remedy(advised: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return what a piece of the estimate's advice changes, such as `gradient_checkpointing: true`.

    Args:
        advised: as `trainers.estimate` says it.
        values: plain, of the form.
    """
    name, _, text = advised.partition(":")
    value = read_yaml(text.partition(",")[0])
    if name == "train_batch_size":
        steps = values["gradient_accumulation_steps"] * values["train_batch_size"]
        return {name: value, "gradient_accumulation_steps": steps}
    if name == "train_text_encoder" and not value:
        return {name: value, "text_encoder_lr": []}
    return {name: [value] if name == "resolution" else value}
