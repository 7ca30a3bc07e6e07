"""LoRA that were distilled to draw in few steps: what they want, told when a picture is made in another way."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from studio.schedulers import SCHEDULERS
from studio.spec import GenerationRequest


@dataclass(frozen=True)
class FewSteps:
    """What one way of distilling wants.

    Attributes:
        samplers: that it was made for, along diffusion.
        steps: at most.
        guidance: at most.
    """

    samplers: tuple[str, ...]
    steps: int
    guidance: float


# By the word in a file's name that says it: as their makers' model cards have it.
KINDS = {
    "lcm": FewSteps(("LCM",), 8, 2.0),
    "tcd": FewSteps(("TCD",), 8, 1.0),
    "hyper": FewSteps(("TCD", "DDIM", "LCM"), 8, 1.0),
    "lightning": FewSteps(("Euler",), 8, 1.0),
    "turbo": FewSteps(("LCM", "Euler a", "TCD"), 8, 2.0),
    "dmd2?": FewSteps(("LCM",), 8, 1.0),
}


def kind_of(name: str) -> FewSteps | None:
    """Return what a LoRA wants by its file's name; None if it is not for few steps, or was made to keep CFG."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name.rpartition("/")[2]).lower())
    if "cfg" in words:
        return None
    return next((kind for pattern, kind in KINDS.items() if any(re.fullmatch(pattern, word) for word in words)), None)


def advice(request: GenerationRequest, noise: str) -> Iterable[str]:
    """Say what LoRA of a resolved request would rather have.

    Args:
        request: with its defaults filled in.
        noise: of its model; along a flow the usual sampler is the right one.
    """
    for lora in request.loras:
        wanted = kind_of(lora.name) if lora.active else None
        if wanted is None or request.scheduler is None:
            continue
        guidance, steps = request.guidance_scale or 1.0, request.num_inference_steps or 1
        right = SCHEDULERS[request.scheduler].noise != "diffusion" or request.scheduler in wanted.samplers
        if right and steps <= wanted.steps and guidance <= wanted.guidance:
            continue
        samplers = f"{' or '.join(wanted.samplers)}, " if noise == "diffusion" else ""
        cfg = "1" if wanted.guidance == 1 else f"1 to {wanted.guidance:g}"
        yield (
            f"The LoRA {lora.name} was made for few steps: {samplers}at most {wanted.steps} steps, CFG Scale {cfg}; "
            f"here it is {request.scheduler}, {steps} steps, CFG Scale {guidance:g}."
        )
