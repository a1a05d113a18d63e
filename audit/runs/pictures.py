"""A training set as what repeats in it is looked for: all of its rows, their embeddings, and the pictures one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from audit.corpus.duplicates import file_hash
from audit.corpus.fetch import digests
from audit.corpus.reader import Row
from audit.corpus.remote import remote_images
from audit.corpus.stored import Root, is_local
from audit.errors import Cancelled, InputError
from audit.retrieval.build import embeddable, embedded
from audit.retrieval.index import Index
from audit.retrieval.rows import Rows
from audit.retrieval.search import PictureCache

if TYPE_CHECKING:
    from audit.corpus.fetch import RemoteImages
    from audit.retrieval.embedding import Embedder
    from audit.retrieval.sscd import CopyDetector

KEPT = 1_000
"""Pictures kept decoded, 200 kB each."""

CREDITS = ("author", "licence", "source")

Progress = Callable[[int, int], None]
Asked = Callable[[], bool]
"""Whether somebody stopped the work."""


@dataclass(frozen=True)
class Pictures:
    """n rows of a training set and their embeddings."""

    image_ids: list[str]
    captions: list[str]
    urls: list[str]
    hashes: list[str]
    """Of the files; empty where not known."""
    vectors: np.ndarray
    """(n, d) of unit norm."""
    picture: Callable[[int], np.ndarray | None]
    """The i-th as (256, 256, 3) float32 in [0, 1]; None if it cannot be opened."""
    sha256: str
    """Over names and files, in order."""
    left_out: int = 0
    credits: Sequence[tuple[str, str, str]] = ()
    """Author, licence and source of each; none where nobody says."""

    @classmethod
    def of_index(
        cls, index: Index, progress: Progress | None = None, cancelled: Asked | None = None
    ) -> Pictures:
        """Those of an index, with its embeddings.

        Parameters
        ----------
        progress
            Of the pictures that have to be fetched from their addresses first.
        cancelled
            Asked meanwhile, and from then on whenever a picture is opened: then Cancelled is raised.
        """
        return cls._of_rows(index.rows, index.vectors(), index.left_out, progress, cancelled)

    @classmethod
    def of_source(
        cls,
        source: Path,
        embedder: Embedder | CopyDetector | None,
        remote: RemoteImages | None,
        progress: Progress | None = None,
    ) -> Pictures:
        """Those of a training set without an index, as `audit.retrieval.build` reads it, kept in memory."""
        found = embeddable(source, embedder, remote)
        vectors, batches, left_out = [], [], 0
        for part in embedded(found, embedder, remote, progress=progress):
            vectors.append(part.vectors.astype(np.float16))
            batches.append(part.rows)
            left_out += len(part.errors)
        rows = Rows(batches, Root(found.folder)).named_apart()
        if not len(rows):
            raise InputError(f"No picture in {source} can be decoded; {left_out:,} were left out.")
        return cls._of_rows(rows, np.concatenate(vectors), left_out, progress)

    @classmethod
    def _of_rows(
        cls,
        rows: Rows,
        vectors: np.ndarray,
        left_out: int,
        progress: Progress | None,
        cancelled: Asked | None = None,
    ) -> Pictures:
        cache = PictureCache(KEPT)
        _fetch(rows, progress, cancelled)

        def picture(place: int) -> np.ndarray | None:
            _check(cancelled)
            pixels = cache.get(rows[place])
            return None if pixels is None else pixels.astype(np.float32) / 255.0

        found = [(row.image_id, row.caption, row.url, file_hash(row)) for row in _checked(rows, cancelled)]
        image_ids, captions, urls, hashes = (list(column) for column in zip(*found, strict=True))
        credits = [(row.author, row.licence, row.source or row.url) for row in _checked(rows, cancelled)]
        return cls(image_ids, captions, urls, hashes, vectors, picture, rows.sha256, left_out, credits)

    def credited(self, table: pd.DataFrame, image_ids: Iterable[str]) -> pd.DataFrame:
        """A table with author, licence and source of the picture that each of its rows is about."""
        known = dict(zip(self.image_ids, self.credits, strict=False))
        told = [known.get(name, ("", "", "")) for name in image_ids]
        return table.assign(**{name: [each[place] for each in told] for place, name in enumerate(CREDITS)})


def _check(cancelled: Asked | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled("Stopped before every picture was looked at.")


def _checked(rows: Iterable[Row], cancelled: Asked | None) -> Iterator[Row]:
    """The rows, as long as nobody stopped it: there may be millions."""
    for row in rows:
        _check(cancelled)
        yield row


def _fetch(rows: Iterable[Row], progress: Progress | None, cancelled: Asked | None) -> None:
    """Have the pictures that are known by their addresses, several at a time: they are looked at one by one."""
    addresses = {
        row.url: row.sha256 or row.md5 for row in _checked(rows, cancelled) if row.url and not is_local(row)
    }
    remote = remote_images() if addresses else None
    if remote is not None:
        expected = digests(addresses)
        for _ in remote.get_many(list(addresses), expected=expected, progress=progress, cancelled=cancelled):
            pass
