"""`python -m studio xyz`: the cells of an X/Y/Z plot one after the other, then their grid."""

import argparse
import io
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio.errors import InvalidRequest
from studio.grid import draw_grid
from studio.plots import (
    AXES,
    Cell,
    GridRecord,
    PlotSpec,
    axis_from,
    axis_labels,
    cell_refusal,
    fix_seeds,
    run_order,
)
from studio.records import Job
from studio.spec import SEED_MAX, GenerationRequest
from studio.store.blobs import BlobStore
from studio.store.gallery import new_image_id, save_picture, utc_now
from studio.store.inputs import canvas_size, take_inputs
from studio.store.library import Library
from studio.store.metadata import read_picture

PNG = b"\x89PNG"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `xyz`."""
    parser.add_argument("--request", type=Path, required=True, help="JSON file: the base; or a grid, to make it again")
    for name in AXES:
        parser.add_argument(f"--{name}", metavar="FIELD=VALUES", help='such as "guidance_scale=1,2,3" or "seed=1-4"')
    parser.add_argument("--out", type=Path, required=True, help="folder for the cells and the grid")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="replace a field of the base")


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG."""
    try:
        with path.open("rb") as file:
            return file.read(4) == PNG
    except OSError:
        return False


def read_plot(
    flags: argparse.Namespace, read_requests: Callable[[Path, list[str]], list[GenerationRequest]]
) -> PlotSpec:
    """Read the plot of the flags, or the one that a grid names.

    Raises:
        InvalidRequest: if there is none.
    """
    axes = {name: axis_from(text, name) for name in AXES if (text := getattr(flags, name))}
    if is_picture(flags.request):
        grid = read_picture(flags.request).grid
        if grid is None:
            raise InvalidRequest("request", f"{flags.request} is no grid; give a request file, or the grid of a plot")
        if axes or flags.set:
            raise InvalidRequest("request", f"{flags.request} names its axes itself; leave --x, --y, --z and --set out")
        return grid.spec
    if not axes:
        raise InvalidRequest("x", 'a plot needs an axis, such as --x "guidance_scale=1,2,3"')
    requests = read_requests(flags.request, flags.set)
    if len(requests) != 1:
        raise InvalidRequest("request", f"{flags.request} must hold one request, the base of the plot")
    return fix_seeds(PlotSpec(base=requests[0], **axes), lambda: secrets.randbelow(SEED_MAX - 64))


def resolve_cells(spec: PlotSpec, cells: list[Cell], library: Library, blobs: BlobStore, base: Path) -> list[Job]:
    """Resolve every cell before the first is drawn.

    Raises:
        InvalidRequest: naming axis and value.
    """
    made = []
    for cell in cells:
        try:
            request = take_inputs(cell.request, blobs, base)
            made.append(library.job(request, cell.request.seed, canvas_size(request, blobs)))
        except InvalidRequest as error:
            raise cell_refusal(spec, cell.values, error) from None
    return made


def draw_plot(spec: PlotSpec, cells: list[Cell], resolved: list[Job], drawing: Any) -> bool:
    """Draw all cells and the grid; one JSON line each. Return False if Ctrl+C ended it; finished cells stay."""
    paths: dict[int, Path] = {}
    for number in run_order(cells):
        facts = {name: cells[number].values[name] for name in cells[number].values}
        made = drawing.draw(resolved[number], cell=number, **facts)
        if drawing.stopped or not made:
            return False
        paths[number] = made[0][0]
    ordered, now = [paths[number] for number in range(len(cells))], utc_now()
    record = GridRecord(
        id=new_image_id(now),
        created=now.isoformat(timespec="milliseconds"),
        spec=spec,
        cells=tuple(path.stem for path in ordered),
    )
    png = io.BytesIO()
    draw_grid(ordered, axis_labels(spec)).save(png, "PNG", compress_level=1)
    path = save_picture(drawing.out, f"grid-{record.id}", png.getvalue(), record)
    print(json.dumps({"path": str(path), "grid": True, "cells": len(cells)}), flush=True)
    return True
