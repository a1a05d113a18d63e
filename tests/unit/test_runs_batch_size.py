"""Batches that are halved when memory runs out."""

import pyarrow as pa
import pytest

from audit.runs.batch_size import BatchSize

BLOCK = pa.record_batch({"row": list(range(21))})


def test_batches_are_halved_until_they_fit_and_hold_every_row_once():
    asked = []

    def work(rows):
        asked.append(len(rows))
        if len(rows) > 5:
            raise MemoryError
        return sum(rows.column("row").to_pylist())

    size = BatchSize(16)
    made = list(size.batches(BLOCK, work))
    assert asked == [16, 8, 4, 4, 4, 4, 4, 1] and size.size == 4
    assert [row for rows, _ in made for row in rows.column("row").to_pylist()] == list(range(21))
    assert sum(total for _, total in made) == sum(range(21))


def test_what_is_no_lack_of_memory_or_cannot_be_halved_is_raised():
    def broken(rows):
        raise RuntimeError("a wrong shape")

    def hungry(rows):
        raise MemoryError

    with pytest.raises(RuntimeError, match="a wrong shape"):
        list(BatchSize(16).batches(BLOCK, broken))
    with pytest.raises(MemoryError):
        list(BatchSize(16).batches(BLOCK, hungry))
