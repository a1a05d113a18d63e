"""Roles: each role and each action, tried below the pages, as the table says."""

import contextlib
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.errors import InputError
from audit.records import Template, caption_id
from audit.review.backup import backup
from audit.review.events import EventKind
from audit.review.exchange import export_labels, import_labels
from audit.review.masks import save_mask
from audit.review.queue import Answer, Item, Queue, item_id
from audit.review.reference import export_reference, import_reference
from audit.review.roles import ALLOWED, NEEDS, Action, Person, Refused, Role
from audit.review.store import Store
from audit.review.trail import Asked, everybody, export_trail, found
from audit.settings import settings
from audit.verbatim.editing import Edit, Tool
from audit.verbatim.templates import TemplateLibrary

TABLE = """
                auditor adjudicator annotator reader
READ            yes     yes         yes       yes
SEE_LABELS      yes     yes         no        yes
LABEL           yes     yes         yes       no
EDIT_MASK       yes     yes         yes       no
ADJUDICATE      yes     yes         no        no
FILL            yes     no          no        no
IMPORT          yes     no          no        no
HIDE            yes     no          no        no
GIVE_ROLE       yes     no          no        no
GIVE_ACCESS     yes     no          no        no
SEE_TRAIL       yes     no          no        no
LOG             yes     yes         yes       yes
"""
HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
CELLS = [
    (Role(role), Action[name], said == "yes")
    for name, *cells in ROWS
    for role, said in zip(HEADER, cells, strict=True)
]
BOSS = Person("Boss", Role.AUDITOR)


def make_items(first, count):
    texts = [f"caption {i}" for i in range(first, first + count)]
    return [
        Item(item_id("q", "r", caption_id(t)), "q", "r", "/r", caption_id(t), t, place, "because")
        for place, t in enumerate(texts, first)
    ]


def say(label):
    return Answer(uuid.uuid4().hex, label)


class Scene:
    """A store with a queue, in which one item waits for an adjudicator."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "came.csv").write_text("caption,who,label\ncaption 1,Zoe,MV\n")
        truth = pa.table({"caption": ["caption 1"], "overfit_type": ["MV"]})
        pq.write_table(truth, folder / "truth.parquet")
        self.store = Store.open(f"sqlite:///{folder / 'review.db'}")
        self.store.enter("Boss")
        self.queue = Queue(self.store, "q")
        self.queue.fill(BOSS, make_items(0, 5))
        for name, label in (("Bob", "MV"), ("Cat", "TV")):
            person = Person(name, Role.ANNOTATOR)
            (item,) = self.queue.take(person)
            self.queue.answer(person, item.item_id, say(label))
        self.disputed = item.item_id

    def held(self, person):
        """An item in that person's hands, whether or not they may have it."""
        table = self.queue.decisions(BOSS)
        names = table.loc[table["status"] == "open", "item_id"]
        name = next(name for name in names if self.queue.own_label(person, name) is None)
        with self.store.change() as change:
            change.base.exec_driver_sql(
                "UPDATE items SET leased_by = ?, leased_until = 9e9 WHERE item_id = ?", (person.name, name)
            )
        return name

    def edit_mask(self, person):
        image = np.random.default_rng(0).random((256, 256, 3), dtype=np.float32)
        library = TemplateLibrary((Template("t", image, np.ones((256, 256), bool), ("a",), "a"),))
        edits = [Edit(Tool.RECTANGLE, False, ((0, 0), (64, 64)))]
        folder = self.folder / "versions"
        save_mask(self.store, person, library, folder, "t", edits, number=0, answer_id=uuid.uuid4().hex)

    def calls(self, person, action):
        """Everything that asks for the action."""
        store, queue = self.store, self.queue
        by_event = [
            lambda kind=kind: store.append(kind, person, "a" * 64, {"annotator": "x"})
            for kind, needed in NEEDS.items()
            if needed is action
        ]
        return by_event + {
            Action.READ: [
                lambda: queue.progress(person),
                lambda: queue.others(person, self.disputed),
                lambda: queue.own_label(person, self.disputed),
            ],
            Action.SEE_LABELS: [
                lambda: queue.flags(person),
                lambda: store.labels(person),
                lambda: queue.decisions(person),
                lambda: backup(store, person, self.folder / "labels.backup", self.folder / "masks"),
                lambda: export_labels(store, person, self.folder / "labels.csv"),
                lambda: export_reference(store, person, self.folder / "out.parquet"),
            ],
            Action.SEE_TRAIL: [
                lambda: found(store, person, Asked(), 0, 10),
                lambda: everybody(store, person),
                lambda: export_trail(store, person, self.folder / "trail.jsonl"),
            ],
            Action.LABEL: [
                lambda: queue.take(person),
                lambda: queue.give_back(person),
                lambda: queue.answer(person, self.held(person), say("MV")),
                lambda: queue.skip(person, self.held(person)),
                lambda: queue.reopen(person),
                lambda: queue.undo(person),
                lambda: queue.flag(person, self.disputed, "note"),
                lambda: queue.unflag(person, self.disputed),
                lambda: queue.own_flags(person),
            ],
            Action.ADJUDICATE: [
                lambda: queue.disagreements(person),
                lambda: queue.adjudicate(person, self.disputed, say("MV")),
            ],
            Action.EDIT_MASK: [lambda: self.edit_mask(person)],
            Action.IMPORT: [
                lambda: import_labels(store, person, self.folder / "came.csv"),
                lambda: import_reference(store, person, self.folder / "truth.parquet"),
            ],
            Action.FILL: [lambda: queue.fill(person, make_items(5, 1))],
            Action.HIDE: [
                lambda: store.remove_from_view(person, "a" * 64, "asked for"),
                lambda: store.restore_to_view(person, "a" * 64, "asked for"),
            ],
            Action.GIVE_ROLE: [lambda: store.give_role(person, "Eve", Role.ANNOTATOR)],
        }.get(action, [])


