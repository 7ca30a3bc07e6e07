"""LoRA as data: how a request names them, how a prompt does, and what a file's header tells of what it was trained for."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from studio.errors import InvalidRequest, ModelError
from studio.fields import Frozen

LORAS_MAX = 16
WEIGHT_MAX = 4.0
_TAG = re.compile(r"\s*<(?:lora|lyco):([^<>]*)>")
_DOWN = re.compile(r"(?:\.lora_down|\.lora_A(?:\.default)?|[._]lora\.down|\.lora_linear_layer\.down)\.weight$")
_WORDS = re.compile(r"attn2[._].*to_(?:k|v)(?:_lora|\.processor)?$")  # a UNet's layers that read the prompt
# What a file has that is no LoRA of the usual kind, by a part of its keys.
OTHER_KINDS = {
    "hada_w1": "a LoHa",
    "lokr_w": "a LoKr",
    "oft_blocks": "an OFT",
    "dora_scale": "a DoRA in kohya's layout",
    "on_input": "an IA3",
}


class LoraSpec(Frozen):
    """A LoRA (Hu et al. 2021, arXiv:2106.09685) that changes the model while a request is drawn."""

    name: Annotated[str, Field(min_length=1, max_length=300, description="Id of the LoRA, or its file's name.")]
    weight: Annotated[
        float, Field(ge=-WEIGHT_MAX, le=WEIGHT_MAX, description="How strongly it counts; 0 leaves it out.")
    ] = 1.0
    text_encoder_weight: Annotated[
        float | None,
        Field(ge=-WEIGHT_MAX, le=WEIGHT_MAX, description="In the text encoders; left out: as `weight`."),
    ] = None

    @property
    def words_weight(self) -> float:
        """How strongly it counts in the text encoders."""
        return self.weight if self.text_encoder_weight is None else self.text_encoder_weight

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return bool(self.weight or self.words_weight)


def take_tags(prompt: str) -> tuple[str, list[LoraSpec]]:
    """Take `<lora:name:weight>` out of a prompt, as A1111 reads it.

    `<lora:name>` counts 1; with two numbers the first is of the text encoders, the second of the denoiser; both may be named:
    `<lora:name:te=0.5:unet=1>`.

    Returns:
        The prompt without tags, and what they say, in order.

    Raises:
        InvalidRequest: if a tag has no name, or a weight that is no number in range.
    """
    found = [_tag(match[1]) for match in _TAG.finditer(prompt)]
    return (_TAG.sub("", prompt).strip() if found else prompt), found


def _tag(text: str) -> LoraSpec:
    name, *rest = (part.strip() for part in text.split(":"))
    told: dict[str, float] = {}
    try:
        for place, part in enumerate(rest):
            key, equals, value = part.partition("=")
            told[key.strip() if equals else ("te", "unet")[place]] = float(value if equals else part)
        if not name or set(told) - {"te", "unet"}:
            raise ValueError
        weight = told.get("unet", told.get("te", 1.0))
        words = told.get("te", weight)
        return LoraSpec(name=name, weight=weight, text_encoder_weight=None if words == weight else words)
    except (ValueError, IndexError):
        raise InvalidRequest(
            "prompt",
            f"prompt has <lora:{text[:60]}>, which must be <lora:NAME:WEIGHT> with a weight from -{WEIGHT_MAX:g} to {WEIGHT_MAX:g}",
        ) from None


def tag_of(spec: LoraSpec) -> str:
    """Write a LoRA as A1111 does."""
    if spec.text_encoder_weight is None:
        return f"<lora:{spec.name}:{spec.weight:.10g}>"
    return f"<lora:{spec.name}:{spec.text_encoder_weight:.10g}:{spec.weight:.10g}>"


def loras_problem(loras: Iterable[LoraSpec]) -> tuple[str, str] | None:
    """Say which field is wrong with a stack, and why; None if all is well."""
    names: list[str] = []
    for place, spec in enumerate(loras):
        if spec.name in names:
            return f"loras.{place}.name", f"loras has {spec.name!r} twice; give it once, with one weight"
        names.append(spec.name)
    if len(names) > LORAS_MAX:
        return "loras", f"loras has {len(names)} entries; at most {LORAS_MAX} work at once"
    return None


def trained_for(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """Say what the main model must have for a LoRA, by `parts.shape_of`'s names; {} if its keys do not tell.

    Args:
        shapes: of its tensors, by key: kohya's, diffusers' or PEFT's.

    Raises:
        ModelError: if it is no LoRA, or one of a kind that cannot be applied.
    """
    for mark, kind in OTHER_KINDS.items():
        if any(mark in key for key in shapes):
            raise ModelError(f"it is {kind}, which Studio does not apply yet; use a LoRA")
    downs = {_DOWN.sub("", key): shape for key, shape in shapes.items() if _DOWN.search(key)}
    if not downs:
        raise ModelError("it has no LoRA weights (lora_down, lora_A); put the LoRA's own file here")
    if any("to_qkv_mlp_proj" in key for key in downs):
        return {"denoiser": "Flux2Transformer2DModel"}
    if any("single_transformer_blocks" in key or "single_blocks" in key for key in downs):
        return {"single_blocks": True}  # Flux.1, Chroma, and Flux.2 in other tools' keys, which call their layers alike
    if any("joint_blocks" in key for key in downs):
        return {"denoiser": "SD3Transformer2DModel"}
    added = [shape for key, shape in downs.items() if "add_k_proj" in key and len(shape) > 1]
    if added:  # of Stable Diffusion 3, or of Flux's double blocks alone
        return {"inner_dim": added[0][1]}
    words = [shape for key, shape in downs.items() if _WORDS.search(key) and len(shape) > 1]
    return {"cross_attention_dim": words[0][1]} if words else {}


def rank_of(shapes: dict[str, list[int]]) -> int:
    """Return the largest rank of a LoRA's layers."""
    return max((shape[0] for key, shape in shapes.items() if _DOWN.search(key) and shape), default=0)
