"""Textual inversions (Gal et al. 2022, arXiv:2208.01618) as data: what a file's header tells, and where a prompt names one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from studio.errors import ModelError

VECTORS_MAX = 75  # what fits into a chunk
PLAIN_KEYS = ("emb_params", "string_to_param.*", "*")  # A1111's, as files have them today and as converted pickles do
ENCODER_KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
FORBIDDEN = set("()[]{}:|\\\n")  # what means something else in a prompt
_PREFIXED = re.compile(r"(?<!\w)embedding:([^\s,()\[\]:|]+)", re.IGNORECASE)


class Layout(NamedTuple):
    """Where the vectors are in a file.

    Attributes:
        keys: the pipeline's text encoder -> name of the tensor.
        widths: of the vectors, for each text encoder.
        vectors: how many there are.
        token: what it was trained as and calls it in a prompt, "" if nothing but its file's name does.
    """

    keys: dict[str, str]
    widths: tuple[int, ...]
    vectors: int
    token: str = ""


def layout_of(shapes: dict[str, list[int]], metadata: Mapping[str, str] | None = None) -> Layout:
    """Read A1111's layout, diffusers' (token -> vectors) or that of SDXL.

    Args:
        shapes: of the file's tensors.
        metadata: of the file; its `placeholder_token` counts where the layout has no place for the token.

    Raises:
        ModelError: if it is none of them.
    """
    if set(shapes) & set(ENCODER_KEYS):
        if set(shapes) != set(ENCODER_KEYS):
            raise ModelError(
                f"it has {', '.join(sorted(shapes)[:4])}; an embedding of Stable Diffusion XL has clip_g and clip_l alone"
            )
        keys, token = {encoder: key for key, encoder in ENCODER_KEYS.items()}, ""
    elif len(shapes) == 1:
        (key,) = shapes
        keys, token = {"text_encoder": key}, "" if key in PLAIN_KEYS else key
    else:
        raise ModelError(f"it has {len(shapes)} tensors, as no embedding has; put the embedding's own file here")
    sides = {encoder: shapes[key] for encoder, key in keys.items()}
    if any(len(side) not in (1, 2) or 0 in side for side in sides.values()):
        raise ModelError(f"it has the shape {next(iter(sides.values()))}, as no embedding has; copy the file again")
    numbers = {1 if len(side) == 1 else side[0] for side in sides.values()}
    if len(numbers) > 1:
        raise ModelError("its two text encoders have different numbers of vectors; copy the file again")
    (number,) = numbers
    if number > VECTORS_MAX:
        raise ModelError(f"it has {number} vectors; at most {VECTORS_MAX} fit into a prompt's chunk")
    token = token or (metadata or {}).get("placeholder_token", "")
    return Layout(keys, tuple(side[-1] for side in sides.values()), number, token if sayable(token) else "")


def sayable(name: str) -> bool:
    """Whether a prompt can say a name."""
    return bool(name.strip()) and not FORBIDDEN & set(name)


def names_of(part_id: str, token: str = "") -> tuple[str, ...]:
    """Return what calls an embedding in a prompt: its file's name, with and without its folder, and its token."""
    return tuple(dict.fromkeys(filter(None, (part_id.rpartition("/")[2], part_id, token))))


class Naming:
    """Finds names in a text as whole words, in any case, the longest first; ComfyUI's `embedding:name` too.

    Args:
        names: to look for.
    """

    def __init__(self, names: Iterable[str]) -> None:
        known = sorted({name.lower() for name in names}, key=len, reverse=True)
        words = "|".join(map(re.escape, known))
        self._pattern = re.compile(rf"(?<!\w)(?:embedding:)?({words})(?!\w)", re.IGNORECASE) if known else None

    def split(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield (words, name that follows them, "" at the end)."""
        place = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            yield text[place : found.start()], found[1].lower()
            place = found.end()
        yield text[place:], ""

    def found(self, texts: Iterable[str]) -> list[str]:
        """Return the names that texts say, each once."""
        return list(dict.fromkeys(name for text in texts for _, name in self.split(text) if name))

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """Return what texts say after `embedding:` that is no name, each once."""
        rest = "\n".join("".join(words + "\n" for words, _ in self.split(text)) for text in texts)
        return list(dict.fromkeys(_PREFIXED.findall(rest)))
