"""How well the edges of one picture follow those of another: does a ControlNet obey its control picture?"""

import cv2
import numpy as np

LOW, HIGH = 100, 200  # thresholds of the canny preprocessor


def canny_edges(picture: np.ndarray) -> np.ndarray:
    """Return the edges of a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: for an array of another shape or dtype.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"picture is {picture.dtype} {picture.shape}; use (H, W, 3) uint8 RGB")
    return cv2.Canny(np.ascontiguousarray(picture), LOW, HIGH) > 0


def edge_f_score(made: np.ndarray, wanted: np.ndarray, *, tolerance: int = 2) -> float:
    """Compare the Canny edges of two pictures (the boundary F of Martin et al. 2004, with dilation in place of matching).

    Precision is the share of edge pixels of `made` that have one of `wanted` within `tolerance`, recall the share of those of
    `wanted` that have one of `made`; the score is their harmonic mean.

    Args:
        made: (H, W, 3) uint8 RGB.
        wanted: of the same size.
        tolerance: Chebyshev distance in pixels, 0 or more.

    Returns:
        0 to 1; 1.0 if neither has an edge, 0.0 if only one has.

    Raises:
        ValueError: for arrays of another dtype, or of two sizes, or a negative tolerance.
    """
    if made.shape != wanted.shape:
        raise ValueError(f"made is {made.shape}, wanted is {wanted.shape}; compare pictures of one size")
    if tolerance < 0:
        raise ValueError(f"tolerance={tolerance} must be at least 0")
    ours, theirs = canny_edges(made), canny_edges(wanted)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision, recall = _near(ours, theirs, tolerance), _near(theirs, ours, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(edges: np.ndarray, others: np.ndarray, tolerance: int) -> float:
    """Return the share of edge pixels that have another within `tolerance`."""
    side = 2 * tolerance + 1
    reach = cv2.dilate(others.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    return float(reach[edges].mean())
