"""What repeats in a training set: equal files, and the same picture saved, scaled, cut or marked anew.

Nothing is deduplicated away: the duplicates are the evidence. Pictures near in embedding are candidates, and each
member of a cluster was compared with its representative itself: connected components over near pairs would chain
unlike pictures. Two claims are kept apart: *near by embedding*, and *verified on pixels*.

Cost for n vectors of d dimensions: a search of 32 neighbours each, ``n * (L + 8 * n / L) * d`` multiplications with
``L = 4 * sqrt(n)`` inverted lists, and ``4 * n * d`` bytes for them; then a comparison of pixels for each candidate,
some milliseconds with its decoding. ``tests/measures/duplicates_scale.py`` measures the whole command on 100,000
vectors of 512 dimensions. Beyond some ten million, cluster the shards of an index one by one and their
representatives once more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from scipy import ndimage

from audit.corpus.hashes import digest
from audit.corpus.reader import Row
from audit.corpus.stored import stored_bytes
from audit.errors import InputError
from audit.images import COMPARE_SIZE, sha256
from audit.records import limit

NEAR = 2500.0
"""SSE over 256x256x3 under which two training pictures may be one: the verdict's own threshold."""
MAX_REGION = 0.0435
"""Share of a picture that changes as a whole region, from which it is a variation and no copy; chosen on the
calibration half of the demo's planted copies and template families (``demo measure --what duplicates``)."""
MAX_REGION_IN_FAMILY = 0.005
"""The same between two members of one template family: there the smallest lettering is a variation."""
CHANGED = 0.1
"""Difference summed over channels from which a position counts as changed."""
CELL = 4
"""Pixels along each side of a position at which regions are looked for: sharper edges are no change of content."""
REGION = np.ones((5, 5), bool)
"""A region: a square of 20x20 pixels that changes as a whole, which no edge of a scaled or shifted copy does."""
COARSE = 8
"""Blocks along each side of the coarse look by which unlike pictures are told apart."""
CANDIDATE = 0.85
"""Cosine between embeddings from which pixels are compared."""
ALONE = 0.95
"""Cosine from which two pictures count as near by embedding where no pixels are at hand."""
NEIGHBOURS = 32
FLAT = 20_000
"""Vectors up to which every one is compared with every other."""
LISTS, ALL_LISTS = 8, 64
"""Inverted lists looked into for each vector of more; and where all that is near is wanted: the lists are learnt, so
that thousands of copies get many."""
TRAINING = 32
"""Vectors a list from which the lists are learnt."""
BLOCK = 4096
TOLD = 0.2
"""Seconds between two reports while pixels are compared, which takes hours for some training sets."""

Progress = Callable[[int, int], None]
Picture = Callable[[int], np.ndarray | None]
"""Gives the i-th picture as (256, 256, 3) float32 in [0, 1], or None if it cannot be opened."""
Compare = Callable[[int, np.ndarray], np.ndarray]
"""SSE of one picture to others, (m,): infinite for another picture, NaN where one cannot be opened."""


@dataclass(frozen=True)
class Cluster:
    """One picture of a training set, as often as it occurs: places in the set, nearest first."""

    members: np.ndarray
    """(m,) places; the representative comes first."""
    similarity: np.ndarray
    """(m,) float32 cosine of each to the representative."""
    sse: np.ndarray
    """(m,) float64 SSE of each to the representative; NaN where pixels were not compared."""
    equal: np.ndarray
    """(m,) bool: the file equals the representative's, byte for byte."""

    @property
    def representative(self) -> int:
        return int(self.members[0])


def file_hash(row: Row) -> str:
    """Hex sha256 of a row's picture file (or the md5 that its table has), else of its bytes; empty where neither is
    at hand."""
    if recorded := digest(row.sha256) or digest(row.md5):
        return recorded
    try:
        return sha256(stored_bytes(row.path, row.member))
    except InputError:
        return ""


