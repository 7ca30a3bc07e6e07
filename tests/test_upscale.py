"""Upscalers: what a network is known to do shows in the picture, tiles leave no trace, and a finished picture becomes larger."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.__main__ import main
from studio.engine import upscale
from studio.engine.devices import open_device
from studio.errors import InvalidRequest
from studio.events import Progress
from studio.executors.dispatcher import Dispatcher, Live
from studio.executors.inline import InlineExecutor
from studio.settings import Settings
from studio.spec import parse_request
from studio.store.blobs import encode
from studio.store.gallery import Gallery
from studio.store.index import Database, ImageIndex
from studio.store.inputs import canvas_size
from studio.store.jobs import DONE, JobStore
from studio.store.library import Library
from studio.store.metadata import from_texts, picture_texts, read_picture
from studio.ui.upscale_panel import enlarging
from tests.conftest import pixels

PROMPT = "a big red square on a white background"
Draw = Callable[..., Any]


def compact(scale: int, *, size: float, width: int = 8) -> dict[str, torch.Tensor]:
    """Return weights of Real-ESRGAN's compact network, which adds what it computes to the nearest neighbour; 0 adds nothing."""
    random = torch.Generator().manual_seed(3)
    state: dict[str, torch.Tensor] = {}
    for place, (inner, outer) in {0: (3, width), 2: (width, width), 4: (width, 3 * scale**2)}.items():
        state[f"body.{place}.weight"] = torch.randn(outer, inner, 3, 3, generator=random) * size
        state[f"body.{place}.bias"] = torch.randn(outer, generator=random) * size
        if place < 4:
            state[f"body.{place + 1}.weight"] = torch.full((width,), 0.2)
    return state


