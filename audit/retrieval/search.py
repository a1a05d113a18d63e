"""From a picture or a text to the nearest training images, re-ranked on exact pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np

from audit.corpus.cache import Fetched
from audit.corpus.download import FetchStatus
from audit.corpus.fetch import digests
from audit.corpus.reader import Row
from audit.corpus.remote import remote_images
from audit.corpus.stored import is_local, local_bytes, stored_bytes
from audit.errors import InputError
from audit.images import COMPARE_SIZE, decode, resize, to_uint8, unpacking
from audit.records import Neighbour
from audit.retrieval.base import TrainingIndex
from audit.retrieval.embedding import Embedder, open_embedder
from audit.retrieval.engines import is_service, open_index
from audit.retrieval.sscd import CopyDetector
from audit.settings import settings
from audit.verbatim.distances import blank_sse
from audit.verbatim.verdict import Thresholds

TOP = 100
"""How many neighbours are re-ranked on exact pixels: similarity of embeddings is not evidence."""
NEAR = max(astuple(Thresholds()))
"""Distance from which on nobody asks what a picture of one colour would reach: the largest threshold of a verdict."""
CACHED = 3_500
"""Pictures kept decoded, 192 KiB each."""


class PictureCache:
    """Training pictures at the size of comparison, 8 bits a value; the least recently used goes first.

    Pictures that have an address only are fetched, safely and once (`audit.corpus.fetch`).
    """

    def __init__(self, capacity: int = CACHED):
        self.capacity = capacity
        self._pictures: OrderedDict[str, np.ndarray] = OrderedDict()
        self._blanks: dict[str, float] = {}
        self._lock = Lock()

    def fetch(
        self,
        stored: Iterable[Row | Neighbour],
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Decode what is not there yet, several at a time: decoding needs no interpreter lock. Of large pictures only
        so many as memory has room for (`audit.images.unpacking`).

        Parameters
        ----------
        progress, cancelled
            Of what has to be fetched from an address (`audit.corpus.fetch.RemoteImages.get_many`).
        """
        with self._lock:
            missing = {key(each): each for each in stored if key(each) not in self._pictures}
        addresses = {
            each.url: each.sha256 or each.md5 for each in missing.values() if not is_local(each) and each.url
        }
        if addresses and (remote := remote_images()):
            for _ in remote.get_many(
                list(addresses), expected=digests(addresses), progress=progress, cancelled=cancelled
            ):
                pass
        if missing:
            with ThreadPoolExecutor() as pool:
                list(pool.map(self.get, missing.values()))

    def get(self, stored: Row | Neighbour) -> np.ndarray | None:
        """(256, 256, 3) uint8, or None if the picture is missing or damaged now: the next call looks again."""
        name = key(stored)
        with self._lock:
            if name in self._pictures:
                self._pictures.move_to_end(name)
                return self._pictures[name]
        try:
            data = self.read(stored)
            with unpacking(data):
                picture = to_uint8(resize(decode(data, stored.image_id)))
        except InputError:
            return None
        with self._lock:
            self._pictures[name] = picture
            while len(self._pictures) > self.capacity:
                self._pictures.popitem(last=False)
        return picture

    def open(self, stored: Row | Neighbour) -> np.ndarray:
        """One picture as it is stored, (H, W, 3) float32 in [0, 1]; InputError says why it cannot be had."""
        return decode(self.read(stored), stored.image_id)

    def read(self, stored: Row | Neighbour) -> bytes:
        """The bytes of one picture as it is stored; InputError says why they cannot be had."""
        if is_local(stored) or not stored.url:
            return local_bytes(stored)
        remote = remote_images()
        if remote is None:
            raise InputError(
                f"{stored.image_id[:80]} has an address only, and pictures are not fetched here."
            )
        expected = digests({stored.url: stored.sha256 or stored.md5}).get(stored.url)
        return bytes_of(remote.get(stored.url, expected))

    def blank(self, stored: Row | Neighbour) -> float | None:
        """`blank_sse` of a picture; kept also when the picture itself has gone."""
        name = key(stored)
        if name not in self._blanks:
            picture = self.get(stored)
            if picture is None:
                return None
            self._blanks[name] = float(blank_sse(picture.astype(np.float32) / 255.0))
        return self._blanks[name]


def picture_of(fetched: Fetched, name: str) -> np.ndarray:
    """The picture that was fetched, (H, W, 3) float32 in [0, 1]; InputError with its status where it is not the one."""
    return decode(bytes_of(fetched), name)


def bytes_of(fetched: Fetched) -> bytes:
    """The bytes that were fetched; InputError with their status where they are not those of the picture."""
    if fetched.status is not FetchStatus.FETCHED or fetched.path is None:
        raise InputError(fetched.reason)
    return stored_bytes(fetched.path)


def key(stored: Row | Neighbour) -> str:
    """What tells one picture's place from another's."""
    if is_local(stored):
        return f"{stored.path}#{stored.member}"
    # two rows of one address may tell of different pictures
    return f"{stored.url} {stored.sha256 or stored.md5}"


