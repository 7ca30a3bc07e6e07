"""One folder of pictures among those that a run learns from. No torch."""

from typing import Annotated

from studio.fields import Frozen, control


class Concept(Frozen):
    """Pictures of one thing among several that a run teaches.

    Attributes:
        dataset: folder, or name in the data root.
        instance_prompt: caption of pictures that have none.
        repeats: how often an epoch shows each.
    """

    dataset: Annotated[str, control("Folder", "data", "Folder of pictures, or its name.", max_length=1000)]
    instance_prompt: Annotated[
        str, control("Instance prompt", "data", "Caption of pictures without one.", max_length=2000)
    ] = ""
    repeats: Annotated[int, control("Repeats", "data", "How often an epoch shows each.", ge=1, le=10_000)] = 1
