"""Checkpoints side by side: a run's results as the axes of an X/Y/Z plot, so that one click draws them all."""

import csv
import io
import itertools
from typing import Any

from studio.embeddings import Naming
from studio.errors import InvalidRequest, StudioError
from studio.loras import LoraSpec
from studio.plots import AXES, Axis, PlotSpec, axis_labels
from studio.spec import GenerationRequest
from studio.store.run_results import Result

PROMPTS_MAX, WEIGHTS_MAX = 20, 10


def comparison(
    base: GenerationRequest,
    config: dict[str, Any],
    results: list[Result],
    prompts: list[str],
    weights: list[float],
    *,
    untouched: bool = False,
) -> PlotSpec:
    """Return the plot of checkpoint x weight x prompt; an axis of one value is left out.

    Args:
        base: everything else; its control units named as the run's output get the checkpoint.
        config: of the run.
        results: of one kind, at least one.
        prompts: as a person wrote them, with the placeholder of an embedding.
        weights: of a LoRA; 0 is the model without it.
        untouched: of a whole model, also the one that it was made from.

    Raises:
        InvalidRequest: naming what is missing or cannot be compared.
    """
    _check(results, prompts, weights)
    kind, names, word = results[0].kind, [one.name for one in results], results[0].word
    if word:
        naming = Naming([str(config["placeholder_token"])])
        prompts = ["".join(words + (word if found else "") for words, found in naming.split(text)) for text in prompts]
    changes: dict[str, Any] = {"prompt": prompts[0]}
    axes: list[tuple[str, list[str]]] = [
        ("prompt", prompts)
    ]  # first: another axis may change the prompt after it was found
    if kind == "lora":
        changes["loras"] = (LoraSpec(name=names[0], weight=weights[0]), *base.loras)
        axes += [("loras.0.weight", [f"{weight:g}" for weight in weights]), ("loras.0.name", names)]
    elif kind == "embedding":
        axes.append(("prompt", [one.word for one in results]))
    elif kind == "model":
        models = [str(config.get("model") or ""), *names] if untouched else names
        changes["model"] = models[0]
        axes.append(("model", models))
    else:
        if not base.controls:
            raise StudioError("this run has no sample with a control picture yet, which the comparison would follow")
        changes["controls"] = (base.controls[0].model_copy(update={"model": names[0]}), *base.controls[1:])
        axes.append(("controls.0.model", names))
    several = [axis for axis in axes if len(axis[1]) > 1] or axes[-1:]
    made = [Axis(field=name, values=_listed(values)) for name, values in several]
    return PlotSpec(base=base.model_copy(update=changes), **dict(zip(AXES, made, strict=False)))


def cells_shown(spec: PlotSpec, images: list[str]) -> list[dict[str, str]]:
    """Return the picture of each cell and what its axes say, for those that are there.

    Args:
        spec: of the plot.
        images: ids in the cells' order, "" of one that is missing.
    """
    labels = axis_labels(spec)
    every = itertools.product(*(labels[name] for name in reversed(AXES)))
    return [
        {"image": image, "label": " · ".join(label for label in told if label)}
        for image, told in zip(images, every, strict=True)
        if image
    ]


def _check(results: list[Result], prompts: list[str], weights: list[float]) -> None:
    if not results:
        raise InvalidRequest("steps", "steps is empty; choose at least one checkpoint")
    if not 0 < len(prompts) <= PROMPTS_MAX or not all(prompts):
        raise InvalidRequest("prompts", f"prompts must be 1 to {PROMPTS_MAX}, none of them empty")
    if not 0 < len(weights) <= WEIGHTS_MAX:
        raise InvalidRequest("weights", f"weights must be 1 to {WEIGHTS_MAX} numbers, such as 0, 0.5, 1")
    if results[0].kind == "wordless":
        raise StudioError(f"{results[0].name} draws without words, so there is nothing that a prompt could compare")
    if results[0].kind == "lora" and results[0].word and len(results) > 1:
        raise StudioError(
            "each checkpoint is a LoRA and a word of its own; choose one checkpoint, and compare its weights"
        )


def _listed(values: list[str]) -> str:
    """Write values as an axis reads them: between commas, in quotes if they have some themselves."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
