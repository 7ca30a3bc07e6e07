"""The Lab: its numbers against closed forms, its claims on the embedded model, wrong input."""

import math
from collections.abc import Callable
from pathlib import Path as FilePath
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from PIL import Image

from studio.engine.lab import RUNS
from studio.engine.lab_forward import closed, measured, walk
from studio.engine.lab_paths import PREDICTIONS, SCHEDULES, Path, from_noise, schedule, to_noise
from studio.engine.lab_reverse import PAIRS
from studio.engine.lab_sampling import sample, sampler
from studio.errors import InvalidRequest, StudioError
from studio.lab import PANELS, SAMPLERS, SamplerName, parse_lab
from studio.store.lab_calls import lab_call
from studio.store.library import Library
from studio.tools import NOBODY, ToolWatch
from studio.ui.lab_text import LAB_TEXT
from tests.conftest import pixels
from trainers.scorers.shapes import Shapes, other_prompts

PROMPT = "a red circle on a blue background"
DATA = 0.5  # deviation of the Gaussian that has closed forms
Ask = Callable[..., tuple[dict[str, Any], dict[str, bytes]]]


def bench_of(scheduler: Any, noise: str = "diffusion") -> Any:
    """Return what `sample` needs of a Bench."""
    return SimpleNamespace(
        pipe=SimpleNamespace(scheduler=scheduler),
        path=Path(scheduler),
        job=SimpleNamespace(model=SimpleNamespace(noise=noise)),
        step=lambda: None,
    )


def gaussian(path: Path) -> Any:
    """Return the best denoiser of pictures that are Gaussian noise of deviation `DATA`: x0 = alpha s^2 x / (alpha^2 s^2 + sigma^2)."""

    def ask(x: torch.Tensor, timestep: Any, fraction: float) -> torch.Tensor:
        level = path.at(float(timestep))
        alpha, sigma = level
        x0 = alpha * DATA**2 / (alpha**2 * DATA**2 + sigma**2) * x
        return from_noise(path.prediction, x0, (x - alpha * x0) / sigma, level)

    return ask


def where_the_ode_leads(noise: torch.Tensor, path: Path) -> torch.Tensor:
    """Return the exact solution of the probability-flow ODE for `gaussian`: deviations stay proportional."""
    alpha, sigma = path.at(len(path) - 1)
    return noise * DATA / math.sqrt(alpha**2 * DATA**2 + sigma**2)


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_alpha_bar_is_the_product_of_one_minus_beta(name: str) -> None:
    (low, high), root = {"linear": ((1e-4, 0.02), 1), "scaled_linear": ((0.00085, 0.012), 2)}[name]
    betas = np.linspace(low ** (1 / root), high ** (1 / root), 1000) ** root
    path = Path(schedule(name, None))
    np.testing.assert_allclose(path.alphas**2, np.cumprod(1 - betas), rtol=1e-4)
    np.testing.assert_allclose(path.alphas**2 + path.sigmas**2, 1)


def test_the_other_schedules_are_as_their_papers_say() -> None:
    steps = np.arange(1001) / 1000
    cosine = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
    found = Path(schedule("cosine", None)).alphas ** 2
    np.testing.assert_allclose(
        found[:990], (cosine / cosine[0])[1:991], rtol=1e-3
    )  # the last betas are clipped at 0.999
    assert Path(schedule("zero_terminal_snr", None)).alphas[-1] == 0
    flow = Path(schedule("flow", None))
    np.testing.assert_allclose(flow.alphas, 1 - np.arange(1, 1001) / 1000, atol=1e-6)


def test_snr_is_that_of_diffusers() -> None:
    scheduler = schedule("scaled_linear", None)
    theirs = compute_snr(scheduler, torch.arange(1000))
    np.testing.assert_allclose(Path(scheduler).log_snr, theirs.log().numpy(), atol=1e-4)


