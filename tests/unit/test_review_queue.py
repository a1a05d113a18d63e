"""Queues: one holder an item, two answers each, undo, skips, disagreements, and what is shown to whom."""

import json
import math
import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from audit.errors import InputError
from audit.records import caption_id
from audit.review.agreement import ONE_ANSWER, decided
from audit.review.events import EventKind
from audit.review.fill import DISPUTED, EVERY, RANDOM, WHYS, fill, find_source, read_gold
from audit.review.queue import BREAK, LEASE, Answer, Item, Queue, item_id, queues
from audit.review.roles import Person, Refused, Role
from audit.review.store import Store, code_version
from audit.runs.folder import RunFolder
from audit.runs.results import Results
from audit.runs.selections import select
from audit.settings import settings

AUDITOR = Person("Ann", Role.AUDITOR)
BOB, CAT, DAN = (Person(name, Role.ANNOTATOR) for name in ("Bob", "Cat", "Dan"))
JUDGE = Person("Jo", Role.ADJUDICATOR)


class Clock:
    """The store's clock, moved by hand."""

    def __init__(self):
        self.now = datetime(2026, 1, 2, 12, tzinfo=UTC)

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    with_clock = Store.open(f"sqlite:///{tmp_path / 'review.db'}", clock)
    with_clock.enter(AUDITOR.name)
    with_clock.give_role(AUDITOR, JUDGE.name, JUDGE.role)
    yield with_clock
    assert with_clock.verify() == [], "every test leaves a chain that verifies"
    with_clock.close()


def make_items(count, queue="q"):
    return [
        Item(
            item_id=item_id(queue, "run", caption_id(f"caption {i}")),
            queue=queue,
            run="run",
            run_path="/runs/run",
            caption_id=caption_id(f"caption {i}"),
            caption=f"caption {i}",
            place=i,
            why=WHYS[0],
            seed=2**62 + i,
            verdict="TV",
            distance=1.5,
            limit=2500.0,
            gold="MV" if i == 0 else "",
        )
        for i in range(count)
    ]


@pytest.fixture
def queue(store):
    queue = Queue(store, "q")
    assert queue.fill(AUDITOR, make_items(6)) == 6
    return queue


def say(label, **more):
    return Answer(uuid.uuid4().hex, label, **more)


def ids(items):
    return [item.item_id for item in items]


def test_filling_again_changes_nothing(queue, store):
    before = store.root()
    changed = [replace(item, why="another") for item in make_items(6)]
    assert queue.fill(AUDITOR, changed) == 0 and store.root() == before
    assert queue.fill(AUDITOR, make_items(8)) == 2
    assert [event.body["items"] for event in store.events([EventKind.QUEUED])] == [6, 2]
    with pytest.raises(InputError, match="no caption of this queue"):
        queue.fill(AUDITOR, make_items(1, "another"))
    with pytest.raises(InputError, match="no label"):
        queue.fill(AUDITOR, [replace(make_items(9)[8], gold="X")])


def test_an_item_has_one_holder(queue):
    first, second = queue.take(BOB, 2), queue.take(CAT, 3)
    assert ids(first) == ids(make_items(6)[:2]) and ids(second) == ids(make_items(6)[2:5])
    assert ids(queue.take(BOB, 2)) == ids(first), "a page that is loaded again has the same"
    assert ids(queue.take(DAN, 5)) == ids(make_items(6)[5:])
    queue.give_back(CAT, ids(second)[:1])
    assert ids(queue.take(DAN, 5)) == ids([make_items(6)[5], second[0]]), "what one holds comes first"
    queue.give_back(BOB)
    assert ids(queue.take(CAT, 9)) == ids([*second[1:], *first])


