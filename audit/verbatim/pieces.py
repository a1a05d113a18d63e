"""Pieces of training pictures that stand elsewhere in a generated one: moved, mirrored, scaled or recoloured.

Flat art without grain has few of the corners that local features need, so pictures are compared by dense windows
of gradient orientations (as in Dalal and Triggs 2005, and Lowe 2004 for the clipping), upright, at seven scales and
mirrored. Matches vote for a place (Ballard 1981), a similarity is fitted to those that agree (RANSAC, Fischler and
Bolles 1981), and the piece is then aligned and compared pixel by pixel. A window votes only by how much better it
agrees than it does with other training pictures (`RARE`): corners of rectangles are everywhere and prove nothing.
Not looked for: pieces that were turned by more than some 15 degrees, or enlarged or shrunk by more than half.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cv2
import faiss
import numpy as np

from audit.errors import InputError
from audit.files import replace_file
from audit.images import COMPARE_SIZE, resize
from audit.verbatim.distances import SHAPE
from audit.verbatim.masks import edges

MAP = 128
"""Side of the grid on which gradients and residuals are taken: two pixels of the compared size a position."""
PIXEL = COMPARE_SIZE // MAP
BINS, CELLS, CELL = 8, 6, 12
"""A window is 6 x 6 cells of 12 pixels with 8 orientations each."""
BLUR = 3.0
"""Blur before gradients, in pixels: what generation and its autoencoder lose anyway."""
SCALES = np.array([0.71, 0.8, 0.89, 1.0, 1.12, 1.26, 1.41], np.float32)
FLAT = 0.03
"""Windows whose descriptor has a smaller norm than this are flat and not looked at."""
DIMENSIONS = 96
WHITENING = 0.25
"""Principal components are divided by this power of their variance: common structure counts less."""
STRIDE, QUERY_STRIDE, INDEX_STRIDE = 12, 16, 24
"""Pixels between windows of a candidate, of a generated picture, and in the index."""
RARE = 10
"""A window counts by how much better it agrees than with the tenth nearest training picture."""
EMPHASIS = 1.5
"""Power of a vote: few windows that agree far better than with other pictures say more than many a little better."""
HITS = 40
"""Windows of the index that are looked at for each window of a picture."""
BIN = 16
"""Pixels a bin of votes; a piece no further from its own place than this has not moved."""
NEAR = 24.0
"""How far votes of one piece may lie apart, in pixels, before a transform is fitted."""
VERIFIED = 8
"""Candidates with the most votes that are compared pixel by pixel."""
MORE = 4
"""Further pieces of one training picture that are looked for."""
SCALED = 1.1
"""A piece is scaled if its size differs by more than this factor."""
RECOLOURED = 0.5
"""A piece whose own colours leave more of it unexplained than this share is recoloured."""
MIN_AREA = 0.02
"""Share of the picture under which a piece proves nothing."""
MIN_TEXTURE = 0.05
"""Edges in a piece, as a share of its positions: smooth gradients agree by chance."""
EXACT, PROBES = 20_000, 8
"""Windows up to which the index is searched in full, and lists that are looked through above."""
AGREE = 10.0
"""Pixels by which a vote may miss the fitted transform: windows stand 12 and 16 pixels apart."""
MAX_TURN = 20.0
"""Degrees; upright windows hardly find pieces that were turned further, and a fit that says so is a wrong one."""
RIDGE = 0.02
"""How strongly colour maps are drawn towards a gain of 1, as a share of the piece's variance."""
MIN_SIDE = 16
"""Pixels; smaller pictures have no pieces."""
SEEN_BLUR = 2.0
"""Blur of the generated picture before pixels are compared; generation has blurred it already."""
REFINEMENTS = 2
"""How often a piece is aligned on its pixels, each time over what agrees by then."""
DRIFT = 12.0
"""Pixels by which aligning on pixels may shift a corner of a piece; more is no longer the same piece."""
GROWTHS, DISAGREE, NOISE = 3, 0.3, 0.004
"""A piece is grown so often over what differs by less than a share of the local variance, and noise."""
OPENING = np.ones((9, 9), np.uint8)
RIM = np.ones((7, 7), np.uint8)
"""Takes back what the smoothing of differences costs along the rim of a piece."""
CHANCE = 0.1
"""Added to the votes of chance: where nothing agrees, a few votes are still few."""
OWN = 0.3
"""Unexplained share at which own colours say little, found on the calibration half like `EMPHASIS` and `CHANCE`."""
CORNERS_BLUR = 2.0
"""Positions over which gradients are gathered to tell a corner from an edge."""
CACHED = 3_500
"""Candidates whose windows are kept, some 100 KiB each."""


