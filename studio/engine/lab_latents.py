"""Panel 5, first part: what an autoencoder makes of a picture, and what its latents look like to the denoiser."""

import math

import numpy as np
import torch

from studio.engine.canvas import flatten
from studio.engine.lab_bench import Bench
from studio.engine.vae_check import pass_through, psnr
from studio.errors import InvalidRequest
from studio.lab import Film, Findings, Frame, Line, Plot, Table, axis, finite
from studio.lab_latents import LatentsRequest

REACH, BINS = 4.0, 41  # of the plot of values, in deviations of a normal distribution
SINGLE = 8  # channels that have a line each; of more, all values make one
SHOWN = 3.0  # latents from -3 to 3 are black to white


def run_latents(bench: Bench, request: LatentsRequest) -> Findings:
    """Encode, decode, compare, and count the values of each channel."""
    if not request.image:
        raise InvalidRequest("image", "image is missing; give the picture that shall be encoded")
    passed = pass_through(bench.vae, flatten(bench.load_image(request.image, "image")), bench.notice)
    pictures = {"given": passed.given, "decoded": passed.decoded, "difference": passed.difference}
    names = {name: bench.keep(name, one) for name, one in pictures.items()}
    channels = {
        f"channel_{number}": bench.keep(f"channel-{number:02d}", grey(plane))
        for number, plane in enumerate(passed.latents)
    }
    height, width = passed.given.shape[:2]
    values = passed.latents.numel()
    quality = (psnr(passed.error), int(np.abs(passed.error).max()), f"{width} x {height}", shape_text(passed.latents))
    return Findings(
        panel="latents",
        settings=request.model_dump(mode="json"),
        plots=(Plot(name="values", x="value", y="density", lines=lines(passed.latents)),),
        tables=(
            Table(
                name="quality",
                columns=("psnr", "worst", "size", "latents", "times_fewer"),
                rows=((*quality, round(passed.given.size / values, 2)),),
            ),
            Table(
                name="channels",
                columns=("channel", "mean", "deviation", "least", "greatest"),
                rows=tuple((number, *measured(plane)) for number, plane in enumerate(passed.latents)),
            ),
        ),
        films=(
            Film(name="check", frames=(Frame(caption="", pictures=names),)),
            Film(name="channels", frames=(Frame(caption="", pictures=channels),)),
        ),
    )


def measured(plane: torch.Tensor) -> tuple[float | None, ...]:
    """Return mean, deviation, least and greatest value of a channel (h, w)."""
    return finite([plane.mean(), plane.std(), plane.min(), plane.max()], 4)


def lines(latents: torch.Tensor) -> tuple[Line, ...]:
    """Return how often latents (C, h, w) have which value, beside the normal distribution that noise has."""
    edges = torch.linspace(-REACH, REACH, BINS + 1)
    centres, width = ((edges[1:] + edges[:-1]) / 2).tolist(), 2 * REACH / BINS
    single = len(latents) <= SINGLE
    planes = {f"channel_{number}": plane for number, plane in enumerate(latents)} if single else {"all": latents}
    counted = {
        name: torch.histc(plane.cpu(), BINS, -REACH, REACH) / plane.numel() / width for name, plane in planes.items()
    }
    normal = [math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in centres]
    found = [Line(name=name, x=axis(centres, 4), y=finite(counts, 4)) for name, counts in counted.items()]
    return (*found, Line(name="normal", x=axis(centres, 4), y=finite(normal, 4)))


def grey(plane: torch.Tensor) -> np.ndarray:
    """Return a channel (h, w) as a picture (h, w, 3) uint8."""
    levels = ((plane / SHOWN / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return np.repeat(levels[:, :, None], 3, axis=2)


def shape_text(latents: torch.Tensor) -> str:
    """Return the size of latents (C, h, w) in words."""
    channels, height, width = latents.shape
    return f"{channels} x {width} x {height}"
