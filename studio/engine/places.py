"""Where the parts of a model lie: all on the device, or each there only while it works. None of it changes a picture."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import CpuOffload, add_hook_to_module, remove_hook_from_module

from studio.memory import Plan

CPU = torch.device("cpu")


def networks(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return a pipeline's networks by name."""
    return {name: one for name, one in pipe.components.items() if isinstance(one, torch.nn.Module)}


def bytes_of(module: torch.nn.Module) -> int:
    """Return how many bytes a network's weights take."""
    return sum(stored(one) for one in (*module.parameters(), *module.buffers()))


def stored(tensor: Any) -> int:
    """Return how many bytes a tensor takes; one of torchao's is made of several."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def sizes_of(pipe: Any) -> dict[str, int]:
    """Return how many bytes each network of a pipeline takes."""
    return {name: bytes_of(one) for name, one in networks(pipe).items()}


def lay_out(pipe: Any, place: torch.device, plan: Plan) -> None:
    """Lay the networks of a pipeline that was just loaded where a plan wants them.

    Model offload is accelerate's, in diffusers' order for the pipeline, but around the networks themselves: other tasks' pipelines
    share them, and diffusers' own switch belongs to one pipeline. Group offload is diffusers', a layer at a time and without streams,
    whose look ahead a LoRA would lead astray; the autoencoder, which is small and may change its number format, stays on the device.
    """
    if plan == "resident":
        pipe.to(place)
    elif plan == "group-offload":
        pipe.enable_group_offload(place, CPU, offload_type="leaf_level", exclude_modules=["vae"])
    else:
        found, last = networks(pipe), None
        order = [name for name in (pipe.model_cpu_offload_seq or "").split("->") if name in found]
        for name in order:
            _, last = cpu_offload_with_hook(found[name], place, prev_module_hook=last)
        for name in found.keys() - set(order):
            cpu_offload_with_hook(found[name], place)


def _hook(network: Any) -> CpuOffload | None:
    hook = getattr(network, "_hf_hook", None)
    return hook if isinstance(hook, CpuOffload) else None


def place_of(network: Any) -> torch.device:
    """Return where a network computes, which is not where its weights lie while they are offloaded."""
    hook = _hook(network)
    return torch.device(hook.execution_device) if hook else network.device


def bring_in(network: Any) -> None:
    """Bring an offloaded network to its device before a part of it is used alone."""
    if hook := _hook(network):
        hook.pre_forward(network)


def send_away(pipe: Any) -> None:
    """Take all offloaded networks of a pipeline off the device: what was interrupted leaves its own there."""
    for network in networks(pipe).values():
        if hook := _hook(network):
            hook.init_hook(network)


@contextlib.contextmanager
def lifted(pipe: Any) -> Iterator[None]:
    """Take the offloading off a pipeline's networks while layers are put into them; diffusers would put another one on."""
    found = [(network, hook) for network in networks(pipe).values() if (hook := _hook(network))]
    for network, hook in found:
        hook.init_hook(network)
        remove_hook_from_module(network)
    try:
        yield
    finally:
        for network, hook in found:
            add_hook_to_module(network, hook)
