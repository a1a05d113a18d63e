"""Review and agreement: queues made, roles kept, answers of a hostile browser refused, figures beside their denominators."""

import importlib.util
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest

from audit.ui.text import escape

SPEC = importlib.util.spec_from_file_location(
    "review_run", Path(__file__).parents[1] / "browser" / "review_run.py"
)
review_run = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(review_run)

HOSTILE = "<script>alert(1)</script> **bold** :red[x]"


@pytest.fixture(autouse=True)
def no_mask_is_left(tiny_training_set):
    """The template library is shared with other tests; versions of masks lie beside it."""
    yield
    shutil.rmtree(tiny_training_set / "templates.versions", ignore_errors=True)


@pytest.fixture
def run(environment):
    """A run of six decided captions of the tiny training set."""
    from audit.records import Neighbour
    from audit.runs import jobs

    rng = np.random.default_rng(0)
    rows = [
        review_run.Decided(
            HOSTILE if place == 0 else f"picture {place}",
            rng.random((64, 64, 3), dtype=np.float32),
            "MV" if place % 2 else "N",
            (Neighbour(f"p{place}", f"picture {place}", 0.9, 0, 50.0), Neighbour("p9", "nine", 0.8, 1, 90.0)),
            distance=100.0 * (place + 1),
        )
        for place in range(6)
    ]
    folder = jobs.runs_folder() / "first"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return review_run.write(folder, rows)


@pytest.fixture
def queue(run):
    """A queue of it; ann is the auditor."""
    from audit.review.fill import fill
    from audit.review.queue import Queue
    from audit.review.store import Store

    store = Store.open()
    fill(store, store.enter("ann"), run.path, "first")
    return Queue(store, "first")


def named(page, name):
    page.text_input[-1].set_value(name)
    return next(each for each in page.button if each.label == "Go on").click().run()


def button(page, label):
    return next(each for each in page.button if each.label == label)


def test_it_asks_who_one_is_and_says_what_to_do_without_runs(app, words):
    page = app("review")
    assert not page.exception
    assert "Which is yours?" in words(page)
    page = named(page, "ann")
    assert not page.exception
    text = words(page)
    assert "You are **ann**, auditor" in text
    assert "There is no queue yet" in text and "There is no run and no selection yet" in text


def test_a_name_that_is_none_is_told(app, words):
    page = named(app("review"), "   ")
    assert not page.exception and "is no name" in words(page)


def test_a_queue_is_made_from_a_run_and_opened(app, words, run):
    page = named(app("review"), "ann")
    page = button(page, "Make the queue").click().run()
    assert not page.exception
    assert page.query_params["queue"] == ["first"] or page.query_params["queue"] == "first"
    assert "**first** · labelling" in words(page)
    from audit.review.queue import queues
    from audit.review.store import Store

    (overview,) = queues(Store.open())
    assert (overview.name, overview.items, overview.unanswered) == ("first", 6, 6)


def test_a_reader_changes_nothing_and_is_told(app, words, queue):
    from audit.review.roles import Role

    queue.store.give_role(queue.store.enter("ann"), "eve", Role.READER)
    page = named(app("review"), "eve")
    text = words(page)
    assert "reads and changes nothing" in text
    labels = {each.label for each in page.button}
    assert not labels & {"Label", "Make the queue", "Give the role"}
    page = named(app("review", queue="first"), "eve")
    assert not page.exception
    assert escape("The role reader may not label") in words(page)


def test_hostile_links_are_told(app, words, queue):
    page = app("review", queue="../x", task="rm")
    assert not page.exception
    assert words(page).count("is not allowed here and was left out") == 2
    page = app("review", queue="nothing like it")
    page = named(page, "ann")
    assert "There is no queue of that name" in words(page)


def test_an_auditor_gives_roles(app, words, queue):
    page = named(app("review"), "ann")
    page.text_input[-1].set_value("bob")
    next(each for each in page.selectbox if each.label == "Role").select_index(2)
    page = button(page, "Give the role").click().run()
    assert not page.exception
    assert queue.store.enter("bob").role == "adjudicator"


