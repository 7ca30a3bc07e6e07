"""The Lab in two dimensions: what can be set."""

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from studio.fields import control
from studio.lab_fields import LabRequest, Seed, Whole, named

REACH = 2.5  # half the side of the square in which points lie
DRAWN_MAX = 2000
Shape = Literal["moons", "spiral", "gaussians", "checkerboard", "drawn"]
Loss = Literal["ddpm", "score_matching", "flow_matching"]
Coordinate = Annotated[float, Field(ge=-REACH, le=REACH)]


def points_of(value: Any) -> Any:
    """Accept points as the page sends them: JSON, or nothing."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "[]")
    except ValueError:
        raise ValueError("these are no points; draw some, or give a list of [x, y]") from None


class PlaneRequest(LabRequest):
    """Teach a small network where points lie, with up to three losses, and let particles follow it from noise."""

    shape: Annotated[
        Shape,
        control("Points", "lab", "Where the points lie; drawn: where you draw them below.", choices=get_args(Shape)),
    ] = "moons"
    drawn: Annotated[
        tuple[tuple[Coordinate, Coordinate], ...],
        BeforeValidator(points_of),
        control(
            "Your own points", "lab", "Draw with mouse or finger; counts when Points is drawn.", kind="points",
            max_length=DRAWN_MAX,
        ),
    ] = ()  # fmt: skip
    losses: Annotated[
        tuple[Loss, ...],
        BeforeValidator(named),
        control(
            "Losses", "lab", "What the network learns: noise (DDPM), the score, or the velocity of a flow.",
            kind="choices", choices=get_args(Loss),
        ),
    ] = ("ddpm", "score_matching", "flow_matching")  # fmt: skip
    training_steps: Annotated[
        Whole,
        control(
            "Training steps", "lab", "Of Adam, 256 points each; 400 take a second or two.", ge=50, le=1000, step=50
        ),
    ] = 400
    steps: Annotated[
        Whole, control("Sampling steps", "lab", "From noise to points; fewer are coarser.", ge=2, le=200, step=1)
    ] = 50
    particles: Annotated[
        Whole, control("Particles", "lab", "That go from noise to points.", ge=50, le=1000, step=50)
    ] = 400
    seed: Seed = 1

    @model_validator(mode="after")
    def _has_points_and_losses(self) -> "PlaneRequest":
        if self.shape == "drawn" and len(self.drawn) < 3:
            raise ValueError(f"drawn has {len(self.drawn)} points; draw at least 3, or choose another of Points")
        if not self.losses:
            raise ValueError("losses is empty; choose ddpm, score_matching or flow_matching")
        return self
