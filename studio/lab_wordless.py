"""The Lab's panel about models without words: what can be set."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator

from studio.fields import control
from studio.lab_fields import LabRequest, Seed, Values, Whole, named

OWN = "the model's own"
WordlessSampler = Literal[
    "the model's own",
    "DDPM",
    "DDIM",
    "Euler",
    "Heun",
    "DPM++ 2M",
    "Predictor-corrector",
    "EDM Euler",
    "EDM DPM++ 2M",
]


class WordlessRequest(LabRequest):
    """Draw with a model that reads no words, and keep every moment."""

    classes: Annotated[
        tuple[str, ...],
        BeforeValidator(named),
        control(
            "Classes",
            "lab",
            "Of a model of classes: names with commas between; empty: one after the other.",
            kind="words",
        ),
    ] = ()
    sampler: Annotated[
        WordlessSampler,
        control(
            "Sampler",
            "lab",
            "DDPM, DDIM and the solvers: models of diffusion. Predictor-corrector: score models. EDM: EDM's.",
            choices=get_args(WordlessSampler),
        ),
    ] = OWN
    num_inference_steps: Annotated[
        Whole,
        control("Steps", "lab", "From noise to picture; predictor and corrector need many.", ge=2, le=1000, step=1),
    ] = 50
    guidance_scale: Annotated[
        float,
        control("Guidance w", "lab", "Towards the class; 1 is off. Of a model of classes.", ge=1, le=30, step=0.5),
    ] = 2.0
    pictures: Annotated[Whole, control("Pictures", "lab", "With seed, seed + 1 …", ge=1, le=16, step=1)] = 4
    frames: Annotated[
        Whole, control("Pictures of the film", "lab", "How many of the steps are shown.", ge=2, le=30, step=1)
    ] = 8
    seed: Seed = 1

    @property
    def scheduler(self) -> str | None:
        """What a picture's request is told; None leaves the model's own."""
        return None if self.sampler == OWN else self.sampler


def wordless_settings(request: WordlessRequest) -> Values:
    """Return the first of the pictures."""
    values: Values = {"seed": request.seed, "num_inference_steps": min(request.num_inference_steps, 150)}
    if request.scheduler:
        values["scheduler"] = request.scheduler
    if request.classes:
        values |= {"prompt": request.classes[0], "guidance_scale": request.guidance_scale}
    return values
