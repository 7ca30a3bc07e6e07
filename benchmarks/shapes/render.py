"""Draw the scenes of `world.py`: polygons at three times the size, area-averaged, so that edges are smooth."""

import random

import cv2
import numpy as np

from benchmarks.shapes.world import COLOURS, Scene
from trainers.scorers.figures import PIXEL, STRIPE, fill_mask, stripe_shade

SUPERSAMPLING = 3
STROKE = 0.042  # outline width, as a fraction of the side
JITTER = 6  # +- levels on each colour channel


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
