"""Heatmaps over pictures, differences and outlines: pixels only, no interface.

Colours are interpolated in the 'inferno' map of matplotlib (van der Walt and Smith 2015), which is perceptually
uniform and readable without colour vision.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

INFERNO = (
    np.array(
        [
            (0, 0, 4),
            (27, 12, 65),
            (74, 12, 107),
            (120, 28, 109),
            (165, 44, 96),
            (207, 68, 70),
            (237, 105, 37),
            (251, 155, 6),
            (247, 209, 61),
            (252, 255, 164),
        ],
        dtype=np.float32,
    )
    / 255.0
)


def colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of any shape as RGB in [0, 1], shape (..., 3); outside values are clipped."""
    place = np.clip(values, 0.0, 1.0) * (len(INFERNO) - 1)
    low = np.minimum(place.astype(int), len(INFERNO) - 2)
    share = (place - low)[..., None]
    return ((1.0 - share) * INFERNO[low] + share * INFERNO[low + 1]).astype(np.float32)


def enlarge(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) enlarged to (height, width) by repeating values: one square a latent position, nothing invented."""
    picture = Image.fromarray(np.asarray(values, dtype=np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))


def normalise(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Values mapped so that `low` (default: the least) is 0 and `high` (default: the greatest) is 1.

    A flat array becomes zeros.
    """
    values = np.asarray(values, dtype=np.float32)
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def heat(
    values: np.ndarray, height: int, width: int, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """A heatmap as an opaque picture (height, width, 3) in [0, 1]."""
    return colours(enlarge(normalise(values, low, high), height, width))


def blend(picture: np.ndarray, over: np.ndarray, opacity: float) -> np.ndarray:
    """`over` laid onto `picture`, both (H, W, 3): opacity 0 shows the picture alone, 1 the overlay alone."""
    return ((1.0 - opacity) * picture + opacity * over).astype(np.float32)


def difference(one: np.ndarray, other: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Absolute difference of two pictures (H, W, 3), with `mask` (H, W) only where it is True."""
    values = np.abs(one.astype(np.float32) - other.astype(np.float32))
    return values if mask is None else values * mask[..., None]


def outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: the positions of `mask` that touch a position outside it (the picture's edge is no border)."""
    return mask & ~binary_erosion(mask, border_value=True)  # pyright: ignore[reportOperatorIssue]


def outlined(mask: np.ndarray, scale: int = 3) -> np.ndarray:
    """The mask's outline as RGBA in [0, 1], enlarged `scale` times: a light line between two dark ones.

    Readable on any picture, since one of the two always differs from what lies below.
    """
    large = np.kron(mask, np.ones((scale, scale), dtype=bool)).astype(bool)
    line = outline(large)
    border = binary_dilation(line, iterations=1) & ~line
    picture = np.zeros((*large.shape, 4), dtype=np.float32)
    picture[border] = (0.0, 0.0, 0.0, 0.85)
    picture[line] = (1.0, 1.0, 0.45, 1.0)
    return picture
