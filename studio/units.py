"""Units: models that steer a picture besides its prompt. A request names them; `store.parts` finds them, `engine.units` runs them."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from studio.errors import InvalidRequest
from studio.fields import Frozen
from studio.preprocessors import RESOLUTION_MAX, RESOLUTION_MIN, find_preprocessor, option_values

UNITS_MAX = 3
IMAGES_MAX = 4
ControlMode = Literal["balanced", "prompt", "control"]
MODE_LABELS: dict[ControlMode, str] = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}

Model = Annotated[str, Field(min_length=1, max_length=300, description="Id of the unit's model.")]
Weight = Annotated[float, Field(ge=0, le=2, description="How strongly it steers; 0 leaves the unit out.")]
Start = Annotated[float, Field(ge=0, le=1, description="Part of the steps before it begins to steer.")]
End = Annotated[float, Field(ge=0, le=1, description="Part of the steps at which it stops to steer.")]


class _Unit(Frozen):
    """What all units share."""

    model: Model
    weight: Weight = 1.0
    start: Start = 0.0
    end: End = 1.0

    @model_validator(mode="after")
    def interval(self) -> "_Unit":
        """Refuse an interval that holds no step."""
        if self.start >= self.end:
            raise ValueError(f"end={self.end:g} must be more than start={self.start:g}")
        return self


class _Drawn(_Unit):
    """A unit that follows a control picture, which a preprocessor may make from a plain one."""

    image: Annotated[
        str | None, Field(max_length=1000, description="Picture to follow; the request's own image if left out.")
    ] = None
    preprocessor: Annotated[
        str, Field(max_length=60, description="Makes the control picture; `none` takes it as it is.")
    ] = "none"
    resolution: Annotated[
        int | None,
        Field(
            ge=RESOLUTION_MIN,
            le=RESOLUTION_MAX,
            description="Short side in pixels at which the preprocessor looks; left out: as large as it is drawn (pixel perfect).",
        ),
    ] = None
    options: Annotated[
        dict[str, float], Field(description="The preprocessor's own numbers, such as Canny's thresholds.")
    ] = {}

    @field_validator("preprocessor")
    @classmethod
    def known(cls, value: str) -> str:
        """Refuse a name that no preprocessor has."""
        try:
            find_preprocessor(value)
        except InvalidRequest as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def numbers(self) -> "_Drawn":
        """Refuse options that the preprocessor does not have."""
        try:
            option_values(self.preprocessor, self.options)
        except InvalidRequest as error:
            raise ValueError(str(error)) from None
        return self


class ControlSpec(_Drawn):
    """A ControlNet unit (Zhang et al. 2023, arXiv:2302.05543).

    `mode`: `prompt` weakens the outer blocks, `control` also leaves the unconditional half alone (A1111's two other modes).
    A transformer has no outer blocks: there `control` does only the second, and `prompt` is refused.
    """

    mode: Annotated[ControlMode, Field(description="What counts more where prompt and picture disagree.")] = "balanced"


class T2IAdapterSpec(_Drawn):
    """A T2I-Adapter unit (Mou et al. 2023, arXiv:2302.08453); its features are computed once, not at each step."""


class IPAdapterSpec(Frozen):
    """An IP-Adapter unit (Ye et al. 2023, arXiv:2308.06721): pictures that stand beside the prompt."""

    model: Model
    images: Annotated[tuple[str, ...], Field(description="Pictures whose content or style is taken.")]
    scale: Annotated[float, Field(ge=0, le=2, description="How strongly they count; 0 leaves the unit out.")] = 0.6

    @field_validator("images")
    @classmethod
    def some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse no pictures and too many."""
        if not 1 <= len(value) <= IMAGES_MAX:
            raise ValueError(f"{len(value)} pictures are given; give 1 to {IMAGES_MAX}")
        return value


UNIT_TYPES: dict[str, type[Frozen]] = {
    "controls": ControlSpec,
    "t2i_adapters": T2IAdapterSpec,
    "ip_adapters": IPAdapterSpec,
}
UNIT_FIELDS = tuple(UNIT_TYPES)
IMAGE_FIELDS = ("image", "mask_image")  # fields of a request that name pictures: paths when given, blobs once resolved


def units_problem(request: Any) -> tuple[str, str] | None:
    """Say which field of a request has too many units, or one with nothing to follow, and why; None if all is well."""
    for name in UNIT_FIELDS:
        units = getattr(request, name)
        if len(units) > UNITS_MAX:
            return name, f"{name} has {len(units)} units; at most {UNITS_MAX} work at once"
        for place, unit in enumerate(units):
            if not isinstance(unit, IPAdapterSpec) and unit.image is None and request.image is None:
                field = f"{name}.{place}.image"
                return field, f"{field} is missing; give the picture that the unit shall follow"
    return None


def pictures_of(request: Any) -> dict[str, str]:
    """Return every picture that a request names, by field (`image`, `controls.0.image`, `ip_adapters.0.images.1`)."""
    found = {name: getattr(request, name) for name in IMAGE_FIELDS if getattr(request, name) is not None}
    for name in UNIT_FIELDS:
        for place, unit in enumerate(getattr(request, name)):
            if isinstance(unit, IPAdapterSpec):
                found |= {f"{name}.{place}.images.{i}": image for i, image in enumerate(unit.images)}
            elif unit.image is not None:
                found[f"{name}.{place}.image"] = unit.image
    return found


def with_pictures(request: Any, changes: dict[str, str]) -> Any:
    """Return a request whose pictures are replaced, by field as in `pictures_of`."""
    update: dict[str, Any] = {name: changes[name] for name in IMAGE_FIELDS if name in changes}
    for name in UNIT_FIELDS:
        units = []
        for place, unit in enumerate(getattr(request, name)):
            if isinstance(unit, IPAdapterSpec):
                images = tuple(changes.get(f"{name}.{place}.images.{i}", image) for i, image in enumerate(unit.images))
                units.append(unit.model_copy(update={"images": images}))
            else:
                units.append(unit.model_copy(update={"image": changes.get(f"{name}.{place}.image", unit.image)}))
        update[name] = tuple(units)
    return request.model_copy(update=update)
