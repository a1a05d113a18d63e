"""Which engine holds a training set: a folder here, a clip-retrieval service, or Milvus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from audit.errors import InputError
from audit.retrieval.index import Index

if TYPE_CHECKING:
    from audit.retrieval.base import TrainingIndex

MILVUS = "milvus:"


def is_service(where: str) -> bool:
    """Whether a training set is asked over HTTP: such a service does not say which embedder made its vectors."""
    return where.startswith(("http://", "https://"))


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
        from audit.retrieval.milvus import MilvusIndex

        return MilvusIndex.open(address, name)
    if is_service(where):
        from audit.retrieval.service import ServiceIndex

        if dimensions is None:
            raise InputError(
                f"{where} is a service: name the embedder that made its vectors (VERBATIM_EMBEDDER)."
            )
        return ServiceIndex.open(address, dimensions=dimensions, indice_name=name or None)
    return Index.open(Path(where))
