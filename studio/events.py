"""What happens while work is done: one union, one JSON line each, for generation and training alike."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from studio.fields import Frozen
from studio.records import ImageRecord

Stop = Literal["", "interrupt", "skip"]  # what a running job may be asked


class Place(Frozen):
    """A device of this machine: its name for `--device`, its title, and its memory in bytes, which a CPU shares with everybody."""

    name: str
    title: str
    memory: int | None = None


class Ready(Frozen):
    """The process that computes is up, on `device`, one of `places` by the name `place`; `problem` says why it cannot be used."""

    type: Literal["ready"] = "ready"
    device: str
    place: str = ""
    places: tuple[Place, ...] = ()
    memory_free: int | None = None
    memory_total: int | None = None
    problem: str = ""


class Queued(Frozen):
    type: Literal["queued"] = "queued"
    job: str


class Started(Frozen):
    """Work on a job began; `note` says what it is doing before the first step (loading a model)."""

    type: Literal["started"] = "started"
    job: str
    note: str = ""


class Progress(Frozen):
    """Step `step` of `steps` of picture group starting at `image` (0-based) of `images`; `seconds_left` for the whole job."""

    type: Literal["progress"] = "progress"
    job: str
    image: int
    images: int
    step: int
    steps: int
    seconds_left: float | None = None


class Preview(Frozen):
    """An approximation of the picture so far lies at `path`, until two more were made."""

    type: Literal["preview"] = "preview"
    job: str
    step: int
    path: str


class Notice(Frozen):
    """What a person should know about a job that goes on all the same, in one sentence."""

    type: Literal["notice"] = "notice"
    job: str
    message: str


class Paused(Frozen):
    """A training run rests: somebody `asked` for that, or others use the device meanwhile. `Progress` tells that it goes on."""

    type: Literal["paused"] = "paused"
    job: str
    step: int
    asked: bool


class ImageReady(Frozen):
    """A picture is on disk, for good."""

    type: Literal["image"] = "image"
    job: str
    path: str
    record: ImageRecord


class Metric(Frozen):
    type: Literal["metric"] = "metric"
    job: str
    step: int
    name: str
    value: float


class Checkpoint(Frozen):
    type: Literal["checkpoint"] = "checkpoint"
    job: str
    step: int
    path: str


class Finished(Frozen):
    """The job ended; `interrupted` if a person ended it early. `images` were kept."""

    type: Literal["finished"] = "finished"
    job: str
    images: int = 0
    interrupted: bool = False


class Failed(Frozen):
    """The job ended with an error. `code` is that of a StudioError, or `bug`."""

    type: Literal["failed"] = "failed"
    job: str
    code: str
    message: str


Event = (
    Ready
    | Queued
    | Started
    | Progress
    | Preview
    | Notice
    | Paused
    | ImageReady
    | Metric
    | Checkpoint
    | Finished
    | Failed
)
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def from_line(line: str | bytes) -> Event:
    """Read an event.

    Raises:
        pydantic.ValidationError: if the line is no event.
    """
    return _ADAPTER.validate_json(line)
