"""Scores of a batch of captions: one denoising step a seed, decoded only where a score asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from audit.errors import InputError
from audit.scores.dcs import check_sigma, dcs
from audit.scores.ecs import consistent, ecs_seeds, edges
from audit.scores.magnitude import magnitude
from audit.targets.one_step import one_step

if TYPE_CHECKING:
    from torch import Tensor

    from audit.targets.base import Target

PER_SEED = ("dcs", "magnitude")
PER_CAPTION = ("ecs", "ecs_g1")
"""ECS at the guidance asked for (faithful at 7.5), and at guidance 1 under its own name."""
NAMES = (*PER_SEED, *PER_CAPTION)


@dataclass(frozen=True)
class BatchScores:
    """Scores of a batch of captions."""

    per_seed: dict[str, np.ndarray]
    """Name -> (captions, seeds) float32."""
    per_caption: dict[str, np.ndarray]
    """Name -> (captions,) float32."""


class Arriving:
    """A tensor on its way to the host: the device goes on meanwhile."""

    def __init__(self, tensor: Tensor):
        self.ready = None
        if tensor.device.type != "cuda":
            self.tensor = tensor
            return
        self.tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.tensor.copy_(tensor, non_blocking=True)
        self.ready = torch.cuda.Event()
        self.ready.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> np.ndarray:
        if self.ready is not None:
            self.ready.synchronize()
        return self.tensor.cpu().numpy()


@dataclass(frozen=True)
class Launched:
    """A batch whose scores the device may still be computing."""

    per_seed: dict[str, Arriving]
    per_caption: dict[str, np.ndarray]

    def result(self) -> BatchScores:
        """The scores; waits for the device."""
        return BatchScores({name: each.numpy() for name, each in self.per_seed.items()}, self.per_caption)


def check_scores(target: Target, names: Sequence[str]) -> None:
    """Refuse unknown scores, and those that the target's schedule cannot have."""
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise InputError(f"The scores are {', '.join(NAMES)}; got {', '.join(unknown) or 'none'}.")
    for name in names:
        if name in PER_SEED:
            check_sigma(target.sigma_max, name)


def launch_batch(
    target: Target, captions: Sequence[str], seeds: Sequence[int], guidance: float, names: Sequence[str]
) -> Launched:
    """Begin to score captions together.

    Parameters
    ----------
    seeds
        Of ``dcs`` and ``magnitude``; the edge scores look at `ecs_seeds` of them.
    names
        Of `NAMES`.
    """
    condition = target.encode(captions)
    pictured = ecs_seeds(seeds) if set(names) & set(PER_CAPTION) else ()
    columns: dict[str, list[Tensor]] = {name: [] for name in names if name in PER_SEED}
    edge_counts = {
        name: np.zeros((len(captions), 256, 256), np.uint8) for name in names if name in PER_CAPTION
    }
    for seed in dict.fromkeys((*seeds, *pictured)):
        step = one_step(target, condition, seed, guidance)
        if seed in seeds:
            if "dcs" in columns:
                columns["dcs"].append(dcs(step.x, step.denoised))
            if "magnitude" in columns:
                columns["magnitude"].append(magnitude(step.conditional, step.unconditional, step.sigma))
        if seed in pictured:
            for name, counts in edge_counts.items():
                pictures = target.decode(step.guided(1.0 if name == "ecs_g1" else guidance))
                counts += np.stack([edges(picture) for picture in pictures])
    return Launched(
        {name: Arriving(torch.stack(values, dim=1)) for name, values in columns.items()},
        {
            name: np.array([consistent(count / len(pictured)) for count in counts], np.float32)
            for name, counts in edge_counts.items()
        },
    )


def score_batch(
    target: Target, captions: Sequence[str], seeds: Sequence[int], guidance: float, names: Sequence[str]
) -> BatchScores:
    """Score captions together; see `launch_batch`."""
    return launch_batch(target, captions, seeds, guidance, names).result()
