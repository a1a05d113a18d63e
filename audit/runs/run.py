"""A batch audit: every caption of a source scored once, into a run folder that can be resumed."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import audit
from audit.errors import Cancelled, InputError
from audit.runs.batch_size import BatchSize, find_batch_size
from audit.runs.calibrate import find_calibration
from audit.runs.captions import CaptionSource
from audit.runs.folder import Heart, Parts, RunFolder
from audit.runs.intake import take_in
from audit.runs.scoring import PER_CAPTION, BatchScores, Launched, check_scores, launch_batch
from audit.scores.ecs import ecs_seeds

if TYPE_CHECKING:
    from audit.scores.calibration import Calibration
    from audit.targets.base import Target

BLOCK = 4096
"""Captions read from the input together."""
DECISIVE = ("model_sha256", "captions_sha256", "limit", "scores", "seeds", "guidance", "dtype", "noise")
"""What must be equal for a run to go on."""
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "pillow")


def score(
    target: Target,
    captions: str | Path,
    out: Path,
    *,
    scores: Sequence[str] = ("dcs", "magnitude"),
    seeds: Sequence[int] = (0,),
    guidance: float = 7.5,
    limit: int | None = None,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score each distinct caption of a source, or go on where an earlier call stopped.

    Writes the tables ``scores`` (one row a caption and seed) and ``captions`` (one row a caption). Memory does not
    grow with the number of captions.

    Parameters
    ----------
    captions
        Whatever `CaptionSource` reads.
    batch
        Captions at once; found from free memory by default, and halved when it runs out.
    progress
        Called with (captions done, captions) after each batch.

    Returns
    -------
    What was done, with counts, as it is printed.

    Raises
    ------
    Cancelled
        If somebody asked the run to stop; what was scored is kept.
    """
    check_scores(target, scores)
    source = CaptionSource(captions)
    description = describe(
        target,
        source,
        scores=scores,
        seeds=seeds,
        guidance=guidance,
        noise=target.noise_source,
        limit=limit,
    )
    run = start_or_resume(out, description)
    with run.owned(), Heart(run, "reading") as heart:
        run.repair()
        if not run.has_input:
            try:
                take_in(
                    source,
                    run.path,
                    limit=limit,
                    progress=lambda rows: heart.tell(rows, 0),
                    told=lambda read: run.describe(
                        captions_rows=read.rows, captions_empty=read.empty, captions_rejected=read.rejected
                    ),
                )
            except InputError:
                shutil.rmtree(run.path)  # nothing in it yet, and a mended source would be another question
                raise
        total, gaps = run.total, run.missing()
        pending = sum(last - first for first, last in gaps)
        finished = total - pending

        def tell() -> None:
            if progress:
                progress(finished, total)
            heart.tell(finished, total, "scoring")

        tell()
        calibration = find_calibration(target.sha256, guidance, seeds, target.noise_source)
        size = BatchSize(batch) if batch else find_batch_size(target, seeds, guidance, scores)
        parts = Parts(run)
        try:
            for first, last in gaps:
                for block in run.input_blocks(first, last, BLOCK):
                    for rows, result in score_block(target, block, size, scores, seeds, guidance):
                        parts.add(tables(target, rows, result, seeds, calibration), first)
                        first += len(rows)
                        finished += len(rows)
                        tell()
                parts.write()
        except (Cancelled, KeyboardInterrupt):
            parts.write()
            raise
    description = run.description
    return {
        "run": str(out),
        "captions": total,
        "scored_before": total - pending,
        "scored_now": pending,
        "rows": description["captions_rows"],
        "empty": description["captions_empty"],
        "rejected": description["captions_rejected"],
        "not_a_number": not_a_number(run, scores),
        "seeds": list(seeds),
        "scores": list(scores),
        "batch": size.size,
        "model": target.name,
        "model_sha256": target.sha256,
        "calibrated": calibration is not None,
    }


