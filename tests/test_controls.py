"""Preprocessors make control pictures that show what they should, read weights from one folder, and run nobody's code."""

import hashlib
import inspect
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from studio.engine.controls import UNSAFE, Preprocessors, fitted, preprocess, quiet, working_size
from studio.errors import InvalidRequest, ModelError
from studio.preprocessors import ANY, PREPROCESSORS, missing_message, option_values, weights_present
from studio.settings import ROOT

WEIGHTLESS = [name for name, entry in PREPROCESSORS.items() if not entry.weights]
NOWHERE = Path("nowhere")
HEAVY = {"numpy", "torch", "cv2", "controlnet_aux", "PIL"}
SIZES = [(128, 128), (129, 77), (77, 129), (200, 136), (20, 300)]  # width, height


@pytest.fixture(scope="module")
def library() -> Any:
    with quiet():
        import controlnet_aux

        return controlnet_aux


def circle(width: int = 128, height: int = 128) -> tuple[np.ndarray, float]:
    """Draw a dark disc in the middle of a light picture; returns its radius too."""
    radius = min(width, height) // 3
    picture = np.full((height, width, 3), 240, np.uint8)
    cv2.circle(picture, (width // 2, height // 2), radius, (30, 60, 90), -1)
    return picture, radius


def colourful(width: int, height: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def ran(picture: np.ndarray, name: str, *, resolution: int | None = None, **options: float) -> np.ndarray:
    return preprocess(picture, name, resolution=resolution, options=options, weights=NOWHERE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resolution", [None, 64, 512])
@pytest.mark.parametrize("name", WEIGHTLESS)
def test_without_weights_the_size_is_kept_and_runs_agree(
    name: str, resolution: int | None, size: tuple[int, int]
) -> None:
    picture = colourful(*size)
    kept = picture.copy()
    made = ran(picture, name, resolution=resolution)
    assert made.shape == (size[1], size[0], 3) and made.dtype == np.uint8
    assert np.array_equal(picture, kept)
    np.random.random(3)
    assert np.array_equal(made, ran(picture, name, resolution=resolution))


@pytest.mark.parametrize(
    ("size", "resolution"), [*((size, None) for size in SIZES), *((size, 512) for size in SIZES[:4])]
)
def test_canny_draws_the_rim_of_a_circle(size: tuple[int, int], resolution: int | None) -> None:
    picture, radius = circle(*size)
    made = ran(picture, "canny", resolution=resolution)
    assert set(np.unique(made)) == {0, 255}
    rows, columns = np.nonzero(made[:, :, 0])
    x, y = columns - size[0] // 2, rows - size[1] // 2
    assert np.abs(np.hypot(x, y) - radius).max() <= 2
    assert len(np.unique(np.degrees(np.arctan2(y, x)) % 360 // 20)) == 18  # all around


@pytest.mark.parametrize("size", SIZES)
def test_pixel_perfect_means_that_nothing_is_stretched(size: tuple[int, int]) -> None:
    picture, _ = circle(*size)
    assert np.array_equal(ran(picture, "canny")[:, :, 0], cv2.Canny(picture, 100, 200))


def test_canny_obeys_its_thresholds() -> None:
    picture = colourful(128, 128)
    many = ran(picture, "canny", low_threshold=1, high_threshold=5).sum()
    few = ran(picture, "canny", low_threshold=20, high_threshold=100.0).sum()
    assert many > 2 * few


def test_none_gives_the_picture_and_invert_twice_gives_it_back() -> None:
    picture = colourful(129, 77)
    assert ran(picture, "none") is picture
    assert np.array_equal(ran(picture, "invert"), 255 - picture)
    assert np.array_equal(ran(ran(picture, "invert"), "invert"), picture)


def test_lineart_standard_shows_dark_lines_white_on_black() -> None:
    picture = np.full((128, 128, 3), 230, np.uint8)
    cv2.circle(picture, (64, 64), 40, (20, 20, 20), 2)
    made = ran(picture, "lineart_standard").mean(axis=2)
    line = (picture < 128).all(axis=2)
    far = cv2.dilate(line.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert made[line].mean() > 100
    assert made[far].mean() < 5


def test_shuffle_moves_colours_by_its_seed_and_leaves_numpy_alone() -> None:
    picture = colourful(128, 128)
    before = np.random.get_state()
    made = ran(picture, "shuffle", seed=5)
    after = np.random.get_state()
    assert all(np.array_equal(one, two) for one, two in zip(before, after))  # type: ignore[arg-type]
    assert np.array_equal(made, ran(picture, "shuffle", seed=5))
    assert not np.array_equal(made, ran(picture, "shuffle", seed=6))
    assert not np.array_equal(made, picture)
    seen = {tuple(colour // 32) for colour in picture.reshape(-1, 3)}
    known = [tuple(colour // 32) in seen for colour in made.reshape(-1, 3)]
    assert np.mean(known) > 0.95


@pytest.mark.parametrize("size", [(512, 512), (300, 180), (64, 64), (900, 700)])
def test_resized_lines_stay_unbroken_black_and_white(size: tuple[int, int]) -> None:
    lines = np.zeros((512, 512, 3), np.uint8)
    cv2.line(lines, (0, 0), (511, 300), (255, 255, 255), 1)
    made = fitted(lines, *size)
    assert set(np.unique(made)) == {0, 255}
    assert made[:, :, 0].any(axis=0).mean() > 0.98
    assert made.any(axis=2).sum() <= 3 * max(1, size[0] / 512) * size[0]


def test_soft_results_stay_soft() -> None:
    ramp = np.tile(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], (512, 1, 3))
    assert len(np.unique(fitted(ramp, 128, 128))) > 100


def test_the_table_is_what_controlnet_aux_has(library: Any) -> None:
    for name, entry in PREPROCESSORS.items():
        assert entry.title and entry.note, name
        assert len({weight.source for weight in entry.weights}) <= 1, f"{name}: one sentence names one source"
        assert all(option.minimum <= option.default <= option.maximum for option in entry.options)
        if not entry.class_name:
            assert name in ("none", "invert") and entry.kind == ANY
            continue
        detector = getattr(library, entry.class_name)
        known = inspect.signature(detector.__call__).parameters
        passed = {option.argument or option.name for option in entry.options} | entry.arguments.keys()
        assert passed - {"seed"} <= known.keys(), name
        assert {"detect_resolution", "output_type"} <= known.keys(), name
        if entry.weights:
            assert "filename" in inspect.signature(detector.from_pretrained).parameters
            source = inspect.getsource(sys.modules[detector.__module__])
            own = {weight.name for weight in entry.weights} - {"5_model.pth", "MTEED.pth"}  # TED's two have no default
            assert all(file in source for file in own), name


def save_teed(folder: Path, seed: int = 0) -> torch.nn.Module:
    with quiet():
        from controlnet_aux.teed.ted import TED
    torch.manual_seed(seed)
    net = TED()
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.3)  # TED's own start draws nothing
    torch.save(net.state_dict(), folder / "5_model.pth")
    return net


def pin(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    """Take the files that lie there for the published ones."""
    entry = PREPROCESSORS[name]
    found = [hashlib.sha256((folder / weight.name).read_bytes()).hexdigest() for weight in entry.weights]
    weights = tuple(weight._replace(sha256=digest) for weight, digest in zip(entry.weights, found))
    monkeypatch.setitem(PREPROCESSORS, name, replace(entry, weights=weights))


def test_weights_from_a_folder_make_what_the_library_makes(library: Any, tmp_path: Path) -> None:
    net, picture = save_teed(tmp_path), colourful(128, 64)
    ours = Preprocessors(tmp_path, "cpu")
    made = ours.run(picture, "teed")
    with quiet():
        wanted = library.TEEDdetector(net)(picture, detect_resolution=64, output_type="np")
    assert np.array_equal(made, wanted)
    assert len(np.unique(made)) > 1
    assert not np.array_equal(made, ours.run(picture, "teed", options={"safe_steps": 0}))
    for size in SIZES:
        assert ours.run(colourful(*size), "teed", resolution=64).shape == (size[1], size[0], 3)


def test_weights_are_read_once_until_unload(tmp_path: Path) -> None:
    save_teed(tmp_path)
    picture, ours = colourful(64, 64), Preprocessors(tmp_path, "cpu")
    first = ours.run(picture, "teed")
    (tmp_path / "5_model.pth").unlink()
    assert np.array_equal(ours.run(picture, "teed"), first)
    ours.unload()
    with pytest.raises(ModelError, match="needs 5_model"):
        ours.run(picture, "teed")
    save_teed(tmp_path, seed=1)
    assert not np.array_equal(ours.run(picture, "teed"), first)


def test_only_the_published_file_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_teed(tmp_path)
    pin(monkeypatch, "teed", tmp_path)
    picture = colourful(64, 64)
    Preprocessors(tmp_path, "cpu").run(picture, "teed")
    save_teed(tmp_path, seed=1)
    with pytest.raises(ModelError, match=r"5_model.pth is not the published file .* copy it again from https://"):
        Preprocessors(tmp_path, "cpu").run(picture, "teed")


def test_weights_of_another_net_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "5_model.pth")
    with pytest.raises(ModelError, match="could not be loaded"):
        Preprocessors(tmp_path, "cpu").run(colourful(64, 64), "teed")


class Bomb:
    """What a hostile file holds: unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_with_code_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, allowed: bool
) -> None:
    mark, file = tmp_path / "ran", tmp_path / "5_model.pth"
    if form == "pickle":
        file.write_bytes(pickle.dumps({"weight": Bomb(mark)}))
    else:
        torch.save({"weight": Bomb(mark)}, file)
    if allowed:
        monkeypatch.setenv(UNSAFE, "1")
    with pytest.raises(ModelError, match="unset it" if allowed else "may hold code"):
        Preprocessors(tmp_path, "cpu").run(colourful(64, 64), "teed")
    assert not mark.exists()
    torch.load(file, weights_only=False) if form == "zip" else pickle.loads(file.read_bytes())
    assert mark.exists()  # the bomb is real


@pytest.mark.parametrize("name", [name for name in PREPROCESSORS if name not in WEIGHTLESS])
def test_missing_weights_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Preprocessors(tmp_path, "cpu").run(colourful(64, 64), name)
    files = [weight.name for weight in PREPROCESSORS[name].weights]
    assert str(caught.value) == missing_message(name, tmp_path)
    assert str(tmp_path) not in str(caught.value) and "https://huggingface.co/" in str(caught.value)
    assert all(file in str(caught.value) for file in files)
    (tmp_path / files[0]).touch()
    assert files[0] not in missing_message(name, tmp_path)
    assert weights_present(name, tmp_path) == (len(files) == 1)
    for file in files:
        (tmp_path / file).touch()
    assert weights_present(name, tmp_path) and missing_message(name, tmp_path) == ""


@pytest.mark.parametrize(
    ("name", "options", "resolution", "says"),
    [
        ("cany", {}, None, "'cany' is not known; use one of: none, invert, canny"),
        ("../canny", {}, None, "not known"),
        ("canny", {"low": 1}, None, "has no option 'low'; it has low_threshold, high_threshold"),
        ("invert", {"low": 1}, None, "it has none"),
        ("canny", {"low_threshold": 0}, None, "low_threshold=0 must be a whole number from 1 to 255"),
        ("canny", {"low_threshold": 256}, None, "from 1 to 255"),
        ("canny", {"low_threshold": 1.5}, None, "a whole number"),
        ("canny", {"low_threshold": True}, None, "a whole number"),
        ("canny", {"low_threshold": "9"}, None, "a whole number"),
        ("canny", {"low_threshold": float("nan")}, None, "from 1 to 255"),
        ("lineart_standard", {"gaussian_sigma": float("inf")}, None, "a number from 0.1 to 30"),
        ("shuffle", {"seed": -1}, None, "from 0 to 4294967295"),
        ("canny", {}, 63, "resolution=63 must be a whole number from 64 to 2048"),
        ("none", {}, 2049, "from 64 to 2048"),
        ("canny", {}, 512.5, "a whole number"),
    ],
)
def test_wrong_requests_say_what_is_right(name: str, options: dict[str, Any], resolution: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        preprocess(colourful(64, 64), name, resolution=resolution, options=options, weights=NOWHERE)
    assert caught.value.field == "preprocessor"
    assert says in str(caught.value)


def test_a_long_picture_is_not_blown_up() -> None:
    with pytest.raises(InvalidRequest, match="2048 x 64 longer than 8192 pixels; use at most 256"):
        working_size(2048, 64, 512)
    assert working_size(2048, 64, 256) == (8192, 256)


def test_options_get_their_defaults() -> None:
    assert option_values("canny", {"low_threshold": 50.0}) == {"low_threshold": 50, "high_threshold": 200}
    assert option_values("depth_midas", {}) == {}


def test_other_arrays_raise() -> None:
    for wrong in (
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8 RGB"):
            ran(wrong, "canny")


def test_the_table_imports_nothing_heavy() -> None:
    code = f"import sys, studio.preprocessors\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_library_comes_with_the_first_use_and_prints_nothing() -> None:
    code = (
        "import sys, numpy as np, pathlib\nfrom studio.engine.controls import Preprocessors\n"
        "assert 'controlnet_aux' not in sys.modules\n"
        "Preprocessors(pathlib.Path('nowhere'), 'cpu').run(np.full((64, 64, 3), 99, np.uint8), 'lineart_standard')\n"
        "assert 'controlnet_aux' in sys.modules"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("", "")