class PieceKind(StrEnum):
    """How a piece differs in place or looks from where it came; a piece may be several at once, or none."""

    MOVED = "moved"
    MIRRORED = "mirrored"
    SCALED = "scaled"
    RECOLOURED = "recoloured"


class Signs(NamedTuple):
    """What tells a piece from a likeness: numbers that `score` weighs against each other."""

    votes: float
    """Logarithm of the votes of windows that agree and lie in the piece."""
    rarity: float
    """Logarithm of the same, as a multiple of what an unrelated training picture gets."""
    edges: float
    """Logarithm of the share of its convex outline's edges that it explains; a piece is whole, a likeness agrees along
    an outline and not in what stands between.
    """
    resized: float
    """Absolute logarithm of its size against that in the training picture."""
    own_colours: float
    """From 1, its colours are those of the training picture, to 0."""
    recoloured: float
    """Logarithm of what its own colours leave unexplained, as a share of what a linear gradient would leave."""
    corners: float
    """Logarithm of how much of its edges meets others: crosses, stripes and frames are drawn again and again."""
    left: float
    """Logarithm of the mean square that the colour map leaves of it."""
    colours: float
    """How many directions its colours spread in, 1 to 3: two colours can be mapped to any two others."""
    bent: float
    """How much the colour map changes angles between colours, at least 0; a turned hue and a contrast change none."""

    @property
    def score(self) -> float:
        """Log odds of a piece against a likeness, at least 0."""
        return max(float(np.dot(self, WEIGHTS) + BIAS), 0.0)


WEIGHTS = Signs(1.56, 0.77, 1.51, -8.56, 5.10, -0.76, 1.76, -1.61, 2.15, -1.93)
BIAS = -6.85
"""A logistic regression on the demo's calibration half (`python -m audit demo measure --what weights`); from which score
a piece counts is another question, which each model's own calibration answers."""
SCORING = hashlib.sha256(repr((WEIGHTS, BIAS)).encode()).hexdigest()[:16]
"""Scores can be compared where this is the same."""


@dataclass(frozen=True)
class Piece:
    """A part of a training picture found in a generated one; coordinates are pixels of the compared size, 256."""

    image_id: str
    """The training picture."""
    signs: Signs
    kinds: tuple[PieceKind, ...]
    """Empty for a piece that stands in its own place, as it was."""
    transform: np.ndarray
    """(2, 3) float32: ``transform @ (x, y, 1)`` of the training picture is the place in the generated one."""
    mask: np.ndarray
    """(256, 256) bool: the piece in the generated picture."""
    polygon: np.ndarray
    """(4, 2) float32: the corners of its box in the training picture, from the box's upper left, clockwise."""
    colours: np.ndarray
    """(3, 4) float32: ``colours @ (r, g, b, 1)`` of the training picture comes nearest; the identity if not recoloured."""
    inliers: int
    """Windows that agree on the transform."""
    unexplained: float
    """Sum of squares left in the piece, as a share of what a linear gradient would leave; under 1 is nearer."""

    @property
    def score(self) -> float:
        """How surely it is a piece, at least 0."""
        return self.signs.score

    @property
    def area(self) -> float:
        """Share of the generated picture."""
        return float(self.mask.mean())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the generated picture; right and bottom lie outside."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def mirrored(self) -> bool:
        return PieceKind.MIRRORED in self.kinds


class Windows(NamedTuple):
    """Windows of one picture: centres (n, 2) in pixels, and descriptors (n, d) of unit norm; float32."""

    places: np.ndarray
    descriptors: np.ndarray


class Query(NamedTuple):
    """Windows of a generated picture at all scales, upright and mirrored."""

    windows: Windows
    """Centres are those in the picture as it was looked at: from its right side where mirrored."""
    mirrored: np.ndarray
    """(n,) int: 0 or 1."""
    scale: np.ndarray
    """(n,) int: place in `SCALES`."""
    common: np.ndarray
    """(n,) float32: similarity that `RARE` training pictures reach."""
    nearest: tuple[str, ...]
    """Pictures of the index by their votes for one place, most votes first."""
    chance: float
    """Votes of the `RARE`-th of them: what a picture gets that has nothing to do with it."""


class Hypothesis(NamedTuple):
    """Where the votes for one candidate meet."""

    votes: float
    image_id: str
    mirrored: int
    scale: int
    training: np.ndarray
    """(m, 2): centres of the windows that agree."""
    generated: np.ndarray
    """(m, 2): theirs in the picture as it was looked at."""
    weights: np.ndarray
    """(m,)"""


