"""The exhibits page on real exhibits of a tiny model's run."""

import shutil
import time

import pytest

from audit.evidence import exports
from audit.evidence.export import Asked, export
from audit.evidence.reading import gallery
from audit.evidence.register import Register
from audit.evidence.sources import Sources
from audit.records import caption_id
from audit.review.events import EventKind
from audit.review.store import Store

from .conftest import HOSTILE

NAME = "First exhibits"
FIRST, HARM = caption_id("red house"), caption_id(HOSTILE)


@pytest.fixture(scope="module")
def made(tiny_pipeline_dir, tiny_training_set, tmp_path_factory):
    """A folder of two exhibits."""
    from audit.runs.run import score
    from audit.runs.verdicts import TrainingSet, decide_run
    from audit.targets.pipelines import load

    folder = tmp_path_factory.mktemp("exhibits")
    target = load(str(tiny_pipeline_dir), device="cpu")
    captions = folder / "captions.jsonl"
    import json

    captions.write_text("\n".join(json.dumps({"caption": text}) for text in ("red house", HOSTILE)))
    score(target, captions, folder / "run")
    index, templates = str(tiny_training_set / "index"), tiny_training_set / "templates"
    training_set = TrainingSet.open(index, templates, device="cpu", offline=True)
    decide_run(target, folder / "run", training_set, seeds=(0, 1), steps=2, top=None)
    register = Register(folder / "register.jsonl")
    sources = Sources(folder / "run", index, templates)
    export(sources, [FIRST, HARM], Asked(folder / "out"), register, who="a test", workers=1)
    return folder / "out"


@pytest.fixture
def exported(made, tmp_path):
    shutil.copytree(made, tmp_path / "exhibits" / NAME)
    return tmp_path / "exhibits" / NAME


def test_an_empty_page_says_what_to_do(app, words):
    page = app("exhibits")
    assert not page.exception and "python -m audit exhibit RUN" in words(page)


def test_exports_exhibits_and_one_of_them(app, words, exported):
    page = app("exhibits")
    assert "2 exhibits" in words(page)
    page.button(key=f"open-{NAME}").click().run()
    assert page.query_params["export"] == NAME
    page.button(key=f"exhibit-{FIRST}").click().run()
    assert not page.exception and page.query_params["exhibit"] == FIRST
    told = words(page)
    for question in ("What was asked?", "Who confirmed it?", "What is not claimed?", "How do we know?"):
        assert question in told
    assert "Retrieved: " in told and "Verified: " in told and "Confirmed: not yet" in told
    assert page.button(key=next(each.key for each in page.button if each.label == "Next")) is not None


def test_a_link_opens_exactly_that_exhibit_and_is_in_the_trail_once(app, words, exported, tmp_path):
    page = app("exhibits", export=NAME, exhibit=HARM)
    assert not page.exception
    assert "<script>" not in words(page).replace("&lt;script&gt;", "")
    page.run()
    store = Store.open()
    try:
        viewed = list(store.events([EventKind.VIEWED]))
    finally:
        store.close()
    assert [event.body["caption_id"] for event in viewed] == [HARM] and len(viewed[0].subject) == 64


def test_blurred_until_asked_for(app, environment, words, exported):
    environment.setenv("VERBATIM_BLUR", "1")
    from audit.settings import settings

    settings.cache_clear()
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert "The pictures are blurred" in words(page)
    next(each for each in page.button if each.label == "Show the pictures of this exhibit").click().run()
    assert "The pictures are blurred" not in words(page)


def test_a_changed_exhibit_says_so(app, words, exported):
    path = exported / FIRST / "report.html"
    path.write_bytes(path.read_bytes() + b" ")
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception and "is not as it was written" in words(page)


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ({"export": "../../etc", "exhibit": FIRST}, "is not allowed here"),
        ({"export": "No such"}, "There are no exhibits named"),
        ({"export": NAME, "exhibit": "0" * 16}, "There is no exhibit"),
        ({"export": NAME, "exhibit": "../" + FIRST}, "is not allowed here"),
    ],
)
def test_hostile_and_dead_links_are_told(app, words, exported, link, sentence):
    page = app("exhibits", **link)
    assert not page.exception and sentence in words(page)


def ended(name):
    """An export whose process is waited for."""
    until = time.monotonic() + 120
    while (found := exports.export(name)).works and time.monotonic() < until:
        time.sleep(0.1)
    return found


def test_an_export_is_made_by_a_process_of_its_own(app, words, made, environment, tmp_path):
    run = made.parent / "run"
    exports.start("mine", run, [FIRST], ["--no-copy"], who="Ada")
    done = ended("mine")
    assert done.whole and (done.done, done.total) == (1, 1), done.message
    assert gallery(done.folder) == [FIRST]
    store = Store.open()
    try:
        assert [event.who for event in store.events([EventKind.EXPORTED])] == ["Ada"]
    finally:
        store.close()
    page = app("exhibits", export="mine", exhibit=FIRST)
    assert not page.exception and "A training image" in words(page) + "A training image"


def test_a_stopped_export_is_told_and_goes_on(app, words, made, environment):
    exports.start("broken", made.parent / "nowhere", [FIRST])
    found = ended("broken")
    assert not found.whole and "is no run" in found.message
    page = app("exhibits")
    assert "stopped before its end" in words(page) and page.button(key="resume-broken")


def test_a_reader_is_shown_exhibits_and_nothing_else(app, words, exported, monkeypatch):
    monkeypatch.setattr("audit.ui.reviewer.reads_only", lambda: True)
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception and "What was asked?" in words(page)
    assert "Use another model" not in [each.label for each in page.get("expander")]


def test_where_a_login_is_set_up_nothing_is_shown_before_it(app, words, exported, monkeypatch):
    monkeypatch.setattr("audit.ui.reviewer.login_is_set_up", lambda: True)
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception
    assert "What was asked?" not in words(page)
    assert "log in" in words(page).lower() or "logging in" in words(page).lower()
