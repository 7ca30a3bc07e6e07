"""Preprocessors at work: a picture goes in, a control picture (edges, lines, depth, poses) of the same size comes out.

The work is controlnet-aux's. Its weights are read from one local folder, never from the network, and only if they are the pinned
files or at least hold nothing but weights.
"""

import contextlib
import gc
import hashlib
import importlib
import inspect
import io
import logging
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from studio.errors import DeviceError, InvalidRequest, ModelError, shown
from studio.preprocessors import (
    RESOLUTION_MAX,
    RESOLUTION_MIN,
    Preprocessor,
    find_preprocessor,
    missing_message,
    option_values,
)

logger = logging.getLogger(__name__)

KEPT = 2  # detectors that stay in memory: what a request with two units needs
GRID = 64  # controlnet-aux 0.0.10 stretches both sides to multiples of this; a picture that has them is left as it is
LONGEST = 8192  # pixels of the longer side at the annotator's resolution
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # makes torch run the code in pickles, as controlnet-aux leaves `weights_only` open

PLAIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda picture: picture,
    "invert": lambda picture: 255 - picture,
}


def preprocess(
    picture: np.ndarray, name: str, *, resolution: int | None, options: Mapping[str, float], weights: Path
) -> np.ndarray:
    """Make one control picture on the CPU and keep nothing loaded; see `Preprocessors.run`."""
    return Preprocessors(weights, "cpu").run(picture, name, resolution=resolution, options=options)


class Preprocessors:
    """Owner of the detectors that were used last, on one device."""

    def __init__(self, weights: Path, device: torch.device | str) -> None:
        self.weights, self.device = weights.resolve(), torch.device(device)
        self._loaded: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def run(
        self,
        picture: np.ndarray,
        name: str,
        *,
        resolution: int | None = None,
        options: Mapping[str, float] | None = None,
    ) -> np.ndarray:
        """Make a control picture. The same picture and options give the same result.

        Args:
            picture: (H, W, 3) uint8 RGB.
            name: key of `PREPROCESSORS`.
            resolution: shorter side in pixels at which the annotator looks at the picture, 64 to 2048; None is the picture's own
                ("pixel perfect").
            options: of the preprocessor, in place of its defaults.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            InvalidRequest: for an unknown preprocessor or option, or a value outside of its range.
            ModelError: if weights are missing, are other files than the published ones, or hold code.
            DeviceError: if the device has too little memory.
            ValueError: for an array of another shape or dtype.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"picture is {picture.dtype} {picture.shape}; use (H, W, 3) uint8 RGB")
        chosen, values = find_preprocessor(name), option_values(name, options or {})
        height, width = picture.shape[:2]
        inner_width, inner_height = working_size(width, height, resolution)
        if name in PLAIN:
            return PLAIN[name](picture)
        arguments: dict[str, Any] = dict(chosen.arguments)
        arguments |= {option.argument or option.name: values[option.name] for option in chosen.options}
        inner = picture
        if (inner_width, inner_height) != (width, height):
            larger = inner_width > width
            inner = cv2.resize(
                picture, (inner_width, inner_height), interpolation=cv2.INTER_LANCZOS4 if larger else cv2.INTER_AREA
            )
        inner = np.pad(inner, ((0, -inner_height % GRID), (0, -inner_width % GRID), (0, 0)), mode="edge")
        made = self._detect(name, chosen, inner, arguments)
        return fitted(made[:inner_height, :inner_width], width, height)

    def unload(self) -> None:
        """Free all weights."""
        self._loaded.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _detect(self, name: str, chosen: Preprocessor, picture: np.ndarray, arguments: dict[str, Any]) -> np.ndarray:
        """Run a detector at the picture's own size, whose sides are multiples of `GRID`."""
        side = min(picture.shape[:2])
        with quiet(), numpy_seed(arguments.pop("seed", 0)):
            try:
                detector = self._detector(name, chosen)
                if "image_resolution" in inspect.signature(detector.__call__).parameters:
                    arguments["image_resolution"] = side  # the others give back the size that they were given
                made = detector(picture, detect_resolution=side, output_type="np", **arguments)
            except torch.OutOfMemoryError as error:
                self.unload()
                raise DeviceError(
                    f"{self.device} has too little memory for preprocessor={name!r}; choose a lower resolution"
                ) from error
        assert made.shape == picture.shape and made.dtype == np.uint8, f"{name}: {made.dtype} {made.shape}"
        return made

    def _detector(self, name: str, chosen: Preprocessor) -> Any:
        detector_class = getattr(importlib.import_module("controlnet_aux"), chosen.class_name)
        if not chosen.weights:
            return detector_class()
        key = (chosen.class_name, *(weight.name for weight in chosen.weights))
        if key not in self._loaded:
            while len(self._loaded) >= KEPT:
                self._loaded.popitem(last=False)
                gc.collect()
            self._loaded[key] = self._load(name, chosen, detector_class)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _load(self, name: str, chosen: Preprocessor, detector_class: Any) -> Any:
        if problem := missing_message(name, self.weights):
            raise ModelError(problem)
        if os.environ.get(UNSAFE, "0") != "0":
            raise ModelError(
                f"preprocessor={name!r} is not loaded while {UNSAFE} lets files of weights run code; unset it"
            )
        logger.info("loading %s", name)
        for weight in chosen.weights:
            check_sha256(self.weights / weight.name, weight.sha256, weight.source)
        files, source = ", ".join(weight.name for weight in chosen.weights), chosen.weights[0].source
        try:
            return detector_class.from_pretrained(str(self.weights), filename=chosen.weights[0].name).to(self.device)
        except torch.OutOfMemoryError:
            raise
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{files} in {self.weights} is no file of plain weights and may hold code, so it was not loaded; copy it from {source}"
            ) from error
        except Exception as error:
            reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
            raise ModelError(
                f"{files} in {self.weights} could not be loaded: {reason}; copy the published file from {source}"
            ) from error


