"""A run against the truth: how well its scores and verdicts tell what was planted.

Intervals are bootstrapped over clusters (column ``family``), since captions of one family are no independent
observations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import InputError
from audit.records import caption_id
from audit.runs.folder import RunFolder
from audit.runs.plan import BASELINE_SAMPLES, BASELINE_STEPS, plan
from audit.runs.scoring import NAMES, PER_CAPTION
from audit.scores.calibration import conformal_threshold

MEMORISED = ("multimodal", "template")
ORDINARY = ("once", "held_out")
REPEATS = 25
"""Repeats from which a caption counts as memorised by plan."""
FPR = 0.01
CLASSES = ("MV", "RV", "TV", "N")
COPIES = ("MV", "RV", "TV", "PV")
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Of the evaluations that full samples of every caption take."""
REQUIRED = ("caption", "kind", "repeats", "family", "split", "expected")
BOOTSTRAPS = 1000


def evaluate(run: Path, truth: Path, *, split: str = "test", bootstraps: int = BOOTSTRAPS) -> dict[str, Any]:
    """Scores and verdicts of a run against a truth table.

    Returns
    -------
    ``scores`` (name -> AUC, TPR at 1% FPR, dose-response), and ``verdicts`` where the run has them.
    """
    folder = RunFolder.open(run)
    table = read_truth(truth)
    chosen = table.loc[table["split"] == split]
    if chosen.empty:
        raise InputError(
            f"The truth {truth} has no captions of split {split!r}; it has {sorted(set(table['split']))}."
        )
    captions = folder.table("captions")
    if captions.empty:
        raise InputError(f"The run {run} has no scored captions yet; go on with `score`.")
    scored = table.merge(captions[["caption_id", *names_of(captions)]], on="caption_id", how="inner")
    count = int((scored["split"].to_numpy() == split).sum())
    if not count:
        raise InputError(f"None of the captions of split {split!r} were scored in {run}; score them first.")
    report: dict[str, Any] = {
        "run": str(run),
        "split": split,
        "captions": {"in_truth": len(chosen), "scored": count},
        "model": folder.description["model"],
        "model_sha256": folder.description["model_sha256"],
        "seeds": folder.description["seeds"],
        "guidance": folder.description["guidance"],
        "scores": {name: evaluate_score(scored, name, split, bootstraps) for name in names_of(captions)},
    }
    verdicts = folder.table("verdicts")
    if len(verdicts):
        require(verdicts, ("caption_id", "verdict", "neighbour_id"), f"The table verdicts of the run {run}")
        judged = chosen.merge(verdicts.drop(columns="caption", errors="ignore"), on="caption_id", how="inner")
        judged = judged.loc[judged["expected"] != ""].reset_index(drop=True)
        report["verdicts"] = (
            evaluate_verdicts(judged, image_families(table), bootstraps)
            if len(judged)
            else {"not_available": f"No caption of split {split!r} that has an expected verdict was decided."}
        )
        whole = scored.loc[scored["split"] == split].merge(
            verdicts[["caption_id", "verdict"]], on="caption_id"
        )
        if len(whole) == count:
            report["composed"] = {
                name: composed(whole, name, folder.description["seeds"], read_sampling(run))
                for name in names_of(captions)
                if name not in PER_CAPTION
            }
    return report


