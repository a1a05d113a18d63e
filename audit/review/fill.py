"""Which captions of a run or a selection people are asked about, and in which order: the most useful first.

First come those near the limit, then those whose score and pictures do not agree, then one of each template family,
then the rest by nearness to the limit, and last the other members of the families. Every tenth place is a random check,
drawn from all captions that were decided, so that what the order leaves out can be estimated. Known ones (gold) stand
among the others. Sorting is DuckDB's work: a run may hold a million verdicts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from audit.errors import InputError
from audit.records import NEARER, caption_id
from audit.review.events import LABELS
from audit.review.queue import Item, Queue, item_id
from audit.review.roles import Action, Person
from audit.review.store import Store
from audit.runs.compared import DESCRIPTION
from audit.runs.folder import RunFolder
from audit.runs.jobs import check_name, runs_folder
from audit.runs.selections import selections_folder
from audit.verbatim.verdict import Thresholds

LIMIT = 1_000
EVERY = 10
"""Of so many places one is a random check, and at most one a known one."""
NEAR = 1.25
"""A distance that is less than so many times larger or smaller than its limit is near it."""
HIGH = 99.0
"""Percentile among ordinary captions from which on a score says memorised; without a calibration, among the run's own."""
WHYS = (
    "Near the limit: a little nearer or farther, and the machine would have decided otherwise.",
    "Its score and its pictures do not agree.",
    "Next in the order: different pictures first.",
    "Next in the order: different pictures first.",
    "Next in the order: different pictures first.",
)
"""By rank: near, in disagreement, first of a template family, the rest, others of a family. None tells what the machine
decided, and the last three have one sentence, since only copies of templates have a family."""
DISPUTED = "People disagreed about this caption elsewhere."
RANDOM = "A random check."
CHECKS = ("tv", "mv", "rv")
COLUMNS = {
    "caption_id": "VARCHAR",
    "caption": "VARCHAR",
    "verdict": "VARCHAR",
    "seed": "BIGINT",
    "neighbour_id": "VARCHAR",
    "template_id": "VARCHAR",
} | {f"{check}_{what}": "DOUBLE" for check in CHECKS for what in ("distance", "blank")}
"""What is asked of a table of verdicts; a run of an earlier version may lack some."""
SCORES = ("dcs", "magnitude")


@dataclass(frozen=True)
class Filled:
    """What a filling did."""

    queue: str
    source: str
    chosen: int
    new: int
    """Of those chosen; the others were in the queue already."""
    audit: int
    gold: int
    undecided: int
    """Captions of a selection that were not generated in full: there is nothing to look at."""


def fill(
    store: Store,
    person: Person,
    source: Path,
    queue: str,
    *,
    limit: int = LIMIT,
    gold: Mapping[str, str] | None = None,
) -> Filled:
    """Put captions of a run's folder or of a selection's file into a queue; the same again adds nothing.

    Parameters
    ----------
    limit
        So many at most.
    gold
        Labels that are known to be right, by caption.

    Raises
    ------
    InputError
        If nothing of it was decided yet.
    """
    store.require(person, Action.FILL)
    check_name(queue)
    known = {caption_id(text): label for text, label in (gold or {}).items()}
    with duckdb.connect() as base:
        run, run_path, undecided = open_source(base, source)
        rank(base, run_path, disputed_captions(store, person))
        rows = ordered(base, limit, known, salt=f"{queue}\0{run}")
    items = [as_item(row, place, queue, run, run_path) for place, row in enumerate(rows)]
    new = Queue(store, queue).fill(person, items)
    return Filled(
        queue=queue,
        source=source.name,
        chosen=len(items),
        new=new,
        audit=sum(item.audit for item in items),
        gold=sum(bool(item.gold) for item in items),
        undecided=undecided,
    )


def find_source(name: str) -> Path:
    """A run's folder or a selection's file, by its path or its name in the data folder."""
    path = Path(name)
    if RunFolder.exists(path) or path.suffix == ".parquet":
        return path
    try:
        check_name(name)
    except InputError as error:
        raise InputError(f"There is no run and no selection {name[:200]!r}.") from error
    if RunFolder.exists(runs_folder() / name):
        return runs_folder() / name
    if (selections_folder() / f"{name}.parquet").is_file():
        return selections_folder() / f"{name}.parquet"
    raise InputError(f"There is no run and no selection {name!r}; give its folder, its file or its name.")


def read_gold(path: Path) -> dict[str, str]:
    """Labels by caption out of a parquet or CSV file with ``caption`` and one of ``label, overfit_type, expected``.

    Rows with another label (a truth may say *none*) are left out.
    """
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError, UnicodeError) as error:
        raise InputError(f"{path} is no parquet or CSV file that can be read.") from error
    name = next((name for name in ("label", "overfit_type", "expected") if name in table), None)
    if name is None or "caption" not in table:
        raise InputError(
            f"{path} has the columns {', '.join(map(str, table))[:200]}; caption and label are needed."
        )
    rows = zip(table["caption"].astype(str), table[name].astype(str), strict=True)
    return {caption: label for caption, label in rows if label in LABELS}


