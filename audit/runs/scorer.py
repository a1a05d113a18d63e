"""The worker of the first stage: blocks of captions in, rows of the tables ``scores`` and ``captions`` out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from audit.runs.batch_size import BatchSize, find_batch_size
from audit.runs.scoring import BatchScores, Launched, launch_batch

if TYPE_CHECKING:
    from audit.scores.calibration import Calibration
    from audit.targets.base import Target


class Scorer:
    """Scores blocks of captions with one model: what one process does, on this machine or on a node of a cluster.

    Parameters
    ----------
    batch
        Captions at once; found from free memory by default, and halved when it runs out.
    """

    def __init__(
        self,
        target: Target,
        *,
        scores: Sequence[str],
        seeds: Sequence[int],
        guidance: float,
        calibration: Calibration | None = None,
        batch: int | None = None,
    ):
        self.target = target
        self.names, self.seeds, self.guidance = tuple(scores), tuple(seeds), guidance
        self.calibration = calibration
        self.size = BatchSize(batch) if batch else find_batch_size(target, seeds, guidance, scores)

    def __call__(self, block: pa.RecordBatch) -> Iterator[dict[str, pa.Table]]:
        """Tables of one batch after another; the next one is begun before one is waited for."""
        flying: tuple[pa.RecordBatch, Launched] | None = None
        for launched in self.size.batches(block, self.launch):
            if flying is not None:
                yield self.tables(flying[0], flying[1].result())
            flying = launched
        if flying is not None:
            yield self.tables(flying[0], flying[1].result())

    def launch(self, rows: pa.RecordBatch) -> Launched:
        captions = rows.column("caption").to_pylist()
        return launch_batch(self.target, captions, self.seeds, self.guidance, self.names)

    def tables(self, rows: pa.RecordBatch, result: BatchScores) -> dict[str, pa.Table]:
        """Rows of the tables for one batch."""
        count, each = len(rows), np.repeat(np.arange(len(rows)), len(self.seeds))
        scores = {
            "caption_id": rows.column("caption_id").take(pa.array(each)),
            "caption": rows.column("caption").take(pa.array(each)),
            "seed": pa.array(np.tile(np.asarray(self.seeds, np.int64), count)),
            **{name: pa.array(values.reshape(-1)) for name, values in result.per_seed.items()},
        }
        means = {name: values.mean(axis=1) for name, values in result.per_seed.items()} | result.per_caption
        tokens = np.asarray(self.target.tokens(rows.column("caption").to_pylist()), np.int64)
        captions = {
            **{name: rows.column(name) for name in rows.schema.names},
            "tokens": pa.array(tokens),
            "truncated": pa.array(tokens > self.target.max_tokens),
            **{name: pa.array(values) for name, values in means.items()},
        }
        if self.calibration is not None:
            captions |= {
                f"{name}_percentile": pa.array(self.calibration.percentiles(name, values))
                for name, values in means.items()
                if name in self.calibration.values
            }
        model = {"model": self.target.name, "model_sha256": self.target.sha256}
        return {
            "scores": pa.table(scores | {key: pa.repeat(value, len(each)) for key, value in model.items()}),
            "captions": pa.table(captions | {key: pa.repeat(value, count) for key, value in model.items()}),
        }
