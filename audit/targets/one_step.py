"""One denoising step from pure noise: all that the scores look at (Webster 2023, section 3)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from audit.targets.base import Target


@dataclass(frozen=True)
class OneStep:
    """What one denoising step gives for a batch of captions; tensors are (batch, channels, height, width)."""

    x: Tensor
    """Where it starts: ``noise * sigma`` (the bare noise where sigma is infinite)."""
    conditional: Tensor
    """``D(x, sigma, caption)``."""
    unconditional: Tensor
    """``D(x, sigma, "")``."""
    sigma: float
    guidance: float
    seeds: tuple[int, ...]
    """The seed of each row."""

    @property
    def denoised(self) -> Tensor:
        """``D`` under classifier-free guidance: the one-step sample."""
        return self.guided(self.guidance)

    def guided(self, guidance: float) -> Tensor:
        """The one-step sample at another guidance, without another evaluation of the model."""
        return guide(self.conditional, self.unconditional, guidance)


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on ``D``: ``D("") + guidance * (D(caption) - D(""))`` (Ho & Salimans 2022)."""
    if guidance == 1:
        return conditional
    return unconditional + guidance * (conditional - unconditional)


def start(target: Target, seeds: Sequence[int]) -> Tensor:
    """Pure noise at the target's first sigma, one row a seed."""
    noise = target.noise(seeds)
    return noise if math.isinf(target.sigma_max) else noise * target.sigma_max


def one_step(target: Target, condition: Tensor, seeds: int | Sequence[int], guidance: float = 7.5) -> OneStep:
    """Denoise each caption once.

    Parameters
    ----------
    condition
        (batch, tokens, width), from `Target.encode`.
    seeds
        One seed for all rows, or one a row.
    """
    rows = (seeds,) * len(condition) if isinstance(seeds, int) else tuple(seeds)
    distinct = list(dict.fromkeys(rows))
    place = torch.tensor([distinct.index(seed) for seed in rows], device=condition.device)
    x = start(target, distinct)[place]
    return OneStep(
        x=x,
        conditional=target.denoise(x, target.sigma_max, condition),
        unconditional=target.unconditional(distinct)[place],
        sigma=target.sigma_max,
        guidance=guidance,
        seeds=rows,
    )


class Unconditional:
    """``D`` of the empty caption at `sigma_max`: the same for every caption of a seed, so evaluated once.

    The `keep` seeds used last are kept.
    """

    def __init__(self, target: Target, keep: int = 64):
        self.target = target
        self.keep = keep
        self.kept: OrderedDict[int, Tensor] = OrderedDict()

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """(len(seeds), channels, height, width)."""
        missing = [seed for seed in dict.fromkeys(seeds) if seed not in self.kept]
        if missing:
            condition = self.target.encode([""]).expand(len(missing), -1, -1)
            rows = self.target.denoise(start(self.target, missing), self.target.sigma_max, condition)
            self.kept.update(zip(missing, rows, strict=True))
        result = torch.stack([self.kept[seed] for seed in seeds])
        for seed in seeds:
            self.kept.move_to_end(seed)
        while len(self.kept) > self.keep:
            self.kept.popitem(last=False)
        return result
