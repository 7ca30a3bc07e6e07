"""X/Y/Z plots: how axes are written, what a grid shows, cells as jobs that can be cancelled and resumed, the command line, the page."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from studio.__main__ import main
from studio.errors import InvalidRequest, StudioError
from studio.executors.dispatcher import Dispatcher
from studio.executors.inline import InlineExecutor
from studio.executors.plotter import Plotter
from studio.grid import SIDE_MAX, draw_grid, lay_out, length, wrapped
from studio.plots import Axis, PlotSpec, axis_labels, cells_of, fix_seeds, plot_fields, read_values, run_order, shifted
from studio.settings import Settings
from studio.spec import GenerationRequest, parse_request
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.store.jobs import JobStore
from studio.store.library import Library
from studio.store.metadata import read_picture
from studio.store.plots import PlotStore
from studio.ui.batch_panel import BatchPanel
from studio.ui.control_panel import ControlPanel
from studio.ui.editor import background
from studio.ui.plot_panel import PlotPanel, placeholder
from tests.conftest import MODELS, wait_for

BASE = GenerationRequest(prompt="a red circle on a blue background", num_inference_steps=2)


def axis(field: str, values: str) -> Axis:
    return Axis(field=field, values=values)


def test_an_axis_reaches_into_a_unit() -> None:
    unit = {"model": "shapes-canny", "image": "x.png", "preprocessor": "canny"}
    base = parse_request(BASE.model_dump() | {"controls": [unit, unit]})
    spec = PlotSpec(base=base, x=axis("controls.1.weight", "0, 0.5, 1"), y=axis("controls.1.end", "0.5, 1"))
    made = cells_of(spec)
    assert [cell.request.controls[1].weight for cell in made] == [0, 0.5, 1, 0, 0.5, 1]
    assert [cell.request.controls[1].end for cell in made] == [0.5, 0.5, 0.5, 1, 1, 1]
    assert {cell.request.controls[0].weight for cell in made} == {1.0}
    assert axis_labels(spec)["x"][1] == "ControlNet 2: weight: 0.5"
    with pytest.raises(InvalidRequest, match=r"controls\.2\.weight: the request has 2 controls"):
        cells_of(PlotSpec(base=base, x=axis("controls.2.weight", "0, 1")))
    with pytest.raises(InvalidRequest, match=r"controls\.1\.weight=3\.0 must be at most 2\.0"):
        cells_of(PlotSpec(base=base, x=axis("controls.1.weight", "1, 3")))
    with pytest.raises(InvalidRequest, match="no field that can be plotted"):
        PlotSpec(base=base, x=axis("controls.1.image", "a, b"))


def two_by_two(**base: Any) -> PlotSpec:
    return PlotSpec(
        base=parse_request(BASE.model_dump() | base), x=axis("guidance_scale", "1, 3"), y=axis("prompt", "circle,star")
    )


@pytest.mark.parametrize(
    ("field", "text", "values"),
    [
        ("guidance_scale", "1, 2,3.5", (1.0, 2.0, 3.5)),
        ("num_inference_steps", "1-5", (1, 2, 3, 4, 5)),
        ("num_inference_steps", "1-5 (+2)", (1, 3, 5)),
        ("num_inference_steps", "1-6(+2), 9", (1, 3, 5, 9)),
        ("seed", "1-10 [4]", (1, 4, 7, 10)),
        ("seed", "10-5 (-3)", (10, 7)),
        ("seed", "3-1", (3, 2, 1)),
        ("seed", "4294967295, -1", (4294967295, -1)),
        ("guidance_scale", "1-1.5 (+0.1)", (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)),
        ("strength", "0-1 [5]", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("strength", "0.1-0.3 (+.1)", (0.1, 0.2, 0.3)),
        ("eta", "5e-1", (0.5,)),
        ("scheduler", "Euler, Euler a", ("Euler", "Euler a")),
        ("sigmas", "KARRAS, Automatic", ("karras", "automatic")),
        ("resize_mode", "Just resize, crop", ("stretch", "crop")),
        ("mask_invert", "yes, FALSE", (True, False)),
        ("prompt", 'red, "green, big", ', ("red", "green, big", "")),
        ("negative_prompt", "dark\nblurry", ("dark", "blurry")),
    ],
)
def test_values_are_read_as_people_write_them(field: str, text: str, values: tuple) -> None:
    read = read_values("x", axis(field, text))
    assert read == values
    assert [type(value) for value in read] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        ("zebra", "1", "X axis: 'zebra' is no field that can be plotted; use one of a unit"),
        ("num_images_per_prompt", "1,2", "X axis: num_images_per_prompt cannot be plotted"),
        ("seed", "", "X axis: Seed has no values"),
        ("seed", ",,", "X axis: Seed has no values"),
        ("seed", "one", "X axis: Seed 'one' is no number and no range"),
        ("seed", "1.5", "X axis: seed=1.5"),
        ("seed", "1-9999999999", "must be from 1 to 200 values, not 9,999,999,999"),
        ("seed", "1-" + "9" * 5000, "is no number and no range"),
        ("seed", "1-9 [999999999999]", "must be from 1 to 200 values"),
        ("seed", "1-9 [0]", "must be from 1 to 200 values"),
        ("seed", "5-1 (+1)", "does not lead from 5 to 1"),
        ("seed", "1-5 (0)", "does not lead from 1 to 5"),
        ("seed", "1-200, 5", "more than 200 values"),
        ("seed", '1, "2', "has a quote that is not closed"),
        ("seed", "1," * 20_000, "at most 20,000 are read"),
        ("num_inference_steps", "1-2 (+0.5)", "X axis: num_inference_steps=1.5"),
        ("guidance_scale", "3, 99", "X axis: guidance_scale=99.0 must be at most 30"),
        ("guidance_scale", "nan", "X axis: guidance_scale=nan must be a finite number"),
        ("width", "512,500", "X axis: width=500 must be a multiple of 8; use 496 or 504"),
        ("scheduler", "Euler, Magic", "X axis: scheduler='Magic' is not known"),
        ("sigmas", "magic", "X axis: Schedule type 'magic' must be one of: automatic"),
        ("mask_invert", "maybe", "must be true or false"),
        ("prompt", "zebra, circle", "'zebra', the first value, is looked for and replaced, but no prompt has it"),
        ("prompt", '"", circle', "is looked for and replaced"),
        ("guidance_end", "0", "guidance_end=0 must be more than"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_axis(field: str, text: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        cells_of(PlotSpec(base=BASE, x=axis(field, text)))
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("X axis")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert caught.value.field == "x"


def test_axes_must_fit_together() -> None:
    for axes, sentence in (
        ({}, "a plot needs a field"),
        ({"x": axis("seed", "1"), "z": axis("seed", "2")}, "seed is on another axis already"),
        ({"x": axis("seed", "1-20"), "y": axis("guidance_scale", "1-20")}, "has 400 pictures; at most 200"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            PlotSpec(base=BASE, **axes)
    with pytest.raises(InvalidRequest, match=r"Y axis: guidance_end=0\.5 must be more than guidance_start=0\.9"):
        cells_of(PlotSpec(base=BASE, x=axis("guidance_start", "0.1, 0.9"), y=axis("guidance_end", "1, 0.5")))


def test_cells_differ_in_the_axes_and_in_nothing_else() -> None:
    base = parse_request(BASE.model_dump() | {"num_images_per_prompt": 4, "variation_strength": 0.5})
    spec = PlotSpec(
        base=base,
        x=axis("guidance_scale", "1-3"),
        y=axis("prompt", "red, blue"),
        z=axis("prompt", "circle, star"),
    )
    numbers = iter(range(100, 200))
    spec = fix_seeds(spec, lambda: next(numbers))
    cells = cells_of(spec)
    assert [cell.place for cell in cells[:4]] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0)]
    assert cells[-1].request.prompt == "a blue star on a blue background"
    assert {(c.request.seed, c.request.variation_seed, c.request.num_images_per_prompt) for c in cells} == {
        (100, 101, 1)
    }
    fields = {"guidance_scale": None, "prompt": ""}
    assert len({cell.request.model_copy(update=fields).model_dump_json() for cell in cells}) == 1
    seeds = fix_seeds(PlotSpec(base=BASE, x=axis("seed", "-1, 5, -1")), lambda: next(numbers))
    assert [cell.request.seed for cell in cells_of(seeds)] == [102, 5, 103]
    assert seeds.base.variation_seed == -1, "a seed that changes nothing is left alone"
    assert PlotSpec.model_validate_json(spec.model_dump_json()) == spec


def test_models_are_drawn_one_after_the_other_and_clip_skip_counts_from_one_on_the_page() -> None:
    cells = cells_of(PlotSpec(base=BASE, x=axis("model", "shapes,other"), y=axis("seed", "1,2")))
    assert [cells[n].request.model for n in run_order(cells)] == ["other", "other", "shapes", "shapes"]
    own = shifted("x", axis("clip_skip", "1-3"))
    assert read_values("x", own) == (0, 1, 2)
    assert axis_labels(PlotSpec(base=BASE, x=own))["x"] == ["Clip skip: 1", "Clip skip: 2", "Clip skip: 3"]
    for name in plot_fields():
        assert placeholder(name).startswith("such as ")


def write_cells(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    paths = []
    for number, size in enumerate(sizes):
        paths.append(folder / f"{number}.png")
        Image.new("RGB", size, (10 + 20 * number, 200 - 20 * number, 77)).save(paths[-1])
    return paths


def test_a_grid_shows_every_cell_at_its_place_with_labels_around(tmp_path: Path) -> None:
    labels = {"x": ["CFG: 1", "CFG: 2"], "y": ["Seed: 1", "Seed: 2"], "z": ["circle", "star"]}
    paths = write_cells(tmp_path, [(64, 48)] * 8)
    grid, layout = draw_grid(paths, labels), lay_out((64, 48), labels)
    assert grid.size == layout.size
    pixels, covered = np.asarray(grid), np.zeros((grid.height, grid.width), bool)
    for number in range(8):
        left, top = layout.corner(number % 2, number // 2 % 2, number // 4)
        box = pixels[top : top + 48, left : left + 64]
        assert (box == (10 + 20 * number, 200 - 20 * number, 77)).all(), f"cell {number}"
        covered[top : top + 48, left : left + 64] = True
    ink = (pixels.max(-1) < 100) & ~covered
    assert ink[:, : layout.left].sum() > 100, "no Y labels"
    assert ink[: layout.band("z")].sum() > 30, "no Z title"
    assert ink[layout.band("z") : layout.band("z") + layout.band("x")].sum() > 100, "no X labels"
    other = np.asarray(draw_grid(paths, labels | {"x": ["CFG: 1", "CFG: 8"]}))
    different = np.argwhere((other != pixels).any(-1))[:, 1]
    assert len(different) and different.min() >= layout.corner(1, 0, 0)[0], "a label is above another column"


def test_grids_are_bounded_and_cells_of_several_sizes_keep_theirs(tmp_path: Path) -> None:
    alone = {"x": ["", "", ""], "y": [""], "z": [""]}
    grid = draw_grid(write_cells(tmp_path, [(64, 64), (32, 64), (64, 16)]), alone)
    assert (np.asarray(grid) == (30, 180, 77)).all(-1).sum() == 32 * 64
    assert (np.asarray(grid) == (50, 160, 77)).all(-1).sum() == 64 * 16
    labels = {name: [f"value {n}" for n in range(5)] for name in ("x", "y", "z")}
    for cell in ((2048, 2048), (4000, 64), (64, 8000)):
        layout = lay_out(cell, labels)
        assert layout.size[0] * layout.size[1] <= 40_000_000
        assert max(layout.size) <= SIDE_MAX
    small = draw_grid(write_cells(tmp_path, [(512, 512)] * 3), alone, 100_000)
    assert 60_000 < small.width * small.height <= 100_000
    assert all((np.asarray(small) == (10 + 20 * n, 200 - 20 * n, 77)).all(-1).any() for n in range(3))
    for text in ("x" * 3000, "many words " * 90, "星 円 " * 50, "", "a"):
        lines = wrapped(text, 12, 100)
        assert len(lines) <= 4 and all(length(line, 12) <= 100 for line in lines)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A dispatcher with the inline executor, a gallery, and a plotter over them."""
    data = tmp_path_factory.mktemp("plots")
    settings = Settings(data_dir=data, cpu_threads=1, device="cpu", executor="inline")
    database = Database(data / "studio.db")
    gallery = Gallery(data / "images", ImageIndex(database))
    runner = InlineExecutor(settings, gallery)
    dispatcher = Dispatcher(runner, JobStore(database), Library((MODELS,), database), gallery.blobs, preview=False)
    plotter = Plotter(dispatcher, gallery, PlotStore(data / "plots"))
    dispatcher.start("shapes")
    plotter.start()
    yield SimpleNamespace(dispatcher=dispatcher, plotter=plotter, gallery=gallery, data=data)
    plotter.close()
    dispatcher.close()
    database.close()


