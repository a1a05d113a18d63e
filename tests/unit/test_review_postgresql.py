"""The label store in a real PostgreSQL server: the same calls, the same chain."""

import itertools
import threading
import uuid

import pytest
from sqlalchemy import text

from audit.errors import InputError
from audit.records import caption_id
from audit.review.backup import backup, restore
from audit.review.events import EventKind
from audit.review.queue import Answer, Item, Queue, item_id, queues
from audit.review.roles import Person, Refused, Role
from audit.review.store import Store
from tests import postgresql

ANN, JUDGE = Person("Ann", Role.AUDITOR), Person("Jo", Role.ADJUDICATOR)
BOB, CAT, DAN = (Person(name, Role.ANNOTATOR) for name in ("Bob", "Çat", "Dan"))
NUMBERS = itertools.count()

pytestmark = pytest.mark.skipif(
    postgresql.programs() is None, reason="PostgreSQL is not there; install Debian's package postgresql."
)


@pytest.fixture(scope="module")
def server():
    with postgresql.server() as running:
        yield running


@pytest.fixture
def url(server):
    """A new database."""
    name = f"labels{next(NUMBERS)}"
    base = Store.open(server.url)
    with base.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    base.close()
    return server.url.replace("/postgres?", f"/{name}?")


@pytest.fixture
def store(url):
    store = Store.open(url)
    store.enter("Ann")
    store.give_role(ANN, "Jo", Role.ADJUDICATOR)
    yield store
    store.close()


def say(label):
    return Answer(uuid.uuid4().hex, label, seconds=1.5, seed=2**62)


def filled(store, count):
    texts = [f"caption {i} ' \x00 é" for i in range(count)]
    queue = Queue(store, "q")
    queue.fill(
        ANN,
        [
            Item(item_id("q", "r", caption_id(t)), "q", "r", "/r", caption_id(t), t, place, "because")
            for place, t in enumerate(texts)
        ],
    )
    return queue


def test_a_review_from_beginning_to_end(store):
    assert store.enter("Ann").role is Role.AUDITOR and store.enter("Bob").role is Role.ANNOTATOR
    queue = filled(store, 3)
    (item,) = queue.take(BOB)
    assert queue.take(CAT)[0].place == 1 and queue.take(BOB) == [item]
    answer = say("MV")
    assert queue.answer(BOB, item.item_id, answer) == queue.answer(BOB, item.item_id, answer)
    queue.give_back(CAT)
    assert queue.take(CAT)[0].item_id == item.item_id
    with pytest.raises(Refused):
        queue.answer(DAN, item.item_id, say("N"))
    queue.answer(CAT, item.item_id, say("N"))
    (case,) = queue.disagreements(JUDGE)
    queue.adjudicate(JUDGE, case.item.item_id, say("MV"))
    queue.flag(BOB, item.item_id, "note \x00")
    queue.skip(DAN, queue.take(DAN)[0].item_id)
    assert queue.reopen(DAN) == 1 and queue.undo(DAN) is None and queue.undo(JUDGE) == item.item_id
    assert queue.progress(BOB).done == 1 and queue.progress(BOB).left == 2
    assert queue.decisions(ANN)["status"].tolist() == ["disagreed", "open", "open"]
    assert store.labels(ANN)[["who", "label", "seed"]].values.tolist() == [
        ["Bob", "MV", 2**62],
        ["Çat", "N", 2**62],
    ]
    assert queues(store)[0].items == 3
    store.remove_from_view(ANN, "a" * 64, "asked for")
    assert store.hidden() == {"a" * 64}
    assert [event.number for event in store.events()] == list(range(1, store.root().count + 1))
    assert store.verify(store.root()) == []


def test_a_lease_ends_by_the_servers_clock(store):
    queue = filled(store, 1)
    (item,) = queue.take(BOB)
    assert queue.take(CAT) == []
    with store.engine.begin() as base:
        base.execute(text("UPDATE items SET leased_until = extract(epoch FROM clock_timestamp()) - 1"))
    assert queue.take(CAT)[0].item_id == item.item_id
    with pytest.raises(Refused, match="was not saved"):
        queue.answer(BOB, item.item_id, say("MV"))


