"""What a ControlNet follows while it learns: the control pictures that a dataset brings, and those that a preprocessor makes."""

import importlib.metadata
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from studio.engine.controls import Preprocessors
from trainers.data import Cache, Shown, conditioning_pixels, picture_of

logger = logging.getLogger(__name__)


class Conditions:
    """Control pictures, as each picture is shown.

    A preprocessor looks at the picture as it is shown, cut and scaled: so it does when a unit works "pixel perfect".

    Args:
        preprocessor: makes what a dataset does not bring.
        options: of the preprocessor.
        folder: of the cache.
        weights: of preprocessors.
        device: on which they work.
    """

    def __init__(
        self, preprocessor: str, options: dict[str, float], *, folder: Path, weights: Path, device: torch.device
    ) -> None:
        self._name, self._options, self._weights, self._device = preprocessor, options, weights, device
        version = importlib.metadata.version("controlnet-aux")
        self._cache = Cache(folder, "conditions", f"{preprocessor} {json.dumps(options, sort_keys=True)} {version}")

    def fill(self, all_shown: Sequence[Shown], *, write: bool) -> None:
        """Make what is missing, once.

        Args:
            all_shown: all ways in which pictures may be shown.
            write: False in processes that let another one write.

        Raises:
            ModelError: if the preprocessor's weights are missing.
        """
        wanted = [one for one in all_shown if one.example.conditioning is None]
        preprocessors = Preprocessors(self._weights, self._device)

        def make(places: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
            logger.info("%s: pictures %d to %d of %d", self._name, places[0] + 1, places[-1] + 1, len(wanted))
            for place in places:
                made = preprocessors.run(picture_of(wanted[place]), self._name, options=self._options)
                yield {"picture": torch.from_numpy(made).permute(2, 0, 1)}

        self._cache.fill([one.key for one in wanted], make, write)
        preprocessors.unload()

    def get(self, shown: Shown) -> torch.Tensor:
        """Return the control picture of a picture, (3, H, W) in 0..1."""
        if shown.example.conditioning is not None:
            return conditioning_pixels(shown)
        return self._cache.get(shown.key, "picture").float() / 255