def test_the_table_is_whole():
    assert {(role, action) for role, action, _ in CELLS} == {(r, a) for r in Role for a in Action}
    assert len(CELLS) == len(Role) * len(Action)
    assert {(r, a) for r, a, said in CELLS if said} == {(r, a) for r in Role for a in ALLOWED[r]}


@pytest.mark.parametrize(("role", "action", "allowed"), CELLS, ids=str)
def test_each_role_and_action(tmp_path, role, action, allowed):
    scene = Scene(tmp_path)
    scene.store.give_role(BOSS, "Pat", role)
    person = Person("Pat", role)
    calls = scene.calls(person, action)
    assert calls, f"nothing asks for {action.name}"
    for call in calls:
        if allowed:
            call()
            continue
        before = scene.store.root()
        with pytest.raises(Refused, match=f"The role {role.value} may not {action.value}"):
            call()
        assert scene.store.root() == before
    assert scene.store.verify() == []
    scene.store.close()


def test_a_reader_changes_nothing_but_the_trail_of_what_was_looked_at(tmp_path):
    """Whatever can be called with a person: after a reader has tried all of it, only the trail has grown."""
    scene, reader = Scene(tmp_path), Person("Rae", Role.READER)
    scene.store.give_role(BOSS, "Rae", Role.READER)
    with scene.store.read() as base:
        before = {
            name: base.exec_driver_sql(f"SELECT * FROM {name}").all()
            for name in ("items", "answers", "roles", "sent")
        }
    events = scene.store.root().count
    for action in Action:
        if action is Action.LABEL:
            scene.held = lambda person: scene.disputed
        for call in scene.calls(reader, action):
            with contextlib.suppress(Refused):
                call()
    with scene.store.read() as base:
        assert before == {name: base.exec_driver_sql(f"SELECT * FROM {name}").all() for name in before}
    grown = list(scene.store.events(after=events))
    assert {event.kind for event in grown} == {kind for kind, needed in NEEDS.items() if needed is Action.LOG}
    scene.store.close()


