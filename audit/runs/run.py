"""A batch audit: every caption of a source scored once, into a run folder that can be resumed."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

import audit
from audit.errors import InputError
from audit.runs.calibrate import find_calibration
from audit.runs.captions import CaptionSource
from audit.runs.engine import LOCAL, Engine
from audit.runs.folder import INPUT, Heart, Parts, RunFolder
from audit.runs.intake import take_in
from audit.runs.scorer import Scorer
from audit.runs.scoring import PER_CAPTION, check_scores
from audit.scores.ecs import ecs_seeds

if TYPE_CHECKING:
    from audit.targets.base import Target

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
    engine: Engine = LOCAL,
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
    engine
        Where it is computed.
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
    source, run = open_run(target, captions, out, scores=scores, seeds=seeds, guidance=guidance, limit=limit)
    with run.work("reading") as heart:
        read_captions_into(run, heart, source)
        return score_into(run, heart, target, batch=batch, engine=engine, progress=progress)


def open_run(
    target: Target,
    captions: str | Path,
    out: Path,
    *,
    scores: Sequence[str],
    seeds: Sequence[int],
    guidance: float,
    limit: int | None,
) -> tuple[CaptionSource, RunFolder]:
    """The captions, and the run in `out`: a new one, or the one there if it asks the same question."""
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
    return source, start_or_resume(out, description)


def read_captions_into(run: RunFolder, heart: Heart, source: CaptionSource) -> None:
    """Read the captions into the run's folder, unless they are there."""
    if run.has_input:
        return
    try:
        take_in(
            source,
            run.path,
            limit=run.description["limit"],
            progress=lambda rows: heart.tell(rows, 0),
            told=lambda read: run.describe(
                captions_rows=read.rows,
                captions_empty=read.empty,
                captions_rejected=read.rejected,
                captions_unread=read.unread,
            ),
        )
    except InputError:
        shutil.rmtree(run.path)  # nothing in it yet, and a mended source would be another question
        raise


def score_into(
    run: RunFolder,
    heart: Heart,
    target: Target,
    *,
    batch: int | None = None,
    engine: Engine = LOCAL,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score the captions of a run that have no scores yet; see `score`."""
    asked = run.description
    scores, seeds, guidance = asked["scores"], asked["seeds"], asked["guidance"]
    total, gaps = run.total, run.missing()
    pending = sum(last - first for first, last in gaps)
    finished = total - pending

    def tell() -> None:
        if progress:
            progress(finished, total)
        heart.tell(finished, total, "scoring")

    calibration = find_calibration(target.sha256, guidance, seeds, target.noise_source)
    make = partial(
        Scorer, scores=scores, seeds=seeds, guidance=guidance, calibration=calibration, batch=batch
    )
    with Parts(run) as parts:
        tell()
        for first, tables in engine.run(make, target, run.path / INPUT, gaps):
            parts.add(tables, first)
            finished += len(tables["captions"])
            tell()
    return {
        "run": str(run.path),
        "captions": total,
        "scored_before": total - pending,
        "scored_now": pending,
        "rows": asked["captions_rows"],
        "empty": asked["captions_empty"],
        "rejected": asked["captions_rejected"],
        "files_not_read_to_their_end": asked.get("captions_unread", 0),
        "not_a_number": not_a_number(run, scores),
        "seeds": list(seeds),
        "scores": list(scores),
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


def not_a_number(run: RunFolder, names: Sequence[str]) -> int:
    """Captions with a score that is no number."""
    count = 0
    for part in run.parts("captions"):
        table = pq.read_table(part, columns=list(names))
        finite = [np.isfinite(column.to_numpy()) for column in table.columns]
        count += len(table) - int(np.logical_and.reduce(finite).sum())
    return count
