"""Hold what a picture shows against a scene: what of its caption is true."""

import numpy as np
from PIL import Image

from benchmarks.shapes.world import SIZES, Scene
from trainers.scorers.reading import Found, Reading, frame_of, judge

NARROW_RING = 0.215  # an outlined ring of this radius or less has no visible gap between its two strokes: it looks flat
OFF_CENTRE = 0.04  # displacement of a centre that counts as a position


def shown(picture: np.ndarray | Image.Image, scene: Scene) -> dict[str, bool]:
    """Read a picture and return its `verdict`."""
    return verdict(judge(picture), scene)


def verdict(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Hold a reading against the facts of a scene's caption.

    Returns:
        For each fact that the caption says, whether the picture shows it: `background`, `colour` and `shape` (of every thing asked
        for; of the largest ones if there are more), `count` (exactly that many things), and where said `size`, `position`, `order`
        (of a pair) and `style`.
    """
    wanted = scene.things
    things = reading.things[: len(wanted)]
    complete = len(things) == len(wanted)
    exact = len(reading.things) == len(wanted)
    axis = 1 if scene.relation == "above" else 0
    if scene.kind == "pair":
        things = tuple(sorted(things, key=lambda found: (found.x, found.y)[axis]))
    pairs = tuple(zip(things, wanted, strict=False))
    result = {
        "background": reading.background == scene.background,
        "colour": complete and all(found.colour == thing.colour for found, thing in pairs),
        "shape": complete and all(found.shape == thing.shape for found, thing in pairs),
        "count": exact,
    }
    if scene.size:
        result["size"] = complete and _size(things[0]) == scene.size
    if scene.position:
        result["position"] = complete and _position(things[0]) == scene.position
    if scene.kind == "pair":
        result["order"] = result["colour"] and exact and _apart(things[0], things[1], axis)
    if scene.style != "flat":
        result["style"] = complete and all(_has_style(found, scene.style) for found in things)
    return result


def _size(found: Found) -> str:
    radius = found.radius / frame_of(found.shape)[2]
    return min(SIZES, key=lambda name: abs(SIZES[name] - radius))


def _position(found: Found) -> str:
    x, y, half = frame_of(found.shape)
    radius = found.radius / half
    right, down = found.x - x * radius - 0.5, found.y - y * radius - 0.5
    if max(abs(right), abs(down)) <= OFF_CENTRE:
        return ""
    if abs(right) > abs(down):
        return "on the right" if right > 0 else "on the left"
    return "at the bottom" if down > 0 else "at the top"


def _apart(first: Found, second: Found, axis: int) -> bool:
    steps = second.x - first.x, second.y - first.y
    return steps[axis] > abs(steps[1 - axis])


def _has_style(found: Found, style: str) -> bool:
    narrow = found.shape == "ring" and found.radius <= NARROW_RING
    return found.style == style or (style == "outline" and narrow and found.style == "flat")
