"""Full sampling by Heun's method on the schedule's own sigmas, as the reference samples for its verdicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from audit.errors import Cancelled
from audit.targets.one_step import guide, start

if TYPE_CHECKING:
    from torch import Tensor

    from audit.targets.base import Target


def sample(
    target: Target,
    condition: Tensor,
    seeds: Sequence[int],
    *,
    steps: int = 16,
    guidance: float = 7.5,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Latents of full samples, (len(seeds), channels, height, width) float32.

    Heun's second-order method (Karras et al. 2022, arXiv 2206.00364, algorithm 1; k-diffusion's
    ``sample_heun`` without churn). From infinite sigma (zero terminal SNR) the first step is its limit,
    ``D + sigma_1 * noise``.

    Parameters
    ----------
    condition
        (1, tokens, width) for one caption, or one row a seed.
    progress
        Called with (steps done, steps) after each step.
    cancelled
        Asked before each step.

    Raises
    ------
    Cancelled
        When `cancelled` says so.
    """
    condition = condition.expand(len(seeds), -1, -1)
    empty = None if guidance == 1 else target.encode([""]).expand(len(seeds), -1, -1)
    sigmas = target.sigmas(steps)
    x = start(target, seeds)
    for step, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        if cancelled is not None and cancelled():
            raise Cancelled(f"Stopped after {step} of {steps} steps.")
        denoised = guided_denoise(target, x, sigma, condition, empty, guidance)
        if following == 0:
            x = denoised
        elif math.isinf(sigma):
            x = denoised + following * x
        else:
            d = (x - denoised) / sigma
            euler = x + d * (following - sigma)
            denoised = guided_denoise(target, euler, following, condition, empty, guidance)
            d_following = (euler - denoised) / following
            x = x + (d + d_following) / 2 * (following - sigma)
        if progress is not None:
            progress(step + 1, steps)
    return x


def guided_denoise(
    target: Target, x: Tensor, sigma: float, condition: Tensor, empty: Tensor | None, guidance: float
) -> Tensor:
    """``D`` under guidance, both branches in one batch; without `empty`, the conditional branch alone."""
    if empty is None:
        return target.denoise(x, sigma, condition)
    both = target.denoise(torch.cat([x, x]), sigma, torch.cat([condition, empty]))
    conditional, unconditional = both.chunk(2)
    return guide(conditional, unconditional, guidance)
