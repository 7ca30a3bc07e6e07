"""How much memory a run uses."""

import psutil
import torch

GIB = 2**30


def used_memory(device: torch.device) -> float:
    """Return what this process holds now, in GiB: of a GPU what torch reserved there, elsewhere of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / GIB
    return psutil.Process().memory_info().rss / GIB
