"""How kohya's tools and A1111 name the weights of a LoRA: `lora_unet_…_to_k.lora_down.weight`. No torch."""

import re

_WEIGHT = re.compile(r"(.+)\.lora_([AB])\.weight")


def kohya_module(network: str, module: str, *, several: bool) -> str:
    """Return kohya's name for a layer.

    Args:
        network: the pipeline's name for what it is in: `unet`, `transformer`, `text_encoder`, `text_encoder_2`.
        module: the layer's own name in it.
        several: whether the model has more than one text encoder, which are numbered then.
    """
    if not network.startswith("text_encoder"):
        return f"lora_unet_{module.replace('.', '_')}"
    if not module.startswith("text_model."):
        module = f"text_model.{module}"  # transformers 5.6 lost this level, other tools did not
    number = ("2" if network.endswith("_2") else "1") if several else ""
    return f"lora_te{number}_{module.replace('.', '_')}"


def split_key(key: str) -> tuple[str, str]:
    """Split PEFT's key of a weight: (the layer, `lora_down.weight` or `lora_up.weight`).

    Raises:
        ValueError: if it is no matrix of a plain LoRA.
    """
    found = _WEIGHT.fullmatch(key)
    if not found:
        raise ValueError(f"{key!r} is no weight of a plain LoRA")
    return found[1], "lora_down.weight" if found[2] == "A" else "lora_up.weight"
