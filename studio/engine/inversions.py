"""Textual inversions at work: their vectors stand in for token embeddings while a prompt is encoded; nothing of the model changes."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from safetensors import safe_open

from studio.embeddings import Naming, layout_of, names_of
from studio.engine.pipelines import first_line
from studio.errors import ModelError
from studio.records import PartRef

Vectors = dict[str, torch.Tensor]  # the pipeline's text encoder -> (number, width)


class Inversions:
    """The vectors that a job's prompts may name. In a prompt's ids, vector i is -1 - i.

    Args:
        vectors: of each inversion.
        names: of each inversion.
    """

    def __init__(self, vectors: Sequence[Vectors] = (), names: Sequence[Sequence[str]] = ()) -> None:
        self._ids: dict[str, list[int]] = {}
        first = 0
        for one, called in zip(vectors, names, strict=True):
            number = len(next(iter(one.values())))
            self._ids |= {name.lower(): [-1 - i for i in range(first, first + number)] for name in called}
            first += number
        self._naming = Naming(self._ids)
        self._vectors = {name: torch.cat([one[name] for one in vectors]) for name in (vectors[0] if vectors else ())}

    def groups(self, tokenize: Callable[[str], list[int]], text: str) -> list[list[int]]:
        """Return the ids of a text; those of one inversion stay together."""
        found: list[list[int]] = []
        for words, name in self._naming.split(text):
            found += [[one] for one in tokenize(words)] if words else []
            found += [self._ids[name]] if name else []
        return found

    @contextlib.contextmanager
    def applied(self, pipe: Any) -> Iterator[None]:
        """Let a pipeline's text encoders read the vectors; afterwards they are as they were.

        Raises:
            ModelError: if the vectors were made for text encoders of another width.
        """
        with contextlib.ExitStack() as hooks:
            for name, vectors in self._vectors.items():
                if (encoder := getattr(pipe, name, None)) is None:  # a refiner has the second one only
                    continue
                table = encoder.get_input_embeddings()
                if vectors.shape[1] != table.weight.shape[1]:
                    sizes = f"{vectors.shape[1]} there and {table.weight.shape[1]} here"
                    raise ModelError(f"an embedding in the prompt was made for another model: its width is {sizes}")
                asked: list[torch.Tensor] = []
                hooks.callback(table.register_forward_pre_hook(partial(_before, asked)).remove)
                hooks.callback(table.register_forward_hook(partial(_after, asked, vectors)).remove)
            yield


def _before(asked: list[torch.Tensor], table: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Let the table look up something for a vector's id, which it does not know."""
    asked.append(given[0])
    return (given[0].clamp(min=0),)


def _after(
    asked: list[torch.Tensor], vectors: torch.Tensor, table: torch.nn.Module, given: Any, found: torch.Tensor
) -> torch.Tensor:
    """Put the vectors where they belong, (…, width)."""
    ids = asked.pop().to(found.device)
    chosen = vectors.to(found)[(-1 - ids).clamp(min=0)]
    return torch.where((ids < 0)[..., None], chosen, found)


def read_inversions(parts: Sequence[PartRef]) -> Inversions:
    """Read the embeddings among a job's parts.

    Raises:
        ModelError: if a file is damaged.
    """
    wanted = [part for part in parts if part.kind == "embedding"]
    read = [_read(part) for part in wanted]
    if len({tuple(vectors) for vectors, _ in read}) > 1:
        raise ModelError(
            "the embeddings in the prompt were made for different models; use those of this model's family"
        )
    return Inversions([vectors for vectors, _ in read], [names for _, names in read])


def _read(part: PartRef) -> tuple[Vectors, tuple[str, ...]]:
    """Read one file: its vectors, and what calls it."""
    try:
        with safe_open(part.path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        layout = layout_of({key: list(one.shape) for key, one in state.items()}, metadata)
    except ModelError as error:
        raise ModelError(f"embedding {part.id} cannot be used: {error}") from None
    except Exception as error:
        raise ModelError(f"embedding {part.id} could not be read: {first_line(error)}; copy it again") from error
    vectors = {encoder: state[key].reshape(layout.vectors, -1) for encoder, key in layout.keys.items()}
    if not all(one.is_floating_point() and bool(torch.isfinite(one.float()).all()) for one in vectors.values()):
        raise ModelError(f"embedding {part.id} holds what no vector is (NaN, infinite or whole numbers); copy it again")
    return vectors, names_of(part.id, layout.token)