def same_pictures(
    hashes: Sequence[str],
    vectors: np.ndarray,
    compare: Compare | None = None,
    *,
    similarity: float = ALONE,
    progress: Progress | None = None,
) -> list[Cluster]:
    """Clusters of one picture each, the largest first; pictures that occur once are in none.

    Parameters
    ----------
    hashes
        Of the n files; empty where not known. Equal files are clustered whatever their embeddings are.
    vectors
        (n, d) of unit norm, in memory or memory-mapped; half precision will do.
    compare
        Verifies on pixels (`Pixels`); None where there are none, and embeddings alone decide.
    similarity
        Cosine from which a picture whose pixels are not at hand counts as near.
    """
    if len(hashes) != len(vectors):
        raise InputError(f"{len(hashes)} pictures and {len(vectors)} embeddings were given; give one each.")
    groups = _equal(hashes)
    first = np.array([group[0] for group in groups], int)
    distinct = vectors if len(first) == len(vectors) else vectors[first]
    among = (lambda place, others: compare(int(first[place]), first[others])) if compare else None
    found, clustered = [], np.zeros(len(groups), bool)
    for near in near_clusters(distinct, among, similarity=similarity, progress=progress):
        clustered[near.members] = True
        found.append(_with_copies(near, groups))
    for place in np.flatnonzero(~clustered).tolist():
        if len(groups[place]) > 1:
            found.append(_with_copies(_alone(place), groups))
    return sorted(found, key=lambda cluster: (-len(cluster.members), cluster.representative))


def near_clusters(
    vectors: np.ndarray,
    compare: Compare | None = None,
    *,
    similarity: float = ALONE,
    progress: Progress | None = None,
) -> list[Cluster]:
    """Clusters of near pictures among (n, d) `vectors`, each member compared with the representative itself.

    Pictures with most neighbours come first as representatives, and each takes what is near to it and still free.
    Parameters as in `same_pictures`.
    """
    if len(vectors) < 2:
        return []
    least = CANDIDATE if compare else similarity
    index = searchable(vectors)
    graph = _Graph.of(index, vectors, least, progress)
    free = np.ones(len(vectors), bool)
    found: list[Cluster] = []
    told = time.monotonic()
    for done, leader in enumerate(graph.order()):
        if progress and time.monotonic() - told >= TOLD:
            progress(len(vectors) + done, 2 * len(vectors))
            told = time.monotonic()
        if not free[leader]:
            continue
        others, cosines = graph.neighbours(leader)
        if graph.more[leader]:
            others, cosines = _within(index, vectors, leader, least)
        near = free[others] & (others != leader)
        others, cosines = others[near], cosines[near]
        if not len(others):
            continue
        sse = compare(leader, others) if compare else np.full(len(others), np.nan)
        same = np.isfinite(sse) | (np.isnan(sse) & (cosines >= similarity))
        if same.any():
            free[leader] = False
            free[others[same]] = False
            found.append(_cluster(leader, others[same], cosines[same], sse[same]))
    if progress:
        progress(2 * len(vectors), 2 * len(vectors))
    return found


