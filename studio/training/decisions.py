"""From the few things that a person decides to a whole config: prompts, samples and names follow, the rest is a preset's. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.store.models import Model
from studio.training.presets import Preset, preset_values
from studio.training.values import defaults_of, fields_of, plain

# What decisions fill in, besides the pictures themselves.
FOLLOWING = (
    *("instance_prompt", "class_prompt", "trigger_word", "placeholder_token", "initializer_token"),
    *("validation_prompts", "output_name"),
)
# Which decisions a method asks for, besides the pictures.
ASKED: dict[str, tuple[str, ...]] = {
    "dreambooth": ("word", "thing"),
    "lora": ("word",),
    "textual-inversion": ("word", "thing"),
}
DERIVED = frozenset({("textual-inversion", "trigger_word")})  # its config makes it of the placeholder
SCENE, SMALL_SCENE = "a house by a lake", "a red circle on a blue background"
NAME_MAX = 40


@dataclass(frozen=True)
class Decisions:
    """What a beginner says.

    Attributes:
        dataset: name in the data root, or a folder.
        word: what will call it.
        thing: what it is: `dog`.
    """

    dataset: str = ""
    word: str = ""
    thing: str = ""


def proposal(
    method: str, config_class: type[Any], model: Model | None, preset: Preset | None, decided: Decisions
) -> dict[str, Any]:
    """Return plain values of all fields of a method: the class's, then the preset's, then what the decisions say.

    Args:
        method: as on the command line.
        config_class: declares the fields.
        model: that is taught, None if the method has none.
        preset: that comes nearest, see `presets.nearest`.
        decided: by a person.
    """
    fields = fields_of(config_class)
    values = defaults_of(config_class)
    values |= {
        name: plain(name, fields[name], value)
        for name, value in preset_values(preset, method, model).items()
        if name in fields
    }
    values |= {name: value for name, value in following(method, model, decided).items() if name in fields}
    values["dataset"] = decided.dataset
    if model and "model" in fields:
        values["model"] = model.id
    return {name: value for name, value in values.items() if (method, name) not in DERIVED}


def following(method: str, model: Model | None, decided: Decisions) -> dict[str, Any]:
    """Return the prompts, samples and names that follow from decisions."""
    asked = ASKED.get(method, ())
    word, thing = (getattr(decided, name).strip() if name in asked else "" for name in ("word", "thing"))
    small = bool(model and model.words)  # a model of few words is asked in its own
    photo, scene = ("", SMALL_SCENE) if small else ("a photo of ", SCENE)
    of_class = f"{photo}{'an' if thing[0].lower() in 'aeiou' else 'a'} {thing}" if thing else ""
    name = file_name(f"{word} {thing}") or file_name(Path(decided.dataset).name) or "trained"
    made: dict[str, Any] = {"output_name": name}
    if method == "dreambooth":
        called = " ".join(filter(None, [word, thing]))
        prompt = f"{photo or 'a '}{called}" if called else ""
        samples = [one for one in (prompt, of_class) if one]
        made |= {"instance_prompt": prompt, "class_prompt": of_class, "trigger_word": word}
        made["validation_prompts"] = samples
    elif method == "lora":
        made |= {"instance_prompt": f"a picture in {word} style" if word else "", "trigger_word": word}
        made["validation_prompts"] = [f"{scene}, {word} style", scene] if word else [scene]
    elif method == "textual-inversion":
        called = placeholder_of(word)
        made |= {"placeholder_token": called, "initializer_token": thing}
        made["validation_prompts"] = [one for one in (f"{photo or 'a '}{called}", of_class) if one]
    elif method in ("full", "controlnet"):
        made["validation_prompts"] = [scene]
    return made


def placeholder_of(word: str) -> str:
    """Return a word as a placeholder: in angle brackets, so that the model cannot know it."""
    if not word:
        return "<new>"
    return word if not word.isalnum() else f"<{word}>"


def file_name(text: str) -> str:
    """Return a text as a result's name; "" if nothing of it can stand there."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:NAME_MAX].strip("-")


def kept(now: Mapping[str, Any], before: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Return fresh values, but for those that a person changed since they were proposed.

    Args:
        now: plain values of the form.
        before: what had been proposed to it.
        fresh: what is proposed now.
    """
    return {
        name: now[name] if name in now and name in before and now[name] != before[name] else value
        for name, value in fresh.items()
    }


def decisions_of(method: str, values: Mapping[str, Any]) -> Decisions:
    """Return what a person would have decided to be proposed these values, as far as they tell."""
    word, prompt = str(values.get("trigger_word") or ""), str(values.get("class_prompt") or "")
    thing = re.sub(r"^(a photo of )?(an?|the) ", "", prompt)
    if method == "textual-inversion":
        word, thing = str(values.get("placeholder_token") or ""), str(values.get("initializer_token") or "")
    return Decisions(str(values.get("dataset") or ""), word, thing)
