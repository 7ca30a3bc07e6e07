"""What Gradio's picture editor holds: a picture, and what was painted over it."""

from typing import Any

import numpy as np
from PIL import Image


def start_of(editor: dict[str, Any] | None) -> Image.Image | None:
    """Return the picture that the editor holds, None if it holds nothing at all."""
    image = editor.get("background") if editor else None
    return None if image is None or empty(image) else image


def background(image: Image.Image) -> dict[str, Any]:
    return {"background": image, "layers": [], "composite": None}


def empty(image: Image.Image) -> bool:
    """Whether an editor's canvas holds nothing at all."""
    return image.mode == "RGBA" and image.getchannel("A").getextrema()[1] == 0


def strokes(layers: list[Image.Image], size: tuple[int, int]) -> Image.Image | None:
    """Return what was painted on any layer as a mask, white where it was; None if nothing was."""
    painted = np.zeros((size[1], size[0]), np.uint8)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        painted = np.maximum(painted, np.asarray(alpha if alpha.size == size else alpha.resize(size)))
    return Image.fromarray(np.where(painted > 0, np.uint8(255), np.uint8(0))) if painted.any() else None
