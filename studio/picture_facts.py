"""What can be measured about a picture file: how it lies, what is transparent, how sharp it is, and what it resembles. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from studio.store.blobs import DECODE_ERRORS, decode, kind_of, opened
from studio.store.edits import Crop, cropped

ORIENTATION = 0x0112  # EXIF's tag
WAVES, DCT_SIDE = 8, 32
ALIKE = 0.985  # correlation of two signatures from which on two pictures show the same
LEVELS = 12.0  # of 255, by which the mean colours of pictures that show the same may differ
LOOKED_AT = 1024  # pixels of the short side at which sharpness is measured at most: what is beyond is never trained
SMOOTHING = (
    np.array([1, 4, 6, 4, 1]) / 16
)  # against noise, which looks sharp; spreads edges by a standard deviation of 1
EDGE = 6.0  # levels a pixel that the steepest places of a picture with something in it exceed
FOOT, NEAR = 9.0, 9  # squared levels a pixel that belong to an edge; pixels across that are looked at around one


@dataclass(frozen=True)
class PictureFacts:
    """One picture, measured.

    Attributes:
        size: (width, height), upright.
        turned: whether its EXIF block says that it lies or stands on its head.
        transparent: share of its area that is not opaque, 0 to 1.
        signature: low frequencies of its colours, (189,) with norm 1, or zeros for a picture of one colour.
        mean: its colour, (3,) levels.
        edge: standard deviation in pixels with which its edges are spread; 0 is a hard edge, `inf` that there is none.
        at: size of the short side, in pixels, at which `edge` was measured.
    """

    size: tuple[int, int]
    turned: bool
    transparent: float
    signature: np.ndarray
    mean: np.ndarray
    edge: float
    at: int


def measure(data: bytes, crop: Crop | None = None, side: int = 512) -> PictureFacts:
    """Measure a picture file.

    Args:
        data: its content.
        crop: left, top, right, bottom as parts of the upright picture; what is outside does not count.
        side: of the training pictures in pixels; sharpness is judged at that size, because larger pictures are made smaller.

    Raises:
        Refused: if it cannot be read; the sentence goes on after its name.
    """
    picture = decode(data)
    size = picture.size
    picture = cropped(picture, crop)
    transparent = 0.0
    if picture.mode == "RGBA":
        transparent = float((np.asarray(picture.getchannel("A")) < 255).mean())
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    at = min(*picture.size, side, LOOKED_AT)
    signature, mean = signature_of(picture)
    return PictureFacts(size, _turned(data), transparent, signature, mean, edge_spread(picture, at), at)


def signature_of(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the low frequencies of an RGB picture's colours, (189,) with norm 1, and its mean colour, (3,).

    They are those of the perceptual hash pHash (Zauner 2010, section 3.2.1), of which only the signs are kept there: on flat
    drawings many are nearly zero, and their signs are chance.
    """
    small = np.asarray(picture.resize((DCT_SIDE, DCT_SIDE), Image.Resampling.BOX), float)
    waves = np.einsum("im,jn,mnc->ijc", _cosines(), _cosines(), small).reshape(-1, 3)  # (64, 3)
    low = waves[1:].ravel()  # the first is the mean
    norm = float(np.linalg.norm(low))
    return (low / norm if norm > 1 else np.zeros_like(low)), small.mean((0, 1))


def alike(facts: Sequence[PictureFacts]) -> list[list[int]]:
    """Group the pictures that show the same: smaller, saved again, a little brighter or cut at the edges.

    Returns:
        Places of at least two pictures a group.
    """
    signatures = np.array([one.signature for one in facts], np.float32).reshape(len(facts), -1)
    means = np.array([one.mean for one in facts], np.float32).reshape(len(facts), -1)
    groups: list[list[int]] = []
    taken: set[int] = set()
    for place in range(len(facts)):
        if place in taken:
            continue
        near = np.abs(means[place + 1 :] - means[place]).max(1) <= LEVELS
        same = signatures[place + 1 :] @ signatures[place] >= ALIKE
        empty = ~signatures[place + 1 :].any(1) & ~signatures[place].any()
        found = [int(i) + place + 1 for i in np.flatnonzero(near & (same | empty)) if int(i) + place + 1 not in taken]
        if found:
            groups.append([place, *found])
            taken |= {*found}
    return groups


@cache
def _cosines() -> np.ndarray:
    """Return the first rows of the orthonormal discrete cosine transform, (8, 32)."""
    k, n = np.arange(WAVES)[:, None], np.arange(DCT_SIDE)[None]
    rows = np.cos(math.pi * k * (2 * n + 1) / (2 * DCT_SIDE)) * math.sqrt(2 / DCT_SIDE)
    rows[0] /= math.sqrt(2)
    return rows


def edge_spread(picture: Image.Image, side: int) -> float:
    """Return how far edges are spread, in pixels of a picture whose short side is `side`.

    A step that was blurred by a Gaussian of deviation s has, over all its places, a squared Laplacian that is 1 / (2 s^2) of its
    squared gradient, whatever its height: unlike the plain variance of the Laplacian, the ratio knows neither contrast nor how
    much of a picture is flat.
    """
    scale = side / min(picture.size)
    width, height = (max(8, round(length * scale)) for length in picture.size)
    grey = np.asarray(picture.convert("L").resize((width, height), Image.Resampling.LANCZOS), float)
    for _ in range(2):  # along one axis, then along the other
        rows = len(grey) - len(SMOOTHING) + 1
        grey = np.sum([weight * grey[i : rows + i] for i, weight in enumerate(SMOOTHING)], axis=0).T
    down, right = np.gradient(grey)
    steepness = down**2 + right**2
    if steepness.max() < EDGE**2:
        return math.inf
    # beside a step its gradient falls off and its Laplacian does not yet: a place counts with its surroundings
    steep = Image.fromarray(np.where(steepness > FOOT, 255, 0).astype(np.uint8))
    near = np.asarray(steep.filter(ImageFilter.MaxFilter(NEAR))) > 0
    bend = np.gradient(down, axis=0) + np.gradient(right, axis=1)
    return math.sqrt(max(0.0, float(steepness[near].sum() / (2 * (bend[near] ** 2).sum())) - 1))


def _turned(data: bytes) -> bool:
    """Whether a file, which can be decoded, is stored turned or mirrored."""
    try:
        file: Any = opened(data, kind_of(data))
        return file.getexif().get(ORIENTATION, 1) not in (0, 1)
    except (AttributeError, *DECODE_ERRORS):  # HEIC is turned by its own reader; a damaged block turns nothing
        return False