class Desk:
    """Someone at a queue, without a browser."""

    def __init__(self, queue, who, task="label"):
        from audit.ui import bench, review

        self.have = bench.training_set()
        self.desk = review.Desk(queue, queue.store.enter(who), task)

    def say(self, **entry):
        from audit.ui import review

        answer_id = entry.setdefault("answer_id", uuid.uuid4().hex)
        acks = {}
        review.settle(self.desk, [entry], self.have, acks)
        return acks[answer_id]


@pytest.fixture
def desk(app, queue):
    app("home")
    return lambda who, task="label": Desk(queue, who, task)


def test_an_answer_names_what_was_shown(desk, queue):
    from audit.images import sha256
    from audit.records import PictureKind
    from audit.ui.results import opened

    ann = desk("ann")
    item = queue.take(ann.desk.person)[0]
    ack = ann.say(action="label", item_id=item.item_id, label="MV", image_id=item.neighbour_id, seconds=1.5)
    assert ack.stored and "Stored: MV" in ack.reveal
    (event,) = queue.store.events(subject=item.item_id)
    from pathlib import Path

    picture = opened(Path(item.run_path)).pictures([item.caption_id])[item.caption_id, PictureKind.SAMPLE]
    assert event.body["generated_sha256"] == sha256(picture.png)
    stored = ann.have.index.row(item.neighbour_id)
    assert event.body["training_sha256"] == (stored.sha256 or sha256(Path(stored.path)))
    assert event.body["seed"] == 0 and event.body["seconds"] == 1.5


def test_an_answer_names_the_mask_by_its_hash(desk, queue):
    from audit.review.events import EventKind
    from audit.verbatim.versions import template_sha256

    ann = desk("ann")
    said = {"action": "label", "label": "TV", "template_id": "template-p0"}
    members = ann.have.template("template-p0").members
    items = [item for item in queue.take(ann.desk.person, 6) if item.neighbour_id in members]
    for item, version in zip(items[:2], ("0", "7"), strict=True):
        assert ann.say(**said, item_id=item.item_id, mask_version=version).stored
    shown, unknown = queue.store.events([EventKind.LABELLED])
    assert shown.body["mask_sha256"] == template_sha256(ann.have.template("template-p0"))
    assert unknown.body["mask_sha256"] == "", "no such version was shown"


def test_a_run_that_was_moved_is_found_by_its_name_or_told(desk, queue, run, tmp_path, monkeypatch):
    from audit.runs import jobs
    from audit.ui import prepared

    ann = desk("ann")
    item = queue.take(ann.desk.person)[0]
    elsewhere = tmp_path / "other data" / "runs"
    elsewhere.mkdir(parents=True)
    run.path.rename(elsewhere / run.path.name)
    shown = prepared.prepare(item, ann.have, frozenset(), blur=False).shown
    assert shown.generated is None and "The run first is not where it was" in shown.no_picture
    monkeypatch.setattr(jobs, "runs_folder", lambda: elsewhere)
    assert prepared.prepare(item, ann.have, frozenset(), blur=False).shown.generated


def test_an_answer_n_names_what_was_shown_too(desk, queue, environment):
    """Nothing is a copy: of what was looked at, and whether somebody else's answer was shown."""
    ann = desk("ann")
    item = queue.take(ann.desk.person)[0]
    assert ann.say(action="label", item_id=item.item_id, label="N", image_id=item.neighbour_id).stored
    (event,) = queue.store.events(subject=item.item_id)
    assert len(event.body["training_sha256"]) == 64 and event.body["image_id"] == item.neighbour_id
    assert event.body["blurred"] is False and event.body["others_shown"] is False


def test_no_answer_is_taken_of_blurred_pictures(desk, queue, environment):
    from audit.settings import settings

    environment.setenv("VERBATIM_BLUR", "true")
    settings.cache_clear()
    ann = desk("ann")
    item = queue.take(ann.desk.person)[0]
    said = ann.say(action="label", item_id=item.item_id, label="N", image_id=item.neighbour_id)
    assert not said.stored and "were blurred" in said.message
    assert not list(queue.store.events(subject=item.item_id))


