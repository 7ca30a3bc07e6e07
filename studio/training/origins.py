"""New runs from what is there: train like an adapter, go on from one, train longer, do a run again. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import InvalidRequest
from studio.store.headers import safetensors_header
from studio.store.lora_facts import read_lora_facts
from studio.store.parts import PartLibrary
from studio.store.runs import Runs
from studio.training.decisions import file_name
from studio.training.kohya import from_kohya
from studio.training.models import whole_model
from studio.training.values import fields_of

LIKE, CONTINUE, LONGER, AGAIN = "like", "continue", "longer", "run"
LORA = "lora"


@dataclass(frozen=True)
class Origin:
    """Values that a form is filled with.

    Attributes:
        method: that they are of.
        values: plain, of some or all fields.
        notes: sentences about what is not as it was.
    """

    method: str
    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def like_run(runs: Runs, run_id: str, methods: Mapping[str, type[Any]]) -> Origin:
    """Return what a run was told, to do it again.

    Raises:
        InvalidRequest: if there is no such run, or nobody knows its method.
    """
    method = _known(runs.method(run_id), methods, run_id)
    return Origin(method, _of_method(runs.config(run_id), methods[method]))


def longer(runs: Runs, run_id: str, methods: Mapping[str, type[Any]]) -> Origin:
    """Return a new run from a run's newest result, told the same but where it begins.

    Raises:
        InvalidRequest: if it has no result yet.
    """
    origin, results = like_run(runs, run_id, methods), runs.results(run_id)
    if not results:
        raise InvalidRequest("init_from", f"{run_id} has saved nothing yet; resume it, or begin it anew")
    step = -1 if -1 in results else max(results)
    name = run_id if step < 0 else f"{run_id}-{step:06d}"
    values = origin.values | {"output_name": file_name(f"{origin.values.get('output_name', run_id)}-longer")}
    if whole_model(origin.method, values):
        return Origin(origin.method, values | {"model": name}, (f"It begins with the model {name}.",))
    values["init_from"] = str(results[step].resolve())
    return Origin(origin.method, values, (f"It begins with the weights of {name}.",))


def like_adapter(parts: PartLibrary, name: str, methods: Mapping[str, type[Any]]) -> Origin:
    """Return how an adapter of the library was trained, as far as its file says.

    Raises:
        InvalidRequest: if it says nothing.
    """
    path, told = _told(parts, name)
    config = _json(told.get("training_config", ""))
    if isinstance(config, dict):
        method = _known(told.get("method", ""), methods, name)
        return Origin(method, _of_method(config, methods[method]))
    if not any(key.startswith("ss_") for key in told):
        raise InvalidRequest(
            "origin", f"{name} does not say how it was trained; choose another, or begin with a preset"
        )
    values, lost = from_kohya(told, methods[LORA])
    facts = read_lora_facts(path)
    if facts.trigger_words:
        values["trigger_word"] = facts.trigger_words[0]
    notes = [f"It was trained by kohya's tools on {facts.base}." if facts.base else "It was trained by kohya's tools."]
    notes += [f"Not taken over: {', '.join(lost)}."] if lost else []
    return Origin(LORA, values, tuple(notes))


def continued(parts: PartLibrary, name: str, methods: Mapping[str, type[Any]]) -> Origin:
    """Return a run that goes on from an adapter of ours, told as it was.

    Raises:
        InvalidRequest: if it is none that a run here can go on from.
    """
    path, told = _told(parts, name)
    if "training_config" not in told:
        raise InvalidRequest(
            "origin",
            f"{name} was not trained here, so that its weights lie in another layout; train like it, from the beginning",
        )
    origin = like_adapter(parts, name, methods)
    if origin.values.get("train_lora") and path.stem.endswith("_emb"):
        path = path.with_stem(path.stem.removesuffix("_emb"))  # the two are named by the LoRA
    values = origin.values | {"init_from": str(path.resolve())}
    return Origin(origin.method, values, (f"It begins with the weights of {name}.",))


def origin_of(text: str, runs: Runs, parts: PartLibrary, methods: Mapping[str, type[Any]]) -> Origin:
    """Read what a button of another tab, or a list, names: `run:ID`, `longer:ID`, `like:NAME`, `continue:NAME`.

    Raises:
        InvalidRequest: if there is no such thing.
    """
    kind, _, name = text.partition(":")
    if kind == AGAIN:
        return like_run(runs, name, methods)
    if kind == LONGER:
        return longer(runs, name, methods)
    if kind == LIKE:
        return like_adapter(parts, name, methods)
    if kind == CONTINUE:
        return continued(parts, name, methods)
    raise InvalidRequest("origin", f"{text[:60]!r} must be {AGAIN}:ID, {LONGER}:ID, {LIKE}:NAME or {CONTINUE}:NAME")


def telling_adapters(parts: PartLibrary) -> dict[str, bool]:
    """Return the adapters whose files say how they were trained, each with whether a run can go on from it."""
    found = {}
    for part in (*parts.parts("lora"), *parts.parts("embedding")):
        told = {} if part.problem or part.path.suffix != ".safetensors" else _metadata(part.path)
        if "training_config" in told or any(key.startswith("ss_") for key in told):
            found[part.id] = "training_config" in told
    return found


def _told(parts: PartLibrary, name: str) -> tuple[Path, dict[str, str]]:
    known = {part.id: part for kind in ("embedding", "lora") for part in parts.parts(kind) if not part.problem}
    if name not in known:
        raise InvalidRequest("origin", f"there is no LoRA or embedding {name[:60]!r}")
    path = known[name].path
    return path, _metadata(path)


def _metadata(path: Path) -> dict[str, str]:
    told = safetensors_header(path).get("__metadata__", {})
    return {str(name): str(value) for name, value in told.items()}


def _of_method(config: dict[str, Any], config_class: type[Any]) -> dict[str, Any]:
    fields = fields_of(config_class)
    return {name: value for name, value in config.items() if name in fields}


def _known(method: str, methods: Mapping[str, type[Any]], name: str) -> str:
    if method not in methods:
        raise InvalidRequest(
            "origin", f"{name} was trained with {method!r}, which must be one of: {', '.join(methods)}"
        )
    return method


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
