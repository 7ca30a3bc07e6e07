"""What a model family is, as data: which diffusers classes do which task, what else works, and how its pipelines are called."""

from dataclasses import dataclass, field
from typing import Any

from studio.spec import IMAGE2IMAGE, TEXT2IMAGE
from studio.units import MODE_LABELS, UNIT_FIELDS, UNITS_MAX

GUIDED = {"guidance_scale": "guidance_scale"}
SECOND_STAGE = "second stage"  # the kind, and the only task, of models that draw anew and larger what another has drawn
LatentRgb = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Variant:
    """Models of a family that are used in another way, though they can do the same.

    Attributes:
        title: as people call them.
        defaults: in place of the family's.
        clues: component of the pipeline -> entries of its config that only they have.
        kind: that they are of.
    """

    title: str
    defaults: dict[str, Any]
    clues: dict[str, dict[str, Any]] = field(default_factory=dict)
    kind: str = ""


@dataclass(frozen=True)
class ModelFamily:
    """One family.

    Attributes:
        title: as people call it.
        pipelines: task -> diffusers class name, for a model of the usual kind.
        defaults: generation values for a model that has no `studio.yaml`.
        latent_rgb: (C + 1, 3) linear map from latents to colour: one row a channel, then a constant; () if the model's own
            autoencoder shall tell.
        prompts: key of `engine.prompts.ENCODERS`: which text encoders there are and how their results are joined.
        cross_attention_dims: tells apart families that share a pipeline class; empty for the one that takes all others.
        channels: input channels of the denoiser -> kind; "" is the usual one.
        kinds: kind -> task -> diffusers class name, for kinds that can do less.
        units: request fields of control units that work.
        kinds_without: kind -> request fields of control units that do not work with it though they do with the family.
        control_modes: of ControlNets that mean something here.
        ip_adapters: how many can work at once.
        noise: `flow` if only flow-matching schedulers work: others run and draw nonsense; "" if the model's own scheduler decides.
        refused_schedulers: that have the right noise and still do not work.
        text_limits: lengths, ascending, that the T5 encoder's tokens are padded to; nothing longer is read.
        syntax: whether its text encoders can weigh words, so that A1111's prompt syntax means something; else brackets are text.
        size_step: of width and height in pixels: cells of the autoencoder times patches of the denoiser.
        marks: flags of `model_index.json` or of the denoiser's config that make a model another kind.
        others: further pipeline classes that a model may have been saved as.
        variants: models that want other defaults.
        fixed: kind -> request field -> the one value that it can have.
        pictures: tasks whose pipelines encode the picture themselves and take no latents.
        lora: whether diffusers can load LoRA for it.
        lora_targets: the denoiser's layers that LoRA are usually trained on.
        pag_pipelines: task -> diffusers class name with perturbed attention guidance.
        options: request fields beyond everybody's that have a meaning here; others must keep their defaults.
        arguments: request fields that every call of a pipeline is given -> the pipeline's name for them.
        guidance_offset: how much less a pipeline counts guidance, where it adds `w` times the difference to what the prompt says
            (Ho & Salimans 2022, arXiv:2207.12598, equation 6): its 0 is CFG 1.
        call_options: what every call is told besides.
        float_noise: whether pipelines draw noise in float32 whatever the weights are in.
        guidance: the request field that switches the negative prompt on when it is above 1.
        interval_tasks: where guidance can be switched half-way.
        rescale_tasks: whose pipelines can rescale guidance.
        switched: for that: the pipeline's tensor -> the embedding it is made of, "" for rows that are the same with and without.
        denoiser_config: entries that a pipeline asks of the denoiser's config though its class has none of that name.
        load_options: what the pipeline classes are told when they are made.
        module: that has the pipeline classes: diffusers, or one of ours with classes of the same names that do what the engine needs.
        autoencoder: the component that turns pictures into latents.
        prior: diffusers class name of the pipeline that reads the prompt, each picture's with its own seed. Its components are the
            model's own, named `prior_…`, or those of a folder beside it.
        prior_from: where people get that folder.
        pixels: whether the denoiser works on pixels.
        sized: whether the `sample_size` of the denoiser is the size that it learnt.
        cascade: how many times larger the model that `refiner` names draws anew what this one drew; 0 where it draws the last steps.
    """

    title: str
    pipelines: dict[str, str]
    defaults: dict[str, Any]
    latent_rgb: LatentRgb
    prompts: str = "clip"
    cross_attention_dims: frozenset[int] = field(default_factory=frozenset)
    channels: dict[int, str] = field(default_factory=lambda: {4: "", 9: "inpaint"})
    kinds: dict[str, dict[str, str]] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    others: frozenset[str] = frozenset()
    variants: tuple[Variant, ...] = ()
    fixed: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: frozenset[str] = frozenset()
    lora: bool = True
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    pag_pipelines: dict[str, str] = field(default_factory=dict)
    units: frozenset[str] = frozenset(UNIT_FIELDS)
    kinds_without: dict[str, frozenset[str]] = field(default_factory=dict)
    control_modes: frozenset[str] = frozenset(MODE_LABELS)
    ip_adapters: int = UNITS_MAX
    noise: str = ""
    refused_schedulers: frozenset[str] = frozenset()
    text_limits: tuple[int, ...] = ()
    syntax: bool = True
    size_step: int = 8
    options: frozenset[str] = frozenset({"eta", "guidance_rescale", "clip_skip"})
    arguments: dict[str, str] = field(default_factory=lambda: dict(GUIDED, eta="eta"))
    guidance_offset: float = 0.0
    call_options: dict[str, Any] = field(default_factory=dict)
    float_noise: bool = False
    guidance: str = "guidance_scale"
    interval_tasks: frozenset[str] = frozenset({TEXT2IMAGE, IMAGE2IMAGE})
    rescale_tasks: frozenset[str] = frozenset({TEXT2IMAGE})
    switched: dict[str, str] = field(default_factory=lambda: {"prompt_embeds": "prompt_embeds"})
    denoiser_config: dict[str, Any] = field(default_factory=dict)
    load_options: dict[str, Any] = field(default_factory=dict)
    module: str = "diffusers"
    autoencoder: str = "vae"
    prior: str = ""
    prior_from: str = ""
    pixels: bool = False
    sized: bool = False
    cascade: int = 0

    @property
    def refiner_task(self) -> str:
        """The task of the model that `refiner` names."""
        return SECOND_STAGE if self.cascade else IMAGE2IMAGE

    def units_of(self, kind: str) -> frozenset[str]:
        """Return the request fields of control units that work with a kind of its models."""
        return self.units - self.kinds_without.get(kind, frozenset())
