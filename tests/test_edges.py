"""The edge score says how far a picture follows another's outlines, and can say no."""

import cv2
import numpy as np
import pytest

from benchmarks.shapes.edges import canny_edges, edge_f_score


def circle(x: int = 64, y: int = 64, radius: int = 30, *, side: int = 128) -> np.ndarray:
    picture = np.full((side, side, 3), 240, np.uint8)
    cv2.circle(picture, (x, y), radius, (200, 30, 30), -1)
    return picture


EMPTY = np.full((128, 128, 3), 128, np.uint8)


def test_the_same_picture_scores_one() -> None:
    assert edge_f_score(circle(), circle(), tolerance=0) == 1.0


def test_only_outlines_count_not_colours() -> None:
    assert edge_f_score(255 - circle(), circle(), tolerance=0) > 0.95


@pytest.mark.parametrize(("shift", "low", "high"), [(1, 1.0, 1.0), (2, 1.0, 1.0), (4, 0.3, 0.7), (12, 0.0, 0.35)])
def test_a_shift_beyond_the_tolerance_costs(shift: int, low: float, high: float) -> None:
    assert low <= edge_f_score(circle(64 + shift), circle()) <= high


def test_the_tolerance_is_in_pixels_and_counts_diagonals_as_one() -> None:
    assert edge_f_score(circle(65, 65), circle(), tolerance=1) == 1.0
    assert edge_f_score(circle(65, 65), circle(), tolerance=0) < 0.9
    assert edge_f_score(circle(70, 70), circle(), tolerance=6) == 1.0


def test_what_is_too_much_and_what_is_missing_cost_alike() -> None:
    two = circle()
    two[10:30, 10:30] = 0
    score = edge_f_score(two, circle())
    share = canny_edges(circle()).sum() / canny_edges(two).sum()  # the precision: recall is 1
    assert score == pytest.approx(2 * share / (1 + share))
    assert edge_f_score(circle(), two) == pytest.approx(score)


def test_a_picture_full_of_edges_does_not_win() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    assert edge_f_score(noise, circle()) < 0.5


def test_no_edges() -> None:
    assert edge_f_score(EMPTY, EMPTY) == 1.0
    assert edge_f_score(EMPTY, circle()) == 0.0
    assert edge_f_score(circle(), EMPTY) == 0.0


def test_edges_far_apart_score_zero() -> None:
    assert edge_f_score(circle(20, 20, 10), circle(100, 100, 10)) == 0.0


def test_wrong_arrays_raise() -> None:
    with pytest.raises(ValueError, match="one size"):
        edge_f_score(circle(side=64), circle())
    with pytest.raises(ValueError, match="uint8 RGB"):
        edge_f_score(circle() / 255, circle() / 255)
    with pytest.raises(ValueError, match="tolerance=-1"):
        edge_f_score(circle(), circle(), tolerance=-1)
