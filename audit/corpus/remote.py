"""The cache of fetched pictures that this process uses, and which file a training picture is."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from audit.corpus.fetch import RemoteImages
from audit.corpus.stored import is_local, stored_bytes
from audit.errors import InputError
from audit.images import sha256
from audit.settings import settings

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.records import Neighbour


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
    recorded = stored.sha256.strip().lower()
    if len(recorded) == 64:
        return recorded
    if not is_local(stored):
        remote = remote_images() if stored.url else None
        known = remote.known(stored.url) if remote else None
        return known.sha256 if known else ""
    try:
        return sha256(stored_bytes(Path(stored.path), stored.member))
    except InputError:  # a dead link
        return ""
