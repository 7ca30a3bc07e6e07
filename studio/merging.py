"""Merging: a model out of two or three, or out of a model and LoRA, written by a child process tensor by tensor."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from studio.errors import InvalidRequest, StudioError, first_problem
from studio.families import FAMILIES
from studio.fields import Frozen
from studio.lora_blocks import blocks_problem
from studio.loras import LORAS_MAX, LoraSpec
from studio.parts import Part, shape_problem
from studio.settings import ROOT, VERSION
from studio.store import writer
from studio.store.headers import safetensors_header, safetensors_problem
from studio.store.intake import RESERVED
from studio.store.library import Library
from studio.store.models import Model

MODELS_MAX = 3
SUM, DIFFERENCE = "weighted-sum", "add-difference"
METHODS = {
    SUM: "Weighted sum: A + ratio x (B - A)",
    DIFFERENCE: "Add difference: A + ratio x (B - C)",
}
PRECISIONS = ("keep", "float16", "bfloat16", "float32")
HOURS = 3.0
SPARE = 1.02  # of the disk's room beyond the model's own size


class MergeSpec(Frozen):
    """What to merge. With one model, LoRA are merged into it; with more, they are added to what the models make."""

    models: Annotated[
        tuple[str, ...], Field(min_length=1, max_length=MODELS_MAX, description="Models A, B and C; A says the rest.")
    ]
    method: Annotated[Literal["weighted-sum", "add-difference"], Field(description="How models are merged.")] = SUM
    ratios: Annotated[
        tuple[Annotated[float, Field(ge=-2, le=2)], ...],
        Field(max_length=MODELS_MAX - 1, description="Of B (and of C in a sum of three); 0 is A alone, 1 is B alone."),
    ] = (0.5,)
    loras: Annotated[
        tuple[LoraSpec, ...], Field(max_length=LORAS_MAX, description="LoRA, LoHa, LoKr or DoRA to merge in.")
    ] = ()
    name: Annotated[str, Field(min_length=1, max_length=120, description="Of the new model.")]
    precision: Annotated[
        Literal["keep", "float16", "bfloat16", "float32"], Field(description="Of the new weights; keep: as in A.")
    ] = "keep"


Run = Callable[[dict[str, Any]], dict[str, Any]]


class Source(NamedTuple):
    """A checkpoint to merge: where it lies, its hash, and what the library knows of it (None for a file that lies elsewhere)."""

    name: str
    path: Path
    sha256: str
    model: Model | None


def parse_merge(values: dict[str, Any]) -> MergeSpec:
    """Read what to merge from plain values.

    Raises:
        InvalidRequest: naming the first wrong field.
    """
    try:
        spec = MergeSpec.model_validate(values)
    except ValidationError as error:
        raise first_problem(error) from None
    number, ratios = len(spec.models), len(spec.ratios)
    if number == 1 and not spec.loras:
        raise InvalidRequest(
            "models", "models has one entry and loras none; give another model or a LoRA to merge with it"
        )
    if spec.method == DIFFERENCE and number not in (1, 3):
        raise InvalidRequest("models", f"models has {number} entries; add-difference takes three: A + ratio x (B - C)")
    wanted = 1 if spec.method == DIFFERENCE else number - 1
    if number > 1 and ratios != wanted:
        raise InvalidRequest("ratios", f"ratios has {ratios} numbers; {spec.method} of {number} models takes {wanted}")
    if number > 1 and spec.method == SUM and (min(spec.ratios) < 0 or sum(spec.ratios) > 1):
        raise InvalidRequest(
            "ratios", f"ratios={list(spec.ratios)} must be at least 0 and together at most 1 in a weighted sum"
        )
    odd = set(spec.name) & set('/\\:*?"<>|') or not spec.name.isprintable() or RESERVED.fullmatch(spec.name)
    if odd or spec.name.startswith((".", "-")) or spec.name != spec.name.strip(" ."):
        raise InvalidRequest("name", f"name={spec.name!r} must be a plain name without slashes, such as my-merge")
    return spec


def merge(spec: MergeSpec, library: Library, folder: Path, *, near: Path | None = None, run: Run | None = None) -> Path:
    """Write the merged model; it is a model of the library at once.

    Args:
        spec: what to merge.
        library: where names lead.
        folder: for the new model.
        run: does the work; None: a child process, so that torch is loaded there and what it takes is gone with it.
        near: folder relative to which names may be .safetensors files, for the command line; elsewhere names are never paths.

    Returns:
        The new folder, or the new file if A is a single file.

    Raises:
        InvalidRequest: if a name is unknown, or models and LoRA do not fit together.
        StudioError: if it could not be done; nothing is left then.
    """
    sources = [_source(name, place, library, near) for place, name in enumerate(spec.models)]
    first = sources[0]
    for place, other in enumerate(sources[1:], 1):
        if problem := family_problem(first, other):
            raise InvalidRequest(f"models.{place}", problem)
    loras = [_lora(lora, place, first, library, near) for place, lora in enumerate(spec.loras)]
    single = first.path.is_file()
    out = folder / (f"{spec.name}.safetensors" if single else spec.name)
    if out.exists():
        raise InvalidRequest("name", f"name={spec.name!r} is taken by {out}; choose another")
    size = sum(path.stat().st_size for path in ([first.path] if single else first.path.rglob("*.safetensors")))
    writer.make_folder(folder)
    if shutil.disk_usage(folder).free < (2 if spec.precision == "float32" else 1) * SPARE * size:
        raise StudioError(
            f"the disk of {folder} has too little room for a model of {size / 2**20:,.0f} MB; make room first"
        )
    plan = {
        "models": [{"name": one.name, "path": str(one.path)} for one in sources],
        "method": spec.method,
        "ratios": spec.ratios,
        "loras": [
            {"path": str(part.path), "spec": lora.model_dump()} for lora, part in zip(spec.loras, loras, strict=True)
        ],
        "out": str(out),
        "precision": spec.precision,
        "provenance": {
            "studio": VERSION,
            "method": spec.method,
            "ratios": spec.ratios if len(sources) > 1 else (),
            "models": [{"name": one.name, "sha256": one.sha256} for one in sources],
            "loras": [
                lora.model_dump() | {"name": part.id, "sha256": writer.file_sha256(part.path)}
                for lora, part in zip(spec.loras, loras, strict=True)
            ],
        },
    }
    said = (run or in_child)(plan)
    if problem := said["problem"]:
        raise InvalidRequest("models", problem) if said["invalid"] else StudioError(problem)
    return out


def in_child(plan: dict[str, Any]) -> dict[str, Any]:
    """Let `merge_main` follow a plan in a process of its own; return what it says.

    Raises:
        StudioError: if it died or took too long.
    """
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from studio.merge_main import main; sys.exit(main())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-c", code],
            env=environment,
            input=json.dumps(plan).encode(),
            capture_output=True,
            timeout=HOURS * 3600,
            check=False,
        )
        return json.loads(answer.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise StudioError(f"merging took more than {HOURS:g} hours; it was given up") from None
    except (ValueError, IndexError):
        reason = (answer.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]
        raise StudioError(f"merging failed: {reason[:200]}") from None


def _source(name: str, place: int, library: Library, near: Path | None) -> Source:
    """Find a checkpoint by its name in the library, or by its file."""
    field = f"models.{place}"
    path = near / name if near else None
    if path and path.suffix == ".safetensors" and path.is_file():
        if problem := safetensors_problem(path):
            raise InvalidRequest(field, f"{field}: {path.name} {problem}; copy the file again")
        return Source(path.stem, path, writer.file_sha256(path), None)
    model = library.get(name, field)
    if model.quantised:
        raise InvalidRequest(
            field, f"{field}={name!r} is GGUF, which is not merged; choose the safetensors file or the folder"
        )
    return Source(model.id, model.path, library.reference(model).sha256, model)


def family_problem(first: Source, other: Source) -> str:
    """Say why two checkpoints cannot be merged, as far as names and headers tell; "" if they can."""
    if first.path.is_file() != other.path.is_file():
        forms = {True: "a single file", False: "a diffusers folder"}
        told = " and ".join(f"{one.name} is {forms[one.path.is_file()]}" for one in (first, other))
        return f"{told}; merge two of one form"
    if first.model and other.model:
        one, two = first.model, other.model
        titles = [FAMILIES[model.family].title + (f" ({model.kind})" if model.kind else "") for model in (one, two)]
        if titles[0] != titles[1]:
            return f"{one.id} is {titles[0]} and {two.id} is {titles[1]}; merge models of one family"
        if one.noise != two.noise:
            return (
                f"{one.id} was trained with {one.noise} noise and {two.id} with {two.noise}; merge models of one kind"
            )
        return ""
    sides = [_width(one.path) for one in (first, other)]
    if None not in sides and sides[0] != sides[1]:
        return f"{first.name} reads prompts {sides[0]} wide and {other.name} {sides[1]}; merge models of one family"
    return ""


def _width(path: Path) -> int | None:
    """Return how wide the prompts are that a single file's UNet reads."""
    header = safetensors_header(path) if path.is_file() else {}
    return next((entry["shape"][1] for name, entry in header.items() if name.endswith("attn2.to_k.weight")), None)


def _lora(lora: LoraSpec, place: int, first: Source, library: Library, near: Path | None) -> Part:
    """Find a LoRA and compare it with the model."""
    field, path = f"loras.{place}", near / lora.name if near else None
    if path and path.suffix == ".safetensors" and path.is_file():
        library.parts.add_file("lora", path.stem, path)
        lora = lora.model_copy(update={"name": path.stem})
    part = library.parts.get("lora", lora.name, f"{field}.name")
    if not first.model:
        if lora.blocks:
            raise InvalidRequest(f"{field}.blocks", f"{field}.blocks work with diffusers folders only; leave them out")
        return part
    if problem := shape_problem(part, first.model.shape):
        raise InvalidRequest(f"{field}.name", f"{field}.name={lora.name!r} does not fit {first.name}: {problem}")
    if lora.blocks and (problem := blocks_problem(lora.blocks, first.model.shape.get("blocks"))):
        raise InvalidRequest(f"{field}.blocks", f"{field}.blocks: {problem}")
    return part
