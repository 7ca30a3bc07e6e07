"""The judge reads the renderer's pictures back, and can say no; captions and scenes agree. No model is needed."""

import random
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks.shapes.judge import Reading, judge, verdict
from benchmarks.shapes.render import render
from benchmarks.shapes.world import (
    COLOURS,
    COUNTS,
    HELD_OUT,
    POSITIONS,
    SHAPES,
    SIZES,
    STYLES,
    Scene,
    Thing,
    caption,
    draw_scene,
    plain_caption,
    plural,
    training_scene,
)

KINDS = ("single", "plain", "count", "pair")
FLAT_FACTS = {"background", "colour", "shape", "count", "size", "position", "order"}


def drawn(name: str, number: int, style: str = "flat", side: int = 128) -> list[tuple[Scene, np.ndarray]]:
    """Draw scenes of all kinds, seen and held-out pairs alike, with their pictures."""
    rng = random.Random(name)
    scenes = [draw_scene(rng, KINDS[i % 4], style=style, held_out=i % 5 == 0) for i in range(number)]
    return [(scene, render(scene, rng, side)) for scene in scenes]


def shares(pictures: list[tuple[Scene, np.ndarray]]) -> dict[str, float]:
    asked, right = Counter(), Counter()
    for scene, picture in pictures:
        facts = verdict(judge(picture), scene)
        asked.update(facts.keys())
        right.update(fact for fact, value in facts.items() if value)
    return {fact: right[fact] / asked[fact] for fact in asked}


@pytest.mark.parametrize("side", [128, 64])
def test_flat_pictures_are_read_back(side: int) -> None:
    found = shares(drawn(f"flat-{side}", 120, side=side))
    assert found.keys() == FLAT_FACTS
    assert min(found.values()) >= 0.995, found


@pytest.mark.parametrize("style", STYLES[1:])
@pytest.mark.parametrize("side", [128, 64])
def test_styled_pictures_are_read_back(style: str, side: int) -> None:
    found = shares(drawn(f"{style}-{side}", 60, style, side))
    assert found.keys() == FLAT_FACTS | {"style"}
    assert min(found["colour"], found["shape"]) >= 0.97, found
    assert found["style"] >= 0.95, found


def test_blur_and_noise_do_not_mislead() -> None:
    noise = np.random.default_rng(0)
    blurred = [
        (
            scene,
            np.clip(cv2.GaussianBlur(picture, (0, 0), 1.0) + noise.normal(0, 8, picture.shape), 0, 255).astype(
                np.uint8
            ),
        )
        for scene, picture in drawn("blurred", 60)
    ]
    assert min(shares(blurred).values()) >= 0.97


def test_renderer_is_deterministic() -> None:
    for index in range(20):
        scene = training_scene(random.Random(index))
        again = training_scene(random.Random(index))
        assert scene == again
        assert render(scene, random.Random(index)).tobytes() == render(again, random.Random(index)).tobytes()
    assert render(scene, random.Random(1)).tobytes() != render(scene, random.Random(2)).tobytes()


def test_pil_and_array_read_alike_and_other_arrays_raise() -> None:
    _, picture = drawn("pil", 1)[0]
    assert judge(Image.fromarray(picture)) == judge(picture)
    with pytest.raises(ValueError, match="uint8 RGB"):
        judge(picture / 255)
    with pytest.raises(ValueError, match="uint8 RGB"):
        judge(picture[:, :, 0])


LEFT = Thing("red", "circle", 0.26, 0.5, 0.195)
RIGHT = Thing("blue", "square", 0.74, 0.5, 0.195)
PAIR = Scene((LEFT, RIGHT), "white", relation="to the left of")
STACKED = Scene((replace(LEFT, x=0.5, y=0.26), replace(RIGHT, x=0.5, y=0.74)), "white", relation="above")
SINGLE = Scene((Thing("green", "star", 0.22, 0.5, 0.16),), "yellow", size="small", position="on the left")
COUNT = Scene(tuple(Thing("pink", "heart", x, 0.5, 0.165) for x in (0.27, 0.73)), "black", count="two")


def with_thing(scene: Scene, index: int, **changes: float | str) -> Scene:
    return replace(
        scene, things=tuple(replace(thing, **changes) if i == index else thing for i, thing in enumerate(scene.things))
    )


