"""Masks of template families: True where the members share their pixels, False where they vary.

Two positions are equal if their absolute difference, summed over channels, is below 0.03; erosion and
dilation then remove specks (Webster 2023 and the behaviour of its code). A whole family gives a better mask
than a pair: see `consensus_mask`. Judge a mask by its *changed* region (`changed_iou`): an all-ones mask
scores high on the other.
"""

from __future__ import annotations

import math
from itertools import combinations

import cv2
import numpy as np

from audit.errors import InputError
from audit.verbatim.distances import check_shape

THRESHOLD = 0.03
AGREEMENT = 0.9
"""Share of pairs in which a position has to be equal to count as unchanged in the family."""
MAX_MEMBERS = 16
"""A larger family gives its mask by so many of its members, evenly spaced: 120 pairs are enough."""
MIN_COVERAGE = 0.25
"""A mask over less of the picture than this proves nothing."""
MIN_TEXTURE = 0.01
"""Edges under the mask, as a share of the picture's positions: smooth gradients agree by chance."""
EDGE = 0.06
"""Gradient, summed over channels and both axes, from which a position counts as an edge."""

OPENING = np.ones((3, 3), np.uint8)
RIM = np.ones((5, 5), np.uint8)
"""Takes back the rim by which interpolation widens a change; the reference's 6x6 is off centre."""


def pair_mask(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mask (256, 256) of what two pictures (256, 256, 3) share."""
    return _cleaned(_equal(a, b))


def consensus_mask(members: np.ndarray) -> np.ndarray:
    """Mask (256, 256) of what a family (n, 256, 256, 3) of at least two pictures shares.

    A position is unchanged if it is equal in 90% of all pairs. Where two members happen to have one colour,
    their pair is blind, but the other pairs see the change: that makes it better than any one pair.
    """
    return _cleaned(agreement(members) >= AGREEMENT)


def agreement(members: np.ndarray) -> np.ndarray:
    """(256, 256): the share of pairs of members (n, 256, 256, 3) that are equal at each position."""
    if len(members) < 2:
        raise InputError(f"A family of {len(members)} was given; a mask needs at least 2 members.")
    return np.stack([_equal(a, b) for a, b in combinations(some(members), 2)]).mean(0, dtype=np.float32)


def difference(members: np.ndarray) -> np.ndarray:
    """(256, 256): by how much a family (n, 256, 256, 3) of at least two pictures differs, summed over channels.

    Of its pairs the one that 90% of them do not exceed: `mask_at` this at 0.03 is `consensus_mask`, and of two
    pictures `pair_mask`.
    """
    if len(members) < 2:
        raise InputError(f"A family of {len(members)} was given; a difference needs at least 2 members.")
    pairs = np.sort([_differences(a, b) for a, b in combinations(some(members), 2)], axis=0)
    return pairs[math.ceil(AGREEMENT * len(pairs) - 1e-9) - 1]


def mask_at(difference: np.ndarray, threshold: float) -> np.ndarray:
    """Mask (256, 256) of what differs by less than a threshold, in [0, 3]."""
    return _cleaned(difference < threshold)


def changed_iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of the *changed* (False) parts of two masks; 1 if neither has any."""
    if mask.shape != truth.shape:
        raise InputError(f"Masks of shapes {mask.shape} and {truth.shape} cannot be compared; resize one.")
    union = (~mask | ~truth).sum()
    return float((~mask & ~truth).sum() / union) if union else 1.0


def check_mask(image: np.ndarray, mask: np.ndarray) -> None:
    """Refuse a mask under which a distance means little.

    Raises
    ------
    InputError
        If it covers less than 25% of the picture (256, 256, 3), or what it covers is flat.
    """
    check_shape(image)
    if mask.shape != image.shape[:2]:
        raise InputError(f"A mask of shape {mask.shape} was given; it has to be (256, 256).")
    coverage = float(mask.mean())
    if coverage < MIN_COVERAGE:
        raise InputError(
            f"The mask covers {coverage:.0%} of the picture; below {MIN_COVERAGE:.0%} it proves nothing."
        )
    texture = float((edges(image) & mask).mean())
    if texture < MIN_TEXTURE:
        raise InputError(
            f"What the mask covers is flat (edges at {texture:.1%} of the picture); under {MIN_TEXTURE:.0%} "
            "any smooth picture would match."
        )


def edges(image: np.ndarray) -> np.ndarray:
    """(256, 256) bool: where the picture (256, 256, 3) changes steeply, which smooth gradients never do."""
    steep = np.zeros(image.shape[:2], np.float32)
    steep[1:] += _over_channels(np.abs(np.diff(image, axis=0)))
    steep[:, 1:] += _over_channels(np.abs(np.diff(image, axis=1)))
    return steep > EDGE


def some(members: np.ndarray) -> np.ndarray:
    """Those of the members (n, ...) that a family's mask is made of."""
    if len(members) <= MAX_MEMBERS:
        return members
    return members[np.linspace(0, len(members) - 1, MAX_MEMBERS).round().astype(int)]


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _differences(a, b) < THRESHOLD


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    check_shape(a)
    check_shape(b)
    return _over_channels(np.abs(a - b))


def _over_channels(values: np.ndarray) -> np.ndarray:
    # Five times faster than a sum over the last axis of three.
    return values[..., 0] + values[..., 1] + values[..., 2]


def _cleaned(equal: np.ndarray) -> np.ndarray:
    """Remove specks of agreement, then the rim around a change; in two dimensions."""
    # Beyond its border a picture goes on as it is: nothing is eroded or dilated from there.
    opened = cv2.morphologyEx(equal.astype(np.uint8), cv2.MORPH_OPEN, OPENING)
    return cv2.dilate(opened, RIM) > 0
