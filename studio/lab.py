"""Lab: panels that let a person watch how diffusion works. Each has one request class: form, command line and API derive from it.

A new panel is a request class, a line in `PANELS`, a line in `studio.engine.lab.RUNS` and its words in `studio.ui.lab_text`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ValidationError, model_validator

from studio.errors import InvalidRequest, first_problem
from studio.fields import Frozen, control
from studio.lab_fields import Drawn, LabRequest, Values, Whole, named, numbers, several
from studio.lab_latents import (
    InterpolationRequest,
    InversionRequest,
    LatentsRequest,
    RankingRequest,
    interpolation_settings,
    inversion_settings,
    ranking_settings,
)
from studio.lab_plane import PlaneRequest
from studio.lab_wordless import WordlessRequest, wordless_settings

TRAIN_STEPS = 1000  # of the noise schedules that are drawn side by side


@dataclass(frozen=True)
class Sampler:
    """A way from noise to a picture.

    Attributes:
        class_name: in diffusers.
        overrides: of the model's scheduler config.
        noise: the kinds of models that it can follow.
        random: whether it always adds noise on the way.
        eta: whether it reads `eta`.
        generate: the same in the Generate tab: (scheduler, sigmas).
    """

    class_name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    noise: tuple[str, ...] = ("diffusion",)
    random: bool = False
    eta: bool = False
    generate: tuple[str, str] = ("", "automatic")


BOTH = ("diffusion", "flow")


def solver(order: int) -> Sampler:
    """Declare DPM-Solver++ of an order (Lu et al. 2022, arXiv:2211.01095) with Karras' steps; Generate has the second order."""
    options = {"algorithm_type": "dpmsolver++", "solver_order": order, "use_karras_sigmas": True}
    return Sampler("DPMSolverMultistepScheduler", options, BOTH, generate=("DPM++ 2M", "karras"))


SAMPLERS: Mapping[str, Sampler] = {
    "DDPM": Sampler("DDPMScheduler", {"variance_type": "fixed_small"}, random=True, generate=("DDPM", "automatic")),
    "DDIM": Sampler("DDIMScheduler", eta=True, generate=("DDIM", "automatic")),
    "PF-ODE": Sampler("EulerDiscreteScheduler", generate=("Euler", "automatic")),
    "SDE": Sampler(
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
        random=True,
        generate=("DPM++ 2M SDE", "automatic"),
    ),
    "DPM-Solver-1": solver(1),
    "DPM-Solver-2": solver(2),
    "DPM-Solver-3": solver(3),
    "EDM": Sampler("HeunDiscreteScheduler", {"use_karras_sigmas": True}, generate=("Heun", "karras")),
    "Flow Euler": Sampler("FlowMatchEulerDiscreteScheduler", noise=BOTH, generate=("Flow Euler", "automatic")),
    "Flow Heun": Sampler("FlowMatchHeunDiscreteScheduler", noise=BOTH, generate=("Flow Heun", "automatic")),
}
REFERENCES = {"diffusion": "DDIM", "flow": "Flow Euler"}  # of many steps: where the others should lead to
SamplerName = Literal[
    "DDPM", "DDIM", "PF-ODE", "SDE", "DPM-Solver-1", "DPM-Solver-2", "DPM-Solver-3", "EDM", "Flow Euler", "Flow Heun"
]
FilmSampler = Literal["DDIM", "DDPM", "PF-ODE", "SDE", "DPM-Solver-2", "Flow Euler"]
Guidance = Annotated[
    float,
    control(
        "Guidance w",
        "lab",
        "0: without the prompt. 1: the prompt alone. More: away from no prompt.",
        ge=0,
        le=30,
        step=0.5,
    ),
]
Eta = Annotated[float, control("Eta", "lab", "Noise that DDIM adds: 0 none, 1 as much as DDPM.", ge=0, le=1, step=0.05)]


class ReverseRequest(Drawn):
    """Draw a picture and keep every moment."""

    sampler: Annotated[
        FilmSampler,
        control("Sampler", "lab", "For models of flow: Flow Euler or DPM-Solver-2.", choices=get_args(FilmSampler)),
    ] = "DDIM"
    num_inference_steps: Annotated[Whole, control("Steps", "lab", "From noise to picture.", ge=2, le=200, step=1)] = 20
    eta: Eta = 0.0
    guidance_scale: Guidance = 2.0
    frames: Annotated[
        Whole, control("Pictures of the film", "lab", "How many of the steps are decoded.", ge=2, le=50, step=1)
    ] = 10