def test_nothing_tells_an_annotator_what_to_answer(queue, monkeypatch):
    (item,) = queue.take(BOB)
    assert (item.verdict, item.distance, item.limit, item.gold) == ("", None, None, "")
    assert item == make_items(1)[0].blind and item.seed == 2**62
    assert queue.others(BOB, item.item_id) is None and queue.item(BOB, item.item_id) == item
    queue.answer(BOB, item.item_id, say("TV"))
    told = queue.others(BOB, item.item_id)
    assert told.item.verdict == "TV" and told.given == (), "one's own label is none of the others'"
    (item,) = queue.take(CAT)
    assert item == make_items(1)[0].blind and queue.others(CAT, item.item_id) is None
    queue.answer(CAT, item.item_id, say("N", mask_version="2"))
    assert [(each.who, each.label, each.mask_version) for each in queue.others(BOB, item.item_id).given] == [
        ("Cat", "N", "2")
    ]
    (mine,) = queue.take(AUDITOR)
    assert queue.others(AUDITOR, mine.item_id) is None, "who holds it has to answer first"
    monkeypatch.setattr(settings(), "show_others", True)
    assert queue.take(DAN)[0].verdict == "TV" and queue.others(DAN, ids(make_items(6))[4]) is not None


def test_each_item_is_answered_by_two_people(queue):
    items = make_items(6)
    for item in queue.take(BOB, 3):
        queue.answer(BOB, item.item_id, say("MV"))
    assert ids(queue.take(CAT, 4)) == ids(items[:4]), "what has one answer comes first"
    assert ids(queue.take(BOB, 9)) == ids(items[4:]), "nobody answers twice, nor what another holds"
    for item in queue.take(CAT, 2):
        queue.answer(CAT, item.item_id, say("MV"))
    queue.give_back(CAT)
    queue.give_back(BOB)
    assert ids(queue.take(DAN, 9)) == ids([items[2], *items[3:]]), "two answers are enough"
    table = queue.decisions(AUDITOR)
    assert table["status"].tolist() == ["agreed", "agreed", "one answer", "open", "open", "open"]
    assert table["label"].tolist() == ["MV", "MV", "MV", "", "", ""]
    assert table["annotators"].tolist() == [("Bob", "Cat")] * 2 + [("Bob",), (), (), ()]
    assert table["gold"].tolist() == ["MV"] + [""] * 5


def test_a_lease_ends_by_the_stores_clock(queue, clock):
    (item,) = queue.take(BOB)
    clock.wait(LEASE + 1)
    assert ids(queue.take(CAT)) == [item.item_id]
    with pytest.raises(Refused, match="MV was not saved: the time for this item ran out"):
        queue.answer(BOB, item.item_id, say("MV"))
    queue.answer(CAT, item.item_id, say("TV"))
    assert ids(queue.take(BOB)) == [item.item_id], "it comes back, since it still needs an answer"
    clock.wait(LEASE + 1)
    queue.answer(BOB, item.item_id, say("MV"))  # late, but nobody else took it


def test_who_asks_again_keeps_their_hold(queue, clock):
    held = ids(queue.take(BOB, 2))
    for _ in range(3):
        clock.wait(LEASE - 1)
        assert ids(queue.take(BOB, 2)) == held
    assert not {*held} & {*ids(queue.take(CAT, 9))}


def test_an_answer_sent_twice_is_one_event(queue, store):
    (item,) = queue.take(BOB)
    answer = say("MV", seconds=1.5, generated_sha256="a" * 64, training_sha256="b" * 64, seed=2**62)
    first = queue.answer(BOB, item.item_id, answer)
    assert queue.answer(BOB, item.item_id, answer) == first
    assert len(list(store.events([EventKind.LABELLED]))) == 1
    with pytest.raises(InputError, match="Another answer came in"):
        queue.answer(BOB, item.item_id, replace(answer, label="N"))
    with pytest.raises(Refused, match="answered this item already"):
        queue.answer(BOB, item.item_id, say("N"))
    assert first.body["generated_sha256"] == "a" * 64 and first.body["code_version"] == code_version()
    assert (first.body["caption"], first.body["run"], first.body["seed"]) == ("caption 0", "run", 2**62)
    assert first.when == "2026-01-02T12:00:00.000000+00:00"


