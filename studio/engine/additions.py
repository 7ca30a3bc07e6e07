"""Adapters that are no plain LoRA, at work: what they add to a weight is worked out when its layer is called, in a hook of torch's.

PEFT has LoHa and LoKr too, which work out the same at the same moment, but its LoKr takes only factors that it would have chosen,
neither takes DoRA's magnitudes, and its DoRA scales whatever other LoRA stand before it and jumps between no weight and a small one.
Here every kind is W + weight * (what it adds at weight 1), whatever else is at work.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from studio.engine.deltas import FORMULAS, delta_of
from studio.engine.devices import Device
from studio.engine.gguf_files import numbers_of
from studio.engine.lora_names import State, diffusers_names, layers_in, peft_key, places_of, with_alpha
from studio.errors import ModelError

Handle = torch.utils.hooks.RemovableHandle


class Addition(NamedTuple):
    """What an adapter adds to one layer of a network."""

    network: str
    path: str
    module: Any
    parts: State
    bias: torch.Tensor | None

    def hook(self, strength: float) -> Callable[..., torch.Tensor]:
        """Return what torch calls with the layer, its arguments and its result."""
        return partial(added, addition=self, strength=strength)


class Additions(list[Addition]):
    """What one adapter adds to a model's layers."""

    def attach(self, strength: Callable[[str, str], float]) -> list[Handle]:
        """Let it count until the handles are removed; `strength` is asked with a network's name and a module's path."""
        told = [(one, strength(one.network, one.path)) for one in self]
        return [one.module.register_forward_hook(one.hook(weight)) for one, weight in told if weight]


def added(module: Any, args: Any, output: torch.Tensor, *, addition: Addition, strength: float) -> torch.Tensor:
    """Return a layer's output and what an adapter adds to it."""
    if addition.parts:
        delta = (strength * delta_of(addition.parts, numbers_of(module.weight).to(output.device))).to(output.dtype)
        if isinstance(module, torch.nn.Conv2d):
            more = functional.conv2d(
                args[0], delta, None, module.stride, module.padding, module.dilation, module.groups
            )
        else:
            more = functional.linear(args[0], delta)
        output = output + more
    if addition.bias is not None:
        bias = strength * addition.bias.to(output.dtype)
        output = output + (bias[:, None, None] if isinstance(module, torch.nn.Conv2d) else bias)
    return output


def read_additions(
    networks: Mapping[str, torch.nn.Module],
    name: str,
    state: State,
    told: dict[str, Any],
    device: Device,
    notice: Callable[[str], None],
) -> Additions:
    """Find the layers that an adapter's weights belong to.

    Args:
        networks: of the model, by name.
        name: of the adapter, for messages.
        state: its file's tensors.
        told: diffusers' metadata.
        device: where the weights shall lie.
        notice: told of weights that have no place.

    Raises:
        ModelError: if it is damaged, or was trained for another model.
    """
    modules = {
        (network, path): module
        for network, one in networks.items()
        for path, module in one.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    try:
        layers = layers_in({peft_key(key): one for key, one in state.items()})
    except ValueError as error:
        raise ModelError(f"LoRA {name} could not be read: {error}; copy it again") from None
    places = places_of({network: [path for its, path in modules if its == network] for network in networks})
    if "unet" in networks and (strange := layers.keys() - places.keys()):
        renamed = diffusers_names(strange, networks["unet"].config)
        ends = {layer: peft_key(key).rpartition(".lora_")[0] for layer, key in renamed.items()}
        places |= {layer: places[end] for layer, end in ends.items() if end in places}
    if missing := sorted(layers.keys() - places.keys()):
        if len(missing) == len(layers):
            raise ModelError(
                f"LoRA {name} fits nothing in this model: none of its {len(layers)} layers is here; choose another"
            )
        notice(f"{len(missing)} of {len(layers)} layers of the LoRA {name} have no place here, such as {missing[0]}.")
    made = Additions()
    for layer in layers.keys() & places.keys():
        place = places[layer]
        parts = with_alpha(layers[layer], f"{place[0]}.{place[1]}", told)
        bias = parts.pop("diff_b", None)
        check_parts(parts, numbers_of(modules[place].weight), f"{place[0]}.{place[1]}", name)
        here = {part: one.to(device.place, torch.float32) for part, one in parts.items()}
        made.append(Addition(*place, modules[place], here, None if bias is None else bias.to(device.place)))
    return made


def check_parts(parts: State, weight: torch.Tensor, place: str, name: str) -> None:
    """Refuse parts of a layer that do not make up what can be added to its weight.

    Raises:
        ModelError: naming the layer and the way out.
    """
    if not parts:
        return
    try:
        empty = {
            part: one if part in ("alpha", "on_input", "scalar") else one.to("meta") for part, one in parts.items()
        }
        if "on_input" not in parts and not any(one in parts for one in FORMULAS):
            raise KeyError("the first factor")
        delta_of(empty | {"alpha": torch.tensor(1.0)}, weight.to("meta"))
    except KeyError as error:
        raise ModelError(f"LoRA {name} is damaged: {place} lacks {error}; copy it again") from None
    except (RuntimeError, IndexError) as error:
        sizes = ", ".join(f"{part} {tuple(one.shape)}" for part, one in parts.items() if one.ndim)
        raise ModelError(
            f"LoRA {name} was trained for another model, or is damaged: {place} is {tuple(weight.shape)} here and the file has "
            f"{sizes}; choose one of its kind"
        ) from error