def working_size(width: int, height: int, resolution: int | None) -> tuple[int, int]:
    """Return the (width, height) in pixels at which an annotator works: its shorter side is `resolution`.

    Raises:
        InvalidRequest: if the resolution is out of range, or makes the longer side longer than `LONGEST`.
    """
    if resolution is None:
        return width, height
    if (
        isinstance(resolution, bool)
        or not RESOLUTION_MIN <= resolution <= RESOLUTION_MAX
        or resolution != int(resolution)
    ):
        raise InvalidRequest(
            "preprocessor",
            f"resolution={shown(resolution)} must be a whole number from {RESOLUTION_MIN} to {RESOLUTION_MAX}, or None",
        )
    factor = resolution / min(width, height)
    if max(width, height) * factor > LONGEST:
        most = LONGEST * min(width, height) // max(width, height)
        raise InvalidRequest(
            "preprocessor",
            f"resolution={resolution} makes a picture of {width} x {height} longer than {LONGEST} pixels; use at most {most}, or None",
        )
    return max(1, round(width * factor)), max(1, round(height * factor))


def fitted(made: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bring a control picture (H, W, 3) to a size in pixels; one of only black and white stays so, with its lines unbroken."""
    if made.shape[:2] == (height, width):
        return np.ascontiguousarray(made)
    scale = min(width / made.shape[1], height / made.shape[0])
    two_tone = bool(np.isin(made, (0, 255)).all())
    larger = cv2.INTER_NEAREST if two_tone else cv2.INTER_LINEAR
    resized = cv2.resize(made, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else larger)
    if not two_tone or scale >= 1:
        return resized
    # A line of one pixel covers about `scale` of a larger pixel that it crosses.
    return np.where(resized > 127 * scale, 255, 0).astype(np.uint8)


def check_sha256(file: Path, expected: str, source: str) -> None:
    """Compare a file with its published hash; "" is not known and passes.

    Raises:
        ModelError: if it is another file.
    """
    if not expected:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"{file} is not the published file (sha256 {found[:12]}… instead of {expected[:12]}…); copy it again from {source}"
        )


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which ContentShuffle draws from, and put it back as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings away, and prints (of NormalBae and Zoe) off stdout, which is the command line's answer."""
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        if text := printed.getvalue().strip():
            logger.debug("controlnet-aux said: %s", text)
