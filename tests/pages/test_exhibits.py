"""The exhibits page on real exhibits of a tiny model's run."""

import json
import os
import shutil
import time

import pytest

from audit.evidence import exports
from audit.evidence.export import Asked, export
from audit.evidence.manifest import MANIFEST, manifest_bytes
from audit.evidence.reading import gallery
from audit.evidence.register import Register
from audit.evidence.sources import Sources
from audit.evidence.untrusted import read_folder
from audit.images import sha256
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
    shutil.copy(made.parent / "register.jsonl", tmp_path)
    return tmp_path / "exhibits" / NAME


def test_an_empty_page_says_what_to_do(app, words, tmp_path):
    page = app("exhibits")
    assert not page.exception and "python -m audit exhibit RUN" in words(page)
    assert f"--out '{tmp_path}/exhibits/NAME'" in words(page)  # where the page finds them


def test_exports_exhibits_and_one_of_them(app, words, exported):
    page = app("exhibits")
    assert "2 exhibits" in words(page)
    page.button(key=f"open-{NAME}").click().run()
    assert page.query_params["export"] == NAME
    assert sha256((exported / MANIFEST).read_bytes()) in words(page)
    page.button(key=f"exhibit-{FIRST}").click().run()
    assert not page.exception and page.query_params["exhibit"] == FIRST
    told = words(page)
    for question in ("What was asked?", "Who confirmed it?", "What is not claimed?", "How do we know?"):
        assert question in told
    assert "Retrieved: " in told and "Verified: " in told and "Confirmed: not yet" in told
    assert page.button(key=next(each.key for each in page.button if each.label == "Next")) is not None


def test_a_link_opens_exactly_that_exhibit_and_is_in_the_trail_once(app, words, exported, tmp_path):
    root = sha256((exported / HARM / MANIFEST).read_bytes())
    page = app("exhibits", export=NAME, exhibit=HARM, root=root)
    assert not page.exception and f"Exhibit {HARM}" in words(page).replace("\\", "")
    assert "&lt;script&gt;" in words(page) and "<script>" not in words(page)
    page.run()
    store = Store.open()
    try:
        viewed = [event for event in store.events([EventKind.VIEWED]) if event.body["what"] == "exhibit"]
    finally:
        store.close()
    assert [(event.subject, event.body["caption_id"]) for event in viewed] == [(root, HARM)]


def test_the_address_names_the_root_so_a_link_shows_no_other_exhibit(app, words, exported):
    page = app("exhibits", export=NAME, exhibit=FIRST)
    root = page.query_params["root"]
    assert root == sha256((exported / FIRST / MANIFEST).read_bytes())
    page = app("exhibits", export=NAME, exhibit=HARM, root=root)
    assert not page.exception
    assert "The link is to the exhibit with the root" in words(page).replace("\\", "")
    assert "What was asked?" not in words(page)


def test_exchanged_folders_are_not_shown_as_each_other(app, words, exported):
    (exported / FIRST).rename(exported / "aside")
    (exported / HARM).rename(exported / FIRST)
    (exported / "aside").rename(exported / HARM)
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception and "the exhibit of another caption lies there" in words(page).replace("\\", "")
    assert "What was asked?" not in words(page)


def sealed_anew(folder):
    """The manifest as whoever changed a file would make it."""
    files = {name: data for name, data in read_folder(folder).items() if name != MANIFEST}
    (folder / MANIFEST).write_bytes(manifest_bytes({name: sha256(data) for name, data in files.items()}))


def test_what_was_checked_is_told(app, words, exported):
    page = app("exhibits", export=NAME, exhibit=FIRST)
    told = words(page).replace("\\", "")
    assert not page.exception and "Checked just now" in told and "entry 1, by a test" in told


def test_an_exhibit_written_anew_with_all_its_hashes_is_not_vouched_for(app, words, exported):
    facts = json.loads((exported / FIRST / "exhibit.json").read_text())
    facts["verdict"]["reason"] = "Somebody said so."
    (exported / FIRST / "exhibit.json").write_text(json.dumps(facts))
    sealed_anew(exported / FIRST)
    page = app("exhibits", export=NAME)
    assert "No register vouches for this exhibit." in words(page)
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception and "Checked just now" not in words(page)
    assert "Do not rely on it" in words(page)


def test_without_a_register_nothing_vouches(app, words, exported, tmp_path):
    (tmp_path / "register.jsonl").unlink()
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception and "Checked just now" not in words(page)
    assert "No register vouches for this exhibit." in words(page)


def test_a_link_in_one_exhibit_leaves_the_others_in_the_list(app, words, exported):
    (exported / FIRST / "pictures" / "extra.png").symlink_to("/nowhere")
    page = app("exhibits", export=NAME)
    assert not page.exception and "is a link" in words(page) and "did not foresee" not in words(page)
    assert [each.key for each in page.button if str(each.key).startswith("exhibit-")] == [f"exhibit-{HARM}"]


def test_a_folder_of_another_name_hides_no_export(app, words, exported):
    (exported.parent / "a;b").mkdir()
    page = app("exhibits")
    assert not page.exception and page.button(key=f"open-{NAME}") and "2 exhibits" in words(page)


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


