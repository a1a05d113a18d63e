"""How often duplicates of a training set come back in a run: of each cluster, and the rate by kind of duplication.

A run is joined by caption, and its copies by the pictures that they name; verdicts that were made with another
training set are left out, for they say nothing of this one. What it did not look at stands in no denominator: a caption
that was not generated in full is not one that did not come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import binomtest

from audit.errors import InputError
from audit.records import VerdictKind, caption_id
from audit.runs.calibrate import find_calibration
from audit.runs.compared import other_training_set
from audit.runs.duplicates import Duplicates
from audit.runs.folder import RunFolder
from audit.runs.results import SCORES

FPR = 0.01
COPIES = ", ".join(
    f"'{kind.value}'" for kind in (VerdictKind.MV, VerdictKind.TV, VerdictKind.RV, VerdictKind.PV)
)
BINS = (1, 2, 5, 10, 25, 50, 100)
"""Times from which a bin of the rates begins."""
SERIES = ("once", "multimodal", "image_only", "template")
"""Kinds of duplication; each caption is in one."""


@dataclass(frozen=True)
class Regurgitation:
    """What a run says about duplicates."""

    clusters: pd.DataFrame
    """One row a cluster: ``cluster_id``, ``scored`` (its captions that the run scored), ``over_threshold`` (of these,
    above what one ordinary caption in a hundred exceeds), ``decided`` (generated in full), ``regurgitated`` (of these,
    copies), and ``came_back``: copies of any caption that named one of its pictures. The last three are missing where
    the verdicts are left out."""
    rates: dict[str, list[dict[str, Any]]]
    """``verdict`` and the score's name -> rows of `rates`; none of verdicts that are left out."""
    report: dict[str, Any]
    """Denominators, why the verdicts are left out if they are, and the rates, as they are printed."""


def regurgitation(found: Duplicates, run: RunFolder) -> Regurgitation:
    """Join duplicates with a run, as it is now.

    Undetermined captions are counted apart: whether they came back is not known. A caption of several pictures
    counts once, with the picture that it was trained with most often.
    """
    score, threshold = scoring(run)
    other = other_training_set(run, found.report["training_set_sha256"], found.report["training_images"])
    with duckdb.connect() as database:
        _join(database, found, run, score, threshold, decided=not other)
        once = database.table("once").df()
        clusters = database.execute(_CLUSTERS).df()
        strangers = database.execute(_STRANGERS, [threshold]).df().to_dict("records")[0]
    scored, decided = once.loc[once["scored"]], once.loc[once["decided"]]
    tables = {}
    if other:
        clusters = clusters.drop(columns=["decided", "regurgitated", "came_back"])
    else:
        tables["verdict"] = rates(decided, "copied")
    if threshold is not None:
        tables[str(score)] = rates(scored, "over")
    report = {
        "run": str(run.path),
        "captions_of_training_set": len(once),
        "scored": len(scored),
        "decided": len(decided),
        "undetermined": int(once["undetermined"].sum()),
        "verdicts_left_out": other or None,
        "captions_not_in_training_set": strangers,
        "score": score,
        "threshold_1pct_fpr": threshold,
        "rates": tables,
    }
    return Regurgitation(clusters, tables, report)


def rates(captions: pd.DataFrame, memorised: str) -> list[dict[str, Any]]:
    """Share of captions that are memorised, by duplication, with Wilson's 95% interval.

    Each caption is in one of four series: ``template``, its picture shares one with others; else ``multimodal``,
    trained with its picture twice or more; ``image_only``, once, while its picture was also trained with other captions;
    ``once``, neither. The bins count how often what is named was trained: the family, the picture with this caption,
    the picture. Captions of one picture are no independent observations, as the interval takes them to be: of how many
    pictures they are stands beside.

    Parameters
    ----------
    captions
        Those that were looked at: ``times, image_only, picture``, ``family``, how often the picture's template family was
        trained (0 without one), and the column `memorised`, true or false.
    """
    times, others, family = (captions[name].to_numpy(int) for name in ("times", "image_only", "family"))
    hits, pictures = captions[memorised].to_numpy(bool), captions["picture"].to_numpy(str)
    series = np.select([family > 0, times >= 2, others >= 1], [3, 1, 2], 0)
    bins = np.digitize(np.choose(series, [times, times, times + others, family]), BINS) - 1
    found = []
    for kind, bin_ in sorted(set(zip(series.tolist(), bins.tolist(), strict=True))):
        group = (series == kind) & (bins == bin_)
        count, memorised_here = int(group.sum()), int(hits[group].sum())
        interval = binomtest(memorised_here, count).proportion_ci(method="wilson")
        found.append(
            {
                "series": SERIES[kind],
                "from": BINS[bin_],
                "to": BINS[bin_ + 1] - 1 if bin_ + 1 < len(BINS) else None,
                "captions": count,
                "pictures": len(set(pictures[group])),
                "memorised": memorised_here,
                "rate": memorised_here / count,
                "low": float(interval.low),
                "high": float(interval.high),
            }
        )
    return found


