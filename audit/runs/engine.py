"""Where the blocks of a run are worked on: in this process, or on many GPUs and machines (`audit.runs.ray_engine`).

An engine takes row ranges of a parquet file in the run's folder, gives each block to a worker (`Scorer`, `Decider`)
and yields what the worker makes of it; this process alone writes into the run. So the rows are the same wherever
they were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from audit.targets.base import Target

BLOCK = 4096
"""Captions read from the input together."""

Tables = dict[str, pa.Table]
Worker = Callable[[pa.RecordBatch], Iterator[Tables]]
Ranges = Sequence[tuple[int, int]]
"""Of rows, each first and one past the last."""


class Engine(Protocol):
    """Works on blocks of a file."""

    def run(
        self, make: Callable[[Target], Worker], target: Target, file: Path, ranges: Ranges, size: int = BLOCK
    ) -> Iterator[tuple[int, Tables]]:
        """The tables of each batch with the row that it begins at, in any order.

        Parameters
        ----------
        make
            Makes a worker of a loaded model.
        target
            The model as this process has it.
        file
            Parquet; its rows are what the worker gets.
        size
            Rows in a block at most.
        """
        ...


class Local:
    """In this process, one block after another."""

    def run(
        self, make: Callable[[Target], Worker], target: Target, file: Path, ranges: Ranges, size: int = BLOCK
    ) -> Iterator[tuple[int, Tables]]:
        worker = make(target)
        for start, stop in ranges:
            for first, block in blocks(file, start, stop, size):
                yield from placed(worker(block), first)


LOCAL = Local()


def blocks(file: Path, start: int, stop: int, size: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows `start` to `stop` of a parquet file, at most `size` together, each block with its first row.

    Only the row groups asked for are read.
    """
    table = pq.ParquetFile(file)
    place = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if place + rows > start and place < stop:
            for block in table.iter_batches(size, row_groups=[group]):
                low, high = max(start - place, 0), min(stop - place, len(block))
                if low < high:
                    yield place + low, block.slice(low, high - low)
                place += len(block)
        else:
            place += rows


def placed(batches: Iterator[Tables], first: int) -> Iterator[tuple[int, Tables]]:
    """The batches of one block, each with the row that it begins at."""
    for tables in batches:
        yield first, tables
        first += min(map(len, tables.values()))  # ``scores`` has a row for each seed
