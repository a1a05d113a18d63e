"""Training pictures that have an address only: shown as they arrive, never by a placeholder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import streamlit as st

from audit.corpus.download import FetchStatus
from audit.corpus.fetch import digests
from audit.corpus.remote import remote_images
from audit.corpus.stored import is_local
from audit.errors import InputError
from audit.ui.pictures import png
from audit.ui.text import escape, shorten

if TYPE_CHECKING:
    from concurrent.futures import Future

    from audit.corpus.cache import Fetched
    from audit.corpus.reader import Row
    from audit.records import Neighbour

AT_ONCE = 8
KEPT = 200
"""Pictures kept as they are shown: those that came are drawn again each second while others are waited for."""
WAITED = "pictures waited for"
NOT_FETCHED = (
    "This picture has an address only, and pictures are not fetched here (VERBATIM_FETCH, VERBATIM_OFFLINE)."
)


@st.cache_resource(show_spinner=False)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetching")


@st.cache_resource(show_spinner=False)
def _asked() -> dict[str, Future]:
    return {}


def elsewhere(stored: Row | Neighbour) -> bool:
    """Whether a picture has an address only."""
    return bool(stored.url) and not is_local(stored)


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
    known = remote.current(stored.url, expected)
    if known is not None:
        return known
    asked = _asked()
    future = asked.get(stored.url) or asked.setdefault(
        stored.url, _pool().submit(remote.get, stored.url, expected)
    )
    if not future.done():
        return None
    asked.pop(stored.url, None)
    return future.result()


def as_they_come(stored: Sequence[Row | Neighbour], draw: Callable[[], None]) -> None:
    """Call `draw`, which draws some pictures, and again in its place as long as any is being fetched.

    The page itself runs again once nothing is waited for any more: only that ends the looking.
    """
    for each in filter(elsewhere, stored):
        try:
            found = fetched(each)
        except InputError:  # told where it is drawn
            continue
        if found is None and (future := _asked().get(each.url)):
            st.session_state.setdefault(WAITED, {})[each.url] = future
    if any(each.url in st.session_state.get(WAITED, {}) for each in stored):
        _again(draw)
    else:
        draw()


@st.fragment(run_every=1.0)
def _again(draw: Callable[[], None]) -> None:
    waited: dict[str, Future] = st.session_state.get(WAITED, {})
    if waited and all(future.done() for future in waited.values()):
        del st.session_state[WAITED]
        st.rerun()
    draw()


def waiting(stored: Row | Neighbour) -> None:
    """A line that says what is fetched."""
    st.markdown(f":material/downloading: Fetching the picture from {escape(_host(stored.url))} …")


def _host(url: str) -> str:
    try:
        return shorten(urlsplit(url).hostname or "its address", 60)
    except ValueError:
        return "its address"


def picture(stored: Row | Neighbour, *, blur: bool) -> bytes | None:
    """The picture as PNG; None while it is fetched; InputError says why there is none."""
    found = fetched(stored)
    if found is None:
        return None
    if found.status is not FetchStatus.FETCHED:
        raise InputError(found.reason)
    return _png(found.sha256, blur, found, stored.image_id)


@st.cache_data(show_spinner=False, max_entries=KEPT)
def _png(sha256: str, blur: bool, _found: Fetched, _name: str) -> bytes:
    from audit.retrieval.search import picture_of

    return png(picture_of(_found, _name), blur=blur)
