"""Headers of model files: read without torch, judged before anything is loaded."""

import json
import shlex
import struct
from pathlib import Path
from typing import Any

from studio.errors import ModelError

HEADER_MAX = 100_000_000
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def pickle_cure(path: Path) -> str:
    """Say how a pickle becomes a file that can be used."""
    stem = "model" if path.stem == "pytorch_model" else path.stem  # transformers' names of the two
    paths = shlex.join(map(str, (path, path.with_name(f"{stem}.safetensors"))))
    return f"make a safe copy with: python -m studio convert {paths}"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: naming the file and the way out.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is no valid JSON"
        raise ModelError(f"{path.parent.name}/{path.name} {reason}; copy the model folder again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path.parent.name}/{path.name} is no JSON object; copy the model folder again")
    return content


def safetensors_problem(path: Path) -> str | None:
    """Say what is wrong with a file's header or length; None if both are right."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return "is empty or cut off"
        (length,) = struct.unpack("<Q", start)
        if length > min(HEADER_MAX, size):
            return "is no safetensors file (a pickle or a page that was saved instead?)"
        try:
            header = json.loads(file.read(length))
            entries = [entry for name, entry in header.items() if name != "__metadata__"]
            ends = [entry["data_offsets"][1] for entry in entries]
            if not isinstance(header.get("__metadata__", {}), dict) or not all(map(_has_shape, entries)):
                return "has a damaged header"
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "has a damaged header"
    if 8 + length + max(ends, default=0) != size:
        return f"is cut off: {size:,} of {8 + length + max(ends, default=0):,} bytes"
    return None


def _has_shape(entry: dict[str, Any]) -> bool:
    shape = entry.get("shape")
    return isinstance(shape, list) and all(isinstance(side, int) and side >= 0 for side in shape)


def safetensors_header(path: Path) -> dict[str, Any]:
    """Return the header of a file that `safetensors_problem` found nothing wrong with."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor of a file.

    Raises:
        ModelError: if it is a pickle or damaged, naming the way out.
    """
    if path.suffix.lower() in PICKLES:
        raise ModelError(f"it is a pickle, which can run code; {pickle_cure(path)}")
    if problem := safetensors_problem(path):
        raise ModelError(f"{path.name} {problem}; copy the file again")
    header = safetensors_header(path)
    return {name: entry.get("shape", []) for name, entry in header.items() if name != "__metadata__"}
