"""A small network learns where points of the plane lie, and particles follow it from noise.

Points are (B, 2). The noise processes, and the steps back, are diffusers' own schedulers; only the questions that the network is asked
while it learns stand here, each with its paper.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler

LENGTH = 1000  # noise levels while it learns
BATCH = 256
WIDTH, TIME_WIDTH = 64, 32
WAVES = (0.5, 1.0, 2.0)  # half turns per unit of space: what lets so small a network learn edges
LEARNING_RATE = 5e-3
SIGMA_MIN, SIGMA_MAX = 0.02, 8.0  # of the variance that explodes; points lie within about 2 of the origin
CORRECTOR_SNR = 0.16  # what the authors of the exploding variance sampled with
TOLD = 25  # steps of learning between two words about it

Told = Callable[[int, int], None]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: a network this small gains nothing from more, and is up to 40 times slower with them where others compute.

    The results are then the same for every `cpu_threads`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Level(NamedTuple):
    """One moment on the way back: what the scheduler calls it, its place from 0 (points) to 1 (noise), and its two parts."""

    timestep: Any
    place: float
    signal: float
    spread: float


class Process(Protocol):
    """A way from points to noise, what the network learns about it, and the way back."""

    def parts(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how much of the points and how much noise there is at places (B,) of [0, 1): (B, 1) each."""
        ...

    def target(self, points: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return what the network should answer."""
        ...

    def levels(self, steps: int) -> list[Level]:
        """Return the moments of `steps` steps back, the noisiest first."""
        ...

    def step(self, answer: "Answer", level: Level, particles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Take particles one step back."""
        ...


Answer = Callable[[torch.Tensor, Level], torch.Tensor]


class Ddpm:
    """Predict the noise (Ho et al. 2020, arXiv:2006.11239, algorithms 1 and 2)."""

    def __init__(self) -> None:
        self._learning: Any = DDPMScheduler(num_train_timesteps=LENGTH, clip_sample=False, timestep_spacing="trailing")
        self._back: Any = DDPMScheduler.from_config(self._learning.config)

    def parts(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self._learning.alphas_cumprod[(places * LENGTH).long()][:, None]
        return kept.sqrt(), (1 - kept).sqrt()

    def target(self, points: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def levels(self, steps: int) -> list[Level]:
        self._back.set_timesteps(steps)
        places = self._back.timesteps / LENGTH
        return _levels(self, self._back.timesteps, places)

    def step(self, answer: Answer, level: Level, particles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        made = self._back.step(answer(particles, level), level.timestep, particles, generator=generator)
        return made.prev_sample


class Score:
    """Denoising score matching at noise of every size (Vincent 2011; Song & Ermon 2019, arXiv:1907.05600, equation 5).

    The network's answer over -sigma is the score; weighed with sigma squared, the loss is that of the noise. Back with predictor and
    corrector (Song et al. 2021, arXiv:2011.13456, algorithms 1 and 2).
    """

    def __init__(self) -> None:
        options: dict[str, Any] = {
            "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "snr": CORRECTOR_SNR, "sampling_eps": 1e-3
        }  # fmt: skip
        self._learning: Any = ScoreSdeVeScheduler(num_train_timesteps=LENGTH, **options)
        self._back: Any = ScoreSdeVeScheduler(num_train_timesteps=LENGTH, **options)

    def parts(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigmas = self._learning.discrete_sigmas[(places * LENGTH).long()][:, None]
        return torch.ones_like(sigmas), sigmas

    def target(self, points: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def levels(self, steps: int) -> list[Level]:
        self._back.set_timesteps(steps)
        self._back.set_sigmas(steps)
        assert self._back.timesteps is not None
        sigmas = self._back.discrete_sigmas.flip(0).tolist()
        places = [math.log(sigma / SIGMA_MIN) / math.log(SIGMA_MAX / SIGMA_MIN) for sigma in sigmas]
        rows = zip(self._back.timesteps, places, sigmas, strict=True)
        return [Level(timestep, place, 1.0, sigma) for timestep, place, sigma in rows]

    def step(self, answer: Answer, level: Level, particles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        scored = -answer(particles, level) / level.spread
        particles = self._back.step_correct(scored, particles, generator=generator).prev_sample
        scored = -answer(particles, level) / level.spread
        made = self._back.step_pred(scored, level.timestep, particles, generator=generator)
        return made.prev_sample_mean if level.spread <= SIGMA_MIN * 1.001 else made.prev_sample


class Flow:
    """Flow matching on straight paths: predict noise minus point.

    Lipman et al. 2023, arXiv:2210.02747, equation 23, and Liu et al. 2023, arXiv:2209.03003, equation 1.
    """

    def __init__(self) -> None:
        self._learning: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=LENGTH)
        self._back: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=LENGTH)

    def parts(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigmas = self._learning.sigmas.flip(0)[(places * LENGTH).long()][:, None]
        return 1 - sigmas, sigmas

    def target(self, points: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise - points

    def levels(self, steps: int) -> list[Level]:
        self._back.set_timesteps(steps)
        rows = zip(self._back.timesteps, self._back.sigmas.tolist()[:-1], strict=True)
        return [Level(timestep, sigma, 1 - sigma, sigma) for timestep, sigma in rows]

    def step(self, answer: Answer, level: Level, particles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return self._back.step(answer(particles, level), level.timestep, particles).prev_sample


PROCESSES: dict[str, Callable[[], Process]] = {"ddpm": Ddpm, "score_matching": Score, "flow_matching": Flow}


def _levels(process: Process, timesteps: Any, places: torch.Tensor) -> list[Level]:
    signal, spread = process.parts(places)
    rows = zip(timesteps, places.tolist(), signal[:, 0].tolist(), spread[:, 0].tolist(), strict=True)
    return [Level(*row) for row in rows]


class Network(torch.nn.Module):
    """Two numbers and a time in, two numbers out. What is learned is added to `process.usual`, the answer for points without shape."""

    def __init__(self, process: "Process") -> None:
        super().__init__()
        self.process = process
        widths = [2 + 4 * len(WAVES) + TIME_WIDTH, WIDTH, WIDTH, WIDTH]
        layers: list[torch.nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [torch.nn.Linear(before, after), torch.nn.SiLU()]
        last = torch.nn.Linear(WIDTH, 2)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        self.layers = torch.nn.Sequential(*layers, last)

    def forward(
        self, points: torch.Tensor, places: torch.Tensor, parts: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Answer for points (B, 2) at places (B,); with `parts` they have the same size at every place."""
        signal, spread = parts
        scaled = points / (signal.square() + spread.square()).sqrt()
        told = get_timestep_embedding(places * LENGTH, TIME_WIDTH, max_period=LENGTH)
        waves = torch.cat([math.pi * wave * scaled for wave in WAVES], dim=1)
        seen = torch.cat([scaled, waves.sin(), waves.cos(), told], dim=1)
        return self.layers(seen) + self.process.target(signal, spread) * points / (signal.square() + spread.square())


class Learned(NamedTuple):
    """A network that has learned, and how its loss fell: [step, mean loss since the one before]."""

    network: Network
    losses: list[tuple[int, float]]

    def answer(self, particles: torch.Tensor, level: Level) -> torch.Tensor:
        """Answer for particles at one moment."""
        rows = torch.full((len(particles),), level.place)
        parts = torch.full((len(particles), 1), level.signal), torch.full((len(particles), 1), level.spread)
        return self.network(particles, rows, parts)


def learn(process: Process, draw: Callable[[int], torch.Tensor], steps: int, seed: int, told: Told) -> Learned:
    """Teach a network the points that `draw` returns, (n, 2) for a number n.

    Args:
        process: whose question it learns to answer.
        draw: new points for every step.
        steps: of Adam, its rate falling to nothing along a cosine.
        seed: of weights, times and noise.
        told: hears (step, steps) every `TOLD` steps, and may raise.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        network = Network(process)
        optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses: list[tuple[int, float]] = []
        total = 0.0
        for step in range(1, steps + 1):
            points, noise = draw(BATCH), torch.randn(BATCH, 2)
            places = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH  # evenly spread: less noise in the loss
            places = places.clamp(max=1 - 1e-6)
            parts = process.parts(places)
            answer = network(parts[0] * points + parts[1] * noise, places, parts)
            loss = (answer - process.target(points, noise)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
            total += loss.item()
            if step % TOLD == 0 or step == steps:
                since = step - (losses[-1][0] if losses else 0)
                losses.append((step, total / since))
                total = 0.0
                told(step, steps)
    return Learned(network.requires_grad_(False), losses)


def walk(
    process: Process, learned: Learned, levels: list[Level], number: int, seed: int
) -> Iterator[tuple[Level | None, torch.Tensor]]:
    """Take `number` particles from noise to points; yield each moment and where they are then, at last (None, where they end)."""
    generator = torch.Generator().manual_seed(seed)
    first = levels[0]
    particles = math.hypot(first.signal, first.spread) * torch.randn(number, 2, generator=generator)
    with torch.no_grad():
        for level in levels:
            yield level, particles
            particles = process.step(learned.answer, level, particles, generator)
    yield None, particles
