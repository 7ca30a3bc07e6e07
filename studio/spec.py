"""What a generation is: the one declaration of every parameter.

The page's form, the command line, the API and the documentation are derived from these fields. `label` is what A1111 calls the
control, `group` the accordion in which the page shows it.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from studio.errors import InvalidRequest, first_problem
from studio.fields import SIZE_STEP, Frozen, control, extension, least_strength
from studio.loras import LoraSpec, loras_problem
from studio.memory import ATTENTION, VAE_SLICING, VAE_TILING, WEIGHTS, Attention, Weights
from studio.schedulers import SCHEDULERS, Sigmas, canonical, scheduler_problem
from studio.styles import STYLES_MAX, StyleName
from studio.units import ControlSpec, IPAdapterSpec, T2IAdapterSpec, units_problem
from studio.upscalers import check_enlarging, check_second_pass

SEED_MAX = 2**32 - 1
PROMPT_MAX = 20_000
SIZE_MAX = 2048
PATH_MAX = 1000
TEXT2IMAGE, IMAGE2IMAGE, INPAINT = "text2image", "image2image", "inpaint"
WITHOUT_IMAGE = ("variation_strength", "hires_scale")  # what an image has no place for

ResizeMode = Literal["stretch", "crop", "fill"]
MaskedContent = Literal["original", "fill", "latent noise", "latent nothing"]
RESIZE_LABELS: dict[ResizeMode, str] = {"stretch": "Just resize", "crop": "Crop and resize", "fill": "Resize and fill"}


class GenerationRequest(Frozen):
    """Everything that decides the pixels. `None` means: the model's own default."""

    prompt: Annotated[
        str,
        control(
            "Prompt",
            "prompt",
            "What to draw; (word:1.3) counts more, {a|b} chooses one.",
            max_length=PROMPT_MAX,
            lines=3,
        ),
    ] = ""
    negative_prompt: Annotated[
        str,
        control(
            "Negative prompt", "prompt", "What to avoid; ignored when CFG Scale is 1.", max_length=PROMPT_MAX, lines=2
        ),
    ] = ""
    styles: Annotated[
        tuple[StyleName, ...],
        control("Styles", "styles", "Kept pieces of prompts.", max_length=STYLES_MAX, shown=False),
    ] = ()
    model: Annotated[str, control("Model", "model", "Id of the model in the library.", max_length=300)] = "shapes"
    width: Annotated[
        int | None,
        control("Width", "size", "Picture width in pixels.", ge=64, le=SIZE_MAX, multiple_of=SIZE_STEP, step=8),
    ] = None
    height: Annotated[
        int | None,
        control("Height", "size", "Picture height in pixels.", ge=64, le=SIZE_MAX, multiple_of=SIZE_STEP, step=8),
    ] = None
    num_images_per_prompt: Annotated[
        int, control("Number of images", "size", "How many pictures; picture i uses seed + i.", ge=1, le=64, step=1)
    ] = 1
    batch_size: Annotated[
        int, control("Batch size", "size", "Pictures made at once: faster on a GPU, more memory.", ge=1, le=8, step=1)
    ] = 1
    scheduler: Annotated[
        str | None, control("Sampling method", "sampling", "The solver that turns noise into a picture.", max_length=60)
    ] = None
    sigmas: Annotated[
        Sigmas | None,
        control("Schedule type", "sampling", "How noise levels are spaced; Automatic is the method's own."),
    ] = None
    num_inference_steps: Annotated[
        int | None, control("Sampling steps", "sampling", "More steps: finer, slower.", ge=1, le=150, step=1)
    ] = None
    guidance_scale: Annotated[
        float | None,
        control(
            "CFG Scale",
            "sampling",
            "How strictly to follow the prompt; 1 switches guidance off.",
            ge=1,
            le=30,
            step=0.1,
        ),
    ] = None
    true_cfg_scale: Annotated[
        float,
        control(
            "True CFG",
            "sampling",
            "For models with distilled guidance (Flux): above 1 the negative prompt counts, at twice the time.",
            ge=1,
            le=30,
            step=0.1,
        ),
    ] = 1.0
    prior_guidance_scale: Annotated[
        float, control("Prior CFG", "more", "How strictly Kandinsky's prior follows the prompt.", ge=1, le=30, step=0.1)
    ] = 4.0
    pag_scale: Annotated[
        float, control("PAG scale", "sampling", "Perturbed attention guidance: 0 off, 3 usual.", ge=0, le=10, step=0.1)
    ] = 0.0
    refiner: Annotated[
        str | None,
        control("Refiner", "refiner", "Draws the last steps (SDXL) or the second stage (IF).", max_length=300),
    ] = None
    refiner_start: Annotated[
        float,
        control("Switch at", "refiner", "Part of the noise that the first model removes.", ge=0.05, le=0.95, step=0.05),
    ] = 0.8
    seed: Annotated[
        int,
        control(
            "Seed",
            "seed",
            "The same seed and settings make the same picture; -1 is random.",
            ge=-1,
            le=SEED_MAX,
            step=1,
        ),
    ] = -1
    eta: Annotated[
        float,
        control(
            "Eta", "more", "Noise added at each step by DDIM and TCD: 0 none, 1 as much as DDPM.", ge=0, le=1, step=0.05
        ),
    ] = 0.0
    guidance_rescale: Annotated[
        float,
        control("CFG rescale", "sampling", "Takes back washed-out colours of strong guidance.", ge=0, le=1, step=0.05),
    ] = 0.0
    guidance_start: Annotated[
        float, control("CFG from", "sampling", "Part of the steps before guidance begins.", ge=0, le=1, step=0.05)
    ] = 0.0
    guidance_end: Annotated[
        float, control("CFG until", "sampling", "Part of the steps at which guidance ends.", ge=0, le=1, step=0.05)
    ] = 1.0
    variation_seed: Annotated[
        int,
        control("Variation seed", "variation", "Noise to mix in; -1 is random.", ge=-1, le=SEED_MAX, step=1),
    ] = -1
    variation_strength: Annotated[
        float,
        control(
            "Variation strength",
            "variation",
            "0: the seed's own picture, 1: the variation seed's; picture i uses variation seed + i.",
            ge=0,
            le=1,
            step=0.01,
        ),
    ] = 0.0
    hires_scale: Annotated[
        float, control("Upscale by", "hires", "Size of the second pass; 1 is no second pass.", ge=1, le=4, step=0.05)
    ] = 1.0
    hires_upscaler: Annotated[
        str, control("Upscaler", "hires", "Latent invents more, Lanczos and models keep more.", max_length=300)
    ] = "latent"
    hires_steps: Annotated[
        int, control("Hires steps", "hires", "0: as many as the first pass.", ge=0, le=150, step=1)
    ] = 0
    hires_strength: Annotated[
        float,
        control("Hires denoising strength", "hires", "How much the second pass may change.", ge=0.05, le=1, step=0.05),
    ] = 0.7
    image: Annotated[
        str | None, control("Image", "image", "Picture to start from; img2img.", max_length=PATH_MAX, shown=False)
    ] = None
    mask_image: Annotated[
        str | None,
        control("Mask", "image", "White is repainted, black is kept; inpaint.", max_length=PATH_MAX, shown=False),
    ] = None
    strength: Annotated[
        float,
        control(
            "Denoising strength",
            "image",
            "How much of the image may change: 0 nothing, 1 everything.",
            ge=0,
            le=1,
            step=0.05,
        ),
    ] = 0.75
    resize_mode: Annotated[
        ResizeMode, control("Resize mode", "image", "What happens when image and size have other proportions.")
    ] = "crop"
    mask_blur: Annotated[
        int, control("Mask blur", "inpaint", "How softly the new part meets the old, in pixels.", ge=0, le=64, step=1)
    ] = 4
    mask_invert: Annotated[
        bool, control("Inpaint not masked", "inpaint", "Keep what is painted over, repaint the rest.")
    ] = False
    masked_content: Annotated[
        MaskedContent,
        control(
            "Masked content",
            "inpaint",
            "What the masked part starts from: the picture, its surroundings' colours, noise, or nothing.",
        ),
    ] = "original"
    only_masked: Annotated[
        bool,
        control("Only masked", "inpaint", "Draw the masked part at full size and put it back into the picture."),
    ] = False
    padding: Annotated[
        int,
        control(
            "Only masked padding, pixels",
            "inpaint",
            "How much of the surroundings is seen when only the masked part is drawn.",
            ge=0,
            le=256,
            step=4,
        ),
    ] = 32
    extend_left: Annotated[int, extension("left")] = 0
    extend_right: Annotated[int, extension("right")] = 0
    extend_top: Annotated[int, extension("top")] = 0
    extend_bottom: Annotated[int, extension("bottom")] = 0
    controls: Annotated[
        tuple[ControlSpec, ...], control("ControlNet", "control", "Up to three pictures to follow.", shown=False)
    ] = ()
    t2i_adapters: Annotated[
        tuple[T2IAdapterSpec, ...], control("T2I-Adapter", "control", "Likewise, lighter and looser.", shown=False)
    ] = ()
    ip_adapters: Annotated[
        tuple[IPAdapterSpec, ...],
        control("IP-Adapter", "control", "Pictures that stand beside the prompt.", shown=False),
    ] = ()
    loras: Annotated[
        tuple[LoraSpec, ...],
        control(
            "LoRA", "lora", "Small files that change the model; <lora:name:1> in the prompt does it too.", shown=False
        ),
    ] = ()
    clip_skip: Annotated[
        int,
        control(
            "Clip skip",
            "more",
            "1 hears the whole text encoder, 2 leaves out its last layer; in files and requests 0 and 1.",
            ge=0,
            le=11,
            step=1,
            shown_offset=1,
        ),
    ] = 0
    vae: Annotated[
        str | None,
        control("SD VAE", "more", "Turns latents into colours; Automatic is the model's usual one.", max_length=300),
    ] = None
    vae_tiling: Annotated[bool, VAE_TILING] = False
    vae_slicing: Annotated[bool, VAE_SLICING] = False
    weights: Annotated[Weights, WEIGHTS] = "full"
    attention: Annotated[Attention, ATTENTION] = "automatic"

    @field_validator(
        "num_inference_steps",
        "width",
        "height",
        "seed",
        "num_images_per_prompt",
        "batch_size",
        "clip_skip",
        "variation_seed",
        "hires_steps",
        "mask_blur",
        "padding",
        "extend_left",
        "extend_right",
        "extend_top",
        "extend_bottom",
        mode="before",
    )
    @classmethod
    def whole_number(cls, value: Any) -> Any:
        """Accept 20.0 (what sliders send), refuse 20.5 and true."""
        if isinstance(value, bool):
            raise ValueError(f"{value} is not a number")
        return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value

    @field_validator("refiner", "vae", mode="before")
    @classmethod
    def no_model(cls, value: Any) -> Any:
        """Take "", what a dropdown sends, for none."""
        return value or None

    @field_validator("scheduler")
    @classmethod
    def known_scheduler(cls, value: str | None) -> str | None:
        if value is None:
            return None
        name = canonical(value)
        if name is None:
            raise ValueError(f"scheduler={value!r} is not known; use one of: {', '.join(SCHEDULERS)}")
        return name

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def clean_text(cls, value: str) -> str:
        return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", value.replace("\r\n", "\n"))

    @model_validator(mode="after")
    def combination(self) -> "GenerationRequest":
        if self.scheduler and (problem := scheduler_problem(self.scheduler, self.sigmas or "automatic")):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def inputs(self) -> "GenerationRequest":
        if self.image is None:
            given = [name for name in ("mask_image", *EXTENSIONS) if getattr(self, name)]
            if given:
                raise InvalidRequest(given[0], f"{given[0]} needs an image; give image too, or leave {given[0]} out")
        if max(self.canvas) > SIZE_MAX:
            raise InvalidRequest(
                "width",
                f"the extended canvas is {self.canvas[0]} x {self.canvas[1]}; at most {SIZE_MAX} a side are drawn",
            )
        steps = self.num_inference_steps
        if self.image is not None and steps and 0 < self.strength * steps < 1:
            raise InvalidRequest(
                "strength",
                f"strength={self.strength:g} leaves none of {steps} steps; use at least {least_strength(steps):g}, "
                "more steps, or 0 to keep the image",
            )
        return self

    @model_validator(mode="after")
    def units(self) -> "GenerationRequest":
        """Refuse too many units or LoRA, a LoRA that is given twice, and a unit that has nothing to follow."""
        if found := units_problem(self) or loras_problem(self.loras):
            raise InvalidRequest(*found)
        return self

    @model_validator(mode="after")
    def passes(self) -> "GenerationRequest":
        """Refuse what the pipelines of a task cannot do."""
        if self.task != TEXT2IMAGE:
            for name in WITHOUT_IMAGE:
                if name == "hires_scale" and self.only_enlarges:
                    check_enlarging(self)
                elif getattr(self, name) != type(self).model_fields[name].default:
                    raise InvalidRequest(name, f"{name} works only without an image; set it back, or remove the image")
        interval = (self.guidance_start, self.guidance_end)
        if self.guidance_start >= self.guidance_end:
            raise InvalidRequest(
                "guidance_end",
                f"guidance_end={self.guidance_end:g} must be more than guidance_start={self.guidance_start:g}",
            )
        if self.task == INPAINT and interval != (0, 1):
            raise InvalidRequest(
                "guidance_start", "CFG from and until do not work with inpainting; set them to 0 and 1"
            )
        if self.hires_scale > 1 and not self.only_enlarges:
            check_second_pass(self, SIZE_MAX)
        return self

    @property
    def seeds(self) -> list[int]:
        """One a picture: seed + i, or the same for all where the variation seed makes the difference."""
        return [self.seed + (0 if self.variation_strength else i) for i in range(self.num_images_per_prompt)]

    @property
    def hires_size(self) -> tuple[int, int]:
        """Width and height after the second pass; (0, 0) while the model's own size is not filled in."""
        step = SIZE_STEP
        width, height = (round((side or 0) * self.hires_scale / step) * step for side in (self.width, self.height))
        return width, height

    @property
    def only_enlarges(self) -> bool:
        """Whether no model draws: the image stays as it is, and `hires_upscaler` makes it larger."""
        return self.task == IMAGE2IMAGE and self.strength == 0 and self.hires_scale > 1

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height that the pipeline draws: the size, grown by the extensions unless only the mask is drawn."""
        left, right, top, bottom = (0, 0, 0, 0) if self.only_masked else self.extensions
        return (self.width or 0) + left + right, (self.height or 0) + top + bottom

    @property
    def extensions(self) -> tuple[int, int, int, int]:
        """Pixels that the canvas grows: left, right, top, bottom."""
        return self.extend_left, self.extend_right, self.extend_top, self.extend_bottom

    @property
    def task(self) -> str:
        """The diffusers task, which follows from what is given."""
        if self.image is None:
            return TEXT2IMAGE
        return INPAINT if self.mask_image is not None or any(self.extensions) else IMAGE2IMAGE


EXTENSIONS = ("extend_left", "extend_right", "extend_top", "extend_bottom")


def parse_request(values: dict[str, Any]) -> GenerationRequest:
    """Build a request from plain values.

    Raises:
        InvalidRequest: naming the first wrong field, its value and what is allowed.
    """
    try:
        return GenerationRequest.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error)
        if problem.field == "request":
            problem.field = "scheduler"
        raise problem from None
