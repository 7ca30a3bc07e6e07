"""Auto-captioning: what is asked of a model that describes pictures, and how its words become captions. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ValidationError

from studio.errors import InvalidRequest, first_problem
from studio.fields import Frozen, control
from studio.settings import Settings
from studio.sources import REPO, Source, folder_name, parse_source
from studio.store.headers import PICKLES, safetensors_problem

FOLDER = "captioners"
TAGS = "selected_tags.csv"
WRAPPER = "timm_wrapper"  # what transformers calls a model of timm
KINDS = {"caption": "writes sentences", "tags": "writes tags"}


class CaptionSpec(Frozen):
    """How a dataset's captions shall be made."""

    model: Annotated[
        str,
        control(
            "Model", "caption", "Folder in models/captioners, or owner/name on the Hugging Face Hub.", max_length=300
        ),
    ]
    prompt: Annotated[
        str,
        control(
            "Prompt",
            "caption",
            "How a sentence begins, a question, or a task such as <DETAILED_CAPTION>; it is not part of the caption.",
            max_length=2000,
            lines=1,
        ),
    ] = ""
    max_length: Annotated[
        int, control("Max length", "caption", "Tokens a caption has at most; for taggers: tags.", ge=1, le=1000, step=1)
    ] = 60
    existing: Annotated[
        Literal["keep", "append", "replace"],
        control(
            "Captions that are there", "caption", "Keep them, add to them, or replace them; Undo brings them back."
        ),
    ] = "keep"
    prefix: Annotated[
        str,
        control("Prefix", "caption", "Begins every caption that is made: the trigger word.", max_length=500, lines=1),
    ] = ""
    threshold: Annotated[
        float,
        control("Tag threshold", "caption", "Taggers: how sure a general tag must be.", ge=0.01, le=0.99, step=0.01),
    ] = 0.35
    character_threshold: Annotated[
        float,
        control(
            "Character threshold", "caption", "Taggers: how sure a character must be.", ge=0.01, le=0.99, step=0.01
        ),
    ] = 0.75


@dataclass(frozen=True)
class Captioner:
    """A model that describes pictures.

    Attributes:
        name: of its folder.
        path: where it lies.
        kind: key of `KINDS`; "" if it cannot be used.
        problem: why it cannot, in a sentence that goes on after its name; "" if it can.
    """

    name: str
    path: Path
    kind: str
    problem: str = ""


def parse_captioning(values: dict[str, Any]) -> CaptionSpec:
    """Read what is asked from plain values.

    Raises:
        InvalidRequest: naming the first wrong field.
    """
    try:
        spec = CaptionSpec.model_validate(values)
    except ValidationError as error:
        raise first_problem(error) from None
    if not spec.model.strip():
        raise InvalidRequest("model", f"model is empty; put a captioner into models/{FOLDER}, or name one on the Hub")
    return spec.model_copy(
        update={name: " ".join(getattr(spec, name).split()) for name in ("model", "prompt", "prefix")}
    )


def captioners(settings: Settings) -> list[Captioner]:
    """List the captioners in `models/captioners` and in the extra folders; of one name the first counts."""
    found: dict[str, Captioner] = {}
    for root in settings.part_roots:
        folder = root / FOLDER
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir() and not path.name.startswith("."):
                found.setdefault(path.name, look_at(path))
    return list(found.values())


def look_at(folder: Path) -> Captioner:
    """Judge a folder by what is in it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture, kind = config.get("architecture"), config.get("model_type")
    except (OSError, ValueError, AttributeError):
        return Captioner(folder.name, folder, "", "has no readable config.json; it must be a folder as the Hub has it")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        there = {path.suffix for path in folder.iterdir()}
        if ".onnx" in there:
            why = "is in ONNX, which is not run here; take one with .safetensors weights, such as the third version of WD taggers"
        elif there & set(PICKLES):
            why = "has its weights only as a pickle, which can run code; take one with .safetensors weights"
        else:
            why = "has no .safetensors weights; copy it again"
        return Captioner(folder.name, folder, "", why)
    for path in weights:
        if problem := safetensors_problem(path):
            return Captioner(folder.name, folder, "", f"has a damaged file: {path.name} {problem}; copy it again")
    if architecture and kind in (None, WRAPPER):
        if not (folder / TAGS).is_file():
            return Captioner(folder.name, folder, "", f"is a classifier without {TAGS}; only WD taggers can be used")
        return Captioner(folder.name, folder, "tags")
    if not isinstance(kind, str):
        return Captioner(
            folder.name, folder, "", "says neither model_type nor architecture in config.json; copy it again"
        )
    return Captioner(folder.name, folder, "caption")


def find_captioner(settings: Settings, model: str, near: Path | None = None) -> Captioner | Source:
    """Find a captioner by the name of its folder, or else where it can be fetched from.

    Args:
        settings: say where models lie.
        model: a name, or `owner/name` on the Hub.
        near: folder relative to which a path may be given, for the command line; elsewhere names are never paths.

    Raises:
        InvalidRequest: if there is none, or it cannot be used.
    """
    here = {one.name: one for one in captioners(settings)}
    found = here.get(model)
    if found is None and near is not None and (near / model).is_dir():
        found = look_at((near / model).resolve())
    if found is None and REPO.fullmatch(model) and ".." not in model:
        source = parse_source(model)
        found = here.get(folder_name(source))
        if found is None:
            return source
    if found is None:
        names = ", ".join(here) or "none yet"
        raise InvalidRequest(
            "model", f"model={model!r} is not in models/{FOLDER} ({names}) and no owner/name on the Hub; choose one"
        )
    if found.problem:
        raise InvalidRequest("model", f"model={model!r} {found.problem}")
    return found


def new_caption(spec: CaptionSpec, before: str, said: str) -> str:
    """Return the caption that a model's words become.

    Args:
        spec: what was asked.
        before: the caption there is; "" if there is none.
        said: by the model.
    """
    said = " ".join(said.split()).strip(" ,")
    if spec.existing == "append" and before:
        there = {part.strip().casefold() for part in before.split(",")}
        parts = [part.strip() for part in said.split(",")]
        return _joined([before, *(part for part in parts if part.casefold() not in there)])
    return _joined([spec.prefix.rstrip(" ,"), said])


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(part for part in parts if part)
