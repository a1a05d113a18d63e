"""Reading a run of any size: sorted, filtered, counted and exported by DuckDB straight from its parquet parts."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from audit.errors import InputError
from audit.images import sha256
from audit.records import Neighbour, Picture, PictureKind, VerdictKind
from audit.runs.folder import RunFolder

SCORES = ("dcs", "magnitude", "ecs", "ecs_g1")
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
SORTS = (*SCORES, "caption", "occurrences", "tokens")
EXPORTS = ("parquet", "csv")
LISTS = ("template_hits", "neighbours")
"""Columns of the verdicts that hold several things a caption."""
ALSO = ("run",)
"""Columns that an export may add."""
FILTERS = 8
"""Whose captions are kept."""
FORMULA = "^[\\s]*[=+@-]"
"""Cells that a spreadsheet would run."""


@dataclass(frozen=True)
class Filter:
    """Which captions of a run are meant."""

    search: str = ""
    """Text that the caption contains, in either case."""
    verdict: str = ""
    """One of the verdicts, ``none`` for those not generated in full, empty for all."""
    score: str = ""
    """Score that `least` and `most` bound."""
    least: float | None = None
    most: float | None = None

    def sql(self, folded: str = "lower(caption)") -> tuple[str, list[Any]]:
        """A condition and its values; `folded` is the caption in small letters."""
        conditions: list[str] = ["true"]
        values: list[Any] = []
        if self.search:
            conditions.append(f"contains({folded}, lower(?))")
            values.append(self.search)
        if self.verdict == "none":
            conditions.append("verdict IS NULL")
        elif self.verdict:
            conditions.append("verdict = ?")
            values.append(VerdictKind(self.verdict).value)
        if self.score:
            name = known(self.score, SCORES)
            conditions.append(f"isfinite({name})")  # to DuckDB, what is no number is larger than any
            if self.least is not None:
                conditions.append(f"{name} >= ?")
                values.append(self.least)
            if self.most is not None:
                conditions.append(f"{name} <= ?")
                values.append(self.most)
        return " AND ".join(conditions), values


EVERYTHING = Filter()


class Results:
    """The tables of a run as they are now.

    The captions are held in memory, compressed, from the first question on: they are looked through again and again.
    Only names out of fixed lists stand in the queries; everything from outside is bound as a value.
    """

    def __init__(self, run: RunFolder):
        self.run = run
        self.parts = run.parts("captions")
        if not self.parts:
            raise InputError(f"The run {run.path.name} has no scored captions yet.")
        self.base = duckdb.connect()
        self.base.execute("SET enable_progress_bar = false")
        self.lock = Lock()
        self.held = False
        self.found: OrderedDict[Filter, pd.DataFrame] = OrderedDict()
        self.histograms: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        self._view("captions", self.parts)
        self.columns = self._columns("captions")
        self.scores = [name for name in SCORES if name in self.columns]
        decided = run.parts("verdicts")
        if decided:
            self._view("verdicts", decided)
            shown = [name for name in self._columns("verdicts") if name not in LISTS]
            self.more = [name for name in shown if name not in self.columns]
        else:
            self.base.execute(
                "CREATE VIEW verdicts AS SELECT NULL::VARCHAR AS caption_id, NULL::VARCHAR AS verdict LIMIT 0"
            )
            self.more = ["verdict"]
        self.decided = bool(decided)
        chosen = ", ".join(f'verdicts."{name}"' for name in self.more)
        self.base.execute(
            f"CREATE VIEW rows AS SELECT captions.*, {chosen} FROM captions LEFT JOIN verdicts USING (caption_id)"
        )

    def _columns(self, table: str) -> list[str]:
        """Names of a table's columns; InputError where one is no plain name: a run may come from somebody else."""
        names = [row[0] for row in self.base.execute(f"DESCRIBE {table}").fetchall()]
        for name in names:
            if not COLUMN.fullmatch(name):
                raise InputError(
                    f"The run {self.run.path.name} has a column {name[:40]!r}, which no run of ours has."
                )
        return names

    def _view(self, name: str, parts: Sequence[Path]) -> None:
        files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in parts)
        self.base.execute(
            f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{files}], union_by_name = true)"
        )

    def count(self, wanted: Filter = EVERYTHING) -> int:
        """Captions that a filter leaves."""
        if wanted == EVERYTHING:
            row = self._held("SELECT count(*) FROM held.captions").fetchone()
            return int(row[0]) if row else 0
        return len(self._found(wanted))

    def _found(self, wanted: Filter) -> pd.DataFrame:
        """``rowid`` of the captions that a filter leaves; the last few answers are kept, for page after page."""
        found = self.found.get(wanted)
        if found is None:
            condition, values = wanted.sql("folded")
            query = f"SELECT rowid FROM held.captions WHERE {condition}"
            found = self._held(query, values).df()
            with self.lock:
                self.found[wanted] = found
                while len(self.found) > FILTERS:
                    self.found.popitem(last=False)
        return found

    def page(
        self,
        wanted: Filter = EVERYTHING,
        *,
        sort: str = "dcs",
        descending: bool = True,
        first: int = 0,
        rows: int = 50,
    ) -> pd.DataFrame:
        """Some rows in order, with the verdict's columns; equal ones in the order of their captions' ids.

        What is no number comes last.
        """
        name = known(sort, [each for each in SORTS if each in self.columns])
        key = f"CASE WHEN isfinite({name}) THEN {name} END" if name in SCORES else name
        among = {} if wanted == EVERYTHING else {"found": self._found(wanted)}
        # Sorting takes one column of the table; the others are read for the rows that are shown.
        places = self._held(
            f"SELECT rowid FROM held.captions {'WHERE rowid IN (SELECT rowid FROM found)' if among else ''} "
            f"ORDER BY {key} {'DESC' if descending else 'ASC'} NULLS LAST, caption_id LIMIT ? OFFSET ?",
            [rows, first],
            **among,
        ).fetchnumpy()["rowid"]
        chosen = ", ".join(f'verdicts."{name}"' for name in self.more)
        found = self._held(
            f"SELECT here.* EXCLUDE (folded, verdict), {chosen} FROM "
            "(SELECT *, rowid AS place FROM held.captions WHERE rowid IN (SELECT unnest(?))) AS here "
            "LEFT JOIN verdicts USING (caption_id)",
            [places.tolist()],
        ).df()
        return found.set_index("place").loc[places].reset_index(drop=True)

    def undecided(self, top: int | None, path: Path) -> tuple[int, int]:
        """Write those of the `top` highest captions (None: of all) that have no verdict, by their first score.

        What is no number comes last.

        Returns
        -------
        How many captions are meant, and how many of them were written.
        """
        name = self.scores[0]
        order = f"ORDER BY CASE WHEN isfinite({name}) THEN {name} END DESC NULLS LAST, caption_id"
        kept = ", ".join(column for column in ("caption_id", "caption", "image_id") if column in self.columns)
        limit = f"LIMIT {int(top)}" if top is not None else ""
        out = str(path).replace("'", "''")
        self.base.cursor().execute(
            f"COPY (SELECT {kept} FROM (SELECT {kept}, {name} FROM captions {order} {limit}) "
            f"WHERE caption_id NOT IN (SELECT caption_id FROM verdicts) {order}) "
            f"TO '{out}' (FORMAT parquet, ROW_GROUP_SIZE 8192)"
        )
        total = self.run.count("captions")
        return min(top, total) if top is not None else total, pq.read_metadata(path).num_rows

    def histogram(self, score: str, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
        """Edges (bins + 1,) and counts (bins,) of a score over all captions; what is no number is left out."""
        if (score, bins) not in self.histograms:
            self.histograms[score, bins] = self._histogram(known(score, self.scores), bins)
        return self.histograms[score, bins]

    def _histogram(self, name: str, bins: int) -> tuple[np.ndarray, np.ndarray]:
        low, high = self._held(
            f"SELECT min({name}), max({name}) FROM held.captions WHERE isfinite({name})"
        ).fetchone() or (None, None)
        if low is None or high is None:
            return np.array([0.0, 1.0]), np.zeros(1, int)
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        found = self._held(
            f"SELECT least(? - 1, floor(({name} - ?) / ?)::BIGINT) AS bin, count(*) FROM held.captions "
            f"WHERE isfinite({name}) GROUP BY bin",
            [bins, float(edges[0]), float(edges[1] - edges[0])],
        ).fetchall()
        counts = np.zeros(bins, int)
        for place, number in found:
            counts[max(0, place)] += number
        return edges, counts

    def verdicts(self) -> dict[str, int]:
        """How many captions have each verdict."""
        if not self.decided:
            return {}
        rows = (
            self.base.cursor().execute("SELECT verdict, count(*) FROM verdicts GROUP BY verdict").fetchall()
        )
        return dict(rows)

    def decided_as(self, kinds: Sequence[str], among: Sequence[str] = ()) -> list[str]:
        """Ids of captions that have one of some verdicts, or any; out of those named, if any are. In the order of their ids."""
        if not self.decided:
            return []
        rows = (
            self.base.cursor()
            .execute(
                "SELECT caption_id FROM verdicts WHERE (len(?) = 0 OR verdict IN (SELECT unnest(?))) "
                "AND (len(?) = 0 OR caption_id IN (SELECT unnest(?))) ORDER BY caption_id",
                [list(kinds), list(kinds), list(among), list(among)],
            )
            .fetchall()
        )
        return [row[0] for row in rows]

    def template_hits(self) -> pd.DataFrame:
        """``template_id, caption_id, caption, seed, masked_sse``: every template that a sample agrees with.

        A run of an earlier version knows only the nearest template of each caption.
        """
        nothing = pd.DataFrame(columns=["template_id", "caption_id", "caption", "seed", "masked_sse"])
        if not self.decided:
            return nothing
        columns = self._columns("verdicts")
        query = (
            "SELECT hit.template_id, caption_id, caption, hit.seed, hit.masked_sse FROM "
            "(SELECT caption_id, caption, unnest(template_hits) AS hit FROM verdicts)"
            if "template_hits" in columns
            else "SELECT template_id, caption_id, caption, seed, masked_sse FROM verdicts WHERE verdict = 'TV'"
        )
        return self.base.cursor().execute(f"{query} ORDER BY ALL").df()

    def neighbours(self, caption_id: str) -> list[Neighbour]:
        """Training images nearest to the sample that decided, as they were re-ranked; none in a run of an earlier version."""
        if not self.decided or "neighbours" not in self._columns("verdicts"):
            return []
        row = (
            self.base.cursor()
            .execute("SELECT neighbours FROM verdicts WHERE caption_id = ?", [caption_id])
            .fetchone()
        )
        found = row[0] if row and row[0] else []
        # parts of an earlier version say nothing of author, licence and source
        return [
            Neighbour(**{name: value for name, value in each.items() if value is not None}) for each in found
        ]

    def pictures(self, caption_ids: Sequence[str]) -> dict[tuple[str, PictureKind], Picture]:
        """Generated pictures of some captions, by caption and kind; a run of an earlier version kept none.

        Raises
        ------
        InputError
            If one of them is no longer what was written.
        """
        parts = [str(path) for path in self.run.parts("pictures")]
        if not parts:
            return {}
        rows = (
            self.base.cursor()
            .execute(
                "SELECT caption_id, kind, seed, image, sha256 FROM read_parquet(?) "
                "WHERE caption_id IN (SELECT unnest(?))",
                [parts, list(caption_ids)],
            )
            .fetchall()
        )
        found = {}
        for name, kind, seed, png, written in rows:
            if sha256(png) != written:
                raise InputError(
                    f"The {kind} picture of caption {name} in the run {self.run.path.name} was changed after it was written."
                )
            found[name, PictureKind(kind)] = Picture(PictureKind(kind), seed, png, written)
        return found

    def per_seed(self, caption_ids: Sequence[str], score: str) -> pd.DataFrame:
        """``caption_id, seed`` and a score of some captions."""
        name = known(score, ("dcs", "magnitude"))
        parts = self.run.parts("scores")
        return (
            self.base.cursor()
            .execute(
                f"SELECT caption_id, seed, {name} FROM read_parquet(?, union_by_name = true) "
                "WHERE caption_id IN (SELECT unnest(?))",
                [[str(path) for path in parts], list(caption_ids)],
            )
            .df()
        )

    def joined(self, other: Results, score: str, rows: int) -> pd.DataFrame:
        """``caption, first, second``: a score of captions that both runs have, `rows` of them at most."""
        known(score, self.scores)
        known(score, other.scores)
        return (
            self.base.cursor()
            .execute(
                f"SELECT mine.caption, mine.{score} AS first, theirs.{score} AS second FROM captions AS mine "
                "JOIN read_parquet(?, union_by_name = true) AS theirs USING (caption_id) "
                "ORDER BY caption_id LIMIT ?",
                [[str(path) for path in other.run.parts("captions")], rows],
            )
            .df()
        )

    def export(
        self,
        path: Path,
        kind: str,
        wanted: Filter = EVERYTHING,
        *,
        caption_ids: Sequence[str] | None = None,
        also: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write the rows that a filter leaves, or those named, as parquet or CSV, with `also` as further columns.

        In CSV, cells that a spreadsheet would run are escaped.
        """
        known(kind, EXPORTS)
        condition, values = wanted.sql()
        if caption_ids is not None:
            condition, values = "caption_id IN (SELECT unnest(?))", [list(caption_ids)]
        out = str(path).replace("'", "''")
        columns = "*"
        if kind == "csv":
            texts = [
                row[0]
                for row in self.base.cursor().execute("DESCRIBE rows").fetchall()
                if row[1].upper() == "VARCHAR"
            ]
            columns = "* REPLACE (" + ", ".join(f'{escaped(name)} AS "{name}"' for name in texts) + ")"
        columns += "".join(f', ? AS "{known(name, ALSO)}"' for name in also)
        form = "FORMAT parquet, COMPRESSION zstd" if kind == "parquet" else "FORMAT csv, HEADER"
        self.base.cursor().execute(
            f"COPY (SELECT {columns} FROM rows WHERE {condition}) TO '{out}' ({form})",
            [*also.values(), *values],
        )

    def _held(
        self, query: str, values: Sequence[Any] = (), **tables: pd.DataFrame
    ) -> duckdb.DuckDBPyConnection:
        """Ask the table in memory, made at the first time; `tables` stand beside it under their names."""
        with self.lock:
            if not self.held:
                constant = [each for each in ("model", "model_sha256") if each in self.columns]
                left_out = f"EXCLUDE ({', '.join(constant)})" if constant else ""
                self.base.execute("ATTACH ':memory:' AS held (COMPRESS)")
                self.base.execute(
                    f"CREATE TABLE held.captions AS SELECT captions.* {left_out}, lower(captions.caption) AS folded, verdict "
                    "FROM captions LEFT JOIN verdicts USING (caption_id)"
                )
                self.held = True
        cursor = self.base.cursor()
        for name, rows in tables.items():
            cursor.register(name, rows)
        return cursor.execute(query, list(values))


def escaped(name: str) -> str:
    """A column of text with an apostrophe before what a spreadsheet would run."""
    return f'CASE WHEN regexp_matches("{name}", \'{FORMULA}\') THEN chr(39) || "{name}" ELSE "{name}" END'


def known(name: str, names: Sequence[str]) -> str:
    """A column's name, out of those that there are."""
    if name not in names:
        raise InputError(f"There is no column {name[:40]!r}; there are {', '.join(names)}.")
    return name