@pytest.mark.parametrize("name", [*SCHEDULES])
def test_step_by_step_ends_in_the_statistics_of_the_closed_form(name: str) -> None:
    scheduler, generator = schedule(name, None), torch.Generator().manual_seed(0)
    x0 = 0.7 * torch.randn((1, 4, 96, 96), generator=generator)
    noise, marks = torch.randn(x0.shape, generator=generator), [0, 250, 600]
    walked = walk(bench_of(scheduler), scheduler, x0, noise, marks, generator)
    path = Path(scheduler)
    for mark in marks:
        at_once = closed(scheduler, x0, noise, mark)
        found = measured({"closed": at_once, "stepwise": walked[mark]}, x0)
        wanted = [path.alphas[mark], path.sigmas[mark]] * 2
        np.testing.assert_allclose(found, wanted, atol=0.02)
        if name == "flow":
            torch.testing.assert_close(walked[mark], at_once, atol=1e-4, rtol=0)
        elif mark:
            assert float((walked[mark] - at_once).abs().mean()) > 0.1, "new noise at each step"


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("timestep", [5, 500, 990])
def test_predictions_are_converted_as_diffusers_does(prediction: str, timestep: int) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(1000)
    x0, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(timestep)).unbind()
    step, level = torch.tensor([timestep]), Path(scheduler).at(timestep)
    x = scheduler.add_noise(x0, noise, step)
    said = from_noise(prediction, x0, noise, level)
    if prediction == "v_prediction":
        torch.testing.assert_close(said, scheduler.get_velocity(x0, noise, step), atol=1e-5, rtol=1e-5)
    theirs = scheduler.step(said, timestep, x).pred_original_sample
    found, back = to_noise(prediction, said, x, level)
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(back, noise, atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name, facts in SAMPLERS.items() if not facts.random])
def test_every_ode_sampler_comes_nearer_to_the_exact_solution_with_steps(name: str) -> None:
    bench = bench_of(schedule("scaled_linear", None))
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    exact = where_the_ode_leads(noise, bench.path)
    errors = [
        float((sample(bench, sampler(bench, name, steps, 0.0), noise, gaussian(bench.path), [1]) - exact).norm())
        for steps in (10, 40, 160)
    ]
    floor = 0.01 * float(exact.norm())  # of solvers that round their steps to those of training
    assert errors[0] > 2 * errors[1] or errors[1] < floor, errors
    assert errors[1] > 2 * errors[2] or errors[2] < floor, errors
    assert errors[2] < 3 * floor, errors


def test_ddim_without_eta_is_eulers_method_for_the_ode_and_a_higher_order_is_nearer() -> None:
    bench = bench_of(schedule("scaled_linear", None))
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))

    def made(name: str, steps: int, eta: float = 0.0) -> torch.Tensor:
        return sample(bench, sampler(bench, name, steps, eta), noise, gaussian(bench.path), [1])

    torch.testing.assert_close(made("DDIM", 20), made("PF-ODE", 20), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(made("DDIM", 20, 1.0), made("DDPM", 20), atol=1e-3, rtol=1e-3)
    exact = where_the_ode_leads(noise, bench.path)
    one, two = (float((made(f"DPM-Solver-{order}", 20) - exact).norm()) for order in (1, 2))
    assert two < one / 2


@pytest.mark.parametrize(("name", "eta"), [("DDPM", 0.0), ("SDE", 0.0), ("DDIM", 1.0), ("DDIM", 0.5)])
def test_samplers_that_add_noise_end_in_the_right_distribution(name: str, eta: float) -> None:
    bench = bench_of(schedule("scaled_linear", None))
    noise = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(0))
    made = [sample(bench, sampler(bench, name, 100, eta), noise, gaussian(bench.path), [seed]) for seed in (1, 2)]
    assert float(made[0].std()) == pytest.approx(DATA, rel=0.08)
    assert float((made[0] - made[1]).std()) > 0.1 * DATA, "another seed, another picture"


@pytest.mark.parametrize("name", ["Flow Euler", "Flow Heun", "DPM-Solver-2"])
def test_samplers_of_a_flow_come_nearer_too(name: str) -> None:
    bench = bench_of(schedule("flow", None), "flow")
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    exact = where_the_ode_leads(noise, bench.path)
    errors = [
        float((sample(bench, sampler(bench, name, steps, 0.0), noise, gaussian(bench.path), [1]) - exact).norm())
        for steps in (10, 80)
    ]
    assert errors[0] > 2 * errors[1] or errors[0] < 0.01 * float(exact.norm()), errors
    assert errors[1] < 0.03 * float(exact.norm()), errors
    with pytest.raises(InvalidRequest, match="DDPM does not work with this model"):
        sampler(bench, "DDPM", 10, 0.0)


def test_every_panel_is_complete() -> None:
    assert set(PANELS) == set(RUNS)
    assert set(get_args(SamplerName)) == set(SAMPLERS)
    assert len(PAIRS) == 6
    for name, panel in PANELS.items():
        parse_lab(name, {})
        for kind in ("panel", "text", *(f"plot.{name}.{plot}" for plot in panel.plots)):
            assert LAB_TEXT[f"lab.{kind}" if "." in kind else f"lab.{kind}.{name}"]


