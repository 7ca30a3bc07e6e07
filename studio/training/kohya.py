"""What kohya's files say of how they were trained (`ss_*`), as values of our configs; what has no place here is named. No torch."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from studio.training.decisions import file_name
from studio.training.values import fields_of

NOTHING = frozenset({"", "None", "none", "False", "0", "0.0", "{}", "[]", "null"})
OPTIMIZERS = ("adamw8bit", "adafactor", "prodigy", "lion", "adamw")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
# Settings that are looked at by name; all others that begin with `ss_` are facts: dates, hashes, counts.
SETTINGS = (
    *("ss_adaptive_noise_scale", "ss_clip_skip", "ss_color_aug", "ss_debiased_estimation", "ss_face_crop_aug_range"),
    *(
        "ss_full_fp16",
        "ss_huber_c",
        "ss_ip_noise_gamma",
        "ss_loss_type",
        "ss_max_token_length",
        "ss_multires_noise_discount",
    ),
    *(
        "ss_multires_noise_iterations",
        "ss_scale_weight_norms",
        "ss_v_pred_like_loss",
        "ss_vae_name",
        "ss_weighting_scheme",
    ),
    *("ss_caption_tag_dropout_rate", "ss_bucket_no_upscale", "ss_fp8_base", "ss_model_prediction_type"),
)
Reading = Callable[[str], Any]


def number(text: str) -> float | None:
    """Read a finite number; None if it is none."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def whole(text: str) -> int | None:
    """Read a whole number; None if it is none."""
    found = number(text)
    return int(found) if found is not None and found == int(found) else None


def switch(text: str) -> bool | None:
    """Read yes or no."""
    return {"True": True, "true": True, "1": True}.get(text, False)


def above(text: str) -> float | None:
    """Read a number above 0; None otherwise."""
    found = number(text)
    return found if found and found > 0 else None


READ: dict[str, tuple[str, Reading]] = {  # kohya's name -> ours, and how it is read
    "ss_network_dim": ("rank", whole),
    "ss_network_alpha": ("lora_alpha", above),
    "ss_network_dropout": ("lora_dropout", above),
    "ss_learning_rate": ("learning_rate", number),
    "ss_unet_lr": ("learning_rate", number),
    "ss_lr_warmup_steps": ("lr_warmup_steps", whole),
    "ss_max_train_steps": ("max_train_steps", whole),
    "ss_batch_size_per_device": ("train_batch_size", whole),
    "ss_total_batch_size": ("train_batch_size", whole),
    "ss_gradient_accumulation_steps": ("gradient_accumulation_steps", whole),
    "ss_gradient_checkpointing": ("gradient_checkpointing", switch),
    "ss_cache_latents": ("cache_latents", switch),
    "ss_min_snr_gamma": ("snr_gamma", above),
    "ss_noise_offset": ("noise_offset", above),
    "ss_zero_terminal_snr": ("rescale_betas_zero_snr", switch),
    "ss_seed": ("seed", whole),
    "ss_max_grad_norm": ("max_grad_norm", number),
    "ss_caption_dropout_rate": ("caption_dropout", above),
    "ss_shuffle_caption": ("shuffle_caption", switch),
    "ss_keep_tokens": ("keep_tokens", above),
    "ss_flip_aug": ("random_flip", switch),
    "ss_enable_bucket": ("enable_bucket", switch),
    "ss_discrete_flow_shift": ("timestep_shift", above),
    "ss_guidance_scale": ("guidance_scale", number),
    "ss_output_name": ("output_name", lambda text: file_name(text) or None),
}


def from_kohya(told: Mapping[str, str], config_class: type[Any]) -> tuple[dict[str, Any], list[str]]:
    """Read kohya's metadata.

    Args:
        told: of a file, as text.
        config_class: of the method whose values are wanted.

    Returns:
        Plain values, and what could not be read or has no place here, as `name=value`.
    """
    values, lost, fields = {}, [], fields_of(config_class)
    subset = _subset(told)
    told = {**{name: text for name, text in subset.items() if name not in told}, **told}
    for name, (field, read) in READ.items():
        text = told.get(name, "")
        if text in ("", "None") or field not in fields:
            continue
        value = read(text)
        if value is not None:
            values[field] = int(value) if field == "keep_tokens" else value
        elif text not in NOTHING:
            lost.append(f"{name}={text}")
    for part in (_network, _optimizer, _schedule, _words, _choices):
        more, left = part(told)
        values |= {name: value for name, value in more.items() if name in fields}
        lost += left
    lost += [f"{name}={told[name]}" for name in SETTINGS if told.get(name, "") not in NOTHING]
    return _fitting(values), [one if len(one) <= 80 else f"{one[:79]}…" for one in lost]


