"""A denoiser that is steered at each step: what a UNet, and what the transformer of Stable Diffusion 3, is called with."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch

from studio.engine.latents import Notice, encode_picture
from studio.engine.places import bring_in, place_of
from studio.units import ControlSpec, T2IAdapterSpec

SOFT = 0.825  # A1111's weakening of each block further out, when prompt or ControlNet is "more important"
Control = tuple[ControlSpec, Any, torch.Tensor]  # a unit, its network, what that follows


class Step(NamedTuple):
    """What steers one step.

    Attributes:
        denoiser: that is steered.
        group: pictures at once; a batch of twice as many has the unconditional half first.
        controls: the ControlNets that are active.
        features: of the T2I-Adapters that are active.
        seen: the IP-Adapters' pictures, (2, pictures, …) each; the first row is for the unconditional half.
    """

    denoiser: Any
    group: int
    controls: list[Control]
    features: list[tuple[T2IAdapterSpec, list[torch.Tensor]]]
    seen: list[torch.Tensor]

    def rows(self, seen: torch.Tensor, batch: int) -> torch.Tensor:
        """Return an IP-Adapter's pictures (2, pictures, …) for each row of a batch."""
        halves = slice(None) if self.guided(batch) else slice(1, None)
        return seen[halves].repeat_interleave(self.group, dim=0)

    def guided(self, batch: int) -> bool:
        """Whether a batch has an unconditional half."""
        return batch == 2 * self.group


class Steered(torch.nn.Module):
    """A denoiser that adds what its units say at each step. In all other respects it is the one that it was given.

    Args:
        denoiser: of a pipeline.
        group: pictures at once.
        arguments: what the denoiser is called with at a step, from what the pipeline calls it with.
    """

    def __init__(self, denoiser: Any, group: int, arguments: Callable[..., dict[str, Any]]) -> None:
        super().__init__()
        self.denoiser, self.group, self._arguments = denoiser, group, arguments
        self.controls: list[Control] = []
        self.features: list[tuple[T2IAdapterSpec, list[torch.Tensor]]] = []
        self.seen: list[torch.Tensor] = []
        self.total: Callable[[], int] = lambda: 1
        self._step = 0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.denoiser, name)

    def forward(self, *given: Any, **named: Any) -> Any:
        """See the denoiser's own; called once a step."""
        bring_in(self.denoiser)  # a ControlNet or an adapter may use a part of it first
        step, total = self._step, self.total()
        self._step = (step + 1) % total
        now = Step(
            self.denoiser,
            self.group,
            [one for one in self.controls if is_active(one[0], step, total)],
            [one for one in self.features if is_active(one[0], step, total)],
            self.seen,
        )
        return self.denoiser(**self._arguments(now, *given, **named))


def is_active(unit: ControlSpec | T2IAdapterSpec, step: int, total: int) -> bool:
    """Whether a unit steers a step, counted from 0; diffusers' own rule for its ControlNet pipelines."""
    return step / total >= unit.start and (step + 1) / total <= unit.end


