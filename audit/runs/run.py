"""A batch audit: every caption of a file scored once, into a run folder that can be resumed."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import audit
from audit.errors import InputError
from audit.images import sha256
from audit.runs.calibrate import find_calibration
from audit.runs.captions import read_captions
from audit.runs.folder import Parts, RunFolder
from audit.runs.scoring import PER_CAPTION, check_scores, score_batch
from audit.scores.ecs import ecs_seeds

if TYPE_CHECKING:
    from audit.scores.calibration import Calibration
    from audit.targets.base import Target

BATCH = 32
DECISIVE = ("model_sha256", "captions_sha256", "limit", "scores", "seeds", "guidance", "dtype", "noise")
"""What must be equal for a run to go on."""
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy", "pillow")


def score(
    target: Target,
    captions: Path,
    out: Path,
    *,
    scores: Sequence[str] = ("dcs", "magnitude"),
    seeds: Sequence[int] = (0,),
    guidance: float = 7.5,
    limit: int | None = None,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score each distinct caption of a file, or go on where an earlier call stopped.

    Writes the tables ``scores`` (one row a caption and seed) and ``captions`` (one row a caption).

    Parameters
    ----------
    progress
        Called with (captions done, captions) after each batch.

    Returns
    -------
    What was done, with counts, as it is printed.
    """
    check_scores(target, scores)
    description = describe(
        target,
        captions,
        scores=scores,
        seeds=seeds,
        guidance=guidance,
        noise=target.noise_source,
        limit=limit,
    )
    run = start_or_resume(captions, out, description)
    with run.owned():
        run.repair()
        done = run.table("captions")
        pending = run.captions()
        if len(done):
            pending = pending.loc[~pending["caption_id"].isin(done["caption_id"])]
        calibration = find_calibration(target.sha256, guidance, seeds, target.noise_source)
        total, finished = len(done) + len(pending), len(done)
        if progress:
            progress(finished, total)
        parts = Parts(run)
        for rows in batches(target, pending, batch):
            parts.add(score_rows(target, rows, scores, seeds, guidance, calibration))
            finished += len(rows)
            if progress:
                progress(finished, total)
        parts.write()
        numbers = run.table("captions")[list(scores)].to_numpy(float) if total else np.empty(0)
    return {
        "run": str(out),
        "captions": total,
        "scored_before": len(done),
        "scored_now": len(pending),
        "empty": description["captions_empty"],
        "not_a_number": int((~np.isfinite(numbers)).any(axis=-1).sum()),
        "seeds": list(seeds),
        "scores": list(scores),
        "model": target.name,
        "model_sha256": target.sha256,
        "calibrated": calibration is not None,
    }


def describe(target: Target, captions: Path, **parameters: Any) -> dict[str, Any]:
    """What ``run.json`` says."""
    if not captions.is_file():
        raise InputError(f"There is no file {captions}; check the path.")
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
        "captions_file": captions.name,
        "captions_sha256": sha256(captions),
        **asked,
        "ecs_seeds": list(ecs_seeds(parameters["seeds"])) if edges else [],
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }


def start_or_resume(captions: Path, out: Path, description: dict[str, Any]) -> RunFolder:
    """The run in `out`, if it asks the same question; else a new one."""
    if RunFolder.exists(out):
        run = RunFolder.open(out)
        before = run.description
        for name in DECISIVE:
            if before.get(name) != description[name]:
                raise InputError(
                    f"The run {out} was made with {name} {before.get(name)} and not {description[name]}; "
                    "resume it with the same, or give another folder."
                )
        description["captions_empty"] = before["captions_empty"]
        return run
    file = read_captions(captions, description["limit"])
    description["captions_rows"], description["captions_empty"] = file.rows, file.empty
    description["captions_column"] = file.column
    return RunFolder.create(out, description, file.captions)


def batches(target: Target, captions: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    """Captions in batches, short ones first, with the columns ``tokens`` and ``truncated``."""
    texts = captions["caption"].tolist()
    tokens = [
        count for start in range(0, len(texts), 4096) for count in target.tokens(texts[start : start + 4096])
    ]
    counted = captions.assign(tokens=tokens, truncated=np.asarray(tokens, int) > target.max_tokens)
    ordered = counted.sort_values(["tokens", "caption_id"])
    for start in range(0, len(ordered), size):
        yield ordered.iloc[start : start + size]


def score_rows(
    target: Target,
    rows: pd.DataFrame,
    names: Sequence[str],
    seeds: Sequence[int],
    guidance: float,
    calibration: Calibration | None,
) -> dict[str, pd.DataFrame]:
    """Rows of the tables ``scores`` and ``captions`` for one batch."""
    result = score_batch(target, rows["caption"].tolist(), seeds, guidance, names)
    model = {"model": target.name, "model_sha256": target.sha256}
    scores = pd.DataFrame(
        {
            "caption_id": rows["caption_id"].repeat(len(seeds)).to_numpy(),
            "caption": rows["caption"].repeat(len(seeds)).to_numpy(),
            "seed": np.tile(np.asarray(seeds, np.int64), len(rows)),
            **{name: table.reshape(-1) for name, table in result.per_seed.items()},
            **model,
        }
    )
    means = {name: table.mean(axis=1) for name, table in result.per_seed.items()} | result.per_caption
    percentiles = {
        f"{name}_percentile": [calibration.percentile(name, value) for value in values]
        for name, values in means.items()
        if calibration is not None and name in calibration.values
    }
    captions = rows.reset_index(drop=True).assign(**means, **percentiles, **model)
    return {"scores": scores, "captions": captions}
