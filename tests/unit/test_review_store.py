"""The label store: a chain that any JSON library can compute again, and in which every change is seen."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from audit.cli import main
from audit.errors import InputError
from audit.records import caption_id
from audit.review import migrations
from audit.review.events import LARGEST_BODY, START, EventKind, Root, body_text, canonical, chained
from audit.review.queue import Answer, Item, Queue, item_id
from audit.review.roles import Person, Role
from audit.review.store import FINDINGS, Store, code_version, database_url
from audit.settings import ROOT, settings

ANN = Person("Ann", Role.AUDITOR)
BOB = Person("Bob \"'é", Role.ANNOTATOR)


@pytest.fixture
def store(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'review.db'}")
    yield store
    store.close()


def log(store, count, person=ANN):
    return store.append_many(
        person, [(EventKind.VIEWED, f"subject {i}", {"number": i, "share": i / 7}) for i in range(count)]
    )


def edit(store, statement):
    with store.engine.begin() as base:
        base.exec_driver_sql(statement)


def recompute(store):
    """What somebody does who can write all of the database: the chain anew, and its end."""
    with store.engine.begin() as base:
        previous, number = START, 0
        for row in base.execute(
            text("SELECT number, kind, who, at, subject, body FROM events ORDER BY number")
        ).all():
            sha256 = chained(number + 1, *row[1:], previous)
            base.execute(
                text(
                    "UPDATE events SET number = :new, previous = :previous, sha256 = :sha256 WHERE number = :number"
                ),
                {"new": number + 1, "previous": previous, "sha256": sha256, "number": row[0]},
            )
            previous, number = sha256, number + 1
        base.execute(
            text("UPDATE head SET count = :count, sha256 = :sha256"), {"count": number, "sha256": previous}
        )


def test_events_are_chained_as_anybody_can_compute(store):
    log(store, 3)
    store.append(
        EventKind.VIEWED,
        BOB,
        "tëmplate \U0001f600",
        {"a": [1, 0.1, None, True, "é\x00"], "": {"b": 2**62}},
    )
    previous = START
    for place, event in enumerate(store.events(), 1):
        content = {
            "number": event.number,
            "kind": event.kind.value,
            "who": event.who,
            "when": event.when,
            "subject": event.subject,
            "body": event.body,
            "previous": event.previous,
        }
        text_form = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert event.sha256 == hashlib.sha256(text_form.encode("ascii")).hexdigest()
        assert canonical(content) == text_form
        assert (event.number, event.previous) == (place, previous)
        assert datetime.fromisoformat(event.when).tzinfo == UTC and len(event.when) == 32
        previous = event.sha256
    assert store.root() == Root(4, previous) and store.verify(store.root()) == []
    assert store.event(4).body["a"] == [1, 0.1, None, True, "é\x00"]
    assert store.event(0) is None and store.event(5) is None


def test_an_empty_chain_verifies(store):
    assert store.root() == Root(0, START)
    assert store.verify() == store.verify(store.root()) == []
    assert list(store.events()) == []
    store.enter("Ann")
    assert store.labels(ANN).empty


def test_events_are_found_by_what_they_are_about(store):
    log(store, 5)
    store.append(EventKind.EXPORTED, BOB, "subject 2", {})
    numbers = lambda **asked: [event.number for event in store.events(**asked)]  # noqa: E731
    assert numbers() == [1, 2, 3, 4, 5, 6]
    assert numbers(subject="subject 2") == [3, 6] and numbers(who=BOB.name) == [6]
    assert numbers(kinds=[EventKind.VIEWED], after=3) == [4, 5]
    assert numbers(kinds=[EventKind.VIEWED, EventKind.EXPORTED], subject="subject 2", after=3) == [6]
    assert numbers(kinds=[]) == [] and numbers(subject="' OR 1=1 --") == []


def test_a_stream_of_many_events_holds_each_once(store, monkeypatch):
    monkeypatch.setattr("audit.review.store.BLOCK", 7)
    log(store, 21)
    found = []
    for event in store.events():
        found.append(event.number)
        if event.number == 5:
            log(store, 3)  # while it is read
    assert found == list(range(1, 25))


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "UPDATE events SET body = replace(body, '\"number\":4', '\"number\":5') WHERE number = 5",
            "Event 5 was changed",
        ),
        ("UPDATE events SET who = 'Eve' WHERE number = 5", "Event 5 was changed"),
        ("UPDATE events SET at = '2020-01-01T00:00:00.000000+00:00' WHERE number = 5", "Event 5 was changed"),
        ("UPDATE events SET kind = 'exported' WHERE number = 5", "Event 5 was changed"),
        ("UPDATE events SET body = body || ' ' WHERE number = 5", "Event 5 was changed"),
        ("UPDATE events SET sha256 = previous WHERE number = 5", "Event 5 was changed"),
        ("DELETE FROM events WHERE number = 5", "Event 5 is missing"),
        ("DELETE FROM events WHERE number BETWEEN 5 AND 7", "Events 5 to 7 are missing"),
        ("DELETE FROM events WHERE number > 8", "its end was cut off"),
        ("UPDATE events SET number = number + 100 WHERE number > 8", "Events 9 to 108 are missing"),
        ("UPDATE head SET count = 9", "its end was cut off or added to"),
        ("UPDATE head SET sha256 = 'x'", "not the one that the store was left with"),
        ("DELETE FROM events", "its end was cut off"),
        ("INSERT INTO roles VALUES ('Eve', 'auditor')", "roles says other"),
    ],
)
def test_every_change_is_found_without_a_root(store, statement, sentence):
    log(store, 10)
    edit(store, statement)
    found = store.verify()
    assert any(sentence in each.sentence for each in found), found


def test_what_follows_from_the_events_is_checked_too(store):
    store.enter("Ann")
    texts = [f"caption {i}" for i in range(3)]
    items = [
        Item(item_id("q", "r", caption_id(t)), "q", "r", "/r", caption_id(t), t, place, "because", gold="MV")
        for place, t in enumerate(texts)
    ]
    queue = Queue(store, "q")
    queue.fill(ANN, items)
    cat = Person("Cat", Role.ANNOTATOR)
    name = queue.take(cat)[0].item_id
    queue.answer(cat, name, Answer(uuid.uuid4().hex, "MV"))
    queue.take(BOB)
    queue.answer(BOB, name, Answer(uuid.uuid4().hex, "TV"))
    queue.adjudicate(ANN, name, Answer(uuid.uuid4().hex, "TV"))
    root = store.root()
    assert store.verify(root) == []
    for statement, sentence in [
        ("UPDATE answers SET label = 'N'", "answers says other"),
        ("DELETE FROM answers", "answers says other"),
        ("UPDATE answers SET queue = 'x'", "answers says other"),
        ("UPDATE answers SET at = at + 1", "answers says other"),
        ("UPDATE decisions SET queue = 'x'", "decisions says other"),
        ("UPDATE decisions SET who = 'Eve'", "decisions says other"),
        ("UPDATE items SET queue = 'x' WHERE place = 1", "not what was put in"),
        ("UPDATE items SET caption_id = 'feedfeedfeedfeed' WHERE place = 1", "not what was put in"),
        ("UPDATE items SET queued = queued + 1 WHERE place = 1", "not what was put in"),
        ("UPDATE items SET answers = 2", "counted otherwise"),
        ("UPDATE items SET body = replace(body, 'MV', 'TV')", "not what was put in"),
        ("DELETE FROM items WHERE place = 2", "not what was put in"),
        ("UPDATE items SET place = 7 WHERE place = 2", "not what was put in"),
        ("DELETE FROM sent", "sent says other"),
    ]:
        with store.engine.connect() as base:
            base.execute(text(statement))
            from audit.review.verify import findings

            assert any(sentence in each.sentence for each in findings(base, root)), statement
            base.rollback()
    assert store.verify(root) == []


@pytest.mark.parametrize("change", ["edit", "remove", "cut", "reorder"])
def test_a_recomputed_chain_is_found_against_a_root_only(store, change):
    log(store, 10)
    root = store.root()
    log(store, 5)  # the store has grown since
    assert store.verify(root) == [] and store.verify(store.root()) == []
    if change == "edit":
        edit(store, "UPDATE events SET who = 'Eve' WHERE number = 3")
    elif change == "remove":
        edit(store, "DELETE FROM events WHERE number = 3")
    elif change == "cut":
        edit(store, "DELETE FROM events WHERE number > 9")
    else:
        edit(
            store, "UPDATE events SET number = CASE number WHEN 3 THEN -4 ELSE -3 END WHERE number IN (3, 4)"
        )
        edit(store, "UPDATE events SET number = -number WHERE number < 0")
    recompute(store)
    assert store.verify() == [], "without an anchor this cannot be told"
    found = store.verify(root)
    assert len(found) == 1 and "root was taken of" in found[0].sentence


def test_what_was_added_after_the_root_is_free(store):
    log(store, 4)
    root = store.root()
    for count in range(3):
        assert store.verify(root) == [], count
        log(store, 1)
    assert store.verify(Root(0, START)) == []
    assert len(store.verify(Root(2, root.sha256))) == 1
    assert len(store.verify(Root(99, root.sha256))) == 1


def test_a_wholly_damaged_store_is_told_briefly(store):
    log(store, 3 * FINDINGS)
    edit(store, "UPDATE events SET body = 'no json'")
    assert len(store.verify()) == FINDINGS
    with pytest.raises(InputError, match="labels verify"):
        list(store.events())


def test_nothing_of_a_failed_change_stays(store):
    log(store, 2)
    before = store.root()
    with pytest.raises(ZeroDivisionError), store.change() as change:
        change.append(EventKind.VIEWED, "Ann", "x", {})
        change.base.execute(text("INSERT INTO roles VALUES ('Eve', 'reader')"))
        raise ZeroDivisionError
    with pytest.raises(InputError):
        store.append_many(ANN, [(EventKind.VIEWED, "x", {}), (EventKind.VIEWED, "x", {"n": float("nan")})])
    assert store.root() == before and store.roles() == {} and store.verify(before) == []


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        ("", {}),
        ("a\nb", {}),
        ("a\x00", {}),
        ("\ud800", {}),
        ("x" * 501, {}),
        ("x", {"a": object()}),
        ("x", {"a": "b" * LARGEST_BODY}),
    ],
)
def test_what_no_database_could_hold_is_refused(store, subject, body):
    with pytest.raises(InputError):
        store.append(EventKind.VIEWED, ANN, subject, body)
    assert store.root().count == 0


def test_hostile_texts_come_back_as_they_went_in(store):
    body = {"note": "\ud800 \x00 \\u0000 ' \" </script> \u2028", "\ud800": "é"}
    store.append(EventKind.VIEWED, ANN, "'; DROP TABLE events; -- %s :name", body)
    (event,) = store.events()
    assert event.body == body and body_text(event.body) == body_text(body) and store.verify() == []


def test_pictures_go_out_of_view_and_come_back(store):
    store.enter("Ann")
    assert store.hidden() == set()
    store.remove_from_view(ANN, "A" * 64, "asked for")
    store.remove_from_view(ANN, "b" * 64, "asked for")
    store.remove_from_view(ANN, "b" * 64, "asked for again")
    store.restore_to_view(ANN, "b" * 64, "a mistake")
    assert store.hidden() == {"a" * 64}
    assert [event.body["reason"] for event in store.events(subject="b" * 64)] == [
        "asked for",
        "asked for again",
        "a mistake",
    ]
    with pytest.raises(InputError, match="no sha256"):
        store.remove_from_view(ANN, "../x", "asked for")


def test_threads_append_one_after_another(store):
    threads = [threading.Thread(target=lambda: [log(store, 2) for _ in range(10)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.root().count == 120 and store.verify(store.root()) == []


def test_processes_open_a_new_store_at_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'new' / 'review.db'}"
    code = (
        "import sys; from audit.review.store import Store; from audit.review.roles import *;"
        "from audit.review.events import EventKind; store = Store.open(sys.argv[1]);"
        "[store.append(EventKind.VIEWED, Person('P', Role.READER), 'x', {}) for _ in range(5)]; print(store.enter('A').role)"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [worker.communicate()[0].strip() for worker in workers] == ["auditor"] * 4
    store = Store.open(url)
    assert store.root().count == 21 and store.verify() == []
    store.close()


WRITING = """
import sys, uuid
from audit.review.events import LABELS
from audit.review.queue import Answer, Queue
from audit.review.store import Store
store = Store.open(sys.argv[1])
queue, bob = Queue(store, "q"), store.enter("Bob")
while items := queue.take(bob, 7):
    answer = Answer(uuid.uuid4().hex, LABELS[0])
    queue.answer(bob, items[0].item_id, answer)
    queue.undo(bob)
    print(answer.answer_id, flush=True)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_the_chain_whole(tmp_path):
    url = f"sqlite:///{tmp_path / 'review.db'}"
    store = Store.open(url)
    items = [
        Item(item_id("q", "r", caption_id(t)), "q", "r", "/r", caption_id(t), t, place, "because")
        for place, t in enumerate(["one", "two"])
    ]
    Queue(store, "q").fill(store.enter("Ann"), items)
    root = store.root()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITING, url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    said = [writer.stdout.readline().strip() for _ in range(5)]
    writer.kill()
    said += writer.communicate()[0].split()
    assert writer.returncode == -signal.SIGKILL
    assert store.verify(root) == [] and store.verify(store.root()) == []
    stored = [event.body["answer_id"] for event in store.events([EventKind.LABELLED])]
    assert len(said) >= 5 and set(said) <= set(stored), "what was told as stored is stored"
    assert len({*stored}) == len(stored)
    bob = store.enter("Bob")
    Queue(store, "q").answer(bob, Queue(store, "q").take(bob)[0].item_id, Answer(uuid.uuid4().hex, "N"))
    assert store.verify(store.root()) == []
    store.close()


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE events SET who = CAST('ann' AS BLOB) WHERE number = 3", "Event 3 was changed"),
        ("UPDATE events SET sha256 = CAST(sha256 AS BLOB) WHERE number = 3", "Event 3 was changed"),
        ("UPDATE head SET count = 'x'", "how many events it has"),
        ("UPDATE head SET sha256 = CAST(sha256 AS BLOB)", "how many events it has"),
        ("DELETE FROM head", "how many events it has"),
        ("UPDATE items SET queued = 'x'", "of another type"),
        ("UPDATE items SET body = CAST(body AS BLOB)", "of another type"),
        ("UPDATE answers SET number = 'x'", "table answers"),
        ("UPDATE sent SET number = 'x'", "table sent"),
        ("UPDATE roles SET role = CAST(role AS BLOB)", "table roles"),
        ("UPDATE items SET answers = 'x'", "counted otherwise"),
    ],
)
def test_a_value_of_another_type_is_found(store, statement, sentence):
    ann, name = store.enter("Ann"), item_id("q", "r", caption_id("x"))
    queue = Queue(store, "q")
    queue.fill(ann, [Item(name, "q", "r", "/r", caption_id("x"), "x", 0, "because")])
    queue.answer(ann, queue.take(ann)[0].item_id, Answer(uuid.uuid4().hex, "N"))
    assert store.verify(store.root()) == []
    root = store.root()
    edit(store, statement)
    for kept in (root, None):
        assert any(sentence in each.sentence for each in store.verify(kept))


