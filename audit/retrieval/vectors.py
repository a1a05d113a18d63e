"""The vectors of an index: faiss chosen by size, memory-mapped, and exact order among the nearest candidates.

=================  ===========================  ===========================================================
vectors            faiss                        search
=================  ===========================  ===========================================================
up to 100,000      ``Flat``                     exact
up to 500,000      ``HNSW32,SQfp16``            candidates of a graph
more               ``OPQ,IVF,PQ``               candidates by product quantisation (Jegou et al. 2011)
=================  ===========================  ===========================================================

Approximate neighbours are not evidence: where the vectors themselves stand beside the index (``vectors.npy``, half
precision), the candidates are ordered anew by exact inner products. How much of the exact ten nearest that finds is
measured when an index is built, and written down with it.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import faiss
import numpy as np

from audit.errors import InputError
from audit.files import put, replace_file

INDEX = "image.index"
POPULATED = "populated.index"
LISTS = "merged_index.ivfdata"
STORED = "vectors.npy"
SHARDS = "shards"
FLAT, HNSW = 100_000, 500_000
"""Up to so many vectors."""
CANDIDATES = 200
"""Nearest by the approximate index that are ordered anew by exact inner products; 100 at least."""
TRAINING, LEAST_TRAINING = 48, 20_000
"""Vectors a centroid is trained on; and at least so many in all."""
OPQ_ROUNDS = 8
"""Of the rotation's training; more than that moves the error by little."""
MAPPED_WHOLE = (b"IxFI", b"IxF2", b"IxFl", b"IHNf", b"IHNs", b"IHNp", b"IxSQ", b"IxPq")
"""How files of flat indexes and of graphs begin, which faiss maps by another way than inverted files."""
GRAPH_LISTS = 32_768
"""Lists from which on the nearest of them are found by a graph: a billion vectors have 131,072."""
_ONE_AT_A_TIME = Lock()
BLOCK = 65_536
"""Vectors read together."""
SHARD = 1_000_000
"""Vectors at least that are encoded into one shard of an inverted file, before the shards are merged on disk."""
SEARCH_CLUSTERS = (8, 16, 32, 64, 128, 256)
"""Clusters looked into; the fewest that reach `RECALL` are taken."""
RECALL = 0.97
SAMPLED = 200
"""Vectors whose exact neighbours a new index is measured against."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tuned:
    """How an approximate index is searched, and how well that was when it was built."""

    clusters: int | None
    """Inverted lists, or width of the graph's beam, looked into for each query; None for a flat index."""
    recall_at_10: float
    """Share of the exact ten nearest among the ten found, over `SAMPLED` vectors of the index; themselves left out."""


