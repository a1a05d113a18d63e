"""The audit trail's page, and that everything done at the dashboard stands in it, once."""

import json
from dataclasses import asdict

import pytest

from audit.review.events import EventKind
from audit.review.roles import Role
from audit.review.store import Store
from audit.review.trail import note
from audit.ui import audit_trail


@pytest.fixture
def store(environment):
    store = Store.open()
    yield store
    store.close()


@pytest.fixture
def opened(app, store):
    """Opens the page as somebody, the first of whom is an auditor."""

    def open_as(name="Ada", **params):
        page = app()
        page.session_state["reviewer name"] = store.enter(name).name
        for key, value in params.items():
            page.query_params[key] = value
        return page.switch_page("pages/audit_trail.py").run()

    return open_as


def test_an_auditor_reads_filters_and_takes_the_trail(opened, words, store):
    for number in range(60):
        note(store, EventKind.RUN_STARTED, "Bo", f"run {number}", {"step": "score"})
    page = opened()
    assert not page.exception
    shown = page.dataframe[0].value
    assert len(shown) == audit_trail.ROWS and shown["Number"].is_monotonic_decreasing
    page.selectbox(key="trail-who").set_value("Bo").run()
    page.text_input(key="trail-words").set_value("run 59").run()
    shown = page.dataframe[0].value
    assert list(shown["About"]) == ["run 59"] and list(shown["Details"]) == ["step: score"]
    assert page.query_params["who"] == "Bo" and page.query_params["words"] == "run 59"
    page = opened(kind="model_loaded")
    assert list(page.dataframe[0].value["What"].unique()) == ["Model loaded"]


def test_it_is_checked_against_a_root_that_was_kept(opened, words, store):
    kept = json.dumps(asdict(store.root()))
    page = opened()

    def check(root):
        page.text_input(key="trail-root").set_value(root)
        next(each for each in page.button if each.label == "Check the trail").click().run()
        return words(page)

    assert "Every event is as it was written, but without a root" in check("")
    assert "the trail is the one that this was kept of" in check(kept)
    assert "are not those that the root was taken of" in check(json.dumps({"count": 1, "sha256": "0" * 64}))
    assert "is no root" in check("nonsense").replace("\\", "")


def test_the_export_is_in_the_trail_and_verifies(opened, store, tmp_path):
    from audit.review.trail import verify_trail

    page = opened()
    page.get("download_button")[0].click().run()
    assert [event.body for event in store.events([EventKind.EXPORTED])] == [{"what": "audit trail"}]
    path = tmp_path / "taken.jsonl"
    path.write_bytes(audit_trail._file(store, store.enter("Ada")))
    assert verify_trail(path) == ([], store.root())


def test_only_auditors_read_it(opened, words, store):
    auditor = store.enter("Ada")
    store.give_role(auditor, "Bo", Role.ADJUDICATOR)
    page = opened("Bo")
    assert not page.dataframe and "may not read the audit trail" in words(page)


def test_what_is_done_at_the_dashboard_is_in_the_trail_once(app, store):
    page = app("prompt_lab", caption="red house", seeds="0-1", steps="2")
    page.run()
    page.run()
    assert not page.exception

    def told(kind):
        return [(event.subject, event.body) for event in store.events([kind])]

    assert len(told(EventKind.MODEL_LOADED)) == 1  # the one at the start
    ran = told(EventKind.RUN_STARTED)
    lab = [body for _, body in ran if body["captions"] == ["red house"]]
    assert sorted(body["step"] for body in lab) == ["full samples", "one step"]
    assert [body["caption"] for _, body in told(EventKind.VIEWED)] == ["red house"]
    page.get("download_button")[0].click().run()
    assert [body["what"] for _, body in told(EventKind.EXPORTED)] == ["everything shown of a caption"]