def unet_arguments(
    now: Step,
    sample: torch.Tensor,
    timestep: Any,
    encoder_hidden_states: torch.Tensor,
    added_cond_kwargs: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return what a steered `UNet2DConditionModel` is called with."""
    added = dict(added_cond_kwargs or {})
    if now.controls:
        parts = [_levels(now, one, sample, timestep, encoder_hidden_states, added) for one in now.controls]
        summed = [reduce(torch.add, level) for level in zip(*parts, strict=True)]
        more |= {"down_block_additional_residuals": summed[:-1], "mid_block_additional_residual": summed[-1]}
    features = [[unit.weight * level for level in levels] for unit, levels in now.features]
    if features:
        levels = [reduce(torch.add, level) for level in zip(*features, strict=True)]
        more["down_intrablock_additional_residuals"] = [f.expand(len(sample), -1, -1, -1) for f in levels]
    if now.seen:
        added["image_embeds"] = [now.rows(one, len(sample)) for one in now.seen]
    states = {"encoder_hidden_states": encoder_hidden_states, "added_cond_kwargs": added or None}
    return {"sample": sample, "timestep": timestep, **states, **more}


def _levels(
    now: Step,
    control: Control,
    sample: torch.Tensor,
    timestep: Any,
    states: torch.Tensor,
    added: dict[str, Any],
) -> list[torch.Tensor]:
    """Return what a ControlNet adds to each level of a UNet, outermost first, the middle last."""
    unit, network, condition = control
    half = now.guided(len(sample)) and (unit.mode == "control" or network.config.global_pool_conditions)
    if half:  # the unconditional half is left alone
        sample, states = sample[now.group :], states[now.group :]
        added = {name: value[now.group :] for name, value in added.items()}
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
    return with_other_half(levels) if half else levels


def joint_arguments(
    now: Step,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    pooled_projections: torch.Tensor,
    joint_attention_kwargs: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return what a steered `SD3Transformer2DModel` is called with."""
    batch, joint = len(hidden_states), dict(joint_attention_kwargs or {})
    states = {"encoder_hidden_states": encoder_hidden_states, "pooled_projections": pooled_projections}
    if now.controls:
        depth = len(now.denoiser.transformer_blocks)
        parts = [_blocks(now, one, hidden_states, timestep, **states) for one in now.controls]
        if len({len(part) for part in parts}) > 1:  # of different depth: diffusers would drop the end of the longer
            parts = [spread(part, depth) for part in parts]
        more["block_controlnet_hidden_states"] = [reduce(torch.add, block) for block in zip(*parts, strict=True)]
    for seen in now.seen:
        rows = now.rows(seen, batch)  # (B, pictures, tokens, width)
        looked = [now.denoiser.image_proj(picture, timestep) for picture in rows.unbind(dim=1)]
        joint |= {"ip_hidden_states": torch.cat([tokens for tokens, _ in looked], dim=1), "temb": looked[0][1]}
    given = {"hidden_states": hidden_states, "timestep": timestep, "joint_attention_kwargs": joint or None}
    return given | states | more


def _blocks(
    now: Step,
    control: Control,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    pooled_projections: torch.Tensor,
) -> list[torch.Tensor]:
    """Return what a ControlNet adds after blocks of a transformer, one for each block of its own."""
    unit, network, condition = control
    half = now.guided(len(hidden_states)) and unit.mode == "control"
    if half:  # the unconditional half is left alone
        hidden_states, timestep = hidden_states[now.group :], timestep[now.group :]
        encoder_hidden_states, pooled_projections = encoder_hidden_states[now.group :], pooled_projections[now.group :]
    if network.config.force_zeros_for_pooled_projection:
        pooled_projections = torch.zeros_like(pooled_projections)
    batch = len(hidden_states)
    if network.pos_embed is None:  # Stable Diffusion 3.5's own ones are given patches, in the model's own places
        hidden_states = now.denoiser.pos_embed(hidden_states)  # (B, C, h, w) -> (B, h/2 * w/2, width)
    (blocks,) = network(
        hidden_states=hidden_states,
        timestep=timestep,
        encoder_hidden_states=None if network.context_embedder is None else encoder_hidden_states,
        pooled_projections=pooled_projections,
        controlnet_cond=condition.expand(batch, -1, -1, -1),
        conditioning_scale=unit.weight,
        return_dict=False,
    )
    return with_other_half(blocks) if half else list(blocks)


def spread(blocks: list[torch.Tensor], depth: int) -> list[torch.Tensor]:
    """Return which of a ControlNet's results each block of a transformer adds; SD3Transformer2DModel's own rule."""
    return [blocks[int(i / (depth / len(blocks)))] for i in range(depth)]


def with_other_half(levels: list[torch.Tensor]) -> list[torch.Tensor]:
    """Put nothing before each level: the unconditional half."""
    return [torch.cat([torch.zeros_like(level), level]) for level in levels]


def unet_condition(pipe: Any, network: Any, picture: np.ndarray, _: Notice) -> torch.Tensor:
    """Turn a control picture (H, W, 3) uint8 into what a UNet's ControlNet or adapter reads, (1, C, H, W) in [0, 1]."""
    values = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    channels = (
        network.config.get("conditioning_channels") or network.config["in_channels"]
    )  # a ControlNet's, an adapter's
    values = values if channels == 3 else values.mean(dim=1, keepdim=True)
    return values.to(place_of(pipe.unet), pipe.unet.dtype)


def joint_condition(pipe: Any, network: Any, picture: np.ndarray, notice: Notice) -> torch.Tensor:
    """Encode a control picture (H, W, 3) uint8 as Stable Diffusion 3's ControlNets read it, (1, C, h, w).

    The mean: diffusers' pipeline takes a sample, with numbers from the process's own generator, which would make a seed's picture
    depend on what was drawn before. Those that want no pooled prompt were trained without the autoencoder's shift, too.
    """
    latents = encode_picture(pipe, picture, notice, shifted=not network.config.force_zeros_for_pooled_projection)
    return latents.to(place_of(pipe.transformer), pipe.transformer.dtype)