def test_a_role_taken_away_while_an_answer_waits_for_the_store_counts(store):
    queue = filled(store, 1)
    (item,) = queue.take(BOB)
    outcome = []

    def answering():
        try:
            outcome.append(queue.answer(BOB, item.item_id, say("MV")))
        except Refused as refused:
            outcome.append(refused)

    thread = threading.Thread(target=answering)
    with store.change(ANN) as change:
        thread.start()
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with store.engine.connect() as base:
            while not base.execute(waiting).scalar_one():
                base.rollback()
        change.give_role("Ann", "Bob", Role.READER)
    thread.join()
    assert "The role reader may not label" in str(outcome[0])
    assert store.labels(ANN).empty


def test_a_server_that_is_killed_while_it_is_written_to_leaves_the_chain_whole(store, server):
    queue, said, trouble = filled(store, 2), [], []

    def writing():
        while not trouble:
            answer = say("MV")
            try:
                queue.answer(BOB, queue.take(BOB)[0].item_id, answer)
                said.append(answer.answer_id)
                queue.undo(BOB)
            except InputError as error:
                trouble.append(error)

    thread = threading.Thread(target=writing)
    thread.start()
    while len(said) < 5:
        assert thread.is_alive(), trouble
    root = store.root()
    server.kill()
    thread.join()
    assert "does not answer" in str(trouble[0])
    server.start()
    assert store.verify(root) == [] and store.verify(store.root()) == []
    stored = [event.body["answer_id"] for event in store.events([EventKind.LABELLED])]
    assert set(said) <= set(stored), "what was told as stored is stored"
    assert len({*stored}) == len(stored)


def test_threads_share_no_item_and_break_no_chain(store):
    queue, errors = filled(store, 40), []

    def work(person):
        try:
            while items := queue.take(person, 2):
                for item in items:
                    queue.answer(person, item.item_id, say("MV"))
        except Exception as error:
            errors.append(error)

    people = (BOB, CAT, DAN, ANN)
    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for person in people:
        work(person)
    assert errors == [] and store.verify(store.root()) == []
    assert store.labels(ANN).groupby("item_id")["who"].nunique().tolist() == [2] * 40


def test_tampering_is_found(store):
    filled(store, 2)
    store.append_many(ANN, [(EventKind.VIEWED, f"s{i}", {}) for i in range(5)])
    root = store.root()
    for statement in (
        "UPDATE events SET who = 'Eve' WHERE number = 3",
        "DELETE FROM events WHERE number = 3",
        "DELETE FROM events WHERE number > 4",
        "UPDATE items SET place = 9 WHERE place = 1",
    ):
        with store.engine.begin() as base:
            saved = base.begin_nested()
            base.execute(text(statement))
            from audit.review.verify import findings

            assert list(findings(base, root)), statement
            saved.rollback()
    assert store.verify(root) == []


def test_a_failed_change_leaves_nothing(store):
    before = store.root()
    with pytest.raises(ZeroDivisionError), store.change() as change:
        change.append(EventKind.VIEWED, "Ann", "x", {})
        raise ZeroDivisionError
    assert store.root() == before


def test_threads_open_a_new_database_at_once(url):
    opened, threads = [], []
    for _ in range(6):
        threads.append(threading.Thread(target=lambda: opened.append(Store.open(url))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6 and {each.root().count for each in opened} == {0}
    for each in opened:
        each.close()


def test_back_ups_go_from_one_database_to_the_other(store, url, tmp_path):
    queue = filled(store, 5)
    for person, label in ((BOB, "MV"), (CAT, "N")):
        queue.answer(person, queue.take(person)[0].item_id, say(label))
    root = backup(store, ANN, tmp_path / "b", tmp_path / "masks")
    there = f"sqlite:///{tmp_path / 'there.db'}"
    assert restore(tmp_path / "b", tmp_path / "masks", there) == root == store.root()
    other = Store.open(there)
    assert other.labels(ANN).equals(store.labels(ANN)) and other.verify(root) == []
    assert Queue(other, "q").decisions(ANN).equals(queue.decisions(ANN))
    assert backup(other, ANN, tmp_path / "c", tmp_path / "masks") == root
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    other.close()
    with pytest.raises(InputError, match="restore into an empty one"):
        restore(tmp_path / "c", tmp_path / "masks", url)
    with store.engine.begin() as base:
        for table in ("events", "items", "answers", "sent", "roles", "decisions", "head", "schema_version"):
            base.execute(text(f"DROP TABLE {table}"))
    assert restore(tmp_path / "c", tmp_path / "masks", url) == root and store.verify(root) == []
    assert Queue(store, "q").disagreements(JUDGE)[0].given[1].who == "Çat"