@pytest.mark.parametrize(
    ("panel", "values", "sentence"),
    [
        ("backward", {}, "panel='backward' is not known; use one of: forward, reverse"),
        ("forward", {"timestep": 1000}, "timestep=1000 must be at most 999"),
        ("forward", {"timestep": 10.5}, "timestep=10.5: "),
        ("forward", {"schedule": "sigmoid"}, "schedule='sigmoid': "),
        ("forward", {"steps": 3}, "steps is not a setting of forward; it has: prompt, seed"),
        ("reverse", {"num_inference_steps": 1}, "num_inference_steps=1 must be at least 2"),
        ("reverse", {"eta": 2}, "eta=2 must be at most 1"),
        ("reverse", {"guidance_scale": -1}, "guidance_scale=-1 must be at least 0"),
        ("reverse", {"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number"),
        ("samplers", {"steps": "5, 1"}, "steps=1 must be from 2 to 1000"),
        ("samplers", {"steps": "5, five"}, "steps.1='five': "),
        ("samplers", {"steps": "5 5"}, "steps names a number twice"),
        ("samplers", {"samplers": []}, "samplers is empty; choose some of: DDPM"),
        ("samplers", {"samplers": "DDIM, Magic"}, "samplers.1='Magic': "),
        ("guidance", {"scales": "0, -2"}, "scales=-2 must be from 0 to 30"),
        ("guidance", {"scales": ""}, "scales has 0 numbers; give 1 to 10"),
        ("guidance", {"guidance_start": 0.5, "guidance_end": 0.5}, "guidance_end=0.5 must be more than guidance_start"),
    ],
)
def test_wrong_values_are_told_in_one_sentence(panel: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        parse_lab(panel, values)
    assert str(told.value).startswith(sentence), told.value


def test_what_generate_takes_over_is_a_request(library: Library) -> None:
    for name, panel in PANELS.items():
        if panel.settings:
            values = panel.settings(parse_lab(name, {}))
            from studio.spec import parse_request

            assert library.job(parse_request(values | {"model": "shapes"}), 1).request.seed == values["seed"]


@pytest.fixture(scope="module")
def ask(library: Library) -> Ask:
    """Let a panel work on the embedded model, judged."""
    from studio.engine.devices import open_device
    from studio.engine.engine import Engine
    from studio.store.gallery import new_image_id, utc_now

    judged = Engine(
        open_device("cpu", 1), utc_now, new_image_id, find_scorer=lambda shapes: Shapes() if shapes else None
    )

    def run(panel: str, watch: ToolWatch = NOBODY, picture: Image.Image | None = None, **values: Any) -> Any:
        call = lab_call(library, panel, {"prompt": PROMPT, **values}, "shapes")
        return judged.use_tool(call, lambda reference, field: picture or Image.new("RGB", (8, 8)), watch)

    return run


def table(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    (one,) = (table for table in found["tables"] if table["name"] == name)
    return [dict(zip(one["columns"], row, strict=True)) for row in one["rows"]]


def test_the_reverse_process_is_what_generate_draws(ask: Ask, draw: Any) -> None:
    found, pictures = ask("reverse", num_inference_steps=5, frames=2, seed=3, guidance_scale=2.0)
    theirs = draw(
        prompt=PROMPT, seed=3, num_inference_steps=5, scheduler="DDIM", guidance_scale=2.0, width=128, height=128
    )
    mine = pixels(pictures["result"]).astype(int)
    assert np.abs(mine - pixels(theirs.pictures[0])).mean() < 2, (
        "up to the step before the last, which ends without noise"
    )
    rows = table(found, "moments")
    assert [row["timestep"] for row in rows] == [999, 799, 599, 399, 199]
    assert all(abs(row["noise_mean"]) < 0.2 and 0.9 < row["noise_std"] < 1.1 for row in rows)
    trips = table(found, "conversions")
    assert all(value < 1e-4 for row in trips for name, value in row.items() if name != "timestep")
    distance = found["plots"][0]["lines"]
    assert [line["name"] for line in distance] == ["x_t", "predicted_x0"]
    assert distance[1]["y"][-1] < distance[1]["y"][0] / 4
    assert set(pictures) == {
        "result",
        *(name for frame in found["films"][0]["frames"] for name in frame["pictures"].values()),
    }


def test_dpm_solver_is_nearer_to_the_reference_at_ten_steps(ask: Ask) -> None:
    found, pictures = ask(
        "samplers", samplers=("DDIM", "DPM-Solver-2"), steps=(10,), reference_steps=100, guidance_scale=1.0
    )
    rows = {row["sampler"]: row for row in table(found, "samplers")}
    assert rows["DPM-Solver-2"]["evaluations"] == rows["DDIM"]["evaluations"] == 10
    assert rows["DPM-Solver-2"]["distance"] < 0.85 * rows["DDIM"]["distance"]
    assert rows["DPM-Solver-2"]["agreement"] == 1
    assert len(pictures) == 3


def test_without_guidance_the_prompt_is_shown_as_often_as_by_chance(ask: Ask) -> None:
    found, _ = ask("guidance", scales=(0, 3), pictures=6, num_inference_steps=8)
    none, much = table(found, "guidance")
    assert none["agreement"] <= none["chance"] + 0.2
    assert much["agreement"] >= 0.9 > 0.5 > much["chance"]
    assert none["diversity"] > much["diversity"]


def test_other_prompts_say_other_things() -> None:
    others = other_prompts("two red circles on a blue background, striped style")
    assert len(set(others)) == len(others) == 7
    assert others[0] == "two orange squares on a purple background, striped style"
    assert all("red circle" not in one and "blue background" not in one for one in others)


def test_a_picture_of_another_size_is_cropped_and_told(ask: Ask) -> None:
    picture = Image.new("RGB", (200, 100), "red")
    values: dict[str, Any] = {"image": "blob:x", "timestep": 3, "frames": 2, "space": "pixels"}
    found, pictures = ask("forward", picture=picture, **values)
    assert found["notes"] == ["The picture has 200 x 100 pixels; it was brought to 128 x 128 and cropped."]
    assert pixels(pictures["given"]).shape == (128, 128, 3)
    assert ask("forward", picture=Image.new("RGB", (128, 128)), **values)[0]["notes"] == []


def test_a_panel_can_be_stopped_and_tells_what_it_has(ask: Ask) -> None:
    told: list[tuple[int, int]] = []
    watch = ToolWatch(lambda *step: told.append(step), lambda: len(told) >= 4)
    found, _ = ask("guidance", watch, scales=(1, 0, 2), pictures=2, num_inference_steps=3)
    assert [row["guidance"] for row in table(found, "guidance")] == [1]
    assert "Stopped: 1 of 3 were made." in found["notes"]
    assert told == [(1, 9), (2, 9), (3, 9), (4, 9)]
    with pytest.raises(StudioError, match="Stopped before there was anything to show"):
        ask("samplers", ToolWatch(stopped=lambda: True), steps=(2,), reference_steps=20)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_other_families_work_too(engine: Any, tiny_library: Library, family: str) -> None:
    small = {"num_inference_steps": 2, "frames": 2}
    name = next(
        model.id for model in tiny_library.models() if model.family == family and not model.kind and not model.problem
    )
    flow = tiny_library.get(name).noise == "flow"

    def ran(sampler: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        call = lab_call(tiny_library, "reverse", small | {"sampler": sampler}, name)
        size = {"request": call.job.request.model_copy(update={"width": 64, "height": 64})}
        smaller = call.model_copy(update={"job": call.job.model_copy(update=size)})
        return engine.use_tool(smaller, lambda *_: Image.new("RGB", (8, 8)))

    found, pictures = ran("Flow Euler" if flow else "DDIM")
    assert len(table(found, "moments")) == 2
    assert pixels(pictures["result"]).shape == (64, 64, 3)
    if flow:
        with pytest.raises(InvalidRequest, match="DDIM does not work with this model"):
            ran("DDIM")


def test_the_command_prints_the_numbers_and_keeps_the_pictures(
    tmp_path: FilePath, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from studio.__main__ import main

    monkeypatch.setenv("STUDIO_DATA_DIR", str(tmp_path / "data"))
    Image.new("RGB", (150, 128), "green").save(tmp_path / "green.png")
    given = ["lab", "forward", "--set", f"image={tmp_path / 'green.png'}", "timestep=9", "frames=2", "space=pixels"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["timestep"] for row in table(found, "statistics")] == [0, 9]
    names = {name for frame in found["films"][0]["frames"] for name in frame["pictures"].values()}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names
    assert found["settings"]["image"] == str(tmp_path / "green.png")
    assert main(["lab", "reverse", "--set", "eta=2"]) == 2
    assert capsys.readouterr().err == "eta=2 must be at most 1.0\n"
    assert main(["lab", "nothing"]) == 2
