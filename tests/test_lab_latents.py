"""The Lab's panels about latents and choosing: autoencoder, interpolation, inversion, ranking, and the two dimensions' findings."""

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from studio.engine.devices import open_device
from studio.engine.engine import Engine
from studio.engine.lab_inversion import inverted, redrawn
from studio.engine.lab_paths import schedule
from studio.engine.passes import slerp
from studio.engine.vae_check import pass_through
from studio.errors import StudioError
from studio.lab import PANELS, Findings
from studio.store.blobs import BlobStore
from studio.store.gallery import new_image_id, utc_now
from studio.store.lab_calls import lab_call
from studio.store.library import Library
from studio.tools import ToolWatch
from tests.conftest import drawer, pixels
from tests.test_lab import bench_of, gaussian, where_the_ode_leads
from tests.test_scores import scorers
from tests.tiny import save_models, sd3
from trainers.scorers.choice import prompt_scorer
from trainers.scorers.shapes import Shapes

__all__ = ["scorers"]

CPU = torch.device("cpu")
RED = "a red circle on a blue background"
GREEN = "a green square on a yellow background"
Panel = Callable[..., tuple[Findings, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def judging() -> Engine:
    return Engine(
        open_device("cpu", 1), utc_now, new_image_id, find_scorer=lambda shapes: prompt_scorer(shapes, (), CPU)
    )


@pytest.fixture(scope="module")
def run(judging: Engine, library: Library, blobs: BlobStore) -> Panel:
    """Return what lets a panel work: its findings, and its pictures (H, W, 3)."""

    def asked(panel: str, model: str = "shapes", **values: Any) -> tuple[Findings, dict[str, np.ndarray]]:
        found, pictures = judging.use_tool(lab_call(library, panel, values, model), blobs.open)
        json.dumps(found)
        return Findings.model_validate(found), {name: pixels(png) for name, png in pictures.items()}

    return asked


def refused(run: Panel, panel: str, **values: Any) -> str:
    with pytest.raises(StudioError) as error:
        run(panel, **values)
    return str(error.value)


def table(found: Findings, name: str) -> list[dict[str, Any]]:
    chosen = next(one for one in found.tables if one.name == name)
    return [dict(zip(chosen.columns, row, strict=True)) for row in chosen.rows]


def line(found: Findings, plot: str, name: str) -> list[float]:
    lines = next(one for one in found.plots if one.name == plot).lines
    return [float(y) for y in next(one for one in lines if one.name == name).y if y is not None]


@pytest.fixture(scope="module")
def photo(blobs: BlobStore) -> str:
    """A picture whose sides are no whole cells."""
    content = io.BytesIO()
    rows, columns = np.mgrid[0:101, 0:77]
    Image.fromarray(np.stack([rows * 2, columns * 3, rows + columns], axis=2).astype(np.uint8)).save(content, "PNG")
    return blobs.add(content.getvalue(), "image")


# the autoencoder


def test_latents_are_measured_as_the_denoiser_sees_them(
    run: Panel, judging: Engine, library: Library, photo: str, blobs: BlobStore
) -> None:
    judging.unload()
    found, pictures = run("latents", image=photo)
    assert not judging.pipelines._loaded  # the autoencoder alone was loaded
    given = pictures["given"]
    mean_square = float(((pictures["decoded"].astype(float) - given) ** 2).mean())
    (quality,), rows = table(found, "quality"), table(found, "channels")
    assert quality["psnr"] == pytest.approx(10 * np.log10(255**2 / mean_square), abs=0.01)
    assert quality["size"] == f"{given.shape[1]} x {given.shape[0]}"
    vae = judging.pipelines.vae(library.reference(library.get("shapes")))
    latents = pass_through(vae, np.asarray(blobs.open(photo, "image").convert("RGB")), lambda _: None).latents
    assert [row["mean"] for row in rows] == pytest.approx(latents.mean(dim=(1, 2)).tolist(), abs=1e-3)
    assert [row["greatest"] for row in rows] == pytest.approx(latents.amax(dim=(1, 2)).tolist(), rel=1e-3)
    assert len([name for name in pictures if name.startswith("channel-")]) == len(rows) == len(latents)
    normal = line(found, "values", "normal")
    assert sum(normal) * 8 / 41 == pytest.approx(1, abs=1e-3)
    for number in range(len(latents)):
        assert sum(line(found, "values", f"channel_{number}")) * 8 / 41 <= 1.001


def test_a_picture_is_needed(run: Panel) -> None:
    assert (
        refused(run, "latents")
        == refused(run, "latents", image="")
        == "image is missing; give the picture that shall be encoded"
    )


# interpolation


def test_noise_keeps_its_length_on_the_circle_and_loses_it_on_the_line(run: Panel) -> None:
    found, _ = run("interpolation", frames=2, steps=2, seed=3, other_seed=4)
    circle, straight = (np.array(line(found, "length", name)) for name in ("slerp", "lerp"))
    places = np.linspace(0, 1, len(circle))
    assert np.abs(circle - 1).max() < 0.06
    assert np.abs(straight - np.sqrt((1 - places) ** 2 + places**2)).max() < 0.06  # of independent noise


def test_the_ends_are_the_two_prompts(run: Panel) -> None:
    found, pictures = run("interpolation", prompt=RED, other_prompt=GREEN, frames=3, steps=12)
    first, last = (line(found, "agreement", name) for name in ("prompt", "other_prompt"))
    assert first[0] == last[-1] == 1
    assert first[-1] < 0.5
    assert last[0] < 0.5
    assert not np.array_equal(pictures["part-00"], pictures["part-01"])


def test_half_way_is_generates_variation_of_one_half(
    run: Panel, judging: Engine, library: Library, blobs: BlobStore
) -> None:
    _, pictures = run("interpolation", prompt=RED, seed=5, other_seed=9, frames=3, steps=8)
    request = PANELS["interpolation"].request.model_validate({"prompt": RED, "seed": 5, "other_seed": 9, "steps": 8})
    settings = PANELS["interpolation"].settings
    assert settings is not None
    made = drawer(judging, library, blobs)(model="shapes", **settings(request))
    error = np.abs(pixels(made.pictures[0]).astype(int) - pictures["part-01"])
    assert error.max() <= 2


def test_between_a_point_and_itself_is_the_point() -> None:
    noise = torch.randn(1, 4, 8, 8)
    assert torch.equal(slerp(0.5, noise, noise.clone()), noise)


def test_prompts_of_other_lengths_are_refused(run: Panel) -> None:
    long = " ".join(["a red circle"] * 40)
    assert "other_prompt has more or fewer chunks" in refused(
        run, "interpolation", other_prompt=long, frames=2, steps=2
    )


# inversion


def test_the_inversion_of_a_gaussian_comes_nearer_to_the_exact_one_with_each_halving_of_the_step() -> None:
    bench = bench_of(schedule("scaled_linear", None))
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    x0, ask = where_the_ode_leads(noise, bench.path), gaussian(bench.path)
    errors, misses = [], []
    for steps in (25, 50, 100, 200):
        found = inverted(bench, x0, ask, steps)
        errors.append(float((redrawn(bench, found, ask, steps) - x0).norm() / x0.norm()))
        misses.append(float((found - noise).norm() / noise.norm()))
    for series, bound in ((errors, 0.012), (misses, 0.05)):
        ratios = [one / other for one, other in itertools.pairwise(series)]
        assert all(1.25 < ratio < 2.2 for ratio in ratios), (
            series,
            ratios,
        )  # towards 2: Euler's method is of first order
        assert series[-1] < bound, series


@pytest.fixture(scope="module")
def inversion(run: Panel) -> tuple[Findings, dict[str, np.ndarray]]:
    return run("inversion", prompt=RED, steps="20, 5, 50")


def test_more_steps_lose_less(inversion: tuple[Findings, dict[str, np.ndarray]]) -> None:
    found, pictures = inversion
    rows = table(found, "steps")
    errors = [row["latent_error"] for row in rows]
    assert [row["steps"] for row in rows] == [5, 20, 50]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.08
    assert rows[2]["psnr"] > 36
    kept = float(((pictures["regenerated-050"].astype(float) - pictures["decoded"]) ** 2).mean())
    assert rows[2]["psnr"] == pytest.approx(10 * np.log10(255**2 / kept), abs=0.01)
    scorer = Shapes()
    assert scorer.prompt(scorer.read([pictures["regenerated-050"]])[0], RED) == 1


def test_guidance_breaks_the_way_back(run: Panel, inversion: tuple[Findings, dict[str, np.ndarray]]) -> None:
    guided, plain = run("inversion", prompt=RED, steps="20", guidance=8)[0], inversion[0]
    assert table(guided, "steps")[0]["latent_error"] > 1.5 * table(plain, "steps")[1]["latent_error"]


def test_a_flow_is_gone_back_with_euler_steps(judging: Engine, tmp_path: Path, photo: str, blobs: BlobStore) -> None:
    library = Library((save_models(tmp_path, {"sd3": sd3}),))
    (tmp_path / "sd3" / "studio.yaml").write_text("defaults: {width: 64, height: 64}")
    call = lab_call(library, "inversion", {"image": photo, "steps": [4, 20], "prompt": "a"}, "sd3")
    few, many = table(Findings.model_validate(judging.use_tool(call, blobs.open)[0]), "steps")
    assert few["noise_deviation"] > 0
    assert many["latent_error"] < 0.5 * few["latent_error"]
    assert many["latent_error"] < 0.06


def test_a_picture_of_another_size_is_cropped_and_says_so(run: Panel, photo: str) -> None:
    found, pictures = run("inversion", image=photo, steps="4")
    assert pictures["given"].shape == (128, 128, 3)
    assert found.notes == ("The picture has 77 x 101 pixels; it was brought to 128 x 128 and cropped.",)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": "30"}, "steps=30 must divide the model's 1,000 noise levels; use 25"),
        ({"steps": "1"}, "steps=1 must be from 2 to 500"),
        ({"steps": ""}, "steps has 0 numbers; give 1 to 6, with commas between them"),
        ({"guidance": -1}, "guidance=-1 must be at least 0.0"),
    ],
)
def test_wrong_steps_are_told(run: Panel, values: dict[str, Any], sentence: str) -> None:
    assert refused(run, "inversion", **values) == sentence