class Vectors:
    """An opened faiss index, with the stored vectors where they are at hand."""

    def __init__(self, index: faiss.Index, stored: np.ndarray | None = None, clusters: int | None = None):
        self.index = index
        self.stored = stored
        self.clusters = clusters
        self.exact = isinstance(faiss.downcast_index(index), faiss.IndexFlat)
        if stored is not None and stored.shape != (index.ntotal, index.d):
            raise InputError(
                f"{STORED} holds {stored.shape} numbers where the index has {index.ntotal:,} vectors of {index.d} "
                "dimensions; build the index again."
            )

    @classmethod
    def open(cls, folder: Path, clusters: int | None = None) -> Vectors:
        """The vectors of an index folder, memory-mapped; InputError if they are missing or not readable."""
        path = folder / INDEX
        path = path / POPULATED if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{folder} has no {INDEX}; give an index folder.")
        index = _read(path)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise InputError(f"{path} measures another distance than the inner product; build it anew.")
        return cls(index, _stored(folder / STORED), clusters)

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def dimensions(self) -> int:
        """Length of each vector."""
        return self.index.d

    @property
    def described(self) -> str:
        """How it is searched, in words for people."""
        if self.exact:
            return "exact search of all vectors"
        how = f"approximate search ({'graph' if _inverted(self.index) is None else 'inverted file'})"
        if self.stored is None:
            return f"{how}, in the order that it gives"
        return f"{how}, the best {CANDIDATES} ordered anew by exact similarity"

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Inner products and places, both (n, k), of the nearest for queries (n, d) float32; place -1 for none."""
        if self.exact or self.stored is None:
            return self._candidates(queries, min(k, len(self)))
        _, candidates = self._candidates(queries, min(max(k, CANDIDATES), len(self)))
        similarities = np.empty((len(queries), min(k, candidates.shape[1])), np.float32)
        places = np.empty(similarities.shape, np.int64)
        for row, (query, found) in enumerate(zip(queries, candidates, strict=True)):
            # in order of place, so that the disk is read in one direction
            found = np.sort(found[found >= 0])
            exact = self.stored[found].astype(np.float32) @ query
            best = np.argsort(-exact, kind="stable")[: places.shape[1]]
            similarities[row], places[row] = -np.inf, -1
            similarities[row, : len(best)], places[row, : len(best)] = exact[best], found[best]
        return similarities, places

    def all(self) -> np.ndarray:
        """(n, d), row for row: memory-mapped half precision where they are stored so, else float32 in memory.

        Raises
        ------
        InputError
            If there are only codes of them, from which others would come back.
        """
        if self.stored is not None:
            return self.stored
        if _bytes_a_vector(self.index) < 2 * self.dimensions:
            raise InputError(
                "The index holds its vectors compressed, and not as they were; build one from the embeddings or the "
                "pictures."
            )
        return self.index.reconstruct_n(0, len(self))

    def _candidates(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        parameters = _parameters(self.index, self.clusters)
        return self.index.search(np.ascontiguousarray(queries, np.float32), k, params=parameters)  # pyright: ignore[reportCallIssue]


def _read(path: Path) -> faiss.Index:
    """An index whose vectors or lists stay on disk."""
    with open(path, "rb") as stream:
        kind = stream.read(4)
    beside = path.with_name(LISTS)
    if kind in MAPPED_WHOLE:
        flags = faiss.IO_FLAG_MMAP_IFC
    elif beside.is_file():  # wherever the index says that its lists were written
        flags = faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR
    else:
        flags = faiss.IO_FLAG_MMAP
    try:
        with _silent():
            index = faiss.read_index(str(path), flags)
    except (RuntimeError, MemoryError) as error:  # a damaged file may promise any number of vectors
        raise InputError(f"{path} is not a readable faiss index; build it again.") from error
    inverted = _inverted(index)
    if inverted is not None:
        if inverted.invlists is None:
            raise InputError(f"{path} was written without its lists; build it again.")
        lists = faiss.downcast_InvertedLists(inverted.invlists)
        on_disk = isinstance(lists, faiss.OnDiskInvertedLists)
        if on_disk and beside.is_file() and beside.stat().st_size < lists.totsize:
            raise InputError(f"{beside} is shorter than its index says; copy it again.")
        if on_disk and lists.totsize and lists.ptr is None:
            # a search would read through the null pointer
            raise InputError(f"The lists of {path} are to lie in a file {LISTS} beside it; copy that too.")
    return index


@contextmanager
def _silent() -> Iterator[None]:
    """faiss prints from C to standard output, where reports belong: what it says is dropped."""
    with _ONE_AT_A_TIME:  # two at once would each take the other's nowhere for what to come back to
        yield from _silenced()


def _silenced() -> Iterator[None]:
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def factory(count: int, dimensions: int) -> str:
    """faiss's name of the index for so many vectors, see the table above."""
    if count <= FLAT:
        return "Flat"
    if count <= HNSW:
        return "HNSW32,SQfp16"
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    parts = next(parts for parts in (64, 48, 32, 24, 16, 8, 4, 2, 1) if dimensions % parts == 0)
    coarse = "_HNSW32" if lists > GRAPH_LISTS else ""
    return f"OPQ{parts},IVF{lists}{coarse},PQ{parts}"


