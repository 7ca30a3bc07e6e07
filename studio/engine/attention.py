"""How a denoiser attends: with one of torch's kernels, for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from studio.errors import InvalidRequest

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
NO_KERNEL = ("No viable backend", "No available kernel")  # what torch says


@contextlib.contextmanager
def attending(network: torch.nn.Module, attention: str) -> Iterator[None]:
    """Let a network attend with one of torch's kernels, and nothing else in the process.

    Raises:
        InvalidRequest: if the device, or the network's masks and widths, have no such kernel.
    """
    if attention == "automatic":
        yield
        return
    within = contextlib.ExitStack()

    def enter(*_: Any) -> None:
        within.enter_context(sdpa_kernel([KERNELS[attention]]))

    def leave(*_: Any) -> None:
        within.close()

    hooks = [network.register_forward_pre_hook(enter), network.register_forward_hook(leave, always_call=True)]
    try:
        yield
    except RuntimeError as error:
        if any(said in str(error) for said in NO_KERNEL):
            raise InvalidRequest(
                "attention",
                f"attention={attention!r} has no kernel for this model on this device; use automatic or math",
            ) from error
        raise
    finally:
        for hook in hooks:
            hook.remove()