def test_a_file_that_is_not_the_indexed_one_is_not_shown(desk, queue, tmp_path):
    import dataclasses

    from audit.images import png_bytes, sha256
    from audit.ui import prepared

    have = desk("ann").have
    row = have.index.row("p5")
    other = tmp_path / "other.png"
    other.write_bytes(png_bytes(np.full((8, 8, 3), 0.5, np.float32)))
    made = prepared._Making(have, frozenset(), False)
    moved = dataclasses.replace(row, path=other)
    assert made.stored(moved) == (None, prepared.CHANGED) and made.hashes == {}
    key, why = made.stored(dataclasses.replace(moved, sha256=""))
    assert key and not why and made.hashes == {"p5": sha256(other)}, "the hash is that of the bytes shown"
    hidden = prepared._Making(have, frozenset({sha256(other)}), False)
    assert hidden.stored(dataclasses.replace(moved, sha256="")) == (None, prepared.REMOVED)


def test_who_leaves_gives_back_what_they_held(desk, queue):
    from audit.ui.desk import Seat, Sitting

    ann, eve = desk("ann").desk, queue.store.enter("eve")
    sitting = Sitting()
    tab, other = Seat(sitting), Seat(sitting)
    tab.take(ann)
    other.take(ann)
    queue.take(ann.person, 6)
    tab.leave()
    assert queue.take(eve) == [], "another tab of hers still shows them"
    other.take(desk("ann", "decide").desk)
    assert len(queue.take(eve, 2)) == 2, "at another desk nothing of this one is held"
    other.leave()
    other.leave()


def test_another_page_leaves_the_desk(app, queue):
    page = named(app("review", queue="first"), "ann")
    assert not page.exception
    eve = queue.store.enter("eve")
    assert queue.take(eve) == []
    page.switch_page("pages/templates.py").run()
    assert len(queue.take(eve, 6)) == 6


def test_a_flag_comes_back_from_the_store_and_can_be_taken_off(desk, queue):
    from audit.ui import labelling, review

    ann = desk("ann")
    item = queue.take(ann.desk.person)[0]
    assert ann.say(action="flag", item_id=item.item_id, note="look").stored

    def flag():
        work, _, _ = review._work(ann.desk, labelling.Sent(), ann.have)
        return next(each.flag for each in work.items if each.id == item.item_id)

    assert flag() == "look"
    assert ann.say(action="unflag", item_id=item.item_id).stored
    assert flag() is None


def test_what_comes_twice_counts_once(desk, queue):
    ann = desk("ann")
    first, second = queue.take(ann.desk.person, 2)
    said = [
        {"action": "label", "item_id": first.item_id, "label": "N", "answer_id": uuid.uuid4().hex},
        {"action": "label", "item_id": second.item_id, "label": "TV", "answer_id": uuid.uuid4().hex},
        {"action": "undo", "item_id": second.item_id, "answer_id": uuid.uuid4().hex},
    ]
    for _ in range(2):
        assert [ann.say(**entry).stored for entry in said] == [True] * 3
    assert queue.store.labels(queue.store.enter("ann"))["item_id"].tolist() == [first.item_id]


def test_refused_answers_say_why(desk, queue):
    ann, bob = desk("ann"), desk("bob")
    item = queue.take(ann.desk.person)[0]
    ack = bob.say(action="label", item_id=item.item_id, label="N")
    assert not ack.stored and "somebody else" in ack.message
    assert not ann.say(action="label", item_id=item.item_id, label="<b>").stored
    assert not ann.say(action="label", item_id="nothing", label="N").stored
    assert not ann.say(action="undo").stored
    assert not ann.say(action="mask", item_id=item.item_id, template_id="none", steps=[]).stored
    assert queue.store.labels(queue.store.enter("ann")).empty