class PieceIndex:
    """Windows of training pictures: tells which of a picture's windows are rare, and who else has them.

    Made of all pictures of a small training set, or of a sample of some thousands of a large one. One picture takes
    about 70 windows of 96 numbers.
    """

    def __init__(self, image_ids: Sequence[str], owners: np.ndarray, windows: Windows, basis: Basis):
        self.image_ids = tuple(image_ids)
        self._owners = owners
        self._windows = windows
        self._basis = basis
        self._faiss = _inner_product_index(windows.descriptors)
        self._described: OrderedDict[str, Windows] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def build(cls, pictures: Iterable[tuple[str, np.ndarray]]) -> PieceIndex:
        """Of training pictures (H, W, 3) float32 in [0, 1] with their ids.

        Raises
        ------
        InputError
            If there are no more than `RARE` pictures with texture: what is rare could not be told.
        """
        names, windows = [], []
        for name, picture in pictures:
            names.append(name)
            windows.append(_windows(_gradients(_compared(picture)), 1.0, INDEX_STRIDE))
        counts = [len(each.places) for each in windows]
        if np.count_nonzero(counts) <= RARE:
            raise InputError(
                f"{np.count_nonzero(counts)} training pictures with texture were given; to tell which pieces "
                f"are rare, more than {RARE} are needed."
            )
        places, descriptors = (np.concatenate(part) for part in zip(*windows, strict=True))
        basis = Basis.of(descriptors)
        reduced = Windows(places, basis.project(descriptors))
        return cls(names, np.repeat(np.arange(len(names)), counts), reduced, basis)

    def save(self, path: Path) -> None:
        """Write as npz, atomically."""

        def write(partial: Path) -> None:
            with open(partial, "wb") as stream:
                np.savez(
                    stream,
                    image_ids=np.frombuffer(json.dumps(self.image_ids).encode(), np.uint8),
                    owners=self._owners,
                    **self._windows._asdict(),
                    **asdict(self._basis),
                )

        replace_file(path, write)

    @classmethod
    def load(cls, path: Path) -> PieceIndex:
        """Read what `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                names = json.loads(stored["image_ids"].tobytes())
                windows = Windows(stored["places"], stored["descriptors"])
                basis = Basis(stored["mean"], stored["components"])
                return cls(names, stored["owners"], windows, basis)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged; delete it, it is made anew when it is needed.") from error

    def query(self, picture: np.ndarray) -> Query:
        """Windows of a generated picture (H, W, 3) float32 in [0, 1], with how common each is."""
        gradients = _gradients(_compared(picture))
        frames = [gradients, _mirrored(gradients)]
        windows = [_windows(frame, scale, QUERY_STRIDE) for frame in frames for scale in SCALES]
        place = np.repeat(np.arange(len(windows)), [len(each.places) for each in windows])
        places = np.concatenate([each.places for each in windows])
        descriptors = self._basis.project(np.concatenate([each.descriptors for each in windows]))
        mirrored, scale = np.divmod(place, len(SCALES))
        if not len(places):
            return Query(Windows(places, descriptors), mirrored, scale, np.zeros(0, np.float32), (), 0.0)
        similarity, hits = self._faiss.search(descriptors, min(HITS, self._faiss.ntotal))
        # where faiss found fewer, it says -1 and minus infinity: no rarer than the last that was found
        similarity = np.minimum.accumulate(np.where(hits < 0, np.inf, similarity), axis=1)
        similarity = np.maximum(similarity, 0)
        common = _of_nth_owner(self._owners[hits], similarity, RARE)
        query = Query(Windows(places, descriptors), mirrored, scale, common, (), 0.0)
        votes = self._votes(query, hits, similarity)
        order = [place for place in np.argsort(-votes, kind="stable") if votes[place] > 0]
        return query._replace(
            nearest=tuple(self.image_ids[place] for place in order),
            chance=float(votes[order[RARE - 1]]) if len(order) >= RARE else 0.0,
        )

    def _votes(self, query: Query, hits: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """(pictures,) the most votes that each picture of the index gets for one place."""
        weights = np.maximum(similarity - query.common[:, None], 0) ** EMPHASIS
        rows, columns = np.nonzero(weights)
        hits, weights = hits[rows, columns], weights[rows, columns]
        size = int(np.prod(_votes_shape(2 * BIN)))
        cells = self._owners[hits] * size + _cells(query, rows, self._windows.places[hits], 2 * BIN)
        found, place = np.unique(cells, return_inverse=True)
        votes = np.zeros(len(self.image_ids))
        np.maximum.at(votes, found // size, np.bincount(place, weights, len(found)))
        return votes

    def find(
        self,
        picture: np.ndarray,
        candidates: Iterable[str],
        picture_of: Callable[[str], np.ndarray | None],
        query: Query | None = None,
    ) -> list[Piece]:
        """Pieces of candidate training pictures in a generated picture, the surest first; at most one of each.

        Parameters
        ----------
        picture
            (H, W, 3) float32 in [0, 1]; compared at 256x256.
        candidates
            Ids of training pictures, in the index or not; of a family of near-duplicates one is enough.
        picture_of
            Gives a candidate's picture, None if it cannot be opened.
        query
            What `query` gave for the picture, if it is there already.
        """
        query = query or self.query(picture)
        compared, hypotheses = _compared(picture), []
        for name in dict.fromkeys(candidates):
            windows = self._windows_of(name, picture_of)
            found = _hypothesis(query, windows, name) if windows else None
            hypotheses += [found] if found else []
        hypotheses.sort(key=lambda each: (-each.votes, each.image_id))
        pieces = [self._piece(compared, each, picture_of, query) for each in hypotheses[:VERIFIED]]
        return sorted((piece for piece in pieces if piece), key=lambda piece: -piece.score)

    def others(
        self, picture: np.ndarray, piece: Piece, picture_of: Callable[[str], np.ndarray | None], query: Query
    ) -> list[Piece]:
        """Further pieces of the same training picture, outside of the one found; the surest first."""
        windows, compared = self._windows_of(piece.image_id, picture_of), _compared(picture)
        taken, found = piece.mask, []
        while windows and len(found) < MORE:
            hypothesis = _hypothesis(query, windows, piece.image_id, taken)
            other = self._piece(compared, hypothesis, picture_of, query) if hypothesis else None
            if other is None or (other.mask & taken).any():
                break
            found.append(other)
            taken = taken | other.mask
        return sorted(found, key=lambda each: -each.score)

    def _piece(
        self,
        compared: np.ndarray,
        hypothesis: Hypothesis,
        picture_of: Callable[[str], np.ndarray | None],
        query: Query,
    ) -> Piece | None:
        training = picture_of(hypothesis.image_id)
        return (
            None if training is None else _verified(compared, _compared(training), hypothesis, query.chance)
        )

    def _windows_of(self, name: str, picture_of: Callable[[str], np.ndarray | None]) -> Windows | None:
        with self._lock:
            if name in self._described:
                self._described.move_to_end(name)
                return self._described[name]
        picture = picture_of(name)
        if picture is None:
            return None
        places, descriptors = _windows(_gradients(_compared(picture)), 1.0, STRIDE)
        windows = Windows(places, self._basis.project(descriptors))
        with self._lock:
            self._described[name] = windows
            while len(self._described) > CACHED:
                self._described.popitem(last=False)
        return windows


def crops(picture: np.ndarray) -> list[np.ndarray]:
    """What to embed so that an index of whole pictures finds the source of a piece: the picture, nine overlapping
    crops of 5/8 of its side, and all of these mirrored; (H, W, 3) each.
    """
    height, width = _checked(picture).shape[:2]
    tall, wide = height * 5 // 8, width * 5 // 8
    parts = [picture] + [
        picture[top : top + tall, left : left + wide]
        for top in (0, (height - tall) // 2, height - tall)
        for left in (0, (width - wide) // 2, width - wide)
    ]
    return [np.ascontiguousarray(part[:, ::way]) for part in parts for way in (1, -1)]


@dataclass(frozen=True)
class Basis:
    """Principal components of windows, partly whitened."""

    mean: np.ndarray
    """(D,)"""
    components: np.ndarray
    """(D, d), d at most `DIMENSIONS`."""

    @classmethod
    def of(cls, descriptors: np.ndarray) -> Basis:
        """From descriptors (n, D)."""
        mean = descriptors.mean(0)
        variances, vectors = np.linalg.eigh(np.cov((descriptors - mean).T))
        kept = [place for place in range(-1, -DIMENSIONS - 1, -1) if variances[place] > 1e-6 * variances[-1]]
        return cls(mean, (vectors[:, kept] * variances[kept] ** -WHITENING).astype(np.float32))

    def project(self, descriptors: np.ndarray) -> np.ndarray:
        """(n, d) of unit norm."""
        projected = (descriptors - self.mean) @ self.components
        return projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-9)


def _compared(picture: np.ndarray) -> np.ndarray:
    """A picture as (256, 256, 3)."""
    return picture if _checked(picture).shape == SHAPE else resize(picture)


def _checked(picture: np.ndarray) -> np.ndarray:
    """Refuse what has no colours or is too small to have pieces."""
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < MIN_SIDE:
        raise InputError(
            f"A picture of shape {picture.shape} was given; pieces are looked for in RGB pictures (H, W, 3) of "
            f"at least {MIN_SIDE} pixels a side."
        )
    return picture


def _gradients(picture: np.ndarray) -> np.ndarray:
    """(MAP, MAP, BINS): strength of the gradient by direction, of the channel where it is strongest."""
    small = cv2.resize(cv2.GaussianBlur(picture, (0, 0), BLUR), (MAP, MAP), interpolation=cv2.INTER_AREA)
    x, y = _scharr(small)
    strength = x * x + y * y
    strongest = strength.argmax(2)[..., None]
    x, y, strength = (np.take_along_axis(values, strongest, 2)[..., 0] for values in (x, y, strength))
    turn = np.arctan2(y, x) * (BINS / (2 * np.pi)) % BINS
    low = turn.astype(int)
    share = turn - low
    maps = np.zeros((MAP * MAP, BINS), np.float32)
    positions, low, share, strength = (
        np.arange(MAP * MAP),
        low.ravel() % BINS,
        share.ravel(),
        np.sqrt(strength).ravel(),
    )
    maps[positions, low] = strength * (1 - share)
    maps[positions, (low + 1) % BINS] += strength * share
    return maps.reshape(MAP, MAP, BINS)


def _mirrored(gradients: np.ndarray) -> np.ndarray:
    """`_gradients` of the mirrored picture: directions are mirrored with it."""
    return np.ascontiguousarray(gradients[:, ::-1, (BINS // 2 - np.arange(BINS)) % BINS])


def _scharr(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences a position along both axes."""
    return cv2.Scharr(picture, cv2.CV_32F, 1, 0) / 32, cv2.Scharr(picture, cv2.CV_32F, 0, 1) / 32


