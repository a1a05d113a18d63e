"""A template's mask edited by hand: steps that are kept, checked and applied in order.

A mask is True where the members of a family are unchanged. What is included belongs to that part and is compared;
what is excluded varies and is not. Positions are pixels from the upper left corner, x to the right and y down: pixel
(row, column) covers [column, column + 1) x [row, row + 1). The distance under an edited mask is
`audit.verbatim.distances.masked_sse`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import cv2
import numpy as np

from audit.errors import InputError
from audit.images import COMPARE_SIZE
from audit.verbatim.masks import mask_at

SIZE = (COMPARE_SIZE, COMPARE_SIZE)
MAX_EDITS = 500
MAX_POINTS = 20_000
"""Of all steps together."""
MAX_CORNERS = 500
"""Of one polygon: its filling takes longer with their square."""
MAX_CHARS = 2_000_000
"""Of the JSON of all steps."""
OUTSIDE = 4 * COMPARE_SIZE
"""How far outside of the picture a point may lie: a stroke may begin there."""
MAX_RADIUS = COMPARE_SIZE / 2
MAX_STEP = 64
"""Pixels by which a mask grows or shrinks at once."""
MAX_DIFFERENCE = 3.0
"""What two colours in [0, 1] differ by at most, summed over three channels."""
ROUNDING = 1e-3
FINER, SHIFT = 9, 4
"""Lines along a pixel's side when a polygon is filled, an odd number; and OpenCV's bits after the point."""


class Tool(StrEnum):
    """What one step does."""

    FOUND = "found"
    """The mask becomes the one that was found, whoever edited it before; the first step only, so that who edits does so
    by themselves."""
    BRUSH = "brush"
    """All pixels within `radius` of those that a line through the points crosses."""
    RECTANGLE = "rectangle"
    """Pixels whose centre lies between two opposite corners."""
    POLYGON = "polygon"
    """Pixels whose centre lies inside three points or more, or within a ninth of a pixel of their outline."""
    GROW = "grow"
    """The mask takes in all pixels within `amount` of it."""
    SHRINK = "shrink"
    """The mask gives up all pixels within `amount` of what is not part of it; the picture's border is no such."""
    THRESHOLD = "threshold"
    """The mask is made anew: what differs by less than `amount` (`audit.verbatim.masks.mask_at`)."""


DRAWN = (Tool.BRUSH, Tool.RECTANGLE, Tool.POLYGON)
AMOUNTS = {
    Tool.GROW: (0.0, MAX_STEP),
    Tool.SHRINK: (0.0, MAX_STEP),
    Tool.THRESHOLD: (0.0, MAX_DIFFERENCE),
}
LEAST_POINTS = {Tool.BRUSH: 1, Tool.RECTANGLE: 2, Tool.POLYGON: 3}
FIELDS = {
    Tool.FOUND: {"tool"},
    Tool.BRUSH: {"tool", "include", "points", "radius"},
    Tool.RECTANGLE: {"tool", "include", "points"},
    Tool.POLYGON: {"tool", "include", "points"},
    **{tool: {"tool", "amount"} for tool in AMOUNTS},
}


@dataclass(frozen=True)
class Edit:
    """One step; what its tool does not use keeps its default.

    Raises
    ------
    InputError
        If a value is none that the tool takes.
    """

    tool: Tool
    include: bool = True
    """Whether what is drawn becomes part of the mask, or stops being part of it."""
    points: tuple[tuple[float, float], ...] = ()
    """(x, y) each, in pixels."""
    radius: float = 0.0
    """Of the brush, in pixels: at 0 it is one pixel wide."""
    amount: float = 0.0
    """Pixels to grow or shrink by, or the difference below which the mask is True."""

    def __post_init__(self):
        if self.tool is Tool.FOUND:
            return
        if self.tool in AMOUNTS:
            low, high = AMOUNTS[self.tool]
            _between(self.amount, low, high, f"The amount of a {self.tool}")
            return
        least = LEAST_POINTS[self.tool]
        exact = self.tool is Tool.RECTANGLE
        if len(self.points) < least or (exact and len(self.points) > least):
            wanted = f"{'exactly' if exact else 'at least'} {least}"
            raise InputError(f"A {self.tool} of {len(self.points)} points was given; it takes {wanted}.")
        most = MAX_CORNERS if self.tool is Tool.POLYGON else MAX_POINTS
        if len(self.points) > most:
            raise InputError(
                f"A {self.tool} of {len(self.points):,} points was given; at most {most:,} can be."
            )
        for point in self.points:
            for value in point:
                _between(value, -OUTSIDE, COMPARE_SIZE + OUTSIDE, f"A point of a {self.tool}")
        _between(self.radius, 0, MAX_RADIUS, "The radius of a brush")

    def values(self) -> dict[str, Any]:
        """What JSON holds of it: the fields that its tool uses."""
        every = {
            "tool": self.tool.value,
            "include": self.include,
            "points": [list(point) for point in self.points],
            "radius": self.radius,
            "amount": self.amount,
        }
        return {name: value for name, value in every.items() if name in FIELDS[self.tool]}


