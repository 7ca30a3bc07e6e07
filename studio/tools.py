"""Tools: small things that the process which draws does besides jobs: a preprocessor's preview, a check of an autoencoder, the Lab.

A call is answered once, between two jobs. Its pictures lie in the cache for a while; nothing of it is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from studio.fields import Frozen
from studio.records import Job, ModelRef, PartRef
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


class LabCall(Frozen):
    """Let a panel of the Lab work on a model; `values` of the answer are `studio.lab.Findings`.

    Attributes:
        panel: key of `studio.lab.PANELS`.
        values: of its request; pictures as references.
        job: resolved: the model, its size, the words with their LoRA.
        shapes: whether the model draws the demo model's world, which the judge of shapes can read.
    """

    tool: Literal["lab"] = "lab"
    panel: str
    values: dict[str, Any]
    job: Job
    shapes: bool = False


ToolCall = Annotated[PreprocessCall | VaeCheckCall | CutoutCall | LabCall, Field(discriminator="tool")]


class ToolProgress(Frozen):
    """How far a long call is: `step` of `steps`."""

    type: Literal["tool_progress"] = "tool_progress"
    call: str
    step: int
    steps: int


@dataclass(frozen=True)
class ToolWatch:
    """Who hears of a long call's steps, (step, steps), and may end it."""

    told: Callable[[int, int], None] = lambda step, steps: None
    stopped: Callable[[], bool] = lambda: False


NOBODY = ToolWatch()


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
