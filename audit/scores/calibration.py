"""Scores of ordinary captions: what a score is compared with.

A threshold at a false-positive rate is a conformal quantile: a new ordinary caption, exchangeable with the
calibration's, exceeds it with at most that probability (Vovk et al. 2005, chapter 2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from audit.errors import InputError
from audit.scores.ecs import ecs_seeds


@dataclass(frozen=True)
class Calibration:
    """Scores that one model gives to ordinary captions."""

    model: str
    model_sha256: str
    guidance: float
    seeds: tuple[int, ...]
    captions: int
    """How many ordinary captions were scored."""
    source: str
    """Where they came from."""
    per_seed: dict[str, list[list[float]]]
    """Score name -> (captions, seeds)."""
    per_caption: dict[str, list[float]]
    """Score name -> (captions,), for scores over all seeds together."""
    noise: str = "cpu"
    """Where its noise was drawn, ``cpu`` or ``device``: the same seed is other noise on each."""

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Score name -> sorted values of the ordinary captions; means over seeds where each seed has one."""
        means = {name: np.mean(table, axis=1) for name, table in self.per_seed.items()}
        return {name: np.sort(np.asarray(row, float)) for name, row in (means | self.per_caption).items()}

    def for_seeds(self, seeds: Sequence[int]) -> Calibration:
        """The same captions at some of the seeds: scores ride on an offset that differs between seeds.

        Edge scores are kept where they are of the same `ecs_seeds`.
        """
        if set(seeds) == set(self.seeds):
            return self
        absent = sorted(set(seeds) - set(self.seeds))
        if absent:
            raise InputError(
                f"The calibration of {self.model} has seeds {join(self.seeds)} and not {join(absent)}; "
                "use these or calibrate anew."
            )
        columns = [self.seeds.index(seed) for seed in seeds]
        return replace(
            self,
            seeds=tuple(seeds),
            per_seed={name: np.asarray(t)[:, columns].tolist() for name, t in self.per_seed.items()},
            per_caption=self.per_caption if set(ecs_seeds(seeds)) == set(ecs_seeds(self.seeds)) else {},
        )

    def percentile(self, name: str, value: float) -> float:
        """Percentage of ordinary captions that score below `value`, in [0, 100]; NaN for NaN."""
        return float(self.percentiles(name, np.asarray([value]))[0])

    def percentiles(self, name: str, values: np.ndarray) -> np.ndarray:
        """`percentile` of (n,) values."""
        ordinary = self._values(name)
        below = np.searchsorted(ordinary, values, side="left") / len(ordinary)
        return np.where(np.isnan(values), np.nan, 100.0 * below)

    def threshold(self, name: str, fpr: float) -> float:
        """The score that a new ordinary caption exceeds with probability `fpr` at most.

        The ``ceil((n + 1) * (1 - fpr))``-th smallest of n ordinary scores.

        Raises
        ------
        InputError
            If n captions are too few for so small a rate.
        """
        values = self._values(name)
        try:
            return conformal_threshold(values, fpr)
        except InputError as error:
            raise InputError(f"{error} (calibration of {self.model}, score {name})") from None

    def _values(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise InputError(
                f"The calibration of {self.model} has no score {name!r}, only {', '.join(self.values)}; "
                "calibrate anew."
            )
        return self.values[name]

    def save(self, path: Path) -> None:
        """Write as JSON, values to 7 significant digits."""
        content = asdict(self)
        content["per_seed"] = {
            name: [[short(v) for v in row] for row in t] for name, t in self.per_seed.items()
        }
        content["per_caption"] = {name: [short(v) for v in row] for name, row in self.per_caption.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            calibration = cls(**{**content, "seeds": tuple(content["seeds"])})
            sizes = {len(table) for table in (calibration.per_seed | calibration.per_caption).values()}
            finite = all(np.isfinite(values).all() for values in calibration.values.values())
        except OSError as error:
            raise InputError(f"The calibration {path} cannot be read; check the path.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"The file {path} is no calibration; write one with `calibrate`.") from error
        if sizes != {calibration.captions} or not finite:
            raise InputError(f"The calibration {path} is incomplete; calibrate anew.")
        return calibration


def conformal_threshold(values: np.ndarray, fpr: float) -> float:
    """The ``ceil((n + 1) * (1 - fpr))``-th smallest of n sorted values.

    Examples
    --------
    >>> conformal_threshold(np.arange(1.0, 100.0), 0.01)
    99.0
    >>> conformal_threshold(np.arange(1.0, 100.0), 0.05)
    95.0
    """
    if not 0 < fpr < 1:
        raise InputError(f"A false-positive rate lies between 0 and 1; got {fpr}.")
    allowed = math.floor((len(values) + 1) * fpr + 1e-9)
    if allowed < 1:
        raise InputError(
            f"{len(values)} ordinary captions are too few for a false-positive rate of {fpr:g}; "
            f"at least {math.ceil(1 / fpr - 1e-9) - 1} are needed."
        )
    return float(values[len(values) - allowed])


def short(value: float) -> float:
    """Seven significant digits, all that float32 has."""
    return float(f"{value:.7g}")


def join(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
