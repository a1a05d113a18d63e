"""How far people agree: with each other, with the machine, and with what is known to be right.

Krippendorff's alpha (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability) and Cohen's kappa (Cohen 1960), both
nominal, over all kinds at once and for each kind against the rest. They are computed here and not by the libraries of
that name, to which the tests hold them: all draws of a bootstrap are one product of matrices, and clusters have weights.

Labels are a table as `audit.review.store.Store.labels` gives it; of its columns ``item_id, who, label, when,
others_shown, adjudicated, imported`` are used. An adjudicator has seen both labels, and so has who answers a second time
or where others' labels are shown; theirs are no part of any agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from audit.errors import InputError
from audit.review.events import LABELS
from audit.review.queue import BREAK
from audit.settings import settings
from audit.verbatim.masks import changed_iou

BOOTSTRAPS = 1000
ALL = "all"
"""Instead of a kind: all of them at once."""
AT_ONCE = 10_000_000
"""Numbers of a bootstrap that are held at once."""
DISAGREED = "disagreed"
ONE_ANSWER = "one answer"
ENOUGH = 2
"""People who have to say the same before it is what people say, unless the setting ``annotators`` asks one only."""
NO_PAIR = "No item has labels of two people."


@dataclass(frozen=True)
class Figure:
    """A number with its 95% interval, or why there is none."""

    value: float | None
    low: float | None = None
    """Bounds of the interval; None where it is not defined."""
    high: float | None = None
    items: int = 0
    """How many it was taken of."""
    clusters: int = 0
    """In how many clusters they are; what is drawn anew for the interval."""
    reason: str = ""
    """Why there is no number, in a sentence; empty where there is one."""


@dataclass(frozen=True)
class GoldResult:
    """What one person said of items whose label is known."""

    who: str
    right: int
    figure: Figure
    """The share that is right, with Wilson's interval (Wilson 1927)."""


@dataclass(frozen=True)
class Pace:
    """How fast one person labels."""

    who: str
    labels: int
    hours: float
    """Between labels that follow each other within five minutes."""
    per_hour: float | None
    """Labels an hour without the pauses; None where no two labels follow each other."""


def alpha(
    labels: pd.DataFrame,
    groups: Mapping[str, Hashable] | None = None,
    *,
    each_once: bool = False,
    bootstraps: int = BOOTSTRAPS,
) -> dict[str, Figure]:
    """Krippendorff's alpha of all people: over all kinds (`ALL`), and of each kind against the rest.

    1 is full agreement, 0 what chance would give, below it people disagree on purpose. Items with one label only tell
    nothing, and are left out.

    Parameters
    ----------
    groups
        The cluster of each item; an item that has none is one by itself. Intervals are taken over clusters, since
        items of one cluster are no independent observations.
    each_once
        Whether each cluster counts once, however many items it has (per cluster), or each item (per caption).
    """
    given = _given(labels)
    counts = pd.crosstab(given["item_id"], given["label"]).reindex(columns=list(LABELS), fill_value=0)
    counts = counts[counts.sum(axis=1) >= 2]
    if counts.empty:
        return dict.fromkeys((ALL, *LABELS), Figure(None, reason=NO_PAIR))
    n = counts.to_numpy(float)
    m = n.sum(1, keepdims=True)
    # of each item: its labels by kind, and pairs of equal labels by kind, and the same for the rest of the kinds
    same = n * (n - 1) / (m - 1)
    same_rest = (m - n) * (m - n - 1) / (m - 1)
    parts = np.hstack([n, same, same_rest])
    kinds = len(LABELS)

    def all_kinds(sums: np.ndarray) -> np.ndarray:
        return _alpha(sums[:, :kinds], sums[:, kinds : 2 * kinds].sum(1))

    def one_kind(place: int) -> Callable[[np.ndarray], np.ndarray]:
        def figure(sums: np.ndarray) -> np.ndarray:
            both = np.stack([sums[:, place], sums[:, :kinds].sum(1) - sums[:, place]], 1)
            return _alpha(both, sums[:, kinds + place] + sums[:, 2 * kinds + place])

        return figure

    statistics = {ALL: all_kinds} | {kind: one_kind(place) for place, kind in enumerate(LABELS)}
    occurring = {ALL: list(LABELS)} | {kind: [kind] for kind in LABELS}
    total = n.sum(0)
    reasons = {
        name: _one_sided(total, [LABELS.index(kind) for kind in kinds_of], name)
        for name, kinds_of in occurring.items()
    }
    return _figures(statistics, reasons, parts, _places(list(counts.index), groups), each_once, bootstraps)


