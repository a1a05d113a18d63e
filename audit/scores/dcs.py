"""Denoising Confidence Score: how far one denoising step goes from pure noise (Webster 2023, section 3.1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from audit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def dcs(x: Tensor, denoised: Tensor) -> Tensor:
    """Denoising Confidence Score, ``mean((x - D)^2)`` over channels and positions.

    Parameters
    ----------
    x, denoised
        (batch, channels, height, width): pure noise at sigma_max, and the guided estimate from it.

    Returns
    -------
    (batch,) float32, 0 or more; high means that the caption looks memorised.

    Notes
    -----
    It rides on an offset of about ``sigma_max^2 * mean(noise^2)``, which differs between seeds: compare
    captions at equal seeds.

    Examples
    --------
    >>> import torch
    >>> dcs(torch.zeros(1, 4, 8, 8), torch.full((1, 4, 8, 8), 3.0))
    tensor([9.])
    """
    return dcs_heatmap(x, denoised).mean(dim=(1, 2))


def dcs_heatmap(x: Tensor, denoised: Tensor) -> Tensor:
    """`dcs` before its mean over positions: (batch, height, width) float32."""
    if x.shape != denoised.shape or x.ndim != 4:
        raise ValueError(f"x and denoised must both be (batch, C, h, w); got {x.shape} and {denoised.shape}.")
    return (x.float() - denoised.float()).square().mean(dim=1)


def check_sigma(sigma: float, score: str = "dcs") -> None:
    """Refuse a schedule on which scores at sigma_max have no finite value."""
    if math.isinf(sigma):
        raise InputError(
            f"The score {score} needs a finite sigma_max, and this model's schedule is rescaled to zero "
            "terminal SNR (infinite sigma_max); use ecs."
        )
