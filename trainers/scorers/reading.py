"""Read a picture of the demo model's world back into words.

`judge` knows nothing of what was asked for. It is meant for generated pictures too: edges wobble, areas are slightly noisy, a
stroke may be torn. It works at any side from 64 pixels; every length below is a fraction of the side.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from PIL import Image

from trainers.scorers.figures import COLOURS, PIXEL, SHAPES, STRIPE, Thing, fill_mask, outline, stripe_shade

# The nearest palette colours are 89 levels apart (orange, yellow), the nearest stripe and background 72 (striped pink on purple);
# `render`'s jitter takes that to 60 (20 000 draws). Below is blur, noise, and what a weak model leaves of a background.
DISTANCE = 46.0
RELATIVE = 0.3  # of the strongest distance nearby: the blur that bridges two things is no thing; the fainter of two tones has 0.38
REACH = 0.05  # what "nearby" means
SPECK = 0.004  # area of the largest component that is no thing
SLIVER = (
    0.1  # height of the largest component that may be a stripe of a thing whose other tone is lost in the background
)
TONES = 34.0  # levels between the two tones of a striped thing, as read from its rows; `stripe_shade` makes 95 to 140
HOLE = 0.035  # share of a thing that must be empty for it to be hollow
ON_GRID = 0.3  # share of edges along the pixels of pixel art, beyond what chance gives
BLURS = (0.0, 0.1, 0.2)  # standard deviations of the templates' blur, in radii
PIXEL_SIZES = range(6, 29)  # longer edges that a thing of pixel art can have, in its pixels: the world's are 8 to 24
NORMAL = 64  # side of a normalised mask

SOLID = tuple(shape for shape in SHAPES if shape != "ring")  # a ring without its hole is a circle


@dataclass(frozen=True)
class Found:
    """One thing in a picture. `x`, `y`: centre of its bounding box, `radius`: half the box's longer edge, as fractions of the side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    style: str


@dataclass(frozen=True)
class Reading:
    """What a picture shows. `things` has the largest first."""

    background: str
    things: tuple[Found, ...]


def judge(picture: np.ndarray | Image.Image) -> Reading:
    """Read a picture back.

    Args:
        picture: (H, W, 3) uint8 RGB, or a PIL picture; at least 64 pixels each way.

    Raises:
        ValueError: for an array of another shape or dtype.
    """
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < 64:
        raise ValueError(f"picture is {pixels.dtype} {pixels.shape}; use (H, W, 3) uint8 RGB of at least 64 x 64")
    side = min(pixels.shape[:2])
    edge = max(1, side // 32)
    border = np.concatenate(
        [part.reshape(-1, 3) for part in (pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:])]
    )
    background = np.median(border, axis=0)
    distance = np.sqrt(np.square(pixels - background.astype(np.float32)).sum(axis=2))  # (H, W)
    masks = sorted(_things(distance, side), key=lambda mask: -int(_filled(mask).sum()))
    return Reading(_name(background), tuple(_read(pixels, distance, mask) for mask in masks))


def _name(colour: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.linalg.norm(colour - np.array(COLOURS[name]))))


def _things(distance: np.ndarray, side: int) -> list[np.ndarray]:
    """Return one mask a thing, (H, W) uint8 of 0 and 1: the components of the foreground, the fragments of a thing joined."""
    near = cv2.dilate(distance, np.ones((2 * round(REACH * side) + 1,) * 2, np.uint8))
    foreground = (distance > np.maximum(DISTANCE, RELATIVE * near)).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=4)
    kept = [i for i in range(1, len(stats)) if stats[i, cv2.CC_STAT_AREA] > SPECK * side * side]
    groups: list[list[int]] = []
    for i in kept:
        joined = [group for group in groups if any(_of_one_thing(stats[i], stats[j], side) for j in group)]
        groups = [group for group in groups if group not in joined] + [[i, *(j for group in joined for j in group)]]
    masks = []
    for group in groups:
        mask = np.isin(labels, group).astype(np.uint8)
        level = 0.5 * np.percentile(
            distance[mask > 0], 15
        )  # half of the fainter tone: where an edge is, blurred or not
        masks.append(mask & (distance > level).astype(np.uint8))
    return masks


