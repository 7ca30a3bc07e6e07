"""What the files of LoRA and their kin call layers and their parts; kohya's, LyCORIS', PEFT's and diffusers' names of all ages."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

State = dict[str, torch.Tensor]

OLD_KEY = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)(?=\.weight)")
KEY = re.compile(r"\.(?:lora|lora_linear_layer)\.(down|up)(?=\.weight)")
LETTERS = {"down": "A", "up": "B"}
# What a layer's parts are called; PEFT's and diffusers' names become kohya's.
_PART = re.compile(
    r"\.(lora_(?:down|up|mid)\.weight|lora_[AB](?:\.default)?\.weight|hada_[wt]\d(?:_[ab])?(?:\.default)?|"
    r"lokr_[wt]\d(?:_[ab])?(?:\.default)?|dora_scale|lora_magnitude_vector(?:\.default)?(?:\.weight)?|"
    r"alpha|scalar|diff_b|diff|on_input|weight)$"
)
_NAMES = {"lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "magnitude"}
_PREFIXES = {
    "unet": ("lora_unet_", "lycoris_"),
    "transformer": ("lora_unet_", "lora_transformer_", "lycoris_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}


def layers_in(state: State) -> dict[str, State]:
    """Group a file's tensors by the layer that they belong to.

    Returns:
        The name of each layer as the file writes it -> its parts by kohya's names, such as `lora_down` or `hada_w1_a`.

    Raises:
        ValueError: naming a tensor that is no part of any kind.
    """
    layers: dict[str, State] = {}
    for key, tensor in state.items():
        found = _PART.search(key)
        if found is None:
            raise ValueError(f"{key} is no weight of a LoRA, LoHa, LoKr or DoRA")
        part = found[1].removesuffix(".weight").removesuffix(".default")
        layers.setdefault(key[: found.start()], {})[_NAMES.get(part, part)] = tensor
    return layers


def places_of(networks: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    """Return every name that files use for a module -> its network and its path there.

    Args:
        networks: `unet`, `text_encoder` … -> the paths of its modules.
    """
    places = {}
    for network, paths in networks.items():
        for path in paths:
            for name in _written(network, path):
                places.setdefault(name, (network, path))
    return places


def _written(network: str, path: str) -> Iterator[str]:
    """Yield the names of a module; text encoders lost a level in transformers 5.6, which files still name."""
    bare = path.removeprefix("text_model.")
    for one in dict.fromkeys([path, bare, f"text_model.{bare}"]) if network.startswith("text") else [path]:
        yield f"{network}.{one}"
        for prefix in _PREFIXES.get(network, ()):
            yield prefix + one.replace(".", "_")
    if network in ("unet", "transformer"):  # PEFT's own files name no network
        yield path


def diffusers_names(names: Iterable[str], unet_config: Any) -> dict[str, str]:
    """Return the place of layers that are named as in Stable Diffusion's first code (`lora_unet_input_blocks_4_1_…`).

    diffusers does it, which knows LoRA only: each name goes in with weights that are its number.
    """
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    named = [name for name in names if "_blocks_" in name or "_block_" in name]
    marks = {
        f"{name}.lora_{side}.weight": torch.tensor([[float(number)]])
        for number, name in enumerate(named)
        for side in ("down", "up")
    }
    answer: Any = StableDiffusionXLPipeline.lora_state_dict(marks, unet_config=unet_config) if marks else {}
    found = answer[0] if isinstance(answer, tuple) else answer
    return {named[int(one.item())]: key for key, one in found.items() if one.numel() == 1}


def peft_key(key: str) -> str:
    """Return PEFT's name for a key of diffusers, of any age; kohya's become the oldest there."""

    def old(found: re.Match[str]) -> str:
        name = f"{found[1]}_proj" if key.startswith("text_encoder") else f"to_{found[1]}"
        return f".{name.replace('to_out', 'to_out.0')}.lora_{LETTERS[found[2]]}"

    plain = key.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
    return KEY.sub(lambda found: f".lora_{LETTERS[found[1]]}", OLD_KEY.sub(old, plain))


def told_alpha(name: str, told: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return what diffusers' metadata say of a layer's network, and its alpha (`unet.…`; LoHa's and LoKr's is `alpha`), or None."""
    network = name.partition(".")[0]
    config = {key.removeprefix(f"{network}."): value for key, value in told.items() if key.startswith(f"{network}.")}
    pattern = config.get("alpha_pattern") or {}
    return config, next(
        (own for end, own in pattern.items() if name.endswith(f".{end}")), config.get("lora_alpha", config.get("alpha"))
    )


def with_alpha(parts: State, place: str, told: dict[str, Any]) -> State:
    """Return a layer's parts with the alpha that diffusers' metadata say, if the file has none."""
    rank = next((len(parts[one]) for one in ("lora_down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") if one in parts), 0)
    config, alpha = told_alpha(place, told)
    if alpha is None or "alpha" in parts or not rank:
        return dict(parts)
    return parts | {"alpha": torch.tensor(float(alpha) * (rank**0.5 if config.get("use_rslora") else 1.0))}
