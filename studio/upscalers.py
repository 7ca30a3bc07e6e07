"""Enlarging as data: what it can be done with, and how large a picture may become when no model draws."""

from typing import Any, Protocol

from studio.errors import InvalidRequest
from studio.fields import least_strength

LATENT, LANCZOS = "latent", "lanczos"
BUILT_IN = (LATENT, LANCZOS)
SIDE_MAX = 8192
PIXELS_MAX = 64_000_000


class Enlarging(Protocol):
    """The fields of a GenerationRequest that matter here."""

    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...
    @property
    def hires_scale(self) -> float: ...
    @property
    def hires_upscaler(self) -> str: ...
    @property
    def hires_steps(self) -> int: ...
    @property
    def hires_strength(self) -> float: ...
    @property
    def hires_size(self) -> tuple[int, int]: ...
    @property
    def num_inference_steps(self) -> int | None: ...


def enlarged_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """Return width and height in pixels of a picture that is enlarged `scale` times."""
    return round(width * scale), round(height * scale)


def check_enlarging(request: Enlarging, size: tuple[int, int] | None = None) -> None:
    """Check a request for which `only_enlarges` holds.

    Args:
        request: names upscaler and scale.
        size: width and height of its picture; None takes the request's own, if it has one.

    Raises:
        InvalidRequest: if it needs a model that draws, or the result would be too large.
    """
    if request.hires_upscaler == LATENT:
        raise InvalidRequest(
            "hires_upscaler",
            "hires_upscaler='latent' works only while a model draws; to enlarge a picture choose lanczos or a model",
        )
    width, height = size or (request.width, request.height)
    if width is None or height is None:
        return
    across, down = enlarged_size(width, height, request.hires_scale)
    if max(across, down) > SIDE_MAX or across * down > PIXELS_MAX:
        raise InvalidRequest(
            "hires_scale",
            f"hires_scale={request.hires_scale:g} makes {across} x {down} pixels of {width} x {height}; "
            f"at most {SIDE_MAX} a side and {PIXELS_MAX:,} in all",
        )


def check_second_pass(request: Enlarging, side_max: int) -> None:
    """Check a request with a second pass.

    Args:
        request: with `hires_scale` above 1, for which `only_enlarges` does not hold.
        side_max: pixels a side that a model may draw.

    Raises:
        InvalidRequest: if the pass has no step, or would be too large.
    """
    steps = request.hires_steps or request.num_inference_steps
    if steps and request.hires_strength * steps < 1:
        raise InvalidRequest(
            "hires_strength",
            f"hires_strength={request.hires_strength:g} leaves none of {steps} steps; use at least {least_strength(steps):g}",
        )
    if max(request.hires_size) > side_max:
        raise InvalidRequest(
            "hires_scale",
            f"hires_scale={request.hires_scale:g} makes {max(request.hires_size)} pixels; at most {side_max}",
        )


def upscaler_label(name: str) -> str:
    """Return what A1111 calls an upscaler; a model's name stays."""
    return name.capitalize() if name in BUILT_IN else name


def upscaler_name(label: str) -> str:
    """The inverse of `upscaler_label`; A1111's kinds of Latent count as one."""
    first = label.split(" ")[0].lower()
    return first if first in BUILT_IN else label


def uses_model(request: Enlarging) -> bool:
    """Whether a request enlarges with an upscaler model, which is a part."""
    return request.hires_scale > 1 and request.hires_upscaler not in BUILT_IN


def of_own_size(request: Any) -> Any:
    """Return a request from the form, whose size counts only where something is drawn: enlarging starts from the picture's own."""
    return request.model_copy(update={"width": None, "height": None}) if request.only_enlarges else request