def write_vectors(
    folder: Path,
    parts: Sequence[Path],
    count: int,
    dimensions: int,
    *,
    description: str | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda sentence: None,
    progress: Progress | None = None,
) -> Tuned:
    """Write ``image.index`` (and ``vectors.npy`` where it is approximate) into `folder` from parts of unit vectors.

    Memory holds a training sample, one shard's codes and blocks, however many vectors there are. Called again after
    a kill it goes on with the shards that are there, or with the index itself where that was written.

    Parameters
    ----------
    parts
        ``.npy`` files of (n, dimensions), half or single precision, in order; `count` rows in all. They go once
        ``vectors.npy`` has them.
    description
        faiss's name of the index; by default that of `factory`.
    tell
        Called with a sentence before what takes minutes and has no progress of its own.
    """
    index = faiss.index_factory(
        dimensions, description or factory(count, dimensions), faiss.METRIC_INNER_PRODUCT
    )
    if isinstance(faiss.downcast_index(index), faiss.IndexFlat):
        for block in blocks(parts):
            index.add(block)
        replace_file(folder / INDEX, lambda path: faiss.write_index(index, str(path)))
        return Tuned(None, 1.0)
    _store(folder / STORED, parts, count, dimensions)
    stored = np.load(folder / STORED, mmap_mode="r", allow_pickle=False)
    inverted = _inverted(index)
    if _is_written(folder, count):
        pass  # a kill came later: only measuring is left
    elif inverted is None:
        if not index.is_trained:
            index.train(_sample(stored, FLAT, seed))
        for start, block in _of_stored(stored):
            index.add(block)
            _tell(progress, start + len(block), count)
        replace_file(folder / INDEX, lambda path: faiss.write_index(index, str(path)))
    else:
        _write_inverted(folder, index, inverted, stored, seed, tell, progress)
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    tell(f"Measuring the index against exact search of {count:,} vectors.")
    return _tuned(folder, stored, seed)


def _is_written(folder: Path, count: int) -> bool:
    """Whether the index of all vectors is there: it is put into its place as the last that is made."""
    try:
        return len(Vectors.open(folder)) == count
    except InputError:
        return False


def blocks(parts: Sequence[Path]) -> Iterator[np.ndarray]:
    """Blocks of (n, d) float32 out of ``.npy`` files in order."""
    for part in parts:
        array = np.load(part, mmap_mode="r", allow_pickle=False)
        for start in range(0, len(array), BLOCK):
            yield np.ascontiguousarray(array[start : start + BLOCK], np.float32)


def _write_inverted(
    folder: Path,
    index: faiss.Index,
    inverted: faiss.IndexIVF,
    stored: np.ndarray,
    seed: int,
    tell: Callable[[str], None],
    progress: Progress | None,
) -> None:
    from faiss.contrib.ondisk import merge_ondisk

    work = folder / SHARDS
    work.mkdir(exist_ok=True)
    trained = work / "trained.index"
    if not trained.is_file():
        if isinstance(index, faiss.IndexPreTransform):
            rotation = faiss.downcast_VectorTransform(index.chain.at(0))  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(rotation, faiss.OPQMatrix):
                rotation.niter = OPQ_ROUNDS
        inverted.cp.seed = seed
        sample = _sample(stored, max(TRAINING * inverted.nlist, LEAST_TRAINING), seed)
        tell(
            f"Training {inverted.nlist:,} lists on {len(sample):,} of {len(stored):,} vectors: this takes minutes."
        )
        index.train(sample)
        replace_file(trained, lambda path: faiss.write_index(index, str(path)))
    shards = []
    # each holds all centroids beside its codes: where these are many, fewer and larger shards
    size = max(SHARD, TRAINING * inverted.nlist)
    for start in range(0, len(stored), size):
        stop = min(start + size, len(stored))
        shard = work / f"shard_{start}_{stop}.index"
        shards.append(str(shard))
        if shard.is_file():
            continue
        part = faiss.read_index(str(trained))
        for at, block in _of_stored(stored, start, stop):
            part.add_with_ids(block, np.arange(at, at + len(block)))
            _tell(progress, at + len(block), len(stored))
        replace_file(shard, lambda path, part=part: faiss.write_index(part, str(path)))
    whole = faiss.read_index(str(trained))
    target = folder / INDEX
    target.mkdir(exist_ok=True)
    with _silent():
        merge_ondisk(whole, shards, str(target / LISTS))
    replace_file(target / POPULATED, lambda path: faiss.write_index(whole, str(path)))


