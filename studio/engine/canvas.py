"""The geometry of img2img, inpaint and outpaint: sizes, masks, and the way back into the picture.

Pictures are (H, W, 3) uint8 RGB, masks (H, W) uint8 in 0..255 where white is repainted. What A1111's users know keeps its meaning:
resize modes, mask blur, only masked with padding, masked content "fill".
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from studio.spec import ResizeMode
from studio.transparency import over

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are the first outside

WHITE_FROM = 128  # a mask is hard before it is blurred, as A1111's is
GREY = 127
OVERLAP = 8
CHILDREN = 4  # a coarse pixel is wholly known once one of the four under it is
STREAKS = (4.0, 12.0, 36.0)  # sigmas that soften replicated edge rows, the more the further out


def flatten(image: Image.Image) -> np.ndarray:
    """Return a picture of any mode as (H, W, 3), transparent parts over white."""
    return np.array(over(image, "white").convert("RGB"))


def mask_of(image: Image.Image) -> np.ndarray:
    """Return the luminance of a picture of any mode as a mask (H, W), transparent parts over black."""
    return np.array(over(image, "black").convert("L"))


def fit(picture: np.ndarray, width: int, height: int, mode: ResizeMode) -> np.ndarray:
    """Resize a picture or a mask; one that has the size already comes back as it is.

    Args:
        picture: (H, W, 3) or (H, W), uint8.
        width: wanted, in pixels.
        height: wanted, in pixels.
        mode: `stretch` changes the proportions, `crop` covers the size and cuts off what is left over, evenly at both ends,
            `fill` shows the whole picture in the middle and stretches its edge rows over the rest.

    Returns:
        (height, width, 3) or (height, width) uint8.
    """
    rows, columns = picture.shape[:2]
    if (rows, columns) == (height, width):
        return picture
    if mode == "stretch":
        return _resample(picture, width, height)
    if mode == "crop":
        scale = min(columns / width, rows / height)
        x, y = (max(0.0, round(left_over / 2, 6)) for left_over in (columns - width * scale, rows - height * scale))
        return _resample(picture, width, height, (x, y, columns - x, rows - y))
    left, top, right, bottom = contained(columns, rows, width, height)
    middle = _resample(picture, right - left, bottom - top)
    return cv2.copyMakeBorder(middle, top, height - bottom, left, width - right, cv2.BORDER_REPLICATE)


def contained(columns: int, rows: int, width: int, height: int) -> Box:
    """Return where a picture of columns x rows lies when it is shown as a whole in the middle of width x height."""
    scale = min(width / columns, height / rows)
    wide = min(width, max(1, round(columns * scale)))
    high = min(height, max(1, round(rows * scale)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _resample(
    picture: np.ndarray, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resize a part of an array, given in its pixels and fractions of them.

    Enlarging uses Lanczos for pictures and linear weights for masks. Reducing uses Hamming, an average over the area of a pixel:
    its weights are never negative, so that it cannot ring, and it does not shift edges as Pillow's box of whole pixels does.
    """
    rows, columns = picture.shape[:2]
    left, top, right, bottom = box or (0, 0, columns, rows)
    if (left, top, right, bottom) == (0, 0, columns, rows) and (columns, rows) == (width, height):
        return picture
    enlarging = Image.Resampling.LANCZOS if picture.ndim == 3 else Image.Resampling.BILINEAR
    reduces = width <= right - left and height <= bottom - top
    image = Image.fromarray(picture)
    resized = image.resize((width, height), Image.Resampling.HAMMING if reduces else enlarging, box=box)
    return np.array(resized)


