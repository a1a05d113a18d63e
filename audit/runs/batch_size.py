"""How many captions are scored together: as many as memory takes, and fewer when it runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from audit.runs.scoring import launch_batch

if TYPE_CHECKING:
    import pyarrow as pa

    from audit.targets.base import Target

Made = TypeVar("Made")

ON_CPU = 32
"""Larger batches are no faster there, measured on the demo; smaller ones are."""
LARGEST = 1024
SHARE = 0.7
"""Of the free memory of a GPU that a batch may take."""
TRIALS = (4, 16)
"""Two batches tell what a caption costs beside what is there anyway."""


class BatchSize:
    """The present size, halved when memory runs out."""

    def __init__(self, size: int):
        self.size = size

    def batches(
        self, block: pa.RecordBatch, work: Callable[[pa.RecordBatch], Made]
    ) -> Iterator[tuple[pa.RecordBatch, Made]]:
        """The batches of a block, each with what `work` makes of it; tried again with half as many rows."""
        place = 0
        while place < len(block):
            rows = block.slice(place, self.size)
            try:
                made = work(rows)
            except (RuntimeError, MemoryError) as error:
                self.halve(error)
                continue
            place += len(rows)
            yield rows, made

    def halve(self, error: BaseException) -> None:
        """Go on with half as many; what is no lack of memory, or cannot be halved, is raised again."""
        if self.size == 1 or not out_of_memory(error):
            raise error
        self.size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
    )


def find_batch_size(target: Target, seeds: Sequence[int], guidance: float, names: Sequence[str]) -> BatchSize:
    """From the memory that is free now: two small batches are scored and the rest is proportion."""
    if target.device.type != "cuda":
        return BatchSize(ON_CPU)
    peaks = []
    for rows in TRIALS:
        torch.cuda.reset_peak_memory_stats(target.device)
        before = torch.cuda.memory_allocated(target.device)
        try:
            launch_batch(target, ["a"] * rows, seeds, guidance, names).result()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            return BatchSize(TRIALS[0] if peaks else 1)
        peaks.append(torch.cuda.max_memory_allocated(target.device) - before)
    row = max(1, (peaks[1] - peaks[0]) // (TRIALS[1] - TRIALS[0]))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(target.device)
    fits = int(SHARE * free) // row
    return BatchSize(max(1, min(LARGEST, 1 << max(0, fits.bit_length() - 1))))
