"""What stands in front of its background: a mask without any weights (GrabCut, Rother et al. 2004)."""

import cv2
import numpy as np

WORK = 512  # pixels of the long side at which it is looked for
BORDER = 0.03  # part of the sides that is background for sure
COLOURS = 3  # of the background that are told apart
ROUNDS = 6
SPECK = 0.001  # parts of the picture below which a spot is noise


def cut_out(picture: np.ndarray, painted: np.ndarray | None = None) -> np.ndarray:
    """Find the subject of a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        painted: (H, W) uint8, above 0 where a person says that the subject is; None if nobody does.

    Returns:
        (H, W) uint8, 255 where the subject is. All is 0 if nothing differs from the border.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, WORK / max(height, width))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    border = np.ones(small.shape[:2], bool)
    edge_x, edge_y = (max(1, round(BORDER * side)) for side in size)
    border[edge_y:-edge_y, edge_x:-edge_x] = False
    guess = _guess(small, border)
    if painted is not None and painted.any():
        guess[cv2.resize(painted, size, interpolation=cv2.INTER_NEAREST) > 0] = cv2.GC_FGD
    if not np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
        return np.zeros((height, width), np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    cv2.setRNGSeed(0)  # it clusters colours by chance: the same picture shall give the same mask
    cv2.grabCut(bgr, guess, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    found = np.where(np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)), 255, 0).astype(np.uint8)
    large = cv2.resize(_without_specks(found), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(large > 127, 255, 0).astype(np.uint8)


def _guess(picture: np.ndarray, border: np.ndarray) -> np.ndarray:
    """Guess from the colours at the border what is background; between the two kinds Otsu's threshold decides."""
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    cv2.setRNGSeed(0)
    samples = np.ascontiguousarray(lab[border])
    _, _, centres = cv2.kmeans(samples, min(COLOURS, len(samples)), None, criteria, 2, cv2.KMEANS_PP_CENTERS)  # pyright: ignore[reportCallIssue, reportArgumentType]
    distance = np.min([np.linalg.norm(lab - centre, axis=2) for centre in centres], axis=0)
    levels = np.clip(distance * 2, 0, 255).astype(np.uint8)
    limit, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    guess = np.where(levels > max(limit, 1), cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    guess[border] = cv2.GC_BGD
    return guess


def _without_specks(mask: np.ndarray) -> np.ndarray:
    number, labels, facts, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    for part in range(1, number):
        if facts[part, cv2.CC_STAT_AREA] < SPECK * mask.size:
            mask[labels == part] = 0
    return mask