# ranking


def test_the_best_is_first_and_generate_gets_its_seed(run: Panel) -> None:
    found, pictures = run("ranking", prompt="two red stars on a white background", candidates=4, steps=8)
    rows, scorer = table(found, "ranking"), Shapes()
    scores = [row["agreement"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert sorted(row["seed"] for row in rows) == [1, 2, 3, 4]
    shown = [pictures[name] for name in found.films[0].frames[0].pictures.values()]
    again = [scorer.prompt(seen, "two red stars on a white background") for seen in scorer.read(shown)]
    assert again == pytest.approx(scores, abs=1e-3)
    assert found.taken == {"seed": rows[0]["seed"]}
    best = line(found, "score", "best_so_far")
    assert best == sorted(best)
    assert best[-1] == pytest.approx(scores[0])


def test_a_clip_ranks_what_is_no_shape(scorers: Path, library: Library, blobs: BlobStore) -> None:
    encoders: list[Any] = []
    reading = Engine(
        open_device("cpu", 1),
        utc_now,
        new_image_id,
        find_scorer=lambda shapes: encoders.append(prompt_scorer(False, (scorers,), CPU)) or encoders[-1],
    )
    asked = {"prompt": "a red star", "candidates": 3, "steps": 4}
    found, pictures = reading.use_tool(lab_call(library, "ranking", asked, "shapes"), blobs.open)
    told, (clip,) = Findings.model_validate(found), encoders
    shown = [pixels(pictures[name]) for name in told.films[0].frames[0].pictures.values()]
    scores = [row["agreement"] for row in table(told, "ranking")]
    assert [clip.prompt(seen, "a red star") for seen in clip.read(shown)] == pytest.approx(scores, abs=1e-3)
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    assert told.notes == ("The score is that of clip.",)


def test_who_cannot_rank_says_so(run: Panel, engine: Any, library: Library, blobs: BlobStore) -> None:
    assert "says nothing that could be looked for" in refused(run, "ranking", prompt="art", candidates=2, steps=2)
    with pytest.raises(StudioError, match="put a CLIP"):
        engine.use_tool(lab_call(library, "ranking", {}, "shapes"), blobs.open)


# two dimensions


def test_the_plane_is_shown_as_it_was_computed(run: Panel, judging: Engine) -> None:
    judging.unload()
    found, _ = run("plane", losses="flow_matching", shape="gaussians", training_steps=400, steps=20, particles=300)
    assert not judging.pipelines._loaded  # no model is asked
    (film,) = found.particles
    assert len(film.clouds) == 21
    assert {len(cloud.points) for cloud in film.clouds} == {300}
    end = film.clouds[-1]
    assert len(end.density) == film.cells**2
    assert len(end.arrows) == film.field**2
    assert max(end.along) == 99
    (row,) = table(found, "quality")
    assert row["energy_end"] < 0.02 < 0.3 * row["energy_start"]
    assert line(found, "energy", "flow_matching")[-1] == row["energy_end"]
    # particles are where the colour is: the cells that they are in are denser than the others
    cells = [
        int((y / film.reach + 1) / 2 * film.cells) * film.cells + int((x / film.reach + 1) / 2 * film.cells)
        for x, y in end.points
    ]
    inside = np.mean([end.density[cell] for cell in cells if cell < len(end.density)])
    assert inside > 5 * np.mean(end.density)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"shape": "drawn"}, "drawn has 0 points; draw at least 3, or choose another of Points"),
        ({"losses": ""}, "losses is empty; choose ddpm, score_matching or flow_matching"),
        ({"training_steps": 10}, "training_steps=10 must be at least 50"),
        ({"steps": 1}, "steps=1 must be at least 2"),
        ({"shape": "drawn", "drawn": "[[9, 0]]"}, "drawn.0.0=9 must be at most 2.5"),
        ({"drawn": "[["}, "these are no points; draw some, or give a list of [x, y]"),
    ],
)
def test_wrong_planes_are_told(run: Panel, values: dict[str, Any], sentence: str) -> None:
    assert refused(run, "plane", **values) == sentence


def test_what_was_made_before_a_stop_is_shown(judging: Engine, library: Library, blobs: BlobStore) -> None:
    told: list[int] = []
    watch = ToolWatch(lambda step, steps: told.append(step), lambda: len(told) > 2)
    values = {"losses": ["ddpm", "flow_matching"], "training_steps": 50, "steps": 2, "particles": 50}
    found, _ = judging.use_tool(lab_call(library, "plane", values, "shapes"), blobs.open, watch)
    assert [film["name"] for film in found["particles"]] == ["ddpm"]
    assert found["notes"] == ["Stopped: 1 of 2 were made."]


def test_the_command_prints_the_same_numbers(run: Panel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from studio.__main__ import main

    values = ["--set", "losses=ddpm", "training_steps=50", "steps=5", "particles=50"]
    assert main(["--data-dir", str(tmp_path), "--device", "cpu", "--cpu-threads", "1", "lab", "plane", *values]) == 0
    printed = Findings.model_validate_json(capsys.readouterr().out)
    found, _ = run("plane", losses="ddpm", training_steps=50, steps=5, particles=50)
    assert printed.plots == found.plots
    assert printed.particles == found.particles
