"""What the pictures show, and that the same request gives the same bytes."""

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.shapes.judge import judge, verdict
from benchmarks.shapes.world import draw_scene, plain_caption
from studio.engine.engine import Watch
from studio.errors import InvalidRequest, ModelError
from studio.events import Preview, Progress
from studio.records import Job
from studio.schedulers import SCHEDULERS
from studio.spec import GenerationRequest
from studio.store.library import Library
from tests.conftest import MODELS, Made

PROMPT = "a red circle on a blue background"
Draw = Callable[..., Made]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def shown(made: Made) -> list[tuple[str, list[str], list[str]]]:
    """Read back what the pictures show: (background, colours, shapes)."""
    readings = [judge(pixels(png).astype(np.uint8)) for png in made.pictures]
    return [(r.background, [t.colour for t in r.things], [t.shape for t in r.things]) for r in readings]


def test_the_picture_shows_what_the_prompt_says(draw: Draw) -> None:
    for prompt, background, colour in (
        (PROMPT, "blue", "red"),
        ("a big yellow star on a purple background", "purple", "yellow"),
        ("a green heart on a white background", "white", "green"),
        ("an orange square on a black background", "black", "orange"),
    ):
        for seen in shown(draw(prompt=prompt, seed=3, num_images_per_prompt=3, batch_size=3)):
            assert seen[0] == background, prompt
            assert seen[1] == [colour], prompt


def test_most_shapes_are_right(draw: Draw) -> None:
    rng, right, number = random.Random("shapes"), 0, 24
    for index in range(number):
        scene = draw_scene(rng, "plain")
        made = draw(prompt=plain_caption(scene), seed=index)
        right += verdict(judge(pixels(made.pictures[0]).astype(np.uint8)), scene)["shape"]
    assert right >= 0.75 * number


@pytest.mark.parametrize("name", [name for name, scheduler in SCHEDULERS.items() if scheduler.noise == "diffusion"])
def test_every_sampling_method_draws_the_right_colours(draw: Draw, name: str) -> None:
    for sigmas in SCHEDULERS[name].sigmas[1:]:
        made = draw(prompt=PROMPT, seed=11, num_inference_steps=20, scheduler=name, sigmas=sigmas)
        background, colours, _ = shown(made)[0]
        assert (background, colours) == ("blue", ["red"]), sigmas


def test_guidance_follows_the_prompt_and_the_negative_prompt_counts(draw: Draw) -> None:
    plain = draw(prompt=PROMPT, seed=1)
    assert draw(prompt=PROMPT, negative_prompt="a green star", seed=1).pictures != plain.pictures
    without = draw(prompt=PROMPT, seed=1, guidance_scale=1)
    assert draw(prompt=PROMPT, negative_prompt="a green star", seed=1, guidance_scale=1).pictures == without.pictures


def test_the_same_request_gives_the_same_bytes(draw: Draw) -> None:
    first = draw(prompt=PROMPT, seed=5, num_images_per_prompt=2)
    draw(prompt="a green star", seed=99, scheduler="Euler a", num_inference_steps=3)
    previews: list[bytes] = []

    def keep(png: bytes) -> str:
        previews.append(png)
        return "preview"

    again = draw(prompt=PROMPT, seed=5, num_images_per_prompt=2, preview=keep)
    assert again.pictures == first.pictures
    assert draw(prompt=PROMPT, seed=6).pictures == first.pictures[1:]  # extra seeds are seed + i
    assert (
        len(previews)
        == len([e for e in again.events if isinstance(e, Progress)])
        == len([e for e in again.events if isinstance(e, Preview)])
    )
    assert pixels(previews[0]).shape == (16, 16, 3)


def test_the_last_preview_looks_like_the_picture(draw: Draw) -> None:
    previews: list[bytes] = []
    made = draw(prompt=PROMPT, seed=5, preview=lambda png: previews.append(png) or "")
    small = np.asarray(
        Image.open(io.BytesIO(made.pictures[0])).convert("RGB").resize((16, 16), Image.Resampling.BOX)
    ).astype(int)
    first, last = (np.abs(pixels(previews[i]) - small).mean() for i in (0, -1))
    assert last < min(70, first)


