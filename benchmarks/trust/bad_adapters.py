"""LoRA files that are damaged or made to do harm, made by code."""

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save

State = dict[str, torch.Tensor]


def random_lora(unet: Any, seed: int, rank: int = 4) -> State:
    """Return weights for the attention of a UNet in PEFT's keys; values are deterministic."""
    source, made = torch.Generator().manual_seed(seed), {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            rows, columns = module.weight.shape
            made[f"unet.{name}.lora_A.weight"] = 0.2 * torch.randn(rank, columns, generator=source)
            made[f"unet.{name}.lora_B.weight"] = 0.2 * torch.randn(rows, rank, generator=source)
    return made


def raw(header: dict[str, Any] | bytes, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def of_tensors(state: State, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield files whose tensors are wrong."""
    rng = random.Random(seed)
    key = rng.choice([key for key in state if "lora_A" in key])
    other, one = key.replace("lora_A", "lora_B"), state[key]
    spotted = torch.rand(one.shape, generator=torch.Generator().manual_seed(seed)) < 0.1
    for name, change in {
        "two ranks": {key: torch.cat([one, one])}, "too narrow": {key: one[:, :-1].clone()}, "flat": {key: one.flatten()},
        "nan": {key: torch.where(spotted, torch.nan, one)}, "infinite": {key: torch.where(spotted, torch.inf, one)},
        "integers": {key: one.int()}, "no rank": {key: one[:0].clone(), other: state[other][:, :0].clone()},
        "rank of 5000": {key: torch.zeros(5000, one.shape[1]), other: torch.zeros(state[other].shape[0], 5000)},
    }.items():  # fmt: skip
        yield name, save(state | change)
    yield "halves", save({name: value for name, value in state.items() if "lora_A" in name})
    yield "strangers", save({name.replace("attn", f"tune{seed}"): value for name, value in state.items()})


def of_bytes(state: State, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield files whose bytes are wrong."""
    rng, good = random.Random(seed), save(state)
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    yield "cut", good[: rng.randrange(9, len(good) - 1)]
    yield "longer than it says", good + bytes(64)
    yield "a bit of its length", bytes([good[0] ^ 0x40]) + good[1:]
    overlapping = header | {names[0]: header[names[1]]}
    yield "overlapping", raw(overlapping, good[8 + length :])
    twice = json.dumps(header)[:-1] + f', "{names[0]}": {json.dumps(header[names[1]])}}}'
    yield "a name twice", raw(twice.encode(), good[8 + length :])


def hostile() -> Iterator[tuple[str, bytes]]:
    """Yield files that are made to do harm."""
    yield "empty", b""
    yield "seven bytes", b"1234567"
    yield "header of a terabyte", struct.pack("<Q", 2**40) + b"{}"
    yield "header of 2^63", struct.pack("<Q", 2**63) + b"{}"
    yield "no JSON", raw(b"{" + b" " * 50)
    yield "a list", raw(b"[1, 2, 3]")
    yield "deep", raw(b'{"a":' * 5000 + b"1" + b"}" * 5000)
    yield "a web page", b"<!DOCTYPE html><html>Log in</html>"
    yield "a pickle", b"\x80\x04\x95" + bytes(40)
    yield "a zip", b"PK\3\4" + bytes(100)
    yield "hundred thousand names", raw({f"t{i}": tensor([0], 0, 0) for i in range(100_000)})
    yield "names that are paths", raw({"../../../etc/passwd": tensor([1], 0, 4)}, bytes(4))
    yield "negative side", raw({"a.lora_A.weight": tensor([-1, 4], 0, 16)}, bytes(16))
    yield "sides beyond number", raw({"a.lora_A.weight": tensor([2**62, 2**62], 0, 16)}, bytes(16))
    yield "negative place", raw({"a.lora_A.weight": tensor([4], -16, 0)}, bytes(16))
    yield "place beyond the end", raw({"a.lora_A.weight": tensor([4], 0, 2**40)}, bytes(16))
    yield "a type that is none", raw({"a.lora_A.weight": tensor([4], 0, 16, "F99")}, bytes(16))
    yield "words for places", raw({"a.lora_A.weight": {"dtype": "F32", "shape": "x", "data_offsets": "y"}}, bytes(16))
    yield "metadata that is a list", raw({"__metadata__": [1], "a.lora_A.weight": tensor([4], 0, 16)}, bytes(16))
    yield "nothing in it", raw({})
    yield "metadata alone", raw({"__metadata__": {"ss_tag_frequency": "x" * 100_000}})
    yield "one tensor of another world", raw({"weight": tensor([2, 2], 0, 16)}, bytes(16))


def adapters(unet: Any) -> Iterator[tuple[str, bytes]]:
    """Yield 60 files that must be refused."""
    yield from hostile()
    for seed in range(3):
        state = random_lora(unet, seed)
        made = [*of_tensors(state, seed), *(of_bytes(state, seed) if seed < 2 else ())]
        yield from ((f"{name} ({seed})", data) for name, data in made[: 38 - 15 * 2 if seed == 2 else 15])
