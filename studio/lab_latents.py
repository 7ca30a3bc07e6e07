"""The Lab's panels about latents and about choosing: what can be set."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, field_validator

from studio.fields import control
from studio.lab_fields import Drawn, LabRequest, Values, Whole, numbers, several
from studio.spec import SEED_MAX

STEPS_MAX = 500
COUNTS_MAX = 6  # numbers of steps that are compared
Steps = Annotated[
    Whole,
    control("Sampling steps", "lab", "Of each picture, with the model's own sampling method.", ge=2, le=100, step=1),
]
OtherPrompt = Annotated[str, control("Other prompt", "lab", "Where the way leads; empty: the same prompt.", lines=2)]


class LatentsRequest(LabRequest):
    """Encode a picture, look at the latents, decode it again; only the autoencoder is loaded."""

    image: Annotated[str | None, control("Picture", "lab", "That is encoded, at its own size.", kind="picture")] = None


class InterpolationRequest(Drawn):
    """Go from one seed and prompt to others, a picture at each part of the way."""

    other_seed: Annotated[
        Whole,
        control("Other seed", "lab", "Whose noise the way leads to.", kind="number", ge=0, le=SEED_MAX - 64),
    ] = 2
    other_prompt: OtherPrompt = ""
    way: Annotated[
        Literal["slerp", "lerp"],
        control(
            "Way", "lab", "Slerp: on a great circle, which keeps the length. Lerp: straight, which makes it shorter."
        ),
    ] = "slerp"
    frames: Annotated[Whole, control("Pictures", "lab", "With both ends.", ge=2, le=16, step=1)] = 7
    steps: Steps = 20


def interpolation_settings(request: InterpolationRequest) -> Values:
    """Return the picture half-way between the seeds, which is what a variation of one half is."""
    values: Values = {"prompt": request.prompt, "seed": request.seed, "num_inference_steps": request.steps}
    if request.other_seed != request.seed and request.way == "slerp":
        values |= {"variation_seed": request.other_seed, "variation_strength": 0.5}
    return values


class InversionRequest(Drawn):
    """Find the noise that a picture comes from, and draw it again from there."""

    image: Annotated[
        str | None,
        control("Picture", "lab", "Your own, cropped to the model's size; none: the model draws one.", kind="picture"),
    ] = None
    other_prompt: Annotated[
        str, control("Other prompt", "lab", "Draws the noise that was found once more, with other words.", lines=2)
    ] = ""
    steps: Annotated[
        tuple[int, ...],
        BeforeValidator(several),
        numbers("steps", 2, STEPS_MAX, COUNTS_MAX),
        control("Steps", "lab", "Each way; numbers between commas that divide 1,000.", kind="numbers"),
    ] = (5, 10, 20, 50)
    guidance: Annotated[
        float,
        control(
            "Guidance of the way back", "lab", "The way to noise has 1; what differs from it is not what was inverted.",
            ge=0, le=15, step=0.5,
        ),
    ] = 1.0  # fmt: skip

    @field_validator("steps")
    @classmethod
    def _sorted(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(value))


def inversion_settings(request: InversionRequest) -> Values:
    """Return the same words and steps with DDIM."""
    values: Values = {"prompt": request.other_prompt or request.prompt, "scheduler": "DDIM"}
    return values | {"num_inference_steps": min(request.steps[-1], 150), "seed": request.seed}


class RankingRequest(Drawn):
    """Draw one prompt with several seeds, the best first."""

    prompt: Annotated[
        str,
        control("Prompt", "lab", "What the candidates should show; the more it says, the more they differ.", lines=2),
    ] = "two red stars on a white background"

    candidates: Annotated[
        Whole, control("Candidates", "lab", "Pictures of the prompt, with seed, seed + 1 …", ge=2, le=32, step=1)
    ] = 8
    steps: Steps = 20


def ranking_settings(request: RankingRequest) -> Values:
    """Return words and steps; the best seed is known when they were ranked."""
    return {"prompt": request.prompt, "seed": request.seed, "num_inference_steps": request.steps}