def test_a_chain_made_anew_of_what_verbatim_never_writes_is_found(store):
    log(store, 1)
    edit(store, "UPDATE events SET body = '[]' WHERE number = 1")
    recompute(store)
    assert "none that Verbatim writes" in store.verify()[0].sentence


def test_an_old_store_is_brought_up_to_date(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'old.db'}"
    monkeypatch.setattr("audit.review.store.MIGRATIONS", migrations.MIGRATIONS[:1])
    monkeypatch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:1])
    old = Store.open(url)
    with old.change() as change:
        change.append(EventKind.VIEWED, "Ann", "x", {"n": 1})
    root = old.root()
    old.close()
    monkeypatch.undo()
    store = Store.open(url)
    assert store.root() == root and store.verify(root) == []
    assert store.enter("Ann").role is Role.AUDITOR
    edit(store, "UPDATE schema_version SET version = 99")
    store.close()
    with pytest.raises(InputError, match="version 99"):
        Store.open(url)


def test_labels_that_came_into_an_old_store_become_answers(tmp_path, monkeypatch):
    url, caption = f"sqlite:///{tmp_path / 'old.db'}", caption_id("x")
    monkeypatch.setattr("audit.review.store.MIGRATIONS", migrations.MIGRATIONS[:2])
    monkeypatch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:2])
    old = Store.open(url)
    name = item_id("q", "r", caption)
    Queue(old, "q").fill(old.enter("Ann"), [Item(name, "q", "r", "/r", caption, "x", 0, "because")])
    with old.change() as change:
        body = {"annotator": "Zoe", "queue": "q", "caption_id": caption, "caption": "x", "label": "TV"}
        change.append(EventKind.IMPORTED, "Ann", name, body)
    old.close()
    monkeypatch.undo()
    store = Store.open(url)
    assert store.verify(store.root()) == []
    assert Queue(store, "q").decisions(ANN)["annotators"].tolist() == [("Zoe",)]
    store.close()