def extend(
    picture: np.ndarray, mask: np.ndarray | None, *sides: int, overlap: int = OVERLAP
) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge the canvas for outpainting.

    Args:
        picture: (H, W, 3).
        mask: (H, W) of what else is repainted, or None.
        *sides: how many pixels to add left, right, top and bottom; 0 or more.
        overlap: pixels of the old picture that are repainted beside new ones, so that the two grow together.

    Returns:
        The larger picture, new parts filled with what the edges suggest, and its mask, white there.

    Raises:
        ValueError: if a side is negative, or mask and picture differ in size.
    """
    left, right, top, bottom = sides
    if min(sides) < 0:
        raise ValueError(f"extensions {sides} must be 0 or more pixels")
    rows, columns = picture.shape[:2]
    mask = np.zeros((rows, columns), np.uint8) if mask is None else mask
    _check_sizes(picture, mask)
    grown = np.full((rows + top + bottom, columns + left + right), 255, np.uint8)
    grown[top : top + rows, left : left + columns] = mask
    if left:
        grown[:, : left + overlap] = 255
    if right:
        grown[:, max(0, left + columns - overlap) :] = 255
    if top:
        grown[: top + overlap] = 255
    if bottom:
        grown[max(0, top + rows - overlap) :] = 255
    canvas = cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_REPLICATE)
    beyond = np.hypot(_beyond(columns, left, right)[None, :], _beyond(rows, top, bottom)[:, None])  # (H', W')
    new = beyond > 0
    for sigma in STREAKS:
        blurred = cv2.GaussianBlur(canvas, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)[new].astype(np.float32)
        share = np.minimum(beyond[new] / sigma, 1)[:, None]
        canvas[new] = np.rint(canvas[new] * (1 - share) + blurred * share)
    return canvas, grown


def _beyond(length: int, before: int, after: int) -> np.ndarray:
    """Return how far each place of a longer line lies outside of its old part."""
    place = np.arange(-before, length + after, dtype=np.float32)
    return np.maximum(np.maximum(-place, place - (length - 1)), 0)


def fill_masked(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fill what is masked with the colours around it, without any trace of what was there: A1111's masked content "fill".

    Known colours are averaged into a pyramid of halved pictures; on the way back up each level keeps what it knows and takes the
    rest from the coarser one, so that holes of any size are bridged (pull-push; Gortler et al., "The Lumigraph", 1996).

    Args:
        picture: (H, W, 3).
        mask: (H, W); everything above 0 is filled. If nothing is known, the result is grey.

    Returns:
        (H, W, 3), equal to the picture where the mask is 0.
    """
    known = (mask == 0).astype(np.float32)
    if not known.any():
        return np.full_like(picture, GREY)
    levels = [np.dstack([picture * known[..., None], known])]  # (h, w, 4): colour times weight, weight
    while max(levels[-1].shape[:2]) > 1:
        half = cv2.pyrDown(levels[-1])
        levels.append(half * np.minimum(CHILDREN, 1 / np.maximum(half[..., 3:], 1e-9)))
    top = levels.pop()
    colours = top[..., :3] / top[..., 3:]
    for level in reversed(levels):
        coarser = cv2.pyrUp(colours, dstsize=level.shape[1::-1])
        colours = level[..., :3] + (1 - level[..., 3:]) * coarser
    filled = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
    return np.where(mask[..., None] == 0, picture, filled)


@dataclass(frozen=True, eq=False)
class Inpainting:
    """What the pipeline repaints, and how its result goes back.

    Attributes:
        source: (H, W, 3) what the result is laid over: the picture in the wanted size, or in its own if only the masked part is drawn.
        soft: (H, W) float32 in 0..1, how much of the result is taken.
        box: the part of `source` that the pipeline sees.
        picture: (height, width, 3) that part, in the wanted size.
        mask: (height, width) 0 or 255; white wherever `soft` is above 0, so that a soft border is really repainted.
    """

    source: np.ndarray
    soft: np.ndarray
    box: Box
    picture: np.ndarray
    mask: np.ndarray

    def compose(self, made: np.ndarray) -> np.ndarray:
        """Lay a result over the source; where `soft` is 0 every byte stays.

        Args:
            made: (height, width, 3) uint8, as large as `picture`.

        Returns:
            (H, W, 3), as large as `source`.
        """
        height, width = self.picture.shape[:2]
        if made.shape != self.picture.shape:
            raise ValueError(
                f"the result is {made.shape[1]} x {made.shape[0]} pixels; {width} x {height} were asked for"
            )
        left, top, right, bottom = self.box
        columns, rows = right - left, bottom - top
        shown = _resample(made, columns, rows, contained(columns, rows, width, height))
        old = self.source[top:bottom, left:right]
        parts = np.rint(self.soft[top:bottom, left:right, None] * 255).astype(np.uint16)
        result = self.source.copy()
        result[top:bottom, left:right] = (old * (255 - parts) + shown * parts + 127) // 255  # whole numbers: exact
        return result


