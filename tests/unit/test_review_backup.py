"""Back-ups: one file, restored whole into either database, or not at all."""

import io
import json
import uuid

import numpy as np
import pyarrow as pa
import pytest

from audit.errors import InputError
from audit.records import Template, caption_id
from audit.review.backup import backup, restore
from audit.review.events import EventKind
from audit.review.masks import save_mask
from audit.review.queue import Answer, Item, Queue, item_id
from audit.review.roles import Person, Role
from audit.review.store import Store
from audit.verbatim.editing import Edit, Tool
from audit.verbatim.templates import TemplateLibrary

AUDITOR = Person("Ann", Role.AUDITOR)
BOB, CAT = Person("Bob", Role.ANNOTATOR), Person("Çat", Role.ANNOTATOR)
TABLES = ("events", "head", "answers", "decisions", "sent", "roles", "items")


def fill_store(store):
    """A bit of everything."""
    assert store.enter("Ann").role is Role.AUDITOR
    store.give_role(AUDITOR, "Jo", Role.ADJUDICATOR)
    queue = Queue(store, "q")
    texts = [f"caption {i} \x00 \ud800 '" for i in range(9)]
    queue.fill(
        AUDITOR,
        [
            Item(item_id("q", "r", caption_id(t)), "q", "r", "/r", caption_id(t), t, place, "because")
            for place, t in enumerate(texts)
        ],
    )

    def say(person, label):
        (item,) = queue.take(person)
        queue.answer(person, item.item_id, Answer(uuid.uuid4().hex, label, seconds=0.1, seed=2**62))
        return item.item_id

    first = say(BOB, "MV")
    say(CAT, "TV")
    queue.adjudicate(AUDITOR, first, Answer(uuid.uuid4().hex, "TV"))
    say(BOB, "MV")
    say(CAT, "N")
    say(BOB, "N")
    queue.undo(BOB)
    queue.skip(BOB, queue.take(BOB)[0].item_id)
    queue.flag(BOB, first, "a note")
    store.remove_from_view(AUDITOR, "a" * 64, "asked for")
    store.append(EventKind.VIEWED, CAT, "exhibit 1", {"n": 0.1})
    return queue


def tables(store):
    """All rows of all tables, without leases."""
    with store.read() as base:
        found = {}
        for name in TABLES:
            rows = base.exec_driver_sql(f"SELECT * FROM {name}").mappings().all()
            rows = [
                {key: value for key, value in row.items() if not key.startswith("leased")} for row in rows
            ]
            found[name] = sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
        return found


@pytest.fixture
def store(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'review.db'}")
    yield store
    store.close()


def test_what_is_restored_is_equal(store, tmp_path):
    queue = fill_store(store)
    assert store.verify() == []
    path = tmp_path / "deep" / "labels.backup"
    root = backup(store, AUDITOR, path, tmp_path / "masks")
    assert root == store.root()
    url = f"sqlite:///{tmp_path / 'again.db'}"
    assert restore(path, tmp_path / "masks", url) == root
    again = Store.open(url)
    assert tables(again) == tables(store) and again.verify(root) == []
    assert again.labels(AUDITOR).equals(store.labels(AUDITOR))
    assert Queue(again, "q").decisions(AUDITOR).equals(queue.decisions(AUDITOR))
    assert again.hidden() == {"a" * 64} and again.roles() == {"Ann": Role.AUDITOR, "Jo": Role.ADJUDICATOR}
    Queue(again, "q").answer(
        BOB, Queue(again, "q").take(BOB)[0].item_id, Answer(uuid.uuid4().hex, "N")
    )  # and it goes on
    assert again.verify(root) == []
    again.close()


def test_masks_go_with_it_and_never_over_others(store, tmp_path):
    fill_store(store)
    image = np.random.default_rng(0).random((256, 256, 3), dtype=np.float32)
    library = TemplateLibrary((Template("t", image, np.ones((256, 256), bool), ("a",), "a"),))
    edits = [Edit(Tool.RECTANGLE, False, ((0, 0), (64, 64)))]
    said = {"number": 0, "answer_id": "answer-1"}
    save_mask(store, BOB, library, tmp_path / "masks", "t", edits, **said)
    (written,) = (tmp_path / "masks").rglob("*.json")
    root = backup(store, AUDITOR, tmp_path / "b", tmp_path / "masks")
    restore(tmp_path / "b", tmp_path / "there", f"sqlite:///{tmp_path / 'again.db'}")
    (there,) = (tmp_path / "there").rglob("*.json")
    assert there.relative_to(tmp_path / "there") == written.relative_to(tmp_path / "masks")
    assert there.read_bytes() == written.read_bytes()
    assert restore(tmp_path / "b", tmp_path / "there", f"sqlite:///{tmp_path / 'third.db'}") == root
    there.write_text("another")
    with pytest.raises(InputError, match="another version of a mask"):
        restore(tmp_path / "b", tmp_path / "there", f"sqlite:///{tmp_path / 'fourth.db'}")
    assert there.read_text() == "another"
    fourth = Store.open(f"sqlite:///{tmp_path / 'fourth.db'}")
    assert fourth.root().count == 0
    fourth.close()
    lines = [line for line in unpacked(tmp_path / "b") if not line.startswith('["mask"')]
    packed(tmp_path / "old", [lines[0].replace('"version": 2', '"version": 1'), *lines[1:]])
    assert restore(tmp_path / "old", tmp_path / "x", f"sqlite:///{tmp_path / 'fifth.db'}") == root


