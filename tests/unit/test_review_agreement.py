"""Agreement: published worked examples, the libraries of that name, properties, and what is not defined."""

import time
from datetime import UTC, datetime, timedelta

import krippendorff
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score

from audit.errors import InputError
from audit.review.agreement import (
    ALL,
    DISAGREED,
    ONE_ANSWER,
    alpha,
    confusion,
    decided,
    gold,
    kappa,
    mask_agreement,
    pace,
    pairs,
)
from audit.review.events import LABELS
from audit.settings import settings

START = datetime(2026, 1, 1, tzinfo=UTC)


def labels_of(rows, adjudicated=(), when=None):
    """A table of labels out of (item, who, label); those of `adjudicated` come from adjudicators."""
    every = [(*row, False) for row in rows] + [(*row, True) for row in adjudicated]
    table = pd.DataFrame(every, columns=["item_id", "who", "label", "adjudicated"]).assign(others_shown=False)
    table["caption_id"] = table["item_id"]
    table["imported"] = False
    table["when"] = when or [(START + timedelta(seconds=10 * i)).isoformat() for i in range(len(table))]
    return table


def labels_of_matrix(matrix):
    """Rows are people, columns items; a number is the place of a kind, nan is nothing."""
    return labels_of(
        [
            (f"item-{item:04d}", f"person-{who}", LABELS[int(value)])
            for who, row in enumerate(matrix)
            for item, value in enumerate(row)
            if np.isfinite(value)
        ]
    )


def matrix_of(text):
    return np.array([[np.nan if each == "." else int(each) - 1 for each in line.split()] for line in text])


KRIPPENDORFF_2011 = matrix_of(
    (
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    )
)
"""Krippendorff 2011, section C: any number of observers, missing data; nominal alpha is .743."""


def random_matrix(seed, people=4, items=60, kinds=5, agree=0.6, missing=0.3):
    rng = np.random.default_rng(seed)
    truth = rng.integers(kinds, size=items)
    said = np.where(rng.random((people, items)) < agree, truth, rng.integers(kinds, size=(people, items)))
    return np.where(rng.random((people, items)) < missing, np.nan, said.astype(float))


def by_library(matrix):
    return krippendorff.alpha(matrix, level_of_measurement="nominal")


# Alpha


def test_alpha_of_krippendorffs_own_example():
    found = alpha(labels_of_matrix(KRIPPENDORFF_2011))
    assert round(found[ALL].value, 3) == 0.743
    assert found[ALL].value == pytest.approx(by_library(KRIPPENDORFF_2011), abs=1e-12)
    assert found[ALL].items == found[ALL].clusters == 11  # one item has one label only
    assert found[ALL].low < found[ALL].value < found[ALL].high <= 1


@pytest.mark.parametrize("seed", range(6))
def test_alpha_is_that_of_the_library_over_all_and_by_kind(seed):
    matrix = random_matrix(seed, people=2 + seed)
    found = alpha(labels_of_matrix(matrix), bootstraps=2)
    assert found[ALL].value == pytest.approx(by_library(matrix), abs=1e-12)
    for place, kind in enumerate(LABELS):
        against = np.where(np.isnan(matrix), np.nan, matrix == place)
        assert found[kind].value == pytest.approx(by_library(against), abs=1e-12)


def test_alpha_of_full_agreement_is_one_and_of_full_disagreement_below_zero():
    agreed = np.tile(np.arange(20) % 3, (3, 1))
    assert alpha(labels_of_matrix(agreed))[ALL].value == 1
    opposed = np.stack([np.zeros(20), np.ones(20)])
    assert alpha(labels_of_matrix(opposed))[ALL].value < 0


# Kappa


