"""The picture of an X/Y/Z plot: its cells in rows and columns, sections one below the other, labels around them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

GRID_PIXELS = 40_000_000
SIDE_MAX = 16_384
LINES_MAX = 4
PAPER, INK = "white", "black"
OTHER_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


@dataclass(frozen=True)
class Layout:
    """Where everything of a grid lies, in pixels.

    Attributes:
        cell: width and height of the largest cell, as it is drawn.
        scale: of every cell, at most 1.
        labels: texts by axis; an unused axis has one empty text.
    """

    cell: tuple[int, int]
    scale: float
    labels: dict[str, list[str]]

    @cached_property
    def letters(self) -> int:
        """Height of a letter."""
        return max(12, min(40, self.cell[0] // 14))

    @property
    def gap(self) -> int:
        return max(4, self.letters // 3)

    @cached_property
    def texts(self) -> dict[str, list[list[str]]]:
        """Return the labels broken into lines: columns and rows as wide as a cell, sections as wide as all columns."""
        columns = len(self.labels["x"])
        widths = {"x": self.cell[0], "y": max(self.cell[0], 90), "z": columns * self.cell[0]}
        return {name: [wrapped(text, self.letters, widths[name]) for text in self.labels[name]] for name in self.labels}

    @cached_property
    def left(self) -> int:
        """Width of the column of Y labels."""
        widest = max((length(line, self.letters) for lines in self.texts["y"] for line in lines), default=0)
        return math.ceil(widest) + 2 * self.gap if widest else self.gap

    def band(self, axis: str) -> int:
        """Height of the X labels, or of a section's title; 0 if there are none."""
        lines = max(len(lines) for lines in self.texts[axis])
        return lines * self.line + 2 * self.gap if lines else 0

    @property
    def line(self) -> int:
        return round(self.letters * 1.3)

    @cached_property
    def section(self) -> int:
        """Height of one section."""
        rows = len(self.labels["y"])
        return self.band("z") + self.band("x") + rows * (self.cell[1] + self.gap)

    @cached_property
    def size(self) -> tuple[int, int]:
        width = self.left + len(self.labels["x"]) * (self.cell[0] + self.gap)
        return width, len(self.labels["z"]) * self.section + self.gap

    def corner(self, column: int, row: int, section: int) -> tuple[int, int]:
        """Return the upper left corner of a cell."""
        top = section * self.section + self.band("z") + (self.band("x") or self.gap)
        return self.left + column * (self.cell[0] + self.gap), top + row * (self.cell[1] + self.gap)


def lay_out(largest: tuple[int, int], labels: dict[str, list[str]], limit: int = GRID_PIXELS) -> Layout:
    """Return the layout in which cells have their own size, or as much of it as the limits allow."""
    scale = 1.0
    while True:
        cell = max(1, round(largest[0] * scale)), max(1, round(largest[1] * scale))
        layout = Layout(cell, scale, labels)
        width, height = layout.size
        if (width * height <= limit and max(width, height) <= SIDE_MAX) or max(cell) <= 16:
            return layout
        scale *= 0.99 * min(1, math.sqrt(limit / (width * height)), SIDE_MAX / max(width, height))


def draw_grid(cells: Sequence[Path], labels: dict[str, list[str]], limit: int = GRID_PIXELS) -> Image.Image:
    """Draw the grid of a plot; one cell at a time is in memory.

    Args:
        cells: picture files, X fastest, then Y, then Z.
        labels: texts by axis `x`, `y`, `z`.
        limit: pixels of the whole picture; larger cells are made smaller, all by the same factor.
    """
    sizes = []
    for path in cells:
        with Image.open(path) as image:
            sizes.append(image.size)
    layout = lay_out((max(width for width, _ in sizes), max(height for _, height in sizes)), labels, limit)
    grid = Image.new("RGB", layout.size, PAPER)
    columns, rows = len(labels["x"]), len(labels["y"])
    for number, (path, size) in enumerate(zip(cells, sizes, strict=True)):
        left, top = layout.corner(number % columns, number // columns % rows, number // (columns * rows))
        with Image.open(path) as image:
            picture = image.convert("RGB")
        if layout.scale < 1:
            picture = picture.resize((max(1, round(size[0] * layout.scale)), max(1, round(size[1] * layout.scale))))
        grid.paste(
            picture, (left + (layout.cell[0] - picture.width) // 2, top + (layout.cell[1] - picture.height) // 2)
        )
    draw_labels(ImageDraw.Draw(grid), layout)
    return grid


def draw_labels(draw: ImageDraw.ImageDraw, layout: Layout) -> None:
    """Write the labels: X above each column, Y beside each row, Z above each section."""
    width, height = layout.cell
    for section, title in enumerate(layout.texts["z"]):
        middle = (layout.left + layout.size[0]) // 2
        write(draw, layout, title, (middle, section * layout.section + layout.band("z") // 2))
        for column, lines in enumerate(layout.texts["x"]):
            left, top = layout.corner(column, 0, section)
            write(draw, layout, lines, (left + width // 2, top - layout.band("x") // 2))
        for row, lines in enumerate(layout.texts["y"]):
            _, top = layout.corner(0, row, section)
            write(draw, layout, lines, (layout.left // 2, top + height // 2))


def write(draw: ImageDraw.ImageDraw, layout: Layout, lines: list[str], middle: tuple[int, int]) -> None:
    """Write lines around a point."""
    top = middle[1] - len(lines) * layout.line // 2
    for number, line in enumerate(lines):
        place = (middle[0], top + number * layout.line + layout.line // 2)
        draw.text(place, line, fill=INK, font=font_for(line, layout.letters), anchor="mm")


def font_for(text: str, size: int) -> Any:
    """Return Pillow's own font, which knows Latin letters, or one of the machine for texts with others."""
    return open_font(text.isascii(), size)


@lru_cache(maxsize=64)
def open_font(plain: bool, size: int) -> Any:
    for name in () if plain else OTHER_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def length(text: str, size: int) -> float:
    """Return how wide a text is."""
    return font_for(text, size).getlength(text)


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Break a text into at most `LINES_MAX` lines that are no wider than `width`; what is left out is told by dots."""
    lines: list[str] = []
    for word in text[:400].split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and length(joined, size) <= width:
            lines[-1] = joined
            continue
        while length(word, size) > width and len(word) > 1:  # a word that is wider than a cell
            fits = max(1, next(n for n in range(len(word), 0, -1) if n == 1 or length(word[:n], size) <= width))
            lines.append(word[:fits])
            word = word[fits:]
        if word:
            lines.append(word)
    if len(lines) > LINES_MAX:
        last = lines[LINES_MAX - 1]
        while last and length(f"{last}…", size) > width:
            last = last[:-1]
        lines = [*lines[: LINES_MAX - 1], f"{last}…"]
    return lines
