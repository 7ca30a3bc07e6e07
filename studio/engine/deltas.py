"""What the factors of an adapter add to a weight: LoRA, LoHa, LoKr, DoRA, IA3 and full differences, as LyCORIS and PEFT save them.

Formulas: LoRA (Hu et al. 2021, arXiv:2106.09685, 4.1); LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098, eq. 2) and
LoKr (Yeh et al. 2024, LyCORIS, arXiv:2309.14859, section 3); DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5); IA3 (Liu et al. 2022,
arXiv:2205.05638, section 3.3).
"""

from collections.abc import Mapping

import torch

Parts = Mapping[str, torch.Tensor]

_TUCKER = "i j k l, j r, p i -> p r k l"  # (R1, R2, kh, kw), (R2, in), (out, R1) -> (out, in, kh, kw)


def delta_of(parts: Parts, weight: torch.Tensor) -> torch.Tensor:
    """Return what an adapter at strength 1 adds to a weight.

    Args:
        parts: of one layer, by kohya's names.
        weight: of the model's own layer, (out, in) or (out, in, kh, kw).

    Returns:
        float32, of the weight's shape.

    Raises:
        RuntimeError: if sizes do not fit together, as torch says it.
        KeyError: if a part is missing.
    """
    own = weight.float()
    parts = {name: part.float() for name, part in parts.items()}
    if "on_input" in parts:
        factor = parts["weight"].flatten()
        sides = [1] * own.ndim
        sides[1 if parts["on_input"].item() else 0] = -1
        return own * factor.reshape(sides)
    delta = next(formula for name, formula in FORMULAS.items() if name in parts)(parts)
    delta = delta.reshape(own.shape)
    if "scalar" in parts:
        delta = delta * parts["scalar"]
    scale = parts.get("dora_scale", parts.get("magnitude"))
    return delta if scale is None else _decomposed(own, delta, scale, by_output="magnitude" in parts) - own


def _decomposed(own: torch.Tensor, delta: torch.Tensor, scale: torch.Tensor, *, by_output: bool) -> torch.Tensor:
    """Return DoRA's weight: magnitudes times directions.

    Args:
        own: the model's weight.
        delta: what its LoRA, LoHa or LoKr adds.
        scale: a magnitude for each output, or (1, in, …) for each input, as LyCORIS has it by default.
        by_output: that it is the former, whatever its shape.
    """
    merged = own + delta
    side = 0 if by_output or scale.shape[0] == len(own) else 1
    shape = [len(scale.flatten()) if axis == side else 1 for axis in range(own.ndim)]
    others = [axis for axis in range(own.ndim) if axis != side]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    return merged * (scale.reshape(shape) / (norm + torch.finfo(norm.dtype).eps))


def _scale(parts: Parts, rank: int) -> float:
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def _lora(parts: Parts) -> torch.Tensor:
    down, up = parts["lora_down"], parts["lora_up"]
    scale = _scale(parts, len(down))
    if "lora_mid" in parts:
        return scale * torch.einsum(_TUCKER, parts["lora_mid"], down.flatten(1), up.flatten(1))
    return scale * (up.flatten(1) @ down.flatten(1))


def _loha(parts: Parts) -> torch.Tensor:
    def half(number: int) -> torch.Tensor:
        first, second = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        if f"hada_t{number}" in parts:
            return torch.einsum(_TUCKER, parts[f"hada_t{number}"], second, first.T)
        return first @ second

    return _scale(parts, len(parts["hada_w1_b"])) * half(1) * half(2)


def _lokr(parts: Parts) -> torch.Tensor:
    small = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        large = parts["lokr_w2"]
    elif "lokr_t2" in parts:
        large = torch.einsum(_TUCKER, parts["lokr_t2"], parts["lokr_w2_b"], parts["lokr_w2_a"].T)
    else:
        large = parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    small = small.reshape(*small.shape, *[1] * (large.ndim - small.ndim))
    rank = next((len(parts[name]) for name in ("lokr_w1_b", "lokr_w2_b") if name in parts), None)
    return (_scale(parts, rank) if rank else 1.0) * torch.kron(small.contiguous(), large.contiguous())


FORMULAS = {
    "lora_down": _lora,
    "hada_w1_b": _loha,
    "lokr_w1": _lokr,
    "lokr_w1_a": _lokr,
    "diff": lambda parts: parts["diff"],
}
