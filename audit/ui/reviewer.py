"""Who sits at the dashboard and labels: somebody who logged in where that is set up, else a name that they give."""

from __future__ import annotations

import importlib.util

import streamlit as st
from streamlit.auth_util import get_secrets_auth_section
from streamlit.components.v2 import component

from audit.errors import InputError
from audit.review.roles import Action, Person, Role, require
from audit.review.store import Store, database_url
from audit.ui.guard import show_error
from audit.ui.text import escape

NAME = "reviewer name"
ASKED = "reviewer asked"
ROLES = {
    Role.AUDITOR: "fills queues and gives roles",
    Role.ANNOTATOR: "labels, without seeing what others said",
    Role.ADJUDICATOR: "labels, and decides where two disagree",
    Role.READER: "reads, and changes nothing",
}
NO_EXHIBITS = (
    "Exhibits show what others said of a caption, so they are for auditors, adjudicators and readers, not for annotators, "
    "who answer without knowing it."
)

# A name that was given is kept in the browser, not in the address: a link passed on would pass the name on too.
_kept = component(
    "verbatim_reviewer",
    js="""
    const SHELF = "verbatim reviewer";
    export default function ({ data, setStateValue }) {
      try {
        if (data.name) localStorage.setItem(SHELF, data.name);
        else if (data.forget) localStorage.removeItem(SHELF);
        else if (localStorage.getItem(SHELF)) setStateValue("name", localStorage.getItem(SHELF));
      } catch {
        // private windows may refuse; the name is asked for again
      }
    }
    """,
)


@st.cache_resource(show_spinner=False, on_release=Store.close)
def _open(url: str) -> Store:
    return Store.open()


def store() -> Store:
    """The label store of the settings.

    Raises
    ------
    InputError
        If it cannot be opened.
    """
    return _open(database_url().render_as_string(hide_password=False))


def login_is_set_up() -> bool:
    """Whether Streamlit's own login is configured (``[auth]`` in its secrets)."""
    return bool(get_secrets_auth_section())


def admitted() -> bool:
    """Whether the dashboard may be shown: to everybody, or where a login is set up to whoever has logged in with an
    address that is vouched for.
    """
    if not login_is_set_up() or _address() is not None:
        return True
    st.title("Verbatim", anchor=False)
    return _signed_in() is not None


def reads_only() -> bool:
    """Whether somebody has logged in whose role is to read: they are shown exhibits, and nothing that can be changed."""
    if not login_is_set_up():
        return False
    address = _address()
    return address is None or store().enter(address, signed_in=True).role is Role.READER


def _address() -> str | None:
    """The e-mail address of who has logged in; None where nobody has, or where who checks the login does not vouch for it."""
    email = st.user.get("email")
    vouched = str(st.user.get("email_verified")).lower() != "false"  # some say nothing, some say it as a text
    return email if st.user.get("is_logged_in") and isinstance(email, str) and vouched else None


def sees_labels() -> bool:
    """Whether who sits here may see what everybody said, as exhibits tell it. Nobody is asked for a name for that: who gave
    none, where no login is set up, may.
    """
    if login_is_set_up():
        address = _address()
        return address is not None and allowed(store().enter(address, signed_in=True), Action.SEE_LABELS)
    name = st.session_state.get(NAME, "")
    return not name or allowed(store().enter(name), Action.SEE_LABELS)


def who() -> Person | None:
    """The person, with the role they have now; None while they are asked who they are."""
    return _signed_in() if login_is_set_up() else _named()


def _signed_in() -> Person | None:
    if importlib.util.find_spec("authlib") is None:
        st.error("Logging in is set up but needs the package Authlib; install it with `pip install Authlib`.")
        return None
    if not st.user.get("is_logged_in"):
        st.info("What you do here is kept under your name, so log in first.", icon=":material/login:")
        st.button("Log in", type="primary", on_click=st.login)
        return None
    address = _address()
    if address is None:
        st.error(
            "Whoever checks your login does not vouch for an e-mail address, so your labels would have no name. Log in "
            "with another account."
        )
        st.button("Log out", on_click=st.logout)
        return None
    return store().enter(address, signed_in=True)


def recall() -> None:
    """Take up the name that was given in this browser before, and have it kept."""
    if login_is_set_up():
        return
    name, asked = st.session_state.get(NAME, ""), st.session_state.get(ASKED, False)
    kept = _keep(name=name, forget=asked)
    if isinstance(kept, str) and not name and not asked:
        st.session_state[NAME] = kept
        st.rerun()


def _named() -> Person | None:
    recall()
    if name := st.session_state.get(NAME, ""):
        return store().enter(name)
    st.markdown("Labels are kept under a name, so that two people can be compared. Which is yours?")
    with st.form("reviewer", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        given = st.text_input("Your name", max_chars=80, autocomplete="nickname", width=320)
        if st.form_submit_button("Go on", type="primary"):
            try:
                st.session_state[NAME] = store().enter(given).name
            except InputError as error:
                show_error(error)
            else:
                st.session_state.pop(ASKED, None)
                st.rerun()
    return None


def _keep(name: str, forget: bool) -> object:
    return _kept(data={"name": name, "forget": forget}, key="reviewer-kept", on_name_change=_nothing).name


def _nothing() -> None:
    """The name is read where the page asks for it."""


def change() -> None:
    """Callback: somebody else sits down."""
    st.session_state.pop(NAME, None)
    st.session_state[ASKED] = True


def badge(person: Person) -> None:
    """Who one is, and a way to be somebody else."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"You are **{escape(person.name)}**, {person.role.value}.", width="content")
        if login_is_set_up():
            st.button("Log out", icon=":material/logout:", on_click=st.logout, type="tertiary")
        else:
            st.button("Somebody else", icon=":material/switch_account:", on_click=change, type="tertiary")


def people(person: Person) -> None:
    """For an auditor: everybody's role, and a form that gives one."""
    if not allowed(person, Action.GIVE_ROLE):
        return
    with st.expander("People and roles", icon=":material/group:"):
        given = store().roles()
        st.table(
            [{"Name": escape(name), "Role": role.value} for name, role in given.items()],
            hide_index=True,
            border="horizontal",
            alt="People and their roles",
        )
        with st.form("role", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
            name = st.text_input("Name, or e-mail address of somebody who logs in", max_chars=80, width=320)
            role = st.selectbox(
                "Role", list(Role), format_func=lambda role: f"{role.value}: {ROLES[role]}", width=330
            )
            if st.form_submit_button("Give the role"):
                try:
                    store().give_role(person, name, role)
                except InputError as error:
                    show_error(error)
                else:
                    st.rerun()
        st.caption(
            "A name without a role annotates; somebody who logs in without one reads. The setting `VERBATIM_ROLES` gives "
            "roles to those who log in."
        )


def allowed(person: Person, action: Action) -> bool:
    """Whether somebody may do something: for what is shown, never instead of the store's own check."""
    try:
        require(person, action)
    except InputError:
        return False
    return True
