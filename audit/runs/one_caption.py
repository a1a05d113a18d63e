"""The whole way of one caption: one step and its scores, then full samples, neighbours and verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audit.errors import InputError
from audit.records import Score, caption_id
from audit.scores.dcs import dcs_heatmap
from audit.scores.ecs import consistent, ecs_heatmap
from audit.scores.magnitude import magnitude_heatmap
from audit.settings import settings
from audit.targets.one_step import OneStep, one_step
from audit.targets.pipelines import readable

if TYPE_CHECKING:
    from audit.targets.base import Target

ROWS = 32
"""Captions times seeds denoised together."""


@dataclass(frozen=True)
class Look:
    """One denoising step of one caption."""

    caption: str
    seeds: tuple[int, ...]
    guidance: float
    pictures: np.ndarray
    """(seeds, H, W, 3) float32 in [0, 1]: one-step pictures at `guidance`."""
    pictures_g1: np.ndarray
    """The same at guidance 1."""
    scores: dict[str, Score]
    """``dcs`` and ``magnitude`` (means over the seeds; absent for zero terminal SNR), ``ecs``, ``ecs_g1``."""
    per_seed: dict[str, np.ndarray]
    """Name -> (seeds,) for ``dcs`` and ``magnitude``."""
    tokens: int
    truncated: bool
    """Whether the model sees only the start of the caption."""

    @property
    def caption_id(self) -> str:
        return caption_id(self.caption)


def check_caption(text: str) -> str:
    """A caption as it is asked: half surrogate pairs replaced, refused when empty or too long."""
    caption = readable(text)
    if not caption.strip():
        raise InputError("The caption is empty; type what the picture should show.")
    limit = settings().max_caption_chars
    if len(caption) > limit:
        raise InputError(
            f"The caption has {len(caption):,} characters, {limit:,} are allowed; models read the first few dozen "
            "words only, so shorten it."
        )
    return caption


def look(target: Target, captions: Sequence[str], seeds: Sequence[int], guidance: float = 7.5) -> list[Look]:
    """Denoise each caption once at each seed: pictures, scores and heatmaps.

    Guidance 1 needs no further evaluation of the model: it is the conditional branch.
    """
    condition = target.encode(captions)
    tokens = target.tokens(captions)
    together = max(1, ROWS // len(seeds))
    looks = []
    for start in range(0, len(captions), together):
        rows = slice(start, start + together)
        repeated = condition[rows].repeat_interleave(len(seeds), dim=0)
        step = one_step(target, repeated, list(seeds) * len(captions[rows]), guidance)
        pictures = by_caption(target.decode(step.denoised), len(seeds))
        pictures_g1 = pictures if guidance == 1 else by_caption(target.decode(step.conditional), len(seeds))
        maps = {name: by_caption(table, len(seeds)) for name, table in heatmaps(step).items()}
        for row, caption in enumerate(captions[rows]):
            per_seed = {name: REDUCTIONS[name](table[row]) for name, table in maps.items()}
            scores = {
                name: Score(name, float(values.mean()), maps[name][row].mean(axis=0), tuple(seeds))
                for name, values in per_seed.items()
            }
            scores["ecs"] = edge_score("ecs", pictures[row], seeds)
            scores["ecs_g1"] = edge_score("ecs_g1", pictures_g1[row], seeds)
            looks.append(
                Look(
                    caption=caption,
                    seeds=tuple(seeds),
                    guidance=guidance,
                    pictures=pictures[row],
                    pictures_g1=pictures_g1[row],
                    scores=scores,
                    per_seed=per_seed,
                    tokens=tokens[start + row],
                    truncated=tokens[start + row] > target.max_tokens,
                )
            )
    return looks


def heatmaps(step: OneStep) -> dict[str, np.ndarray]:
    """Name -> (batch, h, w); none where sigma is infinite."""
    if math.isinf(step.sigma):
        return {}
    return {
        "dcs": dcs_heatmap(step.x, step.denoised).cpu().numpy(),
        "magnitude": magnitude_heatmap(step.conditional, step.unconditional, step.sigma).cpu().numpy(),
    }


REDUCTIONS = {
    "dcs": lambda maps: maps.mean(axis=(1, 2)),
    "magnitude": lambda maps: np.sqrt(np.square(maps).sum(axis=(1, 2))),
}
"""Score from heatmap, (seeds, h, w) -> (seeds,)."""


def edge_score(name: str, pictures: np.ndarray, seeds: Sequence[int]) -> Score:
    heatmap = ecs_heatmap(pictures)
    return Score(name, consistent(heatmap), heatmap, tuple(seeds))


def by_caption(rows: np.ndarray, seeds: int) -> np.ndarray:
    """(captions * seeds, ...) as (captions, seeds, ...)."""
    return rows.reshape(-1, seeds, *rows.shape[1:])
