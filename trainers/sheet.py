"""Several pictures as one."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.pil_utils import make_image_grid
from PIL import Image, ImageOps

from studio.errors import DeviceError
from studio.store import writer

SIDE = 256  # pixels of a picture on a contact sheet, at most
MOST = 16  # pictures on it


def grid(pictures: list[Any]) -> bytes:
    """Return pictures of one size as one PNG, about as wide as high; the last row may end early."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    empty = pictures[0].copy()
    empty.paste("white", (0, 0, *empty.size))
    file = io.BytesIO()
    make_image_grid([*pictures, *[empty] * (rows * columns - len(pictures))], rows, columns).save(file, "PNG")
    return file.getvalue()


def contact_sheet(paths: Sequence[Path]) -> bytes:
    """Return the first `MOST` of some pictures, small, as one PNG."""
    pictures: list[Image.Image] = []
    for path in paths[:MOST]:
        with Image.open(path) as picture:
            plain = picture.convert("RGB")
        pictures.append(ImageOps.contain(plain, (SIDE, SIDE)) if max(plain.size) > SIDE else plain)
    size = max(one.width for one in pictures), max(one.height for one in pictures)
    return grid([ImageOps.pad(one, size, color="white") if one.size != size else one for one in pictures])


def draw_grid(pipeline: Any, artifact: Path, picture: Path, config: Any, place: torch.device, **told: Any) -> bool:
    """Draw a grid with a saved pipeline, each picture from its own seed; False if none is wanted.

    Args:
        pipeline: class of diffusers.
        artifact: its folder.
        picture: to write; one that is there, from before a crash, was drawn from the same checkpoint and stays.
        config: says how many, with how many steps, and the first seed.
        place: where to draw.
        told: to the pipeline besides; the number of pictures if nothing.

    Raises:
        DeviceError: if memory does not suffice.
    """
    number = config.validation_pictures
    if number and not picture.exists():
        pipe = pipeline.from_pretrained(artifact, local_files_only=True, use_safetensors=True)
        pipe.set_progress_bar_config(disable=True)
        seeds = range(config.validation_seed, config.validation_seed + number)
        try:
            pipe.to(place)
            drawn = pipe(
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=config.num_inference_steps,
                **(told or {"batch_size": number}),
            ).images
        except torch.OutOfMemoryError as error:
            raise DeviceError("the samples do not fit into memory; lower validation_pictures") from error
        writer.write_file(picture, grid(drawn))
    return number > 0
