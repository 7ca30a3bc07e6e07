"""Points of the plane: where toy distributions have them, how dense they are with noise, and how far two sets of them are apart."""

import math
from collections.abc import Callable

import torch

DRAWN_SPREAD = 0.04  # around each point that was drawn


def energy_distance(ones: torch.Tensor, others: torch.Tensor) -> float:
    """Return how far two sets of points are from one distribution: 0 if they have the same (Székely & Rizzo 2013, equation 5).

    2 E|X - Y| - E|X - X'| - E|Y - Y'|, with the unbiased means, so that a little less than 0 is possible.
    """

    def within(points: torch.Tensor) -> float:
        return float(torch.cdist(points, points).sum()) / (len(points) * (len(points) - 1))

    return 2 * float(torch.cdist(ones, others).mean()) - within(ones) - within(others)


def density(points: torch.Tensor, places: torch.Tensor, signal: float, spread: float) -> torch.Tensor:
    """Return how dense points with noise are: exactly, the mean of a Gaussian around each point times `signal`.

    Args:
        points: (M, D) without noise.
        places: (N, D) to look at.
        signal: how much of the points there is.
        spread: deviation of the noise, more than 0.

    Returns:
        (N,).
    """
    squares = torch.cdist(places, signal * points).square() / spread**2
    return torch.exp(-squares / 2).mean(dim=1) / (2 * math.pi * spread**2) ** (points.shape[1] / 2)


def moons(number: int, generator: torch.Generator) -> torch.Tensor:
    """Two half circles that reach into each other."""
    angle = math.pi * torch.rand(number, generator=generator)
    lower = torch.rand(number, generator=generator) < 0.5
    sign = torch.where(lower, -1.0, 1.0)
    points = torch.stack([sign * (angle.cos() - 0.5), sign * (angle.sin() - 0.25)], dim=1)
    return 1.35 * points + 0.07 * torch.randn(number, 2, generator=generator)


def spiral(number: int, generator: torch.Generator) -> torch.Tensor:
    """One and a half turns outward."""
    reach = torch.rand(number, generator=generator).sqrt()
    angle = 3 * math.pi * reach
    points = 2 * reach[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.05 * torch.randn(number, 2, generator=generator)


def gaussians(number: int, generator: torch.Generator) -> torch.Tensor:
    """Eight small clouds on a circle."""
    angle = math.pi / 4 * torch.randint(8, (number,), generator=generator)
    points = 1.6 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.12 * torch.randn(number, 2, generator=generator)


def checkerboard(number: int, generator: torch.Generator) -> torch.Tensor:
    """The dark squares of a board of 4 x 4."""
    cell = torch.randint(8, (number,), generator=generator)
    row, pair = cell // 2, cell % 2
    corner = torch.stack([2 * pair + row % 2, row], dim=1)
    return 0.9 * (corner + torch.rand(number, 2, generator=generator) - 2)


SHAPES: dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "moons": moons,
    "spiral": spiral,
    "gaussians": gaussians,
    "checkerboard": checkerboard,
}


def drawer(shape: str, drawn: torch.Tensor | None, seed: int) -> Callable[[int], torch.Tensor]:
    """Return what draws points: of a shape by name, or around those that a person drew, (N, 2)."""
    generator = torch.Generator().manual_seed(seed)
    if drawn is None:
        return lambda number: SHAPES[shape](number, generator)

    def around(number: int) -> torch.Tensor:
        chosen = drawn[torch.randint(len(drawn), (number,), generator=generator)]
        return chosen + DRAWN_SPREAD * torch.randn(number, 2, generator=generator)

    return around
