"""Tools: small things that the process which draws does besides jobs: a preprocessor's preview, a check of an autoencoder.

A call is answered once, between two jobs. Its pictures lie in the cache for a while; nothing of it is kept.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from studio.fields import Frozen
from studio.records import ModelRef, PartRef
from studio.spec import ResizeMode


class PreprocessCall(Frozen):
    """Make a control picture; the answer's picture is `map`. With `width` and `height` it is made as for a picture of that size."""

    tool: Literal["preprocess"] = "preprocess"
    image: str
    preprocessor: str
    resolution: int | None = None
    options: dict[str, float] = {}
    width: int | None = None
    height: int | None = None
    resize_mode: ResizeMode = "crop"


class VaeCheckCall(Frozen):
    """Encode a picture and decode it again, with a model's own autoencoder or with `vae` in its place.

    The answer's pictures are `given`, `decoded` and `difference`.
    """

    tool: Literal["vae_check"] = "vae_check"
    image: str
    model: ModelRef
    vae: PartRef | None = None


class CutoutCall(Frozen):
    """Find what stands in front of its background; the answer's picture is `mask`, white where the subject is.

    `painted` is a mask of where a person says that it is. `values` has `part`, its share of the picture.
    """

    tool: Literal["cutout"] = "cutout"
    image: str
    painted: str | None = None


ToolCall = Annotated[PreprocessCall | VaeCheckCall | CutoutCall, Field(discriminator="tool")]


class ToolAnswer(Frozen):
    """What came of a call.

    Attributes:
        call: id of the call.
        values: numbers and words.
        pictures: name -> id under which the picture can be fetched for a while.
        problem: why there is nothing, in one sentence; "" if there is.
    """

    type: Literal["answer"] = "answer"
    call: str
    values: dict[str, Any] = {}
    pictures: dict[str, str] = {}
    problem: str = ""
