"""Edge Consistency Score: edges that one-step pictures share over seeds (Webster 2023, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from audit.images import COMPARE_SIZE, resize

EDGE_THRESHOLD = 1.5
"""An edge pixel has more than this gradient, summed over the three channels."""
SEEDS = 4
"""One-step pictures that the paper looks at."""


def ecs_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The first four of the seeds, filled up from 0: edges are compared over four pictures."""
    chosen = list(dict.fromkeys(seeds))[:SEEDS]
    spare = (seed for seed in range(2 * SEEDS) if seed not in chosen)
    return tuple(chosen + [next(spare) for _ in range(SEEDS - len(chosen))])


def ecs(images: np.ndarray) -> float:
    """Fraction of pixels that are an edge in more than half of the pictures.

    Parameters
    ----------
    images
        (seeds, H, W, 3) float32 in [0, 1]: one-step pictures of one caption.

    Returns
    -------
    In [0, 1]; high means that the caption looks memorised.
    """
    return consistent(ecs_heatmap(images))


def consistent(heatmap: np.ndarray) -> float:
    """`ecs` of a heatmap by `ecs_heatmap`."""
    return float(np.mean(heatmap > 0.5))


def ecs_heatmap(images: np.ndarray) -> np.ndarray:
    """Share of the pictures with an edge at each pixel, (256, 256) float32 in [0, 1]."""
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
        raise ValueError(f"images must be (seeds, H, W, 3) with at least one seed; got {images.shape}.")
    return np.asarray([edges(image) for image in images], np.float32).mean(axis=0)


def edges(image: np.ndarray) -> np.ndarray:
    """Edge pixels of one (H, W, 3) picture at 256x256, bool.

    Sobel unnormalised with reflecting borders, each channel by itself, after PIL's Lanczos on 8-bit values.
    """
    small = resize(image, COMPARE_SIZE, Image.Resampling.LANCZOS)
    channels = np.ascontiguousarray(small.transpose(2, 0, 1))
    strength = sum(
        np.hypot(ndimage.sobel(channel, axis=0), ndimage.sobel(channel, axis=1)) for channel in channels
    )
    return np.asarray(strength) > EDGE_THRESHOLD
