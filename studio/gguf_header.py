"""The header of a GGUF file: which tensors it holds, in which types, and where. Read by hand and within limits.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What it becomes is a header as safetensors has it, so that nothing
downstream tells the two apart. Types are those that diffusers 0.42 turns back into numbers.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

GGUF = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
HEADER_MAX = (
    2**25
)  # bytes; a language model's vocabulary may take some, a denoiser's tensors take a few hundred thousand
TENSORS_MAX, FIELDS_MAX, SIDES_MAX = 2**16, 2**12, 4
DENOISER = "model.diffusion_model."
SIDES = {
    "pos_embed": 3,
    "x_pad_token": 2,
    "cap_pad_token": 2,
}  # of tensors whose first side is 1, which writers in C leave out
# number of a type -> its name, numbers in a block, bytes of a block
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
DAMAGED = "has a damaged header"


class _Head:
    """The beginning of a file, of which never more than `HEADER_MAX` bytes are read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left, self.size = file, min(size, HEADER_MAX), size

    def take(self, number: int) -> bytes:
        """Return the next bytes.

        Raises:
            ValueError: if there are not so many.
        """
        if number > self.left:
            raise ValueError("is cut off" if self.size <= HEADER_MAX else DAMAGED)
        self.left -= number
        return self.file.read(number)

    def one(self, form: str) -> Any:
        (value,) = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))
        return value

    def text(self) -> str:
        return self.take(self.one("Q")).decode("utf-8")

    def field(self, kind: int) -> Any:
        """Return a field's value; arrays, which say nothing of a denoiser, are passed over."""
        if kind == TEXT:
            return self.text()
        if kind in SCALARS:
            return self.one(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(DAMAGED)
        inner, number = self.one("I"), self.one("Q")
        if inner in SCALARS:
            self.take(number * struct.calcsize(f"<{SCALARS[inner]}"))
        elif inner == TEXT:
            for _ in range(min(number, self.left)):
                self.take(self.one("Q"))
        else:
            raise ValueError(DAMAGED)
        return None


def is_gguf(path: str | Path) -> bool:
    """Whether a file calls itself GGUF; what it holds, its header says."""
    return str(path).lower().endswith(GGUF)


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a GGUF file in safetensors' form: `__metadata__`, and of each tensor `dtype`, `shape`, `data_offsets`.

    Shapes are of the numbers that the blocks stand for, in torch's order; offsets are counted from the beginning of the file. Of a file
    that holds more than a denoiser, the denoiser's tensors alone.

    Raises:
        ValueError: what is wrong with the file, after its name.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = _Head(file, size)
        if head.left < 4 or head.take(4) != MAGIC:
            raise ValueError("is no GGUF file (a page that was saved instead?)")
        try:
            found = _read(head)
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError):
            raise ValueError(DAMAGED) from None
    kept = {name: one for name, one in found.items() if name.startswith((DENOISER, "__"))}
    return kept if len(kept) > 1 else found


def _read(head: _Head) -> dict[str, Any]:
    version, tensors, fields = head.one("I"), head.one("Q"), head.one("Q")
    if version not in VERSIONS:
        raise ValueError(f"is GGUF of version {version}, and {VERSIONS[0]} and {VERSIONS[1]} are read")
    if not 0 < tensors <= TENSORS_MAX or fields > FIELDS_MAX:
        raise ValueError(DAMAGED)
    metadata = {head.text(): head.field(head.one("I")) for _ in range(fields)}
    told = [_tensor(head) for _ in range(tensors)]
    step = metadata.get("general.alignment", 32)
    if not isinstance(step, int) or not 0 < step <= 2**16 or len({name for name, *_ in told}) < len(told):
        raise ValueError(DAMAGED)
    start = -(-head.file.tell() // step) * step
    ends = [start + offset + length for _, _, _, offset, length in told]
    if head.size < max(ends):
        raise ValueError(f"is cut off: {head.size:,} of {max(ends):,} bytes")
    if sum(length for *_, length in told) > head.size:  # tensors that lie in one another
        raise ValueError(DAMAGED)
    header: dict[str, Any] = {"__metadata__": metadata}
    for name, kind, shape, offset, length in told:
        place = start + offset
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, place + length]}
    return header


def _tensor(head: _Head) -> tuple[str, str, list[int], int, int]:
    """Return a tensor's name, type, shape, offset, and length in bytes."""
    name, sides = head.text(), head.one("I")
    if not 0 < sides <= SIDES_MAX or name.startswith("__"):
        raise ValueError(DAMAGED)
    shape = [head.one("Q") for _ in range(sides)][::-1]
    number, offset = head.one("I"), head.one("Q")
    if number not in TYPES:
        told = ", ".join(one[0] for one in TYPES.values())
        raise ValueError(f"has weights of the type {number}, which are not read; get it in one of {told}")
    kind, block, length = TYPES[number]
    shape = [1] * (SIDES.get(name.removeprefix(DENOISER), 0) - sides) + shape
    if not all(shape) or shape[-1] % block:
        raise ValueError(DAMAGED)
    return name, kind, shape, offset, math.prod(shape) // block * length
