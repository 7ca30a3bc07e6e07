"""What `unconditional` is told: a model from nothing, of pixels or of classes. No torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import field_validator, model_validator

from studio.errors import InvalidRequest
from studio.fields import control
from trainers.configs import TrainingConfig

LEVELS_MAX = 8
WIDTH_STEP = 8  # channels: heads of attention and groups of normalisation have at least as many
CLASSES_MAX = 1000  # diffusers' DiTPipeline takes the class behind them for "no class"
SIGMAS = {"ve": (0.01, 50.0), "edm": (0.002, 80.0)}  # the papers', for small pictures

# field -> (the field that it depends on, where it means something)
MEANT: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("channels", "layers_per_block", "attention_from"), ("architecture", ("unet",))),
    **dict.fromkeys(
        ("vae", "classes", "num_layers", "num_attention_heads", "attention_head_dim", "patch_size"),
        ("architecture", ("dit",)),
    ),
    **dict.fromkeys(("caption_dropout", "cache_latents", "validation_guidance_scale"), ("architecture", ("dit",))),
    **dict.fromkeys(("ddpm_num_steps", "beta_schedule", "prediction_type"), ("preconditioning", ("ddpm",))),
    **dict.fromkeys(("snr_gamma", "rescale_betas_zero_snr"), ("preconditioning", ("ddpm",))),
    **dict.fromkeys(("sigma_min", "sigma_max"), ("preconditioning", ("ve", "edm"))),
    "sigma_data": ("preconditioning", ("edm",)),
    "corrector_snr": ("preconditioning", ("ve",)),
}


class UnconditionalConfig(TrainingConfig):
    """What a model is told that reads no words (Ho et al. 2020, arXiv:2006.11239)."""

    idle: ClassVar[frozenset[str]] = frozenset(
        {
            *("model", "instance_prompt", "trigger_word", "enable_bucket", "bucket_step", "shuffle_caption"),
            *("keep_tokens", "timestep_shift", "guidance_scale"),
            *("validation_prompts", "validation_negative_prompt", "recommended_weight", "scorer"),
        }
    )

    model: Annotated[str, control("Pretrained model", "model", "There is none.", max_length=300)] = ""
    resolution: Annotated[
        tuple[int, ...], control("Resolution", "data", "Pixels a side; all pictures become square.")
    ] = (64,)
    enable_bucket: Annotated[bool, control("Enable buckets", "data", "Pictures are square.")] = False
    classes: Annotated[
        tuple[str, ...],
        control("Classes", "data", "DiT: words, one of which each caption has; none: each caption is a class."),
    ] = ()
    caption_dropout: Annotated[
        float,
        control("Class dropout", "data", "DiT: share shown without its class, for guidance.", ge=0, le=1, step=0.05),
    ] = 0.1  # Peebles and Xie 2022, arXiv:2212.09748, after Ho and Salimans 2022
    train_batch_size: Annotated[
        int, control("Train batch size", "steps", "Pictures at once, on each device.", ge=1, le=1024)
    ] = 16
    architecture: Annotated[
        Literal["unet", "dit"],
        control("Architecture", "network", "unet draws pixels, without words; dit draws classes, in a VAE's latents."),
    ] = "unet"
    channels: Annotated[
        tuple[int, ...],
        control("Channels", "network", "UNet: width of each level; each level halves the picture."),
    ] = (128, 256, 256, 256)  # the paper's for CIFAR-10, appendix B
    layers_per_block: Annotated[int, control("Layers per block", "network", "UNet: blocks a level.", ge=1, le=8)] = 2
    attention_from: Annotated[
        int,
        control(
            "Attention", "network", "UNet: levels of at most this many pixels a side attend; 0 none.", ge=0, le=2048
        ),
    ] = 16
    vae: Annotated[
        str, control("VAE", "network", "DiT: the model of the library whose VAE it draws with.", max_length=300)
    ] = ""
    num_layers: Annotated[int, control("Layers", "network", "DiT: blocks.", ge=1, le=64)] = 12  # DiT-S, table 1
    num_attention_heads: Annotated[int, control("Heads", "network", "DiT: heads of attention.", ge=1, le=64)] = 6
    attention_head_dim: Annotated[
        int, control("Width of a head", "network", "DiT: a multiple of 8.", ge=8, le=256, multiple_of=8)
    ] = 64
    patch_size: Annotated[int, control("Patch size", "network", "DiT: latents a side of a token.", ge=1, le=8)] = 2
    preconditioning: Annotated[
        Literal["ddpm", "ve", "edm"],
        control("Preconditioning", "loss", "ddpm, ve (a score model, arXiv:2011.13456) or edm (arXiv:2206.00364)."),
    ] = "ddpm"
    ddpm_num_steps: Annotated[
        int, control("Noise levels", "loss", "DDPM: steps from a picture to noise.", ge=10, le=10_000)
    ] = 1000
    beta_schedule: Annotated[
        Literal["linear", "squaredcos_cap_v2"],
        control("Beta schedule", "loss", "DDPM: linear is the paper's; squaredcos_cap_v2 suits small pictures."),
    ] = "linear"
    prediction_type: Annotated[
        Literal["epsilon", "sample", "v_prediction"],
        control("Prediction type", "loss", "DDPM: it says the noise, the picture, or velocity."),
    ] = "epsilon"
    sigma_min: Annotated[
        float | None, control("Least noise", "loss", "VE and EDM; none is 0.01 for VE and 0.002 for EDM.", gt=0, le=1)
    ] = None
    sigma_max: Annotated[
        float | None, control("Most noise", "loss", "VE and EDM; none is 50 for VE and 80 for EDM.", ge=2, le=5000)
    ] = None
    sigma_data: Annotated[
        float, control("Deviation of the data", "loss", "EDM: of pixels between -1 and 1.", gt=0, le=2)
    ] = 0.5
    corrector_snr: Annotated[
        float, control("Corrector's signal to noise", "samples", "VE: how far its corrector goes.", gt=0, le=1)
    ] = 0.16
    use_ema: Annotated[
        bool, control("EMA", "network", "Save an average of the weights over the last steps: calmer results.")
    ] = True
    ema_decay: Annotated[float, control("EMA decay", "network", "How slowly the average follows.", ge=0, lt=1)] = 0.9999
    validation_pictures: Annotated[
        int, control("Sample pictures", "samples", "In the grid drawn at each checkpoint; 0 none.", ge=0, le=256)
    ] = 16
    num_inference_steps: Annotated[
        int, control("Sampling steps", "samples", "Of the grid; VE needs many.", ge=1, le=2000)
    ] = 50
    validation_guidance_scale: Annotated[
        float, control("CFG Scale", "samples", "DiT: how much the grid's pictures obey their class.", ge=1, le=30)
    ] = 4.0

    @field_validator("classes", mode="before")
    @classmethod
    def one_or_more(cls, value: object) -> object:
        """Take a single value for a list of one."""
        return (value,) if isinstance(value, str) else value

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
        """Refuse sizes that the network cannot halve, and what means nothing to the network that was chosen."""
        if len(self.resolution) != 1:
            raise InvalidRequest("resolution", "resolution must be one size: the model draws squares of it")
        for name, (other, wanted) in MEANT.items():
            value = getattr(self, other)
            if value not in wanted and getattr(self, name) != type(self).model_fields[name].default:
                raise InvalidRequest(
                    name, f"{name} means nothing with {other}={value}; leave it out, or use {other}={wanted[0]}"
                )
        side, step = self.resolution[0], 2 ** (len(self.channels) - 1)
        if self.architecture == "unet" and side % step:
            raise InvalidRequest(
                "resolution",
                f"resolution={side} must be a multiple of {step} for {len(self.channels)} levels of channels",
            )
        for place, concept in enumerate(self.concepts):
            if concept.instance_prompt:
                raise InvalidRequest(
                    f"concepts.{place}.instance_prompt", "instance_prompt means nothing to this method; leave it out"
                )
        return self

    @model_validator(mode="after")
    def noise(self) -> "UnconditionalConfig":
        """Refuse noise that the network cannot be drawn with."""
        if self.preconditioning == "ddpm" and self.num_inference_steps > self.ddpm_num_steps:
            raise InvalidRequest(
                "num_inference_steps",
                f"num_inference_steps={self.num_inference_steps} must be at most ddpm_num_steps={self.ddpm_num_steps}",
            )
        if self.preconditioning != "ddpm" and self.timestep_sampling == "logit_normal":
            raise InvalidRequest(
                "timestep_sampling",
                f"timestep_sampling=logit_normal means nothing with preconditioning={self.preconditioning}; "
                "use log_normal or uniform",
            )
        if self.rescale_betas_zero_snr and self.prediction_type != "v_prediction":
            raise InvalidRequest(
                "rescale_betas_zero_snr",
                f"rescale_betas_zero_snr needs prediction_type=v_prediction; it is {self.prediction_type}",
            )
        return self

    @model_validator(mode="after")
    def classed(self) -> "UnconditionalConfig":
        """Refuse a DiT that diffusers' pipeline could not draw with, and doubtful classes."""
        if self.architecture == "dit":
            if not self.vae:
                raise InvalidRequest(
                    "vae", "architecture=dit needs vae: a model whose VAE it draws with, such as shapes"
                )
            if self.preconditioning != "ddpm":
                raise InvalidRequest(
                    "preconditioning", f"preconditioning={self.preconditioning} needs architecture=unet; use ddpm"
                )
        if len({name.lower() for name in self.classes}) != len(self.classes) or not all(self.classes):
            raise InvalidRequest("classes", "classes must be words, none of them twice")
        if len(self.classes) > CLASSES_MAX:
            raise InvalidRequest("classes", f"classes has {len(self.classes)} words; give at most {CLASSES_MAX}")
        return self

    @property
    def base_model(self) -> str | None:
        return self.vae or None

    @property
    def captions(self) -> str:
        return "taken" if self.architecture == "dit" else "left"

    @property
    def sigmas(self) -> tuple[float, float]:
        """The least and the most noise of VE and EDM."""
        least, most = SIGMAS[self.preconditioning]
        return self.sigma_min or least, self.sigma_max or most