def test_answers_of_those_who_had_been_told_go_to_an_adjudicator_in_an_old_store(tmp_path, monkeypatch):
    url, caption = f"sqlite:///{tmp_path / 'old.db'}", caption_id("x")
    monkeypatch.setattr("audit.review.store.MIGRATIONS", migrations.MIGRATIONS[:3])
    monkeypatch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:3])
    old = Store.open(url)
    queue, name = Queue(old, "q"), item_id("q", "r", caption)
    queue.fill(old.enter("Ann"), [Item(name, "q", "r", "/r", caption, "x", 0, "because")])
    for who in ("Bob", "Cat", "Cat"):
        person = old.enter(who)
        queue.take(person)
        if queue.own_label(person, name):
            queue.undo(person)
        queue.answer(person, name, Answer(uuid.uuid4().hex, "MV"))
    edit(old, "UPDATE items SET disputed = 0")  # as that version counted
    old.close()
    monkeypatch.undo()
    store = Store.open(url)
    assert store.verify(store.root()) == [] and len(Queue(store, "q").disagreements(ANN)) == 1
    store.close()


def test_stores_that_cannot_be_opened_say_why(tmp_path, monkeypatch):
    (tmp_path / "text.db").write_text("no database " * 100)
    for url, sentence in [
        ("nonsense", "no URL"),
        ("mysql://u:secret@host/db", "holds no labels"),
        ("sqlite://", "holds no labels"),
        ("sqlite:///:memory:", "holds no labels"),
        (f"sqlite:///{tmp_path}", "does not answer"),
        (f"sqlite:///{tmp_path / 'text.db'}", "damaged"),
        ("postgresql://u:secret@127.0.0.1:1/db", "does not answer"),
    ]:
        with pytest.raises(InputError, match=sentence) as caught:
            Store.open(url)
        assert "secret" not in str(caught.value)
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")
    assert database_url().database == str(tmp_path / "data" / "review.db")


