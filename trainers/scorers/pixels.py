"""A scorer without weights: colours, a small picture, its edges. It knows copies and changes, not what a picture shows."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from trainers.scorers.scorer import Picture, Scorer

SIDE = 16  # pixels of the small picture and of its edges
LEVELS = 4  # of each colour channel in the histogram
FLAT = 1e-3  # length of a vector that says nothing: a picture of one colour, or without edges


class Pixels(Scorer):
    """Likeness of two pictures: the mean of what their histograms share and of the correlations of small pictures and edges."""

    title = "pixels"

    def read(self, pictures: Sequence[Picture]) -> list[Any]:
        return [features(picture) for picture in pictures]

    def drift(self, now: Any, before: Any) -> float | None:
        return 1 - likeness(now, [before])[0]

    def memorisation(self, sample: Any, training: Sequence[Any]) -> float | None:
        return max(likeness(sample, training))


def features(picture: Picture) -> np.ndarray:
    """Describe a picture, (LEVELS ** 3 + 3 * SIDE ** 2 + SIDE ** 2 + 2,) float32."""
    levels = (picture.astype(np.int32) * LEVELS // 256).reshape(-1, 3)
    histogram = np.bincount(levels @ (LEVELS * LEVELS, LEVELS, 1), minlength=LEVELS**3) / len(levels)
    small = cv2.resize(picture.astype(np.float32) / 255, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    fine = cv2.resize(picture, (4 * SIDE, 4 * SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(fine, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    slopes = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    edges = cv2.resize(slopes, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    told = [histogram, _direction(small - small.mean()), _direction(edges)]
    return np.concatenate(told).astype(np.float32)


def _direction(values: np.ndarray) -> np.ndarray:
    """Return a vector of length 1; its last number says that there is nothing to tell, so that two such are alike."""
    flat = values.ravel()
    length = float(np.linalg.norm(flat))
    return np.append(np.zeros_like(flat), 1) if length < FLAT else np.append(flat / length, 0)


def likeness(one: np.ndarray, others: Sequence[np.ndarray]) -> list[float]:
    """Compare a description with others; 0 to 1 each, 1 for the same picture."""
    bins, small = LEVELS**3, 3 * SIDE**2 + 1
    table = np.stack(others)  # (N, F)
    shared = np.minimum(table[:, :bins], one[:bins]).sum(axis=1)
    seen = table[:, bins : bins + small] @ one[bins : bins + small]
    drawn = table[:, bins + small :] @ one[bins + small :]
    found = (shared + np.clip(seen, 0, 1) + np.clip(drawn, 0, 1)) / 3
    return [float(value) for value in np.clip(found, 0, 1)]
