"""What a training run is: the one declaration of every parameter, for the form, the YAML file and the command line.

`label` is what kohya's users call a control, `group` the accordion in which the page shows it.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from studio.errors import InvalidRequest
from studio.fields import Frozen, control
from trainers.concepts import Concept

SEED_MAX = 2**32 - 1
SIDE_MAX = 2048

LrScheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "piecewise_constant"
]
ENDLESS = frozenset({"constant", "constant_with_warmup"})  # learning rates that do not depend on how long a run is
Optimizer = Literal["adamw", "adamw8bit", "adafactor", "prodigy", "lion", "muon"]
TimestepSampling = Literal["automatic", "uniform", "logit_normal", "log_normal"]


class TrainingConfig(Frozen):
    """What every method is told.

    Attributes:
        idle: fields that mean nothing to a method; forms and help leave them out, and a value in a file is refused.
    """

    idle: ClassVar[frozenset[str]] = frozenset()

    model: Annotated[str, control("Pretrained model", "model", "Id in the library.", max_length=300)] = "shapes"
    dataset: Annotated[
        str, control("Image folder", "data", "Folder of pictures, or its name in the data root.", max_length=1000)
    ] = ""
    instance_prompt: Annotated[
        str,
        control("Instance prompt", "data", "Caption of pictures that have none beside them.", max_length=2000),
    ] = ""
    concepts: Annotated[
        tuple[Concept, ...],
        control("More concepts", "data", "Other folders, each with its own prompt and repeats.", shown=False),
    ] = ()
    trigger_word: Annotated[
        str, control("Trigger word", "data", "What calls it in a prompt; kept in the file.", max_length=200)
    ] = ""
    resolution: Annotated[
        tuple[int, ...],
        control("Max resolution", "data", "Pixels a side of a square of the same area; several train several sizes."),
    ] = (512,)
    enable_bucket: Annotated[
        bool, control("Enable buckets", "data", "Keep proportions: pictures of like shape learn together.")
    ] = True
    bucket_step: Annotated[
        int, control("Bucket resolution steps", "data", "Sides are multiples of it.", ge=8, le=256, multiple_of=8)
    ] = 64
    crop: Annotated[
        Literal["center", "random"], control("Crop", "data", "Which part of a picture stays where it does not fit.")
    ] = "center"
    random_flip: Annotated[bool, control("Flip augmentation", "data", "Mirror half of what is shown.")] = False
    shuffle_caption: Annotated[
        bool, control("Shuffle caption", "data", "Mix what stands between commas, anew each time.")
    ] = False
    keep_tokens: Annotated[
        int, control("Keep n tokens", "data", "Parts at the start that are not shuffled.", ge=0, le=100)
    ] = 0
    caption_dropout: Annotated[
        float,
        control("Caption dropout", "data", "Share shown without words, for guidance.", ge=0, le=1, step=0.05),
    ] = 0.0
    masked_loss: Annotated[bool, control("Masked loss", "data", "Only what NAME-masklabel.png shows white counts.")] = (
        False
    )
    max_train_steps: Annotated[
        int, control("Max train steps", "steps", "Updates of the weights.", ge=1, le=10_000_000)
    ] = 1000
    train_batch_size: Annotated[
        int, control("Train batch size", "steps", "Pictures at once, on each device.", ge=1, le=1024)
    ] = 1
    gradient_accumulation_steps: Annotated[
        int, control("Gradient accumulate steps", "steps", "Batches before an update.", ge=1, le=1024)
    ] = 1
    learning_rate: Annotated[float, control("Learning rate", "steps", "Of the denoiser.", ge=0, le=10)] = 1e-4
    lr_scheduler: Annotated[LrScheduler, control("LR Scheduler", "steps", "How the learning rate changes.")] = (
        "constant"
    )
    lr_warmup_steps: Annotated[
        int, control("LR warmup", "steps", "Steps over which it rises from 0.", ge=0, le=1_000_000)
    ] = 0
    lr_num_cycles: Annotated[
        int, control("LR number of cycles", "steps", "Of cosine_with_restarts.", ge=1, le=1000)
    ] = 1
    lr_power: Annotated[float, control("LR power", "steps", "Of polynomial.", gt=0, le=10)] = 1.0
    lr_step_rules: Annotated[
        str,
        control("LR step rules", "steps", "Of piecewise_constant: 1:10,0.1:20,0.01 is tenfold less from step 10 on."),
    ] = ""
    optimizer: Annotated[Optimizer, control("Optimizer", "steps", "How gradients become changes.")] = "adamw"
    weight_decay: Annotated[float, control("Weight decay", "steps", "Pull towards 0.", ge=0, le=10)] = 0.01
    adam_beta1: Annotated[float, control("Beta 1", "steps", "Memory of the gradient.", ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, control("Beta 2", "steps", "Memory of its square.", ge=0, lt=1)] = 0.999
    max_grad_norm: Annotated[
        float, control("Max grad norm", "steps", "Longer gradients are cut; 0 is off.", ge=0, le=1000)
    ] = 1.0
    seed: Annotated[int, control("Seed", "steps", "Decides everything random.", ge=0, le=SEED_MAX)] = 0
    mixed_precision: Annotated[
        Literal["no", "bf16"], control("Mixed precision", "speed", "bf16: faster on a GPU, half the memory.")
    ] = "no"
    gradient_checkpointing: Annotated[
        bool, control("Gradient checkpointing", "speed", "Less memory, about a third slower.")
    ] = False
    cache_latents: Annotated[
        bool, control("Cache latents", "speed", "Encode pictures once; the VAE then leaves memory.")
    ] = True
    compile: Annotated[
        bool,
        control(
            "Compile",
            "speed",
            "torch.compile: slow start (minutes), faster steps; needs triton or a C++ compiler.",
        ),
    ] = False
    snr_gamma: Annotated[
        float | None,
        control("Min SNR gamma", "loss", "Weighs noise levels evenly; 5 is usual. Not for flow models.", gt=0, le=100),
    ] = None
    noise_offset: Annotated[
        float, control("Noise offset", "loss", "Learn darker and brighter pictures; 0.05 to 0.1.", ge=0, le=1)
    ] = 0.0
    rescale_betas_zero_snr: Annotated[
        bool, control("Zero terminal SNR", "loss", "The last step is pure noise; v-prediction only.")
    ] = False
    timestep_sampling: Annotated[
        TimestepSampling,
        control("Timestep sampling", "loss", "Which noise levels are seen; automatic is the family's own."),
    ] = "automatic"
    logit_mean: Annotated[float, control("Logit mean", "loss", "Above 0: more noise.", ge=-5, le=5)] = 0.0
    logit_std: Annotated[float, control("Logit std", "loss", "How wide.", gt=0, le=10)] = 1.0
    timestep_shift: Annotated[
        float | None, control("Discrete flow shift", "loss", "Flow models; none is the model's own.", gt=0, le=20)
    ] = None
    guidance_scale: Annotated[
        float, control("Guidance scale", "loss", "Told to models with distilled guidance (Flux).", ge=0, le=30)
    ] = 1.0
    validation_prompts: Annotated[
        tuple[str, ...], control("Sample prompts", "samples", "Drawn at each checkpoint, with fixed seeds.")
    ] = ()
    validation_negative_prompt: Annotated[
        str, control("Negative prompt", "samples", "For all samples.", max_length=2000)
    ] = ""
    validation_seed: Annotated[int, control("Sample seed", "samples", "Of the first.", ge=0, le=SEED_MAX)] = 0
    validation_model: Annotated[
        str,
        control("Sample with", "samples", "A distilled model that draws them; none: the trained one.", max_length=300),
    ] = ""
    scorer: Annotated[
        str,
        control(
            "Scorer",
            "samples",
            "Judges samples: automatic, none, pixels, shapes, or a CLIP or DINOv2 folder. Draws the class too.",
            max_length=1000,
        ),
    ] = "automatic"
    validation_size: Annotated[
        int, control("Held-out pictures", "samples", "Not trained on; their loss tells overfitting.", ge=0, le=1000)
    ] = 0
    validation_steps: Annotated[
        int, control("Held-out loss every", "samples", "Steps; with each checkpoint if 0.", ge=0, le=1_000_000)
    ] = 0
    checkpointing_steps: Annotated[
        int, control("Save every n steps", "output", "Checkpoints; 0 only at the end.", ge=0, le=10_000_000)
    ] = 500
    checkpoints_total_limit: Annotated[
        int | None,
        control("Keep n states", "output", "Of older ones only the weights stay; none keeps all.", ge=1, le=10_000),
    ] = 2
    output_name: Annotated[
        str, control("Output name", "output", "Name of the file.", max_length=60, pattern=r"^[A-Za-z0-9][\w.-]*$")
    ] = "trained"
    init_from: Annotated[
        str, control("Start from", "output", "An earlier result of this method to go on from.", max_length=1000)
    ] = ""
    recommended_weight: Annotated[float, control("Recommended weight", "output", "Kept in the file.", ge=0, le=4)] = 1.0
    report_to: Annotated[
        Literal["none", "tensorboard", "trackio"], control("Log to", "output", "A tracker besides our own log.")
    ] = "none"

    @field_validator("resolution", "validation_prompts", mode="before")
    @classmethod
    def one_or_several(cls, value: Any) -> Any:
        """Take a single value for a list of one."""
        return (value,) if isinstance(value, int | float | str) and not isinstance(value, bool) else value

    @field_validator("resolution")
    @classmethod
    def sides(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for side in value:
            if not 64 <= side <= SIDE_MAX or side % 8:
                raise ValueError(f"resolution={side} must be a multiple of 8 from 64 to {SIDE_MAX}")
        if not value or len(set(value)) != len(value):
            raise ValueError("resolution must name at least one size, and none twice")
        return value

    @field_validator("lr_step_rules")
    @classmethod
    def rules(cls, value: str) -> str:
        for rule in filter(None, value.split(",")):
            parts = rule.split(":")
            try:
                sound = len(parts) <= 2 and float(parts[0]) >= 0 and all(int(part) > 0 for part in parts[1:])
            except ValueError:
                sound = False
            if not sound:
                raise ValueError(
                    f"lr_step_rules={value!r} must be like 1:10,0.1:20,0.01 (factor:until step, …, factor)"
                )
        return value

    @model_validator(mode="after")
    def fits(self) -> "TrainingConfig":
        """Refuse pairs of values that mean nothing together."""
        for name in sorted(self.idle):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InvalidRequest(name, f"{name} means nothing to this method; leave it out")
        if self.lr_scheduler == "piecewise_constant" and not self.lr_step_rules:
            raise InvalidRequest("lr_step_rules", "lr_scheduler=piecewise_constant needs lr_step_rules, like 1:10,0.1")
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise InvalidRequest(
                "lr_warmup_steps",
                f"lr_warmup_steps={self.lr_warmup_steps} does nothing with lr_scheduler=constant; use constant_with_warmup",
            )
        if self.lr_warmup_steps > self.max_train_steps:
            raise InvalidRequest(
                "lr_warmup_steps",
                f"lr_warmup_steps={self.lr_warmup_steps} must be at most max_train_steps={self.max_train_steps}",
            )
        if self.keep_tokens and not self.shuffle_caption:
            raise InvalidRequest(
                "keep_tokens", "keep_tokens does nothing without shuffle_caption; switch that on, or set it to 0"
            )
        if not self.enable_bucket and self.bucket_step != type(self).model_fields["bucket_step"].default:
            raise InvalidRequest("bucket_step", "bucket_step does nothing without enable_bucket")
        return self

    @property
    def base_model(self) -> str | None:
        """What the run begins with, as the library names it; None if with nothing."""
        return None if "model" in self.idle else self.model

    @property
    def captions(self) -> str:
        """Whether every picture must have a caption (`needed`), may have one (`taken`), or none is read (`left`)."""
        return "needed"

    @property
    def told_concepts(self) -> tuple[Concept, ...]:
        """All folders: the first one, then the others."""
        first = (Concept(dataset=self.dataset, instance_prompt=self.instance_prompt),) if self.dataset else ()
        return first + self.concepts


class EncoderConfig(TrainingConfig):
    """What methods are told whose text encoders may learn too."""

    train_text_encoder: Annotated[
        bool, control("Train text encoder", "network", "It learns words too; CLIP encoders only.")
    ] = False
    text_encoder_lr: Annotated[
        tuple[float, ...],
        control("Text Encoder learning rate", "network", "One for all, or one for each; none is the denoiser's."),
    ] = ()

    @field_validator("text_encoder_lr", mode="before")
    @classmethod
    def one_rate_or_more(cls, value: Any) -> Any:
        """Take a single value for a list of one."""
        return (value,) if isinstance(value, int | float | str) and not isinstance(value, bool) else value

    @field_validator("text_encoder_lr")
    @classmethod
    def rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for rate in value:
            if not (math.isfinite(rate) and 0 <= rate <= 10):
                raise ValueError(f"text_encoder_lr={rate} must be from 0 to 10")
        return value

    @model_validator(mode="after")
    def encoders(self) -> "EncoderConfig":
        if self.text_encoder_lr and not self.train_text_encoder:
            raise InvalidRequest(
                "text_encoder_lr", "text_encoder_lr does nothing without train_text_encoder; switch that on"
            )
        return self


class FullConfig(EncoderConfig):
    """What full fine-tuning is told."""

    use_ema: Annotated[
        bool, control("EMA", "network", "Save an average of the weights over the last steps: calmer results.")
    ] = False
    ema_decay: Annotated[float, control("EMA decay", "network", "How slowly the average follows.", ge=0, lt=1)] = 0.9999


class AdapterConfig(EncoderConfig):
    """What a low-rank adapter is told (LoRA: Hu et al. 2021, arXiv:2106.09685)."""

    network_type: Annotated[
        Literal["lora", "dora", "loha", "lokr"],
        control("LoRA type", "network", "DoRA learns length and direction apart; LoHa and LoKr are LyCORIS's."),
    ] = "lora"
    rank: Annotated[int, control("Network Rank (Dimension)", "network", "How much it can learn.", ge=1, le=1024)] = 16
    lora_alpha: Annotated[
        float | None,
        control(
            "Network Alpha", "network", "Its scale is alpha / rank; none is alpha = rank, a scale of 1.", gt=0, le=4096
        ),
    ] = None
    lora_dropout: Annotated[float, control("Network dropout", "network", "Share left out.", ge=0, lt=1, step=0.05)] = (
        0.0
    )
    use_rslora: Annotated[
        bool, control("Rank-stabilised scale", "network", "The scale is alpha / sqrt(rank) (arXiv:2312.03732).")
    ] = False
    target_modules: Annotated[
        tuple[str, ...],
        control("Target modules", "network", "attention, all-linear, all, or ends of layers' names."),
    ] = ("attention",)

    save_kohya: Annotated[
        bool, control("Also save kohya's keys", "output", "A second file for A1111 and kohya's tools, at the end.")
    ] = False

    @field_validator("target_modules", mode="before")
    @classmethod
    def one_or_more(cls, value: Any) -> Any:
        """Take a single value for a list of one."""
        return (value,) if isinstance(value, int | float | str) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def network(self) -> "AdapterConfig":
        if self.network_type in ("loha", "lokr") and self.use_rslora:
            raise InvalidRequest(
                "use_rslora", f"use_rslora does not exist for {self.network_type}; use network_type lora or dora"
            )
        if self.save_kohya and self.network_type != "lora":
            raise InvalidRequest(
                "save_kohya", f"save_kohya does not know {self.network_type}; use network_type=lora, or switch it off"
            )
        if not self.target_modules:
            raise InvalidRequest("target_modules", "target_modules must name something; use attention")
        return self

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied with."""
        alpha = self.rank if self.lora_alpha is None else self.lora_alpha
        return alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class DreamBoothConfig(AdapterConfig):
    """What DreamBooth is told (Ruiz et al. 2022, arXiv:2208.12242)."""

    train_weights: Annotated[
        Literal["lora", "full"], control("What learns", "network", "A LoRA, or the model's own weights.")
    ] = "lora"
    use_ema: Annotated[bool, control("EMA", "network", "Save an average of the weights; full only.")] = False
    ema_decay: Annotated[float, control("EMA decay", "network", "How slowly the average follows.", ge=0, lt=1)] = 0.9999
    with_prior_preservation: Annotated[
        bool, control("Prior preservation", "prior", "Keep what the class looks like while the subject is learnt.")
    ] = False
    class_prompt: Annotated[
        str, control("Class prompt", "prior", "The class without the rare word: a photo of a dog.", max_length=2000)
    ] = ""
    prior_source: Annotated[
        Literal["images", "model"],
        control(
            "Prior from", "prior", "Class images drawn by the model, or what it said of your pictures before it learnt."
        ),
    ] = "images"
    prior_loss_weight: Annotated[
        float, control("Prior loss weight", "prior", "How much the class counts.", ge=0, le=100)
    ] = 1.0
    num_class_images: Annotated[
        int, control("Class images", "prior", "Drawn once, kept for later runs.", ge=1, le=10_000)
    ] = 100
    class_data_dir: Annotated[
        str, control("Regularisation folder", "prior", "Your own class images; none draws them.", max_length=1000)
    ] = ""

    @model_validator(mode="after")
    def prior(self) -> "DreamBoothConfig":
        if self.with_prior_preservation and not self.class_prompt:
            raise InvalidRequest("class_prompt", "with_prior_preservation needs class_prompt, such as a photo of a dog")
        for name in ("class_prompt", "class_data_dir"):
            if getattr(self, name) and not self.with_prior_preservation:
                raise InvalidRequest(name, f"{name} does nothing without with_prior_preservation; switch that on")
        if self.class_data_dir and self.prior_source == "model":
            raise InvalidRequest("class_data_dir", "class_data_dir does nothing with prior_source=model; leave one out")
        if self.train_weights == "full":
            for name in set(AdapterConfig.model_fields) - set(EncoderConfig.model_fields):
                if getattr(self, name) != AdapterConfig.model_fields[name].default:
                    raise InvalidRequest(name, f"{name} does nothing with train_weights=full; leave one out")
        if self.use_ema and self.train_weights == "lora":
            raise InvalidRequest("use_ema", "use_ema works with train_weights=full only; switch it off")
        if self.init_from and self.train_weights == "full":
            raise InvalidRequest("init_from", "init_from is for LoRA; with train_weights=full name the folder as model")
        return self
