"""Training pictures as tensors: read, fitted, encoded once into memory-mapped shards, and put together for a step."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save

from studio.engine.canvas import flatten, mask_of
from studio.errors import InvalidRequest
from studio.store import writer
from studio.store.blobs import Refused, decode, read_file
from studio.store.datasets import Example
from studio.store.edits import cropped
from trainers.denoisers import Frame, Told
from trainers.plan import CROPS, Draw

SHARD = 64  # entries in a file


@dataclass(frozen=True)
class Shown:
    """One picture at one size, cut and mirrored in one way."""

    example: Example
    size: tuple[int, int]
    crop: int
    flip: bool

    @property
    def key(self) -> str:
        """What decides its pixels."""
        by_hand = [self.example.crop] if self.example.crop else []
        return json.dumps([self.example.sha256, self.size, self.crop, self.flip, *by_hand])


@dataclass
class Batch:
    """What a step's micro-batch is on one process.

    Attributes:
        latents: (B, C, h, w), without the scaling of the model.
        noise: likewise, standard normal.
        quantiles: (B,), where between no noise and all of it.
        told: what the text encoders say; empty if they are trained, which then read `captions`.
        captions: as they are shown, "" where words are dropped.
        frames: where each picture comes from.
        mask: (B, 1, h, w), 1 counts; None if all does.
        draws: as planned.
        conditioning: (B, 3, H, W) in 0..1, what a ControlNet sees.
        beside: pictures that are shown at the same time and judged on their own: DreamBooth's class images.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    quantiles: torch.Tensor
    told: Told
    captions: list[str]
    frames: list[Frame]
    mask: torch.Tensor | None
    draws: list[Draw]
    conditioning: torch.Tensor | None = None
    beside: "Batch | None" = None


def fitted(picture: Image.Image, shown: Shown) -> Image.Image:
    """Scale a picture so that it covers its size, cut what is over, and mirror it."""
    inner_width, inner_height, left, top = framed(picture.size, shown)
    inner, (width, height) = (inner_width, inner_height), shown.size
    scaled = picture.resize(inner, Image.Resampling.LANCZOS) if inner != picture.size else picture
    cut = scaled.crop((left, top, left + width, top + height))
    return ImageOps.mirror(cut) if shown.flip else cut


def framed(size: tuple[int, int], shown: Shown) -> Frame:
    """Return how a picture of (width, height) is scaled to cover what is shown, and what is cut off."""
    width, height = shown.size
    scale = max(width / size[0], height / size[1])
    inner = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
    part = CROPS[shown.crop]
    return Frame(*inner, round((inner[0] - width) * part), round((inner[1] - height) * part))


def opened(path: Path) -> Image.Image:
    """Read a picture that was there when the run began.

    Raises:
        InvalidRequest: if it is not any more, or was changed into something else.
    """
    try:
        return decode(read_file(path))
    except Refused as refusal:
        why = str(refusal) if path.exists() else "was removed"
        raise InvalidRequest(
            "dataset", f"{path} {why} while the run needs it; put the dataset back as it was, then go on with the run"
        ) from None


def picture_of(shown: Shown) -> np.ndarray:
    """Read a picture as it is shown, (H, W, 3) uint8; transparent parts become white."""
    picture = Image.fromarray(flatten(opened(shown.example.path)))
    return np.array(fitted(cropped(picture, shown.example.crop), shown))


def pixels_of(shown: Shown) -> torch.Tensor:
    """Read a picture, (3, H, W) in -1..1; transparent parts become white."""
    return torch.from_numpy(picture_of(shown)).permute(2, 0, 1).float() / 127.5 - 1


def mask_pixels(shown: Shown, cell: int) -> torch.Tensor:
    """Read a picture's mask, (1, h, w) in 0..1, a number for each latent; all ones without a mask."""
    width, height = (side // cell for side in shown.size)
    if shown.example.mask is None:
        return torch.ones(1, height, width)
    mask = cropped(Image.fromarray(mask_of(opened(shown.example.mask))), shown.example.crop)
    small = fitted(mask.resize(shown.example.size), shown).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small))[None].float() / 255


def conditioning_pixels(shown: Shown) -> torch.Tensor:
    """Read what a ControlNet sees for a picture, (3, H, W) in 0..1."""
    assert shown.example.conditioning is not None
    picture = cropped(Image.fromarray(flatten(opened(shown.example.conditioning))), shown.example.crop)
    array = np.array(fitted(picture.resize(shown.example.size), shown))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


class Cache:
    """Tensors on disk, a few to a file, found by what they were made of.

    Args:
        folder: of the files; it may be deleted at any time between runs.
        kind: begins the files' names.
        recipe: what else decides the content: model, number format ….
    """

    def __init__(self, folder: Path, kind: str, recipe: str) -> None:
        self._folder, self._kind, self._recipe = folder, kind, recipe
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, Any] = {}

    def fill(
        self, keys: Sequence[str], make: Callable[[Sequence[int]], Iterator[dict[str, torch.Tensor]]], write: bool
    ) -> None:
        """Make what is missing.

        Args:
            keys: of all entries.
            make: yields the tensors of the entries with these places in `keys`.
            write: False in processes that let another one write.
        """
        for start in range(0, len(keys), SHARD):
            chosen = range(start, min(start + SHARD, len(keys)))
            told = json.dumps([self._recipe, *(keys[i] for i in chosen)])
            path = self._folder / f"{self._kind}-{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
            if write and not path.is_file():
                tensors = {}
                for place, entry in enumerate(make(chosen)):
                    tensors |= {f"{place}.{name}": one.detach().cpu().contiguous() for name, one in entry.items()}
                writer.write_file(path, save(tensors))
            for place, i in enumerate(chosen):
                self._places[keys[i]] = path, place

    def get(self, key: str, name: str) -> torch.Tensor:
        """Read one tensor."""
        path, place = self._places[key]
        return self._file(path).get_tensor(f"{place}.{name}")

    def names(self, key: str) -> list[str]:
        """List the tensors of an entry."""
        path, place = self._places[key]
        start = f"{place}."
        return [name.removeprefix(start) for name in self._file(path).keys() if name.startswith(start)]  # noqa: SIM118

    def shape(self, key: str, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        path, place = self._places[key]
        return tuple(self._file(path).get_slice(f"{place}.{name}").get_shape())

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        return self._open[path]


@torch.no_grad()
def encode_pixels(vae: Any, pictures: Iterable[torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Encode pictures, (3, H, W) each: mean and standard deviation of the latents, (C, h, w) each, in float32."""
    for picture in pictures:
        found = vae.encode(picture[None].to(vae.device, vae.dtype)).latent_dist
        yield {"mean": found.mean[0].float(), "std": found.std[0].float()}


def noises(draws: Sequence[Draw], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw what is random about pictures, each by its own seed: for the latents and for the noise (B, *shape), for offsets (B, C)."""
    rows: list[list[torch.Tensor]] = [[], [], []]
    for draw in draws:
        generator = torch.Generator().manual_seed(draw.seed)
        for row, wanted in zip(rows, (shape, shape, shape[:1]), strict=True):
            row.append(torch.randn(wanted, generator=generator))
    posterior, noise, offsets = (torch.stack(row) for row in rows)
    return posterior, noise, offsets
