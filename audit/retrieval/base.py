"""One search interface over every engine: a folder of our own, a clip-retrieval service, Milvus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from audit.corpus.reader import Row
from audit.errors import InputError
from audit.records import Neighbour


class TrainingIndex(Protocol):
    """A searchable training set. What an engine cannot tell it says with None; it never guesses."""

    @property
    def name(self) -> str:
        """Folder or address, for people."""
        ...

    @property
    def described(self) -> str:
        """How it searches, in words: exact, or approximate and in which order."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        ...

    @property
    def embedder_name(self) -> str | None: ...

    @property
    def embedder_sha256(self) -> str | None: ...

    @property
    def sha256(self) -> str:
        """Over what it holds, so that a verdict can say what it was compared with."""
        ...

    @property
    def provenance(self) -> dict[str, object]:
        """For a run or an exhibit: what was searched, how, and for a service what it was asked."""
        ...

    @property
    def folder(self) -> Path | None:
        """Where it lies here; None where it is asked over a network."""
        ...

    @property
    def rows(self) -> Sequence[Row] | None:
        """Every row in order; None where the engine cannot list them."""
        ...

    def __len__(self) -> int:
        """Training images: the denominator of every search."""
        ...

    def __contains__(self, image_id: object) -> bool: ...

    def search(self, vectors: np.ndarray, k: int) -> list[list[Neighbour]]:
        """The `k` nearest for each of (n, dimensions) unit vectors, nearest first; or all there are."""
        ...

    def row(self, image_id: str) -> Row:
        """One training image; InputError where there is none of that name."""
        ...

    def by_caption(self, text: str) -> list[Row] | None:
        """Training images whose caption is exactly `text`; None where the engine cannot look captions up."""
        ...

    def duplicates(self, image_id: str) -> set[str]:
        """Names of the other training images whose files are equal to this one's, as far as hashes are known."""
        ...


def fitting(vectors: np.ndarray, index: TrainingIndex) -> np.ndarray:
    """Queries as (n, dimensions) float32; InputError where they are of another length than the index's vectors."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != index.dimensions:
        raise InputError(
            f"Vectors of shape {vectors.shape} do not fit the index {index.name} of {index.dimensions} dimensions; use "
            "the embedder that it was built with."
        )
    return vectors


def neighbour(row: Row, similarity: float, rank: int) -> Neighbour:
    """A row as a search result, with its attribution."""
    return Neighbour(
        image_id=row.image_id,
        caption=row.caption,
        similarity=similarity,
        rank=rank,
        title=row.title,
        author=row.author,
        licence=row.licence,
        source=row.source or row.url,
        url=row.url,
        path="" if row.path.name == "" else str(row.path),
        member=row.member,
        sha256=row.sha256,
        md5=row.md5,
    )
