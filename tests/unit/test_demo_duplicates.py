"""How duplicates are measured on the demo: pairs, on inputs whose figures can be worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from audit.corpus.duplicates import NEAR
from audit.corpus.reader import Row
from audit.demo.duplicates import (
    KINDS,
    by_kind,
    evaluated,
    grouped,
    pairs_of,
    plant,
    rates,
    true_pairs,
)
from audit.images import from_pil, resize, to_pil
from audit.verbatim.distances import sse


def texture(seed):
    blocks = np.random.default_rng(seed).uniform(0.2, 0.8, (8, 8, 3)).astype(np.float32)
    return blocks.repeat(8, 0).repeat(8, 1)


LABELS = pd.DataFrame(
    {
        "source": [0, 1, 2, 3, 0, 1, 6],
        "kind": ["original"] * 4 + ["resized", "cropped", "original"],
        "split": ["test"] * 6 + ["calibration"],
        "family": ["f", "f", "", "", "f", "f", "f"],
        "natural": ["", "", "n", "n", "", "", ""],
    }
)
"""Copies 4 and 5 of the family's members 0 and 1; a natural family of 2 and 3; 6 is of the other half."""


def pair(a, b):
    return a * len(LABELS) + b


def test_what_is_true_and_what_is_neither():
    truth = true_pairs(LABELS, (LABELS["split"] == "test").to_numpy())
    assert truth["copies"].tolist() == [pair(0, 4), pair(1, 5)]
    assert truth["families"].tolist() == [pair(0, 1), pair(0, 5), pair(1, 4), pair(4, 5)]
    assert truth["neither"].tolist() == [pair(2, 3)]


def test_figures_of_one_half_by_hand():
    """Found: one right pair of copies and two wrong ones; half of the family; the natural family counts nowhere."""
    clusters = {
        "copies": [np.array([0, 4, 2]), np.array([3, 2])],
        "families": [np.array([0, 1, 4]), np.array([6, 5])],
    }
    found = evaluated("test", LABELS, clusters, [np.array([0, 1, 4, 5])])
    copies = found["copies"]
    assert (copies["found_pairs"], copies["right"], copies["neither"]) == (3, 1, 1)
    assert (copies["precision"], copies["recall"]) == (0.3333, 0.5)
    assert copies["recall_by_kind"] == {"resized": 1.0, "cropped": 0.0}
    families = found["families"]  # 0 and 4 are copies of each other, and found as such
    assert (families["found_pairs"], families["precision"], families["recall"]) == (2, 1.0, 0.5)
    assert (found["together"]["right"], found["together"]["true_pairs"]) == (3, 6)
    assert found["by_embedding_alone"] == rates(np.arange(6), np.arange(6), np.array([]))


def test_nothing_found_has_no_precision():
    nothing = pairs_of([], np.ones(3, bool))
    assert rates(nothing, np.array([1, 2]), nothing)["precision"] is None
    assert rates(nothing, np.array([1, 2]), nothing)["recall"] == 0.0
    assert grouped(np.array(["", ""])) == []
    assert by_kind(LABELS, np.ones(len(LABELS), bool), nothing) == {"resized": 0.0, "cropped": 0.0}


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_of_copy_is_another_picture_of_the_same(kind):
    picture = to_pil(texture(0))
    copy = resize(from_pil(KINDS[kind](picture, np.random.default_rng(0))))
    again = resize(from_pil(KINDS[kind](picture, np.random.default_rng(0))))
    distance = float(sse(resize(from_pil(picture)), copy))
    assert 0 < distance < sse(copy, resize(texture(1)))
    assert np.array_equal(copy, again)


def test_copies_are_made_of_pictures_without_a_natural_family_and_stay_under_the_threshold(tmp_path):
    rows = []
    for place in range(3):
        to_pil(texture(place)).save(tmp_path / f"{place}.png")
        rows.append(Row(str(place), tmp_path / f"{place}.png", ""))
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "2.png")  # no copy is nearer to it than one colour
    labels = pd.DataFrame({"natural": ["", "n", ""]})
    copies, left_out = plant(rows, labels, 3, None)
    assert {copy.source for copy in copies} == {0}
    assert len(copies) + left_out == 8 and left_out >= 4
    for copy in copies:
        assert sse(resize(texture(0)), copy.image.astype(np.float32) / 255) < NEAR
    again, _ = plant(rows, labels, 3, None)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(copies, again, strict=True))
