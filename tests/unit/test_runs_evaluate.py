"""Evaluation against a truth whose figures can be worked out by hand."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score, roc_curve

from audit.errors import InputError
from audit.files import write_parquet
from audit.records import caption_id
from audit.runs.evaluate import auc, cluster_weights, evaluate, tpr_at_fpr, with_interval
from audit.runs.folder import RunFolder


def test_auc_and_tpr_equal_scikit_learns():
    generator = np.random.default_rng(0)
    positive = generator.random(400) < 0.3
    values = np.round(generator.normal(size=400) + 1.5 * positive, 1)
    weights = generator.integers(0, 4, 400).astype(float)
    assert auc(values, positive, weights) == pytest.approx(
        roc_auc_score(positive, values, sample_weight=weights)
    )
    fpr, tpr, _ = roc_curve(positive, values, drop_intermediate=False)
    assert tpr_at_fpr(values, positive, np.ones(400)) == pytest.approx(tpr[fpr <= 0.01].max())


def test_auc_by_hand():
    values = np.array([3.0, 1.0, 2.0, 1.0])
    positive = np.array([True, True, False, False])
    assert auc(values, positive, np.ones(4)) == (1 + 1 + 0 + 0.5) / 4
    assert auc(values, positive, np.array([1.0, 0, 1, 1])) == 1
    assert tpr_at_fpr(values, positive, np.ones(4)) == 0.5


def test_each_family_counts_once_within_its_group():
    families = np.array(["a", "a", "b", "a"])
    group = np.array([True, True, True, False])
    assert cluster_weights(families, group).tolist() == [0.5, 0.5, 1, 1]


def test_intervals_are_over_clusters():
    """100 equal rows of one family are one observation: its interval is as wide as that of two families."""
    values = np.array([1.0] * 100 + [0.0])
    families = np.array(["big"] * 100 + ["small"])

    def mean(weights):
        return float(np.sum(values * weights) / np.sum(weights))

    clustered = with_interval(mean, families, np.ones(101), 500)
    assert clustered["value"] == pytest.approx(100 / 101, abs=1e-4)
    assert clustered["interval_95"] == [0, 1]
    independent = with_interval(mean, np.arange(101), np.ones(101), 500)
    assert independent["interval_95"][0] > 0.9


def truth_rows():
    """Calibration: 120 ordinary ones, scored 0 to 119. Test: see the figures below."""
    rows = [("calibration", "once", 1, f"c{i}", "N", float(i), "") for i in range(120)]
    # of the memorised ones of 25 repeats or more, 3 of 4 exceed every ordinary one
    rows += [
        ("test", "multimodal", 25, "m1", "MV", 500.0, "MV"),
        ("test", "multimodal", 50, "m2", "MV", 50.5, "N"),
    ]
    rows += [
        ("test", "template", 25, "t1", "TV", 500.0, "TV"),
        ("test", "template", 25, "t1", "TV", 500.0, "MV"),
    ]
    rows += [
        ("test", "multimodal", 2, "m3", "", 118.5, "N"),
        ("test", "retrieved", 100, "r1", "RV", 7.0, "RV"),
    ]
    rows += [("test", "once", 1, f"o{i}", "N", float(i), "N") for i in range(0, 120, 2)]
    rows += [
        ("test", "once", 1, "lights", "N", 20.0, "RV"),
        ("test", "held_out", 0, "elsewhere", "N", 10.0, "RV"),
    ]
    return rows


@pytest.fixture
def run_and_truth(tmp_path):
    rows = truth_rows()
    table = pd.DataFrame(rows, columns=["split", "kind", "repeats", "family", "expected", "dcs", "verdict"])
    table["caption"] = [f"caption {i}" for i in range(len(table))]
    table["caption_id"] = table["caption"].map(caption_id)
    table["image"] = [f"image{i}" for i in range(len(table))]
    table["natural_family"] = table["family"] == "lights"
    extra = {"split": "calibration", "kind": "once", "repeats": 1, "family": "lights", "expected": "N"}
    truth = table.drop(columns=["dcs", "verdict", "caption_id"])
    truth = pd.concat(
        [truth, pd.DataFrame([{**extra, "caption": "not scored", "image": "light2", "natural_family": True}])]
    )
    truth.to_parquet(tmp_path / "truth.parquet")
    run = RunFolder.create(
        tmp_path / "run",
        {"model": "m", "model_sha256": "f" * 64, "seeds": [0], "guidance": 7.5, "noise": "cpu"},
    )
    write_parquet(pa.Table.from_pandas(table[["caption_id", "caption"]]), tmp_path / "run/input.parquet")
    scores = table[["caption_id", "caption", "dcs"]]
    run.append(
        {"scores": pa.Table.from_pandas(scores.assign(seed=0)), "captions": pa.Table.from_pandas(scores)}
    )
    verdicts = table.loc[table["verdict"] != "", ["caption_id", "caption", "verdict"]]
    neighbours = {"lights": "light2", "elsewhere": "light2"}
    verdicts = verdicts.assign(neighbour_id=table["family"].map(neighbours))
    run.append({"verdicts": pa.Table.from_pandas(verdicts, preserve_index=False)})
    (tmp_path / "run/verdicts.json").write_text(json.dumps({"seeds": [0, 1], "steps": 3}))
    return tmp_path / "run", tmp_path / "truth.parquet"


def test_scores_by_hand(run_and_truth):
    report = evaluate(*run_and_truth, bootstraps=50)
    assert report["captions"] == {"in_truth": 68, "scored": 68}
    dcs = report["scores"]["dcs"]
    assert dcs["memorised"] == {"captions": 4, "clusters": 3}
    assert dcs["ordinary"] == {"captions": 62, "clusters": 62}
    # 50.5 exceeds the even numbers up to 50 (26), and 20 and 10
    assert dcs["per_caption"]["auc"]["value"] == pytest.approx((3 * 62 + 28) / (4 * 62), abs=1e-4)
    assert dcs["per_cluster"]["auc"]["value"] == pytest.approx((2 * 62 + 28) / (3 * 62), abs=1e-4)
    assert dcs["per_caption"]["tpr_at_1pct_fpr"]["value"] == 0.75
    assert dcs["per_cluster"]["tpr_at_1pct_fpr"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    low, high = dcs["per_caption"]["auc"]["interval_95"]
    assert low <= dcs["per_caption"]["auc"]["value"] <= high


def test_dose_response_by_hand(run_and_truth):
    response = evaluate(*run_and_truth, bootstraps=5)["scores"]["dcs"]["dose_response"]
    # n = 120: at most 1 of 121 may exceed it, so it is the largest ordinary score
    assert response["threshold_1pct_fpr"] == 119 and response["ordinary_captions"] == 120
    curve = {(row["kind"], row["repeats"]): row for row in response["curve"]}
    assert curve["template", 25]["above_threshold"] == 1 and curve["template", 25]["captions"] == 2
    assert curve["template", 25]["clusters"] == 1
    assert curve["multimodal", 2]["above_threshold"] == 0
    assert curve["multimodal", 2]["mean_percentile"] == pytest.approx(100 * 119 / 120, abs=1e-4)
    assert set(curve) == {
        ("multimodal", 2), ("multimodal", 25), ("multimodal", 50), ("template", 25), ("retrieved", 100),
        ("once", 1), ("held_out", 0),
    }  # fmt: skip


def test_verdicts_by_hand(run_and_truth):
    verdicts = evaluate(*run_and_truth, bootstraps=50)["verdicts"]
    assert verdicts["captions"] == 67
    assert verdicts["correct_by_family"] == 1
    classes = {kind: row["per_caption"] for kind, row in verdicts["classes"].items()}
    # MV: m1 right, m2 missed, one template taken for it
    assert (classes["MV"]["precision"], classes["MV"]["recall"], classes["MV"]["f1"]["value"]) == (
        0.5,
        0.5,
        0.5,
    )
    assert (classes["TV"]["precision"], classes["TV"]["recall"]) == (1, 0.5)
    # RV: the right one, and one out of another family
    assert (classes["RV"]["precision"], classes["RV"]["recall"]) == (0.5, 1)
    assert classes["N"]["precision"] == pytest.approx(61 / 62, abs=1e-4)
    assert classes["N"]["recall"] == pytest.approx(61 / 62, abs=1e-4)
    assert verdicts["classes"]["MV"]["support"] == 2 and verdicts["classes"]["TV"]["clusters"] == 1
    # the template's family is one cluster, of which half was taken for MV: precision 1 / (1 + .5)
    assert verdicts["classes"]["MV"]["per_cluster"]["precision"] == pytest.approx(2 / 3, abs=1e-4)
    assert verdicts["confusion"]["N"] == {"MV": 0, "N": 60, "RV": 2, "TV": 0}
    assert verdicts["copied"]["MV"] == {"captions": 2, "copied": 1, "right_class": 1}
    assert verdicts["copied"]["TV"] == {"captions": 2, "copied": 2, "right_class": 1}


def test_what_a_composed_audit_finds_by_hand(run_and_truth):
    """68 captions, 20 evaluations each in full: 1,360. One step of all takes 69, so a tenth leaves 67: 2 captions of 24."""
    report = evaluate(*run_and_truth, bootstraps=5)["composed"]["dcs"]
    assert (report["captions"], report["finds"], report["planted_finds"]) == (68, 6, 4)
    assert report["evaluations_of_full_sampling"] == 68 * 20
    tenth = next(row for row in report["curve"] if row["share_of_evaluations"] == 0.1)
    # the highest are m1 and the first t1: two copies, both planted
    assert (tenth["captions_generated"], tenth["finds"], tenth["planted_finds"]) == (2, 2, 2)
    assert tenth["share_of_finds"] == pytest.approx(1 / 3, abs=1e-4)
    assert report["curve"][0]["captions_generated"] == 0


def test_verdict_rates_equal_scikit_learns(run_and_truth):
    from audit.runs.evaluate import rates

    generator = np.random.default_rng(3)
    expected = generator.choice(["MV", "TV", "N"], 200)
    decided = np.where(generator.random(200) < 0.7, expected, "N")
    ours = rates(expected, decided, "TV", np.arange(200), np.ones(200), 20)
    options = {"labels": ["TV"], "average": "macro"}
    assert ours["precision"] == pytest.approx(precision_score(expected, decided, **options), abs=1e-4)
    assert ours["recall"] == pytest.approx(recall_score(expected, decided, **options), abs=1e-4)
    assert ours["f1"]["value"] == pytest.approx(f1_score(expected, decided, **options), abs=1e-4)


def test_bad_truths_are_told(run_and_truth, tmp_path):
    run, truth = run_and_truth
    with pytest.raises(InputError, match="no captions of split 'validation'; it has"):
        evaluate(run, truth, split="validation")
    pd.DataFrame({"caption": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="lacks the columns kind, repeats"):
        evaluate(run, tmp_path / "other.parquet")
    with pytest.raises(InputError, match="There is no file"):
        evaluate(run, tmp_path / "nowhere.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="no readable parquet"):
        evaluate(run, tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="is no run"):
        evaluate(tmp_path, truth)
    table = pd.read_parquet(truth)
    for column, value, words in (
        ("repeats", "many", "has to hold whole numbers"),
        ("caption", None, "rows without a caption"),
    ):
        table.assign(**{column: value}).to_parquet(tmp_path / "other.parquet")
        with pytest.raises(InputError, match=words):
            evaluate(run, tmp_path / "other.parquet")


@pytest.mark.parametrize("text", ["[]", "{", '{"model": "m"}', "3"])
def test_a_damaged_description_is_told(run_and_truth, text):
    run, truth = run_and_truth
    (run / "run.json").write_text(text)
    with pytest.raises(InputError, match="start the run anew elsewhere"):
        evaluate(run, truth)


def test_a_run_that_is_not_scored_yet_is_told(run_and_truth, tmp_path):
    run, truth = run_and_truth
    shutil.rmtree(run / "captions")
    with pytest.raises(InputError, match="has no scored captions yet"):
        evaluate(run, truth)


def test_verdicts_of_nothing_that_is_expected_are_not_available(run_and_truth, tmp_path):
    run, truth = run_and_truth
    pd.read_parquet(truth).assign(expected="").to_parquet(truth)
    assert "was decided" in evaluate(run, truth, bootstraps=5)["verdicts"]["not_available"]


def test_a_score_that_is_no_number_is_no_hit(run_and_truth):
    run, truth = run_and_truth
    part = run / "captions" / "part-000000000000.parquet"
    table = pd.read_parquet(part)
    table.loc[table["dcs"] == 500, "dcs"] = float("nan")
    table.loc[0, "dcs"] = float("nan")
    table.to_parquet(part)
    dcs = evaluate(run, truth, bootstraps=5)["scores"]["dcs"]
    assert dcs["not_a_number"] == 3
    assert dcs["per_caption"]["auc"]["value"] < 0.3 and dcs["per_caption"]["tpr_at_1pct_fpr"]["value"] == 0
    assert all(point["above_threshold"] == 0 for point in dcs["dose_response"]["curve"])
    assert dcs["dose_response"]["ordinary_captions"] == 119