def _of_one_thing(a: np.ndarray, b: np.ndarray, side: int) -> bool:
    """Tell from their boxes whether two components overlap (torn strokes, rings in rings), or are stripes above one another."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a[:4], b[:4]
    across, down = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    if across > 0 and down > 0 and across * down > 0.3 * min(aw * ah, bw * bh):
        return True
    return min(ah, bh) <= SLIVER * side and across > 0.6 * min(aw, bw) and -down < 1.5 * STRIPE * side


def _filled(mask: np.ndarray) -> np.ndarray:
    """Return the mask without its holes; a torn outline is closed first if that closes much."""
    size = max(3, round(0.04 * min(mask.shape)) | 1)
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((size, size), np.uint8))
    plain, mended = (_without_holes(each) for each in (mask, closed))
    return mended if mended.sum() > 1.3 * plain.sum() else plain


def _without_holes(mask: np.ndarray) -> np.ndarray:
    contours = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)


def _read(pixels: np.ndarray, distance: np.ndarray, mask: np.ndarray) -> Found:
    side = min(mask.shape)
    x, y, width, height = cv2.boundingRect(mask)
    box = np.s_[y : y + height, x : x + width]
    colour, striped = _paint(pixels[box], mask[box], side)
    filled = _filled(mask)[box]
    hollow = 1 - mask[box].sum() / filled.sum() > HOLE
    block = round(side * PIXEL / 128)
    gridded = _on_grid(mask, block)
    shape = _solid_shape(filled, block if gridded else 0)
    if hollow and shape == "circle":
        is_ring, hollow = _ring(mask[box], filled, distance[box])
        shape = "ring" if is_ring else shape
    style = "striped" if striped else "outline" if hollow else "pixel art" if gridded else "flat"
    return Found(
        colour,
        shape,
        (x + width / 2) / mask.shape[1],
        (y + height / 2) / mask.shape[0],
        max(width, height) / 2 / side,
        style,
    )


def _paint(pixels: np.ndarray, mask: np.ndarray, side: int) -> tuple[str, bool]:
    """Return a thing's colour, and whether it is striped: whether the means of its rows swing with the stripes' period.

    The phase is free: a denoiser may draw its stripes elsewhere than the renderer does.
    """
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    core = depth > min(0.55 * float(depth.max()), 0.02 * side)
    rows = np.flatnonzero(core.any(axis=1))
    means = (pixels * core[:, :, None]).sum(axis=1)[rows] / core.sum(axis=1)[rows, None]  # (rows, 3)
    offsets = means - means.mean(axis=0)
    swing = np.exp(2j * np.pi * rows / (2 * STRIPE * side)) @ offsets / len(rows)
    if np.pi * np.linalg.norm(swing) < TONES:  # a square wave of height d has a first harmonic of d / pi
        return _name(np.median(pixels[core], axis=0)), False
    along = offsets @ np.linalg.svd(offsets, full_matrices=False)[2][0]
    upper = along > np.percentile(along, (10, 90)).mean()
    tones = np.median(means[upper], axis=0), np.median(means[~upper], axis=0)
    return min(COLOURS, key=lambda name: min(_mismatch(name, *tones), _mismatch(name, *tones[::-1]))), True


def _mismatch(name: str, paint: np.ndarray, shade: np.ndarray) -> float:
    colour = np.array(COLOURS[name])
    return float(np.linalg.norm(paint - colour) + np.linalg.norm(shade - stripe_shade(colour)))


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    x, y, width, height = cv2.boundingRect(mask)
    return np.s_[y : y + height, x : x + width]


def _normalised(mask: np.ndarray) -> np.ndarray:
    """Return a mask moved and scaled so that its centroid is the centre and its area a quarter, (NORMAL, NORMAL) float.

    Centroid and area hardly feel a bump or a blunt tip, which would move a bounding box.
    """
    moments = cv2.moments(mask, binaryImage=True)
    scale = NORMAL / 2 / moments["m00"] ** 0.5
    shift = [NORMAL / 2 - 0.5 - scale * moments[key] / moments["m00"] for key in ("m10", "m01")]
    return cv2.warpAffine(
        mask.astype(np.float32),
        np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]),
        (NORMAL, NORMAL),
        flags=cv2.INTER_LINEAR,
    )


def _boxed(values: np.ndarray) -> np.ndarray:
    return cv2.resize(values.astype(np.float32), (NORMAL, NORMAL), interpolation=cv2.INTER_AREA)


def _fitted(mask: np.ndarray, height: int, width: int, room: int) -> np.ndarray:
    """Return a mask shrunk to height x width in the corner of a (room, room) canvas."""
    small = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, 0, room - height, 0, room - width, cv2.BORDER_CONSTANT, value=0)


@cache
def _templates() -> tuple[np.ndarray, tuple[str, ...]]:
    """Return `SOLID` as normalised masks, sharp and as blur rounds them, ((N, NORMAL, NORMAL), their N names)."""
    side = 256
    made = []
    for shape in SOLID:
        mask = fill_mask(Thing("", shape, 0.5, 0.5, 0.3), side)
        for blur in BLURS:
            soft = cv2.GaussianBlur(mask, (0, 0), blur * 0.3 * side) if blur else mask
            made.append((_normalised((soft > 127).astype(np.uint8)), shape))
    return np.stack([template for template, _ in made]), tuple(shape for _, shape in made)


@cache
def _pixel_templates(edge: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return `SOLID` as pixel art whose longer edge has `edge` pixels, ((N, edge, edge), their N names).

    A thing of ten pixels looks quite different from one place to the next: each shape is drawn at several places and radii.
    """
    canvas = edge + 4
    found: dict[bytes, tuple[np.ndarray, str]] = {}
    for shape in SOLID:
        for radius in np.arange(edge / 2 - 0.75, edge / 2 + 1.3, 0.25) / (frame_of(shape)[2] * canvas):
            for place in range(25):
                x, y = (0.5 + step / 5 / canvas for step in divmod(place, 5))
                coverage = cv2.resize(
                    fill_mask(Thing("", shape, x, y, float(radius)), 8 * canvas),
                    (canvas, canvas),
                    interpolation=cv2.INTER_AREA,
                )
                mask = (coverage > 127).astype(np.uint8)
                height, width = mask[_box(mask)].shape
                if max(height, width) == edge:
                    template = _fitted(mask[_box(mask)], height, width, edge)
                    found.setdefault(template.tobytes(), (template, shape))
    return np.stack([template for template, _ in found.values()]), tuple(shape for _, shape in found.values())


