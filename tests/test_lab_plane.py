"""The Lab in two dimensions: noise and steps back against closed forms, and particles that go where the points are."""

import math
from collections.abc import Callable

import pytest
import torch

from studio.engine import lab_learning as plane
from studio.engine.lab_points import density, drawer, energy_distance

NAMES = list(plane.PROCESSES)
EVERY = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.999])


def unheard(step: int, steps: int) -> None:
    """Learn in silence."""


def cloud(seed: int) -> Callable[[int], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda number: torch.randn(number, 2, generator=generator)


def ends(name: str, learned: plane.Learned, number: int = 800) -> torch.Tensor:
    process = plane.PROCESSES[name]()
    return list(plane.walk(process, learned, process.levels(40), number, 3))[-1][1]


def test_energy_distance_is_that_of_the_closed_form() -> None:
    zero, away = torch.zeros(50, 2), torch.tensor([3.0, 4.0]).expand(50, 2)
    assert energy_distance(zero, away) == pytest.approx(10)  # 2 |x - y| for two points
    normal = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    other = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    assert abs(energy_distance(normal, other)) < 0.004
    # to its own middle: 2 E|X| - E|X - X'|, and E|X| is sqrt(pi / 2), E|X - X'| sqrt(pi)
    expected = 2 * math.sqrt(math.pi / 2) - math.sqrt(math.pi)
    assert energy_distance(normal, torch.zeros(50, 2)) == pytest.approx(expected, abs=0.03)


def test_density_is_a_gaussian_around_each_point() -> None:
    side = torch.linspace(-6, 6, 121)
    grid = torch.cartesian_prod(side, side)
    points = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    found = density(points, grid, 0.5, 0.8)
    assert float(found.sum()) * 0.01 == pytest.approx(1, abs=1e-3)
    one = density(points[:1], torch.tensor([[0.5, 0.0]]), 0.5, 0.8)
    assert float(one) == pytest.approx(1 / (2 * math.pi * 0.64))


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("ddpm", lambda signal, spread: signal**2 + spread**2 - 1),
        ("flow_matching", lambda signal, spread: signal + spread - 1),
        ("score_matching", lambda signal, spread: signal - 1),
    ],
)
def test_noise_comes_as_the_paper_says(name: str, law: Callable[..., torch.Tensor]) -> None:
    signal, spread = plane.PROCESSES[name]().parts(EVERY)
    assert torch.allclose(law(signal, spread), torch.zeros(5, 1), atol=1e-6)
    assert (spread[1:] > spread[:-1]).all()
    assert spread[0] < 0.03


def test_noise_that_explodes_grows_by_the_same_factor_everywhere() -> None:
    _, spread = plane.Score().parts(torch.tensor([0.0, 0.25, 0.5, 0.75, 0.999]))
    factors = (spread[1:] / spread[:-1]).flatten()
    assert factors.tolist() == pytest.approx([(plane.SIGMA_MAX / plane.SIGMA_MIN) ** 0.25] * 4, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_learning_and_walking_mean_the_same_noise(name: str) -> None:
    process = plane.PROCESSES[name]()
    for level in process.levels(20):
        signal, spread = process.parts(torch.tensor([min(level.place, 1 - 1e-6)]))
        assert float(signal) == pytest.approx(level.signal, abs=0.01)
        assert float(spread) == pytest.approx(level.spread, rel=0.02, abs=0.002)


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_answer_for_a_gaussian_leads_to_that_gaussian(name: str) -> None:
    """An untaught network gives the closed form for points of a normal distribution: E[noise | x] and E[noise - point | x]."""
    untaught = plane.Learned(plane.Network(plane.PROCESSES[name]()), [])
    assert abs(energy_distance(ends(name, untaught), cloud(5)(800))) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_is_the_closed_form(name: str) -> None:
    """For points of N(m, s^2): E[point | x] = m + a s^2 (x - a m) / (a^2 s^2 + b^2), E[noise | x] = b (x - a m) / (…)."""
    process, middle, deviation = plane.PROCESSES[name](), torch.tensor([0.8, -0.5]), 0.5
    normal = cloud(0)
    with plane.one_thread():
        learned = plane.learn(process, lambda number: middle + deviation * normal(number), 250, 0, unheard)
    for place in (0.2, 0.5, 0.8):
        signal, spread = process.parts(torch.tensor([place]))
        x = signal * (middle + deviation * cloud(1)(500)) + spread * cloud(2)(500)
        part = (x - signal * middle) / (signal**2 * deviation**2 + spread**2)
        exact = process.target(middle + signal * deviation**2 * part, spread * part)
        answer = learned.answer(x, plane.Level(0, place, float(signal), float(spread)))
        assert float((answer - exact).square().mean().sqrt()) < 0.12


@pytest.mark.parametrize(
    ("name", "shape"), [("ddpm", "moons"), ("score_matching", "spiral"), ("flow_matching", "gaussians")]
)
def test_particles_arrive_where_the_points_are(name: str, shape: str) -> None:
    with plane.one_thread():
        learned = plane.learn(plane.PROCESSES[name](), drawer(shape, None, 0), 400, 0, unheard)
    data = drawer(shape, None, 9)(800)
    far = energy_distance(cloud(4)(800), data)
    near = energy_distance(ends(name, learned), data)
    assert near < 0.015 < 0.35 * far, (near, far)
    assert learned.losses[-1][1] < learned.losses[0][1]


def test_points_that_were_drawn_are_met() -> None:
    drawn = torch.tensor([[1.0, 1.0], [-1.0, 0.5]])
    with plane.one_thread():
        learned = plane.learn(plane.Flow(), drawer("drawn", drawn, 0), 250, 0, unheard)
    gaps = torch.cdist(ends("flow_matching", learned), drawn).min(dim=1)
    assert float(gaps.values.median()) < 0.15
    assert gaps.indices.bincount(minlength=2).min() > 250  # both, about equally often


def test_same_seed_same_numbers_and_nobody_elses_random_numbers() -> None:
    state = torch.random.get_rng_state()
    made = [plane.learn(plane.Ddpm(), drawer("spiral", None, 0), 30, 1, unheard).losses for _ in range(2)]
    other = plane.learn(plane.Ddpm(), drawer("spiral", None, 0), 30, 2, unheard).losses
    assert made[0] == made[1] != other
    assert torch.equal(state, torch.random.get_rng_state())


def test_learning_can_be_stopped() -> None:
    def stop(step: int, steps: int) -> None:
        raise InterruptedError(f"{step} of {steps}")

    with pytest.raises(InterruptedError, match="25 of 500"):
        plane.learn(plane.Ddpm(), drawer("moons", None, 0), 500, 0, stop)
