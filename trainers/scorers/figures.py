"""What the world of the demo model is made of: its colours, its shapes, and where in a picture a shape is."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 45),
    "green": (35, 155, 60),
    "cyan": (60, 210, 220),
    "blue": (40, 70, 215),
    "purple": (125, 45, 165),
    "pink": (250, 150, 195),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
SHIFT = 4  # fixed-point bits of cv2's sub-pixel coordinates
STRIPE = 0.0625  # height of one stripe
PIXEL = 4  # side of a "pixel art" pixel in a 128 px picture


@dataclass(frozen=True)
class Thing:
    """One coloured shape. `x`, `y`: centre, `radius`: half extent, all as fractions of the side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


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


def stripe_shade(paint: np.ndarray) -> np.ndarray:
    """Return the second tone of a striped thing: darker for light paints, lighter for dark ones."""
    towards = 0 if paint @ (0.299, 0.587, 0.114) > 130 else 255
    return (paint * 0.62 + towards * 0.38).astype(np.uint8)
