"""A LoRA of ours in the keys of kohya's tools and A1111, made when it is asked for: the same bytes under other names. No torch."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.kohya_keys import kohya_module, split_key
from studio.store.headers import safetensors_header

CHUNK = 2**20  # bytes read at once
OURS = frozenset({"format", "lora_adapter_metadata", "rank", "scale", "text_encoders"})
SDXL_WIDTH = 2048  # of what its layers read of a prompt


@dataclass(frozen=True)
class KohyaFile:
    """A file that is not on disk: how long it is, and its bytes."""

    size: int
    parts: Iterator[bytes]


def kohya_file(path: Path) -> KohyaFile:
    """Return a LoRA that our trainers wrote as kohya's tools would have.

    Raises:
        StudioError: if it is no plain LoRA, for which there are no such keys.
    """
    header = safetensors_header(path)
    told: dict[str, str] = header.pop("__metadata__", {})
    adapters = json.loads(told.get("lora_adapter_metadata", "{}"))
    several = _several(told, header)
    tensors: dict[str, dict[str, Any]] = {}
    alphas: dict[str, float] = {}
    try:
        for key, entry in header.items():
            network, _, inner = key.partition(".")
            module, matrix = split_key(inner)
            name = kohya_module(network, module, several=several)
            tensors[f"{name}.{matrix}"] = entry
            if matrix == "lora_down.weight":
                alphas[f"{name}.alpha"] = alpha_of(adapters, network, entry["shape"][0])
    except (ValueError, KeyError) as error:
        raise StudioError(
            f"{path.stem} is no plain LoRA, which is all that kohya's keys have names for ({error}); download it as it is"
        ) from None
    rank = told.get("rank", "")
    facts = {"format": "pt", "ss_network_dim": rank, "ss_network_module": "networks.lora"}
    facts |= {name: value for name, value in told.items() if name not in OURS}
    return _written(path, facts, tensors, alphas)


def alpha_of(adapters: Mapping[str, Any], network: str, rank: int) -> float:
    """Return kohya's alpha, by which and by the rank the product is scaled, from PEFT's own config in a file's metadata."""
    alpha = float(adapters[f"{network}.lora_alpha"])
    return alpha * math.sqrt(rank) if adapters.get(f"{network}.use_rslora") else alpha


def _several(told: Mapping[str, str], header: Mapping[str, Any]) -> bool:
    """Tell whether the model has several text encoders; files of older versions do not say it."""
    if "text_encoders" in told:
        return int(told["text_encoders"]) > 1
    wide = any(entry["shape"][-1:] == [SDXL_WIDTH] for key, entry in header.items() if "attn2.to_k.lora_A" in key)
    return wide or any(key.startswith(("transformer.", "text_encoder_2.")) for key in header)


def _written(
    path: Path, facts: dict[str, str], tensors: Mapping[str, dict[str, Any]], alphas: Mapping[str, float]
) -> KohyaFile:
    rows: dict[str, Any] = {"__metadata__": facts}
    at, order = 0, sorted(alphas)
    for name in order:
        rows[name] = {"dtype": "F32", "shape": [], "data_offsets": [at, at + 4]}
        at += 4
    places = []
    for name in sorted(tensors):
        start, end = tensors[name]["data_offsets"]
        rows[name] = tensors[name] | {"data_offsets": [at, at + end - start]}
        places.append((start, end))
        at += end - start
    head = json.dumps(rows).encode()
    head += b" " * (-len(head) % 8)

    def parts() -> Iterator[bytes]:
        yield struct.pack("<Q", len(head)) + head + b"".join(struct.pack("<f", alphas[name]) for name in order)
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            for start, end in places:
                file.seek(8 + length + start)
                for done in range(start, end, CHUNK):
                    yield file.read(min(CHUNK, end - done))

    return KohyaFile(8 + len(head) + at, parts())
