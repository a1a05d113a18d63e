"""What an exhibit says of pixels, computed so that every machine gets the same digits.

Pictures are compared as 8-bit values at 256x256, and their squared differences summed as whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from audit.images import COMPARE_SIZE, resize, to_uint8

TILE, GAP, COLUMNS = 96, 4, 5
"""Of a contact sheet, in pixels."""
GROUND, ABSENT = 255, 224
"""Greys of a contact sheet: between the pictures, and in the place of one that is not at hand."""


def compared(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) in [0, 1] as it is compared: (256, 256, 3) uint8."""
    return to_uint8(resize(picture))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """SSE of two pictures (256, 256, 3) uint8, on the scale of [0, 1]; a whole number over 255 squared."""
    return float(_squares(one, other).sum()) / 255**2


def masked_distance(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
    """`distance` under a mask (256, 256) bool, scaled up to the whole picture (`audit.verbatim.distances.masked_sse`)."""
    under = int((_squares(one, other) * mask[..., None]).sum())
    return under / 255**2 * mask.size / int(mask.sum())


def difference(one: np.ndarray, other: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Absolute difference (256, 256, 3) uint8; black outside of a mask."""
    values = np.abs(one.astype(np.int16) - other.astype(np.int16)).astype(np.uint8)
    return values if mask is None else values * mask[..., None]


def contact_sheet(pictures: Sequence[np.ndarray | None]) -> np.ndarray:
    """Pictures (H, W, 3) uint8 small, in rows of five, in order; (height, width, 3) uint8."""
    rows = -(-len(pictures) // COLUMNS)
    size = TILE + GAP
    sheet = np.full((rows * size - GAP, COLUMNS * size - GAP, 3), GROUND, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // COLUMNS * size, place % COLUMNS * size
        tile = np.full((TILE, TILE, 3), ABSENT, np.uint8)
        if picture is not None:
            tile = np.asarray(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC))
        sheet[top : top + TILE, left : left + TILE] = tile
    return sheet


def _squares(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if one.shape != other.shape or one.shape[:2] != (COMPARE_SIZE, COMPARE_SIZE):
        raise ValueError(f"Pictures of shapes {one.shape} and {other.shape} cannot be compared.")
    return np.square(one.astype(np.int64) - other.astype(np.int64))