def kappa(
    labels: pd.DataFrame,
    first: str,
    second: str,
    groups: Mapping[str, Hashable] | None = None,
    *,
    each_once: bool = False,
    bootstraps: int = BOOTSTRAPS,
) -> dict[str, Figure]:
    """Cohen's kappa of two people, over the items that both labelled; as `alpha` in all else."""
    by_person = _by_person(labels)
    if not {first, second} <= set(by_person.columns):
        return dict.fromkeys((ALL, *LABELS), Figure(None, reason=NO_PAIR))
    both = by_person[[first, second]].dropna()
    if both.empty:
        reason = f"{first} and {second} labelled no item both."
        return dict.fromkeys((ALL, *LABELS), Figure(None, reason=reason))
    kinds = len(LABELS)
    rows, columns = ([LABELS.index(label) for label in both[who]] for who in (first, second))
    parts = np.zeros((len(both), kinds, kinds))
    parts[np.arange(len(both)), rows, columns] = 1

    def one_kind(place: int) -> Callable[[np.ndarray], np.ndarray]:
        def figure(sums: np.ndarray) -> np.ndarray:
            table = sums.reshape(-1, kinds, kinds)
            total, here = table.sum((1, 2)), table[:, place, place]
            by_first, by_second = table[:, place].sum(1), table[:, :, place].sum(1)
            cells = [here, by_first - here, by_second - here, total - by_first - by_second + here]
            return _kappa(np.stack(cells, 1).reshape(-1, 2, 2))

        return figure

    statistics = {ALL: lambda sums: _kappa(sums.reshape(-1, kinds, kinds))}
    statistics |= {kind: one_kind(place) for place, kind in enumerate(LABELS)}
    total = parts.sum((0, 1)) + parts.sum((0, 2))
    reasons = {ALL: _one_sided(total, range(kinds), ALL)}
    reasons |= {kind: _one_sided(total, [place], kind) for place, kind in enumerate(LABELS)}
    flat = parts.reshape(len(both), -1)
    return _figures(statistics, reasons, flat, _places(list(both.index), groups), each_once, bootstraps)