class SamplersRequest(Drawn):
    """Let several samplers go from the same noise."""

    samplers: Annotated[
        tuple[SamplerName, ...],
        BeforeValidator(named),
        control("Samplers", "lab", "What is compared.", kind="choices", choices=get_args(SamplerName)),
    ] = (
        "DPM-Solver-2",
        "DDIM",
        "DPM-Solver-3",
        "EDM",
        "DDPM",
    )
    steps: Annotated[
        tuple[int, ...],
        BeforeValidator(several),
        numbers("steps", 2, TRAIN_STEPS, 8),
        control("Steps", "lab", "How many each may take, with commas between: 5, 10, 20.", kind="numbers"),
    ] = (5, 10, 20)
    reference_steps: Annotated[
        Whole,
        control(
            "Steps of the reference",
            "lab",
            "Where all should lead to; fewer is quicker.",
            ge=20,
            le=TRAIN_STEPS,
            step=10,
        ),
    ] = TRAIN_STEPS
    pictures: Annotated[
        Whole, control("Pictures", "lab", "Seeds over which distance and agreement are averaged.", ge=1, le=8, step=1)
    ] = 1
    eta: Eta = 0.0
    guidance_scale: Guidance = 2.0

    @model_validator(mode="after")
    def some(self) -> "SamplersRequest":
        if not self.samplers:
            raise InvalidRequest("samplers", f"samplers is empty; choose some of: {', '.join(SAMPLERS)}")
        return self


class GuidanceRequest(Drawn):
    """Draw the same seeds with several guidances."""

    scales: Annotated[
        tuple[float, ...],
        BeforeValidator(several),
        numbers("scales", 0, 30, 10),
        control(
            "Guidance w", "lab", "0: without the prompt. 1: the prompt alone. With commas between.", kind="numbers"
        ),
    ] = (0, 1, 2, 4, 8)
    pictures: Annotated[Whole, control("Pictures", "lab", "Seeds for each guidance.", ge=2, le=32, step=1)] = 4
    num_inference_steps: Annotated[Whole, control("Steps", "lab", "For each picture.", ge=2, le=100, step=1)] = 12
    guidance_rescale: Annotated[
        float, control("Rescale", "lab", "Takes back the contrast that strong guidance adds.", ge=0, le=1, step=0.05)
    ] = 0.0
    guidance_start: Annotated[
        float, control("Guidance from", "lab", "Part of the steps before it begins.", ge=0, le=1, step=0.05)
    ] = 0.0
    guidance_end: Annotated[
        float, control("Guidance until", "lab", "Part of the steps at which it ends.", ge=0, le=1, step=0.05)
    ] = 1.0

    @model_validator(mode="after")
    def interval(self) -> "GuidanceRequest":
        if self.guidance_start >= self.guidance_end:
            raise InvalidRequest(
                "guidance_end",
                f"guidance_end={self.guidance_end:g} must be more than guidance_start={self.guidance_start:g}",
            )
        return self


Schedule = Literal["model", "linear", "scaled_linear", "cosine", "zero_terminal_snr", "flow"]


class ForwardRequest(Drawn):
    """Noise a picture to step `timestep`, in closed form and step by step."""

    image: Annotated[
        str | None,
        control("Picture", "lab", "Your own, cropped to the model's size; none: the model draws one.", kind="picture"),
    ] = None
    schedule: Annotated[
        Schedule,
        control(
            "Noise schedule",
            "lab",
            "How fast the picture is lost; the model's own is what it was trained on.",
            choices=get_args(Schedule),
        ),
    ] = "model"
    timestep: Annotated[
        Whole, control("Step t", "lab", "How far to go; 999 is the end of training.", ge=1, le=TRAIN_STEPS - 1, step=1)
    ] = 500
    frames: Annotated[
        Whole, control("Pictures of the film", "lab", "How many of the steps up to t are shown.", ge=2, le=30, step=1)
    ] = 8
    space: Annotated[
        Literal["latents", "pixels"],
        control("Where", "lab", "Latents: as this model does it, then decoded. Pixels: as the first papers did."),
    ] = "latents"


def forward_settings(request: ForwardRequest) -> Values:
    """Return img2img from the same point: a strength of t / 1000 goes on from there."""
    values: Values = {"prompt": request.prompt, "seed": request.seed}
    if request.image:
        values |= {"image": request.image, "strength": round((request.timestep + 1) / TRAIN_STEPS, 2)}
    return values


def sampler_settings(name: str, steps: int, guidance: float, eta: float = 0.0) -> Values:
    """Return what the Generate tab takes over of a sampler; its guidance begins at 1."""
    scheduler, sigmas = SAMPLERS[name].generate
    values: Values = {"scheduler": scheduler, "sigmas": sigmas, "eta": eta if SAMPLERS[name].eta else 0.0}
    return values | {"num_inference_steps": min(steps, 150), "guidance_scale": max(1.0, guidance)}


def reverse_settings(request: ReverseRequest) -> Values:
    """Return the same picture."""
    words = {"prompt": request.prompt, "seed": request.seed}
    return words | sampler_settings(request.sampler, request.num_inference_steps, request.guidance_scale, request.eta)


def samplers_settings(request: SamplersRequest) -> Values:
    """Return the first sampler with the first number of steps."""
    words = {"prompt": request.prompt, "seed": request.seed}
    return words | sampler_settings(request.samplers[0], request.steps[0], request.guidance_scale, request.eta)