def plan_inpainting(  # one control of the page each
    picture: np.ndarray,
    mask: np.ndarray,
    *,
    width: int,
    height: int,
    resize_mode: ResizeMode,
    mask_blur: int,
    only_masked: bool,
    padding: int,
) -> Inpainting:
    """Work out what is repainted.

    Args:
        picture: (H, W, 3).
        mask: (H, W), white is repainted; it is rounded to black and white first.
        width: of what the pipeline draws, in pixels.
        height: likewise.
        resize_mode: how the picture gets that size; not used with `only_masked`.
        mask_blur: standard deviation of the soft border in pixels of `source`; 0 is a hard edge.
        only_masked: draw only the surroundings of the mask, at full size.
        padding: pixels around the mask that are seen with `only_masked`.

    Raises:
        ValueError: if nothing would be repainted, or mask and picture differ in size.
    """
    _check_sizes(picture, mask)
    hard = np.where(mask >= WHITE_FROM, np.uint8(255), np.uint8(0))
    if not hard.any():
        raise ValueError("mask_image is empty: nothing would be repainted; paint over what should change")
    source = picture
    if not only_masked:
        source = fit(picture, width, height, resize_mode)
        hard = np.where(fit(hard, width, height, resize_mode) >= WHITE_FROM, np.uint8(255), np.uint8(0))
    levels = _blurred(hard, mask_blur)
    if not levels.any():
        raise ValueError(
            f"nothing of mask_image is left at {source.shape[1]} x {source.shape[0]} with resize_mode={resize_mode} "
            f"and mask_blur={mask_blur}; paint over more, or blur less"
        )
    soft, touched = levels.astype(np.float32) / 255, np.where(levels > 0, np.uint8(255), np.uint8(0))
    rows, columns = source.shape[:2]
    if not only_masked:
        return Inpainting(source, soft, (0, 0, columns, rows), source, touched)
    box = _expanded(_bounds(touched, padding), width / height, columns, rows)
    left, top, right, bottom = box
    seen = fit(source[top:bottom, left:right], width, height, "fill")
    covered = fit((touched[top:bottom, left:right] > 0).astype(np.float32), width, height, "fill") > 0
    return Inpainting(source, soft, box, seen, np.where(covered, np.uint8(255), np.uint8(0)))


def _blurred(hard: np.ndarray, sigma: int) -> np.ndarray:
    """Blur in 8 bits, where sums are exact: white stays 255 inside, black stays 0 beyond 2.5 sigma."""
    if sigma == 0:
        return hard
    size = 2 * int(2.5 * sigma + 0.5) + 1
    return cv2.GaussianBlur(hard, (size, size), sigma, borderType=cv2.BORDER_REPLICATE)


def _bounds(mask: np.ndarray, padding: int) -> Box:
    """Return the box around all that is not 0, grown within the picture."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return (
        max(0, int(columns[0]) - padding),
        max(0, int(rows[0]) - padding),
        min(width, int(columns[-1]) + 1 + padding),
        min(height, int(rows[-1]) + 1 + padding),
    )


def _expanded(box: Box, ratio: float, columns: int, rows: int) -> Box:
    """Grow the shorter side of a box towards width / height = ratio, as far as the picture has room; it moves rather than shrinks."""
    left, top, right, bottom = box
    wide = min(columns, max(right - left, math.ceil((bottom - top) * ratio)))
    high = min(rows, max(bottom - top, math.ceil((right - left) / ratio)))
    left = min(max(0, left - (wide - (right - left)) // 2), columns - wide)
    top = min(max(0, top - (high - (bottom - top)) // 2), rows - high)
    return left, top, left + wide, top + high


def _check_sizes(picture: np.ndarray, mask: np.ndarray) -> None:
    if picture.shape[:2] != mask.shape:
        raise ValueError(
            f"mask_image is {mask.shape[1]} x {mask.shape[0]} pixels and image {picture.shape[1]} x {picture.shape[0]}; "
            "make both the same size"
        )
