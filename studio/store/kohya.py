"""kohya's dataset files (`[general]`, `[[datasets]]`, `[[datasets.subsets]]`, TOML or JSON) as fields of our training config."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import InvalidRequest, shown
from studio.store.datasets import CAPTIONS

FILE_MAX = 256_000  # bytes
SUBSETS_MAX = 200
ENDINGS = (".toml", ".json")
FOR_ALL: dict[str, tuple[str, type | tuple[type, ...]]] = {  # kohya's name -> ours, for what holds for a whole run
    "resolution": ("resolution", (int, list)),
    "batch_size": ("train_batch_size", int),
    "enable_bucket": ("enable_bucket", bool),
    "bucket_reso_steps": ("bucket_step", int),
    "flip_aug": ("random_flip", bool),
    "random_crop": ("crop", bool),
    "shuffle_caption": ("shuffle_caption", bool),
    "keep_tokens": ("keep_tokens", int),
    "caption_dropout_rate": ("caption_dropout", (int, float)),
}
OF_SUBSETS = {"image_dir", "num_repeats", "class_tokens", "caption_extension", "is_reg", "subsets", "cache_info"}


@dataclass(frozen=True)
class Kohya:
    """What a file says.

    Attributes:
        fields: of our training config, without those that have their usual value.
        notes: a sentence for each thing that is not carried over.
    """

    fields: dict[str, Any]
    notes: tuple[str, ...]


def read_kohya(path: Path) -> Kohya:
    """Read a dataset file; its folders are used where they are.

    Raises:
        InvalidRequest: if it cannot be read, or names no folder of pictures.
    """
    told = _parsed(path)
    notes: list[str] = []
    general = _table(told.get("general", {}), "general", path)
    subsets = []
    for dataset in _tables(told.get("datasets"), "datasets", path):
        for subset in _tables(dataset.get("subsets"), "datasets.subsets", path):
            subsets.append(general | {key: dataset[key] for key in dataset if key != "subsets"} | subset)
    if not 0 < len(subsets) <= SUBSETS_MAX:
        raise InvalidRequest("file", f"{path.name} has {len(subsets)} subsets; it needs 1 to {SUBSETS_MAX}")
    fields = _for_all(subsets, notes)
    concepts, classes = [], []
    for subset in subsets:
        (classes if subset.get("is_reg") else concepts).append(_concept(subset, path, notes))
    if not concepts:
        raise InvalidRequest("file", f"{path.name} has only is_reg folders; name one with pictures of the subject")
    if classes:
        fields |= {
            "with_prior_preservation": True,
            "class_data_dir": classes[0]["dataset"],
            "class_prompt": classes[0].get("instance_prompt", ""),
        }
        notes.append("is_reg is for the method dreambooth; it is its class_data_dir")
        if not fields["class_prompt"]:
            notes.append("the is_reg folder has no class_tokens; write class_prompt, such as a photo of a dog")
    if len(classes) > 1:
        notes.append(f"{len(classes)} folders are is_reg; one is used, {classes[0]['dataset']}")
    unknown = sorted({key for subset in subsets for key in subset} - OF_SUBSETS - set(FOR_ALL))
    notes += [f"{key} is not carried over" for key in unknown]
    return Kohya({"concepts": concepts} | fields, tuple(dict.fromkeys(notes)))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
        if len(data) > FILE_MAX:
            raise InvalidRequest("file", f"{path.name} has more than {FILE_MAX:,} bytes; a dataset file is smaller")
        text = data.decode("utf-8-sig")
        told = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text, parse_constant=_refuse)
    except OSError as error:
        raise InvalidRequest("file", f"file={shown(str(path))} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            "file", f"{path.name} cannot be read as {path.suffix[1:].upper()}: {str(error)[:120]}"
        ) from None
    return _table(told, "the file", path)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _table(value: object, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest("file", f"{path.name}: {name} must be a table of names and values")
    return value


def _tables(value: object, name: str, path: Path) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InvalidRequest("file", f"{path.name}: {name} must be a list of tables, [[{name}]] in TOML")
    return value


def _for_all(subsets: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    """Return what holds for the whole run: kohya says it for each dataset, ours has one value."""
    fields: dict[str, Any] = {}
    for name, (ours, kind) in FOR_ALL.items():
        said = [subset[name] for subset in subsets if name in subset and not subset.get("is_reg")]
        if not said:
            continue
        value = said[0]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            notes.append(f"{name}={shown(value)} is not carried over")
        elif any(other != value for other in said):
            notes.append(f"{name} differs between folders; {ours} has one value for all: {shown(value)}")
            fields[ours] = value
        else:
            fields[ours] = value
    return _fitting(fields, notes)


def _fitting(fields: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Turn values that we say otherwise into ours."""
    if isinstance(sides := fields.get("resolution"), list):
        square = len(sides) == 2 and all(isinstance(side, int) for side in sides) and sides[0] == sides[1]
        if square:
            fields["resolution"] = sides[0]
        else:
            del fields["resolution"]
            notes.append(f"resolution={shown(sides)} is not carried over; give one side of a square of the same area")
    if "crop" in fields:
        fields["crop"] = "random" if fields["crop"] else "center"
    usual = {"enable_bucket": True, "random_flip": False, "shuffle_caption": False, "crop": "center", "keep_tokens": 0}
    fields = {name: value for name, value in fields.items() if usual.get(name, ...) != value}
    if fields.get("keep_tokens") and not fields.get("shuffle_caption"):
        del fields["keep_tokens"]
        notes.append("keep_tokens means nothing without shuffle_caption; it is left out")
    if not fields.get("enable_bucket", True) and fields.pop("bucket_step", None):
        notes.append("bucket_reso_steps means nothing without enable_bucket; it is left out")
    return fields


def _concept(subset: dict[str, Any], path: Path, notes: list[str]) -> dict[str, Any]:
    """Return one folder as a concept."""
    said = _typed(subset, "image_dir", str, path)
    folder = Path(said).expanduser()
    folder = folder if folder.is_absolute() else path.parent / folder
    if not said or not folder.is_dir():
        raise InvalidRequest("file", f"{path.name}: image_dir={shown(said)} is no folder here; write its path")
    ending = _typed(subset, "caption_extension", str, path) or CAPTIONS[1]
    if ending not in CAPTIONS:
        notes.append(f"captions that end in {ending} are not read; rename them to end in .txt")
    words, repeats = _typed(subset, "class_tokens", str, path), _typed(subset, "num_repeats", int, path)
    if repeats is not None and not 1 <= repeats <= 10_000:
        raise InvalidRequest("file", f"{path.name}: num_repeats={repeats} must be from 1 to 10,000")
    concept: dict[str, Any] = {"dataset": str(folder.resolve())}
    concept |= {"instance_prompt": words} if words else {}
    return concept | ({"repeats": repeats} if repeats not in (None, 1) else {})


def _typed(subset: dict[str, Any], name: str, kind: Callable[..., Any], path: Path) -> Any:
    """Return a value of the wanted type; "" or None if it is not said."""
    value = subset.get(name)
    if value is None:
        return "" if kind is str else None
    if type(value) is not kind:
        raise InvalidRequest(
            "file", f"{path.name}: {name}={shown(value)} must be {'text' if kind is str else 'a number'}"
        )
    return value
