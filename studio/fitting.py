"""What a model can do with a request: tasks, fields that mean nothing for it, and combinations that it cannot draw."""

from typing import Any

from studio.errors import InvalidRequest
from studio.families import FAMILIES, pipelines_of
from studio.family import SECOND_STAGE, ModelFamily
from studio.memory import weights_problem
from studio.prompt_syntax import moments, parse_prompt
from studio.spec import IMAGE2IMAGE, INPAINT, SIZE_MAX, TEXT2IMAGE, WITHOUT_IMAGE, GenerationRequest
from studio.units import UNIT_FIELDS

OPTIONAL = ("eta", "guidance_rescale", "clip_skip", "true_cfg_scale", "prior_guidance_scale", "refiner")
INTERVAL = ("guidance_start", "guidance_end")
# Fields that mean nothing without the one that leads them.
FOLLOWERS = {
    "hires_scale": ("hires_upscaler", "hires_steps", "hires_strength"),
    "variation_strength": ("variation_seed",),
    "refiner": ("refiner_start",),
}
WHOLE = "means nothing for a second stage, which begins anew"


def barred(family: str, kind: str, task: str) -> dict[str, str]:
    """Return the fields that a model cannot honour in a task; each says why, as the end of a sentence about it.

    Args:
        family: key of `FAMILIES`.
        kind: of the model.
        task: diffusers' name of it.
    """
    facts = FAMILIES[family]
    model = f"does not work with {facts.title}" + (f" ({kind})" if kind else "")
    here = model + {IMAGE2IMAGE: " and an image", INPAINT: " and inpainting"}.get(task, "")
    why = {name: model for name in OPTIONAL if name not in facts.options}
    if task not in facts.rescale_tasks:
        why.setdefault("guidance_rescale", here)
    if kind or task not in facts.interval_tasks:
        why |= dict.fromkeys(INTERVAL, here)
    if kind or task not in facts.pag_pipelines:
        why["pag_scale"] = here
    if IMAGE2IMAGE not in pipelines_of(family, kind):
        why["hires_scale"] = model
    if not facts.lora:
        why["loras"] = model
    why |= dict.fromkeys(facts.fixed.get(kind, ()), model)
    if task != TEXT2IMAGE:
        why = dict.fromkeys((*WITHOUT_IMAGE, "refiner"), "works only without an image") | why
    return why


def neutral(family: str, kind: str, name: str) -> Any:
    """Return the only value that a field which `barred` names can have."""
    return FAMILIES[family].fixed.get(kind, {}).get(name, GenerationRequest.model_fields[name].default)


def greyed(family: str, kind: str) -> dict[str, dict[str, str]]:
    """Return what a form switches off for a model, and why: without an image, and with one (whether or not it has a mask)."""
    edits = [barred(family, kind, task) for task in (IMAGE2IMAGE, INPAINT) if task in pipelines_of(family, kind)]
    both = set.intersection(*map(set, edits)) if edits else set()
    off = {"none": barred(family, kind, TEXT2IMAGE), "image": {name: edits[0][name] for name in sorted(both)}}
    for why in off.values():
        for name in set(FOLLOWERS) & set(why):
            why |= dict.fromkeys(FOLLOWERS[name], why[name])
    if FAMILIES[family].cascade:
        off["none"]["refiner_start"] = WHOLE
    return off