def starts_as_found(edits: Sequence[Edit]) -> bool:
    """Whether what the steps make is the same whatever mask they are applied to: they begin with the one that was found."""
    return bool(edits) and edits[0].tool is Tool.FOUND


def apply(
    mask: np.ndarray,
    edits: Sequence[Edit],
    difference: np.ndarray | None = None,
    found: np.ndarray | None = None,
) -> np.ndarray:
    """A new mask (256, 256): the given one after all steps, in order.

    Parameters
    ----------
    difference
        (256, 256), what thresholds are taken of (`audit.verbatim.masks.difference`).
    found
        (256, 256) bool, the mask as it was found.

    Raises
    ------
    InputError
        If a shape is wrong, or a threshold is asked for without a difference, or the mask as found without one.
    """
    for each in (mask,) if found is None else (mask, found):
        if each.shape != SIZE or each.dtype != bool:
            raise InputError(
                f"A mask of shape {each.shape} and type {each.dtype} was given; edit (256, 256) bool."
            )
    if difference is not None and difference.shape != SIZE:
        raise InputError(f"A difference of shape {difference.shape} was given; it has to be (256, 256).")
    check_edits(edits)
    edited = mask.copy()
    for edit in edits:
        if edit.tool in DRAWN:
            edited[_drawn(edit)] = edit.include
        elif edit.tool is Tool.GROW:
            edited = _distances((~edited).astype(np.uint8)) <= edit.amount + ROUNDING
        elif edit.tool is Tool.SHRINK:
            edited = _distances(edited.astype(np.uint8)) > edit.amount + ROUNDING
        elif edit.tool is Tool.FOUND:
            if found is None:
                raise InputError("The mask as it was found is not known here; start from the last version.")
            edited = found.copy()
        elif difference is None:
            raise InputError("A threshold needs pictures to be taken of; choose one to compare with first.")
        else:
            edited = mask_at(difference, edit.amount)
    return edited