class Retriever:
    """Searches one index with the embedder that it was built with.

    Raises
    ------
    InputError
        If the index was built with another embedder: its similarities would mean nothing.
    """

    def __init__(self, index: TrainingIndex, embedder: Embedder | CopyDetector, *, cached: int = CACHED):
        if index.embedder_sha256 not in (None, embedder.sha256):
            raise InputError(
                f"The index {index.name} was built with the embedder {index.embedder_name} "
                f"(sha256 {index.embedder_sha256[:12]}), not with {embedder.name} ({embedder.sha256[:12]}); "
                "load that one or build the index again."
            )
        if index.dimensions != embedder.dimensions:
            raise InputError(
                f"The index {index.name} has {index.dimensions} dimensions, the embedder {embedder.name} "
                f"{embedder.dimensions}; load the one that it was built with."
            )
        self.index = index
        self.embedder = embedder
        self.pictures = PictureCache(cached)

    @classmethod
    def open(
        cls, where: str | Path, *, device: str = "auto", dtype: str = "auto", offline: bool = False
    ) -> Retriever:
        """Open a training set (`audit.retrieval.engines.open_index`) and the embedder that made its vectors.

        One that does not say which that was takes the one of the settings (``VERBATIM_EMBEDDER``).
        """
        where = str(where)

        def embedder(name: str) -> Embedder | CopyDetector:
            if not name:
                raise InputError(
                    f"The index {where} does not say which embedder made it; name it in VERBATIM_EMBEDDER."
                )
            allowed = settings().torchscript_sha256
            return open_embedder(
                name, device=device, dtype=dtype, offline=offline, torchscript_sha256=allowed
            )

        if is_service(where):
            loaded = embedder(settings().embedder)
            return cls(open_index(where, loaded.dimensions), loaded)
        index = open_index(where)
        return cls(index, embedder(index.embedder_name or settings().embedder))

    def warm(self) -> None:
        """Decode as many pictures as are kept, in index order, one at a time: for a thread that nobody waits for."""
        for row in islice(self.index.rows or (), self.pictures.capacity):
            if is_local(row):
                self.pictures.get(row)

    def by_image(self, image: np.ndarray, k: int) -> list[Neighbour]:
        """The `k` training images nearest to one picture, (H, W, 3) float32 in [0, 1], by similarity."""
        return self.by_images([image], k)[0]

    def by_images(self, images: Sequence[np.ndarray], k: int) -> list[list[Neighbour]]:
        """`by_image` for several pictures, embedded together."""
        return self.index.search(self.embedder.images(images), k)

    def by_text(self, text: str, k: int) -> list[Neighbour]:
        """The `k` training images nearest to a text, by similarity."""
        return self.index.search(self.embedder.texts([text]), k)[0]

    def rerank(
        self,
        image: np.ndarray,
        neighbours: Sequence[Neighbour],
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Neighbour]:
        """Neighbours with their exact distance to the picture, SSE over 256x256x3, smallest first.

        Beside small ones stands what a picture of one colour would reach.

        Those whose file is missing or damaged have ``sse=None`` and come last: a dead link, no black image.

        Parameters
        ----------
        progress, cancelled
            Of pictures that have an address only: they are waited for, which may take minutes.

        Raises
        ------
        Cancelled
            When `cancelled` says so.
        """
        self.pictures.fetch(neighbours, progress=progress, cancelled=cancelled)
        query = 255.0 * resize(image).reshape(COMPARE_SIZE, -1)
        measured = [replace(hit, sse=self._sse(query, hit)) for hit in neighbours]
        near = [hit.sse is not None and hit.sse < NEAR for hit in measured]
        measured = [
            replace(hit, blank=self.pictures.blank(hit)) if close else hit
            for hit, close in zip(measured, near, strict=True)
        ]
        return sorted(measured, key=lambda hit: (hit.sse is None, hit.sse, hit.rank))

    def nearest(self, image: np.ndarray, k: int) -> list[Neighbour]:
        """The `k` training images nearest to a picture by exact pixels, among the `TOP` or more by similarity."""
        return self.rerank(image, self.by_image(image, max(TOP, k)))[:k]

    def picture(self, image_id: str) -> np.ndarray | None:
        """One training picture, (256, 256, 3) float32 in [0, 1]; None if its file is missing or damaged."""
        pixels = self.pictures.get(self.index.row(image_id))
        return None if pixels is None else pixels.astype(np.float32) / 255.0

    def _sse(self, query: np.ndarray, hit: Neighbour) -> float | None:
        pixels = self.pictures.get(hit)
        if pixels is None:
            return None
        # One picture at a time stays in the processor's cache: a stack of a hundred is three times slower.
        difference = np.subtract(pixels.reshape(query.shape), query, dtype=np.float32)
        rows = np.einsum("ij,ij->i", difference, difference)
        return float(rows.sum(dtype=np.float64)) / 255.0**2
