"""The sections of the audit trail's page: the events, and the whole chain as a file that verifies by itself."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import streamlit as st

from audit.cells import safe_cell
from audit.errors import InputError
from audit.review.events import EventKind
from audit.review.roles import Person
from audit.review.store import Store
from audit.review.trail import Asked, everybody, export_trail, found
from audit.review.verify import parse_root
from audit.ui import reviewer, trail, url
from audit.ui.guard import show_error
from audit.ui.page_state import PageState
from audit.ui.text import count, escape
from audit.ui.url import Trail

ROWS = 50
FILE = "trail.jsonl"


def fill(state: Trail) -> None:
    """Put a state that came by a link into the widgets."""
    st.session_state["trail-kind"] = state.kind
    st.session_state["trail-who"] = state.who
    st.session_state["trail-words"] = state.words
    st.session_state["trail-since"] = date.fromisoformat(state.since) if state.since else None


TRAIL = PageState("trail", url.read_trail, url.write, fill, filled="trail-kind")


def title(kind: str) -> str:
    """What an event of a kind is called."""
    return kind.replace("_", " ").capitalize() if kind else "Anything"


def listing(state: Trail, person: Person) -> Trail:
    """The events that the filters leave, the newest first."""
    store = reviewer.store()
    trail.viewed("audit trail", what="audit trail")
    people = everybody(store, person)
    if state.who and state.who not in people:
        st.warning(escape(f"{state.who} did nothing that is recorded here."), icon=":material/person_off:")
        people.append(state.who)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.selectbox("What", ["", *EventKind], key="trail-kind", format_func=title, width=200)
        who = st.selectbox(
            "Who", ["", *people], key="trail-who", format_func=lambda name: name or "Everybody", width=240
        )
        words = st.text_input(
            "Words in it", key="trail-words", type="search", max_chars=200, width=240
        ).strip()
        since = st.date_input("Since", key="trail-since", value=None, width=160)
    asked = Trail(str(kind), who, words, since.isoformat() if since else "")
    page = state.page if asked == replace(state, page=1) else 1
    filters = Asked(asked.kind, asked.who, asked.words, asked.since)
    number, events = found(store, person, filters, (page - 1) * ROWS, ROWS)
    if not number:
        st.info("Nothing that is recorded is so; take a filter away.", icon=":material/filter_alt_off:")
        return asked
    pages = -(-number // ROWS)
    if pages > 1:
        page = st.pagination(pages, default=min(page, pages), key=f"trail-pages-{hash(asked)}-{pages}")
        _, events = found(store, person, filters, (page - 1) * ROWS, ROWS)
    st.caption(f"{count(number, 'event', 'events')}, the newest first. Times are UTC.")
    st.dataframe(
        [
            {
                "Number": event.number,
                "When": event.when[:19].replace("T", " "),
                "Who": safe_cell(event.who),
                "What": title(event.kind.value),
                "About": safe_cell(event.subject),
                "Details": safe_cell(
                    "; ".join(f"{name}: {_told(value)}" for name, value in event.body.items() if value != "")
                ),
            }
            for event in events
        ],
        hide_index=True,
        column_config={
            "Number": st.column_config.NumberColumn(width="small"),
            "Details": st.column_config.TextColumn(width="large"),
        },
        alt="What was done, by whom and when",
    )
    return replace(asked, page=page)


def _told(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def whole(person: Person) -> None:
    """The whole chain: its root, its file, and whether it holds."""
    store = reviewer.store()
    root = store.root()
    st.header("The whole trail", anchor=False)
    st.markdown(
        "Each event holds the hash of the one before. Keep the number of events and the hash of the last one elsewhere: "
        "they show later that nothing before was changed or taken out."
    )
    st.code(json.dumps(asdict(root)), language=None, wrap_lines=True)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kept = st.text_input(
            "Kept elsewhere before", placeholder="A root, in the form above", key="trail-root", width=420
        )
        asked = st.button("Check the trail", icon=":material/link:")
        trail.download(
            "Export the trail",
            lambda: _file(store, person),
            FILE,
            what="audit trail",
            icon=":material/download:",
        )
    st.caption(
        f"The file holds every event. `python -m audit trail verify {FILE}` checks it anywhere, with `--root` against a "
        "root that was kept."
    )
    if asked:
        try:
            _check(store, kept)
        except InputError as error:
            show_error(error)


def _check(store: Store, kept: str) -> None:
    findings = store.verify(parse_root(kept, "What was kept") if kept.strip() else None)
    for finding in findings[:10]:
        st.error(escape(finding.sentence), icon=":material/gpp_bad:")
    if not findings:
        against = (
            "and the trail is the one that this was kept of"
            if kept.strip()
            else "but without a root that was kept, a chain that was made anew is not told from the true one"
        )
        st.success(f"Every event is as it was written, {against}.", icon=":material/verified_user:")


def _file(store: Store, person: Person) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        export_trail(store, person, path)
        return path.read_bytes()
