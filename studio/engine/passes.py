"""One call of a pipeline: its steps are watched, guidance may be on for a part of them, and noise may be mixed of two seeds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from studio.engine.latents import (
    cell_size,
    decode_latents,
    denoiser,
    encode_picture,
    in_cells,
    noise_shape,
    packed,
    unpacked,
)
from studio.engine.places import place_of
from studio.engine.previews import noise_scale, preview_png
from studio.engine.prompts import Prompts
from studio.engine.tasks import takes
from studio.errors import InvalidRequest
from studio.events import Preview
from studio.families import defaults_of
from studio.family import ModelFamily
from studio.records import ModelRef
from studio.spec import GenerationRequest
from studio.upscalers import LATENT


class Steps:
    """The steps of a group over all its passes, told as one count.

    Args:
        report: called with (step, steps), both counted over all passes.
        preview: stores a preview PNG and tells of it, with the step; None makes none.
        check: raises if the job should stop.
        factors: returns a pipeline's (C + 1, 3) map from latents to colour.
        notice: told what a person should know about the result.
    """

    def __init__(
        self,
        report: Callable[[int, int], None],
        preview: Callable[[int, bytes], None] | None,
        check: Callable[[], None],
        factors: Callable[[Any], Any],
        notice: Callable[[str], None],
    ) -> None:
        self.notice = notice
        self._report, self._preview, self.check, self._factors = report, preview, check, factors
        self._before = self._now = 0
        self._later = 0.0

    def begin(self, later: float = 0.0) -> None:
        """Begin a pass; `later` is how many times as many steps the passes after it have."""
        self._before, self._later = self._before + self._now, later

    def done(self, pipe: Any, step: int, latents: torch.Tensor) -> None:
        """Tell of a step (0-based) of the pass at hand."""
        self._now = step + 1
        steps = steps_of(pipe)
        total = self._before + steps + round(self._later * steps)
        if self._preview:
            picture = preview_png(in_cells(pipe, latents), self._factors(pipe), noise_scale(pipe.scheduler, step))
            self._preview(self._before + self._now, picture)
        self._report(self._before + self._now, total)
        self.check()


def run_pass(
    pipe: Any,
    family: ModelFamily,
    request: GenerationRequest,
    prompts: Prompts,
    generators: list[torch.Generator],
    steps: Steps,
    **more: Any,
) -> torch.Tensor:
    """Call a pipeline, for one picture a generator.

    Args:
        pipe: set up for the request.
        family: says how its pipelines are called.
        request: for guidance and steps.
        prompts: encoded.
        generators: one a picture.
        steps: hears of each.
        more: what the task needs besides; `decoded` false for latents.

    Returns:
        Pictures (B, 3, H, W) in [0, 1], or latents (B, C, h, w) if they shall not be decoded.

    Raises:
        ModelError: if there is NaN in the result.
    """
    number, within = len(generators), guided(request)
    state: dict[str, Any] = {"on": within(0.0), "said": prompts.at(0.0)}
    size = (more["width"], more["height"]) if "width" in more else None
    decoded = more.pop("decoded", True)

    def after_step(pipe: Any, step: int, timestep: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state["latents"] = unpacked(pipe, values["latents"], size)
        steps.done(pipe, step, state["latents"])
        fraction = (step + 1) / steps_of(pipe)
        on, said = within(fraction), prompts.at(fraction)
        turned = on != state["on"] and bool(said.negative)
        if not turned and said is state["said"]:
            return {}
        if (
            turned
        ):  # diffusers' own way to change guidance half-way ("Dynamic classifier-free guidance" in its callbacks guide)
            pipe._guidance_scale = request.guidance_scale if on else 1.0
        state.update(on=on, said=said)
        return said.switched(family.switched, values, number, guided=on and bool(said.negative))

    arguments = {theirs: getattr(request, name) for name, theirs in family.arguments.items()} | family.call_options
    if family.guidance_offset:
        arguments[family.arguments["guidance_scale"]] -= family.guidance_offset
    if request.pag_scale:
        arguments["pag_scale"] = request.pag_scale
    if request.guidance_rescale and takes(pipe, "guidance_rescale"):  # Stable Diffusion's second pass has none
        arguments["guidance_rescale"] = request.guidance_rescale
    if not state["on"]:
        arguments["guidance_scale"] = 1.0
    unchanged = [name for name, part in family.switched.items() if not part]
    pipe(
        **(arguments | prompts.arguments(number)),
        **watched(pipe, after_step, ["latents", *unchanged]),
        generator=generators,
        **{"num_inference_steps": request.num_inference_steps, "output_type": "latent"} | more,
    )
    latents = state["latents"]  # after the last step; what a pipeline returns may be scaled for its autoencoder already
    return decode_latents(pipe, latents, steps.notice) if decoded else latents


def watched(pipe: Any, after_step: Callable[..., Any], tensors: list[str]) -> dict[str, Any]:
    """Return the arguments that make a pipeline tell of its steps; the oldest interface hands out the latents only."""
    if takes(pipe, "callback_on_step_end"):
        return {"callback_on_step_end": after_step, "callback_on_step_end_tensor_inputs": tensors}
    return {"callback": lambda step, timestep, latents: after_step(pipe, step, timestep, {"latents": latents})}


def steps_of(pipe: Any) -> int:
    """Return how many steps a running pipeline tells of."""
    told = getattr(pipe, "num_timesteps", None)
    return told if told is not None else -(-len(pipe.scheduler.timesteps) // pipe.scheduler.order)


def guided(request: GenerationRequest) -> Callable[[float], bool]:
    """Return whether guidance is on at a fraction of the steps (Kynkaanniemi et al. 2024, arXiv:2404.07724)."""
    first, last = request.guidance_start, request.guidance_end
    return lambda fraction: first <= fraction < last or (last == 1 and fraction >= first)


def mixed_noise(
    pipe: Any, family: ModelFamily, request: GenerationRequest, index: int, generators: list[torch.Generator]
) -> torch.Tensor:
    """Draw each picture's noise and turn it towards that of the variation seed, as the pipeline takes it.

    Args:
        pipe: for the shape of its latents.
        family: says in which number format the pipeline draws.
        request: names the variation seed, its strength and the size.
        index: of the group's first picture: picture i varies with `variation_seed` + i.
        generators: one a picture; what is drawn is what the pipeline would have drawn.
    """
    assert request.width is not None
    assert request.height is not None
    shape, network = noise_shape(pipe, request.width, request.height), denoiser(pipe)
    dtype = torch.float32 if family.float_noise else network.dtype
    rows = []
    for number, generator in enumerate(generators):
        other = torch.Generator().manual_seed(request.variation_seed + index + number)
        own, drawn = (torch.randn(shape, generator=source, dtype=dtype) for source in (generator, other))
        rows.append(slerp(request.variation_strength, own, drawn))
    return packed(pipe, torch.cat(rows)).to(place_of(network))


def slerp(fraction: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Go from `first` to `second` on a great circle, which keeps the length that noise must have (Shoemake 1985)."""
    if torch.equal(first, second):  # there is no circle through one point
        return first
    one, other = first.double(), second.double()
    angle = torch.arccos((one.flatten() @ other.flatten() / (one.norm() * other.norm())).clamp(-1, 1))
    mixed = (torch.sin((1 - fraction) * angle) * one + torch.sin(fraction * angle) * other) / torch.sin(angle)
    return mixed.to(first.dtype)