def _windows(gradients: np.ndarray, scale: float, stride: int) -> Windows:
    """Windows of one size with some texture in them; descriptors (n, 288), not yet projected."""
    cell, half = CELL * scale, CELLS / 2 * CELL * scale
    smooth = cv2.GaussianBlur(gradients, (0, 0), cell / 2 / PIXEL)
    centres = np.arange(half * 0.6, COMPARE_SIZE - half * 0.6 + 0.01, stride, dtype=np.float32)
    cells = centres[:, None] + (np.arange(CELLS) - CELLS / 2 + 0.5) * cell
    pad = int(half / PIXEL) + 2
    padded = np.pad(smooth, ((pad, pad), (pad, pad), (0, 0)))
    place = np.rint(cells / PIXEL - 0.5).astype(int) + pad
    descriptors = padded[place[:, None, :, None], place[None, :, None, :]].reshape(len(centres) ** 2, -1)
    norms = np.linalg.norm(descriptors, axis=1)
    textured = norms > FLAT
    clipped = np.sqrt(np.minimum(descriptors[textured] / norms[textured, None], 0.2))
    places = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)[textured]
    return Windows(places, clipped / np.linalg.norm(clipped, axis=1, keepdims=True))


def _inner_product_index(descriptors: np.ndarray) -> faiss.Index:
    """Exact for few windows, else by cells: a window's cell and its `PROBES` nearest are looked through."""
    flat = faiss.IndexFlatIP(descriptors.shape[1])
    if len(descriptors) < EXACT:
        flat.add(descriptors)
        return flat
    lists = int(np.sqrt(len(descriptors)))
    index = faiss.IndexIVFFlat(flat, descriptors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.train(descriptors[:: max(1, len(descriptors) // (64 * lists))])
    index.add(descriptors)
    index.nprobe = PROBES  # once, before anybody searches
    return index


def _of_nth_owner(owners: np.ndarray, similarity: np.ndarray, n: int) -> np.ndarray:
    """(q,) similarity of the `n`-th distinct owner along rows (q, k), best first; of the last where there are fewer."""
    order = np.argsort(owners, axis=1, kind="stable")
    ordered = np.take_along_axis(owners, order, 1)
    first = np.ones(owners.shape, bool)
    np.put_along_axis(first, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], 1)
    enough = first.cumsum(1) >= n
    enough[:, -1] = True
    return np.take_along_axis(similarity, enough.argmax(1)[:, None], 1)[:, 0]


def _votes_shape(size: int) -> tuple[int, int, int, int]:
    """Mirrored, scale, and place of a candidate's origin, in bins of `size` pixels from -1.5 sides to 1.5."""
    return 2, len(SCALES), 3 * COMPARE_SIZE // size, 3 * COMPARE_SIZE // size


def _cells(query: Query, rows: np.ndarray, training: np.ndarray, size: int) -> np.ndarray:
    """(n,) the cell in `_votes_shape` of windows `rows` of a query, matched with windows centred at (n, 2)."""
    scale = query.scale[rows]
    origin = query.windows.places[rows] - SCALES[scale, None] * training
    shape = _votes_shape(size)
    x, y = np.clip(np.floor(origin / size).astype(int) + shape[2] // 2, 0, shape[2] - 1).T
    return np.ravel_multi_index((query.mirrored[rows], scale, y, x), shape)


def _hypothesis(
    query: Query, windows: Windows, image_id: str, taken: np.ndarray | None = None
) -> Hypothesis | None:
    """Where most votes of a query for one candidate meet, two bins wide; None if no window is rare enough.

    Windows centred in `taken`, (256, 256), have no vote.
    """
    if not len(query.common) or not len(windows.places):
        return None
    similarity = query.windows.descriptors @ windows.descriptors.T
    nearest = similarity.argmax(1)
    weights = similarity[np.arange(len(nearest)), nearest] - query.common
    rows = np.flatnonzero((weights > 0) & ~_in(taken, query))
    if not len(rows):
        return None
    training, weights = windows.places[nearest[rows]], weights[rows] ** EMPHASIS
    shape = _votes_shape(BIN)
    votes = np.bincount(_cells(query, rows, training, BIN), weights, int(np.prod(shape))).reshape(shape)
    votes[:, :, 1:] += votes[:, :, :-1].copy()
    votes[:, :, :, 1:] += votes[:, :, :, :-1].copy()
    mirrored, scale, y, x = np.unravel_index(votes.argmax(), shape)
    origin = BIN * (np.array([x, y]) - shape[2] // 2)
    generated = query.windows.places[rows]
    near = (
        (query.mirrored[rows] == mirrored)
        & (np.abs(query.scale[rows] - scale) <= 1)
        & (np.abs(SCALES[scale] * training + origin - generated).max(1) < NEAR)
    )
    return Hypothesis(
        float(votes.max()),
        image_id,
        int(mirrored),
        int(scale),
        training[near],
        generated[near],
        weights[near],
    )


def _in(mask: np.ndarray | None, query: Query) -> np.ndarray:
    """(n,) bool: windows of a query whose centres lie in a mask of the generated picture."""
    if mask is None:
        return np.zeros(len(query.common), bool)
    x, y = np.clip(query.windows.places.astype(int), 0, COMPARE_SIZE - 1).T
    return mask[y, np.where(query.mirrored, COMPARE_SIZE - 1 - x, x)]


def _fit(hypothesis: Hypothesis) -> tuple[np.ndarray, np.ndarray]:
    """Similarity (2, 3) from training to generated picture as it was looked at, and which votes (m,) agree with it."""
    scale, training, generated = SCALES[hypothesis.scale], hypothesis.training, hypothesis.generated
    if len(training) >= 3:
        fitted, agree = cv2.estimateAffinePartial2D(
            training, generated, method=cv2.RANSAC, ransacReprojThreshold=AGREE
        )
        if fitted is not None and agree.sum() >= 3 and _upright(fitted):
            return fitted, agree[:, 0] > 0
    shift = np.average(generated - scale * training, axis=0, weights=hypothesis.weights)
    return np.column_stack([scale * np.eye(2), shift]), np.ones(len(training), bool)


def _upright(transform: np.ndarray) -> bool:
    """Whether a similarity is one that upright windows at these scales can find."""
    size = float(np.hypot(transform[0, 0], transform[1, 0]))
    turn = abs(np.degrees(np.arctan2(transform[1, 0], transform[0, 0])))
    return SCALES[0] / 1.2 < size < SCALES[-1] * 1.2 and turn < MAX_TURN


def _laid(picture: np.ndarray, transform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A training picture (256, 256, 3) in the generated one's frame, (MAP, MAP, 3), and where it is, (MAP, MAP)."""
    centres = transform.copy()
    # the transform is of edges, OpenCV's of pixel centres
    centres[:, 2] += transform[:, :2] @ (0.5, 0.5) - 0.5
    ones = np.ones(SHAPE[:2], np.float32)
    laid, inside = (
        cv2.resize(
            cv2.warpAffine(values, centres, SHAPE[:2], borderMode=border),
            (MAP, MAP),
            interpolation=cv2.INTER_AREA,
        )
        for values, border in ((picture, cv2.BORDER_REPLICATE), (ones, cv2.BORDER_CONSTANT))
    )
    return laid, inside > 0.5


def _refined(transform: np.ndarray, seen: np.ndarray, region: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    """The transform, aligned on the region's pixels (ECC, Evangelidis and Psarakis 2008), or as it was."""
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 1e-3)
    start = np.eye(2, 3, dtype=np.float32)
    valid = region.astype(np.uint8)
    try:
        back = cv2.findTransformECC(
            seen, mapped.astype(np.float32), start, cv2.MOTION_AFFINE, stop, valid, 1
        )[1]
    except cv2.error:  # it did not converge
        return transform
    rows, columns = np.nonzero(region)
    ends = np.array([(columns.min(), rows.min()), (columns.max(), rows.max())])
    if np.abs(ends @ back[:, :2].T + back[:, 2] - ends).max() > DRIFT / PIXEL:
        return transform
    back[:, 2] = PIXEL * (back[:, 2] + 0.5 - back[:, :2] @ (0.5, 0.5))
    forth = cv2.invertAffineTransform(back.astype(np.float64))
    return forth @ np.vstack([transform, (0, 0, 1)])


def _support(hypothesis: Hypothesis, agree: np.ndarray) -> np.ndarray:
    """(MAP, MAP) float32: votes that lie over each position."""
    support = np.zeros((MAP, MAP), np.float32)
    half = 0.4 * CELLS * CELL * SCALES[hypothesis.scale]
    low = np.clip((hypothesis.generated[agree] - half) / PIXEL, 0, MAP).astype(int)
    high = np.clip((hypothesis.generated[agree] + half) / PIXEL + 1, 0, MAP).astype(int)
    for (left, top), (right, bottom), weight in zip(low, high, hypothesis.weights[agree], strict=True):
        support[top:bottom, left:right] += weight
    return support


def _colour_map(training: np.ndarray, generated: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(3, 4): the affine map of colours (n, 3) that comes nearest to others (n, 3), drawn towards a gain of 1."""
    weights = weights[:, None] / weights.sum()
    here, there = (weights * training).sum(0), (weights * generated).sum(0)
    x, y = training - here, generated - there
    spread = (weights * x).T @ x
    ridge = (RIDGE * np.trace(spread) / 3 + 1e-6) * np.eye(3)
    gain = np.linalg.solve(spread + ridge, (weights * x).T @ y + ridge).T
    return np.column_stack([gain, there - gain @ here]).astype(np.float32)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), sigma)


def _verified(
    generated: np.ndarray, training: np.ndarray, hypothesis: Hypothesis, chance: float
) -> Piece | None:
    """The piece that a hypothesis stands for, grown and measured on pixels (256, 256, 3); None if there is none."""
    if hypothesis.mirrored:
        generated = np.ascontiguousarray(generated[:, ::-1])
    seen = cv2.resize(_smooth(generated, SEEN_BLUR), (MAP, MAP), interpolation=cv2.INTER_AREA)
    varies = np.maximum((_smooth(seen * seen, 10) - _smooth(seen, 10) ** 2).sum(2), 0)
    blurred = _smooth(training, BLUR)
    transform, agree = _fit(hypothesis)
    support = _support(hypothesis, agree)
    laid, inside = _laid(blurred, transform)
    grown = _grown(seen, varies, laid, inside, support)
    for _ in range(REFINEMENTS):
        if grown is None:
            return None
        transform = _refined(transform, seen, grown[0], grown[1])
        laid, inside = _laid(blurred, transform)
        grown = _grown(seen, varies, laid, inside, support)
    if grown is None:
        return None
    region, mapped, colours = grown
    gradient = _sum_of_squares(_without_gradient(seen, region))
    unexplained = _sum_of_squares((seen - mapped)[region]) / gradient
    unchanged = _sum_of_squares((seen - laid)[region]) / gradient
    rim = cv2.dilate(region.astype(np.uint8), RIM) > 0
    mask = np.kron(rim & inside, np.ones((PIXEL, PIXEL), bool))
    if mask.mean() < MIN_AREA or edges(generated)[mask].mean() < MIN_TEXTURE or unexplained >= 1:
        return None
    places = np.clip(hypothesis.generated[agree] / PIXEL, 0, MAP - 1).astype(int)
    within = region[places[:, 1], places[:, 0]]
    votes = float(hypothesis.weights[agree][within].sum())
    if hypothesis.mirrored:
        mask = mask[:, ::-1]
        transform = np.array([[-1, 0, COMPARE_SIZE], [0, 1, 0]]) @ np.vstack([transform, (0, 0, 1)])
    recoloured = unchanged > max(RECOLOURED, 2 * unexplained)
    return Piece(
        image_id=hypothesis.image_id,
        signs=Signs(
            votes=_log(votes),
            rarity=_log(votes / (chance + CHANCE)),
            edges=_log(_share_of_edges(seen, region, inside)),
            resized=abs(_log(_size(transform))),
            own_colours=float(np.exp(-unchanged / OWN)),
            recoloured=_log(unchanged),
            corners=_log(_corners(seen, mapped, region) + 1e-3),
            left=_log(_sum_of_squares((seen - mapped)[region]) / region.sum()),
            **_colours(laid[region], colours[:, :3]),
        ),
        kinds=_kinds(transform, mask, recoloured),
        transform=transform.astype(np.float32),
        mask=mask,
        polygon=_polygon(transform, mask),
        colours=colours if recoloured else np.eye(3, 4, dtype=np.float32),
        inliers=int(within.sum()),
        unexplained=unexplained,
    )


def _grown(
    seen: np.ndarray, varies: np.ndarray, laid: np.ndarray, inside: np.ndarray, support: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Region (MAP, MAP) around the support where both pictures agree, the training picture in the generated one's
    colours there, (MAP, MAP, 3), and the colour map that does it, (3, 4).
    """
    supported = support * inside
    region, weights = supported > 0, supported
    mapped, colours = laid, np.eye(3, 4)
    for _ in range(GROWTHS):
        if np.count_nonzero(region) < MIN_AREA * MAP * MAP / 2:
            return None
        colours = _colour_map(laid[region], seen[region], weights[region])
        mapped = laid @ colours[:, :3].T + colours[:, 3]
        left = _smooth(((seen - mapped) ** 2).sum(2), 4)
        agrees = (left < DISAGREE * varies + NOISE) & inside
        opened = cv2.morphologyEx(agrees.astype(np.uint8), cv2.MORPH_OPEN, OPENING)
        labels = cv2.connectedComponents(opened)[1]
        votes = np.bincount(labels.ravel(), supported.ravel())
        votes[0] = 0
        region, weights = (labels == votes.argmax()) & (votes.max() > 0), np.ones_like(support)
    return (region, mapped, colours) if region.any() else None


def _log(value: float) -> float:
    """Of what is at least 0, and of 1e-6 where it is less."""
    return float(np.log(max(value, 1e-6)))


def _share_of_edges(seen: np.ndarray, region: np.ndarray, inside: np.ndarray) -> float:
    """Of the edges in a region's convex outline, the share that lies in the region; at most 1."""
    hull = np.zeros(region.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.argwhere(region)[:, ::-1].astype(np.int32)), 1)
    x, y = _scharr(seen)
    strength = (x * x + y * y).sum(2)
    return float(strength[region].sum() / max(strength[(hull > 0) & inside].sum(), 1e-9))


def _corners(seen: np.ndarray, mapped: np.ndarray, region: np.ndarray) -> float:
    """How much of a region's edges lies across the strongest direction, in both pictures: 0 to 0.5.

    The smaller eigenvalue of the structure tensor (Shi and Tomasi 1994) against its trace.
    """
    across, along = np.empty((2, 2, *region.shape), np.float32)
    for place, picture in enumerate((seen, mapped)):
        x, y = _scharr(picture)
        xx, xy, yy = (_smooth((a * b).sum(2), CORNERS_BLUR) for a, b in ((x, x), (x, y), (y, y)))
        along[place] = xx + yy
        across[place] = along[place] / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    return float(across.min(0)[region].sum() / (along[1][region].sum() + 1e-9))


def _colours(training: np.ndarray, gain: np.ndarray) -> dict[str, float]:
    """`Signs.colours` and `Signs.bent` of a piece's colours (n, 3) in the training picture and their map (3, 3)."""
    variance, axes = np.linalg.eigh(np.cov(training.T, bias=True))
    variance = np.maximum(variance, 0)
    total = variance.sum() + 1e-9
    turned = gain @ (axes * np.sqrt(variance))
    angles = turned.T @ turned
    contrast = np.trace(angles) / total
    norm = contrast * np.linalg.norm(variance) + 1e-9
    return {
        "colours": float(total**2 / (np.square(variance).sum() + 1e-9)),
        "bent": float(np.linalg.norm(angles - contrast * np.diag(variance)) / norm),
    }


def _without_gradient(picture: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(n, 3): what a linear gradient leaves of the region."""
    rows, columns = np.nonzero(region)
    plane = np.column_stack([columns, rows, np.ones(len(rows))]).astype(np.float32)
    values = picture[region]
    return values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]


def _sum_of_squares(values: np.ndarray) -> float:
    return float(np.square(values).sum(dtype=np.float64)) + 1e-9


def _kinds(transform: np.ndarray, mask: np.ndarray, recoloured: bool) -> tuple[PieceKind, ...]:
    centre = np.argwhere(mask)[:, ::-1].mean(0) + 0.5
    came_from = np.linalg.solve(transform[:, :2], centre - transform[:, 2])
    size = _size(transform)
    found = {
        PieceKind.MOVED: np.linalg.norm(centre - came_from) > BIN,
        PieceKind.MIRRORED: np.linalg.det(transform[:, :2]) < 0,
        PieceKind.SCALED: not 1 / SCALED < size < SCALED,
        PieceKind.RECOLOURED: recoloured,
    }
    return tuple(kind for kind, holds in found.items() if holds)


def _size(transform: np.ndarray) -> float:
    """Of a length in the generated picture, as a multiple of that in the training picture."""
    return float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))


def _polygon(transform: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(4, 2): where the corners of the mask's box come from in the training picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return np.linalg.solve(transform[:, :2], (corners - transform[:, 2]).T).T.astype(np.float32)
