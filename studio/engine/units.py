"""Units at work: ControlNets and adapters steer a denoiser, whichever pipeline it runs in.

diffusers has a pipeline for some pairs of a task and a unit, none for others (a T2I-Adapter in img2img, two kinds at once), and some
that tell of no step. Here the denoiser itself is wrapped: every task of every pipeline works with every unit, with the same random
numbers as without.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import numpy as np
import torch
from diffusers.models.embeddings import ImageProjection
from PIL import Image

from studio.engine.canvas import flatten
from studio.engine.controls import Preprocessors
from studio.engine.parts import IPWeights, PartManager
from studio.engine.tasks import LoadImage, Start
from studio.errors import InvalidRequest
from studio.parts import UNIT_KINDS
from studio.records import Job
from studio.units import ControlSpec, T2IAdapterSpec

SOFT = 0.825  # A1111's weakening of each block further out, when prompt or ControlNet is "more important"


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
        self._maps: dict[tuple[str, tuple[int, int]], np.ndarray] = {}
        self._seen = []
        for name in ("controls", "t2i_adapters"):
            for place, unit in enumerate(getattr(request, name)):
                if unit.image and unit.weight:
                    self._given[unit.image] = flatten(load_image(unit.image, f"{name}.{place}.image"))
        for place, unit in enumerate(request.ip_adapters):
            if unit.scale:
                fields = [f"ip_adapters.{place}.images.{i}" for i in range(len(unit.images))]
                self._seen.append([load_image(*pair).convert("RGB") for pair in zip(unit.images, fields, strict=True)])

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
        self._check_sizes()
        place, dtype = pipe.unet.device, pipe.unet.dtype
        steered = SteeredUNet(pipe.unet, group)
        for unit in self._controls:
            condition = to_condition(self.control_map(unit, size)).to(place, dtype)
            network = self._parts.get(self._refs[UNIT_KINDS["controls"], unit.model], pipe.unet.config)
            steered.controls.append((unit, network, condition))
        for unit in self._t2i:
            network = self._network("t2i_adapters", unit.model)
            condition = to_condition(self.control_map(unit, size), network.config.in_channels).to(place, dtype)
            steered.features.append((unit, network(condition)))
        made = rebuilt(pipe, unet=steered)
        made.set_progress_bar_config(disable=True)
        steered.total = lambda: made.num_timesteps
        with self._pictures_seen(pipe) as steered.seen:
            yield made

    def control_map(self, unit: ControlSpec | T2IAdapterSpec, size: tuple[int, int]) -> np.ndarray:
        """Return what a unit follows, (height, width, 3) uint8."""
        key = (unit.model_dump_json(), size)
        if key not in self._maps:
            picture = self._start.placed(self._given[unit.image] if unit.image else None, *size)
            self._maps[key] = self._preprocessors.run(
                picture, unit.preprocessor, resolution=unit.resolution, options=unit.options
            )
        return self._maps[key]

    def _check_sizes(self) -> None:
        """Refuse a size that an adapter cannot read, before the first of two passes."""
        sizes = [("width", self._request.canvas)]
        if self._request.hires_scale > 1:
            sizes.append(("hires_scale", self._request.hires_size))
        for unit in self._t2i:
            step = self._network("t2i_adapters", unit.model).config.downscale_factor
            for field, size in sizes:
                if any(side % step for side in size):
                    raise InvalidRequest(
                        field,
                        f"{size[0]} x {size[1]} pixels do not fit the T2I-Adapter {unit.model}; use multiples of {step}, "
                        f"such as {' x '.join(str(side // step * step) for side in size)}",
                    )

    def _network(self, field: str, model: str) -> Any:
        return self._parts.get(self._refs[UNIT_KINDS[field], model])

    @contextlib.contextmanager
    def _pictures_seen(self, pipe: Any) -> Iterator[list[torch.Tensor]]:
        """Let the denoiser attend to the IP-Adapters' pictures; yield them encoded, (2, pictures, width) an adapter.

        The first row is for the unconditional half. The denoiser's own attention is put back afterwards.
        """
        if not self._ip:
            yield []
            return
        weights = [self._network("ip_adapters", unit.model) for unit in self._ip]
        names = [""] * len(weights)
        loader = rebuilt(pipe, image_encoder=weights[0].encoder, feature_extractor=weights[0].processor)
        try:
            with torch.inference_mode(False):
                loader.load_ip_adapter([one.state for one in weights], names, names, image_encoder_folder=None)
            loader.set_ip_adapter_scale([unit.scale for unit in self._ip])
            layers = pipe.unet.encoder_hid_proj.image_projection_layers
            yield [self._encoded(pipe, *one) for one in zip(weights, layers, self._seen, strict=True)]
        finally:
            loader.unload_ip_adapter()

    def _encoded(self, pipe: Any, weights: IPWeights, layer: Any, images: list[Image.Image]) -> torch.Tensor:
        """Encode one IP-Adapter's pictures with its own encoder, (2, pictures, …): each adapter may have another."""
        own = rebuilt(pipe, image_encoder=weights.encoder, feature_extractor=weights.processor)
        hidden = not isinstance(layer, ImageProjection)
        positive, negative = own.encode_image(images, pipe.unet.device, 1, hidden)
        return torch.stack([negative, positive])


