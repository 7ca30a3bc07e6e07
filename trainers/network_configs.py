"""What methods are told that train a network beside the model: a ControlNet. No torch."""

from typing import Annotated, ClassVar

from pydantic import model_validator

from studio.fields import control
from studio.preprocessors import option_values
from trainers.configs import TrainingConfig


class ControlNetConfig(TrainingConfig):
    """What a ControlNet is told (Zhang et al. 2023, arXiv:2302.05543)."""

    idle: ClassVar[frozenset[str]] = frozenset({"trigger_word", "timestep_shift", "guidance_scale"})

    preprocessor: Annotated[
        str,
        control(
            "Preprocessor",
            "data",
            "Makes the control picture where conditioning/ has none; none: each has one there.",
            max_length=60,
        ),
    ] = "none"
    preprocessor_options: Annotated[
        dict[str, float], control("Preprocessor options", "data", "Its own numbers, such as Canny's thresholds.")
    ] = {}
    caption_dropout: Annotated[
        float,
        control("Caption dropout", "data", "Share shown without words: then edges must tell.", ge=0, le=1, step=0.05),
    ] = 0.5  # section 3.3 of the paper
    learning_rate: Annotated[float, control("Learning rate", "steps", "Of the ControlNet.", ge=0, le=10)] = 1e-5

    @model_validator(mode="after")
    def numbers(self) -> "ControlNetConfig":
        """Refuse a preprocessor that does not exist, and options that it does not have."""
        option_values(self.preprocessor, self.preprocessor_options)
        return self