def guidance_settings(request: GuidanceRequest) -> Values:
    """Return the guidance in the middle of those that Generate has."""
    scales = sorted(scale for scale in request.scales if scale >= 1) or [1.0]
    names = ("prompt", "seed", "num_inference_steps", "guidance_rescale", "guidance_start", "guidance_end")
    return {name: getattr(request, name) for name in names} | {"guidance_scale": scales[len(scales) // 2]}


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        request: what can be set.
        settings: what of a request the Generate tab takes over, as fields of a GenerationRequest; None: nothing.
        plots: the names of its plots, in their order.
    """

    request: type[LabRequest]
    settings: Callable[[Any], Values] | None = None
    plots: tuple[str, ...] = ()


PANELS: Mapping[str, Panel] = {
    "forward": Panel(ForwardRequest, forward_settings, ("alpha_bar", "log_snr", "sigma")),
    "reverse": Panel(ReverseRequest, reverse_settings, ("distance", "conversions")),
    "samplers": Panel(SamplersRequest, samplers_settings, ("distance", "cost", "agreement")),
    "guidance": Panel(GuidanceRequest, guidance_settings, ("agreement", "diversity", "tradeoff")),
    "latents": Panel(LatentsRequest, None, ("values",)),
    "interpolation": Panel(InterpolationRequest, interpolation_settings, ("length", "agreement")),
    "inversion": Panel(InversionRequest, inversion_settings, ("error", "psnr")),
    "wordless": Panel(WordlessRequest, wordless_settings, ("distance", "deviation")),
    "plane": Panel(PlaneRequest, None, ("energy", "loss")),
    "ranking": Panel(RankingRequest, ranking_settings, ("score",)),
}


def parse_lab(panel: str, values: Values) -> Any:
    """Build a panel's request from plain values.

    Raises:
        InvalidRequest: naming the first wrong field, its value and what is allowed.
    """
    if panel not in PANELS:
        raise InvalidRequest("panel", f"panel={panel!r} is not known; use one of: {', '.join(PANELS)}")
    request = PANELS[panel].request
    try:
        return request.model_validate(values)
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] == "extra_forbidden":
            name = str(error.errors(include_url=False)[0]["loc"][0])
            names = ", ".join(request.model_fields)
            raise InvalidRequest(name, f"{name} is not a setting of {panel}; it has: {names}") from None
        raise first_problem(error) from None


def base_values(request: LabRequest) -> Values:
    """Return what a panel asks the library for, as fields of a GenerationRequest: the words, the seed and the sampler."""
    named = ("prompt", "negative_prompt", "seed", "scheduler")
    return {name: value for name in named if (value := getattr(request, name, None)) is not None}


class Line(Frozen):
    """One line of a plot; where `y` is None there is no number."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]


class Plot(Frozen):
    """Lines over one axis. `x` and `y` name the quantities; `log` says which axes are read best on a logarithmic scale."""

    name: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log: tuple[Literal["x", "y"], ...] = ()


class Table(Frozen):
    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]


class Frame(Frozen):
    """One moment of a film: what a picture shows -> its name."""

    caption: str
    pictures: dict[str, str]


class Film(Frozen):
    name: str
    frames: tuple[Frame, ...]


class Cloud(Frozen):
    """Particles at one moment, and what surrounds them; see `Particles`.

    Attributes:
        points: where they are, in a square of `reach` each way.
        density: of points with as much noise: `cells` x `cells` of 0 to 99, row by row from the lowest.
        arrows: where the network would take a particle, `field` x `field` in the same order; (x, y) of the square.
        along: the density along x alone, `cells` of 0 to 99.
    """

    caption: str
    points: tuple[tuple[float, float], ...]
    density: tuple[int, ...]
    arrows: tuple[tuple[float, float], ...]
    along: tuple[int, ...]


class Particles(Frozen):
    """A film of particles that go where points are."""

    name: str
    reach: float
    cells: int
    field: int
    clouds: tuple[Cloud, ...]


class Findings(Frozen):
    """What a panel found: numbers, and names of pictures.

    Attributes:
        settings: the request as it was read.
        particles: of the panel in two dimensions.
        taken: what the Generate tab takes over besides, found only now.
        notes: sentences that a person should read beside the numbers.
    """

    panel: str
    settings: Values
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    films: tuple[Film, ...] = ()
    particles: tuple[Particles, ...] = ()
    taken: Values = {}
    notes: tuple[str, ...] = ()


def finite(values: Any, digits: int = 6) -> tuple[float | None, ...]:
    """Return numbers to so many significant digits, as JSON can hold them: None for what is not finite."""
    return tuple(float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in map(float, values))


def axis(values: Any, digits: int = 6) -> tuple[float, ...]:
    """Return the numbers of an axis, which are all finite, to so many significant digits."""
    return tuple(float(f"{value:.{digits}g}") for value in map(float, values))
