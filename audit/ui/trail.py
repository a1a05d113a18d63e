"""What people do at the dashboard, for the audit trail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import streamlit as st

from audit.errors import InputError
from audit.review.events import EventKind
from audit.review.roles import person_name
from audit.review.trail import NOBODY, note
from audit.ui import reviewer

log = logging.getLogger(__name__)
SEEN = "trail seen"
"""What this tab has looked at already: looking twice is one event."""


def name() -> str:
    """Who sits here, in the form that labels have: the e-mail address of somebody who logged in, else the name given on the
    review page.
    """
    if reviewer.login_is_set_up():
        email = st.user.get("email") if st.user.get("is_logged_in") else None
        return person_name(email) if isinstance(email, str) else NOBODY
    return st.session_state.get(reviewer.NAME, "") or NOBODY


def noted(kind: EventKind, subject: str, who: str = "", **body: Any) -> None:
    """Record an event; a store that cannot be opened stops no page."""
    try:
        store = reviewer.store()
    except (InputError, OSError) as error:
        log.error("The audit trail lacks an event (%s): %s", kind.value, error)
        return
    note(store, kind, who or name(), subject, body)


def viewed(subject: str, **body: Any) -> None:
    """Record that something was looked at, once in a tab."""
    seen: set[str] = st.session_state.setdefault(SEEN, set())
    what = repr((subject, body))
    if what not in seen:
        seen.add(what)
        noted(EventKind.VIEWED, subject, **body)


def download(
    label: str, data: bytes | Callable[[], bytes], file_name: str, *, what: str, **looks: Any
) -> None:
    """A button that gives a file away: every download of the dashboard is one of these, and in the trail.

    `data` may be a function that makes it, called when the file is asked for; `looks` is as of `st.download_button`.
    """
    st.download_button(
        label,
        data,
        file_name=file_name,
        on_click=_given,
        kwargs={"file_name": file_name, "what": what},
        **looks,
    )


def _given(file_name: str, what: str) -> None:
    noted(EventKind.EXPORTED, file_name, what=what)