def test_whatever_is_sent_twice_happens_once(queue, store):
    items = ids(queue.take(BOB, 3))
    for name in items[:2]:
        queue.answer(BOB, name, say("MV"))
    for _ in range(2):
        queue.skip(BOB, items[2], answer_id="skip-0001")
        queue.flag(BOB, items[0], "note", answer_id="flag-0001")
    for _ in range(2):
        assert queue.undo(BOB, answer_id="undo-0001") == items[2]
        assert queue.undo(BOB, answer_id="undo-0002") == items[1]
    assert store.labels(AUDITOR)["item_id"].tolist() == items[:1]
    counts = [len(list(store.events([EventKind(kind)]))) for kind in ("skipped", "flagged", "undone")]
    assert counts == [1, 1, 2]
    with pytest.raises(InputError, match="Another answer came in"):
        queue.undo(CAT, answer_id="undo-0001")
    with pytest.raises(InputError, match="Another answer came in"):
        queue.flag(BOB, items[0], "note", answer_id="skip-0001")


@pytest.mark.parametrize(
    "answer",
    [
        Answer("", "MV"),
        Answer("a" * 8, "U"),
        Answer("short", "MV"),
        Answer("a b c d e f", "MV"),
        Answer("a" * 8, "MV", generated_sha256="A" * 64),
        Answer("a" * 8, "MV", training_sha256="a" * 63),
        Answer("a" * 8, "MV", seconds=math.nan),
        Answer("a" * 8, "MV", seconds=-1.0),
        Answer("a" * 8, "MV", image_id="x" * 2_000_000),
    ],
)
def test_what_is_no_answer_is_refused(queue, store, answer):
    (item,) = queue.take(BOB)
    before = store.root()
    with pytest.raises(InputError):
        queue.answer(BOB, item.item_id, answer)
    assert store.root() == before and ids(queue.take(BOB)) == [item.item_id]


def test_items_of_nowhere_are_refused(queue):
    other = Queue(queue.store, "another")
    (item,) = queue.take(BOB)
    for call in (other.answer, other.adjudicate):
        with pytest.raises(InputError, match="no item"):
            call(AUDITOR, item.item_id, say("MV"))
    with pytest.raises(InputError, match="no item"):
        queue.others(BOB, "0" * 16)


def test_undo_is_an_event_and_gives_the_item_back(queue, store):
    items = ids(queue.take(BOB, 3))
    for name in items[:2]:
        queue.answer(BOB, name, say("MV"))
    queue.skip(BOB, items[2])
    assert [queue.own_label(BOB, name) for name in items] == ["MV", "MV", ""]
    assert queue.undo(BOB) == items[2] and queue.undo(BOB) == items[1]
    assert queue.own_label(BOB, items[1]) is None
    assert ids(queue.take(BOB, 2)) == items[1:]
    queue.answer(BOB, items[1], say("N"))
    labels = store.labels(AUDITOR)
    assert labels[["item_id", "label"]].values.tolist() == [[items[0], "MV"], [items[1], "N"]]
    undone = list(store.events([EventKind.UNDONE]))
    assert [event.body["was"] for event in undone] == ["skipped", "labelled"]
    assert store.event(undone[1].body["undoes"]).sha256 == undone[1].body["undoes_sha256"]
    assert queue.undo(BOB) == items[1] and queue.undo(BOB) == items[0] and queue.undo(BOB) is None
    assert queue.undo(CAT) is None and store.labels(AUDITOR).empty


def test_what_was_skipped_comes_back_on_request(queue):
    (item,) = queue.take(BOB)
    queue.skip(BOB, item.item_id)
    with pytest.raises(Refused):
        queue.skip(BOB, item.item_id)
    assert item.item_id not in ids(queue.take(BOB, 9)) and queue.progress(BOB).skipped == 1
    queue.give_back(BOB)
    assert ids(queue.take(CAT)) == [item.item_id], "others still get it"
    queue.give_back(CAT)
    assert queue.reopen(BOB) == 1 and queue.reopen(BOB) == 0
    assert ids(queue.take(BOB)) == [item.item_id]


