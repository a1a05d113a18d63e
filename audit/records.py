"""What travels between the parts of an audit: one frozen dataclass or enum for each of the field's words.

Pictures are RGB float32 arrays of shape (H, W, 3) in [0, 1] everywhere outside ``audit.images``.
Distances are sums of squared differences (SSE) over 256x256x3 values in [0, 1].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class VerdictKind(StrEnum):
    """Outcome for one caption, after Webster 2023 (arXiv 2305.08694), section 4."""

    MV = "MV"
    """Matching verbatim: the caption's own training image came back."""
    RV = "RV"
    """Retrieved verbatim: another image of the training set came back."""
    TV = "TV"
    """Template verbatim: a training image came back but for fixed regions."""
    PV = "PV"
    """Patch verbatim: a piece of a training image came back elsewhere in the picture, mirrored, scaled or recoloured.
    A calibrated score says so, no distance."""
    N = "N"
    """Every check was made and none holds."""
    U = "U"
    """Undetermined: a check could not be made and none of the others holds."""


class CheckStatus(StrEnum):
    """Whether one of the checks behind a verdict could be made."""

    CHECKED = "checked"
    NOT_AVAILABLE = "not available"
    DEAD_LINK = "dead link"


@dataclass(frozen=True)
class Caption:
    """A caption under audit, with the name of its own training image when that is known."""

    text: str
    image_id: str | None = None

    @property
    def caption_id(self) -> str:
        return caption_id(self.text)


def caption_id(text: str) -> str:
    """First 16 hex digits of the caption's sha256: equal captions are one caption, at any place in any file."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def readable(caption: str) -> str:
    """Half surrogate pairs joined where they meet, else replaced: tokenizers and parquet refuse them."""
    return caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class Sample:
    """One picture generated in full."""

    image: np.ndarray
    """(H, W, 3) float32 in [0, 1]."""
    seed: int
    steps: int
    guidance: float


class PictureKind(StrEnum):
    """Which of a caption's generated pictures is meant."""

    SAMPLE = "sample"
    """Generated in full, with the seed that decided the verdict."""
    ONE_STEP = "one step"
    """After one step from the same noise."""
    PIECES = "pieces"
    """The sample beside the training picture, with the moved pieces outlined that the verdict rests on."""


@dataclass(frozen=True)
class Picture:
    """A generated picture as it is kept with its verdict."""

    kind: PictureKind
    seed: int
    png: bytes
    """At the model's own size; what distances are measured on is made of exactly these pixels."""
    sha256: str
    """Of ``png``."""


@dataclass(frozen=True)
class Score:
    """One memorisation score of one caption; higher means that it looks more memorised."""

    name: str
    value: float
    heatmap: np.ndarray | None
    """(h, w) float32, the same quantity before its mean over positions."""
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Neighbour:
    """A training image that is near to a picture. Nearest is not a claim that it is the source."""

    image_id: str
    caption: str
    similarity: float
    """Cosine between embeddings, in [-1, 1]."""
    rank: int
    """Place by similarity, from 0, before re-ranking."""
    sse: float | None = None
    """Exact pixel distance, once re-ranked."""
    blank: float | None = None
    """What a picture of one colour would reach (`audit.verbatim.distances.blank_sse`), where ``sse`` is small."""
    title: str = ""
    author: str = ""
    licence: str = ""
    source: str = ""
    url: str = ""
    """Where the picture was found on the web."""
    path: str = ""
    """The picture's file; empty where only its address is known."""
    member: str = ""
    """Which part of that file (`audit.corpus.stored`)."""
    sha256: str = ""
    """Of the picture's file, as the training set's metadata say."""
    md5: str = ""
    """The same, as kNN metadata have it."""


@dataclass(frozen=True)
class Template:
    """A picture shared by a family of training images, and the mask of what they share."""

    template_id: str
    image: np.ndarray
    """(256, 256, 3) float32 in [0, 1]: the first member."""
    mask: np.ndarray
    """(256, 256) bool, True where the members are unchanged."""
    members: tuple[str, ...]
    """Image ids."""
    image_id: str = ""
    """Which member ``image`` is."""


@dataclass(frozen=True)
class Check:
    """One check behind a verdict, with every number that decided it."""

    kind: VerdictKind
    """What the caption would be if it held: TV, MV, RV or PV."""
    status: CheckStatus
    threshold: float
    """A distance has to be below it, the score of a moved piece above."""
    distance: float | None = None
    """Smallest SSE over the seeds (masked SSE for TV); the smallest of those that hold where any does."""
    blank: float | None = None
    """What a picture of one colour would reach against the same image: a copy is nearer than half of that."""
    seed: int | None = None
    """The seed of that smallest distance."""
    image_id: str | None = None
    """Training image or template compared with at that seed."""
    score: float | None = None
    """How surely the surest moved piece is one (PV), where others have a distance."""
    holds: bool = False
    looked_at: int = 0
    """Denominator: comparisons made (seeds x images)."""
    note: str = ""

    @property
    def limit(self) -> float:
        """The distance has to be below this: the threshold, and half of what a picture of one colour would reach."""
        return limit(self.threshold, self.blank)


NEARER = 0.5
"""Share of what a picture of one colour would reach that a copy's distance has to be below.

Chosen on the calibration half of the demo's truth: there it leaves all planted copies that the thresholds find, and the
fewest others. Below one half, what the two pictures share outweighs what they differ in.
"""


def limit(threshold: float, blank: float | None) -> float:
    """What a distance has to be below to say that a picture is a copy."""
    return threshold if blank is None else min(threshold, NEARER * blank)


@dataclass(frozen=True)
class TemplateHit:
    """A template that one sample agrees with under its mask; a sample may agree with several."""

    template_id: str
    seed: int
    masked_sse: float


@dataclass(frozen=True)
class Verdict:
    """What was decided for one caption, by the thresholds alone; people confirm or reject it."""

    kind: VerdictKind
    reason: str
    """One plain sentence with the distance, the threshold and the denominator."""
    checks: tuple[Check, ...]
    seed: int | None = None
    sse: float | None = None
    """Unmasked distance to the image that decided, or to the nearest of all when the verdict is N or U."""
    masked_sse: float | None = None
    neighbour_id: str | None = None
    template_id: str | None = None
    threshold: float | None = None
    template_hits: tuple[TemplateHit, ...] = ()
    """Every template and seed that agree, not only the nearest: families are many to many."""
    decided_by: str = "thresholds"