def scoring(run: RunFolder) -> tuple[str | None, float | None]:
    """The first score of a run, and what one ordinary caption in a hundred exceeds; None where that is not known."""
    parts = run.parts("captions")
    if not parts:
        raise InputError(f"The run {run.path.name} has no scored captions yet; go on with `score`.")
    names = pq.read_schema(parts[0]).names
    score = next((name for name in SCORES if name in names), None)
    asked = run.description
    calibration = find_calibration(asked["model_sha256"], asked["guidance"], asked["seeds"], asked["noise"])
    if score is None or calibration is None or score not in calibration.values:
        return score, None
    try:
        return score, calibration.threshold(score, FPR)
    except InputError:
        return score, None


def _join(
    database: duckdb.DuckDBPyConnection,
    found: Duplicates,
    run: RunFolder,
    score: str | None,
    threshold: float | None,
    *,
    decided: bool,
) -> None:
    """Tables ``run_captions``, ``verdicts``, ``joined`` (a row a picture and caption) and ``once`` (a row a caption).

    ``verdicts`` is empty unless `decided`.
    """
    captions = found.captions.assign(caption_id=[caption_id(text) for text in found.captions["caption"]])
    parts = run.parts("verdicts") if decided else []
    verdicts = _read(parts, ("caption_id", "verdict", "neighbour_id"))
    database.register("trained", captions)
    database.register("clusters", found.clusters)
    database.register("members", found.members)
    database.register("verdicts", verdicts)
    if score:
        database.register("scores", _read(run.parts("captions"), ("caption_id", score)))
    value = f"CASE WHEN isfinite({score}) THEN {score} END" if score else "NULL::DOUBLE"
    database.execute(
        f"CREATE TABLE run_captions AS SELECT caption_id, {value} AS score FROM "
        f"{'scores' if score else '(SELECT NULL::VARCHAR AS caption_id LIMIT 0)'}"
    )
    database.execute(
        f"""
        CREATE TABLE joined AS
        SELECT trained.*, coalesce(occurrences, 0) AS family, score IS NOT NULL AS scored, coalesce(score > ?, false) AS over,
            coalesce(verdict IN ({COPIES}, 'N'), false) AS decided, coalesce(verdict IN ({COPIES}), false) AS copied,
            coalesce(verdict = 'U', false) AS undetermined
        FROM trained LEFT JOIN run_captions USING (caption_id) LEFT JOIN verdicts USING (caption_id)
        LEFT JOIN (SELECT cluster_id AS family_id, occurrences FROM clusters) USING (family_id)
        """,
        [threshold],
    )
    database.execute(
        "CREATE TABLE once AS SELECT DISTINCT ON (caption_id) * FROM joined "
        "ORDER BY caption_id, times DESC, image_only DESC, picture"
    )


_CLUSTERS = f"""
    WITH of_cluster AS (
        SELECT cluster_id, caption_id, scored, over, decided, copied FROM joined WHERE cluster_id <> ''
        UNION SELECT family_id, caption_id, scored, over, decided, copied FROM joined WHERE family_id <> ''
    ), looked AS (
        SELECT cluster_id, count(*) FILTER (scored) AS scored, count(*) FILTER (over) AS over_threshold,
            count(*) FILTER (decided) AS decided, count(*) FILTER (copied) AS regurgitated
        FROM of_cluster GROUP BY cluster_id
    ), back AS (
        SELECT cluster_id, count(*) AS came_back
        FROM members JOIN verdicts ON neighbour_id = image_id WHERE verdict IN ({COPIES}) GROUP BY cluster_id
    )
    SELECT cluster_id, coalesce(scored, 0) AS scored, coalesce(over_threshold, 0) AS over_threshold,
        coalesce(decided, 0) AS decided, coalesce(regurgitated, 0) AS regurgitated,
        coalesce(came_back, 0) AS came_back
    FROM (SELECT cluster_id, row_number() OVER () AS place FROM clusters)
    LEFT JOIN looked USING (cluster_id) LEFT JOIN back USING (cluster_id) ORDER BY place
"""
_STRANGERS = f"""
    SELECT count(score) AS scored, count(*) FILTER (score > ?) AS over_threshold,
        count(*) FILTER (verdict IN ({COPIES}, 'N')) AS decided,
        count(*) FILTER (verdict IN ({COPIES})) AS regurgitated
    FROM run_captions LEFT JOIN verdicts USING (caption_id)
    WHERE caption_id NOT IN (SELECT caption_id FROM trained)
"""


def _read(parts: Sequence[Path], columns: tuple[str, ...]) -> pa.Table:
    tables = []
    for part in parts:
        try:
            tables.append(pq.read_table(part, columns=list(columns)))
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{part} is damaged; resume the run with the command that made it.") from error
    if not tables:
        return pa.table({column: pa.array([], pa.string()) for column in columns})
    return pa.concat_tables(tables, promote_options="permissive")
