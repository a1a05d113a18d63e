"""Which engine holds a training set: a folder here, a clip-retrieval service, or Milvus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from audit.corpus.roots import given_root
from audit.errors import InputError
from audit.retrieval.index import Index
from audit.retrieval.vectors import INDEX
from audit.settings import settings

if TYPE_CHECKING:
    from audit.retrieval.base import TrainingIndex

MILVUS = "milvus:"


def is_service(where: str) -> bool:
    """Whether a training set is asked over HTTP: such a service does not say which embedder made its vectors."""
    return where.startswith(("http://", "https://"))


def is_index(where: str) -> bool:
    """Whether it names an index, and no training set without one."""
    return is_service(where) or where.startswith(MILVUS) or (Path(where) / INDEX).exists()


def open_listed(where: str) -> Index:
    """An index all of whose rows and vectors can be read: a folder; InputError for the other engines."""
    if is_service(where) or where.startswith(MILVUS):
        raise InputError(
            f"{where} answers searches and does not list what it holds; give the index folder or the training set "
            "that it was made of."
        )
    return Index.open(Path(where))


def publish(index: Index, where: str, progress: Callable[[int, int], None] | None = None) -> int:
    """Write an index folder's rows and vectors into Milvus, ``milvus:URI#COLLECTION``; how many there are.

    An interrupted one goes on where it was.
    """
    from audit.retrieval.milvus import COLLECTION, build, sliced

    if not where.startswith(MILVUS):
        raise InputError(
            f"{where!r} is no place to publish to; give {MILVUS}FILE.db#COLLECTION or {MILVUS}http://HOST:PORT#COLLECTION."
        )
    address, _, name = where.removeprefix(MILVUS).partition("#")
    count = len(index)
    return build(
        sliced(index.rows, index.vectors()),
        address,
        name or COLLECTION,
        source=index.rows.root.folder if index.rows.root else index.folder,
        embedder_name=index.embedder_name,
        embedder_sha256=index.embedder_sha256,
        token=settings().milvus_token,
        progress=progress and (lambda done: progress(done, count)),
    )


def open_index(where: str, dimensions: int | None = None) -> TrainingIndex:
    """A training set.

    Parameters
    ----------
    where
        An index folder; ``http(s)://HOST:PORT#INDICE`` of a clip-retrieval service (without ``#`` where it has one
        index); or ``milvus:URI#COLLECTION``, a file of Milvus Lite or the address of a cluster.
    dimensions
        Length of its vectors, for a service.

    Raises
    ------
    InputError
        If it cannot be opened.
    """
    address, _, name = where.removeprefix(MILVUS).partition("#")
    if where.startswith(MILVUS):
        from audit.retrieval.milvus import COLLECTION, MilvusIndex

        return MilvusIndex.open(address, name or COLLECTION, token=settings().milvus_token)
    if is_service(where):
        from audit.retrieval.service import ServiceIndex

        if dimensions is None:
            raise InputError(
                f"{where} is a service: name the embedder that made its vectors (VERBATIM_EMBEDDER)."
            )
        return ServiceIndex.open(address, dimensions=dimensions, indice_name=name or None, root=given_root())
    return Index.open(Path(where))
