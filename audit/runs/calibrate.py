"""Calibration of a model: its scores of ordinary captions, and where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from audit.errors import InputError
from audit.runs.scoring import NAMES, PER_CAPTION, score_batch
from audit.scores.calibration import Calibration
from audit.settings import DEMO, settings

if TYPE_CHECKING:
    from audit.targets.base import NoiseSource, Target

ORDINARY = Path(__file__).with_name("ordinary_captions.txt")
"""Captions of our own making, for models whose training set is not at hand."""
SEEDS = (0, 1, 2, 3)


def calibrate(
    target: Target,
    captions: Sequence[str],
    *,
    source: str,
    seeds: Sequence[int] = SEEDS,
    guidance: float = 7.5,
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Score ordinary captions with everything that the target's schedule allows."""
    names = NAMES if np.isfinite(target.sigma_max) else PER_CAPTION
    parts = []
    for start in range(0, len(captions), batch):
        rows = captions[start : start + batch]
        parts.append(score_batch(target, rows, seeds, guidance, names))
        for name, values in (parts[-1].per_seed | parts[-1].per_caption).items():
            if not np.isfinite(values).all():
                raise InputError(
                    f"The model {target.name} gives no number as {name} of some ordinary captions in "
                    f"{target.dtype}; calibrate with --dtype float32."
                )
        if progress:
            progress(start + len(rows), len(captions))
    return Calibration(
        model=target.name,
        model_sha256=target.sha256,
        guidance=guidance,
        seeds=tuple(seeds),
        captions=len(captions),
        source=source,
        noise=target.noise_source,
        per_seed={
            name: np.concatenate([part.per_seed[name] for part in parts]).tolist()
            for name in parts[0].per_seed
        },
        per_caption={
            name: np.concatenate([part.per_caption[name] for part in parts]).tolist()
            for name in parts[0].per_caption
        },
    )


def ordinary_captions(target: Target) -> tuple[list[str], str]:
    """Captions that the target did not memorise, and what they are.

    For the demo, the calibration half of its once-seen and never-seen captions; else the set that ships.
    """
    truth = DEMO / "corpus" / "truth.parquet"
    if target.name == "demo" and truth.is_file():
        table = pq.read_table(truth, columns=["caption", "kind", "split"]).to_pandas()
        chosen = table[(table["split"] == "calibration") & table["kind"].isin(["once", "held_out"])]
        return chosen[
            "caption"
        ].drop_duplicates().tolist(), "calibration half of once-seen and never-seen captions"
    lines = ORDINARY.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line], "ordinary captions that ship with Verbatim"


def calibrations_folder() -> Path:
    return settings().data_dir / "calibrations"


def default_path(target: Target, guidance: float) -> Path:
    """Where `find_calibration` looks for a target's calibration at a guidance."""
    noise = "" if target.noise_source == "cpu" else f"-noise-{target.noise_source}"
    return calibrations_folder() / f"{target.sha256[:16]}-guidance-{guidance:g}{noise}.json"


def find_calibration(
    model_sha256: str, guidance: float, seeds: Sequence[int] | None = None, noise: NoiseSource = "cpu"
) -> Calibration | None:
    """The calibration of a model at a guidance and with a source of noise, if it was made.

    Parameters
    ----------
    seeds
        Cut down to these; one that has not all of them is none. All of its own by default.
    """
    for path in (*sorted(calibrations_folder().glob("*.json")), DEMO / "calibration.json"):
        if not path.is_file():
            continue
        calibration = Calibration.load(path)
        made = (calibration.model_sha256, calibration.guidance, calibration.noise)
        if made != (model_sha256, guidance, noise):
            continue
        if seeds is None:
            return calibration
        if set(seeds) <= set(calibration.seeds):
            return calibration.for_seeds(seeds)
    return None


def require_enough(captions: Sequence[str]) -> None:
    """A calibration of too few captions says nothing at a false-positive rate of 1%."""
    if len(captions) < 99:
        raise InputError(
            f"{len(captions)} ordinary captions are too few to state a false-positive rate of 1%; "
            "give at least 99."
        )
