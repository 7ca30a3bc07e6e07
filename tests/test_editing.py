"""img2img, inpaint and outpaint, judged by what the picture shows and by the bytes that must not change."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks.shapes.replace import replaced, shares
from studio.engine.devices import Device
from studio.engine.engine import Watch
from studio.engine.pipelines import PipelineManager
from studio.errors import InvalidRequest
from studio.records import Job
from studio.spec import INPAINT, TEXT2IMAGE, GenerationRequest, parse_request
from studio.store.blobs import BlobStore
from studio.store.library import Library
from tests.conftest import MODELS, Made, pixels
from trainers.scorers.reading import judge

Draw = Callable[..., Made]


def png(picture: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(background: tuple[int, int, int], paint: tuple[int, int, int], side: int = 128) -> Image.Image:
    """A circle in the middle, drawn by code: the test's own picture, of any size."""
    image = Image.new("RGB", (side, side), background)
    ImageDraw.Draw(image).ellipse((0.25 * side, 0.25 * side, 0.75 * side, 0.75 * side), fill=paint)
    return image


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> bytes:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return png(mask)


BLUE, RED, GREEN = (40, 70, 215), (220, 30, 35), (35, 155, 60)


def test_what_is_given_decides_the_task() -> None:
    given = {"image": "a.png"}
    assert parse_request({}).task == TEXT2IMAGE
    assert parse_request(given).task == "image2image"
    assert parse_request(given | {"mask_image": "m.png"}).task == INPAINT
    assert parse_request(given | {"extend_left": 8}).task == INPAINT
    for field, value in (("mask_image", "m.png"), ("extend_top", 8)):
        with pytest.raises(InvalidRequest, match="needs an image") as problem:
            parse_request({field: value})
        assert problem.value.field == field
    for steps in (3, 10, 16, 30, 70):
        with pytest.raises(InvalidRequest, match=f"leaves none of {steps} steps") as problem:
            parse_request(given | {"strength": 0.01, "num_inference_steps": steps})
        advised = float(str(problem.value).split("at least ")[1].split(",")[0])
        parse_request(given | {"strength": advised, "num_inference_steps": steps})


def test_strength_0_returns_the_image_itself(draw: Draw) -> None:
    source = drawn(BLUE, RED)
    made = draw(prompt="a green star on a white background", image=png(source), strength=0)
    assert np.array_equal(pixels(made.pictures[0]), np.asarray(source))


def test_strength_decides_between_image_and_prompt(draw: Draw) -> None:
    source = png(drawn(BLUE, RED))
    obeyed = 0
    for seed in range(8):
        made = draw(prompt="a green square on a white background", image=source, strength=1, seed=seed)
        reading = judge(pixels(made.pictures[0]))
        obeyed += reading.background == "white" and bool(reading.things) and reading.things[0].colour == "green"
    assert obeyed >= 7
    kept = draw(prompt="a red circle on a blue background", image=source, strength=0.4, seed=1)
    reading = judge(pixels(kept.pictures[0]))
    assert (reading.background, reading.things[0].colour, reading.things[0].shape) == ("blue", "red", "circle")
    difference = np.abs(pixels(kept.pictures[0]).astype(int) - np.asarray(drawn(BLUE, RED))).mean()
    assert 0 < difference < 12


def test_size_comes_from_the_image_unless_it_is_given(draw: Draw) -> None:
    wide = png(drawn(BLUE, RED, 128).crop((0, 16, 128, 112)))
    made = draw(prompt="a red circle", image=wide, strength=0.5, num_inference_steps=4)
    assert pixels(made.pictures[0]).shape == (96, 128, 3)
    made = draw(prompt="a red circle", image=wide, strength=0.5, num_inference_steps=4, width=128, height=128)
    assert pixels(made.pictures[0]).shape == (128, 128, 3)


@pytest.mark.parametrize("content", ["original", "fill", "latent noise", "latent nothing"])
def test_inpaint_repaints_the_mask_and_nothing_else(draw: Draw, content: str) -> None:
    source = drawn(BLUE, RED)
    mask = box_mask((128, 128), (24, 24, 104, 104))
    good = 0
    for seed in range(4):
        made = draw(
            prompt="a green square on a blue background",
            image=png(source),
            mask_image=mask,
            strength=1.0 if content == "original" else 0.95,
            masked_content=content,
            mask_blur=2,
            seed=seed,
        )
        after, before = pixels(made.pictures[0]), np.asarray(source)
        outside = np.ones((128, 128), bool)
        outside[24 - 6 : 104 + 6, 24 - 6 : 104 + 6] = False
        assert np.array_equal(after[outside], before[outside])
        things = judge(after).things
        good += bool(things) and (things[0].colour, things[0].shape) == ("green", "square")
    assert good >= 3


