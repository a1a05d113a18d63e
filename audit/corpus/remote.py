"""The cache of fetched pictures that this process uses."""

from __future__ import annotations

from functools import lru_cache

from audit.corpus.fetch import RemoteImages
from audit.settings import settings


@lru_cache(maxsize=1)
def remote_images() -> RemoteImages | None:
    """Pictures by their addresses, kept in the data folder; None where the settings say that nothing is fetched."""
    if settings().offline or not settings().fetch:
        return None
    remote = RemoteImages(settings().data_dir / "fetched", allowed_hosts=settings().fetch_hosts)
    remote.clean(settings().fetched_bytes)
    return remote