@pytest.mark.parametrize(
    ("asked", "shown", "wrong"),
    [
        (SINGLE, replace(SINGLE, background="orange"), {"background"}),
        (SINGLE, with_thing(SINGLE, 0, colour="cyan"), {"colour"}),
        (SINGLE, with_thing(SINGLE, 0, shape="diamond"), {"shape"}),
        (SINGLE, with_thing(SINGLE, 0, radius=0.25, x=0.3), {"size"}),
        (SINGLE, with_thing(SINGLE, 0, x=0.78), {"position"}),
        (SINGLE, with_thing(SINGLE, 0, x=0.5), {"position"}),
        (SINGLE, replace(SINGLE, things=(*SINGLE.things, Thing("red", "diamond", 0.7, 0.5, 0.11))), {"count"}),
        (SINGLE, replace(SINGLE, things=()), {"colour", "shape", "count", "size", "position"}),
        (PAIR, replace(PAIR, things=(LEFT,)), {"colour", "shape", "count", "order"}),
        (PAIR, replace(PAIR, things=(replace(LEFT, colour="blue"), replace(RIGHT, colour="red"))), {"colour", "order"}),
        (PAIR, replace(PAIR, things=(replace(LEFT, shape="square"), replace(RIGHT, shape="circle"))), {"shape"}),
        (PAIR, replace(PAIR, things=(replace(LEFT, x=0.74), replace(RIGHT, x=0.26))), {"colour", "shape", "order"}),
        (PAIR, STACKED, {"order"}),
        (STACKED, PAIR, {"order"}),
        (COUNT, replace(COUNT, things=COUNT.things[:1]), {"colour", "shape", "count"}),
        (COUNT, replace(COUNT, things=(*COUNT.things, Thing("pink", "heart", 0.5, 0.2, 0.12))), {"count"}),
        (COUNT, with_thing(COUNT, 1, colour="purple"), {"colour"}),
        *((replace(SINGLE, style=style), SINGLE, {"style"}) for style in STYLES[1:]),
        *(
            (replace(COUNT, style=style), replace(COUNT, style="striped"), {"style"})
            for style in ("outline", "pixel art")
        ),
    ],
)
def test_judge_says_wrong(asked: Scene, shown: Scene, wrong: set[str]) -> None:
    rng = random.Random(0)
    own = render(asked, rng)
    assert all(verdict(judge(own), asked).values())
    facts = verdict(judge(render(shown, rng)), asked)
    assert {fact for fact, right in facts.items() if not right} == wrong


def test_an_empty_picture_has_nothing() -> None:
    assert judge(np.full((128, 128, 3), 246, np.uint8)) == Reading("white", ())


def test_training_never_draws_held_out_pairs() -> None:
    rng = random.Random("held out")
    seen = {(thing.colour, thing.shape) for _ in range(2000) for thing in training_scene(rng).things}
    assert not seen & HELD_OUT
    assert len(seen) == len(COLOURS) * len(SHAPES) - len(HELD_OUT)  # and it draws all others
    held = {
        (thing.colour, thing.shape)
        for kind in KINDS
        for _ in range(100)
        for thing in draw_scene(rng, kind, held_out=True).things
    }
    assert held == HELD_OUT


def says(scene: Scene) -> list[str]:
    """Return the phrases that every caption of a scene must hold."""
    first = scene.things[0]
    if scene.kind == "count":
        return [f"{scene.count} {first.colour} {plural(first.shape)}"]
    if scene.kind == "pair":
        second = scene.things[1]
        return [f"{first.colour} {first.shape} {scene.relation} a", f" {second.colour} {second.shape}"]
    return [" ".join(filter(None, (scene.size, first.colour, first.shape, scene.position)))]


@pytest.mark.parametrize("long", [0.0, 1.0])
def test_captions_say_the_scene_and_nothing_else(long: float) -> None:
    rng = random.Random("captions")
    for _ in range(400):
        scene = training_scene(rng)
        text = caption(scene, rng, long=long)
        assert all(phrase in text for phrase in says(scene)), (text, scene)
        words = text.replace(",", " ").split()
        colours = Counter(word for word in words if word in COLOURS)
        shown = Counter(thing.colour for thing in (scene.things[:1] if scene.count else scene.things))
        assert colours in (shown, shown + Counter([scene.background])), (text, scene)
        assert (scene.style in text) == (scene.style != "flat") or "flat style" in text
        assert not any(size in words for size in SIZES if size and size != scene.size)
        assert not any(position in text for position in POSITIONS if position and position != scene.position)
        assert long == 0.0 or len(words) >= 30


def test_plain_captions_read_well() -> None:
    assert plain_caption(PAIR) == "a red circle to the left of a blue square on a white background"
    assert (
        plain_caption(replace(SINGLE, style="pixel art"))
        == "a small green star on the left on a yellow background, pixel art style"
    )
    assert plain_caption(replace(COUNT, background="orange")) == "two pink hearts on an orange background"


def test_scenes_are_as_their_captions_say() -> None:
    rng = random.Random("scenes")
    for _ in range(1000):
        scene = training_scene(rng)
        first, last = scene.things[0], scene.things[-1]
        assert scene.background not in {thing.colour for thing in scene.things}
        assert all(thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) for thing in scene.things)
        assert len(scene.things) == (COUNTS.index(scene.count) + 2 if scene.count else 2 if scene.relation else 1)
        if scene.kind == "single":
            assert min(SIZES, key=lambda size: abs(SIZES[size] - first.radius)) == scene.size
        sides = {
            "on the left": 0.5 - first.x,
            "on the right": first.x - 0.5,
            "at the top": 0.5 - first.y,
            "at the bottom": first.y - 0.5,
        }
        assert not scene.position or max(sides, key=lambda side: sides[side]) == scene.position
        assert scene.relation not in ("and", "to the left of") or first.x + first.radius < last.x - last.radius
        assert scene.relation != "above" or first.y + first.radius < last.y - last.radius
