"""What an audit will cost, before it begins: evaluations of the network, time, disk."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from audit.runs.scoring import PER_CAPTION
from audit.scores.ecs import ecs_seeds

if TYPE_CHECKING:
    from audit.targets.base import Target

BASELINE_SAMPLES, BASELINE_STEPS = 500, 50
"""Of each caption in Carlini et al. 2023 (arXiv 2301.13188): the audit by full sampling."""
BYTES = 260
"""Of a run's folder for each caption and seed scored, measured on captions of 60 characters."""


@dataclass(frozen=True)
class Plan:
    """One step of all captions, then full samples of some."""

    captions: int
    scoring: int
    """Evaluations of the network for the scores."""
    edges: int
    """Of them, for the edge scores' further seeds."""
    sampled: int
    """Captions that are generated in full."""
    sampling: int
    """Evaluations for them, and for their edge scores where not all captions have them."""
    bytes: int

    @property
    def evaluations(self) -> int:
        return self.scoring + self.sampling

    @property
    def baseline(self) -> int:
        """Evaluations of an audit by full sampling, 500 samples of 50 steps for each caption."""
        return self.captions * BASELINE_SAMPLES * BASELINE_STEPS

    def seconds(self, one_evaluation: float) -> float:
        """At so many seconds an evaluation."""
        return self.evaluations * one_evaluation


def plan(
    captions: int,
    *,
    seeds: Sequence[int],
    scores: Sequence[str],
    top: int,
    sample_seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 16,
) -> Plan:
    """Count what `score` and `verdict` evaluate.

    The unconditional branch of the one step is evaluated once a seed; in full sampling both branches are, twice for
    each of Heun's steps but the last.
    """
    edges = len(set(ecs_seeds(seeds)) - set(seeds)) if set(scores) & set(PER_CAPTION) else 0
    later = 0 if set(PER_CAPTION) <= set(scores) else len(ecs_seeds(seeds))
    sampled = top
    return Plan(
        captions=captions,
        scoring=(captions + 1) * (len(seeds) + edges),
        edges=(captions + 1) * edges,
        sampled=sampled,
        sampling=sampled * (len(sample_seeds) * 2 * (2 * steps - 1) + later),
        bytes=captions * len(seeds) * BYTES,
    )


def share(text: str, captions: int) -> int:
    """How many captions ``100``, ``1%`` or ``all`` means."""
    text = text.strip().lower()
    if text == "all":
        return captions
    if text.endswith("%"):
        return min(captions, math.ceil(Decimal(captions) * Decimal(text[:-1]) / 100))
    return min(captions, int(text))


def pace(target: Target) -> float:
    """Seconds of one evaluation of the model: the best of three after a first one that warms it up."""
    from audit.targets.one_step import start

    x, condition = start(target, [0, 1]), target.encode(["", "a"])
    target.denoise(x, target.sigma_max, condition)
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        float(target.denoise(x, target.sigma_max, condition).sum())  # waits for the device
        seconds.append(time.monotonic() - began)
    return min(seconds) / len(x)