def test_a_store_that_does_not_answer_keeps_answers_in_the_outbox(desk, queue, monkeypatch):
    from sqlalchemy.exc import OperationalError

    from audit.errors import InputError

    ann = desk("ann")
    item = queue.take(ann.desk.person)[0]
    entry = {"action": "label", "item_id": item.item_id, "label": "N", "answer_id": uuid.uuid4().hex}

    def gone(*_):
        raise InputError("The label store does not answer.") from OperationalError("", {}, Exception())

    with monkeypatch.context() as patch:
        patch.setattr(type(queue), "answer", gone)
        with pytest.raises(InputError, match="does not answer"):
            ann.say(**entry)
    assert ann.say(**entry).stored


def test_a_store_that_does_not_answer_leaves_the_view_also_while_a_mask_is_edited(desk, queue, monkeypatch):
    from audit.errors import InputError
    from audit.review.store import Store
    from audit.ui import labelling, removal, review
    from audit.ui.desk import Seat, Sitting

    ann = desk("ann")
    view = review._view.__wrapped__  # a fragment does nothing without a page
    shown, sent = [], labelling.Sent(editing=ann.have.templates[0].template_id)
    monkeypatch.setattr(labelling, "labelling", lambda work, picture, key: shown.append((work, picture)))
    monkeypatch.setattr(labelling, "sent", lambda key: sent)
    monkeypatch.setattr(review, "seat", lambda: Seat(Sitting()))
    view(ann.desk)

    def gone(*_):
        raise InputError("The label store does not answer.")

    monkeypatch.setattr(Store, "read", gone)
    monkeypatch.setattr(Store, "change", gone)
    with pytest.raises(InputError):
        removal.hidden()
    view(ann.desk)
    (before, _), (now, picture) = shown
    assert now.items[0] == before.items[0] and now.differences == before.differences != {}
    assert all(picture(key) for key in now.differences.values())


def test_machine_and_others_are_hidden_until_one_has_answered(desk, queue):
    from audit.ui import labelling, review

    ann, bob = desk("ann"), desk("bob")
    item = queue.take(ann.desk.person)[0]
    ann.say(action="label", item_id=item.item_id, label="RV")
    seen = review._items(bob.desk)
    assert item.item_id in [each.item_id for each, _ in seen]
    for each, others in seen:
        assert others is None and each.verdict == "" and each.distance is None
    queue.take(bob.desk.person)
    ack = bob.say(action="label", item_id=item.item_id, label="N")
    assert "ann: RV" in ack.reveal and "the machine: " in ack.reveal
    assert labelling.ACTIONS == tuple(review.ACTIONS)


def test_an_adjudicator_sees_both_and_decides(desk, queue):
    from audit.ui import prepared, review

    ann, bob = desk("ann"), desk("bob")
    item = queue.take(ann.desk.person)[0]
    ann.say(action="label", item_id=item.item_id, label="RV", image_id=item.neighbour_id)
    queue.take(bob.desk.person)
    bob.say(action="label", item_id=item.item_id, label="N")
    from audit.review.roles import Role

    assert review._items(desk("ann", "decide").desk) == [], "who disagrees does not decide"
    queue.store.give_role(ann.desk.person, "jo", Role.ADJUDICATOR)
    judge = desk("jo", "decide")
    far, _ = review._progress(judge.desk)
    assert "Of 1 item to be decided, none is for you" in review._nothing_left(
        desk("ann", "decide").desk, far, 0
    )
    ((found, others),) = review._items(judge.desk)
    shown = prepared.one(found, judge.have, frozenset(), blur=False).shown
    told = review._told(shown, others, "decide")
    assert {(each.who, each.label) for each in told.both} == {("ann", "RV"), ("bob", "N")}
    assert judge.say(action="adjudicate", item_id=item.item_id, label="RV").stored
    assert review._items(judge.desk) == []
    assert not bob.say(action="adjudicate", item_id=item.item_id, label="N").stored


