"""Masks edited by hand: each tool on pixels that can be counted, hostile JSON, and the distance under an edited mask."""

import json

import numpy as np
import pytest

from audit.errors import InputError
from audit.verbatim.distances import masked_sse
from audit.verbatim.editing import (
    MAX_CORNERS,
    MAX_EDITS,
    MAX_POINTS,
    Edit,
    Tool,
    apply,
    from_json,
    starts_as_found,
    to_json,
)
from audit.verbatim.masks import consensus_mask, difference, mask_at, pair_mask

NOTHING = np.zeros((256, 256), bool)
EVERYTHING = ~NOTHING


def box(top, bottom, left, right):
    mask = np.zeros((256, 256), bool)
    mask[top:bottom, left:right] = True
    return mask


def brush(*points, radius=0.0, include=True):
    return Edit(Tool.BRUSH, include, points, radius)


def rectangle(*points, include=True):
    return Edit(Tool.RECTANGLE, include, points)


# Tools


def test_a_rectangle_takes_the_pixels_between_its_corners_whichever_they_are():
    for corners in (((10, 20), (30, 50)), ((30, 20), (10, 50)), ((30, 50), (10, 20))):
        np.testing.assert_array_equal(apply(NOTHING, [rectangle(*corners)]), box(20, 50, 10, 30))
    np.testing.assert_array_equal(apply(NOTHING, [rectangle((-40, 250), (3.4, 900))]), box(250, 256, 0, 3))
    np.testing.assert_array_equal(
        apply(EVERYTHING, [rectangle((10, 20), (30, 50), include=False)]), ~box(20, 50, 10, 30)
    )


def test_a_brush_reaches_its_radius_from_each_pixel_of_its_line():
    rows, columns = np.mgrid[:256, :256]
    around = (rows - 40) ** 2 + (columns - 60) ** 2
    for radius in (0, 1, 2.5, 5, 40):
        np.testing.assert_array_equal(
            apply(NOTHING, [brush((60.5, 40.9), radius=radius)]), around <= radius**2
        )
    beside = np.maximum(np.maximum(100 - columns, columns - 140), 0)
    np.testing.assert_array_equal(
        apply(NOTHING, [brush((100, 40), (120, 40), (140, 40), radius=5)]), beside**2 + (rows - 40) ** 2 <= 25
    )


def test_a_brush_outside_reaches_in():
    edited = apply(NOTHING, [brush((-3, 100), (-3, 150), radius=5)])
    assert edited[100:151, :3].all() and not edited[:, 3:].any()
    assert not apply(NOTHING, [brush((-500, -500), (-400, 900), radius=5)]).any()


def test_a_polygon_takes_pixels_whose_centre_is_inside():
    square = Edit(Tool.POLYGON, True, ((10, 20), (30, 20), (30, 50), (10, 50)))
    np.testing.assert_array_equal(apply(NOTHING, [square]), box(20, 50, 10, 30))
    rows, columns = np.mgrid[:256, :256] + 0.5
    triangle = Edit(Tool.POLYGON, True, ((0, 0.25), (300, 0.25), (0, 300.25)))
    np.testing.assert_array_equal(apply(NOTHING, [triangle]), columns + rows < 300.25)


def test_grow_and_shrink_by_pixels():
    dot = box(100, 101, 100, 101)
    disc = apply(NOTHING, [brush((100, 100), radius=3)])
    np.testing.assert_array_equal(apply(dot, [Edit(Tool.GROW, amount=3)]), disc)
    np.testing.assert_array_equal(apply(~dot, [Edit(Tool.SHRINK, amount=3)]), ~disc)
    block = box(50, 80, 60, 90)
    np.testing.assert_array_equal(apply(block, [Edit(Tool.SHRINK, amount=4)]), box(54, 76, 64, 86))
    for mask in (NOTHING, EVERYTHING, block):
        for tool in (Tool.GROW, Tool.SHRINK):
            np.testing.assert_array_equal(apply(mask, [Edit(tool, amount=0)]), mask)
    for tool in (Tool.GROW, Tool.SHRINK):
        assert not apply(NOTHING, [Edit(tool, amount=9)]).any()
        assert apply(EVERYTHING, [Edit(tool, amount=9)]).all()


