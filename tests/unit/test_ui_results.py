"""Figures of the results page, which AppTest does not look into."""

import numpy as np
import pytest

from audit.ui.results import histogram


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("ordinary", [None, np.arange(100.0)])
@pytest.mark.parametrize("largest", [1, 1000])
def test_the_histogram_shows_run_and_ordinary_captions_at_one_scale(dark, ordinary, largest):
    counts = np.array([0, 3, largest])
    figure = histogram(np.array([0.0, 25.0, 50.0, 100.0]), counts, ordinary, 50.0, dark=dark)
    assert figure.data[0].y.tolist() == counts.tolist()
    assert [colour.startswith("rgba") for colour in figure.data[0].marker.color] == [True, True, False]
    if ordinary is not None:
        assert sum(figure.data[1].y) == pytest.approx(counts.sum())
    assert figure.layout.yaxis.type == ("log" if largest > 200 else "linear")