def open_source(base: duckdb.DuckDBPyConnection, source: Path) -> tuple[str, Path, int]:
    """Make the views ``verdicts`` and ``captions``; the run's name and folder, and how many captions are undecided."""
    if RunFolder.exists(source):
        run = RunFolder.open(source)
        decided, captions = run.parts("verdicts"), run.parts("captions")
        if not decided:
            raise InputError(f"The run {source.name} has no verdicts yet; go on with `audit verdict`.")
        view(base, "verdicts", decided)
        view(base, "captions", captions)
        return source.name, source.resolve(), 0
    if not source.is_file():
        raise InputError(f"There is no run and no selection {source}.")
    try:
        view(base, "captions", [source])
        columns = {row[0] for row in base.execute("DESCRIBE captions").fetchall()}
    except duckdb.Error as error:
        raise InputError(f"The selection {source} is damaged; make it anew.") from error
    if absent := {"caption_id", "caption", "run"} - columns:
        raise InputError(f"{source} is no selection: it lacks {', '.join(sorted(absent))}.")
    if "verdict" not in columns:
        base.execute("CREATE VIEW verdicts AS SELECT *, NULL AS verdict FROM captions LIMIT 0")
    else:
        base.execute("CREATE VIEW verdicts AS SELECT * FROM captions WHERE verdict IS NOT NULL")
    run, total = base.execute("SELECT any_value(run), count(*) FROM captions").fetchone() or ("", 0)
    (decided,) = base.execute("SELECT count(*) FROM verdicts").fetchone() or (0,)
    if not decided:
        raise InputError(
            f"No caption of the selection {source.stem} was generated in full; there is nothing to look at. "
            "Decide them first with `audit verdict`."
        )
    return run, runs_folder() / run, total - decided


def view(base: duckdb.DuckDBPyConnection, name: str, parts: Collection[Path]) -> None:
    files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in parts)
    base.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{files}], union_by_name = true)")


def disputed_captions(store: Store, person: Person) -> set[str]:
    """Captions about which people disagree in any queue, and those that an adjudicator had to decide."""
    labels = store.labels(person)
    said: dict[str, set[str]] = {}
    decided = set()
    for caption, label, adjudicated in zip(
        labels["caption_id"], labels["label"], labels["adjudicated"], strict=True
    ):
        if adjudicated:
            decided.add(caption)
        else:
            said.setdefault(caption, set()).add(label)
    return (decided | {caption for caption, given in said.items() if len(given) > 1}) - {""}


def rank(base: duckdb.DuckDBPyConnection, run_path: Path, disputed: Collection[str]) -> None:
    """Make the table ``ranked``: what is shown of each decided caption, and its rank as in `WHYS`."""
    there = {row[0] for row in base.execute("DESCRIBE verdicts").fetchall()}
    columns = ", ".join(
        f"CAST({name if name in there else 'NULL'} AS {kind}) AS {name}" for name, kind in COLUMNS.items()
    )
    limits = thresholds(run_path)
    ratios = ", ".join(
        f"coalesce({check}_distance / {check}_limit, 'inf'::DOUBLE) AS {check}" for check in CHECKS
    )
    limited = ", ".join(
        f"least({float(limits[check])}, coalesce({NEARER} * {check}_blank, 'inf'::DOUBLE)) AS {check}_limit"
        for check in CHECKS
    )
    pick = (
        "CASE WHEN lower(verdict) IN ('tv', 'mv', 'rv') THEN lower(verdict) WHEN tv <= mv AND tv <= rv THEN 'tv' "
        "WHEN mv <= rv THEN 'mv' ELSE 'rv' END"
    )
    chosen = {
        what: f"CASE picked WHEN 'tv' THEN tv_{what} WHEN 'mv' THEN mv_{what} ELSE rv_{what} END"
        for what in ("distance", "limit")
    }
    base.execute("CREATE TABLE disputed (caption_id VARCHAR)")
    if disputed:
        base.execute("INSERT INTO disputed SELECT unnest(?)", [list(disputed)])
    base.execute(
        f"""CREATE TABLE ranked AS
        WITH verdict AS (SELECT {columns} FROM verdicts),
        high AS ({high_scores(base)}),
        limited AS (SELECT *, {limited} FROM verdict),
        ratios AS (SELECT *, {ratios} FROM limited),
        picked AS (SELECT *, {pick} AS picked FROM ratios),
        measured AS (
            SELECT *, {chosen["distance"]} AS distance, {chosen["limit"]} AS "limit",
                abs(ln(greatest(distance, 1e-6) / greatest("limit", 1e-6))) AS nearness,
                nullif(template_id, '') AS family
            FROM picked
        ),
        families AS (
            SELECT *, CASE WHEN family IS NULL THEN 1 ELSE
                row_number() OVER (PARTITION BY family ORDER BY nearness NULLS LAST, caption_id) END AS member
            FROM measured
        )
        SELECT families.caption_id, caption, verdict, seed, neighbour_id, family AS template_id, distance, "limit", nearness,
            disputed.caption_id IS NOT NULL AS disputed,
            CASE WHEN member > 1 THEN 4 WHEN nearness <= ln({NEAR}) THEN 0
                WHEN disputed.caption_id IS NOT NULL OR coalesce((verdict IN ('N', 'U')) = high.high, false) THEN 1
                WHEN family IS NOT NULL THEN 2 ELSE 3 END AS rank
        FROM families LEFT JOIN high USING (caption_id) LEFT JOIN disputed USING (caption_id)"""
    )


