"""The captions of a run: read once in a stream, each distinct caption kept once, in ``input.parquet``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from audit.records import caption_id
from audit.runs.captions import EMPTY, CaptionSource, Rejected, no_captions
from audit.runs.folder import put

MEMORY = "256MB"
"""Of the grouping of equal captions; what does not fit goes to the run's own folder meanwhile."""
ROW_GROUP = 16_384

RAW = pa.schema(
    [("row", pa.int64()), ("caption_id", pa.string()), ("caption", pa.string()), ("image_id", pa.string())]
)
REJECTED = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("start", pa.string())]
)
DISTINCT = """
    COPY (
        SELECT caption_id,
               arg_min(caption, row) AS caption,
               coalesce(arg_min(image_id, row) FILTER (image_id <> ''), '') AS image_id,
               count(*) AS occurrences
        FROM read_parquet($raw)
        GROUP BY caption_id
        ORDER BY strlen(any_value(caption)), caption_id
    ) TO '{out}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {group})
"""


@dataclass(frozen=True)
class Intake:
    """What was read of a source."""

    rows: int
    captions: int
    """Distinct ones."""
    empty: int
    """Rows without text."""
    rejected: int
    """Rows that could not be used, the empty ones among them; each stands in ``rejected.parquet``."""


def take_in(
    source: CaptionSource,
    folder: Path,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
    told: Callable[[Intake], None] | None = None,
) -> Intake:
    """Write ``input.parquet`` and ``rejected.parquet`` into a run's folder.

    ``input.parquet`` holds ``caption_id, caption, image_id, occurrences``, short captions first, and is there only
    when it is whole. Memory stays the same however many captions there are.

    Parameters
    ----------
    limit
        Rows to read from the start; all by default.
    progress
        Called with the rows read so far; what it raises ends the reading.
    told
        Called with the counts before ``input.parquet`` appears, which says that the reading is over.

    Raises
    ------
    InputError
        If no row holds a caption.
    """
    work = folder / "intake"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows, used, empty, refused = 0, 0, 0, 0
    first: Rejected | None = None
    with (
        pq.ParquetWriter(work / "raw.parquet", RAW) as raw,
        pq.ParquetWriter(work / "rejected.parquet", REJECTED) as rejected,
    ):
        for chunk in source.chunks(limit):
            count = len(chunk.captions)
            if count:
                columns = [
                    range(used, used + count),
                    [caption_id(caption) for caption in chunk.captions],
                    chunk.captions,
                    chunk.image_ids,
                ]
                raw.write_table(pa.table([*map(pa.array, columns)], schema=RAW))
            if chunk.rejected:
                reasons = [vars(reason) for reason in chunk.rejected]
                rejected.write_table(pa.Table.from_pylist(reasons, schema=REJECTED))
                first = first or chunk.rejected[0]
            rows += chunk.rows
            used += count
            refused += len(chunk.rejected)
            empty += sum(reason.reason == EMPTY for reason in chunk.rejected)
            if progress:
                progress(rows)
    if not used:
        shutil.rmtree(work)
        raise no_captions(source.place, rows, first)
    read = Intake(rows, distinct(work), empty, refused)
    if told:
        told(read)
    put(work / "rejected.parquet", folder / "rejected.parquet")
    put(work / "input.parquet", folder / "input.parquet")
    shutil.rmtree(work)
    return read


def distinct(work: Path) -> int:
    """Group equal captions of ``raw.parquet``; how many there are."""
    with duckdb.connect(
        config={"memory_limit": MEMORY, "threads": 2, "temp_directory": str(work / "spill")}
    ) as base:
        out = str(work / "input.parquet").replace("'", "''")
        base.execute("SET preserve_insertion_order = false")
        base.execute(DISTINCT.format(out=out, group=ROW_GROUP), {"raw": str(work / "raw.parquet")})
    return pq.read_metadata(work / "input.parquet").num_rows