def test_the_border_of_the_picture_is_no_edge_of_the_mask():
    left = box(0, 256, 0, 100)
    np.testing.assert_array_equal(apply(left, [Edit(Tool.SHRINK, amount=10)]), box(0, 256, 0, 90))


def test_steps_are_taken_in_order_and_the_given_mask_stays():
    mask = box(0, 256, 0, 256)
    steps = [rectangle((0, 0), (100, 100), include=False), rectangle((50, 50), (60, 60))]
    expected = ~box(0, 100, 0, 100) | box(50, 60, 50, 60)
    np.testing.assert_array_equal(apply(mask, steps), expected)
    assert not np.array_equal(apply(mask, steps[::-1]), expected)
    assert mask.all() and apply(mask, []) is not mask


# The mask as it was found


def test_the_mask_as_it_was_found_takes_the_place_of_what_others_made_of_it():
    found, others = box(0, 200, 0, 256), box(0, 100, 0, 100)
    step = rectangle((0, 0), (10, 256), include=False)
    edited = apply(others, [Edit(Tool.FOUND), step], found=found)
    np.testing.assert_array_equal(edited, apply(found, [step]))
    assert found[:, :10].any(), "the given one stays"
    assert not np.array_equal(apply(others, [step], found=found), edited)
    assert starts_as_found([Edit(Tool.FOUND), step]) and not starts_as_found([step]) | starts_as_found([])
    with pytest.raises(InputError, match="is not known here"):
        apply(others, [Edit(Tool.FOUND)])
    with pytest.raises(InputError, match="256"):
        apply(others, [Edit(Tool.FOUND)], found=found[:255])
    with pytest.raises(InputError, match=r"Step 2 .* only the first"):
        apply(others, [step, Edit(Tool.FOUND)], found=found)


# Threshold


def test_the_threshold_of_the_automatic_mask_gives_the_automatic_mask():
    rng = np.random.default_rng(0)
    base = rng.random((256, 256, 3), np.float32)
    family = np.stack([base] * 6)
    for number, member in enumerate(family):
        member[40 : 90 + 3 * number, 60:120] = rng.random(3)
    for count in (2, 3, 6):
        members = family[:count]
        for threshold, mask in ((0.03, consensus_mask(members)),):
            at = apply(NOTHING, [Edit(Tool.THRESHOLD, amount=threshold)], difference(members))
            np.testing.assert_array_equal(at, mask)
    np.testing.assert_array_equal(mask_at(difference(family[:2]), 0.03), pair_mask(*family[:2]))


def test_a_higher_threshold_takes_in_what_differs_by_less():
    one, other = (np.full((256, 256, 3), 0.5, np.float32) for _ in range(2))
    other[20:60, 20:60] += 0.04
    other[120:180, 120:180] += 0.2
    apart = difference(np.stack([one, other]))
    assert apart[30, 30] == pytest.approx(0.12, abs=1e-6) and apart[150, 150] == pytest.approx(0.6, abs=1e-6)
    at = {amount: apply(NOTHING, [Edit(Tool.THRESHOLD, amount=amount)], apart) for amount in (0, 0.1, 0.2, 1)}
    assert not at[0].any() and at[1].all()
    assert not at[0.1][40, 40] and at[0.2][40, 40] and not at[0.2][150, 150]
    with pytest.raises(InputError, match="choose one to compare with"):
        apply(NOTHING, [Edit(Tool.THRESHOLD, amount=0.1)])
    with pytest.raises(InputError, match="at least 2"):
        difference(one[None])


# The distance


def test_masked_distance_under_an_edited_mask_by_hand():
    """A generated picture differs by 0.5 in one channel over 64x64 pixels; the automatic mask saw half of them."""
    template = np.random.default_rng(1).random((256, 256, 3), np.float32) / 2
    generated = template.copy()
    generated[0:64, 0:64, 1] += 0.5
    automatic = ~box(0, 64, 0, 32)
    seen = 64 * 32 * 0.25
    assert float(masked_sse(template, automatic, generated)) == pytest.approx(seen / (1 - 64 * 32 / 65536))
    edited = apply(automatic, [rectangle((0, 0), (64, 64), include=False)])
    assert float(masked_sse(template, edited, generated)) == 0
    half = apply(automatic, [rectangle((32, 0), (48, 64), include=False)])
    assert float(masked_sse(template, half, generated)) == pytest.approx(
        64 * 16 * 0.25 / (1 - 64 * 48 / 65536)
    )
    nothing = apply(automatic, [rectangle((0, 0), (256, 256), include=False)])
    with pytest.raises(InputError, match="mask is empty"):
        masked_sse(template, nothing, generated)