def disagree(queue):
    (item,) = queue.take(BOB)
    queue.answer(BOB, item.item_id, say("MV"))
    queue.take(CAT)
    queue.answer(CAT, item.item_id, say("TV", template_id="t1"))
    return item.item_id


def test_disagreements_go_to_an_adjudicator_who_sees_both(queue, store):
    name = disagree(queue)
    queue.flag(CAT, name, "  the corner differs ")
    assert (
        queue.decisions(AUDITOR)["status"].tolist()[0] == "disagreed" and queues(store)[0].disagreements == 1
    )
    (case,) = queue.disagreements(JUDGE)
    assert case.item.verdict == "TV" and [(each.who, each.label) for each in case.given] == [
        ("Bob", "MV"),
        ("Cat", "TV"),
    ]
    assert case.given[1].note == "the corner differs"
    answer = say("TV")
    first = queue.adjudicate(JUDGE, name, answer)
    assert queue.adjudicate(JUDGE, name, answer) == first, "sent twice, it is one event"
    with pytest.raises(Refused, match="somebody has decided"):
        queue.adjudicate(AUDITOR, name, say("MV"))
    with pytest.raises(Refused, match="adjudicator has decided"):
        queue.undo(BOB)
    row = queue.decisions(AUDITOR).iloc[0]
    assert (row["label"], row["status"], bool(row["flagged"])) == ("TV", "adjudicated", True)
    labels = store.labels(AUDITOR)
    assert labels["who"].tolist() == ["Bob", "Cat", "Jo"]
    assert labels["adjudicated"].tolist() == [False, False, True]
    assert labels["note"].tolist() == ["", "the corner differs", ""]
    assert queue.undo(JUDGE) == name and len(queue.disagreements(JUDGE)) == 1
    queue.unflag(CAT, name)
    assert not store.labels(AUDITOR)["flagged"].any() and not queue.decisions(AUDITOR)["flagged"].any()
    assert queue.undo(BOB) == name and queue.disagreements(JUDGE) == []
    with pytest.raises(Refused, match="Nobody disagrees"):
        queue.adjudicate(JUDGE, name, say("MV"))


def test_one_adjudicator_an_item_and_a_third_person(queue, clock):
    """Who disagrees does not decide; what one adjudicator has before them no other gets, until they skip or leave it."""
    kim = Person("Kim", Role.ADJUDICATOR)
    queue.store.give_role(AUDITOR, kim.name, kim.role)
    names = []
    for first in (JUDGE, BOB):
        (item,) = queue.take(first)
        queue.answer(first, item.item_id, say("MV"))
        queue.take(CAT)
        queue.answer(CAT, item.item_id, say("N"))
        names.append(item.item_id)
    own, other = names
    assert ids(each.item for each in queue.disagreements(JUDGE)) == [other], "one of the two does not get it"
    with pytest.raises(Refused, match="one of those who disagree"):
        queue.adjudicate(JUDGE, own, say("MV"))
    assert ids(each.item for each in queue.disagreements(kim)) == [own]
    with pytest.raises(Refused, match="went to another adjudicator"):
        queue.adjudicate(kim, other, say("MV"))
    queue.skip(JUDGE, other)
    assert queue.disagreements(JUDGE) == []
    assert ids(each.item for each in queue.disagreements(kim)) == names
    queue.adjudicate(kim, own, say("MV"))
    assert queue.reopen(JUDGE) == 1 and queue.disagreements(JUDGE) == [], "another has it meanwhile"
    queue.give_back(kim)
    assert ids(each.item for each in queue.disagreements(JUDGE)) == [other]
    assert other not in ids(queue.take(JUDGE, 9)), "what is held to be decided is not offered to be labelled"
    clock.wait(LEASE + 1)
    assert ids(each.item for each in queue.disagreements(kim)) == [other]
    assert queue.undo(kim) == own and ids(each.item for each in queue.disagreements(kim)) == names


