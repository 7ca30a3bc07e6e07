"""Autoencoders that stand in for a model's own: diffusers folders and single files, whose configuration follows from their shapes."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from studio.engine.devices import Device
from studio.layouts import vae_config, vae_names

# What no shape tells. All models of a family agree in it, and that a file is of the model's family is for the user to know.
INHERITED = (
    "act_fn",
    "force_upcast",
    "latents_mean",
    "latents_std",
    "norm_num_groups",
    "sample_size",
    "scaling_factor",
    "shift_factor",
)


def load_vae_file(path: Path, device: Device, own: Mapping[str, Any]) -> Any:
    """Load an autoencoder from a .safetensors file in diffusers' or latent-diffusion's layout.

    Args:
        path: of the file.
        device: to put it on.
        own: configuration of the model's own autoencoder, for what the file does not say.

    Raises:
        ValueError: if it is something else.
    """
    found = load_file(path)
    state = {new: found[old] for old, new in vae_names(found).items()}
    for name, tensor in state.items():
        if ".attentions." in name and tensor.ndim == 4:  # latent-diffusion's are convolutions of one pixel
            state[name] = tensor[:, :, 0, 0]
    config = vae_config({name: tensor.shape for name, tensor in state.items()})
    network = importlib.import_module("diffusers").AutoencoderKL
    return built(network, config | {name: own[name] for name in INHERITED if name in own}, state, device)


def built(network_class: Any, config: dict[str, Any], state: dict[str, torch.Tensor], device: Device) -> Any:
    """Build a network around weights, without drawing random ones first.

    Raises:
        ValueError: if the weights are not exactly those of the network.
    """
    with torch.device("meta"):
        network = network_class(**config)
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    if different := sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)):
        name = different[0]
        raise ValueError(
            f"{name} is {list(given.get(name, ()))} in the file and {list(wanted.get(name, ()))} in such a network"
        )
    network.load_state_dict(state, assign=True)
    return network.to(device.place, device.dtype).eval().requires_grad_(False)
