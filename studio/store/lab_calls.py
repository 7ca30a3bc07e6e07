"""From a panel's settings to a call: the model, its size and the words with their LoRA are resolved as for a picture."""

from typing import Any

from studio.lab import PANELS, base_values, parse_lab
from studio.spec import parse_request
from studio.store.library import Library
from studio.tools import LabCall


def lab_call(library: Library, panel: str, values: dict[str, Any], model: str) -> LabCall:
    """Resolve what a panel is asked for.

    Args:
        library: knows the models.
        panel: key of `PANELS`.
        values: of its request; pictures as references.
        model: id of the model at hand.

    Raises:
        InvalidRequest: one sentence.
    """
    request = parse_lab(panel, values)
    job = library.job(parse_request(base_values(request) | {"model": model}), 0)
    return LabCall(panel=panel, values=request.model_dump(mode="json"), job=job, shapes=bool(library.get(model).words))


def picture_fields(panel: str) -> list[str]:
    """Return the fields of a panel that name pictures."""
    fields = PANELS[panel].request.model_fields if panel in PANELS else {}
    extras = {name: field.json_schema_extra for name, field in fields.items()}
    return [name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("kind") == "picture"]
