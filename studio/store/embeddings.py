"""Textual inversions on disk: which a request's prompts name, and what a list says of each. Headers only."""

from pathlib import Path
from typing import Any

from studio.embeddings import Naming, layout_of, names_of, sayable
from studio.errors import InvalidRequest, ModelError
from studio.parts import TEXT_WIDTHS, Part, shape_problem
from studio.prompt_syntax import spoken
from studio.spec import GenerationRequest
from studio.store.headers import PICKLES, safetensors_header, tensor_shapes

FIELDS = ("prompt", "negative_prompt")


def read_embedding(kind: str, name: str, path: Path) -> Part | None:
    """Read a file of a textual inversion."""
    if not path.is_file():
        return None
    own = names_of(name.removesuffix(path.suffix) if path.suffix.lower() in PICKLES else name)
    try:
        if not sayable(path.stem):
            raise ModelError(
                "its name has a bracket, colon or bar, which mean something else in a prompt; rename the file"
            )
        layout = layout_of(tensor_shapes(path), safetensors_header(path).get("__metadata__"))
        return Part(kind, name, path, {"text_widths": layout.widths}, names=names_of(name, layout.token))
    except ModelError as error:
        return Part(kind, name, path, {}, names=own, problem=str(error))
    except (TypeError, KeyError, IndexError) as error:
        return Part(kind, name, path, {}, names=own, problem=f"its header cannot be understood ({error})")


def embedding_rows(parts: list[Part]) -> list[dict[str, Any]]:
    """Describe embeddings, usable or not, for lists."""
    rows = []
    for part in parts:
        facts: dict[str, Any] = {"names": list(part.names), "vectors": 0}
        if not part.problem:
            facts["vectors"] = layout_of(tensor_shapes(part.path)).vectors
        fits = fits_of(part)
        rows.append({"id": part.id, "kind": part.kind, "fits": fits, **facts, "problem": part.problem})
    return rows


def fits_of(part: Part) -> str:
    """Say which models an embedding fits."""
    widths = part.shape.get("text_widths", ())
    return TEXT_WIDTHS.get(widths, "").strip(" ()") or (
        f"text encoders {' and '.join(map(str, widths))} wide" if widths else ""
    )


def named_embeddings(parts: list[Part], request: GenerationRequest, shape: dict[str, Any]) -> list[Part]:
    """Find the embeddings that a request's prompts name.

    Args:
        parts: all embeddings, usable or not.
        request: resolved.
        shape: of its model; one without `text_widths` reads no embeddings, and names are words to it.

    Raises:
        InvalidRequest: if one cannot be used or was made for another family, a name fits several, or `embedding:…` names none.
    """
    if "text_widths" not in shape:
        return []
    called: dict[str, list[Part]] = {}
    for part in parts:
        for name in part.names:
            called.setdefault(name.lower(), []).append(part)
    naming, found = Naming(called), {}
    for field in FIELDS:
        text = getattr(request, field)
        if not called and "embedding:" not in text.lower():
            continue
        said = spoken(text, request.num_inference_steps or 1, field)
        for name in naming.found(said):
            part = chosen(called[name], shape, f"{field} names the embedding {name!r}", request.model)
            found[part.id] = part
        if unknown := naming.unknown(said):
            there = ", ".join(part.id for part in parts if not part.problem) or "none"
            raise InvalidRequest(
                field, f"{field} names the embedding {unknown[0]!r}, which is not there; there is: {there}"
            )
    return list(found.values())


def chosen(parts: list[Part], shape: dict[str, Any], told: str, model: str) -> Part:
    """Return the one of several parts with the same name that fits a model.

    Raises:
        InvalidRequest: if none does, or more than one.
    """
    field = told.partition(" ")[0]
    fitting = [part for part in parts if not part.problem and not shape_problem(part, shape)]
    if len(fitting) > 1:
        raise InvalidRequest(
            field, f"{told}, which could be {' or '.join(part.id for part in fitting)}; rename one file"
        )
    if fitting:
        return fitting[0]
    if problem := parts[0].problem:
        raise InvalidRequest(field, f"{told}, which cannot be used: {problem}")
    raise InvalidRequest(
        field,
        f"{told}, which does not fit model={model!r}: {shape_problem(parts[0], shape)}; leave the word out or rename the file",
    )