def describe(target: Target, source: CaptionSource, **parameters: Any) -> dict[str, Any]:
    """What ``run.json`` says."""
    asked = {
        key: list(value) if isinstance(value, (list, tuple)) else value for key, value in parameters.items()
    }
    edges = set(parameters["scores"]) & set(PER_CAPTION)
    return {
        "verbatim": audit.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": target.name,
        "model_sha256": target.sha256,
        "prediction": target.prediction,
        "sigma_max": target.sigma_max if np.isfinite(target.sigma_max) else None,
        "latent_shape": list(target.latent_shape),
        "device": str(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "captions_source": source.place,
        "captions_files": len(source.files),
        "captions_sha256": source.sha256(),
        **asked,
        "ecs_seeds": list(ecs_seeds(parameters["seeds"])) if edges else [],
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }


def start_or_resume(out: Path, description: dict[str, Any]) -> RunFolder:
    """The run in `out`, if it asks the same question; else a new one."""
    if not RunFolder.exists(out):
        return RunFolder.create(out, description)
    run = RunFolder.open(out)
    before = run.description
    for name in DECISIVE:
        if before.get(name) != description[name]:
            raise InputError(
                f"The run {out} was made with {name} {before.get(name)} and not {description[name]}; "
                "resume it with the same, or give another folder."
            )
    return run


def score_block(
    target: Target,
    block: pa.RecordBatch,
    size: BatchSize,
    names: Sequence[str],
    seeds: Sequence[int],
    guidance: float,
) -> Iterator[tuple[pa.RecordBatch, BatchScores]]:
    """Batches of a block with their scores; the next one is begun before one is waited for."""
    place = 0
    flying: tuple[pa.RecordBatch, Launched] | None = None
    while place < len(block):
        rows = block.slice(place, size.size)
        try:
            launched = launch_batch(target, rows.column("caption").to_pylist(), seeds, guidance, names)
        except (RuntimeError, MemoryError) as error:
            size.halve(error)
            continue
        place += len(rows)
        if flying is not None:
            yield flying[0], flying[1].result()
        flying = rows, launched
    if flying is not None:
        yield flying[0], flying[1].result()


def tables(
    target: Target,
    rows: pa.RecordBatch,
    result: BatchScores,
    seeds: Sequence[int],
    calibration: Calibration | None,
) -> dict[str, pa.Table]:
    """Rows of the tables ``scores`` and ``captions`` for one batch."""
    count, each = len(rows), np.repeat(np.arange(len(rows)), len(seeds))
    scores = {
        "caption_id": rows.column("caption_id").take(pa.array(each)),
        "caption": rows.column("caption").take(pa.array(each)),
        "seed": pa.array(np.tile(np.asarray(seeds, np.int64), count)),
        **{name: pa.array(values.reshape(-1)) for name, values in result.per_seed.items()},
    }
    means = {name: values.mean(axis=1) for name, values in result.per_seed.items()} | result.per_caption
    tokens = np.asarray(target.tokens(rows.column("caption").to_pylist()), np.int64)
    captions = {
        **{name: rows.column(name) for name in rows.schema.names},
        "tokens": pa.array(tokens),
        "truncated": pa.array(tokens > target.max_tokens),
        **{name: pa.array(values) for name, values in means.items()},
    }
    if calibration is not None:
        captions |= {
            f"{name}_percentile": pa.array(calibration.percentiles(name, values))
            for name, values in means.items()
            if name in calibration.values
        }
    model = {"model": target.name, "model_sha256": target.sha256}
    return {
        "scores": pa.table(
            scores | {key: pa.repeat(value, count * len(seeds)) for key, value in model.items()}
        ),
        "captions": pa.table(captions | {key: pa.repeat(value, count) for key, value in model.items()}),
    }


def not_a_number(run: RunFolder, names: Sequence[str]) -> int:
    """Captions with a score that is no number."""
    count = 0
    for part in run.parts("captions"):
        table = pq.read_table(part, columns=list(names))
        finite = [np.isfinite(column.to_numpy()) for column in table.columns]
        count += len(table) - int(np.logical_and.reduce(finite).sum())
    return count
