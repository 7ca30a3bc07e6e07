"""The model that a run begins with: its parts, and what its text encoders say of captions."""

import gc
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from studio.engine.devices import Device
from studio.engine.inversions import Inversions
from studio.engine.pipelines import load_pipeline
from studio.engine.prompts import ENCODERS, NONE
from studio.errors import InvalidRequest
from studio.families import FAMILIES
from studio.family import ModelFamily
from studio.records import ModelRef
from trainers.denoisers import MASK, Denoiser, Told, denoiser_of

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_ESCAPED = re.compile(r"\\([()\[\]\\])")
_SYNTAX = re.compile(r"[()\[\]\\]")


@dataclass
class Parts:
    """A loaded model.

    Attributes:
        pipe: its pipeline, never called; the networks are within.
        reference: what was loaded.
        denoiser: how its network is asked.
        device: on which it is.
        vae_config: of its autoencoder, which may leave memory.
    """

    pipe: Any
    reference: ModelRef
    denoiser: Denoiser
    device: Device
    vae_config: Any

    @property
    def components(self) -> dict[str, Any]:
        """What the pipeline is made of, by its names."""
        return self.pipe.components

    @property
    def family(self) -> ModelFamily:
        return FAMILIES[self.reference.family]

    @property
    def cell(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.vae_config.block_out_channels) - 1)

    def text_encoders(self) -> dict[str, Any]:
        """Return the text encoders that are there, by the pipeline's names."""
        found = {name: getattr(self.pipe, name, None) for name in TEXT_ENCODERS}
        return {name: one for name, one in found.items() if one is not None}

    def encode(self, captions: list[str], inversions: Inversions = NONE) -> Told:
        """Encode captions as plain text, all to one length; (B, ...) each.

        An empty one becomes zeros where the model was trained so.

        Args:
            captions: may name inversions.
            inversions: gradients reach their vectors.
        """
        texts = {f"caption {i}": self.plain(caption) for i, caption in enumerate(captions)}
        with inversions.applied(self.pipe):
            named = (inversions,) if self.family.syntax else ()
            rows = ENCODERS[self.family.prompts](self.pipe, self.family, texts, 0, *named)
        if isinstance(rows[0]["prompt_embeds"], list):
            rows = padded([row["prompt_embeds"][0] for row in rows])
        told = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            words = torch.tensor([bool(caption) for caption in captions])
            for name, one in told.items():
                told[name] = one * words.to(one).view(-1, *[1] * (one.ndim - 1))
        return told

    def release(self, *, words: bool, pictures: bool, denoiser: bool = False) -> None:
        """Let encoders whose answers are cached leave memory, and the denoiser where nobody asks it."""
        names = [*(TEXT_ENCODERS if words else ()), *(("vae",) if pictures else ())]
        if denoiser:
            names.append(self.denoiser.prefix)
            self.denoiser.network = None
        for name in names:
            if getattr(self.pipe, name, None) is not None:
                setattr(self.pipe, name, None)
        gc.collect()
        if self.device.place.type == "cuda":
            torch.cuda.empty_cache()

    def plain(self, caption: str) -> str:
        r"""Return a caption so that no character of it is prompt syntax; `\(`, as tag sites write, means `(`."""
        if not self.family.syntax:
            return caption
        return _SYNTAX.sub(lambda found: f"\\{found[0]}", _ESCAPED.sub(r"\1", caption))


def padded(states: list[torch.Tensor]) -> list[Told]:
    """Bring captions' states, (length, width) each, to one length, (1, longest, width), with a mask beside them."""
    longest = max(map(len, states))
    return [
        {
            "prompt_embeds": torch.nn.functional.pad(one, (0, 0, 0, longest - len(one)))[None],
            MASK: (torch.arange(longest, device=one.device) < len(one)).to(one)[None],
        }
        for one in states
    ]


@dataclass
class Pixels:
    """What a method has in place of a loaded model if it builds its own, which works on pixels."""

    device: Device

    @property
    def components(self) -> dict[str, Any]:
        return {}

    def release(self, *, words: bool, pictures: bool) -> None:
        """Do nothing: there are no encoders."""


def load_parts(reference: ModelRef, device: Device, dtype: torch.dtype) -> Parts:
    """Load a model in a number format, frozen.

    Raises:
        ModelError: if it cannot be loaded.
        InvalidRequest: if its denoiser cannot be trained.
    """
    pipe = load_pipeline(reference, replace(device, dtype=dtype))
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return Parts(pipe, reference, denoiser_of(pipe), device, pipe.vae.config)


def earlier_network(path: Path, part: str, wanted: Any, scheduler: Any) -> Any:
    """Load the network of an earlier result of `unconditional`, to go on with.

    Args:
        path: of the result.
        part: its folder for the network.
        wanted: a network of the same class and shape.
        scheduler: what the network shall be asked by.

    Raises:
        InvalidRequest: if there is none, or it has another shape, or learnt to say something else.
    """
    if not (path / part / "config.json").is_file():
        raise InvalidRequest(
            "init_from", f"init_from={str(path)!r} has no {part}/config.json; choose a folder that unconditional made"
        )
    try:
        found: Any = type(wanted).from_pretrained(path / part, local_files_only=True, use_safetensors=True)
        before: Any = type(scheduler).load_config(path / "scheduler", local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidRequest("init_from", f"init_from={str(path)!r} cannot be loaded ({reason})") from None
    for name, here in wanted.config.items():
        there = found.config.get(name)
        if not name.startswith("_") and json.dumps(there) != json.dumps(here):
            raise InvalidRequest(
                "init_from",
                f"init_from={path.name!r} has another shape than this run: {name} is {there} there and {here} here",
            )
    for name in ("_class_name", "prediction_type"):
        there, here = before.get(name), {"_class_name": type(scheduler).__name__, **scheduler.config}.get(name)
        if there != here:
            raise InvalidRequest(
                "init_from",
                f"init_from={path.name!r} learnt to say something else than this run: its scheduler has {name} {there}, "
                f"not {here}; use its own preconditioning and prediction_type",
            )
    return found


def cache_folder(data_dir: Path) -> Path:
    """Return where encoded pictures and captions are kept between runs."""
    return data_dir / "cache" / "train"
