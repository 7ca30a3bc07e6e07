"""Who is shown when, and how: a pure function of (seed, step). No torch.

Order on disk, workers, resume, and the number of processes do not matter: a step's global batch is drawn as a whole, and each
process takes its slice of it.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

CROPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # where a random crop can begin, as part of what is cut off
CENTER = CROPS.index(0.5)


@dataclass(frozen=True)
class Item:
    """A picture at one size: what batches are made of.

    Attributes:
        example: its place in the dataset.
        size: (width, height) in pixels at which it is shown.
        length: of its encoded caption; one batch has one length.
        repeats: how often an epoch shows it.
    """

    example: int
    size: tuple[int, int]
    length: int = 0
    repeats: int = 1


@dataclass(frozen=True)
class Draw:
    """How one picture is shown once.

    Attributes:
        item: its place among the items.
        flip: mirrored.
        crop: place in `CROPS`.
        drop: shown without words.
        quantile: where between no noise and all of it, 0 to 1.
        seed: of its noise, and of how its caption is shuffled.
    """

    item: int
    flip: bool
    crop: int
    drop: bool
    quantile: float
    seed: int


@dataclass(frozen=True)
class Chances:
    """How often what happens."""

    flip: bool = False
    random_crop: bool = False
    drop: float = 0.0


class Plan:
    """The whole run's draws.

    Args:
        items: at least one.
        batch: pictures in a global batch: `train_batch_size` x processes.
        accumulation: batches in a step.
        seed: 0 or more.
        chances: of flips, crops, dropped captions.
    """

    def __init__(self, items: Sequence[Item], batch: int, accumulation: int, seed: int, chances: Chances) -> None:
        self.items, self.batch, self.accumulation = items, batch, accumulation
        self.seed, self.chances = seed, chances
        self._groups: dict[tuple[tuple[int, int], int], list[int]] = {}
        for place, item in enumerate(items):
            self._groups.setdefault((item.size, item.length), []).extend([place] * item.repeats)
        self.batches_per_epoch = sum(math.ceil(len(group) / batch) for group in self._groups.values())
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def epoch_of(self, step: int) -> float:
        """Return how many epochs lie before a step."""
        return step * self.accumulation / self.batches_per_epoch

    def step(self, step: int) -> list[list[Draw]]:
        """Return the micro-batches of a step, each of `batch` draws that share size and length."""
        return [self._draws(step, micro) for micro in range(self.accumulation)]

    def _draws(self, step: int, micro: int) -> list[Draw]:
        epoch, place = divmod(step * self.accumulation + micro, self.batches_per_epoch)
        chosen = self._batches(epoch)[place]
        rng = random.Random(f"draw-{self.seed}-{step}-{micro}")
        spread = [
            (i + rng.random()) / len(chosen) for i in range(len(chosen))
        ]  # stratified: every batch sees all noise levels
        rng.shuffle(spread)
        return [
            Draw(
                item,
                self.chances.flip and rng.random() < 0.5,
                rng.randrange(len(CROPS)) if self.chances.random_crop else CENTER,
                rng.random() < self.chances.drop,
                quantile,
                rng.getrandbits(62),
            )
            for item, quantile in zip(chosen, spread, strict=True)
        ]

    def _batches(self, epoch: int) -> list[list[int]]:
        """Shuffle an epoch; a group's last batch is filled from its beginning, so that none is short or left out."""
        if self._epoch[0] != epoch:
            batches = []
            for (size, length), group in self._groups.items():
                rng = random.Random(f"epoch-{self.seed}-{epoch}-{size}-{length}")
                order = rng.sample(group, len(group))
                missing = -len(order) % self.batch
                order += [order[i % len(group)] for i in range(missing)]
                batches += [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
            random.Random(f"batches-{self.seed}-{epoch}").shuffle(batches)
            self._epoch = epoch, batches
        return self._epoch[1]


def shuffled(caption: str, keep: int, seed: int) -> str:
    """Mix what stands between commas, but for the first `keep` parts."""
    parts = [part.strip() for part in caption.split(",")]
    tail = parts[keep:]
    random.Random(seed).shuffle(tail)
    return ", ".join(parts[:keep] + tail)
