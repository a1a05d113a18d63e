"""Pixel distances between pictures (Webster 2023, arXiv 2305.08694, section 4).

Everything is a sum of squared differences (SSE) over 256x256x3 values in [0, 1]: 0 for equal pictures, at
most 196,608. Leading axes are broadcast: a stack of seeds is compared with a picture in one call.
"""

from __future__ import annotations

import numpy as np

from audit.errors import InputError
from audit.images import COMPARE_SIZE

SHAPE = (COMPARE_SIZE, COMPARE_SIZE, 3)


def sse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSE between pictures `a` and `b`, both (..., 256, 256, 3); the result has the leading axes, float64.

    >>> float(sse(np.zeros(SHAPE), np.full(SHAPE, 0.5)))
    49152.0
    """
    check_shape(a)
    check_shape(b)
    return _sum_of_squares(a - b)


def masked_sse(template: np.ndarray, mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    """SSE over the unchanged part of a template, scaled up to the area of the whole picture.

    ``sum((m * t - m * x)^2) / mean(m)`` for a template `t` and a picture `x`, both (..., 256, 256, 3), and a
    mask `m`, (..., 256, 256), True where the template's members are unchanged. All ones give `sse`.

    Raises
    ------
    InputError
        If a shape is wrong or a mask is empty: no distance can be told from nothing.
    """
    check_shape(template)
    check_shape(x)
    if mask.shape[-2:] != SHAPE[:2]:
        raise InputError(f"A mask of shape {mask.shape} was given; masks are (..., 256, 256).")
    coverage = mask.mean((-2, -1), dtype=np.float64)
    if not coverage.all():
        raise InputError("The mask is empty, so nothing can be compared under it; draw or discover it again.")
    return _sum_of_squares((template - x) * mask[..., None]) / coverage


def blank_sse(image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Distance of pictures (..., 256, 256, 3) to the one colour that comes nearest to each, their mean; float64.

    What any blank picture could reach: nearness to a faint picture says something only below this. With a mask
    (..., 256, 256) it is the masked distance (`masked_sse`) to the mean under the mask.

    >>> float(blank_sse(np.full(SHAPE, 0.5)))
    0.0
    """
    check_shape(image)
    if mask is None:
        return _sum_of_squares(image - image.mean((-3, -2), keepdims=True))
    share = mask[..., None] / mask.sum((-2, -1), dtype=np.float64)[..., None, None, None]
    mean = (image * share).sum((-3, -2), keepdims=True).astype(image.dtype)
    return masked_sse(image, mask, np.broadcast_to(mean, image.shape))


def check_shape(image: np.ndarray) -> None:
    """Refuse anything but (..., 256, 256, 3)."""
    if image.shape[-3:] != SHAPE:
        raise InputError(f"A picture of shape {image.shape} was given; distances need (..., 256, 256, 3).")


def _sum_of_squares(difference: np.ndarray) -> np.ndarray:
    rows = difference.reshape(*difference.shape[:-3], COMPARE_SIZE, -1)
    return np.einsum("...ij,...ij->...i", rows, rows).sum(-1, dtype=np.float64)
