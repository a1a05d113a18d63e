"""Training pictures that were removed from view: asked wherever one is shown, and where an auditor removes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from audit.corpus.remote import goes_by, sha256_of
from audit.errors import InputError
from audit.review.events import EventKind
from audit.review.roles import Action, Person
from audit.ui.guard import show_error
from audit.ui.reviewer import allowed, store
from audit.ui.text import escape

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.records import Neighbour
    from audit.ui.bench import TrainingSet

REMOVED = "This picture was removed from view on request. Its hash and its labels stay."
WHAT_IT_DOES = (
    "A picture that is removed is shown on no page any more and goes into no exhibit and no download; exhibits made before "
    "that hold it are not shown. Its hash, its labels and its distances stay. Its file, the index made of it, pictures that "
    "a model generated, and what was downloaded before are not touched: deleting them is for whoever owns them."
)


def hidden() -> set[str]:
    """sha256 of the pictures that are not to be shown."""
    return store().hidden()


def removed(stored: Row | Neighbour) -> bool:
    """Whether a training picture is not to be shown, by the hash that its table has or that of its bytes."""
    return goes_by(stored, hidden())


def section(person: Person, have: TrainingSet | None) -> None:
    """For an auditor: what was removed, by whom and why, and a form for the next."""
    if not allowed(person, Action.HIDE):
        return
    with st.expander("Pictures removed from view", icon=":material/visibility_off:"):
        st.markdown(WHAT_IT_DOES)
        last = {event.subject: event for event in store().events([EventKind.REMOVED_FROM_VIEW])}
        for sha256 in sorted(hidden()):
            event = last[sha256]
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(
                    f"`{sha256[:16]}…` {escape(event.body['reason'])}  \n:small[{escape(event.who)}, {event.when[:10]}]",
                    width="stretch",
                )
                st.button("Show again", key=f"show-{sha256}", on_click=_restore, args=(person, sha256))
        with st.form("removal", border=False, clear_on_submit=True):
            name = st.text_input("Name of the training image, or the sha256 of its file", max_chars=500)
            reason = st.text_input("Who asked for it, and why", max_chars=500)
            asked = st.form_submit_button("Remove from view", icon=":material/visibility_off:")
        if asked:
            try:
                store().remove_from_view(person, _named(name.strip(), have), reason)
            except InputError as error:
                show_error(error)
            else:
                st.rerun()


def _restore(person: Person, sha256: str) -> None:
    store().restore_to_view(person, sha256, "shown again on the page Review")


def _named(name: str, have: TrainingSet | None) -> str:
    """The sha256 of the training image of this name; else the name itself, which the store checks."""
    if have is None or not have.has(name):
        return name
    sha256 = sha256_of(have.index.row(name))
    if not sha256:
        raise InputError(
            f"The file of {name[:80]} is not here and nobody says its sha256; give that instead."
        )
    return sha256