def high_scores(base: duckdb.DuckDBPyConnection) -> str:
    """SQL of ``caption_id, high``: whether a caption's first score says that it is memorised; NULL without scores."""
    there = {row[0] for row in base.execute("DESCRIBE captions").fetchall()}
    for score in SCORES:
        if f"{score}_percentile" in there:
            return f"SELECT caption_id, {score}_percentile >= {HIGH} AS high FROM captions"
        if score in there:
            least = f"(SELECT quantile_cont({score}, {HIGH / 100}) FROM captions WHERE isfinite({score}))"
            return f"SELECT caption_id, {score} >= {least} AS high FROM captions"
    return "SELECT caption_id, NULL::BOOLEAN AS high FROM captions"


def thresholds(run_path: Path) -> dict[str, float]:
    """What a run's distances were compared with, by check; the usual ones where the run does not say."""
    usual = asdict(Thresholds())
    try:
        said = json.loads((run_path / DESCRIPTION).read_text(encoding="utf-8"))["thresholds"]
        usual |= {name: float(said[name]) for name in usual if name in said}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"tv": usual["template"], "mv": usual["matching"], "rv": usual["retrieved"]}


def ordered(
    base: duckdb.DuckDBPyConnection, limit: int, known: Mapping[str, str], *, salt: str
) -> list[dict[str, Any]]:
    """Rows of ``ranked`` in the order in which they are shown, `limit` at most, with ``why``, ``audit`` and ``gold``."""
    (total,) = base.execute("SELECT count(*) FROM ranked").fetchone() or (0,)
    limit = min(limit, total)
    places = limit // EVERY
    drawn = "ORDER BY md5(? || caption_id), caption_id LIMIT ?"
    audit = fetched(base, f"SELECT * FROM ranked {drawn}", [salt, places])
    gold = fetched(
        base,
        f"SELECT * FROM ranked WHERE caption_id IN (SELECT unnest(?)) AND caption_id NOT IN (SELECT unnest(?)) {drawn}",
        [list(known), [row["caption_id"] for row in audit], salt, max(places, 1)],
    )
    apart = [row["caption_id"] for row in (*audit, *gold)]
    rest = fetched(
        base,
        "SELECT * FROM ranked WHERE caption_id NOT IN (SELECT unnest(?)) "
        "ORDER BY rank, nearness NULLS LAST, caption_id LIMIT ?",
        [apart, max(limit - len(apart), 0)],
    )
    for row in (*audit, *gold, *rest):
        disputed = row["disputed"] and row["rank"] == 1
        row |= {"audit": False, "gold": "", "why": DISPUTED if disputed else WHYS[row["rank"]]}
    for row in audit:
        row |= {"audit": True, "why": RANDOM}
    for row in gold:
        row["gold"] = known[row["caption_id"]]
    return list(itertools.islice(woven(rest, audit, gold), limit))


def woven(rest: list, audit: list, gold: list) -> Iterator[dict[str, Any]]:
    """A random check at the end of every ten places, a known one in their middle, the others in between."""
    rest, audit, gold = rest[::-1], audit[::-1], gold[::-1]
    for place in itertools.count():
        turn = place % EVERY
        first = audit if turn == EVERY - 1 else gold if turn == EVERY // 2 - 1 else rest
        kind = next((rows for rows in (first, rest, audit, gold) if rows), None)
        if kind is None:
            return
        yield kind.pop()


def fetched(base: duckdb.DuckDBPyConnection, query: str, values: list[Any]) -> list[dict[str, Any]]:
    found = base.execute(query, values)
    names = [each[0] for each in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def as_item(row: Mapping[str, Any], place: int, queue: str, run: str, run_path: Path) -> Item:
    template, neighbour = row["template_id"] or "", row["neighbour_id"] or ""
    return Item(
        item_id=item_id(queue, run, row["caption_id"]),
        queue=queue,
        run=run,
        run_path=str(run_path),
        caption_id=row["caption_id"],
        caption=row["caption"],
        place=place,
        why=row["why"],
        seed=row["seed"],
        neighbour_id=neighbour,
        template_id=template,
        cluster=template or neighbour,
        audit=row["audit"],
        verdict=row["verdict"] or "",
        distance=row["distance"],
        limit=row["limit"],
        gold=row["gold"],
    )