def test_kappa_of_the_textbook_table():
    """Two readers of 50 proposals: 20 both yes, 15 both no, 5 and 10 apart; observed .7, expected .5, kappa .4."""
    cells = [("MV", "MV", 20), ("MV", "N", 5), ("N", "MV", 10), ("N", "N", 15)]
    said = [(one, other) for one, other, count in cells for _ in range(count)]
    rows = [
        (f"{i}", who, label) for i, each in enumerate(said) for who, label in zip("AB", each, strict=True)
    ]
    found = kappa(labels_of(rows), "A", "B")
    assert found[ALL].value == pytest.approx(0.4) == found["MV"].value == found["N"].value
    assert found["TV"].value is None and "Nobody gave the label TV" in found["TV"].reason
    assert found[ALL].items == 50
    # the analytic standard error: sqrt(po (1 - po) / (n (1 - pe)^2))
    error = np.sqrt(0.7 * 0.3 / 50) / 0.5 * norm.ppf(0.975)
    assert found[ALL].low == pytest.approx(0.4 - error, abs=0.06)
    assert found[ALL].high == pytest.approx(0.4 + error, abs=0.06)


@pytest.mark.parametrize("seed", range(6))
def test_kappa_is_that_of_the_library_over_all_and_by_kind(seed):
    matrix = random_matrix(seed, people=3)
    found = kappa(labels_of_matrix(matrix), "person-0", "person-2", bootstraps=2)
    there = np.isfinite(matrix[0]) & np.isfinite(matrix[2])
    one, other = matrix[0, there], matrix[2, there]
    assert found[ALL].value == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
    for place, kind in enumerate(LABELS):
        assert found[kind].value == pytest.approx(cohen_kappa_score(one == place, other == place), abs=1e-12)
    assert found[ALL].items == there.sum()


def test_kappa_is_the_same_either_way_round():
    labels = labels_of_matrix(random_matrix(1))
    there, back = kappa(labels, "person-0", "person-1"), kappa(labels, "person-1", "person-0")
    for name in (ALL, *LABELS):
        assert there[name].value == pytest.approx(back[name].value, abs=1e-12)


def test_pairs_have_something_in_common():
    labels = labels_of(
        [("1", "C", "N"), *((item, who, "MV") for item in "23" for who in "AB"), ("3", "C", "N")]
    )
    assert pairs(labels) == [("A", "B"), ("A", "C"), ("B", "C")]
    assert pairs(labels_of([("1", "A", "N"), ("2", "B", "N")])) == []


# Intervals and clusters


def test_the_same_labels_have_the_same_interval():
    labels = labels_of_matrix(random_matrix(2))
    assert alpha(labels) == alpha(labels.sample(frac=1, random_state=0))
    assert alpha(labels)[ALL] == alpha(labels.iloc[::-1])[ALL]


def test_intervals_hold_the_value_of_the_whole_as_often_as_they_say():
    """Of samples of a large table, the interval holds that table's alpha about 95 times in a hundred."""
    everything = random_matrix(3, people=2, items=20_000, missing=0)
    truth = by_library(everything)
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        part = everything[:, rng.choice(20_000, 80, replace=False)]
        found = alpha(labels_of_matrix(part), bootstraps=300)[ALL]
        held += found.low <= truth <= found.high
    assert 87 <= held <= 100