def test_an_empty_store_too(store, tmp_path):
    backup(store, Person("rea@example.org", Role.READER, signed_in=True), tmp_path / "b", tmp_path / "masks")
    assert restore(tmp_path / "b", tmp_path / "masks", f"sqlite:///{tmp_path / 'again.db'}").count == 0


def test_never_over_what_is_there(store, tmp_path):
    fill_store(store)
    backup(store, AUDITOR, tmp_path / "b", tmp_path / "masks")
    before = tables(store)
    with pytest.raises(InputError, match="restore into an empty one"):
        restore(tmp_path / "b", tmp_path / "masks", f"sqlite:///{tmp_path / 'review.db'}")
    assert tables(store) == before


def unpacked(path):
    with pa.CompressedInputStream(str(path), "zstd") as stream:
        return stream.read().decode().splitlines()


def packed(path, lines):
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def edited(line):
    """Another label in an event, or another gold label in an item, in the JSON within the JSON."""
    return line.replace('\\"label\\":\\"MV\\"', '\\"label\\":\\"RV\\"').replace(
        '\\"gold\\":\\"\\"', '\\"gold\\":\\"N\\"'
    )


def test_what_was_changed_or_cut_is_refused_whole(store, tmp_path):
    fill_store(store)
    backup(store, AUDITOR, tmp_path / "b", tmp_path / "masks")
    lines = unpacked(tmp_path / "b")
    label = next(i for i, line in enumerate(lines) if edited(line) != line and '"event"' in line)
    item = next(i for i, line in enumerate(lines) if edited(line) != line and '"item"' in line)
    changes = {
        "cut": lines[:-1],
        "cut in the middle": lines[: label + 1],
        "an event removed": lines[:label] + lines[label + 1 :],
        "an event edited": [edited(line) if i == label else line for i, line in enumerate(lines)],
        "an item edited": [edited(line) if i == item else line for i, line in enumerate(lines)],
        "an item removed": lines[:item] + lines[item + 1 :],
        "two reordered": [
            *lines[:2],
            lines[2].replace("2,", "3,", 1),
            lines[3].replace("3,", "2,", 1),
            *lines[4:],
        ],
        "another root": [lines[0].replace('"sha256": "', '"sha256": "0')[:-2] + "}", *lines[1:]],
        "a newer form": [lines[0].replace('"version": 2', '"version": 3'), *lines[1:]],
        "a mask of nowhere": [*lines[:-1], json.dumps(["mask", "../x.json", "{}"]), lines[-1]],
        "nothing": [],
        "no back-up": ["[1]", "{}"],
    }
    for name, changed in changes.items():
        assert changed != lines, name
        packed(tmp_path / "changed", changed)
        url = f"sqlite:///{tmp_path / name}.db"
        with pytest.raises(InputError):
            restore(tmp_path / "changed", tmp_path / "masks", url)
        empty = Store.open(url)
        assert not any(rows for table, rows in tables(empty).items() if table != "head"), name
        assert empty.root().count == 0
        empty.close()
    (tmp_path / "changed").write_bytes((tmp_path / "b").read_bytes()[:200])
    for path in (tmp_path / "changed", tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError):
            restore(path, tmp_path / "masks", f"sqlite:///{tmp_path / 'last.db'}")


def test_a_back_up_is_written_whole_or_not_at_all(store, tmp_path, monkeypatch):
    fill_store(store)
    backup(store, AUDITOR, tmp_path / "b", tmp_path / "masks")
    before = (tmp_path / "b").read_bytes()
    monkeypatch.setattr(io, "TextIOWrapper", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        backup(store, AUDITOR, tmp_path / "b", tmp_path / "masks")
    assert (tmp_path / "b").read_bytes() == before and not list(tmp_path.glob("*.partial"))