# JSON


STEPS = (
    Edit(Tool.FOUND),
    brush((1.5, 2), (3, 4), radius=2.5, include=False),
    rectangle((0, 0), (5, 6)),
    Edit(Tool.POLYGON, True, ((0, 0), (9, 0), (0, 9))),
    Edit(Tool.GROW, amount=2),
    Edit(Tool.SHRINK, amount=1.5),
    Edit(Tool.THRESHOLD, amount=0.05),
)


def test_steps_survive_json():
    text = json.dumps(to_json(STEPS))
    assert from_json(text) == STEPS == from_json(text.encode()) == from_json(to_json(STEPS))
    assert from_json("[]") == ()


GOOD = {"tool": "brush", "include": True, "points": [[1, 2]], "radius": 3}


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "{",
        "nan",
        "[" * 100_000,
        "1" * 5000,
        b"\xff\xfe[",
        '"\ud800"',
        " " * 2_000_001,
        None,
        7,
        {},
        [None],
        [[]],
        [{}],
        [{"tool": ["brush"]}],
        [{"tool": "eval"}],
        [{"tool": "x" * 10_000}],
        [GOOD | {"extra": 1}],
        [{"tool": "found", "amount": 1}],
        [{"tool": "found", "mask": "x"}],
        [{"tool": "found"}] * 2,
        [GOOD, {"tool": "found"}],
        [{"tool": "grow"}],
        [{"tool": "grow", "amount": -1}],
        [{"tool": "grow", "amount": 65}],
        [{"tool": "shrink", "amount": "3"}],
        [{"tool": "threshold", "amount": True}],
        [{"tool": "threshold", "amount": 3.5}],
        '[{"tool": "grow", "amount": NaN}]',
        '[{"tool": "grow", "amount": 1e999}]',
        '[{"tool": "grow", "amount": 1' + "0" * 400 + "}]",
        [GOOD | {"include": 1}],
        [GOOD | {"points": "ab"}],
        [GOOD | {"points": []}],
        [GOOD | {"points": [[1]]}],
        [GOOD | {"points": [[1, 2, 3]]}],
        [GOOD | {"points": [[1, None]]}],
        [GOOD | {"points": [[1, 10**400]]}],
        [GOOD | {"points": [[1, float("inf")]]}],
        [GOOD | {"points": [[1, 5000]]}],
        [GOOD | {"points": [[0, 0]] * (MAX_POINTS + 1)}],
        [GOOD | {"radius": 129}],
        [GOOD | {"radius": -1}],
        [GOOD] * (MAX_EDITS + 1),
        [GOOD | {"points": [[0, 0]] * (MAX_POINTS // 2)}] * 3,
        [{"tool": "rectangle", "include": True, "points": [[0, 0]]}],
        [{"tool": "rectangle", "include": True, "points": [[0, 0]] * 3}],
        [{"tool": "polygon", "include": True, "points": [[0, 0]] * 2}],
        [{"tool": "polygon", "include": True, "points": [[0, 0]] * (MAX_CORNERS + 1)}],
    ],
    ids=lambda value: repr(value)[:40],
)
def test_hostile_json_is_one_sentence(hostile):
    with pytest.raises(InputError) as caught:
        from_json(hostile)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_masks_of_another_form_are_refused():
    for mask in (NOTHING[:255], NOTHING.astype(np.uint8)):
        with pytest.raises(InputError, match="256"):
            apply(mask, [])
    with pytest.raises(InputError, match="difference of shape"):
        apply(NOTHING, [], np.zeros((3, 3)))
    with pytest.raises(InputError, match="at most 500"):
        apply(NOTHING, [Edit(Tool.GROW, amount=1)] * 501)