@pytest.mark.parametrize("name", ["DPM++ 2M", "Euler a", "DPM++ SDE", "DPM++ 2M SDE", "LCM", "DDPM"])
def test_a_batch_is_the_same_seeds_alone_within_two_levels(draw: Draw, name: str) -> None:
    values = {"prompt": PROMPT, "seed": 21, "scheduler": name, "num_inference_steps": 8, "num_images_per_prompt": 3}
    alone, together = draw(**values), draw(**values, batch_size=3)
    for one, other in zip(alone.pictures, together.pictures, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 2


def test_served_pixels_are_the_bare_pipelines(draw: Draw) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MODELS / "shapes", dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    made = draw(prompt=PROMPT, negative_prompt="a star", seed=8, num_inference_steps=10, guidance_scale=2.0)
    image = pipe(
        PROMPT,
        negative_prompt="a star",
        width=128,
        height=128,
        num_inference_steps=10,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(8),
    ).images[0]
    assert (np.asarray(image) == pixels(made.pictures[0])).all()


def test_a_token_after_the_77th_changes_the_picture(draw: Draw) -> None:
    filler = "masterpiece, best quality, " * 20
    red = draw(prompt=f"{filler} a red circle on a blue background", seed=4)
    green = draw(prompt=f"{filler} a green circle on a white background", seed=4)
    assert shown(red)[0][0] == "blue"
    assert shown(green)[0][0] == "white"


def test_clip_skip_changes_the_picture_and_has_a_limit(draw: Draw) -> None:
    assert draw(prompt=PROMPT, seed=2, clip_skip=1).pictures != draw(prompt=PROMPT, seed=2).pictures
    with pytest.raises(InvalidRequest, match="clip_skip=2 must be less than 2"):
        draw(prompt=PROMPT, clip_skip=2)


def test_eta_counts_for_ddim_only(draw: Draw) -> None:
    still = draw(prompt=PROMPT, seed=2, scheduler="DDIM")
    assert draw(prompt=PROMPT, seed=2, scheduler="DDIM", eta=0.5).pictures != still.pictures
    assert (
        draw(prompt=PROMPT, seed=2, scheduler="Euler", eta=0.5).pictures
        == draw(prompt=PROMPT, seed=2, scheduler="Euler").pictures
    )


def test_interrupt_ends_within_one_step_and_keeps_finished_pictures(draw: Draw) -> None:
    def stop(made: Made) -> str:
        steps = [event for event in made.events if isinstance(event, Progress)]
        return "interrupt" if steps and steps[-1].image == 1 and steps[-1].step == 3 else ""

    made = draw(prompt=PROMPT, seed=1, num_images_per_prompt=3, stop=stop)
    assert (made.finished.interrupted, made.finished.images) == (True, 1)
    assert [event for event in made.events if isinstance(event, Progress)][-1].step == 3
    assert draw(prompt=PROMPT, seed=1).pictures == made.pictures


def test_skip_drops_one_picture(draw: Draw) -> None:
    skipped: list[int] = []

    def stop(made: Made) -> str:
        steps = [event for event in made.events if isinstance(event, Progress)]
        if steps and steps[-1].image == 1 and not skipped:
            skipped.append(1)
            return "skip"
        return ""

    made = draw(prompt=PROMPT, seed=1, num_images_per_prompt=3, stop=stop)
    assert [record.seed for record in made.records] == [1, 3]
    assert not made.finished.interrupted


@pytest.mark.parametrize("stage", ["stop", "preview"])
def test_after_a_failure_the_next_job_gives_the_same_bytes(draw: Draw, stage: str) -> None:
    before = draw(prompt=PROMPT, seed=9)

    def fail(made: object) -> str:
        if stage == "preview" or [event for event in made.events if isinstance(event, Progress)]:  # type: ignore[attr-defined]
            raise ModelError("injected")
        return ""

    hooks = {"preview": fail} if stage == "preview" else {"stop": fail}
    with pytest.raises(ModelError, match="injected"):
        draw(prompt=PROMPT, seed=10, scheduler="Euler a", **hooks)
    assert draw(prompt=PROMPT, seed=9).pictures == before.pictures


def test_numbers_that_are_no_colours_are_no_picture(
    draw: Draw, engine: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(prompt=PROMPT, seed=1)
    pipe = next(reversed(engine.pipelines._loaded.values())).base  # type: ignore[attr-defined]
    weight = pipe.vae.decoder.conv_out.weight
    saved = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(ModelError, match="NaN"):
            draw(prompt=PROMPT, seed=1)
    finally:
        with torch.no_grad():
            weight.copy_(saved)


def test_the_time_left_is_that_of_the_steps_after_the_first(library: Library) -> None:
    request, model = library.resolve(GenerationRequest(num_images_per_prompt=3, batch_size=2, num_inference_steps=4), 1)
    job, events, now = Job(id="j", request=request, model=model), [], [0.0]
    watch = Watch(events.append, lambda: "", clock=lambda: now[0])
    for image in (0, 2):
        for step in range(1, 5):
            now[0] += 30 if not events else 2  # the first step warms up
            watch.report(job, image, step, 4)
    assert [event.seconds_left for event in events] == [None, 12, 10, 8, 6, 4, 2, 0]
    assert [event.images for event in events] == [3] * 8
