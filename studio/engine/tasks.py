"""What a request's pictures become: arguments of the pipeline for its task, and the way from its results back to pictures."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from studio.engine.canvas import Inpainting, extend, fill_masked, fit, flatten, mask_of, plan_inpainting
from studio.engine.latents import as_picture, cell_size, encode_picture
from studio.errors import InvalidRequest
from studio.spec import IMAGE2IMAGE, INPAINT, TEXT2IMAGE, GenerationRequest

LoadImage = Callable[[str, str], Image.Image]  # (reference, field) -> picture

OTHER_STREAM = (
    0x9E3779B9  # sets the seed of masked "latent noise" apart: it must not repeat the noise that is added to it
)


class Start:
    """Where a job's pictures start from, and how its results are put back.

    Args:
        request: resolved.
        load_image: opens a picture by its reference.

    Raises:
        InvalidRequest: if picture and mask do not fit together.
    """

    def __init__(self, request: GenerationRequest, load_image: LoadImage) -> None:
        self.request = request
        self.picture: np.ndarray | None = None  # (height, width, 3) uint8: what the pipeline sees
        self.plan: Inpainting | None = None
        self._latents: dict[str, torch.Tensor] = {}
        self.notes: list[str] = []  # what a person should know of how pictures were encoded
        if request.image is None:
            return
        picture = flatten(load_image(request.image, "image"))
        if request.only_enlarges and request.width is None:
            self.picture = picture
            return
        assert request.width is not None
        assert request.height is not None
        if request.task == IMAGE2IMAGE:
            self.picture = fit(picture, request.width, request.height, request.resize_mode)
            return
        mask = mask_of(load_image(request.mask_image, "mask_image")) if request.mask_image else None
        if mask is not None and request.mask_invert:
            mask = 255 - mask  # before the canvas grows: what is added is always drawn
        try:
            if any(request.extensions):
                if not request.only_masked:
                    size = request.width, request.height
                    mask = fit(mask, *size, request.resize_mode) if mask is not None else None
                    picture = fit(picture, *size, request.resize_mode)
                picture, mask = extend(picture, mask, *request.extensions)
            assert mask is not None
            width, height = request.canvas
            self.plan = plan_inpainting(
                picture,
                mask,
                width=width,
                height=height,
                resize_mode=request.resize_mode,
                mask_blur=request.mask_blur,
                only_masked=request.only_masked,
                padding=request.padding,
            )
        except ValueError as error:
            raise InvalidRequest("mask_image", str(error)) from error
        self.picture = self.plan.picture

    def placed(self, own: np.ndarray | None, width: int, height: int) -> np.ndarray:
        """Lay a control picture where the picture itself lies.

        Args:
            own: (H, W, 3); None takes the picture itself.
            width: of what is drawn, in pixels.
            height: likewise.

        Returns:
            (height, width, 3).
        """
        if own is None:
            assert self.picture is not None
            return fit(self.picture, width, height, "stretch")
        mode, extensions = self.request.resize_mode, self.request.extensions
        if self.plan is None:
            return fit(own, width, height, mode)
        rows, columns = self.plan.source.shape[:2]
        left, right, top, bottom = extensions
        own = fit(own, columns - left - right, rows - top - bottom, mode)
        if any(extensions):  # the picture lies within the larger canvas
            own = extend(own, None, *extensions)[0]
        left, top, right, bottom = self.plan.box
        return fit(own[top:bottom, left:right], width, height, "fill")

    @property
    def unchanged(self) -> np.ndarray | None:
        """The result, if there is nothing to do because the strength is 0: (H, W, 3) uint8."""
        if self.picture is None or self.request.strength > 0:
            return None
        return self.plan.source if self.plan else self.picture

    def arguments(self, pipe: Any, seeds: list[int], *, pictures: bool = False) -> dict[str, Any]:
        """Return what the pipeline is told about pictures and sizes, for one picture a seed.

        Args:
            pipe: for the task.
            seeds: as many as pictures are made.
            pictures: whether it takes the picture itself, not its latents.
        """
        request = self.request
        size: dict[str, Any] = dict(zip(("width", "height"), request.canvas, strict=True))
        if request.task == TEXT2IMAGE:
            return size
        if getattr(pipe, "depth_estimator", None) is not None:  # it must see the picture itself
            assert self.picture is not None
            return {"image": [Image.fromarray(self.picture)] * len(seeds), "strength": request.strength}
        image = self._first_pictures(len(seeds)) if pictures else self._first_latents(pipe, seeds)
        if request.task == IMAGE2IMAGE:
            return started(pipe, image, size, request.strength)
        assert self.plan is not None
        assert self.picture is not None
        mask = Image.fromarray(cells(self.plan.mask, cell_size(pipe)))
        told = size | {"image": as_picture(pipe, image), "mask_image": [mask] * len(seeds) if pictures else mask}
        if takes(pipe, "strength"):
            told["strength"] = request.strength
        if takes(pipe, "masked_image_latents") and not pictures:
            hidden = self.picture.copy()
            hidden[self.plan.mask > 127] = 128  # what a model that sees the mask must not see; 128 is 0 for it
            told["masked_image_latents"] = self._encoded(pipe, "hidden", hidden)
        return told

    def finish(self, made: np.ndarray) -> np.ndarray:
        """Put results (B, height, width, 3) back into the picture that they are a part of."""
        return np.stack([self.plan.compose(one) for one in made]) if self.plan else made

    def _first_pictures(self, number: int) -> list[Image.Image]:
        """Return the picture that denoising starts from, as often as it is wanted."""
        assert self.picture is not None
        picture = self.picture
        if self.plan is not None and self.request.masked_content == "fill":
            picture = fill_masked(picture, self.plan.mask)
        return [Image.fromarray(picture)] * number

    def _first_latents(self, pipe: Any, seeds: list[int]) -> torch.Tensor:
        """Return the latents that denoising starts from, (B, C, h, w)."""
        assert self.picture is not None
        content = self.request.masked_content if self.request.task == INPAINT else "original"
        if content == "fill":
            assert self.plan is not None
            latents = self._encoded(pipe, "fill", fill_masked(self.picture, self.plan.mask))
        else:
            latents = self._encoded(pipe, "picture", self.picture)
        latents = latents.repeat(len(seeds), 1, 1, 1)
        if content in ("original", "fill"):
            return latents
        assert self.plan is not None
        step = cell_size(pipe)
        masked = torch.from_numpy(cells(self.plan.mask, step)[::step, ::step] > 127).to(latents.device)  # (h, w)
        if content == "latent nothing":
            return latents * ~masked
        noise = torch.cat(
            [
                torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(seed ^ OTHER_STREAM))
                for seed in seeds
            ]
        )
        return torch.where(masked, noise.to(latents), latents)

    def _encoded(self, pipe: Any, name: str, picture: np.ndarray) -> torch.Tensor:
        """Encode a picture (H, W, 3) once a job."""
        if name not in self._latents:
            self._latents[name] = encode_picture(pipe, picture, self.notes.append)
        return self._latents[name]


def started(pipe: Any, image: Any, size: dict[str, int], strength: float) -> dict[str, Any]:
    """Return what a pipeline for image to image is told.

    Args:
        pipe: that is called; one that inpaints repaints everything.
        image: latents (B, C, h, w) to start from.
        size: width and height in pixels.
        strength: how much may change.
    """
    told = {"image": as_picture(pipe, image), "strength": strength}
    if takes(pipe, "width"):
        told |= size
    if takes(pipe, "mask_image"):
        told["mask_image"] = Image.new("L", (size["width"], size["height"]), 255)
    return told


def takes(pipe: Any, name: str) -> bool:
    """Tell whether a pipeline has an argument of this name."""
    return name in inspect.signature(pipe.__call__).parameters


def cells(mask: np.ndarray, step: int) -> np.ndarray:
    """Grow a mask (H, W) to the cells of step x step pixels that it touches: a cell of latents is repainted as a whole."""
    height, width = mask.shape
    touched = mask.reshape(height // step, step, width // step, step).max(axis=(1, 3))
    return np.repeat(np.repeat(touched, step, axis=0), step, axis=1)