def usable(family: str, kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a form's valid values what the form shows as switched off, but for what can have one value only."""
    wanted = GenerationRequest.model_construct(**values)
    off = greyed(family, kind)["image" if wanted.image else "none"]
    kept = ("hires_scale", *FOLLOWERS["hires_scale"]) if wanted.only_enlarges else ()
    fixed = {
        name: only for name, only in FAMILIES[family].fixed.get(kind, {}).items() if name in off and name in values
    }
    return {name: value for name, value in values.items() if name not in off or name in kept} | fixed


def task_problem(family: str, kind: str, task: str) -> str | None:
    """Say why a model cannot do a task; None if it can."""
    title, tasks = FAMILIES[family].title, pipelines_of(family, kind)
    if task in tasks:
        return None
    if kind == "inpaint":
        return f"this {title} model can only inpaint; give an image and a mask, or choose another model"
    if kind == SECOND_STAGE:
        return f"this {title} model only goes on from what a first stage drew; choose that one, and this as its refiner"
    return f"this {title} model cannot do {task}; it can: {', '.join(tasks)}"


def check_refiner(family: str, noise: str, refiner: tuple[str, str, str]) -> None:
    """Refuse a second model that cannot go on where the first stopped.

    Args:
        family: of the first model.
        noise: likewise.
        refiner: the second model's family, kind and noise.

    Raises:
        InvalidRequest: naming what would do.
    """
    other, kind, its_noise = refiner
    task = FAMILIES[family].refiner_task
    if (other, its_noise) != (family, noise) or task not in pipelines_of(other, kind):
        raise InvalidRequest(
            "refiner",
            f"this refiner is {FAMILIES[other].title} ({kind or 'base'}, {its_noise} noise); it must do {task} and be "
            f"{FAMILIES[family].title} ({noise} noise), as the model is",
        )


def _check_alone(request: GenerationRequest, name: str) -> None:
    """Refuse what cannot work together with an option that is on."""
    if not getattr(request, name):
        return
    others = {
        "pag_scale": ("guidance_start", "guidance_end"),
        "refiner": ("guidance_start", "guidance_end", "hires_scale"),
    }
    for other in others[name]:
        default = GenerationRequest.model_fields[other].default
        if getattr(request, other) != default:
            raise InvalidRequest(other, f"{other} does not work together with {name}; set it to {default:g}")


def _check_cascade(facts: ModelFamily, request: GenerationRequest) -> None:
    """Refuse a second stage that would begin elsewhere than it does, or draw too large a picture."""
    if not request.refiner or not facts.cascade:
        return
    default = GenerationRequest.model_fields["refiner_start"].default
    if request.refiner_start != default:
        raise InvalidRequest("refiner_start", f"refiner_start {WHOLE}; set it back to {default:g}")
    if (side := max(request.canvas) * facts.cascade) > SIZE_MAX:
        raise InvalidRequest(
            "width",
            f"the second stage would draw {side} pixels a side; at most {SIZE_MAX}, so use {SIZE_MAX // facts.cascade} or less",
        )


def unit_problem(family: str, kind: str, name: str) -> str:
    """Say why a request field of control units does not work with a kind of a family; "" if it does."""
    facts = FAMILIES[family]
    units = facts.units_of(kind)
    if name in units:
        return ""
    others = f", which takes {' and '.join(sorted(units))} only" if units else " yet"
    return f"{name} do not work with {facts.title}{f' ({kind})' if name in facts.units else ''}{others}"


def _check_units(family: str, kind: str, request: GenerationRequest) -> None:
    """Refuse control units that a family has no place for."""
    facts = FAMILIES[family]
    for name in UNIT_FIELDS:
        if not getattr(request, name):
            continue
        if problem := unit_problem(family, kind, name):
            raise InvalidRequest(name, f"{problem}; switch the control units off")
        if request.pag_scale:
            raise InvalidRequest("pag_scale", f"pag_scale does not work together with {name}; set it to 0")
    for place, unit in enumerate(request.controls):
        if unit.mode not in facts.control_modes:
            raise InvalidRequest(
                field := f"controls.{place}.mode",
                f"{field}={unit.mode!r} does not work with {facts.title}; use {' or '.join(sorted(facts.control_modes))}",
            )
    number = len([unit for unit in request.ip_adapters if unit.scale])
    if number > facts.ip_adapters:
        raise InvalidRequest(
            "ip_adapters",
            f"ip_adapters has {number} units; with {facts.title} at most {facts.ip_adapters} works at once: give it all the images",
        )


def _check_prompts(facts: ModelFamily, kind: str, passes: set[str], request: GenerationRequest) -> None:
    """Refuse weights out of range, and words that change on the way where a pipeline cannot change them."""
    if not facts.syntax:
        return
    for name in ("prompt", "negative_prompt"):
        text = getattr(request, name)
        told = moments(text, 100, name)
        for _, said in told:
            parse_prompt(said, name)
        if len(told) == 1:
            continue
        others = [other for other in ("pag_scale", "refiner") if getattr(request, other)]
        if kind or others or not passes <= facts.interval_tasks:
            reason = (
                f"together with {others[0]}" if others else f"with {facts.title} here ({', '.join(sorted(passes))})"
            )
            raise InvalidRequest(
                name,
                f"{name} changes on the way (`[a:b:0.5]`, `[a|b]`), which does not work {reason}; write one of the two",
            )


def check_request(family: str, kind: str, request: GenerationRequest) -> None:
    """Refuse what a family cannot do, or would silently not do.

    Args:
        family: key of `FAMILIES`.
        kind: of the model.
        request: with its defaults filled in.

    Raises:
        InvalidRequest: naming the field and the way out.
    """
    facts = FAMILIES[family]
    passes = [request.task] + ([IMAGE2IMAGE] if request.hires_scale > 1 and not request.only_enlarges else [])
    off = barred(family, kind, request.task)
    if len(passes) > 1:  # the second one starts from the first one's picture
        again = barred(family, kind, IMAGE2IMAGE)
        off |= {name: again[name] for name in (*INTERVAL, "pag_scale") if name in again}
    for name, why in off.items():
        only = neutral(family, kind, name)
        if getattr(request, name) != only and not (name == "hires_scale" and request.only_enlarges):
            raise InvalidRequest(name, f"{name} {why}; set it back to {only or 'nothing'}")
    if request.scheduler in facts.refused_schedulers:
        raise InvalidRequest("scheduler", f"scheduler={request.scheduler!r} does not work with {facts.title}")
    if request.task in facts.pictures and request.masked_content not in ("original", "fill"):
        raise InvalidRequest(
            "masked_content",
            f"masked_content={request.masked_content!r} does not work with {facts.title}; use original or fill",
        )
    for name in ("pag_scale", "refiner"):
        _check_alone(request, name)
    _check_cascade(facts, request)
    if problem := weights_problem(request.weights):
        raise InvalidRequest("weights", problem)
    _check_units(family, kind, request)
    _check_prompts(facts, kind, set(passes), request)
    sizes = {"width": request.canvas} | ({"hires_scale": request.hires_size} if request.hires_scale > 1 else {})
    for name, size in sizes.items():
        if any(side % facts.size_step for side in size):
            raise InvalidRequest(
                name,
                f"{facts.title} draws multiples of {facts.size_step} pixels and {size[0]} x {size[1]} is none; "
                f"use {' x '.join(str(side // facts.size_step * facts.size_step) for side in size)}",
            )
