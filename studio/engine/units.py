"""Units at work: ControlNets and adapters steer a denoiser, whichever pipeline it runs in.

diffusers has a pipeline for some pairs of a task and a unit, none for others (a T2I-Adapter in img2img, two kinds at once), and some
that tell of no step. Here the denoiser itself is wrapped: every task of every pipeline works with every unit, with the same random
numbers as without.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch

from studio.engine.canvas import flatten
from studio.engine.controls import Preprocessors
from studio.engine.latents import Notice, denoiser
from studio.engine.parts import PartManager
from studio.engine.pipelines import rebuilt
from studio.engine.seeing import Look, joint_sees, unet_sees
from studio.engine.steering import Steered, joint_arguments, joint_condition, unet_arguments, unet_condition
from studio.engine.tasks import LoadImage, Start
from studio.errors import InvalidRequest
from studio.parts import UNIT_KINDS
from studio.records import Job
from studio.transparency import over
from studio.units import ControlSpec, T2IAdapterSpec


class Steering(NamedTuple):
    """How a kind of denoiser is steered.

    Attributes:
        component: the pipeline's name of it.
        arguments: what it is called with at a step.
        condition: turns a control picture (H, W, 3) into what a network reads, from the pipeline, the network and the picture.
        sees: lets it attend to IP-Adapters' pictures.
    """

    component: str
    arguments: Callable[..., dict[str, Any]]
    condition: Callable[[Any, Any, np.ndarray, Notice], torch.Tensor]
    sees: Callable[[Any, list[Look]], AbstractContextManager[list[torch.Tensor]]]


STEERINGS = {
    "UNet2DConditionModel": Steering("unet", unet_arguments, unet_condition, unet_sees),
    "SD3Transformer2DModel": Steering("transformer", joint_arguments, joint_condition, joint_sees),
}


class Units:
    """The units of one job.

    Args:
        job: names them and where their weights are.
        load_image: opens their pictures.
        start: lays a picture on the canvas as the job's own.
        parts: loads weights.
        preprocessors: make control pictures.
    """

    def __init__(
        self, job: Job, load_image: LoadImage, start: Start, *, parts: PartManager, preprocessors: Preprocessors
    ) -> None:
        self._refs = {(part.kind, part.id): part for part in job.parts}
        self._start, self._parts, self._preprocessors = start, parts, preprocessors
        self._request = request = job.request
        self._controls = [unit for unit in request.controls if unit.weight]
        self._t2i = [unit for unit in request.t2i_adapters if unit.weight]
        self._ip = [unit for unit in request.ip_adapters if unit.scale]
        self._given: dict[str, np.ndarray] = {}
        self._conditions: dict[tuple[str, tuple[int, int]], torch.Tensor] = {}
        self._seen = []
        for name in ("controls", "t2i_adapters"):
            for place, unit in enumerate(getattr(request, name)):
                if unit.image and unit.weight:
                    self._given[unit.image] = flatten(load_image(unit.image, f"{name}.{place}.image"))
        for place, unit in enumerate(request.ip_adapters):
            if unit.scale:
                fields = [f"ip_adapters.{place}.images.{i}" for i in range(len(unit.images))]
                self._seen.append(
                    [over(load_image(*pair), "white").convert("RGB") for pair in zip(unit.images, fields, strict=True)]
                )

    def __bool__(self) -> bool:
        return bool(self._controls or self._t2i or self._ip)

    @contextlib.contextmanager
    def applied(self, pipe: Any, size: tuple[int, int], group: int) -> Iterator[Any]:
        """Yield a pipeline whose denoiser is steered; the given one, and all weights, are left as they are.

        Args:
            pipe: set up for the request.
            size: width and height of what it draws.
            group: pictures at once.
        """
        if not self:
            yield pipe
            return
        network = denoiser(pipe)
        steering = STEERINGS[type(network).__name__]
        self._check_sizes(pipe)
        steered = Steered(network, group, steering.arguments)
        for unit in self._controls:
            control = self._network(pipe, "controls", unit.model)
            steered.controls.append((unit, control, self._condition(steering, pipe, control, unit, size)))
        for unit in self._t2i:
            adapter = self._network(pipe, "t2i_adapters", unit.model)
            steered.features.append((unit, adapter(self._condition(steering, pipe, adapter, unit, size))))
        made = rebuilt(pipe, **{steering.component: steered})
        made.set_progress_bar_config(disable=True)
        steered.total = lambda: made.num_timesteps
        looks = [
            Look(unit.model, unit.scale, self._network(pipe, "ip_adapters", unit.model), pictures)
            for unit, pictures in zip(self._ip, self._seen, strict=True)
        ]
        with steering.sees(pipe, looks) if looks else contextlib.nullcontext([]) as steered.seen:
            yield made

    def _condition(
        self, steering: Steering, pipe: Any, network: Any, unit: ControlSpec | T2IAdapterSpec, size: tuple[int, int]
    ) -> torch.Tensor:
        """Return what a network reads of its control picture, made once a job and size."""
        key = (unit.model_dump_json(), size)
        if key not in self._conditions:
            self._conditions[key] = steering.condition(
                pipe, network, self.control_map(unit, size), self._start.notes.append
            )
        return self._conditions[key]

    def control_map(self, unit: ControlSpec | T2IAdapterSpec, size: tuple[int, int]) -> np.ndarray:
        """Return what a unit follows, (height, width, 3) uint8."""
        picture = self._start.placed(self._given[unit.image] if unit.image else None, *size)
        return self._preprocessors.run(picture, unit.preprocessor, resolution=unit.resolution, options=unit.options)

    def _check_sizes(self, pipe: Any) -> None:
        """Refuse a size that a network cannot read, before the first of two passes."""
        sizes = [("width", self._request.canvas)]
        if self._request.hires_scale > 1:
            sizes.append(("hires_scale", self._request.hires_size))
        for field, size in sizes:
            for unit in self._t2i:
                step = self._network(pipe, "t2i_adapters", unit.model).config.downscale_factor
                if any(side % step for side in size):
                    raise InvalidRequest(
                        field,
                        f"{size[0]} x {size[1]} pixels do not fit the T2I-Adapter {unit.model}; use multiples of {step}, "
                        f"such as {' x '.join(str(side // step * step) for side in size)}",
                    )
            for unit in self._controls:
                most = pixels_most(self._network(pipe, "controls", unit.model), pipe.vae_scale_factor)
                if most and max(size) > most:
                    raise InvalidRequest(
                        field,
                        f"{size[0]} x {size[1]} pixels are more than the ControlNet {unit.model} has places for; "
                        f"use at most {most} a side",
                    )

    def _network(self, pipe: Any, field: str, model: str) -> Any:
        """Return a unit's network; what a single file does not say is as in the pipeline's denoiser."""
        return self._parts.get(self._refs[UNIT_KINDS[field], model], denoiser(pipe).config)


def pixels_most(network: Any, scale: int) -> int:
    """Return how long a side can be for a ControlNet's own places of patches, in pixels; 0 if any will do."""
    if getattr(network, "pos_embed", None) is None:
        return 0
    return network.config.pos_embed_max_size * network.config.patch_size * scale