def test_a_file_whose_name_is_no_text_is_told(app, words, exported):
    (exported / FIRST / os.fsdecode(b"add\xff.txt")).touch()
    page = app("exhibits", export=NAME, exhibit=FIRST)
    told = words(page).replace("\\", "")
    assert not page.exception and "Do not rely on it" in told and "add\ufffd.txt was added" in told


def test_a_changed_exhibit_says_so_where_the_check_fails(app, words, exported, monkeypatch):
    def fails(*_):
        raise RuntimeError

    monkeypatch.setattr("audit.ui.exhibits.verify", fails)
    (exported / FIRST / "note.txt").touch()
    assert "Do not rely on it" in words(app("exhibits", export=NAME, exhibit=FIRST))


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
    assert not page.exception and "What was asked?" in words(page)
    assert "is not in this exhibit: it may not be copied" in words(page)


def test_exhibits_are_asked_for_with_the_index_that_is_named_and_signed(
    app, words, made, environment, tmp_path
):
    import pyarrow.parquet as pq

    from audit.settings import settings

    shutil.copytree(made.parent / "run", tmp_path / "runs" / "first")
    for part in (tmp_path / "runs" / "first" / "verdicts").glob("*.parquet"):
        table = pq.read_table(part)
        place = table.column_names.index("verdict")
        pq.write_table(table.set_column(place, "verdict", [["RV"] * len(table)]), part)
    environment.setenv("VERBATIM_SIGN_KEY", "/keys/ours")
    settings.cache_clear()
    page = app("results", run="first")
    assert not page.exception
    page.text_input(key="exhibits-index").set_value("/indexes/mine")
    page.text_input(key="exhibits-templates").set_value("/libraries/mine").run()
    page.button(key="exhibits-make").click().run()
    asked = json.loads((tmp_path / "exhibits" / "first exhibits.job").read_text())["arguments"]
    assert asked[-6:] == [
        "--sign",
        "/keys/ours",
        "--index",
        "/indexes/mine",
        "--templates",
        "/libraries/mine",
    ]
    assert "/indexes/mine" in ended("first exhibits").message


def test_a_stopped_export_is_told_and_goes_on(app, words, made, environment):
    exports.start("broken", made.parent / "nowhere", [FIRST])
    found = ended("broken")
    assert not found.whole and "is no run" in found.message
    page = app("exhibits")
    assert "stopped before its end" in words(page) and page.button(key="resume-broken")


def stopped(exported):
    """An export that was stopped; its log, to which another start would write."""
    (exported / MANIFEST).unlink()
    _, job, log = exports._files(NAME)
    job.write_text(json.dumps({"arguments": ["nowhere"]}))
    log.write_text("It was stopped.")
    return log


def test_a_reader_is_shown_exhibits_and_can_change_nothing(app, words, exported, monkeypatch):
    log = stopped(exported)
    page = app("exhibits")
    going_on = page.button(key=f"resume-{NAME}")
    monkeypatch.setattr("audit.ui.reviewer.reads_only", lambda: True)
    going_on.click().run()  # drawn before the role was taken away
    assert "The role reader may not" in words(page) and log.read_text() == "It was stopped."
    assert [each.label for each in page.button if each.label in ("Go on", "Stop")] == []
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception and "What was asked?" in words(page)
    assert "Use another model" not in [each.label for each in page.get("expander")]


@pytest.fixture
def annotated(environment):
    """Opens a page as an annotator; Ada is the auditor."""
    store = Store.open()
    store.enter("Ada")

    def seated(page, name="Ben"):
        page.session_state["reviewer name"] = store.enter(name).name
        return page.run()

    yield seated
    store.close()


@pytest.mark.parametrize("link", [{}, {"export": NAME}, {"export": NAME, "exhibit": FIRST}])
def test_an_annotator_is_shown_no_exhibit(app, words, exported, annotated, link):
    page = annotated(app("exhibits", **link))
    assert not page.exception and "not for annotators" in words(page)
    assert "Confirmed" not in words(page).partition("not for annotators")[2]
    assert not {"Open", "Open the exhibit", "Next"} & {each.label for each in page.button}
    assert not page.get("download_button")
    page = annotated(page, "Ada")
    assert not page.exception and "not for annotators" not in words(page)


def test_an_annotator_makes_no_exhibit(app, words, made, annotated, tmp_path):
    shutil.copytree(made.parent / "run", tmp_path / "runs" / "first")
    page = app("results", run="first")
    page.button(key="exhibits-make").click()  # drawn before the name was given
    annotated(page)
    assert not page.exception and "not for annotators" in words(page)
    assert not (tmp_path / "exhibits").exists() or not list((tmp_path / "exhibits").iterdir())


def test_an_annotator_goes_on_with_no_export(app, words, exported, annotated):
    log = stopped(exported)
    page = app("exhibits")
    going_on = page.button(key=f"resume-{NAME}")
    page.session_state["reviewer name"] = "Ben"
    going_on.click().run()  # drawn before
    assert "not for annotators" in words(page) and log.read_text() == "It was stopped."


def test_where_a_login_is_set_up_nothing_is_shown_before_it(app, words, exported, monkeypatch):
    monkeypatch.setattr("audit.ui.reviewer.login_is_set_up", lambda: True)
    page = app("exhibits", export=NAME, exhibit=FIRST)
    assert not page.exception
    assert "What was asked?" not in words(page)
    assert "log in" in words(page).lower() or "logging in" in words(page).lower()