def test_an_answer_after_the_others_were_shown_is_marked(queue, store, monkeypatch):
    (item,) = queue.take(BOB)
    with pytest.raises(Refused, match="were blurred"):
        queue.answer(BOB, item.item_id, say("MV", blurred=True))
    queue.answer(BOB, item.item_id, say("MV"))
    queue.undo(BOB)
    queue.answer(BOB, item.item_id, say("TV"))
    queue.skip(CAT, queue.take(CAT)[0].item_id)
    queue.undo(CAT)
    queue.answer(CAT, item.item_id, say("TV"))
    monkeypatch.setattr(settings(), "show_others", True)
    (other,) = queue.take(DAN)
    queue.answer(DAN, other.item_id, say("N"))
    assert store.labels(AUDITOR)["others_shown"].tolist() == [True, False, True], "a skip shows nothing"
    events = list(store.events([EventKind.LABELLED]))
    assert [event.body["others_shown"] for event in events] == [False, True, False, True]
    assert [event.body["blurred"] for event in events] == [False] * 4


def test_who_answers_alone_may_correct_themselves(queue, store, monkeypatch):
    monkeypatch.setattr(settings(), "annotators", 1)
    (item,) = queue.take(BOB)
    queue.answer(BOB, item.item_id, say("MV"))
    queue.undo(BOB)
    queue.answer(BOB, item.item_id, say("N"))
    row = queue.decisions(AUDITOR).set_index("item_id").loc[item.item_id]
    assert row["label"] == "N" and not queue.disagreements(JUDGE)


def test_an_answer_is_marked_however_its_giver_was_told(queue, store):
    """In another queue, of another run with the same picture, or as the adjudicator whose decision was taken back."""
    shown = {"generated_sha256": "a" * 64}
    queue.answer(BOB, queue.take(BOB)[0].item_id, say("MV", **shown))
    marks = []
    for place, (run, generated) in enumerate([("run", "b"), ("again", "a"), ("third", "c")]):
        other, item = Queue(store, f"q{place}"), make_items(1)[0]
        name = item_id(other.name, run, item.caption_id)
        other.fill(AUDITOR, [replace(item, item_id=name, queue=other.name, run=run)])
        answer = say("MV", generated_sha256=generated * 64)
        marks.append(other.answer(BOB, other.take(BOB)[0].item_id, answer).body["others_shown"])
        if place == 0:
            assert not other.answer(CAT, other.take(CAT)[0].item_id, say("N")).body["others_shown"]
    assert marks == [True, True, False]
    other = Queue(store, "decided")
    other.fill(AUDITOR, make_items(9, "decided")[8:])
    name = disagree(other)
    other.disagreements(JUDGE)
    other.adjudicate(JUDGE, name, say("TV"))
    assert other.undo(JUDGE) == name and other.undo(BOB) == name
    other.give_back(BOB)
    other.give_back(JUDGE)
    assert ids(other.take(JUDGE)) == [name]
    assert other.answer(JUDGE, name, say("TV")).body["others_shown"]


def test_a_second_answer_agrees_with_nobody_and_an_adjudicator_decides(queue, store):
    name = disagree(queue)
    assert queue.undo(CAT) == name
    queue.answer(CAT, name, say("MV"))
    row = queue.decisions(AUDITOR).iloc[0]
    assert (row["label"], row["status"], row["annotators"]) == ("MV", "one answer", ("Bob", "Cat"))
    assert decided(store.labels(AUDITOR)) == {name: ONE_ANSWER}
    assert queues(store)[0].disagreements == 1
    (case,) = queue.disagreements(JUDGE)
    assert [(each.label, each.others_shown) for each in case.given] == [("MV", False), ("MV", True)]
    queue.give_back(JUDGE)
    assert queue.undo(BOB) == name
    queue.answer(BOB, name, say("MV"))
    row = queue.decisions(AUDITOR).iloc[0]
    assert (row["label"], row["status"]) == ("", "one answer"), "both had been told"
    queue.disagreements(JUDGE)
    queue.adjudicate(JUDGE, name, say("MV"))
    assert queue.decisions(AUDITOR).iloc[0]["status"] == "adjudicated" and queue.disagreements(JUDGE) == []


