"""What can be taught to which models: one table, by which the page greys out and the trainers refuse. No torch."""

from collections.abc import Mapping
from typing import Any

from studio.families import FAMILIES
from studio.store.models import Model

UNETS = ("sd1", "sd2", "sdxl")
DENOISERS = (*UNETS, "sd3", "flux", "flux2-klein", "z-image")
DISTILLED = "distilled"  # the kind of models that draw in few steps; learning on one works, and is warned about
# Method -> families that it can teach; a method that is not named has no model to begin with.
TAUGHT: dict[str, tuple[str, ...]] = {
    "lora": DENOISERS,
    "dreambooth": DENOISERS,
    "full": DENOISERS,
    "textual-inversion": UNETS,
    "controlnet": UNETS,
}
_WHY = {"controlnet": "whose ControlNets cannot be trained", "textual-inversion": "for which no embeddings are made"}


def whole_model(method: str, values: Mapping[str, Any]) -> bool:
    """Say whether the model's own weights learn, and not something beside them."""
    return method == "full" or (method == "dreambooth" and values.get("train_weights") == "full")


def training_problem(method: str, model: Model, *, whole: bool = False) -> str:
    """Say why a method cannot teach a model, as one sentence about the field `model`; "" if it can.

    Args:
        method: as on the command line.
        model: of the library.
        whole: whether its own weights learn, see `whole_model`.
    """
    if method not in TAUGHT:
        return ""
    if model.problem:
        return f"model={model.id!r} cannot be used: {model.problem}"
    if model.family not in TAUGHT[method]:
        titles = [FAMILIES[name].title for name in TAUGHT[method]]
        why = _WHY.get(method, "which cannot be trained yet")
        return (
            f"model={model.id!r} is of the family {FAMILIES[model.family].title}, {why}; "
            f"choose {', '.join(titles[:-1])} or {titles[-1]}"
        )
    if model.kind not in ("", DISTILLED):
        return f"model={model.id!r} is of the kind {model.kind}, which is not trained; choose another"
    if model.quantised:
        return f"model={model.id!r} is GGUF, whose weights learn nothing here; train on the model's diffusers folder"
    if whole and model.single:
        return f"model={model.id!r} is a single file; all weights learn only in a diffusers folder; train a LoRA"
    return ""
