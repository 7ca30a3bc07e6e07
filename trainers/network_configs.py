"""What methods are told that train a network of their own: a ControlNet, and a model of pixels from scratch. No torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import field_validator, model_validator

from studio.errors import InvalidRequest
from studio.fields import control
from studio.preprocessors import option_values
from trainers.configs import TrainingConfig

LEVELS_MAX = 8
WIDTH_STEP = 8  # channels: heads of attention and groups of normalisation have at least as many


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


class UnconditionalConfig(TrainingConfig):
    """What a model of pixels is told that reads no words (Ho et al. 2020, arXiv:2006.11239)."""

    idle: ClassVar[frozenset[str]] = frozenset(
        {
            *("model", "instance_prompt", "trigger_word", "enable_bucket", "bucket_step", "shuffle_caption"),
            *("keep_tokens", "caption_dropout", "cache_latents", "timestep_shift", "guidance_scale"),
            *("validation_prompts", "validation_negative_prompt", "recommended_weight", "scorer"),
        }
    )

    model: Annotated[str, control("Pretrained model", "model", "There is none.", max_length=300)] = ""
    resolution: Annotated[
        tuple[int, ...], control("Resolution", "data", "Pixels a side; all pictures become square.")
    ] = (64,)
    enable_bucket: Annotated[bool, control("Enable buckets", "data", "Pictures are square.")] = False
    train_batch_size: Annotated[
        int, control("Train batch size", "steps", "Pictures at once, on each device.", ge=1, le=1024)
    ] = 16
    channels: Annotated[
        tuple[int, ...],
        control("Channels", "network", "Width of each level; each level halves the picture."),
    ] = (128, 256, 256, 256)  # the paper's for CIFAR-10, appendix B
    layers_per_block: Annotated[int, control("Layers per block", "network", "Blocks a level.", ge=1, le=8)] = 2
    attention_from: Annotated[
        int,
        control("Attention", "network", "Levels of at most this many pixels a side attend; 0 none.", ge=0, le=2048),
    ] = 16
    ddpm_num_steps: Annotated[
        int, control("Noise levels", "loss", "Steps from a picture to noise.", ge=10, le=10_000)
    ] = 1000
    beta_schedule: Annotated[
        Literal["linear", "squaredcos_cap_v2"],
        control("Beta schedule", "loss", "linear is the paper's; squaredcos_cap_v2 suits small pictures."),
    ] = "linear"
    prediction_type: Annotated[
        Literal["epsilon", "sample", "v_prediction"],
        control("Prediction type", "loss", "What it says of a noisy picture: the noise, the picture, or velocity."),
    ] = "epsilon"
    use_ema: Annotated[
        bool, control("EMA", "network", "Save an average of the weights over the last steps: calmer results.")
    ] = True
    ema_decay: Annotated[float, control("EMA decay", "network", "How slowly the average follows.", ge=0, lt=1)] = 0.9999
    validation_pictures: Annotated[
        int, control("Sample pictures", "samples", "In the grid drawn at each checkpoint; 0 none.", ge=0, le=256)
    ] = 16
    num_inference_steps: Annotated[
        int, control("Sampling steps", "samples", "Of the grid, by DDIM.", ge=1, le=1000)
    ] = 50

    @field_validator("channels")
    @classmethod
    def widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= len(value) <= LEVELS_MAX:
            raise ValueError(f"channels has {len(value)} levels; give 1 to {LEVELS_MAX}")
        for width in value:
            if not WIDTH_STEP <= width <= 2048 or width % WIDTH_STEP:
                raise ValueError(f"channels={width} must be a multiple of {WIDTH_STEP} from {WIDTH_STEP} to 2048")
        return value

    @model_validator(mode="after")
    def network(self) -> "UnconditionalConfig":
        """Refuse sizes that the network cannot halve, and what cannot be drawn."""
        if len(self.resolution) != 1:
            raise InvalidRequest("resolution", "resolution must be one size: the model draws squares of it")
        side, step = self.resolution[0], 2 ** (len(self.channels) - 1)
        if side % step:
            raise InvalidRequest(
                "resolution",
                f"resolution={side} must be a multiple of {step} for {len(self.channels)} levels of channels",
            )
        if self.num_inference_steps > self.ddpm_num_steps:
            raise InvalidRequest(
                "num_inference_steps",
                f"num_inference_steps={self.num_inference_steps} must be at most ddpm_num_steps={self.ddpm_num_steps}",
            )
        if self.rescale_betas_zero_snr and self.prediction_type != "v_prediction":
            raise InvalidRequest(
                "rescale_betas_zero_snr",
                f"rescale_betas_zero_snr needs prediction_type=v_prediction; it is {self.prediction_type}",
            )
        for place, concept in enumerate(self.concepts):
            if concept.instance_prompt:
                raise InvalidRequest(
                    f"concepts.{place}.instance_prompt", "instance_prompt means nothing to this method; leave it out"
                )
        return self
