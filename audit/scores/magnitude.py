"""Noise-prediction magnitude: how much the caption changes the prediction (Wen et al. 2024, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def magnitude(conditional: Tensor, unconditional: Tensor, sigma: float) -> Tensor:
    """``|| D(x, caption) - D(x, "") ||_2 / sigma``; for epsilon-prediction, the norm between epsilons.

    Parameters
    ----------
    conditional, unconditional
        (batch, channels, height, width), both from the same `x` at `sigma`.

    Returns
    -------
    (batch,) float32, 0 or more; high means that the caption looks memorised.

    Examples
    --------
    >>> import torch
    >>> magnitude(torch.full((1, 1, 2, 2), 3.0), torch.zeros(1, 1, 2, 2), sigma=2.0)
    tensor([3.])
    """
    return magnitude_heatmap(conditional, unconditional, sigma).square().sum(dim=(1, 2)).sqrt()


def magnitude_heatmap(conditional: Tensor, unconditional: Tensor, sigma: float) -> Tensor:
    """Norm over channels at each position, (batch, height, width) float32.

    The square root of the sum of its squares is `magnitude`.
    """
    if conditional.shape != unconditional.shape or conditional.ndim != 4:
        raise ValueError(
            f"Both branches must be (batch, C, h, w); got {conditional.shape} and {unconditional.shape}."
        )
    return (conditional.float() - unconditional.float()).square().sum(dim=1).sqrt() / sigma
