"""Training pictures that have an address only: shown as they arrive, never by a placeholder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import streamlit as st

from audit.corpus.download import FetchStatus
from audit.corpus.fetch import digests
from audit.corpus.remote import remote_images
from audit.errors import InputError
from audit.ui.text import escape, shorten

if TYPE_CHECKING:
    from concurrent.futures import Future

    from audit.corpus.cache import Fetched
    from audit.corpus.reader import Row
    from audit.records import Neighbour

AT_ONCE = 8
NOT_FETCHED = (
    "This picture has an address only, and pictures are not fetched here (VERBATIM_FETCH, VERBATIM_OFFLINE)."
)


@st.cache_resource(show_spinner=False)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetching")


@st.cache_resource(show_spinner=False)
def _asked() -> dict[str, Future]:
    return {}


def fetched(stored: Row | Neighbour) -> Fetched | None:
    """What is known of a picture's address; None while it is being fetched, which this begins.

    Raises
    ------
    InputError
        If nothing is fetched here.
    """
    remote = remote_images()
    if remote is None:
        raise InputError(NOT_FETCHED)
    expected = digests({stored.url: stored.sha256 or stored.md5}).get(stored.url)
    known = remote.known(stored.url, expected)
    if known is not None and (known.path is not None or known.status is not FetchStatus.FETCHED):
        return known
    asked = _asked()
    future = asked.get(stored.url) or asked.setdefault(
        stored.url, _pool().submit(remote.get, stored.url, expected)
    )
    if not future.done():
        return None
    asked.pop(stored.url, None)
    return future.result()


@st.fragment(run_every=1.0)
def waiting(stored: Row | Neighbour) -> None:
    """A line that says what is fetched, and draws the page anew once it has come, with all that came meanwhile."""
    future = _asked().get(stored.url)
    if future is None or future.done():
        st.rerun()
    st.markdown(f":material/downloading: Fetching the picture from {escape(_host(stored.url))} …")


def _host(url: str) -> str:
    try:
        return shorten(urlsplit(url).hostname or "its address", 60)
    except ValueError:
        return "its address"


def picture(stored: Row | Neighbour) -> np.ndarray | None:
    """The picture, (H, W, 3) float32 in [0, 1]; None while it is fetched; InputError says why there is none."""
    from audit.retrieval.search import picture_of

    found = fetched(stored)
    return None if found is None else picture_of(found, stored.image_id)