class SteeredUNet(torch.nn.Module):
    """A UNet that adds what its units say at each step. In all other respects it is the UNet that it was given.

    Args:
        unet: of a pipeline.
        group: pictures at once; a batch of twice as many has the unconditional half first.
    """

    def __init__(self, unet: Any, group: int) -> None:
        super().__init__()
        self.unet, self.group = unet, group
        self.controls: list[tuple[ControlSpec, Any, torch.Tensor]] = []
        self.features: list[tuple[T2IAdapterSpec, list[torch.Tensor]]] = []
        self.seen: list[torch.Tensor] = []
        self.total: Callable[[], int] = lambda: 1
        self._step = 0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.unet, name)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: Any,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: dict[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """See UNet2DConditionModel.forward; called once a step."""
        step, total = self._step, self.total()
        self._step = (step + 1) % total
        guided = len(sample) == 2 * self.group
        added = dict(added_cond_kwargs or {})
        active = [one for one in self.controls if is_active(one[0], step, total)]
        if active:
            parts = [self._residuals(*one, sample, timestep, encoder_hidden_states, added, guided) for one in active]
            summed = [reduce(torch.add, level) for level in zip(*parts, strict=True)]
            more |= {"down_block_additional_residuals": summed[:-1], "mid_block_additional_residual": summed[-1]}
        features = [[unit.weight * f for f in maps] for unit, maps in self.features if is_active(unit, step, total)]
        if features:
            levels = [reduce(torch.add, level) for level in zip(*features, strict=True)]
            more["down_intrablock_additional_residuals"] = [f.expand(len(sample), -1, -1, -1) for f in levels]
        if self.seen:
            halves = slice(None) if guided else slice(1, None)
            added["image_embeds"] = [one[halves].repeat_interleave(self.group, dim=0) for one in self.seen]
        return self.unet(
            sample, timestep, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added or None, **more
        )

    def _residuals(
        self,
        unit: ControlSpec,
        network: Any,
        condition: torch.Tensor,
        sample: torch.Tensor,
        timestep: Any,
        states: torch.Tensor,
        added: dict[str, Any],
        guided: bool,
    ) -> list[torch.Tensor]:
        """Return what a ControlNet adds to each level, outermost first, the middle last."""
        half = guided and (unit.mode == "control" or network.config.global_pool_conditions)
        if half:  # the unconditional half is left alone
            sample, states = sample[self.group :], states[self.group :]
            added = {name: value[self.group :] for name, value in added.items()}
        down, middle = network(
            sample[:, : network.config.in_channels],
            timestep,
            encoder_hidden_states=states,
            controlnet_cond=condition.expand(len(sample), -1, -1, -1),
            conditioning_scale=unit.weight,
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        levels = [*down, middle]
        if unit.mode != "balanced":
            levels = [level * SOFT ** (len(levels) - 1 - i) for i, level in enumerate(levels)]
        return [torch.cat([torch.zeros_like(level), level]) for level in levels] if half else levels


def is_active(unit: ControlSpec | T2IAdapterSpec, step: int, total: int) -> bool:
    """Whether a unit steers a step, counted from 0; diffusers' own rule for its ControlNet pipelines."""
    return step / total >= unit.start and (step + 1) / total <= unit.end


def to_condition(picture: np.ndarray, channels: int = 3) -> torch.Tensor:
    """Turn a control picture (H, W, 3) uint8 into what a network reads, (1, channels, H, W) in [0, 1]."""
    values = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return values if channels == 3 else values.mean(dim=1, keepdim=True)


def rebuilt(pipe: Any, **components: Any) -> Any:
    """Build a pipeline of the same class and with the same options over the same components, but for those given."""
    told = [name for name in inspect.signature(type(pipe).__init__).parameters if name not in pipe.components]
    options = {name: pipe.config[name] for name in told if name in pipe.config}
    if "add_watermarker" in told:  # not among the options that a pipeline remembers
        options["add_watermarker"] = pipe.watermark is not None
    return type(pipe)(**(pipe.components | components), **options)