def test_inpaint_inverted_keeps_the_mask(draw: Draw) -> None:
    source = drawn(BLUE, RED)
    box = (40, 40, 88, 88)
    mask = box_mask((128, 128), box)
    values = {"prompt": "a white background", "image": png(source), "mask_image": mask, "strength": 1.0}
    made = draw(**values, mask_invert=True, mask_blur=0)
    assert np.array_equal(pixels(made.pictures[0])[40:88, 40:88], np.asarray(source)[40:88, 40:88])
    assert judge(pixels(made.pictures[0])).background == "white"


def test_only_masked_keeps_the_picture_at_its_own_size(draw: Draw) -> None:
    source = Image.new("RGB", (301, 203), BLUE)
    ImageDraw.Draw(source).ellipse((180, 60, 260, 140), fill=RED)
    mask = box_mask(source.size, (170, 50, 270, 150))
    made = draw(
        prompt="a green square on a blue background",
        image=png(source),
        mask_image=mask,
        only_masked=True,
        padding=8,
        mask_blur=2,
        strength=1.0,
        width=128,
        height=128,
        seed=3,
    )
    after, before = pixels(made.pictures[0]), np.asarray(source)
    assert after.shape == before.shape
    outside = np.ones(before.shape[:2], bool)
    outside[50 - 6 : 150 + 6, 170 - 6 : 270 + 6] = False
    assert np.array_equal(after[outside], before[outside])
    centre = after[90:110, 210:230].reshape(-1, 3).mean(axis=0)
    assert np.linalg.norm(centre - GREEN) < np.linalg.norm(centre - RED)


def test_outpaint_grows_the_canvas_and_keeps_the_picture(draw: Draw) -> None:
    source = drawn(BLUE, RED).crop((16, 16, 112, 112))  # 96 x 96
    made = draw(prompt="a red circle on a blue background", image=png(source), extend_right=32, strength=1.0, seed=2)
    after = pixels(made.pictures[0])
    assert after.shape == (96, 128, 3)
    assert np.array_equal(after[:, :64], np.asarray(source)[:, :64])
    added = after[:, 112:].reshape(-1, 3)
    assert np.linalg.norm(np.median(added, axis=0) - BLUE) < 60, "the new part goes on with the background"


def test_what_is_added_is_drawn_even_when_the_mask_is_inverted(draw: Draw) -> None:
    source = drawn(BLUE, RED).crop((16, 16, 112, 112))
    values = {"prompt": "a blue background", "image": png(source), "extend_right": 32, "strength": 1.0, "mask_blur": 0}
    made = draw(**values, mask_image=box_mask((96, 96), (0, 0, 96, 96)), mask_invert=True, num_inference_steps=4)
    after = pixels(made.pictures[0])
    assert np.array_equal(after[:, :80], np.asarray(source)[:, :80])
    assert not np.array_equal(after[:, 100:], np.repeat(np.asarray(source)[:, -1:], 28, axis=1))


def test_the_page_outpaints_at_the_sliders_size(draw: Draw) -> None:
    source = drawn(BLUE, RED)
    values = {"prompt": "a red circle on a blue background", "image": png(source), "strength": 1.0, "mask_blur": 2}
    made = draw(**values, width=128, height=128, extend_right=64, extend_top=8, num_inference_steps=4)
    after = pixels(made.pictures[0])
    assert after.shape == (136, 192, 3)
    assert np.array_equal(after[24:, :100], np.asarray(source)[16:, :100])
    with pytest.raises(InvalidRequest, match="at most 2048 a side"):
        draw(**values, width=2048, height=128, extend_right=64)


def test_masked_content_decides_what_a_weak_change_starts_from(draw: Draw) -> None:
    values = {"prompt": "a red circle on a blue background", "image": png(drawn(BLUE, RED)), "strength": 0.5, "seed": 1}
    mask = box_mask((128, 128), (24, 24, 104, 104))
    made = {
        content: pixels(draw(**values, mask_image=mask, masked_content=content).pictures[0]).astype(int)
        for content in ("original", "fill", "latent noise", "latent nothing")
    }
    for one in made:
        for other in made:
            assert one == other or np.abs(made[one] - made[other])[40:88, 40:88].mean() > 1, (one, other)
    before = np.asarray(drawn(BLUE, RED)).astype(int)
    assert min(made, key=lambda content: np.abs(made[content] - before).mean()) == "original"