def _tuned(folder: Path, stored: np.ndarray, seed: int) -> Tuned:
    """The fewest clusters whose recall of the exact ten nearest reaches `RECALL`, or the most that are tried."""
    sample = np.sort(
        np.random.default_rng(seed).choice(len(stored), min(SAMPLED, len(stored)), replace=False)
    )
    queries = stored[sample].astype(np.float32)
    exact = exact_neighbours(stored, queries, 11)
    best = Tuned(None, 0.0)
    for clusters in SEARCH_CLUSTERS:
        _, found = Vectors.open(folder, clusters).search(queries, 11)
        shares = [
            _share(near, wanted, own)
            for near, wanted, own in zip(found.tolist(), exact.tolist(), sample.tolist(), strict=True)
        ]
        best = Tuned(clusters, float(np.mean(shares)))
        if best.recall_at_10 >= RECALL:
            break
    return best


def _share(found: Sequence[int], exact: Sequence[int], own: int) -> float:
    """Share of the exact ten nearest that was found; the vector itself is neither."""
    wanted = [place for place in exact if place not in (own, -1)][:10]
    return len(set(wanted) & set(found)) / max(1, len(wanted))


def exact_neighbours(stored: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Places (n, k) of the nearest of `stored` for each query, by comparing with every vector, block by block."""
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    flat = faiss.IndexFlatIP(queries.shape[1])
    for start, block in _of_stored(stored):
        flat.reset()
        flat.add(block)  # pyright: ignore[reportCallIssue]
        similarities, places = flat.search(queries, min(k, len(block)))  # pyright: ignore[reportCallIssue]
        heap.add_result(similarities, places + start)
    heap.finalize()
    return heap.I


def _parameters(index: faiss.Index, clusters: int | None) -> faiss.SearchParameters | None:
    """Of one search: a setting of the index itself would be shared by all threads."""
    if clusters is None:
        return None
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        nested = _parameters(inner.index, clusters)
        parameters = faiss.SearchParametersPreTransform(index_params=nested)  # pyright: ignore[reportCallIssue]
        # faiss keeps a bare pointer to it
        parameters.nested = nested  # pyright: ignore[reportAttributeAccessIssue]
        return parameters
    if isinstance(inner, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=clusters)  # pyright: ignore[reportCallIssue]
    if isinstance(inner, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(clusters * 4, CANDIDATES))  # pyright: ignore[reportAttributeAccessIssue]
    return None


def _bytes_a_vector(index: faiss.Index) -> int:
    """Of what an index keeps of each vector; 0 where that is no vector of its own space."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        return 0
    if isinstance(inner, faiss.IndexHNSW):
        return _bytes_a_vector(inner.storage)
    return getattr(inner, "code_size", 0)


def _inverted(index: faiss.Index) -> faiss.IndexIVF | None:
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None


def _store(path: Path, parts: Sequence[Path], count: int, dimensions: int) -> None:
    """All vectors as one array of half precision on disk; a part goes once it is in there, so that they do not lie
    there twice.

    After a kill the parts that are left say where to go on: the others were the first.
    """
    if path.is_file():
        return
    unfinished = path.with_name(path.name + ".partial")
    left = [part for part in parts if part.is_file()]
    start = count - sum(len(np.load(part, mmap_mode="r", allow_pickle=False)) for part in left)
    kind = np.dtype(np.float16)
    with open(unfinished, "r+b" if start else "wb") as stream:
        described = {"descr": kind.str, "fortran_order": False, "shape": (count, dimensions)}
        np.lib.format.write_array_header_1_0(stream, described)
        stream.seek(start * dimensions * kind.itemsize, os.SEEK_CUR)
        for part in left:
            for block in blocks([part]):
                stream.write(block.astype(kind).data)
            stream.flush()
            os.fsync(stream.fileno())
            part.unlink()
    put(unfinished, path)


def _stored(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged; build the index again.") from error
    if stored.dtype not in (np.float16, np.float32):
        raise InputError(f"{path} holds {stored.dtype}, no vectors; build the index again.")
    return stored


def _of_stored(
    stored: np.ndarray, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    stop = len(stored) if stop is None else stop
    for at in range(start, stop, BLOCK):
        yield at, np.ascontiguousarray(stored[at : min(at + BLOCK, stop)], np.float32)


def _sample(stored: np.ndarray, count: int, seed: int) -> np.ndarray:
    if count >= len(stored):
        return np.ascontiguousarray(stored, np.float32)
    chosen = np.sort(np.random.default_rng(seed).choice(len(stored), count, replace=False))
    return np.ascontiguousarray(stored[chosen], np.float32)


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress:
        progress(done, total)
