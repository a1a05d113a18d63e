"""Scores and calibration on numbers that can be checked by hand."""

import math

import numpy as np
import pytest
import torch

from audit.errors import InputError
from audit.scores.calibration import Calibration, conformal_threshold
from audit.scores.dcs import check_sigma, dcs, dcs_heatmap
from audit.scores.ecs import ecs, ecs_heatmap, edges
from audit.scores.magnitude import magnitude, magnitude_heatmap


def test_dcs_is_the_mean_square_and_its_heatmap_is_the_score_before_its_mean():
    x = torch.zeros(2, 2, 2, 2)
    denoised = torch.zeros(2, 2, 2, 2)
    denoised[0, 0, 0, 0] = 4.0
    denoised[1] = 2.0
    assert dcs(x, denoised).tolist() == [2.0, 4.0]
    heatmap = dcs_heatmap(x, denoised)
    assert heatmap[0].tolist() == [[8.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(heatmap.mean(dim=(1, 2)), dcs(x, denoised))


def test_dcs_is_reduced_in_float32():
    x = torch.full((1, 4, 64, 64), 14.6, dtype=torch.bfloat16)
    denoised = torch.zeros_like(x)
    assert float(dcs(x, denoised)) == pytest.approx(float(x[0, 0, 0, 0]) ** 2, rel=1e-6)


def test_dcs_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match="batch"):
        dcs(torch.zeros(2, 4, 8, 8), torch.zeros(1, 4, 8, 8))


def test_scores_at_sigma_max_are_refused_where_it_is_infinite():
    with pytest.raises(InputError, match="zero terminal SNR"):
        check_sigma(math.inf)
    check_sigma(14.6)


def test_magnitude_is_the_norm_of_its_heatmap():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, 3, 4, 8, 8), generator=generator)
    heatmap = magnitude_heatmap(a, b, 2.0)
    assert heatmap.shape == (3, 8, 8)
    expected = [float(np.linalg.norm((a[i] - b[i]).numpy())) / 2.0 for i in range(3)]
    assert magnitude(a, b, 2.0).tolist() == pytest.approx(expected, rel=1e-5)
    assert heatmap.square().sum(dim=(1, 2)).sqrt().tolist() == pytest.approx(expected, rel=1e-5)
    assert magnitude(a, a, 2.0).tolist() == [0, 0, 0]


def square(row, column=64, side=100, channels=(1, 1, 1)):
    """A white square on black, 256x256."""
    image = np.zeros((256, 256, 3), np.float32)
    image[row : row + side, column : column + side] = channels
    return image


def test_edges_of_a_square_are_two_pixels_wide():
    """Sobel answers on both sides of a step: a ring of width 2 around the border of a 100x100 square."""
    ring = 102**2 - 98**2
    assert int(edges(square(64)).sum()) == ring
    assert ecs(square(64)[None]) == ring / 256**2


def test_edge_strength_is_summed_over_channels():
    """A step of h in one channel has Sobel 4 h: over 1.5 from h = .375 on, all three channels from .125."""
    grey = square(64, channels=(0.13, 0.13, 0.13))
    one = square(64, channels=(0.36, 0, 0))
    assert edges(grey)[100, 64] and not edges(one)[100, 64]
    assert edges(square(64, channels=(0.39, 0, 0)))[100, 64]


def test_only_edges_in_more_than_half_of_the_seeds_count():
    same, other = square(20, side=30), square(200, side=30)
    ring = 32**2 - 28**2
    assert ecs(np.stack([same, same, same, other])) == ring / 256**2
    assert ecs(np.stack([same, same, other, other])) == 0
    heatmap = ecs_heatmap(np.stack([same, same, same, other]))
    assert heatmap.shape == (256, 256) and set(np.unique(heatmap)) == {0, 0.25, 0.75}


def test_ecs_of_flat_pictures_is_zero_and_small_pictures_are_enlarged():
    assert ecs(np.full((4, 64, 64, 3), 0.5, np.float32)) == 0
    assert 0 < ecs(np.stack([square(64)[::4, ::4]] * 4)) < 1


def calibration(n=99, seeds=(0, 1)):
    generator = np.random.default_rng(0)
    base = generator.permutation(np.arange(1.0, n + 1))
    return Calibration(
        model="m",
        model_sha256="f" * 64,
        guidance=7.5,
        seeds=seeds,
        captions=n,
        source="test",
        per_seed={"dcs": [[value - 1, value + 1] for value in base]},
        per_caption={"ecs": list(base / 1000)},
    )


def test_thresholds_are_conformal_quantiles():
    ordinary = calibration()
    assert ordinary.values["dcs"].tolist() == list(range(1, 100))
    assert ordinary.threshold("dcs", 0.01) == 99
    assert ordinary.threshold("dcs", 0.10) == 90
    assert ordinary.threshold("dcs", 0.5) == 50
    assert conformal_threshold(np.arange(1.0, 11.0), 0.3) == 8
    with pytest.raises(InputError, match=r"99 ordinary captions are too few .* at least 199"):
        ordinary.threshold("dcs", 0.005)
    with pytest.raises(InputError, match="between 0 and 1"):
        ordinary.threshold("dcs", 0)
    with pytest.raises(InputError, match="no score 'nonsense'"):
        ordinary.threshold("nonsense", 0.1)


def test_threshold_keeps_its_rate_on_new_ordinary_captions():
    generator = np.random.default_rng(1)
    rates = [
        np.mean(generator.normal(size=200) > conformal_threshold(np.sort(generator.normal(size=199)), 0.05))
        for _ in range(400)
    ]
    assert 0.03 < np.mean(rates) < 0.055


def test_percentiles():
    ordinary = calibration(n=100)
    assert ordinary.percentile("dcs", 0) == 0
    assert ordinary.percentile("dcs", 50.5) == 50
    assert ordinary.percentile("dcs", 1e9) == 100
    assert math.isnan(ordinary.percentile("dcs", math.nan))


def test_some_of_the_seeds():
    one = calibration().for_seeds([1])
    assert one.values["dcs"].tolist() == list(range(2, 101))
    # edges are looked at in four pictures: those of seed 1 alone are those of 0 and 1, of 7 alone are not
    assert one.values["ecs"].size == 99
    assert "ecs" not in calibration(seeds=(0, 7)).for_seeds([0]).values
    assert calibration().for_seeds([1, 0]).values["ecs"].size == 99
    with pytest.raises(InputError, match="has seeds 0, 1 and not 7"):
        calibration().for_seeds([7])


def test_calibration_survives_its_file(tmp_path):
    path = tmp_path / "deep" / "calibration.json"
    calibration().save(path)
    again = Calibration.load(path)
    assert again.seeds == (0, 1) and again.threshold("dcs", 0.05) == calibration().threshold("dcs", 0.05)


def test_a_calibration_with_values_that_are_no_numbers_is_refused(tmp_path):
    broken = calibration()
    broken.per_seed["dcs"][3][1] = math.nan
    broken.save(tmp_path / "x.json")
    with pytest.raises(InputError, match="calibrate anew"):
        Calibration.load(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["", "[]", '{"model": 1}', "\ud800".encode("utf-8", "surrogatepass")])
def test_other_files_are_no_calibrations(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="no calibration"):
        Calibration.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        Calibration.load(tmp_path / "nowhere.json")