class Pixels:
    """Whether pictures are one, on pixels; `picture` is asked again and again, let it keep some.

    Another picture is told by the means of 8x8 blocks: an SSE is at least what these differ by (Jensen's inequality),
    so that few pictures are compared in full.

    Parameters
    ----------
    family
        Template family of places, where one is known: its members may be near as a whole and are no copies.
    """

    def __init__(self, picture: Picture, family: Mapping[int, str] | None = None):
        self.picture = picture
        self.family = family or {}
        self.looks: dict[int, tuple[np.ndarray, float] | None] = {}
        self.unopened: set[int] = set()
        """Places of pictures that could not be opened."""

    def __call__(self, place: int, others: np.ndarray) -> np.ndarray:
        found = np.full(len(others), np.nan)
        mine = self._look(place)
        image = None
        for number, other in enumerate(others.tolist()):
            theirs = self._look(other)
            if mine is None or theirs is None:
                continue
            found[number] = np.inf
            if (COMPARE_SIZE // COARSE) ** 2 * np.square(mine[0] - theirs[0]).sum() >= NEAR:
                continue
            image = self.picture(place) if image is None else image
            second = self.picture(other)
            if image is None or second is None:
                continue
            sse = _sse(image, second)
            near = sse < limit(NEAR, min(mine[1], theirs[1]))
            if near and changed_region(image, second) < self._allowed(place, other):
                found[number] = sse
        return found

    def _allowed(self, a: int, b: int) -> float:
        related = a in self.family and self.family[a] == self.family.get(b)
        return MAX_REGION_IN_FAMILY if related else MAX_REGION

    def _look(self, place: int) -> tuple[np.ndarray, float] | None:
        """Means of blocks, and what a picture of one colour would reach."""
        if place not in self.looks:
            image = self.picture(place)
            if image is None:
                self.unopened.add(place)
                self.looks[place] = None
            else:
                means = _means(image, COMPARE_SIZE // COARSE)
                self.looks[place] = means, _sse(image, means.mean((0, 1)))
        return self.looks[place]


def changed_region(a: np.ndarray, b: np.ndarray) -> float:
    """Share of two pictures (256, 256, 3) that lies in the middle of a region in which they differ, in [0, 1].

    JPEG, scaling and small cuts move edges and leave areas as they are; another filling, pattern or lettering
    changes an area. What changes everywhere alike, as brightness does, is taken out first.

    >>> picture = np.zeros((256, 256, 3), np.float32)
    >>> changed_region(picture, picture + 0.5)
    0.0
    """
    difference = _means(a - b, CELL)
    difference = difference - np.median(difference.reshape(-1, 3), axis=0)
    changed = np.abs(difference).sum(-1) > CHANGED
    return float(ndimage.binary_erosion(changed, REGION).mean())


def _means(image: np.ndarray, side: int) -> np.ndarray:
    """(n, n, 3): mean colours of blocks of `side` pixels."""
    blocks = COMPARE_SIZE // side
    # Rows first, then columns as a product of matrices: ten times faster than a mean over two axes.
    rows = image.reshape(blocks, side, -1).sum(1, dtype=np.float32).reshape(-1, 3 * side)
    return (rows @ np.tile(np.eye(3, dtype=np.float32), (side, 1))).reshape(blocks, blocks, 3) / side**2


def _sse(a: np.ndarray, b: np.ndarray) -> float:
    rows = (a - b).reshape(COMPARE_SIZE, -1)
    return float(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64))


def _equal(hashes: Sequence[str]) -> list[list[int]]:
    """Places of equal hashes; one that is not known equals no other."""
    groups: dict[str | int, list[int]] = {}
    for place, value in enumerate(hashes):
        groups.setdefault(value or place, []).append(place)
    return list(groups.values())


def _cluster(leader: int, others: np.ndarray, cosines: np.ndarray, sse: np.ndarray) -> Cluster:
    order = np.lexsort((others, -cosines, sse))  # what was not compared comes last
    alone = _alone(leader)
    return Cluster(
        np.concatenate([alone.members, others[order]]),
        np.concatenate([alone.similarity, cosines[order]]),
        np.concatenate([alone.sse, sse[order]]),
        np.arange(len(others) + 1) == 0,
    )


def _alone(place: int) -> Cluster:
    return Cluster(np.array([place]), np.ones(1, np.float32), np.zeros(1), np.ones(1, bool))


def _with_copies(cluster: Cluster, groups: Sequence[list[int]]) -> Cluster:
    """A cluster of groups of equal files as one of files."""
    of = [groups[place] for place in cluster.members]
    times = [len(group) for group in of]
    return Cluster(
        np.concatenate([np.asarray(group, int) for group in of]),
        np.repeat(cluster.similarity, times),
        np.repeat(cluster.sse, times),
        np.repeat(cluster.equal, times),
    )


@dataclass(frozen=True)
class _Graph:
    """Neighbours of each of n vectors: those of `i` are ``others[starts[i]:starts[i + 1]]``."""

    starts: np.ndarray
    others: np.ndarray
    cosines: np.ndarray
    more: np.ndarray
    """(n,) bool: there are more neighbours than were asked for."""

    @classmethod
    def of(cls, index: faiss.Index, vectors: np.ndarray, least: float, progress: Progress | None) -> _Graph:
        count, asked = len(vectors), min(NEIGHBOURS + 1, len(vectors))
        more = np.zeros(count, bool)
        keys, values = [], []
        for start, block in in_blocks(vectors):
            cosines, places = index.search(block, asked, params=parameters(index, LISTS))  # pyright: ignore[reportCallIssue]
            own = np.broadcast_to(np.arange(start, start + len(block))[:, None], places.shape)
            near = (cosines >= least) & (places >= 0)
            more[start : start + len(block)] = near.all(axis=1) & (asked < count)
            near &= places != own
            first, second = np.minimum(own, places)[near], np.maximum(own, places)[near]
            keys.append(first * count + second)
            values.append(cosines[near])
            if progress:
                progress(start + len(block), 2 * count)
        pairs, once = np.unique(np.concatenate(keys), return_index=True)
        cosines = np.concatenate(values)[once]
        both = np.concatenate(
            [np.stack(np.divmod(pairs, count)), np.stack(np.divmod(pairs, count))[::-1]], axis=1
        )
        order = np.argsort(both[0], kind="stable")
        starts = np.searchsorted(both[0][order], np.arange(count + 1))
        return cls(starts, both[1][order], np.concatenate([cosines, cosines])[order], more)

    def order(self) -> list[int]:
        """Vectors that have neighbours, those with most and nearest first."""
        degree = np.diff(self.starts)
        nearness = np.add.reduceat(np.append(self.cosines, 0.0), self.starts[:-1]) * (degree > 0)
        places = np.lexsort((-nearness, -degree))
        return places[degree[places] > 0].tolist()

    def neighbours(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Places and cosines."""
        part = np.s_[self.starts[place] : self.starts[place + 1]]
        return self.others[part], self.cosines[part]


def searchable(vectors: np.ndarray, metric: int = faiss.METRIC_INNER_PRODUCT) -> faiss.Index:
    """An index of (n, d) vectors in memory: exact for few, inverted lists for more (search it with `parameters`)."""
    count, dimensions = vectors.shape
    if count <= FLAT:
        index = faiss.IndexFlat(dimensions, metric)
    else:
        lists = 2 ** round(math.log2(4 * math.sqrt(count)))
        index = faiss.IndexIVFFlat(faiss.IndexFlat(dimensions, metric), dimensions, lists, metric)
        index.cp.min_points_per_centroid = 1
        sample = np.random.default_rng(0).choice(count, min(count, TRAINING * lists), replace=False)
        index.train(np.ascontiguousarray(vectors[np.sort(sample)], np.float32))  # pyright: ignore[reportCallIssue]
    for _, block in in_blocks(vectors):
        index.add(block)  # pyright: ignore[reportCallIssue]
    return index


def _within(
    index: faiss.Index, vectors: np.ndarray, place: int, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Places and cosines of everything near to one vector, however much it is."""
    query = np.ascontiguousarray(vectors[place : place + 1], np.float32)
    _, cosines, places = index.range_search(query, least, params=parameters(index, ALL_LISTS))  # pyright: ignore[reportCallIssue]
    return places, cosines


def parameters(index: faiss.Index, lists: int) -> faiss.SearchParameters | None:
    """Of one search that looks into so many inverted lists, where there are any."""
    if isinstance(index, faiss.IndexIVFFlat):
        return faiss.SearchParametersIVF(nprobe=min(lists, index.nlist))  # pyright: ignore[reportCallIssue]
    return None


def in_blocks(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of (n, d) vectors as float32, with the place of the first of each."""
    for start in range(0, len(vectors), BLOCK):
        yield start, np.ascontiguousarray(vectors[start : start + BLOCK], np.float32)