def refiner_steps(pipe: Any, request: GenerationRequest) -> float:
    """Return how many times as many steps the refiner takes as the first model.

    Both pipelines cut the list of timesteps at `refiner_start` of the noise schedule's length.

    Raises:
        InvalidRequest: if one of them would have no step, or a step could be cut in two.
    """
    if pipe.scheduler.order > 1:
        raise InvalidRequest(
            "scheduler",
            f"scheduler={request.scheduler!r} runs twice a step and does not work with a refiner; use Euler",
        )
    pipe.scheduler.set_timesteps(request.num_inference_steps)
    length = pipe.scheduler.config.num_train_timesteps
    first = int((pipe.scheduler.timesteps >= round(length - request.refiner_start * length)).sum())
    second = len(pipe.scheduler.timesteps) - first
    if not first or not second:
        raise InvalidRequest(
            "refiner_start",
            f"refiner_start={request.refiner_start:g} gives {first} of {first + second} steps to the model and {second} to the "
            "refiner; each needs one",
        )
    return second / first


def second_stage(request: GenerationRequest, refiner: ModelRef, *, guided: bool = True) -> GenerationRequest:
    """Return what a cascade's second stage is asked for: its own usual steps, guidance and method, whatever the first stage's are.

    Args:
        request: that the first stage drew for.
        refiner: the second stage.
        guided: whether guidance is on at all.
    """
    own = defaults_of(refiner.family, refiner.kind, {})
    names = ("num_inference_steps", "guidance_scale", "scheduler")
    told = {name: own[name] for name in names} | ({} if guided else {"guidance_scale": 1.0})
    return request.model_copy(update=told | {"sigmas": "automatic"})


def second_steps(request: GenerationRequest, noise: str) -> int:
    """Return how many steps the second pass takes; pipelines with flow noise round up, the others down."""
    again = request.hires_steps or request.num_inference_steps or 0
    part = again * request.hires_strength
    return again - int(again - part) if noise == "flow" else int(part)


def enlarged(
    pipe: Any,
    made: torch.Tensor,
    request: GenerationRequest,
    enlarge: Callable[[np.ndarray], np.ndarray],
    notice: Callable[[str], None],
    *,
    pictures: bool = False,
) -> torch.Tensor | list[Image.Image]:
    """Turn the first pass's result into the latents that the second starts from, (B, C, h, w).

    Args:
        pipe: of the second pass.
        made: latents for the `latent` upscaler, else pictures (B, 3, H, W) in [0, 1].
        request: names the upscaler and the size.
        enlarge: brings a picture (H, W, 3) to that size, for any other upscaler.
        notice: told if half precision was not enough.
        pictures: whether the second pass takes pictures, which it encodes itself; they are what is returned then.
    """
    if request.hires_upscaler == LATENT:
        width, height = request.hires_size
        size = (height // cell_size(pipe), width // cell_size(pipe))
        latents = torch.nn.functional.interpolate(made, size=size, mode="bilinear", antialias=True)
        if not pictures:
            return latents
        larger = list(to_pixels(decode_latents(pipe, latents, notice)))
    else:
        larger = [enlarge(one) for one in to_pixels(made)]
    if pictures:
        return [Image.fromarray(one) for one in larger]
    return torch.cat([encode_picture(pipe, one, notice) for one in larger])


def to_pixels(made: torch.Tensor) -> np.ndarray:
    """From (B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8."""
    return (made.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def preview_event(
    job: str, save: Callable[[bytes], str], emit: Callable[[Preview], None]
) -> Callable[[int, bytes], None]:
    """Return what stores a preview and tells of it."""
    return lambda step, png: emit(Preview(job=job, step=step, path=save(png)))
