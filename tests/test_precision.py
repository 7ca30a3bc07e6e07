"""Half precision: what overflows is decoded once more in float32 and told; NaN never becomes a picture."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image

from studio.drawing import Drawing
from studio.engine.devices import open_device
from studio.engine.engine import Engine
from studio.engine.latents import DECODED, ENCODED, decode_latents, decode_unscaled, encode_picture
from studio.engine.vae_check import check_vae
from studio.errors import ModelError
from studio.events import Notice, from_line
from studio.executors.dispatcher import Dispatcher, Live
from studio.executors.inline import InlineExecutor
from studio.settings import Settings
from studio.spec import parse_request
from studio.store.blobs import BlobStore, encode
from studio.store.gallery import Gallery, new_image_id, utc_now
from studio.store.index import Database, ImageIndex
from studio.store.jobs import DONE, FAILED, JobStore
from studio.store.library import Library
from studio.store.metadata import read_picture
from studio.ui.api import Api
from tests.conftest import MODELS, drawer, pixels
from tests.tiny import vae as tiny_vae

SMALL: dict[str, Any] = {"prompt": "a red circle on a white background", "seed": 3, "num_inference_steps": 3}


def overflowing(vae: Any, largest: float = 3e4) -> Any:
    """Let a decoder's first sums be too large for float16, though no weight is; the norms of its blocks bring them back."""
    with torch.no_grad():
        factor = largest / vae.decoder.conv_in.weight.abs().max()
        for weight in vae.decoder.conv_in.parameters():
            weight.mul_(factor)
    return vae


def save_model(folder: Path, *, vae: Any = None, unet: Any = None) -> None:
    """Write the embedded model with another autoencoder or denoiser."""
    shutil.copytree(MODELS / "shapes", folder)
    for name, network in (("vae", vae), ("unet", unet)):
        if network is not None:
            shutil.rmtree(folder / name)
            network.save_pretrained(folder / name)


@pytest.fixture(scope="module")
def half() -> Any:
    """Return an engine that computes in float16, as on an Apple GPU, on the CPU."""
    return Engine(replace(open_device("cpu", 1), dtype=torch.float16), utc_now, new_image_id)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """`large` overflows in float16, `nan` makes NaN in any format, `lost` has NaN latents."""
    folder = tmp_path_factory.mktemp("models")
    own = MODELS / "shapes"
    save_model(folder / "large", vae=overflowing(AutoencoderKL.from_pretrained(own / "vae")))
    save_model(folder / "nan", vae=overflowing(AutoencoderKL.from_pretrained(own / "vae"), float("nan")))
    unet = UNet2DConditionModel.from_pretrained(own / "unet")
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("nan"))
    save_model(folder / "lost", unet=unet)
    return Library((folder, MODELS))


def test_a_decoder_that_overflows_decodes_again_in_float32() -> None:
    torch.manual_seed(0)
    latents = torch.randn(2, 4, 8, 8)
    whole = overflowing(tiny_vae(4, force_upcast=False))
    expected = whole.decode(latents.half().float()).sample
    told: list[str] = []
    made = decode_unscaled(whole.half(), latents.half(), told.append)
    assert not torch.isfinite(whole.decode(latents.half()).sample).all(), "half precision does overflow"
    assert (told, whole.dtype) == ([DECODED], torch.float16)
    assert (made - expected).abs().max() < 0.05
    quiet = tiny_vae(4, force_upcast=False).half()
    assert torch.equal(decode_unscaled(quiet, latents.half(), told.append), quiet.decode(latents.half()).sample)
    assert told == [DECODED], "nothing is told where nothing happened"
    bare = overflowing(tiny_vae(4, force_upcast=True)).half()
    assert torch.isfinite(decode_unscaled(bare, latents.half(), told.append)).all()
    assert (told, bare.dtype) == ([DECODED], torch.float16), "it says itself that it needs float32"


def test_nan_never_becomes_a_picture() -> None:
    vae = tiny_vae(4)
    pipe: Any = SimpleNamespace(vae=vae)
    with pytest.raises(ModelError, match=r"latents are no numbers .NaN. in float32; try another sampling method"):
        decode_latents(pipe, torch.full((1, 4, 8, 8), float("nan")), print)
    with pytest.raises(ModelError, match="latents are no numbers"):
        decode_latents(pipe, torch.full((1, 4, 8, 8), float("inf")), print)
    pipe.vae = overflowing(vae, float("nan"))
    with pytest.raises(ModelError, match=r"no colours .NaN. even in float32; choose another SD VAE"):
        decode_latents(pipe, torch.zeros(1, 4, 8, 8), print)
    with torch.no_grad():
        vae.encoder.conv_in.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"no latents .NaN. of the picture even in float32; choose another SD VAE"):
        encode_picture(pipe, np.zeros((64, 64, 3), np.uint8), print)