def in_state(started: SimpleNamespace, plot_id: str, *states: str) -> Any:
    return wait_for(lambda: (plot := started.plotter.get(plot_id)).state in states and plot)


def test_a_plot_becomes_jobs_and_a_grid_that_says_what_it_is(
    started: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = started.dispatcher.version
    plot = started.plotter.begin(two_by_two(), "me")
    plot = in_state(started, plot.id, "done")
    assert started.dispatcher.version > before
    (facts,) = (facts for facts in started.plotter.state("me") if facts["id"] == plot.id)
    assert (facts["done"], facts["total"], facts["grid"], facts["title"]) == (4, 4, plot.grid, "X CFG Scale · Y Prompt")
    assert started.plotter.state("you") == []
    records = [started.gallery.found(cell.image).record for cell in plot.cells]
    assert [(r.request.guidance_scale, "star" in r.request.prompt) for r in records] == [
        (1, False),
        (3, False),
        (1, True),
        (3, True),
    ]
    assert len({record.seed for record in records}) == 1
    path = started.gallery.path(plot.grid)
    found = read_picture(path)
    assert (found.source, found.record, found.grid.cells) == ("grid", None, tuple(c.image for c in plot.cells))
    assert found.grid.spec == plot.spec
    assert found.text.splitlines()[:3] == ["X/Y/Z plot of 4 pictures", "X: CFG Scale = 1, 3", "Y: Prompt = circle,star"]
    layout = lay_out((128, 128), axis_labels(plot.spec))
    pixels = np.asarray(Image.open(path).convert("RGB"))
    for number, cell in enumerate(plot.cells):
        left, top = layout.corner(number % 2, number // 2, 0)
        own = np.asarray(Image.open(started.gallery.path(cell.image)).convert("RGB"))
        assert (pixels[top : top + 128, left : left + 128] == own).all()
    row = started.gallery.index.get(plot.grid)
    assert row["prompt"].startswith("X/Y/Z plot: a red circle")
    assert (row["owner"], row["width"], row["height"]) == ("me", *layout.size)
    started.gallery.reconcile(rebuild=True)
    assert started.gallery.index.get(plot.grid)["prompt"] == row["prompt"]
    assert main(["replay", str(path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is a grid of 4 pictures" in error
    assert f"python -m studio xyz --request {path} --out DIR" in error
    assert error.count("\n") == 1


def test_a_plot_can_be_cancelled_resumed_and_survives_a_restart(started: SimpleNamespace) -> None:
    plotter, dispatcher = started.plotter, started.dispatcher
    plot = plotter.begin(two_by_two(num_inference_steps=12), "me")
    plot = wait_for(lambda: (now := plotter.get(plot.id)).done >= 1 and now)
    kept = {n: cell.image for n, cell in enumerate(plot.cells) if cell.image}
    with pytest.raises(StudioError, match="there is no plot"):
        plotter.cancel(plot.id, "you")
    plotter.cancel(plot.id, "me")
    plot = in_state(started, plot.id, "stopped")
    assert 1 <= plot.done < 4
    assert not dispatcher.jobs.waiting()
    again = Plotter(dispatcher, started.gallery, PlotStore(started.data / "plots"))
    again._plots = again._store.load()
    assert again.get(plot.id) == plot
    resumed = plotter.resume(plot.id, "me")
    assert {n: cell.image for n, cell in enumerate(resumed.cells) if n in kept} == kept
    assert sum(cell.open for cell in resumed.cells) == 4 - plot.done
    done = in_state(started, plot.id, "done")
    assert {n: done.cells[n].image for n in kept} == kept
    assert len({started.gallery.found(cell.image).record.seed for cell in done.cells}) == 1
    lost = done.model_copy(
        update={"id": "f" * 32, "grid": "", "cells": (done.cells[0].model_copy(update={"job": "x"}), *done.cells[1:])}
    )
    lost = lost.model_copy(
        update={"cells": (lost.cells[0].model_copy(update={"state": "queued", "image": ""}), *lost.cells[1:])}
    )
    plotter._keep(lost)  # what a crash between writing the plot and queueing leaves
    dispatcher.announce()
    assert in_state(started, lost.id, "stopped").cells[0].error == "its job was lost"


def test_nothing_is_queued_if_one_cell_cannot_be_made(started: SimpleNamespace) -> None:
    plots = len(started.plotter.state("me"))
    for spec, sentence in (
        (PlotSpec(base=BASE, x=axis("model", "shapes, nonsense")), "X axis.*model='nonsense' is not in the library"),
        (PlotSpec(base=BASE, x=axis("guidance_scale", "2, 99")), "X axis: guidance_scale=99.0 must be at most 30"),
        (PlotSpec(base=BASE, x=axis("seed", "1-17")), "17 pictures; at most 16"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            started.plotter.begin(spec, "me", limit=16)
    assert started.dispatcher.jobs.count_waiting() == 0
    assert len(started.plotter.state("me")) == plots


def test_the_pages_handlers(started: SimpleNamespace, tmp_path: Path) -> None:
    services = SimpleNamespace(
        public=False,
        plotter=started.plotter,
        owner=lambda headers: "page",
        dispatcher=started.dispatcher,
        gallery=started.gallery,
        library=Library((MODELS,)),
    )
    form = SimpleNamespace(wanted=lambda values: BASE)
    panel, request = PlotPanel(services, form), SimpleNamespace(headers={})  # type: ignore[arg-type]
    rows = {
        "x_field": "guidance_scale",
        "x_values": "1-3",
        "y_field": "seed",
        "y_values": "",
        "z_field": "",
        "z_values": "9",
    }
    assert panel.count(**rows) == "3 = **3 pictures**"
    assert panel.count(**(rows | {"y_values": "1,2"})) == "3 × 2 = **6 pictures**"
    assert panel.count(**(rows | {"x_values": "1-3x"})).startswith("X axis: CFG Scale '1-3x' is no number")
    assert "at most 200" in panel.count(**(rows | {"x_values": "1-20", "y_values": "1-20"}))
    services.public = True
    assert "at most 16" in panel.count(**(rows | {"y_values": "1-6"}))
    assert json.loads(panel.start(request, **(rows | {"x_values": ""})))["error"].startswith("There is nothing")  # type: ignore[arg-type]
    made = json.loads(panel.start(request, **(rows | {"x_values": "2"})))  # type: ignore[arg-type]
    assert in_state(started, made["plot"], "done").owner == "page"

    (tmp_path / "notes.png").write_text("hello")
    Image.new("RGB", (128, 128), (40, 70, 215)).save(tmp_path / "blue.png")
    control = ControlPanel(services, started.gallery.blobs)  # type: ignore[arg-type]
    batch, values = (
        BatchPanel(services, [control]),
        {"prompt": "x", "model": "shapes", "num_inference_steps": 2, "editor": None, "mask": None},
    )  # type: ignore[arg-type]
    files = [str(tmp_path / name) for name in ("notes.png", "blue.png", "blue.png")]
    answer = json.loads(batch.submit(request, files=files, **values))  # type: ignore[arg-type]
    assert answer["note"].startswith("In the queue: 2. 'notes.png' is not a picture")
    entry = started.dispatcher.jobs.get(answer["job"])
    assert entry.job.request.task == "image2image"
    twice = values | {"hires_scale": 2.0}
    alone = json.loads(batch.submit(request, files=files[1:2], **twice))  # type: ignore[arg-type]
    assert "hires_scale works only without an image" in alone["error"], "the form shows it as switched on"
    held = twice | {"editor": background(Image.new("RGBA", (64, 64), "red"))}
    assert "job" in json.loads(batch.submit(request, files=files[1:2], **held))  # type: ignore[arg-type]
    for wrong, sentence in ((None, "no pictures yet"), (files * 6, "at most 16"), (files[:1], "is not a picture")):
        assert sentence in json.loads(batch.submit(request, files=wrong, **values))["error"]  # type: ignore[arg-type]
    wait_for(lambda: not started.dispatcher.jobs.waiting() and not started.dispatcher.jobs.running())


def test_the_command_line_makes_a_plot_and_makes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text(BASE.model_dump_json(exclude_unset=True))
    start = ["--data-dir", str(tmp_path / "data"), "--cpu-threads", "1", "xyz", "--request"]
    flags = [*start, str(tmp_path / "r.json"), "--out", str(tmp_path / "out")]
    assert main([*flags, "--x", "guidance_scale=1,3", "--y", "seed=4,-1"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("cell") for line in made] == [0, 1, 2, 3, None]
    assert [(line["x"], line["y"]) for line in made[:2]] == [(1, 4), (3, 4)]
    assert made[2]["seed"] == made[3]["seed"]
    assert (made[4]["grid"], made[4]["cells"]) == (True, 4)
    grid = read_picture(Path(made[4]["path"])).grid
    assert [f"{cell}.png" for cell in grid.cells] == [Path(line["path"]).name for line in made[:4]]  # type: ignore[union-attr]
    assert main([*start, made[4]["path"], "--out", str(tmp_path / "again")]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Image.open(again["path"]).tobytes() == Image.open(made[4]["path"]).tobytes()
    for wrong, sentence in (
        (["--x", "guidance_scale=1,99"], "X axis: guidance_scale=99.0 must be at most 30"),
        (["--x", "guidance_scale"], "must be FIELD=VALUES"),
        ([], "a plot needs an axis"),
        (["--x", "seed=1", "--z", "image=missing.png"], "Z axis: image='missing.png' does not exist"),
    ):
        assert main([*flags[:-1], str(tmp_path / "wrong"), *wrong]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    assert not list((tmp_path / "wrong").glob("*.png"))


def test_generate_goes_over_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for name in ("10.png", "2.png", ".hidden.png"):
        Image.new("RGB", (128, 128), (40, 70, 215)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "3.txt").write_text("a caption")
    (tmp_path / "r.json").write_text(json.dumps({"prompt": "a red circle", "num_inference_steps": 2, "seed": 1}))
    start = [
        "--data-dir",
        str(tmp_path / "data"),
        "--cpu-threads",
        "1",
        "generate",
        "--request",
        str(tmp_path / "r.json"),
    ]
    flags = [*start, "--out", str(tmp_path / "out"), "--images"]
    assert main([*flags, str(tmp_path / "in")]) == 0
    printed = capsys.readouterr()
    made = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["source"] for line in made] == ["2.png", "10.png"]
    assert [Path(line["path"]).name.split("-")[0] for line in made] == ["2", "10"]
    assert read_picture(Path(made[0]["path"])).record.request.task == "image2image"  # type: ignore[union-attr]
    assert "3.txt is passed over: image='3.txt' is not a picture" in printed.err
    assert printed.err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    for folder, sentence in (("empty", "has no files"), ("missing", "cannot be read as a folder"), ("data", "has no ")):
        (tmp_path / "data").mkdir(exist_ok=True)
        assert main([*flags, str(tmp_path / folder)]) == 2
        assert sentence in capsys.readouterr().err
    assert main([*flags, str(tmp_path / "in"), "--set", "strength=7"]) == 2
    assert "strength=7" in capsys.readouterr().err