def noise(width: int, height: int, seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def nearest(picture: np.ndarray, factor: int) -> np.ndarray:
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def put(folder: Path) -> None:
    """Put the networks that these tests use into a folder: `nearest` and `nearest4` add nothing, `rough` does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, scale, size in (("nearest", 2, 0.0), ("nearest4", 4, 0.0), ("rough", 2, 0.15)):
        save_file(compact(scale, size=size), folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def upscalers(library: Library) -> Iterator[Path]:
    folder = library.parts.roots[-1] / "upscalers"
    put(folder)
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def rough(upscalers: Path) -> Any:
    return upscale.load_upscaler(upscalers / "rough.safetensors", open_device("cpu", 1))


def refused(**values: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tiles_are_what_one_run_makes(rough: Any) -> None:
    picture = np.array(noise(600, 300))
    values = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    whole = (rough(values)[0].permute(1, 2, 0) * 255).round().numpy().astype(int)
    told: list[tuple[int, int]] = []
    tiled = upscale.enlarge(picture, 1200, 600, rough, lambda *step: told.append(step))
    assert np.abs(tiled - whole).max() <= 1
    assert told == [(n, 6) for n in range(1, 7)]
    assert np.abs(tiled.astype(int) - nearest(picture, 2)).max() > 20, "the network does something"


def test_bands_are_resampled_as_the_whole_is(rough: Any) -> None:
    picture = np.array(noise(300, 530))
    large = upscale.run_tiled(rough, picture, None, lambda: None)
    expected = upscale.fit(large, 390, 689, "stretch")
    assert np.array_equal(upscale.enlarge(picture, 390, 689, rough, lambda *_: None), expected)


def test_a_network_runs_as_often_as_it_takes() -> None:
    assert [upscale.runs_needed(2, factor) for factor in (1.5, 2, 2.1, 4, 100)] == [1, 1, 2, 2, 3]
    assert (upscale.runs_needed(4, 2.0), upscale.runs_needed(1, 4.0)) == (1, 1)
    assert upscale.cut(256, 10) == [(0, 0, 256, 10)]
    assert upscale.cut(300, 257)[-1] == (150, 128, 300, 257)


@pytest.mark.parametrize(("upscaler", "scale"), [("nearest", 2), ("nearest", 4), ("nearest4", 4), ("nearest", 3)])
def test_a_picture_is_enlarged_and_nothing_is_drawn(
    draw: Draw, engine: Any, upscalers: Path, upscaler: str, scale: int
) -> None:
    source = noise(75, 90)
    loaded = dict(engine.pipelines._loaded)
    made = draw(image=encode(source), strength=0, hires_scale=scale, hires_upscaler=upscaler)
    picture = pixels(made.pictures[0])
    expected = nearest(np.array(source), 4 if scale > 2 else 2)
    expected = (
        np.array(Image.fromarray(expected).resize((225, 270), Image.Resampling.HAMMING)) if scale == 3 else expected
    )
    assert np.array_equal(picture, expected)
    assert engine.pipelines._loaded == loaded
    assert [event.step for event in made.events if isinstance(event, Progress)]
    text = picture_texts(made.records[0])
    assert f"Postprocess upscale by: {scale}, Postprocess upscaler: {upscaler}" in text["parameters"]
    assert "Size: " not in text["parameters"]
    again = draw(
        **{name: value for name, value in from_texts(text).values.items() if name != "image" and value is not None},
        image=encode(source),
    )
    assert again.pictures == made.pictures


def test_lanczos_needs_no_file_and_a_given_size_is_the_one_that_is_enlarged(draw: Draw) -> None:
    source = noise(80, 64)
    own = pixels(draw(image=encode(source), strength=0, hires_scale=1.5, hires_upscaler="lanczos").pictures[0])
    assert np.array_equal(own, np.array(source.resize((120, 96), Image.Resampling.LANCZOS)))
    given = {"width": 128, "height": 64, "resize_mode": "fill", "num_images_per_prompt": 2}
    made = draw(image=encode(source), strength=0, hires_scale=2, hires_upscaler="lanczos", **given)
    assert pixels(made.pictures[0]).shape == (128, 256, 3)
    assert made.pictures[0] == made.pictures[1]


def test_strength_0_without_a_scale_is_still_the_picture(draw: Draw) -> None:
    source = noise(128, 128)
    assert np.array_equal(pixels(draw(image=encode(source), strength=0).pictures[0]), np.array(source))


def test_a_second_pass_starts_from_what_the_network_made(draw: Draw, upscalers: Path) -> None:
    values: dict[str, Any] = {"prompt": PROMPT, "seed": 4, "num_inference_steps": 3}
    first = pixels(draw(**values).pictures[0])
    values |= {"hires_scale": 2, "hires_steps": 10, "hires_strength": 0.1}
    made = draw(**values, hires_upscaler="nearest")
    assert made.records[0].parts[0].kind == "upscaler"
    second = pixels(made.pictures[0]).astype(int)
    assert second.shape == (256, 256, 3)
    assert np.abs(second - nearest(first, 2)).mean() < 12
    others = [pixels(draw(**values, hires_upscaler=name).pictures[0]) for name in ("lanczos", "rough")]
    assert all(np.abs(second - other).mean() > 0.1 for other in others)


def test_an_interrupted_enlargement_ends_at_a_tile(draw: Draw, upscalers: Path) -> None:
    values = {"image": encode(noise(600, 300)), "strength": 0, "hires_scale": 2, "hires_upscaler": "rough"}
    made = draw(**values, stop=lambda made: "interrupt" if len(made.events) > 1 else "")
    assert made.finished.interrupted
    assert len([event for event in made.events if isinstance(event, Progress)]) == 1


def test_tiles_of_the_vae_are_a_setting_that_is_put_back(draw: Draw, engine: Any) -> None:
    values: dict[str, Any] = {"prompt": PROMPT, "seed": 4, "num_inference_steps": 1, "width": 256, "height": 256}
    plain = draw(**values).pictures
    tiled = draw(**values, vae_tiling=True)
    assert tiled.pictures != plain
    assert np.abs(pixels(tiled.pictures[0]).astype(int) - pixels(plain[0])).mean() < 12
    assert tiled.records[0].request.vae_tiling
    assert draw(**values).pictures == plain


def test_a_batch_decoded_one_by_one_is_a_setting_that_is_put_back(draw: Draw) -> None:
    values: dict[str, Any] = {"prompt": PROMPT, "seed": 4, "num_inference_steps": 1, "width": 256, "height": 256}
    values |= {"num_images_per_prompt": 2, "batch_size": 2}
    plain = draw(**values).pictures
    sliced = draw(**values, vae_slicing=True)
    assert sliced.pictures != plain, "if they are equal, it can be chosen for everyone"
    for one, two in zip(sliced.pictures, plain, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(two)).max() <= 1
    assert sliced.records[0].request.vae_slicing
    assert draw(**values).pictures == plain
    alone = values | {"num_images_per_prompt": 1, "batch_size": 1}
    assert draw(**alone, vae_slicing=True).pictures == draw(**alone).pictures


def test_what_cannot_be_enlarged_is_told_in_one_sentence(library: Library, upscalers: Path, blobs: Any) -> None:
    large = {"image": "x", "strength": 0, "hires_scale": 4, "hires_upscaler": "lanczos"}
    assert "only while a model draws" in refused(**large | {"hires_upscaler": "latent"})
    assert "works only without an image" in refused(**large | {"strength": 0.5})
    assert "works only without an image" in refused(**large, mask_image="y")
    assert "8192 x 8192" in refused(**large, width=2048, height=2048)
    wide = parse_request(large | {"image": blobs.add(encode(noise(2100, 40)), "image")})
    with pytest.raises(InvalidRequest, match="makes 8400 x 160 pixels of 2100 x 40; at most 8192 a side"):
        canvas_size(wide, blobs)

    def missing(name: str) -> str:
        with pytest.raises(InvalidRequest) as caught:
            library.parts_of(parse_request({"hires_scale": 2, "hires_upscaler": name}))
        assert caught.value.field == "hires_upscaler"
        return str(caught.value)

    assert "there is: latent, lanczos, nearest, nearest4, rough" in missing("4x-Nothing")
    (upscalers / "old.pth").write_bytes(b"\x80\x02}q\x00.")
    assert "old.pth" in missing("old.pth") and "python -m studio convert" in missing("old")
    (upscalers / "cut.safetensors").write_bytes((upscalers / "rough.safetensors").read_bytes()[:-9])
    assert "is cut off" in missing("cut")
    save_file({"a": torch.zeros(3)}, upscalers / "vector.safetensors")
    assert "holds no image network" in missing("vector")
    save_file({"a": torch.zeros(3)}, upscalers / "lanczos.safetensors")
    assert "another name" in next(part.problem for part in library.parts.parts("upscaler") if part.id == "lanczos")
    assert library.parts_of(parse_request({"hires_upscaler": "4x-Nothing"})) == ()


def test_a_network_of_no_known_kind_fails_in_one_sentence(draw: Draw, upscalers: Path) -> None:
    save_file({"conv.weight": torch.zeros(3, 3, 3, 3)}, upscalers / "strange.safetensors")
    with pytest.raises(
        Exception, match="upscaler strange could not be loaded: its network is of no kind that is known"
    ):
        draw(image=encode(noise(64, 64)), strength=0, hires_scale=2, hires_upscaler="strange")
    grey = {
        name: tensor[:, :1].contiguous() if name == "body.0.weight" else tensor
        for name, tensor in compact(2, size=0.0).items()
    }
    grey["body.4.weight"], grey["body.4.bias"] = torch.zeros(4, 8, 3, 3), torch.zeros(4)
    save_file(grey, upscalers / "grey.safetensors")
    with pytest.raises(Exception, match="reads 1 and makes 1 channels"):
        draw(image=encode(noise(64, 64)), strength=0, hires_scale=2, hires_upscaler="grey")


def test_the_queue_enlarges_into_the_gallery(
    engine: Any, library: Library, settings: Settings, upscalers: Path
) -> None:
    database = Database(settings.data_dir / "studio.db")
    gallery = Gallery(settings.data_dir / "images", ImageIndex(database))
    executor = InlineExecutor(settings, gallery)
    executor._engine = engine
    jobs = JobStore(database)
    queue = Dispatcher(executor, jobs, library, gallery.blobs)
    reference = gallery.blobs.add(encode(noise(300, 200)), "image")
    with pytest.raises(InvalidRequest, match="there is: latent, lanczos"):
        queue.submit(parse_request(enlarging(reference, 2, "none")), "me")
    job = queue.submit(parse_request(enlarging(reference, 2, "nearest")), "me")
    entry = jobs.claim()
    assert entry and entry.job.parts[0].id == "nearest"
    queue._live = Live(job.id)
    queue._run(entry)
    ended = jobs.get(job.id)
    assert ended and ended.state == DONE
    (row,) = gallery.index.page(limit=5)
    assert (row["width"], row["height"]) == (600, 400)
    assert [job["width"] for job in queue.state("me")["jobs"]] == [None]
    assert np.array_equal(pixels(gallery.path(row["id"]).read_bytes()), nearest(np.array(noise(300, 200)), 2))
    database.close()


def test_the_command_line_enlarges_and_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    put(data / "models" / "upscalers")
    monkeypatch.setenv("STUDIO_DATA_DIR", str(data))
    noise(200, 300).save(tmp_path / "given.png")
    request = {"image": "given.png", "strength": 0, "hires_scale": 2.5, "hires_upscaler": "rough"}
    (tmp_path / "r.json").write_text(json.dumps(request))
    assert main(["generate", "--request", str(tmp_path / "r.json"), "--out", str(tmp_path / "out")]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    assert pixels(Path(path).read_bytes()).shape == (750, 500, 3)
    record = read_picture(Path(path)).record
    assert record and [part.id for part in record.parts] == ["rough"]
    assert main(["replay", path, "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == "identical\n"
    save_file(compact(2, size=0.05), data / "models" / "upscalers" / "rough.safetensors")
    assert main(["replay", path, "--out", str(tmp_path / "other")]) == 3
    assert "upscaler rough: " in capsys.readouterr().out
