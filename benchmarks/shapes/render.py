"""Draw the scenes of `world.py`: polygons at three times the size, area-averaged, so that edges are smooth."""

import random
from functools import cache

import cv2
import numpy as np

from benchmarks.shapes.world import COLOURS, Scene, Thing

SUPERSAMPLING = 3
SHIFT = 4  # fixed-point bits of cv2's sub-pixel coordinates
STROKE = 0.042  # outline width, as a fraction of the side
STRIPE = 0.0625  # height of one stripe
PIXEL = 4  # side of a "pixel art" pixel in a 128 px picture
JITTER = 6  # +- levels on each colour channel


@cache
def outline(shape: str) -> np.ndarray:
    """Return a shape's outline, (N, 2) float in [-1, 1], y down. A ring has the outline of a circle."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if shape in ("circle", "ring"):
        return np.stack([np.cos(turn), np.sin(turn)], axis=1)
    if shape == "square":
        return 0.88 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    if shape == "triangle":
        return np.array([(0, -0.92), (1, 0.84), (-1, 0.84)])
    if shape == "diamond":
        return np.array([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    if shape == "cross":
        arm = 0.36
        return np.array(
            [
                (-arm, -1),
                (arm, -1),
                (arm, -arm),
                (1, -arm),
                (1, arm),
                (arm, arm),
                (arm, 1),
                (-arm, 1),
                (-arm, arm),
                (-1, arm),
                (-1, -arm),
                (-arm, -arm),
            ]
        )
    if shape == "star":
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)[:, None]
        return reach * np.stack([np.cos(angle), np.sin(angle)], axis=1) + (0, 0.06)
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return np.stack([x / 16, (y - 2.5) / 14.5], axis=1)
    raise ValueError(f"shape={shape!r} is not a shape of this world")


def fill_mask(thing: Thing, side: int) -> np.ndarray:
    """Return where a thing is, (side, side) uint8 of 0 and 255, without anti-aliasing."""
    mask = np.zeros((side, side), np.uint8)
    centre = np.array([thing.x, thing.y])
    points = (centre + thing.radius * outline(thing.shape)) * side
    cv2.fillPoly(mask, [_fixed(points)], 255, shift=SHIFT)
    if thing.shape == "ring":
        inner = (centre + 0.55 * thing.radius * outline("circle")) * side
        cv2.fillPoly(mask, [_fixed(inner)], 0, shift=SHIFT)
    return mask


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round((points - 0.5) * (1 << SHIFT)).astype(np.int32)


def render(scene: Scene, rng: random.Random, side: int = 128) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: what to draw.
        rng: jitters each colour by at most `JITTER` levels a channel.
        side: width and height in pixels, a multiple of 32.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    large = side * SUPERSAMPLING
    canvas = np.empty((large, large, 3), np.uint8)
    canvas[:] = _jittered(scene.background, rng)
    for thing in scene.things:
        paint = _jittered(thing.colour, rng)
        if scene.style == "pixel art":
            small = cv2.resize(fill_mask(thing, large), (128 // PIXEL,) * 2, interpolation=cv2.INTER_AREA)
            mask = cv2.resize(
                np.where(small > 127, 255, 0).astype(np.uint8), (large, large), interpolation=cv2.INTER_NEAREST
            )
        else:
            mask = fill_mask(thing, large)
        if scene.style == "outline":
            mask[cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_5) > STROKE * large] = 0
        if scene.style == "striped":
            dark = (np.arange(large) // int(STRIPE * large)) % 2 == 1
            canvas[(mask > 0) & dark[:, None]] = stripe_shade(paint)
            mask[dark] = 0
        canvas[mask > 0] = paint
    return cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)


def stripe_shade(paint: np.ndarray) -> np.ndarray:
    """Return the second tone of a striped thing: darker for light paints, lighter for dark ones."""
    towards = 0 if paint @ (0.299, 0.587, 0.114) > 130 else 255
    return (paint * 0.62 + towards * 0.38).astype(np.uint8)


def _jittered(colour: str, rng: random.Random) -> np.ndarray:
    return np.clip([value + rng.randint(-JITTER, JITTER) for value in COLOURS[colour]], 0, 255).astype(np.uint8)


def render_doodle(rng: random.Random, side: int = 128) -> np.ndarray:
    """Draw what is *not* of this world (gradients, lines, ellipses, letters): the autoencoder must carry users' own pictures.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    corners = np.array([[[rng.randint(0, 255) for _ in range(3)] for _ in range(2)] for _ in range(2)], np.float32)
    flat = rng.random() < 0.4
    canvas = np.clip(
        cv2.resize(corners[:1, :1] if flat else corners, (side, side), interpolation=cv2.INTER_LINEAR), 0, 255
    ).astype(np.uint8)

    def point() -> tuple[int, int]:
        return rng.randint(0, side), rng.randint(0, side)

    for _ in range(rng.randint(1, 6)):
        paint = tuple(rng.randint(0, 255) for _ in range(3))
        kind = rng.randrange(4)
        if kind == 0:
            axes = rng.randint(side // 16, side // 3), rng.randint(side // 16, side // 3)
            cv2.ellipse(canvas, point(), axes, rng.uniform(0, 360), 0, 360, paint, -1, cv2.LINE_AA)
        elif kind == 1:
            cv2.line(canvas, point(), point(), paint, rng.randint(2, side // 16), cv2.LINE_AA)
        elif kind == 2:
            cv2.putText(
                canvas,
                chr(rng.randint(65, 90)),
                point(),
                cv2.FONT_HERSHEY_DUPLEX,
                side / rng.uniform(30, 90),
                paint,
                rng.randint(2, 5),
                cv2.LINE_AA,
            )
        else:
            cv2.fillPoly(canvas, [np.array([point() for _ in range(rng.randint(3, 6))], np.int32)], paint, cv2.LINE_AA)
    return canvas
