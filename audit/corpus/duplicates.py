"""What repeats in a training set: exact copies, and families of near-duplicates.

Nothing is deduplicated away: the duplicates are the evidence. Families are found by embedding and verified on
pixels against one representative each: connected components over near pairs would chain unlike pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from audit.corpus.reader import Row
from audit.errors import InputError
from audit.images import sha256

NEAR_DUPLICATE = 2500.0
"""SSE over 256x256x3 under which two training pictures are near-duplicates: the verdict's own threshold."""
NEIGHBOURS = 64

Picture = Callable[[int], np.ndarray | None]


@dataclass(frozen=True)
class Family:
    """A representative and the training pictures that nearly equal it."""

    representative: str
    members: tuple[str, ...]
    """Image ids, nearest first; the representative comes before all."""
    distances: tuple[float, ...]
    """SSE of each member to the representative."""


def exact_copies(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Groups of image ids whose files are equal byte for byte, largest first; no groups of one."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.sha256 or sha256(row.path), []).append(row.image_id)
    return sorted(
        (tuple(group) for group in groups.values() if len(group) > 1), key=lambda group: -len(group)
    )


def families(
    ids: Sequence[str],
    picture: Picture,
    embeddings: np.ndarray,
    *,
    threshold: float = NEAR_DUPLICATE,
    progress: Callable[[int, int], None] | None = None,
) -> list[Family]:
    """Families of near-duplicates among n pictures, largest first.

    Parameters
    ----------
    ids
        Names of the pictures.
    picture
        Gives the i-th picture as (256, 256, 3) float32 in [0, 1], or None if it cannot be opened.
    embeddings
        (n, d) float32 of unit norm; each picture is compared with its 64 nearest.
    threshold
        SSE to the representative under which a picture belongs to its family.
    """
    if len(ids) != len(embeddings):
        raise InputError(f"{len(ids)} names and {len(embeddings)} embeddings were given; give one each.")
    if not len(ids):
        return []
    vectors = np.ascontiguousarray(embeddings, dtype=np.float32)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)  # pyright: ignore[reportCallIssue]
    _, neighbours = index.search(vectors, min(NEIGHBOURS, len(ids)))  # pyright: ignore[reportCallIssue]
    assigned = np.zeros(len(ids), bool)
    found = []
    for i in range(len(ids)):
        if progress:
            progress(i + 1, len(ids))
        if assigned[i] or (representative := picture(i)) is None:
            continue
        near = [(0.0, i)]
        for other in neighbours[i].tolist():
            if other < 0 or other == i or assigned[other] or (candidate := picture(other)) is None:
                continue
            distance = float(np.square(representative - candidate).sum(dtype=np.float64))
            if distance < threshold:
                near.append((distance, other))
        if len(near) > 1:
            near[1:] = sorted(near[1:])
            assigned[[place for _, place in near]] = True
            members = tuple(ids[place] for _, place in near)
            found.append(Family(ids[i], members, tuple(distance for distance, _ in near)))
    return sorted(found, key=lambda family: -len(family.members))