@pytest.fixture(scope="module")
def inpaint_model(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A tiny model whose denoiser sees the mask (nine channels), with random weights and the embedded model's other parts."""
    import json
    import shutil

    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(MODELS / "shapes", folder / "nine")
    (folder / "nine" / "studio.yaml").unlink()
    shutil.rmtree(folder / "nine" / "unet")
    config = UNet2DConditionModel.load_config(str(MODELS / "shapes" / "unet"))
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(config, in_channels=9, block_out_channels=(16, 16, 16))
    unet.save_pretrained(folder / "nine" / "unet")
    index = json.loads((folder / "nine" / "model_index.json").read_text())
    (folder / "nine" / "model_index.json").write_text(
        json.dumps(index | {"_class_name": "StableDiffusionInpaintPipeline"})
    )
    return Library((folder,))


def test_a_nine_channel_model_inpaints_and_does_nothing_else(
    engine: Any, inpaint_model: Library, blobs: BlobStore
) -> None:
    source, made = drawn(BLUE, RED), []
    request = GenerationRequest(
        model="nine",
        image=blobs.add(png(source), "image"),
        mask_image=blobs.add(box_mask((128, 128), (32, 32, 96, 96)), "mask_image"),
        mask_blur=0,
        num_inference_steps=2,
    )
    resolved, model = inpaint_model.resolve(request, 1, (128, 128))
    assert model.kind == "inpaint"
    job = Job(id="x", request=resolved, model=model)
    engine.generate(job, blobs.open, lambda data, record: made.append(data) or "", Watch(lambda e: None, lambda: ""))
    after = pixels(made[0])
    assert np.array_equal(after[:32], np.asarray(source)[:32])
    assert not np.array_equal(after[32:96, 32:96], np.asarray(source)[32:96, 32:96])
    for wanted in (GenerationRequest(model="nine"), GenerationRequest(model="nine", image="blob:x")):
        with pytest.raises(InvalidRequest, match="can only inpaint"):
            inpaint_model.resolve(wanted, 1)


def test_tasks_share_weights_of_one_number_format(library: Library) -> None:
    reference = library.reference(library.get("shapes"))
    manager = PipelineManager(Device(torch.device("cpu"), torch.bfloat16, "cpu", "CPU", 1))
    request, _ = library.resolve(GenerationRequest(), 1)
    made = []
    for task in (TEXT2IMAGE, "image2image", INPAINT):
        with manager.configured(request, reference, [1], task=task) as pipe:
            made.append((pipe.unet, pipe.vae, pipe.text_encoder))
    assert all(one is other for parts in zip(*made, strict=True) for one, other in itertools.pairwise(parts))
    assert {part.dtype for part in made[0]} == {torch.bfloat16}


def test_a_batch_and_its_members_agree(draw: Draw) -> None:
    values: dict[str, Any] = {
        "prompt": "a green square on a white background",
        "image": png(drawn(BLUE, RED)),
        "mask_image": box_mask((128, 128), (16, 16, 112, 112)),
        "masked_content": "latent noise",
        "strength": 0.9,
        "num_inference_steps": 6,
    }
    together = draw(**values, seed=5, num_images_per_prompt=2, batch_size=2)
    for index, seed in enumerate((5, 6)):
        alone = draw(**values, seed=seed)
        worst = np.abs(pixels(alone.pictures[0]).astype(int) - pixels(together.pictures[index])).max()
        assert worst <= 2
    again = draw(**values, seed=5, num_images_per_prompt=2, batch_size=2)
    assert np.array_equal(pixels(again.pictures[1]), pixels(together.pictures[1]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_image": box_mask((64, 64), (0, 0, 8, 8))}, "same size"),
        ({"mask_image": png(Image.new("L", (128, 128), 0))}, "empty"),
    ],
)
def test_masks_that_cannot_work_are_told(draw: Draw, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as problem:
        draw(prompt="x", image=png(drawn(BLUE, RED)), **values)
    assert problem.value.field == "mask_image"


def test_a_shape_is_replaced_and_its_surroundings_stay(tmp_path: Path) -> None:
    found = shares(replaced(6, tmp_path))
    assert found["surroundings"] == 1
    assert found["all"] >= 0.8