def pairs(labels: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of people who labelled an item both, those with most in common first."""
    by_person = _by_person(labels)
    there = by_person.notna().to_numpy()
    common = {
        (str(by_person.columns[one]), str(by_person.columns[other])): int(
            (there[:, one] & there[:, other]).sum()
        )
        for one, other in combinations(range(there.shape[1]), 2)
    }
    return sorted((pair for pair in common if common[pair]), key=lambda pair: (-common[pair], pair))


def decided(labels: pd.DataFrame, by: str = "item_id") -> dict[str, str]:
    """What people say of each item all in all, or of each value of another column, such as ``caption_id``.

    It is the kind of copy that they say, whichever training image or template each of them named; whether that was the
    one of the verdict, exhibits tell (`audit.evidence.people.agreement`).

    Returns
    -------
    The adjudicator's label (the last one's, where there are several), or the one that `ENOUGH` people and all gave who
    answered without knowing what others say, or `DISAGREED`, or `ONE_ANSWER` where too few answered so.
    """
    said: dict[str, set[tuple[str, str]]] = {}
    judged: dict[str, str] = {}
    names = (by, "who", "label", "adjudicated", "others_shown")
    for key, who, label, adjudicated, told in zip(*(labels[name] for name in names), strict=True):
        given = said.setdefault(key, set())
        if adjudicated:
            judged[key] = label
        elif not told:
            given.add((who, label))
    return {key: _together(each) for key, each in said.items()} | judged


def _together(said: set[tuple[str, str]]) -> str:
    """What people say together, each a name and a label."""
    labels = {label for _, label in said}
    if len(labels) > 1:
        return DISAGREED
    people = {who for who, _ in said}
    return labels.pop() if labels and len(people) >= min(ENOUGH, settings().annotators) else ONE_ANSWER


def confusion(
    labels: pd.DataFrame,
    verdicts: Mapping[str, str],
    groups: Mapping[str, Hashable] | None = None,
) -> pd.DataFrame:
    """The machine's verdicts against what people say all in all.

    Parameters
    ----------
    verdicts
        The machine's, by item; U among them.
    groups
        The cluster of each item, if each cluster shall count once: its items share one between them.

    Returns
    -------
    A row for each verdict, a column for each label, `DISAGREED` and `ONE_ANSWER`, and in them how many items or
    clusters.
    """
    people = {item: label for item, label in decided(labels).items() if item in verdicts}
    rows = [*LABELS, *sorted({verdicts[item] for item in people} - set(LABELS))]
    columns = [*LABELS, DISAGREED, ONE_ANSWER]
    table = np.zeros((len(rows), len(columns)))
    weights = _weights(_places(list(people), groups), groups is not None)
    for (item, label), weight in zip(people.items(), weights, strict=True):
        table[rows.index(verdicts[item]), columns.index(label)] += weight
    return pd.DataFrame(table, pd.Index(rows, name="machine"), pd.Index(columns, name="people"))


def gold(labels: pd.DataFrame, known: Mapping[str, str]) -> list[GoldResult]:
    """How often each person was right on items whose label is `known`, by name."""
    asked: dict[str, list[bool]] = {who: [] for who in sorted(set(labels["who"]))}
    given = _given(labels)
    for item, who, label in zip(given["item_id"], given["who"], given["label"], strict=True):
        if known.get(item):
            asked[who].append(label == known[item])
    return [GoldResult(who, sum(right), _share(sum(right), len(right))) for who, right in asked.items()]


def pace(labels: pd.DataFrame) -> list[Pace]:
    """Labels an hour of each person, without pauses of more than five minutes, by name.

    The first label after a pause took a time that nobody knows, so it is not among those counted an hour; nor are labels
    that came in, some of which were given at a time that nobody noted.
    """
    results = []
    for who, mine in labels.groupby("who"):
        here = mine.loc[~mine["imported"].to_numpy(bool), "when"]
        gaps = np.diff(np.sort([datetime.fromisoformat(when).timestamp() for when in here]))
        gaps = gaps[gaps <= BREAK]
        hours = float(gaps.sum()) / 3600
        results.append(Pace(str(who), len(mine), hours, len(gaps) / hours if hours else None))
    return results


def mask_agreement(
    masks: Iterable[tuple[str, str, np.ndarray]], bootstraps: int = BOOTSTRAPS
) -> tuple[pd.DataFrame, Figure]:
    """How far the masks that people drew of the same templates agree.

    Parameters
    ----------
    masks
        (template, who, mask (256, 256)), each drawn without another's (`audit.verbatim.versions.drawn_alone`); of one
        person's of one template the last counts.

    Returns
    -------
    ``template_id, first, second, iou``: IoU of the *changed* region (`audit.verbatim.masks.changed_iou`) of each two
    people's masks; and its mean over the templates, with an interval over them.
    """
    by_template: dict[str, dict[str, np.ndarray]] = {}
    for template_id, who, mask in masks:
        by_template.setdefault(template_id, {})[who] = mask
    pairs_of: dict[str, list[tuple[str, str, float]]] = {
        template_id: [
            (first, second, changed_iou(drawn[first], drawn[second]))
            for first, second in combinations(sorted(drawn), 2)
        ]
        for template_id, drawn in sorted(by_template.items())
        if len(drawn) > 1
    }
    table = pd.DataFrame(
        [(template_id, *pair) for template_id, each in pairs_of.items() for pair in each],
        columns=["template_id", "first", "second", "iou"],
    )
    if table.empty:
        return table, Figure(None, reason="No template has masks that two people drew by themselves.")
    means = np.array([np.mean([pair[2] for pair in each]) for each in pairs_of.values()])
    parts = np.stack([means, np.ones(len(means))], 1)
    figures = _figures(
        {ALL: lambda sums: sums[:, 0] / sums[:, 1]},
        {ALL: ""},
        parts,
        np.arange(len(means)),
        False,
        bootstraps,
    )
    return table, figures[ALL]


def _given(labels: pd.DataFrame) -> pd.DataFrame:
    """What people said by themselves, without knowing what others say, once for each item and person."""
    unknown = set(labels["label"]) - set(LABELS)
    if unknown:
        raise InputError(f"{sorted(unknown)[0][:40]!r} is no label; labels are {', '.join(LABELS)}.")
    alone = labels.loc[~(labels["adjudicated"].to_numpy(bool) | labels["others_shown"].to_numpy(bool))]
    return alone.drop_duplicates(subset=["item_id", "who"], keep="last")


def _by_person(labels: pd.DataFrame) -> pd.DataFrame:
    """A row an item, a column a person."""
    return _given(labels).pivot(index="item_id", columns="who", values="label")


def _alpha(totals: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Alpha of each row: labels by kind (d, kinds), and pairs of equal labels (d,), each weighted by 1 / (m - 1)."""
    n = totals.sum(1)
    observed = n - same
    expected = (n**2 - (totals**2).sum(1)) / (n - 1)
    return 1 - observed / expected


