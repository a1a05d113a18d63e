"""The sections of the training-set page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from audit.errors import InputError
from audit.images import decode, sha256
from audit.retrieval.rows import Rows
from audit.settings import settings
from audit.ui import bench, frame, remote, url
from audit.ui.cards import card, owed, owed_together, picture, strip
from audit.ui.claims import RETRIEVED
from audit.ui.guard import show_error
from audit.ui.page_state import PageState
from audit.ui.text import escape, literal
from audit.ui.url import Search

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.ui.bench import TrainingSet

PAGE = 24
HITS = 48
"""Nearest pictures that are asked for; of those that the words do not find, a page is shown."""
GREY = np.full((128, 128, 3), 0.5, dtype=np.float32)
"""Where a picture is not shown or cannot be opened."""
VIEWS = {"pictures": "Pictures", "families": "Families of near-duplicates"}


def fill(state: Search) -> None:
    """Put a state that came by a link into the widgets."""
    st.session_state["set-query"] = state.query
    st.session_state["set-view"] = state.view


SEARCH = PageState("set", url.read_search, url.write, fill, filled="set-view")


def view_switch(state: Search, have: TrainingSet) -> Search:
    """Pictures or families."""
    chosen = st.segmented_control(
        "View",
        list(VIEWS),
        format_func=lambda view: _view(view, have),
        required=True,
        key="set-view",
        label_visibility="collapsed",
    )
    return Search(view=chosen) if chosen and chosen != state.view else state


def _view(view: str, have: TrainingSet) -> str:
    if view == "families" and _too_many(have):
        return VIEWS[view]
    return f"{VIEWS[view]} · {len(have.index) if view == 'pictures' else len(have.families):,}"


def _too_many(have: TrainingSet) -> bool:
    """Whether families are not gathered here (`audit.ui.bench.families`), so that none here says nothing."""
    return len(have.index) > bench.LOOKED_THROUGH


def pictures(state: Search, have: TrainingSet) -> Search:
    """The search field, and what it finds; everything where nothing is searched."""
    left, right = st.columns([3, 2], vertical_alignment="top")
    query = left.text_input(
        "Search by words",
        key="set-query",
        type="search",
        placeholder="Words of a caption, or what a picture shows",
    )
    upload = right.file_uploader(
        "Search by a picture",
        ["png", "jpg", "jpeg", "webp", "gif"],
        key="set-upload",
        max_upload_size=max(1, settings().max_upload_bytes // 1_000_000),
    )
    query = (query or "").strip()
    if query != state.query:
        state = Search(query=query)
    if upload is not None:
        _like_upload(upload, have)
    elif state.like:
        state = _like(state, have)
    elif state.query:
        state = _words(state, have)
    else:
        state = _all(state, have)
    return state


def families(state: Search, have: TrainingSet) -> Search:
    """Every family of near-duplicates, the largest first."""
    if _too_many(have):
        st.info(
            f"Families are gathered here from {bench.LOOKED_THROUGH:,} training images at most, and this training set has "
            f"{len(have.index):,}. The page Duplicates lists what repeats in it, once it was looked for.",
            icon=":material/info:",
        )
        st.page_link("pages/duplicates.py", label="See duplicates", icon=":material/filter_none:")
        return replace(state, family="")
    if not have.families:
        st.info(
            "No family of near-duplicates is known in this training set. Families come from the column `family` of its "
            "corpus.parquet; where there is none, from what the page Duplicates finds.",
            icon=":material/info:",
        )
        st.page_link("pages/duplicates.py", label="Look for duplicates", icon=":material/filter_none:")
        return state
    st.markdown(
        "Variations of a template, drawings that hardly differ, equal files: as the training set's table marks them, or, "
        "where it marks none, as they were found for the page Duplicates. Such repetition is what a model learns by "
        "heart, so nothing is removed: in an audit the duplicates are the evidence."
    )
    names = list(have.families)
    page = _pages(len(names), 12, state)
    grid = st.grid(3, min_column_width=260, border=True)
    for name in names[(page - 1) * 12 : page * 12]:
        rows = have.families[name]
        with grid.cell():
            strip(rows, have.retriever.pictures, blur=frame.blurred())
            literal(rows[0].caption, style="clamp")
            owed_together(rows)
            st.button(
                f"Show all {len(rows):,}",
                key=f"family-{name}",
                on_click=SEARCH.change,
                kwargs={"family": name, "page": 1},
            )
    return replace(state, page=page)


def family(state: Search, have: TrainingSet) -> Search:
    """All members of one family."""
    st.button(
        "All families", icon=":material/arrow_back:", on_click=SEARCH.change, kwargs={"family": "", "page": 1}
    )
    rows = have.families.get(state.family)
    if rows is None:
        st.info(
            "This training set has no family of that name; choose one from the list.", icon=":material/info:"
        )
        return replace(state, family="")
    st.subheader(f"{len(rows):,} near-duplicates", anchor=False)
    page = _pages(len(rows), PAGE, state)
    _grid(rows[(page - 1) * PAGE : page * PAGE])
    return replace(state, page=page)


def _all(state: Search, have: TrainingSet) -> Search:
    rows = have.index.rows
    if rows is None:
        st.info(
            escape(f"{have.index.name} can be searched, by words or by a picture, but not listed."),
            icon=":material/info:",
        )
        return state
    page = _pages(len(rows), PAGE, state)
    _grid(rows[(page - 1) * PAGE : page * PAGE])
    return replace(state, page=page)


def _words(state: Search, have: TrainingSet) -> Search:
    found = bench.find_by_text(state.query, HITS)
    if found is None:
        return state
    near, page = found, state.page
    if isinstance(rows := have.index.rows, Rows):
        exact = _containing(state.query, have.index.sha256, rows)
        near = [hit for hit in found if not _any_of(exact, rows.find("image_id", hit.image_id))]
        st.subheader(f"{len(exact):,} of {len(have.index):,} captions contain these words", anchor=False)
        page = _pages(len(exact), PAGE, state)
        _grid([rows[place] for place in exact[(page - 1) * PAGE : page * PAGE].tolist()])
    near = near[:PAGE]
    st.subheader(f"The {len(near)} nearest others by what they show", anchor=False)
    st.caption("By likeness of embeddings: near is not a copy, and the order is a machine's guess.")
    _hits(near, have)
    return replace(state, page=page)


@st.cache_resource(show_spinner=False, max_entries=8)
def _containing(query: str, name: str, _rows: Rows) -> np.ndarray:
    """Places of the captions of the training set `name` that contain the words; looked through once a query."""
    return _rows.containing(query.split())


def _any_of(ordered: np.ndarray, places: Sequence[int]) -> bool:
    """Whether one of the places is among those in order."""
    return any(place in ordered[(at := np.searchsorted(ordered, place)) : at + 1] for place in places)


def _like(state: Search, have: TrainingSet) -> Search:
    st.button(
        "Back to all pictures", icon=":material/arrow_back:", on_click=SEARCH.change, kwargs={"like": ""}
    )
    row = have.index.row(state.like)
    st.subheader("Nearest training images to this one", anchor=False)
    left, right = st.columns([1, 3])
    with left:
        picture(row, blur=frame.blurred())
    with right:
        literal(row.caption, style="body")
        owed(row)
    try:
        if remote.elsewhere(row) and remote.fetched(row) is None:
            return state  # the page runs again when it has come
        image = have.retriever.pictures.open(row)
    except InputError:  # told where it would stand
        return state
    found = bench.find_by_image(image, sha256(np.ascontiguousarray(image).tobytes()), HITS)
    if found is not None:
        _hits([hit for hit in found if hit.image_id != row.image_id][:PAGE], have)
    return state


def _like_upload(upload, have: TrainingSet) -> None:
    try:
        data = upload.getvalue()
        image = decode(data, "The picture you sent")
    except InputError as error:
        show_error(error)
        return
    found = bench.find_by_image(image, sha256(data), HITS)
    if found is not None:
        st.subheader(f"Nearest of {len(have.index):,} training images to your picture", anchor=False)
        st.caption(
            "Ordered by exact pixel distance among the nearest by likeness, as far as their pictures are here. Remove the "
            "file to see all again."
        )
        _hits(found[:PAGE], have)


def _pages(count: int, size: int, state: Search) -> int:
    pages = max(1, -(-count // size))
    page = min(state.page, pages)
    if pages > 1:
        # another search begins at its own page, also where it finds as many
        of = f"{state.view}-{state.family}-{state.query}"
        return st.pagination(pages, default=page, key=f"pages-{SEARCH.generation}-{count}-{size}-{of}")
    return 1


def _grid(rows: Sequence[Row]) -> None:
    blur = frame.blurred()
    grid = st.grid(4, min_column_width=200)
    for row in rows:
        with grid.cell():
            card(
                row,
                blur=blur,
            )
            _actions(row.image_id, row.caption)


def _hits(hits, have: TrainingSet) -> None:
    blur = frame.blurred()
    grid = st.grid(4, min_column_width=200)
    for hit in hits:
        number = f"likeness {hit.similarity:.2f}" if hit.sse is None else f"distance {hit.sse:,.0f}"
        with grid.cell():
            card(
                hit,
                blur=blur,
                claims=(RETRIEVED,),
                number=number,
            )
            _actions(hit.image_id, hit.caption)


def _actions(image_id: str, caption: str) -> None:
    with st.container(horizontal=True, gap="xsmall", vertical_alignment="center"):
        st.page_link(
            "pages/prompt_lab.py", label="Audit", icon=":material/science:", query_params={"caption": caption}
        )
        st.button(
            "Similar",
            key=f"like-{image_id}",
            type="tertiary",
            icon=":material/image_search:",
            on_click=SEARCH.change,
            kwargs={"like": image_id, "page": 1, "query": ""},
        )
