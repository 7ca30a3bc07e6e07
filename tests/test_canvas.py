"""Geometry of img2img, inpaint and outpaint: what is outside the mask stays to the byte, what is inside lands where it belongs."""

from typing import Any, get_args

import cv2
import numpy as np
import pytest
from PIL import Image

from studio.engine import canvas
from studio.engine.canvas import Inpainting, extend, fill_masked, fit, flatten, mask_of, plan_inpainting
from studio.spec import ResizeMode

MODES = get_args(ResizeMode)
MAGENTA = (255, 0, 255)
DEFAULTS: dict[str, Any] = {
    "width": 64,
    "height": 64,
    "resize_mode": "crop",
    "mask_blur": 0,
    "only_masked": False,
    "padding": 32,
}


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def flat(rows: int, columns: int, colour: tuple[int, int, int] = (40, 90, 200)) -> np.ndarray:
    return np.full((rows, columns, 3), colour, np.uint8)


def rectangle(rows: int, columns: int, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    mask = np.zeros((rows, columns), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def plan(picture: np.ndarray, mask: np.ndarray, **values: Any) -> Inpainting:
    return plan_inpainting(picture, mask, **(DEFAULTS | values))


def centre(where: np.ndarray) -> tuple[float, float]:
    """Return the middle (x, y) of what is True, in pixels."""
    rows, columns = np.nonzero(where)
    return columns.mean() + 0.5, rows.mean() + 0.5


def reddish(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] > 128) & (picture[..., 2] < 128)


# flatten and mask_of


def test_alpha_is_laid_over_white_and_masks_over_black() -> None:
    image = Image.new("RGBA", (3, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.putpixel((2, 0), (255, 255, 255, 128))
    assert flatten(image).tolist() == [[[255, 255, 255], [10, 20, 30], [255, 255, 255]]]
    assert mask_of(image)[0, 0] == 0
    assert mask_of(image)[0, 2] == 128
    assert mask_of(Image.new("RGB", (2, 2), "white")).tolist() == [[255, 255], [255, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.info["transparency"] = 0
    assert flatten(palette).tolist() == [[[255, 255, 255], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_any_mode_becomes_three_channels_and_one(mode: str) -> None:
    image = Image.new("RGB", (5, 4), "white").convert(mode)
    assert flatten(image).shape == (4, 5, 3) and flatten(image).min() == 255
    assert mask_of(image).shape == (4, 5) and mask_of(image).min() == 255
    assert flatten(image).flags.writeable


# fit


@pytest.mark.parametrize("mode", MODES)
def test_what_fits_already_is_not_touched(mode: ResizeMode) -> None:
    picture = noise(48, 80)
    assert np.array_equal(fit(picture, 80, 48, mode), picture)
    assert np.array_equal(fit(picture[..., 0], 80, 48, mode), picture[..., 0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(12))
def test_any_size_becomes_the_wanted_one_and_flat_stays_flat(mode: ResizeMode, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns, height, width = (int(side) for side in rng.integers(1, 300, 4))
    assert fit(noise(rows, columns), width, height, mode).shape == (height, width, 3)
    colour = tuple(int(part) for part in rng.integers(0, 256, 3))
    assert (fit(flat(rows, columns, colour), width, height, mode) == colour).all()  # no ringing, no dark border
    assert (fit(np.full((rows, columns), 255, np.uint8), width, height, mode) == 255).all()


def test_extreme_proportions_cost_no_more_than_the_result() -> None:
    line = noise(8, 512)
    for mode in MODES:
        assert fit(line, 2048, 2048, mode).shape == (2048, 2048, 3)
        assert fit(np.ascontiguousarray(line.transpose(1, 0, 2)), 64, 2048, mode).shape == (2048, 64, 3)


@pytest.mark.parametrize("size", [(96, 96), (300, 300), (130, 70), (70, 130)])
def test_a_red_square_stays_where_it_belongs(size: tuple[int, int]) -> None:
    width, height = size
    picture = flat(100, 200)
    picture[30:50, 100:120] = (255, 0, 0)  # middle at (110, 40)
    x, y = centre(reddish(fit(picture, width, height, "stretch")))
    assert (x, y) == pytest.approx((110 * width / 200, 40 * height / 100), abs=1)
    scale = max(width / 200, height / 100)
    x, y = centre(reddish(fit(picture, width, height, "crop")))
    assert (x, y) == pytest.approx((width / 2 + 10 * scale, height / 2 - 10 * scale), abs=1)
    scale = min(width / 200, height / 100)
    filled = fit(picture, width, height, "fill")
    x, y = centre(reddish(filled))
    assert (x, y) == pytest.approx((width / 2 + 10 * scale, height / 2 - 10 * scale), abs=1)
    assert reddish(filled).sum() == pytest.approx((20 * scale) ** 2, rel=0.25)  # still a square, nothing is doubled
    mask = rectangle(100, 200, (100, 30, 120, 50))
    for mode in MODES:
        picture_at, mask_at = centre(reddish(fit(picture, width, height, mode))), centre(fit(mask, *size, mode) > 127)
        assert picture_at == pytest.approx(mask_at, abs=1)


def test_fill_stretches_the_edge_rows() -> None:
    picture = flat(20, 40, (0, 0, 0))
    picture[0], picture[-1] = (255, 0, 0), (0, 255, 0)
    filled = fit(picture, 40, 40, "fill")
    assert (filled[:11] == (255, 0, 0)).all()
    assert (filled[29:] == (0, 255, 0)).all()
    assert np.array_equal(filled[10:30], picture)


def test_reducing_averages_and_never_rings() -> None:
    board = np.indices((128, 128)).sum(axis=0) % 2 * 255
    reduced = fit(np.dstack([board] * 3).astype(np.uint8), 32, 32, "stretch")
    assert np.abs(reduced.astype(int) - 127).max() <= 3  # no moiré
    edge = flat(64, 64, (50, 50, 50))
    edge[:, 31:] = 200
    reduced = fit(edge, 24, 24, "stretch")
    assert reduced.min() >= 50 and reduced.max() <= 200


# extend


def test_extending_keeps_the_picture_and_marks_the_rest() -> None:
    picture = noise(40, 60)
    grown, mask = extend(picture, None, 16, 24, 8, 32)
    assert grown.shape == (80, 100, 3) and mask.shape == (80, 100)
    assert np.array_equal(grown[8:48, 16:76], picture)
    old = np.zeros((80, 100), bool)
    old[8 + 8 : 48 - 8, 16 + 8 : 76 - 8] = True  # the overlap is repainted too
    assert np.array_equal(mask == 0, old)
    assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("side", range(4))
def test_one_side_overlaps_only_there(side: int) -> None:
    sides = [0, 0, 0, 0]
    sides[side] = 16
    grown, mask = extend(noise(64, 64), None, *sides, overlap=4)
    assert grown.shape[:2] == ((64, 80) if side < 2 else (80, 64))
    assert (mask == 255).sum() == 64 * 20
    new = {0: mask[:, :20], 1: mask[:, -20:], 2: mask[:20], 3: mask[-20:]}[side]
    assert (new == 255).all()


def test_an_old_mask_is_kept_and_no_extension_is_none() -> None:
    mask = rectangle(64, 64, (30, 30, 40, 40))
    mask[35, 35] = 77
    _, grown = extend(noise(64, 64), mask, 8, 0, 0, 0)
    assert np.array_equal(grown[:, 16:], mask[:, 8:])
    picture, same = extend(noise(64, 64), mask, 0, 0, 0, 0)
    assert np.array_equal(picture, noise(64, 64)) and np.array_equal(same, mask)
    assert not extend(noise(8, 8), None, 0, 0, 0, 0)[1].any()
    assert extend(noise(8, 8), None, 8, 8, 8, 8, overlap=100)[1].min() == 255


def test_new_parts_go_on_from_the_edge_and_grow_calm() -> None:
    assert (extend(flat(64, 64, (200, 30, 60)), None, 64, 64, 64, 64)[0] == (200, 30, 60)).all()
    picture = np.repeat(noise(96, 1, seed=3), 64, axis=1)  # rows of wild colours
    grown, _ = extend(picture, None, 0, 96, 0, 0)
    step = np.abs(grown[:, 64].astype(int) - grown[:, 63]).mean()
    assert step < 25  # no seam: its rows differ by 85
    rough = [np.abs(np.diff(grown[:, x].astype(int), axis=0)).mean() for x in (63, 80, 159)]
    assert rough[0] > 3 * rough[1] > 3 * rough[2]  # no streaks far out
    assert np.abs(grown[:, 159].mean() - picture.mean()) < 25


def test_extending_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        extend(noise(8, 8), None, -8, 0, 0, 0)
    with pytest.raises(ValueError, match="mask_image is 9 x 8 pixels and image 8 x 8"):
        extend(noise(8, 8), np.zeros((8, 9), np.uint8), 8, 0, 0, 0)


# fill_masked


def magenta_left(picture: np.ndarray) -> int:
    return int(((picture[..., 0] > 180) & (picture[..., 2] > 180) & (picture[..., 1] < 60)).sum())


@pytest.mark.parametrize("seed", range(10))
def test_nothing_of_the_masked_part_is_left(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (int(side) for side in rng.integers(9, 200, 2))
    picture = rng.integers(60, 160, (rows, columns, 3), dtype=np.uint8)
    left, top = int(rng.integers(0, columns - 4)), int(rng.integers(0, rows - 4))
    mask = rectangle(rows, columns, (left, top, columns if seed % 2 else left + 4, rows if seed % 3 else top + 4))
    mask[0, 0] = 0
    painted = picture.copy()
    painted[mask > 0] = MAGENTA
    filled = fill_masked(painted, mask)
    assert magenta_left(filled) == 0
    assert np.array_equal(filled[mask == 0], picture[mask == 0])
    assert np.array_equal(filled, fill_masked(picture, mask))  # what was under the mask does not matter
    assert filled[mask > 0].min() >= 59 and filled[mask > 0].max() <= 160


def test_the_fill_is_the_colour_nearby() -> None:
    picture = flat(100, 200, (200, 0, 0))
    picture[:, 100:] = (0, 0, 200)
    mask = rectangle(100, 200, (0, 40, 200, 60))
    filled = fill_masked(picture, mask)
    assert np.abs(filled[50, 20].astype(int) - (200, 0, 0)).max() <= 8
    assert np.abs(filled[50, 180].astype(int) - (0, 0, 200)).max() <= 8
    assert np.abs(filled[50, 100].astype(int) - (100, 0, 100)).max() <= 30
    assert (fill_masked(flat(64, 48), rectangle(64, 48, (0, 0, 48, 63))) == flat(64, 48)).all()


def test_a_fully_masked_picture_becomes_grey_and_half_masks_count_as_masked() -> None:
    assert (fill_masked(flat(8, 9, MAGENTA), np.full((8, 9), 255, np.uint8)) == canvas.GREY).all()
    picture = flat(32, 32)
    picture[10:20, 10:20] = MAGENTA
    assert magenta_left(fill_masked(picture, rectangle(32, 32, (10, 10, 20, 20)) // 16)) == 0
    one = flat(300, 300, MAGENTA)
    one[123, 45] = (1, 2, 3)
    mask = np.full((300, 300), 255, np.uint8)
    mask[123, 45] = 0
    assert (fill_masked(one, mask) == (1, 2, 3)).all()  # one known pixel is enough


# plan_inpainting and compose


def test_a_hard_edge_is_exact() -> None:
    picture, mask = noise(64, 64), rectangle(64, 64, (10, 20, 30, 40))
    made = noise(64, 64, seed=9)
    planned = plan(picture, mask)
    assert planned.box == (0, 0, 64, 64)
    assert planned.soft.dtype == np.float32 and set(np.unique(planned.soft)) == {0.0, 1.0}
    assert np.array_equal(planned.mask, mask) and np.array_equal(planned.picture, picture)
    result = planned.compose(made)
    assert np.array_equal(result, np.where(mask[..., None] > 0, made, picture))
    assert np.array_equal(planned.source, picture)


def test_a_soft_edge_ends_where_it_says() -> None:
    mask = rectangle(128, 128, (40, 40, 88, 88))
    planned = plan(noise(128, 128), mask, width=128, height=128, mask_blur=4)
    assert planned.soft[64, 64] == 1
    assert planned.soft[64, 39] == pytest.approx(0.5, abs=0.06)
    distance = cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_C, 3)
    assert (planned.soft[distance > 2.5 * 4 + 0.5] == 0).all()
    assert (planned.mask == 255).sum() > 48 * 48
    assert np.array_equal(planned.mask > 0, planned.soft > 0)
    line = planned.soft[64, 20:50]
    assert (np.diff(line) >= 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_outside_every_byte_stays_and_inside_is_the_new(mode: ResizeMode, only_masked: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (int(side) for side in rng.integers(16, 260, 2))
    height, width = (int(side) * 8 for side in rng.integers(8, 24, 2))
    picture = noise(rows, columns, seed)
    left, top = int(rng.integers(0, columns - 8)), int(rng.integers(0, rows - 8))
    mask = np.zeros((rows, columns), np.uint8)
    mask[top : top + int(rng.integers(8, rows)), left : left + int(rng.integers(8, columns))] = 255
    blur, padding = int(rng.integers(0, 20)), int(rng.integers(0, 64))
    options = {"width": width, "height": height, "resize_mode": mode, "only_masked": only_masked}
    if not only_masked and fit(mask, width, height, mode).max() < 128:  # `crop` cut the mask off
        with pytest.raises(ValueError, match="is left at"):
            plan(picture, mask, **options, mask_blur=blur, padding=padding)
        return
    planned = plan(picture, mask, **options, mask_blur=blur, padding=padding)
    assert planned.picture.shape == (height, width, 3) and planned.mask.shape == (height, width)
    assert set(np.unique(planned.mask)) <= {0, 255} and planned.mask.any()
    assert planned.soft.shape == planned.source.shape[:2]
    assert planned.source.shape[:2] == ((rows, columns) if only_masked else (height, width))
    if only_masked:
        assert np.array_equal(planned.source, picture)
    made = flat(height, width, (3, 250, 7))
    result = planned.compose(made)
    assert result.shape == planned.source.shape and result.dtype == np.uint8
    assert kept_outside(planned, result)
    assert (result[planned.soft == 1] == (3, 250, 7)).all()
    check_box(planned, width / height, padding if only_masked else 0)


def kept_outside(planned: Inpainting, result: np.ndarray) -> bool:
    return np.array_equal(result[planned.soft == 0], planned.source[planned.soft == 0])


def check_box(planned: Inpainting, ratio: float, padding: int) -> None:
    """The box lies in the picture, holds the mask and its padding, has the wanted proportions where there is room, and is seen as white."""
    rows, columns = planned.soft.shape
    left, top, right, bottom = planned.box
    assert 0 <= left < right <= columns and 0 <= top < bottom <= rows
    ys, xs = np.nonzero(planned.soft)
    assert left <= max(0, xs.min() - padding) and right >= min(columns, xs.max() + 1 + padding)
    assert top <= max(0, ys.min() - padding) and bottom >= min(rows, ys.max() + 1 + padding)
    wide, high = right - left, bottom - top
    if wide < columns and high < rows:
        assert abs(wide - high * ratio) <= max(1, ratio) + 1e-6
    height, width = planned.mask.shape
    x0, y0, x1, y1 = canvas.contained(wide, high, width, height)
    mask_x = (x0 + (xs - left + 0.5) * (x1 - x0) / wide).astype(int)
    mask_y = (y0 + (ys - top + 0.5) * (y1 - y0) / high).astype(int)
    assert (planned.mask[mask_y, mask_x] == 255).all()


def test_only_masked_keeps_its_own_size_and_puts_things_back_in_place() -> None:
    picture = noise(300, 400)
    planned = plan(picture, rectangle(300, 400, (100, 100, 140, 140)), only_masked=True, padding=12)
    assert planned.box == (88, 88, 152, 152)  # 64 x 64, as wanted: nothing is resized
    assert np.array_equal(planned.picture, picture[88:152, 88:152])
    made = noise(64, 64, seed=4)
    result = planned.compose(made)
    assert np.array_equal(result[100:140, 100:140], made[12:52, 12:52])
    result[100:140, 100:140] = picture[100:140, 100:140]
    assert np.array_equal(result, picture)


@pytest.mark.parametrize("size", [(128, 128), (192, 64), (64, 192), (512, 512)])
def test_a_thing_comes_back_where_it_was_seen(size: tuple[int, int]) -> None:
    picture = flat(90, 300)
    picture[20:30, 200:220] = (255, 0, 0)  # off the middle, and near enough to the top that a tall box has no room
    mask = rectangle(90, 300, (190, 15, 230, 35))
    planned = plan(picture, mask, width=size[0], height=size[1], only_masked=True, padding=8)
    assert centre(reddish(planned.compose(planned.picture))) == pytest.approx((210, 25), abs=0.6)
    ys, xs = np.nonzero(reddish(planned.picture))
    assert (np.ptp(xs) + 1) / (np.ptp(ys) + 1) == pytest.approx(
        2, rel=0.1
    )  # never distorted, even where the picture ends
    assert centre(planned.mask > 0) == pytest.approx(centre(reddish(planned.picture)), abs=1.5)


def test_the_border_is_the_mean_of_old_and_new() -> None:
    planned = plan(noise(64, 64), rectangle(64, 64, (20, 20, 40, 40)), mask_blur=4)
    made = noise(64, 64, seed=5)
    exact = planned.source * (1 - planned.soft[..., None].astype(float)) + made * planned.soft[..., None].astype(float)
    assert np.abs(planned.compose(made) - exact).max() <= 0.5 + 1e-4


def test_the_box_moves_rather_than_shrinks() -> None:
    planned = plan(noise(200, 200), rectangle(200, 200, (0, 90, 10, 110)), only_masked=True, padding=0)
    assert planned.box == (0, 90, 20, 110)
    planned = plan(noise(200, 200), rectangle(200, 200, (150, 190, 200, 200)), only_masked=True, padding=4)
    assert planned.box == (146, 146, 200, 200)
    planned = plan(noise(60, 200), rectangle(60, 200, (10, 20, 190, 40)), only_masked=True, padding=4)
    assert planned.box == (6, 0, 194, 60)


def test_grey_masks_are_rounded() -> None:
    mask = rectangle(64, 64, (8, 8, 40, 40)) // 255 * 127
    with pytest.raises(ValueError, match="mask_image is empty"):
        plan(noise(64, 64), mask)
    assert np.array_equal(plan(noise(64, 64), mask + 1).mask > 0, mask > 0)


def test_masks_that_leave_nothing_are_refused() -> None:
    picture, nothing = noise(64, 64), np.zeros((64, 64), np.uint8)
    words = "mask_image is empty: nothing would be repainted; paint over what should change"
    for values in ({}, {"only_masked": True}, {"mask_blur": 8}):
        with pytest.raises(ValueError, match=words):
            plan(picture, nothing, **values)
    with pytest.raises(
        ValueError, match=r"nothing of mask_image is left .* mask_blur=64; paint over more, or blur less"
    ):
        plan(picture, rectangle(64, 64, (32, 32, 33, 33)), mask_blur=64)
    with pytest.raises(ValueError, match="left at 64 x 64 with resize_mode=crop"):
        plan(noise(64, 200), rectangle(64, 200, (0, 0, 30, 64)))
    with pytest.raises(ValueError, match="mask_image is 32 x 64 pixels and image 64 x 64"):
        plan(picture, np.full((64, 32), 255, np.uint8))


def test_a_result_of_another_size_is_refused() -> None:
    planned = plan(noise(64, 64), rectangle(64, 64, (0, 0, 9, 9)))
    with pytest.raises(ValueError, match="72 x 64 pixels; 64 x 64 were asked for"):
        planned.compose(noise(64, 72))


def test_outpainting_end_to_end_keeps_the_old_picture() -> None:
    picture = noise(64, 64)
    grown, mask = extend(picture, None, 0, 64, 0, 0)
    planned = plan(grown, mask, width=128, mask_blur=2)
    result = planned.compose(flat(64, 128, MAGENTA))
    kept = 64 - canvas.OVERLAP - 6  # the blur reaches 2.5 sigma into the picture
    assert np.array_equal(result[:, :kept], picture[:, :kept])
    assert (result[:, 64:] == MAGENTA).all()


def test_the_checks_can_fail() -> None:
    planned = plan(noise(64, 64), rectangle(64, 64, (20, 20, 40, 40)), mask_blur=2)
    made = noise(64, 64, seed=1)
    assert kept_outside(planned, planned.compose(made))
    endless = cv2.GaussianBlur(rectangle(64, 64, (20, 20, 40, 40)).astype(np.float32), (63, 63), 6)[..., None] / 255
    assert not kept_outside(planned, np.rint(planned.source * (1 - endless) + made * endless).astype(np.uint8))
    through_a_codec = cv2.imdecode(cv2.imencode(".jpg", planned.source)[1], cv2.IMREAD_COLOR)
    assert not kept_outside(planned, np.where(planned.soft[..., None] > 0, made, through_a_codec))
    naive = cv2.inpaint(planned.source, 255 - planned.mask, 3, cv2.INPAINT_TELEA)
    assert not kept_outside(planned, naive)
    painted = flat(32, 32)
    painted[8:24, 8:24] = MAGENTA
    assert magenta_left(painted) == 256