def test_two_who_agree_by_themselves_need_nobody_else(queue, store, monkeypatch):
    monkeypatch.setattr(settings(), "annotators", 3)
    for person in (BOB, CAT, DAN):
        item = queue.take(person)[0].item_id
        queue.answer(person, item, say("MV"))
    queue.undo(DAN)
    queue.answer(DAN, item, say("N", mask_version='{"others_shown":true}'))
    assert queue.decisions(AUDITOR).iloc[0]["status"] == "agreed" and queue.disagreements(JUDGE) == []
    for person in (BOB, CAT):  # a text that looks like the mark is none
        item = queue.take(person)[0].item_id
        queue.answer(person, item, say("MV", mask_version='"others_shown":true'))
    assert queue.decisions(AUDITOR).iloc[1]["status"] == "agreed"


def test_an_answer_that_was_under_way_when_its_item_was_given_back(queue):
    first, second = ids(queue.take(BOB, 2))
    queue.give_back(BOB)
    queue.answer(BOB, first, say("MV"))
    assert ids(queue.take(CAT, 2)) == [first, second]
    with pytest.raises(Refused, match="went to somebody else"):
        queue.answer(BOB, second, say("MV"))
    queue.answer(CAT, first, say("MV"))
    queue.give_back(CAT)
    with pytest.raises(Refused, match="was not saved"):
        queue.answer(DAN, first, say("N"))


def test_marks_are_listed_until_they_are_taken_off(queue):
    item = queue.take(BOB)[0].item_id
    queue.flag(BOB, item, "look here")
    queue.skip(BOB, item)
    queue.flag(CAT, item, "and there")
    assert [(each.item_id, each.who, each.note) for each in queue.flags(JUDGE)] == [
        (item, "Bob", "look here"),
        (item, "Cat", "and there"),
    ]
    assert queue.own_flags(BOB) == {item: "look here"} and queue.own_flags(DAN) == {}
    for _ in range(2):
        queue.unflag(BOB, item, answer_id="unflag-0001")
    assert queue.own_flags(BOB) == {} and [each.who for each in queue.flags(JUDGE)] == ["Cat"]
    assert Queue(queue.store, "another").flags(JUDGE) == []
    with pytest.raises(Refused):
        queue.flags(CAT)


def test_progress_counts_days_and_leaves_breaks_out(queue, clock):
    clock.now = datetime(2026, 1, 2, 23, 59, 0, tzinfo=UTC)
    for seconds in (0, 20, 20, 40, BREAK + 1, 40):  # 23:59:00 ... 00:00:20, and after a break
        clock.wait(seconds)
        queue.take(BOB)
        queue.answer(BOB, queue.take(BOB)[0].item_id, say("N"))
    found = queue.progress(BOB)
    assert (found.done, found.left, found.skipped, found.today) == (6, 0, 0, 3)
    assert queue.progress(BOB, timezone(timedelta(hours=1))).today == 6, "their midnight was an hour before"
    assert found.per_hour == pytest.approx(3600 / 30) and found.seconds_left == 0
    assert queue.progress(CAT).left == 6 and queue.progress(CAT).per_hour is None


def test_a_third_annotator_where_three_are_asked_for(queue, monkeypatch):
    monkeypatch.setattr(settings(), "annotators", 3)
    for person in (BOB, CAT, DAN):
        queue.answer(person, queue.take(person)[0].item_id, say("N" if person == CAT else "MV"))
        found = queues(queue.store)[0]
        done = person == DAN
        assert (found.unanswered, found.begun, found.disagreements) == (5, int(not done), int(done))
        assert len(queue.disagreements(JUDGE)) == done, "the third is asked first"
    assert queue.decisions(AUDITOR)["annotators"].tolist()[0] == ("Bob", "Cat", "Dan")


def test_threads_share_a_store_and_no_item(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'threads.db'}")
    store.enter(AUDITOR.name)
    queue = Queue(store, "q")
    queue.fill(AUDITOR, make_items(60))
    errors = []

    def work(person):
        try:
            while items := queue.take(person, 2):
                for item in items:
                    queue.answer(person, item.item_id, say("MV"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(person,)) for person in (BOB, CAT, DAN, AUDITOR)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work(BOB)
    work(CAT)
    assert errors == [] and store.verify() == []
    assert store.labels(AUDITOR).groupby("item_id")["who"].nunique().tolist() == [2] * 60
    store.close()


# Filling from runs


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "it's data")
    return tmp_path / "it's data"


