"""Networks from single files of weights: their configuration follows from the shapes, and from the model that they are for."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from studio.engine.devices import Device
from studio.layouts import controlnet_config, controlnet_names, vae_config, vae_names

# What no shape tells and the model's own network does, for an autoencoder and for a copy of the denoiser.
VAE_INHERITED = (
    "act_fn",
    "force_upcast",
    "latents_mean",
    "latents_std",
    "norm_num_groups",
    "sample_size",
    "scaling_factor",
    "shift_factor",
)
CONTROLNET_INHERITED = (
    "act_fn",
    "addition_time_embed_dim",
    "attention_head_dim",
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
    "mid_block_scale_factor",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "only_cross_attention",
    "resnet_time_scale_shift",
    "upcast_attention",
)


def load_vae_file(path: Path, device: Device, own: Mapping[str, Any]) -> Any:
    """Load an autoencoder from a .safetensors file in diffusers' or latent-diffusion's layout.

    Args:
        path: of the file.
        device: to put it on.
        own: `VAE_INHERITED` of the configuration of the model's own autoencoder.

    Raises:
        ValueError: if it is something else.
    """
    state = vae_state(load_file(path))
    config = vae_config({name: tensor.shape for name, tensor in state.items()})
    network = importlib.import_module("diffusers").AutoencoderKL
    return built(network, config | dict(own), state, device)


def vae_state(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return an autoencoder's weights under diffusers' names.

    Raises:
        ValueError: if they are something else's.
    """
    state = {new: found[old] for old, new in vae_names(found).items()}
    for name, tensor in state.items():
        if ".attentions." in name and tensor.ndim == 4:  # latent-diffusion's are convolutions of one pixel
            state[name] = tensor[:, :, 0, 0]
    return state


def load_controlnet_file(path: Path, device: Device, own: Mapping[str, Any]) -> Any:
    """Load a ControlNet from a .safetensors file in diffusers' or latent-diffusion's layout.

    Args:
        path: of the file; as in A1111, one whose name has "shuffle" pools its conditions.
        device: to put it on.
        own: `CONTROLNET_INHERITED` of the model's denoiser's configuration.

    Raises:
        ValueError: if it is something else.
    """
    found = load_file(path)
    state = {new: found[old] for old, new in controlnet_names(found).items()}
    config = controlnet_config({name: tensor.shape for name, tensor in state.items()})
    config["global_pool_conditions"] = "shuffle" in path.stem.lower()
    network = importlib.import_module("diffusers").ControlNetModel
    return built(network, config | dict(own), state, device)


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