def to_json(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """The steps as JSON holds them."""
    return [edit.values() for edit in edits]


def from_json(steps: object) -> tuple[Edit, ...]:
    """The steps out of JSON, as text or read already, from wherever it comes.

    Raises
    ------
    InputError
        If it is anything but steps within their bounds.
    """
    if isinstance(steps, (str, bytes)):
        if len(steps) > MAX_CHARS:
            raise InputError(
                f"The edits of a mask take {len(steps):,} characters; at most {MAX_CHARS:,} can be."
            )
        try:
            steps = json.loads(steps)
        except (ValueError, RecursionError) as error:
            raise InputError("The edits of a mask are no readable JSON; draw them again.") from error
    if not isinstance(steps, list):
        raise InputError(f"The edits of a mask are a {type(steps).__name__}; give a list of steps.")
    if len(steps) > MAX_EDITS:
        raise InputError(
            f"{len(steps)} edits of a mask were given; at most {MAX_EDITS} can be. Save in between."
        )
    edits = []
    for number, step in enumerate(steps, start=1):
        try:
            edits.append(_edit_of(step))
        except InputError as error:
            raise InputError(f"Step {number} of a mask's edits cannot be taken. {error}") from error
    check_edits(edits)
    return tuple(edits)


def check_edits(edits: Sequence[Edit]) -> None:
    """InputError where there are more steps or points than are taken, or the mask as found comes after a step."""
    points = sum(len(edit.points) for edit in edits)
    if len(edits) > MAX_EDITS or points > MAX_POINTS:
        raise InputError(
            f"{len(edits)} edits of a mask with {points:,} points were given; at most {MAX_EDITS} with "
            f"{MAX_POINTS:,} points can be. Save in between."
        )
    late = next((at for at, edit in enumerate(edits[1:], start=2) if edit.tool is Tool.FOUND), None)
    if late is not None:
        raise InputError(
            f"Step {late} of a mask's edits starts from the mask as it was found; only the first can. Leave out those "
            "before it."
        )


def _edit_of(step: object) -> Edit:
    if not isinstance(step, dict):
        raise InputError(f"It is a {type(step).__name__}; give an object with a tool.")
    name = step.get("tool")
    if not isinstance(name, str) or name not in [tool.value for tool in Tool]:
        raise InputError(f"There is no tool {repr(name)[:40]}; there are {', '.join(Tool)}.")
    tool = Tool(name)
    if set(step) != FIELDS[tool]:
        raise InputError(f"A {tool} takes exactly {', '.join(sorted(FIELDS[tool]))}; check its fields.")
    if tool is Tool.FOUND:
        return Edit(tool)
    if tool in AMOUNTS:
        return Edit(tool, amount=_number(step["amount"], "Its amount"))
    if not isinstance(step["include"], bool):
        raise InputError(f"Its include is {repr(step['include'])[:40]}; give true or false.")
    points = step["points"]
    if not isinstance(points, list) or len(points) > MAX_POINTS:
        raise InputError(f"Its points have to be a list of at most {MAX_POINTS:,}.")
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise InputError("Each of its points has to be a list of x and y.")
    pairs = tuple((_number(x, "An x"), _number(y, "A y")) for x, y in points)
    return Edit(tool, step["include"], pairs, _number(step.get("radius", 0.0), "Its radius"))


def _number(value: object, what: str) -> float:
    # True is an int to Python, and a whole number may be too large for a float
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise InputError(f"{what} is {repr(value)[:40]}; give a number.")
    return float(value)


def _between(value: float, low: float, high: float, what: str) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InputError(f"{what} is {value:g}; it has to be from {low:g} to {high:g}.")


def _drawn(edit: Edit) -> np.ndarray:
    """(256, 256) bool: what a brush, rectangle or polygon covers."""
    points = np.array(edit.points, float)
    if edit.tool is Tool.BRUSH:
        return _stroke(points, edit.radius)
    if edit.tool is Tool.POLYGON:
        return _filled(points)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    centres = np.arange(COMPARE_SIZE) + 0.5
    rows, columns = (top <= centres) & (centres < bottom), (left <= centres) & (centres < right)
    return rows[:, None] & columns


def _filled(points: np.ndarray) -> np.ndarray:
    # OpenCV fills in milliseconds what scikit-image's polygon2mask takes seconds for, but its outline as well: on a
    # finer grid, of which the middles are taken, that is a ninth of a pixel
    fine = np.zeros([FINER * side for side in SIZE], np.uint8)
    places = np.rint((FINER * points - 0.5) * 2**SHIFT).astype(np.int32)
    cv2.fillPoly(fine, [places[:, None]], 1, cv2.LINE_8, SHIFT)
    return fine[FINER // 2 :: FINER, FINER // 2 :: FINER].astype(bool)


def _stroke(points: np.ndarray, radius: float) -> np.ndarray:
    # a line that runs outside reaches in by its radius
    rim = math.ceil(radius) + 1
    away = np.ones([side + 2 * rim for side in SIZE], np.uint8)
    # the last point twice, since of one point alone no line is drawn
    pixels = np.floor(np.concatenate([points, points[-1:]])).astype(np.int32) + rim
    cv2.polylines(away, [pixels[:, None]], False, 0, 1, cv2.LINE_8)
    return (_distances(away) <= radius + ROUNDING)[rim:-rim, rim:-rim]


def _distances(away: np.ndarray) -> np.ndarray:
    """float32: pixels from each centre to the nearest one that is 0; beyond all bounds where there is none."""
    return cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