def test_an_item_repeated_in_its_cluster_narrows_nothing():
    rng = np.random.default_rng(4)
    base = random_matrix(4, people=2, items=40, missing=0)
    repeated = np.repeat(base, 10, axis=1)
    labels = labels_of_matrix(repeated)
    cluster = {f"item-{item:04d}": item // 10 for item in range(400)}
    one, by_item, by_cluster = (
        alpha(labels_of_matrix(base))[ALL],
        alpha(labels)[ALL],
        alpha(labels, cluster)[ALL],
    )
    assert by_cluster.clusters == 40 and by_cluster.items == by_item.items == 400
    width = by_cluster.high - by_cluster.low
    assert width == pytest.approx(one.high - one.low, rel=0.05)
    assert by_item.high - by_item.low < 0.5 * width
    # each cluster once is what one item of each says, whatever their sizes
    sizes = rng.integers(1, 9, 40)
    uneven = labels_of_matrix(np.repeat(base, sizes, axis=1))
    of = dict(zip(sorted(set(uneven["item_id"])), np.repeat(np.arange(40), sizes).tolist(), strict=True))
    once = alpha(uneven, of, each_once=True)[ALL]
    assert once.value == pytest.approx(one.value, abs=1e-12)
    assert (once.low, once.high) == pytest.approx((one.low, one.high), abs=1e-12)
    both = kappa(uneven, "person-0", "person-1", of, each_once=True)[ALL]
    assert both.value == pytest.approx(cohen_kappa_score(*base), abs=1e-12)


def test_an_item_without_a_cluster_is_one_by_itself():
    labels = labels_of_matrix(random_matrix(5, people=2, items=6, missing=0))
    assert alpha(labels, {"item-0000": "a", "item-0001": "a", "item-0002": ""})[ALL].clusters == 5
    assert alpha(labels, {"item-0000": "item-0001"})[ALL].clusters == 6


def test_a_thousand_items_take_a_thousand_draws_in_two_seconds():
    labels = labels_of_matrix(random_matrix(6, people=10, items=1000, missing=0.8))
    start = time.perf_counter()
    alpha(labels)
    assert time.perf_counter() - start < 2


# What is not defined


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "No item has labels of two people"),
        ([("1", "A", "MV"), ("2", "A", "N")], "No item has labels of two people"),
        ([("1", "A", "MV"), ("2", "B", "N")], "No item has labels of two people|labelled no item both"),
        ([(item, who, "MV") for item in "123" for who in "AB"], "All labels are MV"),
    ],
)
def test_what_is_not_defined_says_why_and_is_no_number(rows, reason):
    labels = labels_of(rows)
    for found in (alpha(labels), kappa(labels, "A", "B")):
        for name in (ALL, *LABELS):
            assert found[name].value is None and found[name].low is None and found[name].high is None
            assert found[name].reason
        assert pd.Series([found[ALL].reason]).str.contains(reason).all()


def test_one_cluster_has_a_value_and_no_interval():
    labels = labels_of_matrix(random_matrix(7, missing=0))
    found = alpha(labels, dict.fromkeys(labels["item_id"], "one"))[ALL]
    assert found.value is not None and found.low is None and found.clusters == 1


def test_what_an_adjudicator_said_is_no_agreement():
    rows = [(f"{i}", who, "MV" if i % 2 else "N") for i in range(8) for who in "AB"]
    alone = labels_of(rows)
    with_judge = labels_of(rows, [(f"{i}", "J", "TV") for i in range(8)])
    assert alpha(alone) == alpha(with_judge)
    assert kappa(with_judge, "A", "J")[ALL].value is None


def test_what_was_said_after_the_others_were_shown_is_no_agreement():
    rows = [(f"{i}", who, "MV" if i % 2 else "N") for i in range(8) for who in "AB"]
    seen = labels_of([(f"{i}", "C", "TV") for i in range(8)]).assign(others_shown=True)
    both = pd.concat([labels_of(rows), seen], ignore_index=True)
    assert alpha(both) == alpha(labels_of(rows)) and pairs(both) == [("A", "B")]
    assert decided(both) == decided(labels_of(rows)) == {f"{i}": "MV" if i % 2 else "N" for i in range(8)}
    copied = labels_of([("1", "A", "MV"), ("2", "A", "MV")]), labels_of([("1", "B", "MV"), ("2", "B", "N")])
    both = pd.concat([copied[0], copied[1].assign(others_shown=True)], ignore_index=True)
    assert decided(both) == {"1": ONE_ANSWER, "2": ONE_ANSWER}
    assert decided(both.assign(others_shown=True)) == {"1": ONE_ANSWER, "2": ONE_ANSWER}


def test_labels_of_another_kind_are_refused():
    with pytest.raises(InputError, match="'X' is no label"):
        alpha(labels_of([("1", "A", "X")]))


# People and machine, gold, pace


def test_decided_is_what_all_say_or_the_adjudicator():
    rows = [("1", "A", "MV"), ("1", "B", "MV"), ("2", "A", "N"), ("2", "B", "TV"), ("3", "A", "RV")]
    rows += [("4", "A", "N"), ("4", "B", "TV")]
    found = decided(labels_of(rows, [("2", "J", "TV")]))
    assert found == {"1": "MV", "2": "TV", "3": ONE_ANSWER, "4": DISAGREED}
    assert decided(labels_of([])) == {}