def _kappa(table: np.ndarray) -> np.ndarray:
    """Kappa of each of the tables (d, kinds, kinds) of two people."""
    share = table / table.sum((1, 2), keepdims=True)
    observed = share.trace(axis1=1, axis2=2)
    expected = (share.sum(1) * share.sum(2)).sum(1)
    return (observed - expected) / (1 - expected)


def _one_sided(totals: np.ndarray, kinds: Iterable[int], name: str) -> str:
    """Why chance alone would give full agreement; empty if it would not."""
    there = [LABELS[place] for place in np.flatnonzero(totals)]
    if name == ALL and len(there) == 1:
        return f"All labels are {there[0]}: agreement beyond chance is not defined."
    if name != ALL and not any(totals[place] for place in kinds):
        return f"Nobody gave the label {name} to an item that two people labelled."
    if name != ALL and len(there) == 1:
        return f"All labels are {name}: agreement beyond chance is not defined."
    return ""


def _places(items: Sequence[str], groups: Mapping[str, Hashable] | None) -> np.ndarray:
    """(n,) the number of each item's cluster, from 0."""
    if groups is None:
        return np.arange(len(items))
    # a cluster and an item that has none may have one name
    keys = [(True, groups[item]) if groups.get(item) not in (None, "") else (False, item) for item in items]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], int)


def _weights(places: np.ndarray, each_once: bool) -> np.ndarray:
    return 1.0 / np.bincount(places)[places] if each_once else np.ones(len(places))


def _figures(
    statistics: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    reasons: Mapping[str, str],
    parts: np.ndarray,
    places: np.ndarray,
    each_once: bool,
    bootstraps: int,
) -> dict[str, Figure]:
    """Statistics of the sum over items of `parts` (n, k), with percentile intervals over clusters drawn anew."""
    weighted = parts * _weights(places, each_once)[:, None]
    clusters = int(places.max()) + 1
    sums = np.zeros((clusters, parts.shape[1]))
    np.add.at(sums, places, weighted)
    drawn = _drawn(sums, bootstraps)
    figures = {}
    for name, statistic in statistics.items():
        if reasons[name]:
            figures[name] = Figure(None, items=len(parts), clusters=clusters, reason=reasons[name])
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            value, draws = float(statistic(sums.sum(0)[None])[0]), statistic(drawn)
        # a draw without a kind has no figure of it
        draws = draws[np.isfinite(draws)]
        low, high = np.percentile(draws, [2.5, 97.5]) if clusters > 1 and len(draws) else (None, None)
        figures[name] = Figure(
            value,
            None if low is None else float(low),
            None if high is None else float(high),
            len(parts),
            clusters,
        )
    return figures


def _drawn(sums: np.ndarray, bootstraps: int) -> np.ndarray:
    """(bootstraps, k): the sum of as many clusters as there are, drawn with replacement from `sums` (clusters, k)."""
    generator = np.random.default_rng(0)
    clusters = len(sums)
    block = max(1, AT_ONCE // clusters)
    blocks = []
    for first in range(0, bootstraps, block):
        count = min(block, bootstraps - first)
        drawn = generator.integers(clusters, size=(count, clusters)) + clusters * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * clusters).reshape(count, clusters)
        blocks.append(times.astype(float) @ sums)
    return np.concatenate(blocks)


def _share(right: int, asked: int) -> Figure:
    if not asked:
        return Figure(None, reason="None of the items whose label is known was labelled.")
    interval = binomtest(right, asked).proportion_ci(method="wilson")
    return Figure(right / asked, float(interval.low), float(interval.high), asked, asked)
