"""The captions of a run: read once in a stream, each distinct caption kept once, in ``input.parquet``."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from audit.files import put
from audit.records import caption_id
from audit.runs.captions import CHUNK, EMPTY, CaptionSource, Chunk, Rejected, no_captions

MEMORY = ("128MB", "512MB", "2GB")
"""Of the grouping of equal captions; what does not fit goes to the run's own folder meanwhile. More where it has to be."""
LEAST_FREE = 1 << 26
"""Bytes of the disk below which a lack of memory is one of disk."""
ROW_GROUP = 16_384

RAW = pa.schema(
    [("row", pa.int64()), ("caption_id", pa.string()), ("caption", pa.string()), ("image_id", pa.string())]
)
REJECTED = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("start", pa.string())]
)
DISTINCT = """
    COPY (
        WITH firsts AS MATERIALIZED (
            SELECT min(row) AS row, min(row) FILTER (image_id <> '') AS image_row, count(*) AS occurrences
            FROM read_parquet($raw)
            GROUP BY ('0x' || caption_id)::UBIGINT
        )
        SELECT raw.caption_id, raw.caption, coalesce(pictured.image_id, '') AS image_id, occurrences
        FROM read_parquet($raw) AS raw
        JOIN firsts USING (row)
        LEFT JOIN (SELECT row AS image_row, image_id FROM read_parquet($raw) WHERE image_id <> '') AS pictured
            USING (image_row)
        ORDER BY strlen(raw.caption), raw.caption_id
    ) TO '{out}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {group})
"""
"""Groups hold numbers alone, which go to the disk and back at little cost; texts are fetched by their row."""


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
    unread: int
    """Files that could not be read, or not to their end: their other rows are not in this audit."""


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
    try:
        return _take_in(source, folder, work, limit, progress, told)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # on a full disk this is the room in which that can be told


def _take_in(
    source: CaptionSource,
    folder: Path,
    work: Path,
    limit: int | None,
    progress: Callable[[int], None] | None,
    told: Callable[[Intake], None] | None,
) -> Intake:
    rows, used, empty, refused, files = 0, 0, 0, 0, 0
    first: Rejected | None = None
    with (
        pq.ParquetWriter(work / "raw.parquet", RAW) as raw,
        pq.ParquetWriter(work / "rejected.parquet", REJECTED) as rejected,
    ):
        for chunk in gathered(source.chunks(limit)):
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
            files += sum(reason.row == 0 for reason in chunk.rejected)
            if progress:
                progress(rows)
    if not used:
        raise no_captions(source.place, rows, first)
    read = Intake(rows, distinct(work), empty, refused, files)
    if told:
        told(read)
    put(work / "rejected.parquet", folder / "rejected.parquet")
    put(work / "input.parquet", folder / "input.parquet")
    return read


def gathered(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Chunks of many rows out of small ones: each is written as a row group, which has its price."""
    whole = Chunk()
    for chunk in chunks:
        whole.captions += chunk.captions
        whole.image_ids += chunk.image_ids
        whole.rejected += chunk.rejected
        whole.rows += chunk.rows
        if whole.rows >= CHUNK:
            yield whole
            whole = Chunk()
    yield whole


def distinct(work: Path) -> int:
    """Group equal captions of ``raw.parquet``; how many there are."""
    for memory in MEMORY:
        config = {"memory_limit": memory, "threads": 1, "temp_directory": str(work / "spill")}
        out = str(work / "input.parquet").replace("'", "''")
        try:
            with duckdb.connect(config=config) as base:
                base.execute("SET preserve_insertion_order = false")
                base.execute(DISTINCT.format(out=out, group=ROW_GROUP), {"raw": str(work / "raw.parquet")})
            break
        except duckdb.OutOfMemoryException:
            if shutil.disk_usage(work).free < LEAST_FREE:
                raise OSError(errno.ENOSPC, "no room for what does not fit into memory") from None
            if memory == MEMORY[-1]:
                raise
    return pq.read_metadata(work / "input.parquet").num_rows
