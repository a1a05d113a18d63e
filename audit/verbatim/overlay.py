"""A generated picture and a training picture side by side, with the pieces that they share outlined and connected.

Colours are those of Okabe and Ito (2008), which stay apart without full colour vision; each line has a dark and a
light border, so that it shows on any ground, and each piece its number on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from audit.errors import InputError
from audit.images import COMPARE_SIZE, resize
from audit.verbatim.pieces import Piece

OKABE_ITO = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))
ZOOM = 2
SIDE = ZOOM * COMPARE_SIZE
GAP = 48
"""Columns between the two pictures."""
PARTS = (
    ("upper left", "top", "upper right"),
    ("left", "middle", "right"),
    ("lower left", "bottom", "lower right"),
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def overlay(generated: np.ndarray, training: np.ndarray, pieces: Sequence[Piece]) -> np.ndarray:
    """(512, 1072, 3) float32 in [0, 1]: the generated picture left, the training picture right.

    Raises
    ------
    InputError
        If the pieces are of more than one training picture.
    """
    if len({piece.image_id for piece in pieces}) > 1:
        raise InputError(
            "Pieces of several training pictures were given; draw those of one at a time beside it."
        )
    canvas = np.full((SIDE, 2 * SIDE + GAP, 3), 255, np.uint8)
    for left, picture in ((0, generated), (SIDE + GAP, training)):
        canvas[:, left : left + SIDE] = np.rint(255 * resize(picture, SIDE))
    places = [_outlines(piece) for piece in pieces]
    for (here, there), colour in zip(places, _colours(len(pieces)), strict=True):
        ends = [_centre(here), _centre(there)]
        for outline in (*here, *there, np.array(ends)):
            for line, width in ((BLACK, 7), (WHITE, 5), (colour, 3)):
                cv2.polylines(canvas, [outline], len(outline) > 2, line, width, cv2.LINE_AA)
    for number, (here, there) in enumerate(places, start=1):
        for centre in (_centre(here), _centre(there)):
            _number(canvas, str(number), centre)
    return canvas.astype(np.float32) / 255.0


def description(pieces: Sequence[Piece]) -> str:
    """What `overlay` shows, in words, for those who don't see it.

    >>> description([])
    'No piece of a training picture was found in the generated picture.'
    """
    if not pieces:
        return "No piece of a training picture was found in the generated picture."
    return " ".join(
        f"Piece {number}: {piece.area:.0%} of the generated picture, at its {_where(_middle(piece.box))}, comes from "
        f"the {_where(piece.polygon.mean(0))} of training image {piece.image_id}; {_how(piece)}."
        for number, piece in enumerate(pieces, start=1)
    )


def _outlines(piece: Piece) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outlines of a piece in the generated and in the training picture, (n, 2) int32 on the canvas each."""
    found = cv2.findContours(piece.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    here = [contour[:, 0].astype(np.float64) + 0.5 for contour in found]
    back = np.linalg.inv(piece.transform[:, :2].astype(np.float64))
    there = [(contour - piece.transform[:, 2]) @ back.T for contour in here]
    return [_on_canvas(each, 0) for each in here], [_on_canvas(each, SIDE + GAP) for each in there]


def _on_canvas(points: np.ndarray, left: int) -> np.ndarray:
    return np.rint(np.clip(points * ZOOM, 2, SIDE - 3) + np.array([left, 0])).astype(np.int32)


def _centre(outlines: Sequence[np.ndarray]) -> np.ndarray:
    largest = max(outlines, key=len)
    return ((largest.min(0) + largest.max(0)) // 2).astype(np.int32)


def _colours(count: int) -> list[tuple[int, int, int]]:
    return [OKABE_ITO[place % len(OKABE_ITO)] for place in range(count)]


def _number(canvas: np.ndarray, text: str, centre: np.ndarray) -> None:
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.8, 2)
    place = (int(centre[0]) - width // 2, int(centre[1]) + height // 2)
    cv2.circle(canvas, (int(centre[0]), int(centre[1])), 17, BLACK, -1, cv2.LINE_AA)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.8, WHITE, 2, cv2.LINE_AA)


def _middle(box: tuple[int, int, int, int]) -> np.ndarray:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def _where(point: np.ndarray) -> str:
    """Which of the nine parts of a picture a point of it lies in.

    >>> _where(np.array([10, 250]))
    'lower left'
    """
    column, row = np.clip(3 * np.asarray(point) // COMPARE_SIZE, 0, 2).astype(int)
    return PARTS[row][column]


def _how(piece: Piece) -> str:
    return " and ".join(piece.kinds) if piece.kinds else "in its own place, unchanged"
