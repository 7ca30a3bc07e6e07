"""Models in single files: found by their ending, judged by their content. Reads headers only, no torch."""

import importlib.util
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from studio.checkpoints import Checkpoint, understand
from studio.errors import ModelError
from studio.families import FAMILIES
from studio.gguf_header import GGUF, is_gguf, read_header
from studio.parts import KINDS, shape_of
from studio.schedulers import SCHEDULERS, noise_kind
from studio.store.headers import PICKLES, pickle_cure, safetensors_header, safetensors_problem

ENDINGS = (".safetensors", ".ckpt", GGUF)
DEPTH = 3
OTHER_FOLDERS = frozenset(  # of other tools, which hold no models
    {"embeddings", "text_encoder", "text_encoders", "clip", "clip_vision", "hypernetworks", "esrgan", "realesrgan", "upscale_models"}
    | {"codeformer", "gfpgan", "style_models", "loras", "vae_approx", "annotators", "ipadapter", "photomaker", "ultralytics"}
    | {name.lower() for kind in KINDS.values() for name in kind.folders}
)  # fmt: skip
DTYPES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "int8"}


def model_files(folder: Path) -> list[Path]:
    """Return the files below a folder that may hold a whole model; parts of diffusers folders and other kinds' folders are left out."""
    found = []
    waiting = [(folder, 1)] if folder.is_dir() else []
    while waiting:
        place, depth = waiting.pop()
        if place != folder and (place.name.lower() in OTHER_FOLDERS or (place / "model_index.json").is_file()):
            continue
        for path in sorted(place.iterdir()):
            if path.is_file() and path.suffix.lower() in ENDINGS:
                found.append(path)
            elif depth < DEPTH and path.is_dir() and not path.name.startswith("."):
                waiting.append((path, depth + 1))
    return sorted(found)


def read_checkpoint(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what a file says about itself, as fields of `library.Model`.

    Args:
        path: of the file.
        facts: what stands beside it, see `facts.read_facts`.

    Raises:
        ModelError: naming what is wrong and the way out.
        ValueError: likewise.
    """
    found, header = understood(path, str(facts.get("prediction", "")))
    family = facts.get("family", found.family)
    if family != found.family:
        raise ModelError(f"its studio.yaml says family={family!r}, but its weights are {FAMILIES[found.family].title}")
    noise = FAMILIES[family].noise if found.told else noise_kind(found.configs["scheduler"]["_class_name"])
    usual = {} if found.told else FAMILIES[family].defaults  # those of the model that gives the rest
    if usual and SCHEDULERS[usual["scheduler"]].noise != noise:
        usual = usual | {"scheduler": next(name for name, one in SCHEDULERS.items() if one.noise == noise)}
    metadata = header.get("__metadata__", {})
    return {
        "family": family,
        "kind": found.kind,
        "noise": noise,
        "prediction": found.prediction,
        "told_by": found.told_by,
        "shape": {}
        if found.told
        else shape_of(found.configs[found.denoiser], found.configs.get("vae", {})) | _text_shape(found, family),
        "denoiser": found.told,
        "defaults": usual | found.defaults,
        "lacks": found.lacks,
        "words_known": found.vocabularies,
        "bytes": path.stat().st_size,
        "dtype": dtype_of(header),
        "licence": str(metadata.get("modelspec.license", "")),
        "trigger_words": tuple(filter(None, [str(metadata.get("modelspec.trigger_phrase", ""))])),
    }


def _text_shape(found: Checkpoint, family: str) -> dict[str, Any]:
    """Return how wide the vectors are that a file's text encoders read; {} if it lacks one, or its prompts have no syntax."""
    names = [name for name in ("text_encoder", "text_encoder_2") if name in found.configs]
    if not FAMILIES[family].syntax or found.lacks or not names:
        return {}
    return {"text_widths": tuple(found.configs[name]["hidden_size"] for name in names)}


def understood(path: Path, prediction: str = "") -> tuple[Checkpoint, dict[str, Any]]:
    """Return what a file is, and its header.

    Raises:
        ModelError: if it is a pickle or damaged, naming the way out.
        ValueError: if it is no model that can be used.
    """
    if is_gguf(path):
        return _understood_gguf(path, prediction)
    if path.suffix.lower() in PICKLES:
        raise ModelError(f"{path.name} is a pickle, which can run code; {pickle_cure(path)}")
    if problem := safetensors_problem(path):
        raise ModelError(f"{path.name} {problem}; copy the file again")
    header = safetensors_header(path)
    return understand(_shapes(header), header.get("__metadata__", {}), prediction, global_step(path, header)), header


def _understood_gguf(path: Path, prediction: str) -> tuple[Checkpoint, dict[str, Any]]:
    """Return what a GGUF file is, and its header; see `understood`."""
    try:
        header = read_header(path)
    except ValueError as error:
        raise ModelError(f"{path.name} {error}; copy the file again") from None
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{path.name} is GGUF, which needs the package gguf; `pip install gguf` and start Studio again"
        )
    metadata = header["__metadata__"]
    try:
        return understand(_shapes(header), metadata, prediction), header
    except ValueError as error:
        raise ModelError(
            f"it is GGUF of the architecture {str(metadata.get('general.architecture'))[:40]!r}: {error}"
        ) from None


def _shapes(header: dict[str, Any]) -> dict[str, Any]:
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def global_step(path: Path, header: dict[str, Any]) -> int:
    """Return the number in the tensor `global_step`; 0 if there is none."""
    entry = header.get("global_step", {})
    if entry.get("dtype") != "I64":
        return 0
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + length + entry["data_offsets"][0])
        return struct.unpack("<q", file.read(8))[0]


def dtype_of(header: dict[str, Any]) -> str:
    """Return the precision that most of a file's bytes have."""
    sizes: Counter[str] = Counter()
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            sizes[entry["dtype"]] += end - start
    most = sizes.most_common(1)
    return DTYPES.get(most[0][0], most[0][0].lower()) if most else ""