@pytest.fixture
def run(data):
    """200 captions, of which the first 100 were decided."""
    captions = [f"caption {i}" for i in range(200)]
    names = [caption_id(text) for text in captions]
    run = RunFolder.create(
        data / "runs" / "a run",
        {"model": "m", "model_sha256": "f" * 64, "seeds": [0], "guidance": 7.5, "noise": "cpu"},
    )
    scores = pd.DataFrame({"caption_id": names, "caption": captions, "dcs": np.arange(200.0)})
    scores["dcs_percentile"] = [99.5 if i in (20, 31) else 50.0 for i in range(200)]
    scores = scores.assign(occurrences=1)
    run.append({"captions": pa.Table.from_pandas(scores), "scores": pa.Table.from_pandas(scores)}, 0)
    rows = pd.DataFrame(
        {
            "caption_id": names[:100],
            "caption": captions[:100],
            "verdict": ["N"] * 100,
            "seed": pd.array([3] * 100, "Int64"),
            "neighbour_id": [f"p{i}" for i in range(100)],
            "template_id": pd.array([None] * 100, "string"),
            "mv_distance": [np.nan] * 100,
            "mv_blank": [np.nan] * 100,
            "rv_distance": 6000.0 + 10 * np.arange(100),  # of 3000: twice the limit and more
            "rv_blank": [1e9] * 100,
            "tv_distance": [np.nan] * 100,
            "tv_blank": [np.nan] * 100,
        }
    )
    rows.loc[10, ["mv_distance", "mv_blank"]] = [2400.0, 1e9]  # near 2500
    rows.loc[11, ["rv_distance", "rv_blank"]] = [1100.0, 2000.0]  # near half of what one colour reaches
    for member, distance in ((40, 100.0), (41, 200.0), (42, 50.0)):
        rows.loc[member, ["verdict", "template_id", "tv_distance"]] = ["TV", "family", distance]
    rows.loc[30, ["verdict", "mv_distance", "mv_blank"]] = ["MV", 10.0, 1e9]
    rows.loc[31, ["verdict", "mv_distance", "mv_blank"]] = ["MV", 10.0, 1e9]
    run.append({"verdicts": pa.Table.from_pandas(rows, preserve_index=False)})
    return run


def numbers(queue):
    return [int(text.split()[1]) for text in queue.decisions(AUDITOR)["caption"]]


def test_the_most_useful_comes_first(run, store):
    found = fill(store, AUDITOR, run.path, "q", limit=200)
    assert (found.chosen, found.new, found.audit, found.undecided) == (100, 100, 10, 0)
    queue = Queue(store, "q")
    items = [queue.others(AUDITOR, name).item for name in queue.decisions(AUDITOR)["item_id"]]
    drawn = [int(item.caption.split()[1]) for item in items if item.audit]
    assert [item.place for item in items if item.audit] == list(range(EVERY - 1, 100, EVERY))
    assert {item.why for item in items if item.audit} == {RANDOM}
    # 11 and 10 are near; 20, 30, 40 and 42 disagree with their scores; 41 is the nearest of its family
    expected = {11: 0, 10: 0, 41: 1, 20: 1, 30: 1, 40: 4, 42: 4}
    places = {int(item.caption.split()[1]): item for item in items if not item.audit}
    for number, rank in expected.items():
        if number not in drawn:
            assert places[number].why == WHYS[rank], number
    order = [number for number in places if number not in (40, 41, 42)]
    assert [number for number in order if number in (10, 11)] == [
        number for number in (10, 11) if number not in drawn
    ]
    ranks = [WHYS.index(places[number].why) for number in places]
    assert ranks == sorted(ranks)
    ten = places.get(10)
    if ten:
        assert (ten.distance, ten.limit, ten.verdict, ten.seed) == (2400.0, 2500.0, "N", 3)
    assert places[11].limit == 1000.0 if 11 in places else True
    assert fill(store, AUDITOR, run.path, "q", limit=200).new == 0