def test_the_role_that_counts_is_the_one_in_the_store(tmp_path):
    """Not the one that somebody had when their page was opened, nor one that a caller says they have."""
    scene = Scene(tmp_path)
    zoe = scene.store.enter("Zoe")
    (item,) = scene.queue.take(zoe)
    scene.store.give_role(BOSS, "Zoe", Role.READER)
    before = scene.store.root()
    for action in Action:
        if action in ALLOWED[Role.ANNOTATOR] - ALLOWED[Role.READER]:
            for call in scene.calls(zoe, action):
                with pytest.raises(Refused, match="The role reader may not"):
                    call()
    with pytest.raises(Refused):
        scene.queue.answer(zoe, item.item_id, say("MV"))
    with pytest.raises(Refused):
        scene.store.give_role(Person("Zoe", Role.AUDITOR), "Eve", Role.AUDITOR)
    assert scene.store.root() == before and "Eve" not in scene.store.roles()
    scene.store.give_role(BOSS, "Zoe", Role.ANNOTATOR)
    scene.queue.answer(zoe, item.item_id, say("MV"))
    scene.store.close()


def test_who_logged_in_has_the_role_of_the_settings_in_each_transaction(tmp_path, monkeypatch):
    scene = Scene(tmp_path)
    eve = Person("eve@example.org", Role.ANNOTATOR, signed_in=True)
    with pytest.raises(Refused, match="The role reader may not label"):
        scene.queue.take(eve)
    monkeypatch.setattr(settings(), "roles", {"Eve@example.org": "annotator"})
    assert scene.queue.take(eve)
    scene.store.give_role(BOSS, "eve@example.org", Role.AUDITOR)
    with pytest.raises(Refused, match="The role annotator may not fill"):
        scene.queue.fill(eve, make_items(5, 1))
    # a name that is only said to be that of a login has nothing of it
    monkeypatch.setattr(settings(), "roles", {"dan@example.org": "auditor"})
    with pytest.raises(Refused, match="The role annotator may not fill"):
        scene.queue.fill(Person("dan@example.org", Role.AUDITOR), make_items(5, 1))
    scene.store.close()


@pytest.mark.parametrize("kind", [kind for kind in EventKind if kind not in NEEDS])
def test_what_changes_a_queue_is_no_event_by_itself(tmp_path, kind):
    store = Store.open(f"sqlite:///{tmp_path / 'review.db'}")
    with pytest.raises(Refused, match="never by itself"):
        store.append(kind, BOSS, "x", {"queue": "q", "label": "MV"})
    assert store.root().count == 0
    store.close()


def test_who_comes_first_runs_it(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'review.db'}")
    assert store.enter("  Ann   B ") == Person("Ann B", Role.AUDITOR)
    assert store.enter("Ann B").role is Role.AUDITOR and store.enter("Bob").role is Role.ANNOTATOR
    store.give_role(store.enter("Ann B"), "Bob", Role.READER)
    assert store.enter("Bob").role is Role.READER
    with pytest.raises(Refused, match="only auditor"):
        store.give_role(store.enter("Ann B"), "Ann B", Role.READER)
    store.give_role(store.enter("Ann B"), "Bob", Role.AUDITOR)
    store.give_role(store.enter("Ann B"), "Ann B", Role.READER)
    assert store.roles() == {"Ann B": Role.READER, "Bob": Role.AUDITOR}
    assert [(e.who, e.subject, e.body["role"]) for e in store.events([EventKind.ROLE_GIVEN])] == [
        ("verbatim", "Ann B", "auditor"),
        ("Ann B", "Bob", "reader"),
        ("Ann B", "Bob", "auditor"),
        ("Ann B", "Ann B", "reader"),
    ]
    for name in ("", " \n ", "a\x00b", "x" * 81, "a\ud800"):
        with pytest.raises(InputError, match="no name"):
            store.enter(name)
    store.close()


def test_who_logs_in_is_a_reader_unless_told_otherwise(tmp_path, monkeypatch):
    store = Store.open(f"sqlite:///{tmp_path / 'review.db'}")
    assert store.enter("eve@example.org", signed_in=True).role is Role.READER, "also the first one"
    assert store.root().count == 0
    monkeypatch.setattr(settings(), "roles", {"Ann@Example.org": "auditor"})
    ann = store.enter("ANN@example.org", signed_in=True)
    assert ann == Person("ann@example.org", Role.AUDITOR, signed_in=True)
    store.give_role(ann, "eve@example.org", Role.ADJUDICATOR)
    assert store.enter("Eve@example.org", signed_in=True).role is Role.ADJUDICATOR
    monkeypatch.setattr(settings(), "roles", {"eve@example.org": "annotator"})
    assert store.enter("eve@example.org", signed_in=True).role is Role.ANNOTATOR
    store.close()