def test_a_picture_removed_from_view_is_not_sent(desk, queue):
    from audit.ui import prepared

    ann = desk("ann")
    item = queue.take(ann.desk.person)[0]
    before = prepared.prepare(item, ann.have, frozenset(), blur=False)
    shown = before.shown.candidates[0]
    sha256 = before.training_sha256[shown.image_id]
    queue.store.remove_from_view(ann.desk.person, sha256, "asked for")
    after = prepared.prepare(item, ann.have, frozenset(queue.store.hidden()), blur=False)
    hidden = next(each for each in after.shown.candidates if each.image_id == shown.image_id)
    assert hidden.picture is None and hidden.no_picture == prepared.REMOVED
    assert shown.picture in before.pictures and shown.picture not in after.pictures


def test_blurred_pictures_are_blurred_here(desk, queue):
    from audit.ui import prepared

    item = queue.take(desk("ann").desk.person)[0]
    have = desk("ann").have
    sharp = prepared.prepare(item, have, frozenset(), blur=False)
    blurred = prepared.prepare(item, have, frozenset(), blur=True)
    assert not set(sharp.pictures.values()) & set(blurred.pictures.values()) - {
        sharp.pictures.get(each.mask) for each in sharp.shown.candidates
    }
    assert blurred.shown.generated.endswith("-blurred")


def test_an_edited_mask_is_a_new_version_and_in_use(desk, queue):
    from audit.review.events import EventKind
    from audit.ui import bench

    ann = desk("ann")
    before = ann.have.template("template-p0")
    entry = {
        "action": "mask",
        "item_id": queue.take(ann.desk.person)[0].item_id,
        "template_id": "template-p0",
        "mask_version": "0",
        "steps": [{"tool": "rectangle", "include": False, "points": [[0, 0], [32, 256]]}],
    }
    ack = ann.say(**entry)
    assert ack.stored, ack.message
    after = bench.training_set().template("template-p0")
    assert not after.mask[:, :32].any()
    assert (after.mask[:, 32:] == before.mask[:, 32:]).all()
    (event,) = queue.store.events([EventKind.MASK_SAVED])
    assert event.subject == "template-p0" and event.body["number"] == 1
    stale = Desk(queue, "bob").say(**entry | {"answer_id": uuid.uuid4().hex})
    assert not stale.stored and "another version" in stale.message


def test_levels_hold_differences_exactly():
    from audit.images import to_uint8
    from audit.ui.prepared import levels
    from audit.verbatim.masks import difference

    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    image = to_uint8(levels(difference(pictures.astype(np.float32) / 255.0))).astype(int)
    expected = np.abs(pictures[0].astype(int) - pictures[1]).sum(-1)
    assert (image[..., 0] + 256 * image[..., 1] == expected).all()


def test_what_a_browser_says_is_checked(monkeypatch):
    import streamlit as st

    from audit.ui import labelling

    good = {"answer_id": "0" * 32, "action": "skip"}
    for state, count in (
        ({"sent": {"outbox": [good, 3, {"answer_id": "x", "action": "skip"}], "have": ["a", 1]}}, 1),
        ({"sent": {"outbox": [good | {"action": "drop"}, good | {"answer_id": None}]}}, 0),
        ({"sent": "x", "editing": 3}, 0),
        ({"sent": {"outbox": {"a": 1}, "have": 5}}, 0),
        ({"sent": {"outbox": [good] * 10_000}}, labelling.MAX_ANSWERS),
    ):
        monkeypatch.setattr(st, "session_state", {"x": state})
        said = labelling.sent("x")
        assert len(said.answers) == count and said.have <= {"a"} and said.editing == ""


def test_the_guidelines_have_a_section_with_an_example_of_each_label():
    from audit.review.events import LABELS
    from audit.ui.guidelines import LABEL, guidelines

    sections, pictures = guidelines(False)
    found = {match[1]: each for each in sections if (match := LABEL.match(each.title))}
    assert set(found) == set(LABELS)
    for section in found.values():
        assert section.examples and all(key in pictures for key in section.examples[0].pictures)
    assert not any("*" in str(each.blocks) for each in sections)
