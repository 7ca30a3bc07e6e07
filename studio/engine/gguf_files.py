"""GGUF: weights in blocks of few bits, which each layer turns back into numbers whenever it computes. diffusers has the layers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from studio.engine.devices import Device
from studio.gguf_header import read_header

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MATRIX = 2  # dimensions of what stays in blocks: a linear layer's weight


def load_gguf(path: Path) -> dict[str, torch.Tensor]:
    """Read a GGUF file's denoiser; where and what each tensor is, the header says that was checked, and nothing else.

    Returns:
        Matrices in blocks as diffusers' `GGUFParameter`, and everything else as plain tensors: no other layer can work with blocks.

    Raises:
        ValueError: if the file is damaged.
    """
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor
    from gguf import GGMLQuantizationType

    in_blocks: Any = GGUFParameter
    header = read_header(path)
    data = np.memmap(path, np.uint8, "r")
    state: dict[str, torch.Tensor] = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        shape, kind = told["shape"], told["dtype"]
        raw = torch.from_numpy(np.array(data[slice(*told["data_offsets"])]))
        if kind in PLAIN:
            state[name] = raw.view(PLAIN[kind]).reshape(shape)
            continue
        tensor = in_blocks(raw.reshape(*shape[:-1], -1), quant_type=GGMLQuantizationType[kind])
        blocks = len(shape) == MATRIX and name.endswith(".weight")
        state[name] = tensor if blocks else dequantize_gguf_tensor(tensor)
    return state


def quantising(device: Device) -> dict[str, Any]:
    """Return what `from_single_file` is told of a state in blocks."""
    from diffusers.quantizers.quantization_config import GGUFQuantizationConfig

    return {"quantization_config": GGUFQuantizationConfig(compute_dtype=device.dtype)}


def numbers_of(weight: torch.Tensor) -> torch.Tensor:
    """Return a layer's weight as the numbers that it stands for."""
    if not hasattr(weight, "quant_type"):
        return weight
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return dequantize_gguf_tensor(weight)