def test_the_code_that_runs_has_a_name():
    assert code_version() == code_version() and code_version().strip("+")


def test_the_command_line_verifies_backs_up_and_restores(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settings(), "data_dir", tmp_path)
    store = Store.open()
    log(store, 5)
    assert main(["labels", "root"]) == 0
    root = capsys.readouterr().out
    assert json.loads(root) == {"count": 5, "sha256": store.root().sha256}
    (tmp_path / "root.json").write_text(root)
    assert main(["labels", "verify", "--root", str(tmp_path / "root.json")]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    assert main(["labels", "backup", str(tmp_path / "b")]) == 0
    edit(store, "UPDATE events SET who = 'Eve' WHERE number = 2")
    recompute(store)
    assert main(["labels", "verify"]) == 0
    assert main(["labels", "verify", "--root", str(tmp_path / "root.json")]) == 1
    assert main(["labels", "restore", str(tmp_path / "b")]) == 2
    assert "restore into an empty one" in capsys.readouterr().err
    monkeypatch.setattr(settings(), "database", f"sqlite:///{tmp_path / 'again.db'}")
    assert main(["labels", "restore", str(tmp_path / "b")]) == 0
    assert main(["labels", "verify", "--root", str(tmp_path / "root.json")]) == 0
    for content in ("{}", '{"count": "x", "sha256": 1}', "no json", '{"count": -1, "sha256": "a"}'):
        (tmp_path / "root.json").write_text(content)
        assert main(["labels", "verify", "--root", str(tmp_path / "root.json")]) == 2
    assert main(["labels", "verify", "--root", str(tmp_path / "nowhere")]) == 2
    store.close()
