"""Who logs in: what a login lets somebody see and change. The provider's answer is stood in for; the rest is the app."""

import json

import pytest

from audit.settings import settings
from audit.ui import trail

BOSS = "boss@example.org"


class Answer(dict):
    """What Streamlit knows of who has logged in."""


@pytest.fixture
def login(environment, monkeypatch):
    """A login that is set up, and somebody's answer from it."""
    import streamlit as st

    from audit.ui import reviewer

    environment.setenv("VERBATIM_ROLES", json.dumps({BOSS: "auditor", "ann@example.org": "annotator"}))
    settings.cache_clear()
    monkeypatch.setattr(reviewer, "login_is_set_up", lambda: True)
    monkeypatch.setattr(
        reviewer.importlib.util,
        "find_spec",
        lambda name, found=reviewer.importlib.util.find_spec: found(name) or 1,
    )

    def answer(**said):
        monkeypatch.setattr(st, "user", Answer(said))
        return reviewer

    return answer


@pytest.mark.parametrize("vouched", [True, "true", None])
def test_a_vouched_address_has_its_role(login, vouched):
    reviewer = login(is_logged_in=True, email="Boss@Example.org", email_verified=vouched)
    assert reviewer.admitted() and not reviewer.reads_only()
    assert (reviewer.who().name, reviewer.who().role) == (BOSS, "auditor")
    assert trail.name() == BOSS, "what is recorded and what is labelled have one name"


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"is_logged_in": False, "email": BOSS},
        {"is_logged_in": True, "email": BOSS, "email_verified": False},
        {"is_logged_in": True, "email": BOSS, "email_verified": "false"},
        {"is_logged_in": True, "email": None},
        {"is_logged_in": True, "email": [BOSS]},
    ],
)
def test_anybody_else_sees_no_page(login, said):
    reviewer = login(**said)
    assert not reviewer.admitted() and reviewer.reads_only() and reviewer.who() is None


def test_somebody_without_a_role_reads(login):
    reviewer = login(is_logged_in=True, email="eve@example.org", email_verified=True)
    assert reviewer.admitted() and reviewer.reads_only() and reviewer.who().role == "reader"


def test_a_reader_can_neither_stop_nor_start_an_export(login, app, words, monkeypatch, tmp_path):
    from audit.evidence import exports
    from audit.ui import exhibits

    called = []
    half = exports.Export("half", tmp_path / "half", done=1, total=2, works=False)
    monkeypatch.setattr(exports, "exports", lambda: [half])
    monkeypatch.setattr(exports, "resume", lambda *_: called.append("go on"))
    monkeypatch.setattr(exports, "stop", lambda *_: called.append("stop"))
    login(is_logged_in=True, email="eve@example.org", email_verified=True)
    page = app("exhibits")
    assert "half" in words(page) and {each.label for each in page.button} == {"Open"}
    exhibits._resume("half")
    exhibits._stop("half")
    assert called == []
    login(is_logged_in=True, email=BOSS, email_verified=True)
    assert "Go on" in {each.label for each in app("exhibits").button}


@pytest.mark.parametrize(
    ("who", "sees"), [(BOSS, True), ("ann@example.org", False), ("eve@example.org", True)]
)
def test_exhibits_are_kept_from_annotators_who_log_in(login, app, words, who, sees):
    login(is_logged_in=True, email=who, email_verified=True)
    page = app("exhibits")
    assert not page.exception and ("There are no exhibits here yet" in words(page)) is sees
