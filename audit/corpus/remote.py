"""The cache of fetched pictures that this process uses, and which file a training picture is."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from audit.corpus.download import FetchStatus
from audit.corpus.fetch import RemoteImages
from audit.corpus.hashes import digest
from audit.corpus.stored import is_local, stored_bytes
from audit.errors import InputError
from audit.images import sha256
from audit.settings import settings

if TYPE_CHECKING:
    from collections.abc import Set

    from audit.corpus.reader import Row
    from audit.records import Neighbour

KEPT = 100_000
"""Hashes of files that are remembered: pages ask again and again."""


@lru_cache(maxsize=1)
def remote_images() -> RemoteImages | None:
    """Pictures by their addresses, kept in the data folder; None where the settings say that nothing is fetched."""
    if settings().offline or not settings().fetch:
        return None
    remote = RemoteImages(settings().data_dir / "fetched", allowed_hosts=settings().fetch_hosts)
    remote.clean(settings().fetched_bytes)
    return remote


def sha256_of(stored: Row | Neighbour) -> str:
    """Hex sha256 of a picture's file: as its table has it, else of the bytes that are here; empty where there are none."""
    return _recorded(stored) or _of_bytes(stored)


def hashes_of(stored: Row | Neighbour) -> tuple[str, ...]:
    """What a picture's file goes by: the sha256 that its table has, and that of the bytes that are here where it is
    another: many tables have it of the original, and the file was encoded anew.
    """
    return tuple(dict.fromkeys(filter(None, (_recorded(stored), _of_bytes(stored)))))


def goes_by(stored: Row | Neighbour, hashes: Set[str]) -> bool:
    """Whether a picture's file goes by one of the `hashes`; no file is read where there are none to ask for."""
    return bool(hashes) and (_recorded(stored) in hashes or _of_bytes(stored) in hashes)


def _recorded(stored: Row | Neighbour) -> str:
    found = digest(stored.sha256)
    return found if len(found) == 64 else ""


def _of_bytes(stored: Row | Neighbour) -> str:
    if not is_local(stored):
        remote = remote_images() if stored.url else None
        known = remote.known(stored.url, digest(stored.sha256 or stored.md5)) if remote else None
        return known.sha256 if known and known.status is FetchStatus.FETCHED else ""
    path = Path(stored.path)
    try:
        found = path.stat()
        return _of_file(path, stored.member, found.st_size, found.st_mtime_ns)
    except (InputError, OSError):  # a dead link
        return ""


@lru_cache(maxsize=KEPT)
def _of_file(path: Path, member: str, size: int, changed: int) -> str:
    """`size` and `changed`, the file's time, tell it from another file of this name."""
    return sha256(stored_bytes(path, member))