def _network(told: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    module, arguments = told.get("ss_network_module", "networks.lora"), _table(told.get("ss_network_args", ""))
    algorithm = str(arguments.pop("algo", "lora")).lower()
    weighed = str(arguments.pop("dora_wd", "False")).lower() == "true"
    found = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}.get(algorithm)
    lost = [f"ss_network_args.{name}={value}" for name, value in arguments.items() if str(value) not in NOTHING]
    if found is None or not module.startswith(("networks.lora", "lycoris")):
        return {}, [f"ss_network_module={module} {algorithm}", *lost]
    values: dict[str, Any] = {"network_type": "dora" if weighed and found == "lora" else found}
    if arguments.get("conv_dim"):
        values["target_modules"] = ["all"]
    return values, lost


def _optimizer(told: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    text = told.get("ss_optimizer", "")
    name, _, rest = text.partition("(")
    known = next((one for one in OPTIMIZERS if one in name.lower()), None)
    values: dict[str, Any] = {"optimizer": known} if known else {}
    if found := re.search(r"weight_decay=([\d.e+-]+)", rest):
        values["weight_decay"] = float(found[1])
    if found := re.search(r"betas=\(([\d.e-]+),\s*([\d.e-]+)\)", rest):
        values |= {"adam_beta1": float(found[1]), "adam_beta2": float(found[2])}
    lost = [] if known or text in NOTHING else [f"ss_optimizer={text}"]
    return values, lost


def _schedule(told: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    text = told.get("ss_lr_scheduler", "")
    if text in SCHEDULES:
        return {"lr_scheduler": text}, []
    return {}, [] if text in NOTHING else [f"ss_lr_scheduler={text}"]


def _words(told: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    rates = [rate for part in told.get("ss_text_encoder_lr", "").strip("[]").split(",") if (rate := number(part))]
    rates = rates[:1] if len(set(rates)) == 1 else rates
    return ({"train_text_encoder": True, "text_encoder_lr": rates} if rates else {}), []


def _choices(told: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Read what has few values: precision, noise levels, sizes."""
    values: dict[str, Any] = {}
    lost: list[str] = []
    precision = told.get("ss_mixed_precision", "")
    if precision in ("no", "bf16"):
        values["mixed_precision"] = precision
    elif precision not in NOTHING:
        lost.append(f"ss_mixed_precision={precision}")
    sampling = told.get("ss_timestep_sampling", "")
    if sampling in ("uniform", "sigmoid"):
        values["timestep_sampling"] = {"uniform": "uniform", "sigmoid": "logit_normal"}[sampling]
    elif sampling not in NOTHING:
        lost.append(f"ss_timestep_sampling={sampling}")
    sides = [int(side) for side in re.findall(r"\d+", told.get("ss_resolution", ""))]
    if sides:
        side = round(math.sqrt(sides[0] * sides[-1]) / 8) * 8
        values["resolution"] = [side]
        if len(set(sides)) > 1:
            lost.append(f"ss_resolution={told['ss_resolution']} (taken as a square of that area, {side})")
    return values, lost


def _subset(told: Mapping[str, str]) -> dict[str, str]:
    """Return what the first of kohya's data sets says, under the names that older files have."""
    sets = _json(told.get("ss_datasets", ""))
    first = sets[0] if isinstance(sets, list) and sets and isinstance(sets[0], dict) else {}
    subsets = first.get("subsets")
    inner = subsets[0] if isinstance(subsets, list) and subsets and isinstance(subsets[0], dict) else {}
    found = {**inner, **first}
    names = ("resolution", "enable_bucket", "batch_size_per_device", "shuffle_caption", "keep_tokens", "flip_aug")
    return {f"ss_{name}": str(found[name]) for name in names if found.get(name) is not None}


def _fitting(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what kohya ignores and we refuse."""
    if values.get("lr_scheduler", "constant") == "constant":
        values.pop("lr_warmup_steps", None)
    if not values.get("shuffle_caption"):
        values.pop("keep_tokens", None)
    if values.get("train_batch_size") == 0:
        values.pop("train_batch_size")
    return values


def _table(text: str) -> dict[str, Any]:
    found = _json(text)
    return dict(found) if isinstance(found, dict) else {}


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