def _solid_shape(filled: np.ndarray, block: int) -> str:
    """Return which of `SOLID` a box without holes is most like. `block`: the side of a pixel of pixel art, 0 elsewhere."""
    height, width = (max(1, round(edge / block)) for edge in filled.shape) if block else filled.shape
    if block and max(height, width) in PIXEL_SIZES:
        own, (templates, names) = (
            _fitted(filled, height, width, max(height, width)),
            _pixel_templates(max(height, width)),
        )
    else:
        own, (templates, names) = _normalised(filled), _templates()
    overlap = np.minimum(templates, own).sum(axis=(1, 2)) / np.maximum(templates, own).sum(axis=(1, 2))
    return names[int(overlap.argmax())]


def _ring(mask: np.ndarray, filled: np.ndarray, distance: np.ndarray) -> tuple[bool, bool]:
    """Tell whether a hollow disc is a ring, and whether it is an outline. Arguments: what `_box` cuts out.

    A ring has paint just outside 0.55 of its radius, where the stroke of a drawn circle never reaches (0.72 of the smallest
    radius); an outlined ring has less of it half-way through its band.
    """
    across = (np.arange(NORMAL) + 0.5) / NORMAL * 2 - 1
    reach = np.hypot(across, across[:, None])
    if _boxed(mask)[(reach > 0.57) & (reach < 0.67)].mean() < 0.5:
        return False, True
    strength = _boxed(distance)
    full = float(np.percentile(strength[_boxed(filled) > 0.5], 90))
    return True, float(np.median(strength[(reach > 0.74) & (reach < 0.8)])) < 0.7 * full


def _on_grid(mask: np.ndarray, block: int) -> bool:
    """Tell whether the edges run along the pixels of pixel art; elsewhere one edge in `block` does so by chance."""
    across, down = np.nonzero(mask[:, 1:] != mask[:, :-1])[1] + 1, np.nonzero(mask[1:] != mask[:-1])[0] + 1
    edges = np.concatenate([across, down])
    return bool(np.count_nonzero(edges % block == 0) > (1 / block + ON_GRID) * len(edges))


@cache
def frame_of(shape: str) -> tuple[float, float, float]:
    """Return where the box of a shape of radius 1 at the origin lies: its centre and half its longer edge."""
    low, high = outline(shape).min(axis=0), outline(shape).max(axis=0)
    x, y = (low + high) / 2
    return float(x), float(y), float((high - low).max() / 2)