def test_one_person_is_no_people_unless_one_only_is_asked(monkeypatch):
    twice = labels_of([("1", "A", "MV"), ("2", "A", "MV")])
    twice["caption_id"] = "the same"  # in two queues
    assert decided(twice, by="caption_id") == {"the same": ONE_ANSWER}
    assert confusion(twice, {"1": "MV"}).loc["MV", [ONE_ANSWER, "MV"]].tolist() == [1, 0]
    assert decided(labels_of([], [("1", "J", "TV")])) == {"1": "TV"}
    monkeypatch.setattr(settings(), "annotators", 1)
    assert decided(twice) == {"1": "MV", "2": "MV"}


def test_confusion_by_caption_and_by_cluster():
    rows = [(f"{i}", "A", label) for i, label in enumerate(["MV", "MV", "N", "N", "TV"])]
    rows += [(f"{i}", "B", label) for i, label in enumerate(["MV", "MV", "N", "N", "N"])]
    verdicts = {"0": "MV", "1": "MV", "2": "MV", "3": "U", "4": "TV", "9": "N"}
    table = confusion(labels_of(rows), verdicts)
    assert list(table.columns) == [*LABELS, DISAGREED, ONE_ANSWER] and list(table.index) == [*LABELS, "U"]
    assert table.loc["MV", ["MV", "N"]].tolist() == [2, 1]
    assert table.loc["U", "N"] == table.loc["TV", DISAGREED] == 1
    assert table.to_numpy().sum() == 5
    clusters = confusion(labels_of(rows), verdicts, {"0": "a", "1": "a", "2": "a"})
    assert clusters.loc["MV", ["MV", "N"]].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert clusters.to_numpy().sum() == pytest.approx(3)
    assert confusion(labels_of([]), verdicts).to_numpy().sum() == 0


def test_gold_items_by_hand():
    """9 right of 10: Wilson's interval is (.596, .982)."""
    rows = [(f"{i}", "A", "MV" if i else "N") for i in range(10)] + [("99", "A", "N"), ("99", "B", "N")]
    (ada, bo) = gold(labels_of(rows), {f"{i}": "MV" for i in range(10)} | {"99": ""})
    assert (ada.who, ada.right, ada.figure.items, ada.figure.value) == ("A", 9, 10, 0.9)
    assert (ada.figure.low, ada.figure.high) == pytest.approx((0.596, 0.982), abs=5e-4)
    assert bo.figure.value is None and "None of the items" in bo.figure.reason


def test_pace_leaves_pauses_out():
    seconds = [0, 10, 20, 20 + 301, 20 + 301 + 40]
    when = [(START + timedelta(seconds=each)).isoformat(timespec="microseconds") for each in seconds]
    labels = labels_of(
        [(f"{i}", "A", "N") for i in range(5)] + [("0", "B", "N")], when=[*when[::-1], when[0]]
    )
    ada, bo = pace(labels)
    assert (ada.labels, ada.hours) == (5, pytest.approx(60 / 3600))
    assert ada.per_hour == pytest.approx(3 / (60 / 3600))
    assert bo.per_hour is None and bo.labels == 1
    labels["imported"] = labels["who"] == "A"  # all of them at the instant of the import
    assert [(each.who, each.labels, each.per_hour) for each in pace(labels)] == [
        ("A", 5, None),
        ("B", 1, None),
    ]


# Masks


def test_iou_of_masks_that_two_people_drew():
    def without(top, bottom):
        mask = np.ones((256, 256), bool)
        mask[top:bottom, :100] = False
        return mask

    drawn = [
        ("t1", "A", without(0, 5)),
        ("t1", "A", without(0, 40)),
        ("t1", "B", without(20, 60)),
        ("t2", "A", without(0, 10)),
        ("t2", "B", without(0, 10)),
        ("t3", "A", without(0, 10)),
    ]
    table, mean = mask_agreement(drawn)
    assert table.to_dict("records") == [
        {"template_id": "t1", "first": "A", "second": "B", "iou": pytest.approx(20 / 60)},
        {"template_id": "t2", "first": "A", "second": "B", "iou": 1.0},
    ]
    assert mean.value == pytest.approx(2 / 3) and mean.clusters == 2
    nothing, figure = mask_agreement(drawn[5:])
    assert nothing.empty and "two people drew by themselves" in figure.reason