def test_a_limit_keeps_the_first_and_the_random_share(run, store):
    found = fill(store, AUDITOR, run.path, "q", limit=20)
    assert (found.chosen, found.audit) == (20, 2)
    first = set(numbers(Queue(store, "q")))
    assert {10, 11} <= first


def test_the_random_share_is_drawn_from_all(run, store):
    drawn = []
    for name in range(60):
        fill(store, AUDITOR, run.path, f"q{name}", limit=10)
        table = Queue(store, f"q{name}").decisions(AUDITOR)
        drawn += [int(text.split()[1]) for text in table.loc[table["audit"], "caption"]]
    assert len(drawn) == 60 and 35 < np.mean(drawn) < 64 and len(set(drawn)) > 35


def test_known_ones_stand_among_the_others(run, store, tmp_path):
    path = tmp_path / "gold.csv"
    pd.DataFrame(
        {"caption": [f"caption {i}" for i in range(60, 90)] + ["x"], "overfit_type": ["N"] * 30 + ["none"]}
    ).to_csv(path, index=False)
    gold = read_gold(path)
    assert len(gold) == 30 and set(gold.values()) == {"N"}
    assert fill(store, AUDITOR, run.path, "q", limit=50, gold=gold).gold == 5
    table = Queue(store, "q").decisions(AUDITOR)
    assert table.index[table["gold"] == "N"].tolist() == [4, 14, 24, 34, 44]
    assert all(item.gold == "" for item in Queue(store, "q").take(BOB, 20))
    with pytest.raises(InputError, match="caption and label are needed"):
        path.write_text("a,b\n1,2\n")
        read_gold(path)


def test_a_selection_is_filled_without_its_run(run, store):
    chosen = [caption_id(f"caption {i}") for i in (10, 30, 150)]
    selection = select(Results(run), "a selection", caption_ids=chosen)
    (run.path / "run.json").unlink()
    assert find_source("a selection") == selection.path
    found = fill(store, AUDITOR, find_source("a selection"), "q")
    assert (found.chosen, found.undecided) == (2, 1)
    assert set(numbers(Queue(store, "q"))) == {10, 30}
    assert set(Queue(store, "q").decisions(AUDITOR)["run"]) == {"a run"}


def test_what_people_disagreed_about_is_asked_again_elsewhere(run, store):
    fill(store, AUDITOR, run.path, "first", limit=100)
    first = Queue(store, "first")
    for item in first.take(BOB, 20):
        first.answer(BOB, item.item_id, say("MV"))
    disputed = {f"caption {i}" for i in range(12, 17)}
    for item in first.take(CAT, 20):
        if item.caption in disputed:
            first.answer(CAT, item.item_id, say("N"))
    fill(store, AUDITOR, run.path, "second", limit=100)
    table = Queue(store, "second").decisions(AUDITOR)
    shown = table.index[table["caption"].isin(disputed) & ~table["audit"]]
    assert len(shown) >= 3 and shown.max() < 12
    assert {Queue(store, "second").item(BOB, table["item_id"][place]).why for place in shown} == {DISPUTED}


def test_sources_that_are_none(run, store, tmp_path):
    for name in ("nothing", "../x", str(tmp_path)):
        with pytest.raises(InputError, match="no run and no selection"):
            find_source(name)
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        fill(store, AUDITOR, bad, "q")
    pd.DataFrame({"caption": ["x"]}).to_parquet(bad)
    with pytest.raises(InputError, match="lacks caption_id, run"):
        fill(store, AUDITOR, bad, "q")
    selection = select(Results(run), "undecided", caption_ids=[caption_id("caption 150")])
    with pytest.raises(InputError, match="nothing to look at"):
        fill(store, AUDITOR, selection.path, "q")
    assert find_source(run.path.name) == run.path
    assert json.loads((run.path / "run.json").read_text())["model"] == "m"
