"""A1111's prompt syntax: what it says, and what the picture shows of it."""

import contextlib
import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from studio.errors import InvalidRequest
from studio.prompt_syntax import moments, parse_prompt, plain_text
from tests.conftest import Made, pixels
from trainers.scorers.reading import judge

Draw = Callable[..., Made]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a (red:1.3) cat", [[("a ", 1), ("red", 1.3), (" cat", 1)]]),
        ("((x)) [y]", [[("x", 1.21), (" ", 1), ("y", 1 / 1.1)]]),
        (r"a \(b\) \[c\] \\", [[("a (b) [c] \\", 1)]]),
        ("(a (b) c:0.5)", [[("a ", 0.5), ("b", 0.55), (" c", 0.5)]]),
        ("(a:b:1.2)", [[("a:b", 1.2)]]),
        ("(a : 1.2 )", [[("a ", 1.2)]]),
        ("([x])", [[("x", 1)]]),
        ("a BREAK b, (c BREAK d)", [[("a", 1)], [("b, ", 1), ("c", 1.1)], [("d", 1.1)]]),
        ("un)closed ( x", [[("un)closed ", 1), (" x", 1.1)]]),
        ("BREAKFAST", [[("BREAKFAST", 1)]]),
        ("", [[]]),
    ],
)
def test_weights_and_breaks(text: str, told: list[list[tuple[str, float]]]) -> None:
    found = parse_prompt(text, "prompt")
    assert [[(piece.text, pytest.approx(piece.weight, abs=1e-5)) for piece in section] for section in found] == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a [red:blue:0.5] cat", [(0, "a red cat"), (0.5, "a blue cat")]),
        ("[x:3]", [(0, ""), (0.75, "x")]),
        ("[x::0.25] y", [(0, "x y"), (0.25, " y")]),
        ("[a|b|c]", [(0, "a"), (0.25, "b"), (0.5, "c"), (0.75, "a")]),
        ("[a [b:c:.5]:d:3]", [(0, "a b"), (0.5, "a c"), (0.75, "d")]),
        ("[(a:1.2):b:0.5]", [(0, "(a:1.2)"), (0.5, "b")]),
        ("[[a]|b]", [(0, "[a]"), (0.25, "b"), (0.5, "[a]"), (0.75, "b")]),
        (r"[a\:b:0.5]", [(0, ""), (0.5, r"a\:b")]),
        ("[a:b]", [(0, "[a:b]")]),
        ("[a:b:c]", [(0, "[a:b:c]")]),
        ("[a|b", [(0, "[a|b")]),
        ("(a|b)", [(0, "(a|b)")]),
        ("[a:b:0]", [(0, "b")]),
    ],
)
def test_words_that_change_on_the_way(text: str, told: list[tuple[float, str]]) -> None:
    assert moments(text, 4, "prompt") == told


@settings(max_examples=2000, deadline=None)
@given(st.text(alphabet="ab ()[]:|\\.0123456789-BREAK\n", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        for _, said in moments(text, 7, "prompt"):
            sections = parse_prompt(said, "prompt")
            assert all(abs(piece.weight) < 1e30 for section in sections for piece in section)
            assert plain_text(sections) is not None


def test_what_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"weight 11; use -10 to 10"):
        parse_prompt("(a:11)", "prompt")
    with pytest.raises(InvalidRequest, match="brackets inside each other"):
        moments("[" * 10_000, 4, "negative_prompt")


def shown(made: Made) -> list[bytes]:
    """Return the pixels alone: the prompt stands in the file."""
    return [pixels(png).tobytes() for png in made.pictures]


def colours(made: Made) -> list[str]:
    found = [judge(pixels(png)) for png in made.pictures]
    return [thing.colour for reading in found for thing in reading.things]


def test_a_weight_of_one_and_a_schedule_of_one_leave_the_picture_as_it_is(draw: Draw) -> None:
    plain = draw(prompt="a blue circle on a white background", seed=3, num_inference_steps=6)
    for text in ("a (blue:1.0) circle", "a ([blue]) circle", "a [red:blue:0] circle", "a [blue|blue] circle"):
        again = draw(prompt=f"{text} on a white background", seed=3, num_inference_steps=6)
        assert shown(again) == shown(plain), text


def test_a_word_takes_over_when_it_is_said_to(draw: Draw) -> None:
    values = {"seed": 5, "num_images_per_prompt": 3}
    early = draw(prompt="a [red:blue:0.1] circle on a white background", **values)
    late = draw(prompt="a [red:blue:0.9] circle on a white background", **values)
    turns = draw(prompt="a [red|blue] circle on a white background", **values)
    assert colours(early) == ["blue"] * 3
    assert colours(late) == ["red"] * 3
    assert shown(turns) not in (shown(early), shown(late))


def test_a_weaker_word_counts_less(draw: Draw) -> None:
    """Two colours at odds: the one with the greater weight is drawn more often."""
    drawn = {}
    for weight in (0.3, 1.0, 1.8):
        made = draw(prompt=f"a red (blue:{weight}) circle on a white background", seed=1, num_images_per_prompt=6)
        drawn[weight] = colours(made).count("red")
    assert drawn[0.3] >= drawn[1.0] >= drawn[1.8]
    assert drawn[0.3] > drawn[1.8]


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_other_families_read_it_too(draw_tiny: Draw, name: str) -> None:
    plain = draw_tiny(model=name, prompt="red star", seed=1)
    assert shown(draw_tiny(model=name, prompt="red (star:1.0)", seed=1)) == shown(plain)
    assert shown(draw_tiny(model=name, prompt="[blue:red:0] star", seed=1)) == shown(plain)
    assert shown(draw_tiny(model=name, prompt="red (star:1.5)", seed=1)) != shown(plain)
    assert shown(draw_tiny(model=name, prompt="red BREAK star", seed=1)) != shown(plain)
    assert shown(draw_tiny(model=name, prompt="[blue:red:0.5] star", seed=1)) != shown(plain)


def test_flux_takes_brackets_as_text_and_inpainting_takes_no_schedule(draw_tiny: Draw) -> None:
    plain = draw_tiny(model="flux", prompt="red star", seed=1)
    assert shown(draw_tiny(model="flux", prompt="red (star:1.0)", seed=1)) != shown(plain)
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(picture, "PNG")
    with pytest.raises(InvalidRequest, match=r"prompt changes on the way .* write one of the two"):
        draw_tiny(
            model="sdxl", prompt="[a|b]", seed=1, image=picture.getvalue(), mask_image=picture.getvalue(), strength=0.5
        )