def test_a_job_in_half_precision_is_told_and_recorded(
    half: Any, engine: Any, models: Library, blobs: BlobStore
) -> None:
    draw, fine = drawer(half, models, blobs), drawer(engine, models, blobs)
    made = draw(**SMALL, model="large", num_images_per_prompt=2)
    notices = [event for event in made.events if isinstance(event, Notice)]
    assert [event.message for event in notices] == [DECODED], "once a job"
    assert from_line(notices[0].model_dump_json()) == notices[0]
    assert [record.notes for record in made.records] == [(DECODED,)] * 2
    assert made.records[0].machine.dtype == "float16"
    expected = pixels(fine(**SMALL, model="large").pictures[0]).astype(int)
    assert np.abs(pixels(made.pictures[0]).astype(int) - expected).mean() < 4
    start = encode(Image.new("RGB", (128, 128), (200, 30, 40)))
    assert draw(**SMALL, image=start, strength=0.5).records[0].notes == (ENCODED,)
    plain = draw(**SMALL, model="shapes")
    assert (plain.records[0].notes, [event for event in plain.events if isinstance(event, Notice)]) == ((), [])
    for name, sentence in (("nan", "even in float32"), ("lost", "latents are no numbers")):
        with pytest.raises(ModelError, match=sentence):
            draw(**SMALL, model=name)
        with pytest.raises(ModelError, match=sentence):
            fine(**SMALL, model=name)
    assert draw(**SMALL, model="shapes").pictures == plain.pictures


def test_the_check_decodes_again_too(half: Any) -> None:
    vae = overflowing(AutoencoderKL.from_pretrained(MODELS / "shapes" / "vae")).half()
    values, _ = check_vae(vae, np.full((64, 64, 3), 200, np.uint8))
    assert values["notes"] == [ENCODED, DECODED], "float16 loses a plain colour: its norms divide by nothing"
    same = overflowing(AutoencoderKL.from_pretrained(MODELS / "shapes" / "vae"))
    whole, _ = check_vae(same, np.full((64, 64, 3), 200, np.uint8))
    assert abs(values["psnr"] - whole["psnr"]) < 0.5
    assert whole["notes"] == []


def test_page_api_and_command_line_hear_of_it(
    half: Any, models: Library, settings: Settings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(settings.data_dir / "studio.db")
    gallery = Gallery(settings.data_dir / "images", ImageIndex(database))
    executor = InlineExecutor(settings, gallery)
    executor._engine = half
    jobs = JobStore(database)
    queue = Dispatcher(executor, jobs, models, gallery.blobs)

    def run(model: str) -> str:
        job = queue.submit(parse_request(SMALL | {"model": model}), "me")
        entry = jobs.claim()
        assert entry
        queue._live = Live(job.id)
        queue._run(entry)
        return job.id

    with caplog.at_level(logging.WARNING):
        done = run("large")
    assert f"job {done}: {DECODED}" in caplog.text
    assert jobs.get(done).state == DONE  # type: ignore[union-attr]
    assert [job["notices"] for job in queue.state("me")["jobs"]] == [[DECODED]]
    services: Any = SimpleNamespace(dispatcher=queue, library=models, limit=lambda headers: None)
    assert Api(services).job(done)["notices"] == [DECODED]
    (row,) = gallery.index.page(limit=5)
    record = read_picture(gallery.path(row["id"])).record
    assert record and record.notes == (DECODED,)
    failed = jobs.get(run("lost"))
    assert failed and failed.state == FAILED and "latents are no numbers" in failed.error
    assert len(gallery.index.page(limit=5)) == 1, "no black picture"
    capsys.readouterr()
    job = models.job(parse_request(SMALL | {"model": "large"}), 1)
    Drawing(half, gallery.blobs, settings.data_dir / "out").draw(job)
    said = capsys.readouterr()
    assert said.err == f"{DECODED}\n"
    assert json.loads(said.out)["seed"] == 3
    database.close()
