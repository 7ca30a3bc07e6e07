"""What scores pictures: likeness to the training pictures, obedience to a prompt, change, and copying; each from 0 to 1."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Picture = np.ndarray  # (H, W, 3) uint8


class Scorer:
    """One way to judge pictures. A scorer that cannot tell something answers None.

    Attributes:
        title: in sentences.
    """

    title: str = ""

    def read(self, pictures: Sequence[Picture]) -> list[Any]:
        """Return what the scorer sees in each picture; the other functions take that."""
        raise NotImplementedError

    def subject(self, sample: Any, training: Sequence[Any]) -> float | None:
        """Return how like the training pictures a sample is, in what these share."""
        return None

    def prompt(self, sample: Any, prompt: str) -> float | None:
        """Return how well a sample shows what a prompt says; None if it says nothing that the scorer knows."""
        return None

    def chance(self, sample: Any, prompt: str) -> float | None:
        """Return how well a sample shows prompts of the same form with other words: what it would score without knowing the prompt."""
        return None

    def drift(self, now: Any, before: Any) -> float | None:
        """Return how much a picture differs from that of the untouched model with the same prompt and seed."""
        return None

    def memorisation(self, sample: Any, training: Sequence[Any]) -> float | None:
        """Return how like the nearest training picture a sample is; 1 is a copy."""
        return None

    def close(self) -> None:
        """Let weights leave memory; the next reading loads them anew."""
