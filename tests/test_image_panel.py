"""The Image accordion's own handlers: what becomes of pictures and masks before a request is made of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from studio.errors import InvalidRequest
from studio.spec import parse_request
from studio.store.blobs import BlobStore
from studio.store.inputs import canvas_size
from studio.ui.editor import background
from studio.ui.image_panel import ImagePanel

SIDE = 64


@pytest.fixture
def panel(blobs: BlobStore) -> ImagePanel:
    return ImagePanel(SimpleNamespace(gallery=SimpleNamespace(blobs=blobs)), ())  # type: ignore[arg-type]


@pytest.fixture
def clear(tmp_path: Path) -> str:
    """A mask that is white all over, and seen on its left half only."""
    mask = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, SIDE // 2, SIDE))
    mask.save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


def test_a_file_is_opened_and_gives_its_size(panel: ImagePanel, tmp_path: Path) -> None:
    Image.new("RGB", (300, 100), "red").save(tmp_path / "wide.png")
    held, mask, width, height, *sides = panel.open(str(tmp_path / "wide.png"))
    assert (held["background"].size, mask, width, height, set(sides)) == ((300, 100), None, 304, 96, {0})
    assert panel.size(held) == [304, 96]
    (tmp_path / "no.png").write_text("hello")
    for wrong in (lambda: panel.open(str(tmp_path / "no.png")), lambda: panel.size(None)):
        with pytest.raises(gr.Error):
            wrong()


def test_what_a_mask_hides_is_not_repainted_with_what_is_painted(
    panel: ImagePanel, blobs: BlobStore, clear: str
) -> None:
    editor: dict[str, Any] = background(Image.new("RGBA", (SIDE, SIDE), "red"))
    stroke = Image.new("RGBA", (SIDE, SIDE))
    stroke.paste((255, 0, 0, 255), (SIDE - 8, 0, SIDE, 8))
    fields = panel.taken(editor | {"layers": [stroke]}, clear)
    mask = np.asarray(blobs.open(fields["mask_image"], "mask_image").convert("L"))
    wanted = np.zeros((SIDE, SIDE), np.uint8)
    wanted[:, : SIDE // 2] = wanted[:8, -8:] = 255
    assert np.array_equal(mask, wanted)


def test_a_mask_that_hides_all_of_itself_is_empty(blobs: BlobStore, tmp_path: Path) -> None:
    paths = {}
    for name, colour in (("image", (255, 0, 0, 255)), ("mask_image", (255, 255, 255, 0))):
        Image.new("RGBA", (SIDE, SIDE), colour).save(tmp_path / f"{name}.png")
        paths[name] = blobs.add(tmp_path / f"{name}.png", name)
    with pytest.raises(InvalidRequest, match="mask_image is empty"):
        canvas_size(parse_request(paths), blobs)