def read_sampling(run: Path) -> dict[str, Any]:
    """How a run's full samples were made: ``seeds`` and ``steps``."""
    try:
        sampling = json.loads((run / "verdicts.json").read_text(encoding="utf-8"))
        return {"sample_seeds": list(sampling["seeds"]), "steps": int(sampling["steps"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run / 'verdicts.json'} is missing or damaged; decide the run anew.") from error


def composed(rows: pd.DataFrame, name: str, seeds: Sequence[int], sampling: dict[str, Any]) -> dict[str, Any]:
    """What one step of all captions and full samples of the highest would have found, of what all of them found.

    `rows` are captions that were all generated in full. A find is a verdict of a copy; that it was planted is counted
    apart. Prevalence stands beside it: where copies are rarer, a share of the captions holds more of them.
    """
    total = len(rows)
    by_score = rows.iloc[np.argsort(-lowest_if_missing(rows[name].to_numpy(float)), kind="stable")]
    find = by_score["verdict"].isin(COPIES).to_numpy()
    planted = find & by_score["expected"].isin(COPIES).to_numpy()
    # edge scores are made of the highest only; an audit by full samples alone needs none
    everything = plan(total, seeds=seeds, scores=PER_CAPTION, top=total, **sampling).sampling
    each = plan(total, seeds=seeds, scores=(name,), top=1, **sampling).sampling
    one = plan(total, seeds=seeds, scores=(name,), top=0, **sampling).evaluations
    curve = []
    for share in SHARES:
        top = int(max(0, share * everything - one) / each)
        curve.append(
            {
                "share_of_evaluations": share,
                "captions_generated": top,
                "finds": int(find[:top].sum()),
                "share_of_finds": rounded(find[:top].sum() / find.sum()) if find.any() else None,
                "planted_finds": int(planted[:top].sum()),
            }
        )
    return {
        "captions": total,
        "finds": int(find.sum()),
        "planted_finds": int(planted.sum()),
        "prevalence": rounded(find.mean()),
        "evaluations_of_full_sampling": everything,
        "evaluations_of_500_x_50_computed": total * BASELINE_SAMPLES * BASELINE_STEPS,
        "curve": curve,
    }


def names_of(captions: pd.DataFrame) -> list[str]:
    """The scores that a run has."""
    require(captions, ("caption_id",), "The run's table captions")
    return [name for name in NAMES if name in captions.columns]


def require(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """InputError where a table lacks a column."""
    absent = [name for name in columns if name not in table.columns]
    if absent:
        raise InputError(f"{what} lacks the columns {', '.join(absent)}; write it anew.")


def read_truth(path: Path) -> pd.DataFrame:
    """The truth table, one row a caption."""
    try:
        table = pq.read_table(path).to_pandas()
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the path.") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"The file {path} is no readable parquet file; write it anew.") from error
    require(table, REQUIRED, f"The truth {path}")
    if table["caption"].isna().any():
        raise InputError(f"The truth {path} has rows without a caption; write one into each.")
    try:
        table["repeats"] = table["repeats"].fillna(0).astype(int)
    except (ValueError, TypeError) as error:
        raise InputError(f"The column repeats of the truth {path} has to hold whole numbers.") from error
    for name in ("caption", "kind", "family", "split"):
        table[name] = table[name].astype(str)
    table["expected"] = table["expected"].fillna("").astype(str)
    if "natural_family" not in table.columns:
        table["natural_family"] = False
    table["natural_family"] = table["natural_family"].fillna(False).astype(bool)
    table["caption_id"] = [caption_id(text) for text in table["caption"]]
    return table.drop_duplicates("caption_id")


def evaluate_score(scored: pd.DataFrame, name: str, split: str, bootstraps: int) -> dict[str, Any]:
    """AUC and TPR at 1% FPR per caption and per cluster, and the dose-response curve of one score."""
    rows = scored.loc[scored["split"] == split]
    planted = rows["kind"].isin(MEMORISED) & (rows["repeats"] >= REPEATS)
    ordinary = rows["kind"].isin(ORDINARY)
    tested = rows.loc[planted | ordinary]
    positive = planted.loc[tested.index].to_numpy()
    values, families = lowest_if_missing(tested[name].to_numpy(float)), tested["family"].to_numpy()
    result: dict[str, Any] = {
        "not_a_number": int((~np.isfinite(rows[name].to_numpy(float))).sum()),
        "memorised": {"captions": int(positive.sum()), "clusters": len(set(families[positive]))},
        "ordinary": {"captions": int((~positive).sum()), "clusters": len(set(families[~positive]))},
    }
    if positive.any() and not positive.all():
        for unit, weight in (
            ("per_caption", np.ones(len(tested))),
            ("per_cluster", cluster_weights(families, positive)),
        ):
            result[unit] = {
                "auc": with_interval(lambda w: auc(values, positive, w), families, weight, bootstraps),
                "tpr_at_1pct_fpr": with_interval(
                    lambda w: tpr_at_fpr(values, positive, w), families, weight, bootstraps
                ),
            }
    result["dose_response"] = dose_response(scored, rows, name)
    return result


def lowest_if_missing(values: np.ndarray) -> np.ndarray:
    """Scores in which one that is no number stands below all others: it found nothing."""
    return np.where(np.isnan(values), -np.inf, values)


def cluster_weights(families: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Weights under which each family counts once within its group."""
    keys = pd.Series(list(zip(families, group, strict=True)))
    return 1.0 / keys.map(keys.value_counts()).to_numpy(float)


def auc(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Weighted probability that a positive exceeds a negative, ties counted half.

    Examples
    --------
    >>> auc(np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False]), np.ones(4))
    0.625
    """
    levels, place = np.unique(values, return_inverse=True)
    up = np.bincount(place, weights * positive, len(levels))
    down = np.bincount(place, weights * ~positive, len(levels))
    below = np.cumsum(down) - down
    return float((up * (below + down / 2)).sum() / (up.sum() * down.sum()))


def tpr_at_fpr(values: np.ndarray, positive: np.ndarray, weights: np.ndarray, fpr: float = FPR) -> float:
    """Largest weighted share of positives at or above a threshold that at most `fpr` of the negatives reach.

    Examples
    --------
    >>> tpr_at_fpr(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False]), np.ones(4))
    0.5
    """
    levels, place = np.unique(values, return_inverse=True)
    up = np.bincount(place, weights * positive, len(levels))[::-1].cumsum()
    down = np.bincount(place, weights * ~positive, len(levels))[::-1].cumsum()
    if not up[-1] or not down[-1]:
        return float("nan")
    allowed = down <= fpr * down[-1] + 1e-9
    return float(up[allowed].max(initial=0.0) / up[-1])


def with_interval(
    statistic: Callable[[np.ndarray], float], families: np.ndarray, weights: np.ndarray, bootstraps: int
) -> dict[str, Any]:
    """A statistic of row weights with its 95% bootstrap interval over families (percentile method)."""
    _, place = np.unique(families, return_inverse=True)
    clusters = place.max() + 1
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(bootstraps):
        times = np.bincount(generator.integers(clusters, size=clusters), minlength=clusters)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws.append(statistic(weights * times[place]))
    finite = [draw for draw in draws if np.isfinite(draw)]
    interval = [rounded(bound) for bound in np.percentile(finite, [2.5, 97.5])] if finite else None
    return {"value": rounded(statistic(weights)), "interval_95": interval}


def rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def dose_response(scored: pd.DataFrame, rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """How much of each kind, at each number of repeats, lies above what ordinary captions reach.

    The threshold at 1% FPR comes from the ordinary captions of the calibration split.
    """
    calibration = scored.loc[(scored["split"] == "calibration") & scored["kind"].isin(ORDINARY), name]
    ordinary = np.sort(calibration.dropna().to_numpy(float))
    try:
        threshold = conformal_threshold(ordinary, FPR)
    except InputError as error:
        return {"not_available": str(error)}
    kinds, repeats = rows["kind"].to_numpy(str), rows["repeats"].to_numpy(int)
    values, families = lowest_if_missing(rows[name].to_numpy(float)), rows["family"].to_numpy(str)
    curve = []
    for kind, dose in sorted(set(zip(kinds.tolist(), repeats.tolist(), strict=True))):
        group = (kinds == kind) & (repeats == dose)
        below = np.searchsorted(ordinary, values[group], side="left") / len(ordinary)
        curve.append(
            {
                "kind": kind,
                "repeats": dose,
                "captions": int(group.sum()),
                "clusters": len(set(families[group])),
                "above_threshold": rounded((values[group] > threshold).mean()),
                "mean_percentile": rounded(100 * below.mean()),
            }
        )
    return {"threshold_1pct_fpr": threshold, "ordinary_captions": len(ordinary), "curve": curve}


def image_families(truth: pd.DataFrame) -> dict[str, str]:
    """Training image -> its family."""
    if "image" not in truth.columns:
        return {}
    return dict(zip(truth["image"].astype(str), truth["family"].astype(str), strict=True))


def evaluate_verdicts(rows: pd.DataFrame, families: dict[str, str], bootstraps: int) -> dict[str, Any]:
    """Precision, recall and F1 of each class, per caption and per cluster.

    A retrieved copy out of the caption's own natural family counts as expected, and is counted apart.
    """
    neighbours = rows["neighbour_id"].map(lambda image: families.get(str(image))).astype(object)
    by_family = (
        (rows["verdict"] == "RV")
        & (rows["expected"] != "RV")
        & rows["natural_family"]
        & (neighbours == rows["family"].astype(str))
    ).to_numpy()
    expected = rows["expected"].to_numpy(str)
    decided = np.where(by_family, expected, rows["verdict"].to_numpy(str))
    names = rows["family"].to_numpy()
    weights = {"per_caption": np.ones(len(rows)), "per_cluster": cluster_weights(names, expected)}
    return {
        "captions": len(rows),
        "clusters": len(set(names)),
        "correct_by_family": int(by_family.sum()),
        "undetermined": int((decided == "U").sum()),
        "confusion": confusion(expected, rows["verdict"].to_numpy(str)),
        "classes": {
            kind: {
                "support": int((expected == kind).sum()),
                "clusters": len(set(names[expected == kind])),
                "decided": int((decided == kind).sum()),
                **{
                    unit: rates(expected, decided, kind, names, weight, bootstraps)
                    for unit, weight in weights.items()
                },
            }
            for kind in CLASSES
        },
        "copied": copied(expected, decided),
    }


def rates(
    expected: np.ndarray,
    decided: np.ndarray,
    kind: str,
    families: np.ndarray,
    weights: np.ndarray,
    bootstraps: int,
) -> dict[str, Any]:
    """Precision, recall and F1 of one class, F1 with its interval."""
    truly, said = expected == kind, decided == kind

    def share(of: np.ndarray, among: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda w: float(np.float64((w * of * among).sum()) / (w * among).sum())

    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": rounded(share(truly, said)(weights)),
            "recall": rounded(share(said, truly)(weights)),
            "f1": with_interval(lambda w: f1(expected, decided, kind, w), families, weights, bootstraps),
        }


def f1(expected: np.ndarray, decided: np.ndarray, kind: str, weights: np.ndarray) -> float:
    """Weighted F1 of one class; NaN where it neither occurs nor is decided.

    Examples
    --------
    >>> f1(np.array(["MV", "MV", "N"]), np.array(["MV", "N", "N"]), "MV", np.array([1.0, 1.0, 1.0]))
    0.6666666666666666
    """
    truly, said = expected == kind, decided == kind
    return float(
        np.float64(2 * (weights * truly * said).sum()) / ((weights * truly).sum() + (weights * said).sum())
    )


def copied(expected: np.ndarray, decided: np.ndarray) -> dict[str, Any]:
    """What the model did and what the code did, apart.

    Was there a copy at all, and given one, was its class right?
    """
    result = {}
    for kind in COPIES:
        rows = expected == kind
        copies = rows & np.isin(decided, COPIES)
        result[kind] = {
            "captions": int(rows.sum()),
            "copied": int(copies.sum()),
            "right_class": int((copies & (decided == kind)).sum()),
        }
    return result


def confusion(expected: np.ndarray, decided: np.ndarray) -> dict[str, dict[str, int]]:
    """Expected -> decided -> captions, as decided by the thresholds."""
    table = pd.crosstab(expected, decided)
    return {str(row): {str(column): int(n) for column, n in table.loc[row].items()} for row in table.index}
