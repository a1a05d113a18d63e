"""Heatmaps, differences, outlines and PNG: numbers that can be worked out by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from audit.ui import overlays
from audit.ui.overlays import INFERNO
from audit.ui.pictures import GAP, MAX_WIDTH, png, strip_png


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def test_colours_meet_the_anchors_and_halve_between():
    picture = overlays.colours(np.array([0.0, 1.0 / 9, 0.5 / 9, 1.0, -3.0, 7.0]))
    np.testing.assert_allclose(picture[[0, 1, 3, 4, 5]], INFERNO[[0, 1, 9, 0, 9]], atol=1e-6)
    np.testing.assert_allclose(picture[2], (INFERNO[0] + INFERNO[1]) / 2, atol=1e-6)


def test_colours_grow_lighter_all_the_way():
    luminance = overlays.colours(np.linspace(0, 1, 200)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()


def test_normalise_flat_is_zero_and_fixed_ends_hold():
    assert (overlays.normalise(np.full((2, 2), 5.0)) == 0).all()
    np.testing.assert_allclose(overlays.normalise(np.array([1.0, 2.0, 3.0]), 0.0, 4.0), [0.25, 0.5, 0.75])


def test_enlarge_repeats_values():
    large = overlays.enlarge(np.array([[1.0, 2.0], [3.0, 4.0]]), 4, 4)
    np.testing.assert_array_equal(large, np.kron([[1, 2], [3, 4]], np.ones((2, 2))))


def test_blend_ends_are_the_two_pictures():
    one, other = np.zeros((2, 2, 3)), np.ones((2, 2, 3))
    assert (overlays.blend(one, other, 0.0) == one).all()
    assert (overlays.blend(one, other, 1.0) == other).all()
    assert (overlays.blend(one, other, 0.25) == 0.25).all()


def test_difference_is_absolute_and_masked():
    one, other = np.full((2, 2, 3), 0.25), np.full((2, 2, 3), 0.75)
    mask = np.array([[True, False], [False, True]])
    assert (overlays.difference(one, other) == 0.5).all()
    np.testing.assert_array_equal(overlays.difference(one, other, mask)[..., 0], [[0.5, 0], [0, 0.5]])


def test_outline_of_a_square_is_its_ring_and_a_full_mask_has_none():
    mask = np.zeros((7, 7), dtype=bool)
    mask[2:5, 2:5] = True
    ring = mask.copy()
    ring[3, 3] = False
    np.testing.assert_array_equal(overlays.outline(mask), ring)
    assert not overlays.outline(np.ones((5, 5), dtype=bool)).any()


def test_outlined_is_transparent_away_from_the_line():
    mask = np.zeros((8, 8), dtype=bool)
    mask[:, 4:] = True
    picture = overlays.outlined(mask, scale=3)
    assert picture.shape == (24, 24, 4)
    assert (picture[:, 12] == (1.0, 1.0, np.float32(0.45), 1.0)).all()
    assert (picture[:, :10, 3] == 0).all()
    assert (picture[:, 15:, 3] == 0).all()


def test_png_is_lossless():
    picture = np.random.default_rng(0).integers(0, 256, (9, 13, 3)) / 255
    np.testing.assert_array_equal(opened(png(picture)), np.round(picture * 255))


def test_png_is_never_wider_than_the_interface_keeps():
    assert opened(png(np.zeros((10, 3000, 3)))).shape[1] == MAX_WIDTH


@pytest.mark.parametrize("size", [32, 256])
def test_blur_removes_detail(size):
    board = (np.indices((size, size)).sum(axis=0) % 2)[..., None].repeat(3, axis=2).astype(np.float32)
    assert opened(png(board)).std() > 100
    assert opened(png(board, blur=True)).std() < 20


@pytest.mark.parametrize("blur", [False, True])
def test_a_line_of_pictures_has_room_for_all_and_draws_only_those_there_are(blur):
    white = np.ones((8, 8, 3), np.float32)
    line = opened(strip_png([white, white], 4, blur=blur))
    assert line.shape == (8, 4 * 8 + 3 * GAP, 4)
    assert (line[:, :8] == 255).all() and (line[:, 8 + GAP : 16 + GAP] == 255).all()
    assert (line[:, 8 : 8 + GAP, 3] == 0).all() and (line[:, 16 + GAP :, 3] == 0).all()
