"""Changes to a label store that are found against the root of its last export, in SQLite and in PostgreSQL, as JSON.

``python tests/measures/tampering.py [--times 50] [--items 40]``: a store with two queues, labels, decisions, flags, skips,
undos, imports and roles is exported, and the root read from the exported file. Then, so many times each at random places: an
edited event; a removed event, a cut tail and two reordered, each also with the whole chain and the tables beside it made
anew; an edit of any field with all of that made anew; a change of a value, a row less and a row more in each table beside the
chain; and, in SQLite, which lets them be, a value of another type in each column. Ends with 1 where one is not found, where the untouched store does not verify, or where a database is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sqlalchemy import Connection, text  # noqa: E402

from audit.records import caption_id  # noqa: E402
from audit.review.backup import follow  # noqa: E402
from audit.review.events import LABELS, START, EventKind, Root, canonical, chained  # noqa: E402
from audit.review.exchange import export_labels, import_labels, read_root  # noqa: E402
from audit.review.queue import Answer, Item, Queue, item_id  # noqa: E402
from audit.review.replay import Replay  # noqa: E402
from audit.review.roles import Person, Role  # noqa: E402
from audit.review.store import Store  # noqa: E402
from audit.review.verify import findings  # noqa: E402
from tests import postgresql  # noqa: E402

COLUMNS = ("kind", "who", "at", "subject", "body", "previous", "sha256")
TABLES = {
    "items": ("item_id", "queue", "place", "caption_id", "body", "queued", "answers", "disputed"),
    "answers": ("item_id", "who", "queue", "label", "at", "number"),
    "decisions": ("item_id", "who", "queue", "label", "at", "number"),
    "sent": ("answer_id", "number"),
    "roles": ("name", "role"),
}
"""Tables beside the chain, with the columns that follow from it: all but who holds an item until when."""
FORGET = "DELETE FROM items WHERE queued = :old AND :new = 0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--items", type=int, default=40)
    asked = parser.parse_args()
    if postgresql.programs() is None:
        print("PostgreSQL is not there; install Debian's package postgresql.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        found = {"sqlite": measure(f"sqlite:///{folder}/review.db", Path(folder), asked)}
    with postgresql.server() as server, tempfile.TemporaryDirectory() as folder:
        found["postgresql"] = measure(server.url, Path(folder), asked)
    print(json.dumps(found, indent=1))
    return 0 if all(each["sound"] for each in found.values()) else 1


def measure(url: str, folder: Path, asked: argparse.Namespace) -> dict[str, object]:
    draw, store = random.Random(0), Store.open(url)
    ann = review(store, folder, asked.items, draw)
    export_labels(store, ann, folder / "labels.parquet")
    root = read_root(folder / "labels.parquet")
    kinds = sorted({event.kind.value for event in store.events()})
    found: dict[str, str] = {}
    sound = store.verify(root) == []
    for name, change in (changes() | (other_types() if store.sqlite else {})).items():
        against, without = 0, 0
        for _ in range(asked.times):
            with store.engine.connect() as base:
                change(base, root, draw)
                against += bool(list(findings(base, root)))
                without += bool(list(findings(base, None)))
                base.rollback()
        found[name] = f"{against} of {asked.times} found, {without} of them without a root"
        sound &= against == asked.times and store.verify(root) == []
    store.close()
    return {"events": root.count, "kinds_of_events": kinds, "changes": found, "sound": sound}


def review(store: Store, folder: Path, items: int, draw: random.Random) -> Person:
    """A review with a bit of everything; the auditor."""
    ann = store.enter("Ann")
    store.give_role(ann, "Jo", Role.ADJUDICATOR)
    store.give_role(ann, "Rea", Role.READER)
    jo, people = store.enter("Jo"), [store.enter(name) for name in ("Bob", "Cat", "Dan")]
    for name in ("first", "second"):
        queue, texts = Queue(store, name), [f"{name} caption {i}" for i in range(items)]
        keys = [caption_id(caption) for caption in texts]
        queue.fill(
            ann,
            [
                Item(item_id(name, "r", key), name, "r", "/r", key, texts[place], place, "why", verdict="MV")
                for place, key in enumerate(keys)
            ],
        )
        for _ in range(items):
            for person in people:
                for item in queue.take(person):
                    turn = draw.random()
                    if turn < 0.1:
                        queue.skip(person, item.item_id, uuid.uuid4().hex)
                        continue
                    if turn < 0.3:
                        queue.flag(person, item.item_id, "look at the corner", uuid.uuid4().hex)
                    answer = Answer(uuid.uuid4().hex, draw.choice(LABELS[:3]), seed=3, image_id="p1")
                    queue.answer(person, item.item_id, answer)
                    if turn > 0.9:
                        queue.undo(person, uuid.uuid4().hex)
                    if turn > 0.95:
                        queue.unflag(person, item.item_id)
        queue.reopen(people[0])
        for case in queue.disagreements(jo)[::2]:
            queue.adjudicate(jo, case.item.item_id, Answer(uuid.uuid4().hex, draw.choice(LABELS)))
    queue.undo(jo)
    labels = folder / "labels.csv"
    labels.write_text(
        "caption,who,label\n" + "".join(f"{name} caption 1,Zoe,N\n" for name in ("first", "no"))
    )
    import_labels(store, ann, labels)
    with store.change() as change:
        change.append(EventKind.MASK_SAVED, ann.name, "template-p1", {"number": 1, "sha256": "a" * 64})
    store.remove_from_view(ann, "b" * 64, "asked for")
    store.append(EventKind.VIEWED, people[1], "exhibit 1", {"page": 1})
    return ann


Tampering = Callable[[Connection, Root, random.Random], None]


def changes() -> dict[str, Tampering]:
    """By name; each is made in a transaction that is rolled back."""
    chain: dict[str, Tampering] = {"an event edited": edited, "an event removed": removed}
    chain |= {"the tail cut off": cut, "two events reordered": reordered}
    anew = {
        f"{name}, all made anew": made_anew(change) for name, change in chain.items() if change is not edited
    }
    anew["an event edited, all made anew"] = made_anew(plausible)
    beside: dict[str, Tampering] = {}
    for table, columns in TABLES.items():
        for column in columns:
            beside[f"{table}.{column} changed"] = value(table, column)
        beside[f"a row of {table} removed"] = row_less(table, columns)
        beside[f"a row of {table} added"] = row_more(table, columns)
    return chain | anew | beside


def edited(base: Connection, root: Root, draw: random.Random) -> None:
    """One character of one field of one event."""
    number, name = draw.randint(1, root.count), draw.choice(COLUMNS)
    old = base.execute(text(f"SELECT {name} FROM events WHERE number = {number}")).scalar_one()
    base.execute(
        text(f"UPDATE events SET {name} = :new WHERE number = {number}"), {"new": another(old, draw)}
    )


def another(old: str, draw: random.Random) -> str:
    """A text that differs in one character."""
    place = draw.randrange(len(old))
    letter = draw.choice([each for each in "0123456789abcdefxyz" if each != old[place]])
    return old[:place] + letter + old[place + 1 :]


def plausible(base: Connection, root: Root, draw: random.Random) -> None:
    """Another time, name, subject, kind, or value in the body of one event, that is still one."""
    number, name = draw.randint(1, root.count), draw.choice(COLUMNS[:5])
    old = base.execute(text(f"SELECT {name} FROM events WHERE number = {number}")).scalar_one()
    if name == "kind":
        new = draw.choice([each.value for each in EventKind if each.value != old])
    elif name == "at":
        new = f"{old[:25]}{(int(old[25]) + 1) % 10}{old[26:]}"
    elif name == "body":
        body = json.loads(old)
        body[draw.choice(sorted(body))] = draw.choice([each for each in LABELS if each not in body.values()])
        new = canonical(body)
    else:
        new = another(old, draw)
    base.execute(text(f"UPDATE events SET {name} = :new WHERE number = {number}"), {"new": new})


def removed(base: Connection, root: Root, draw: random.Random) -> None:
    base.execute(text(f"DELETE FROM events WHERE number = {draw.randint(1, root.count)}"))


def cut(base: Connection, root: Root, draw: random.Random) -> None:
    """The last events of those that were exported, and all after them."""
    base.execute(text(f"DELETE FROM events WHERE number > {draw.randint(0, root.count - 1)}"))


def reordered(base: Connection, root: Root, draw: random.Random) -> None:
    first, second = draw.sample(range(1, root.count + 1), 2)
    for old, new in ((first, -1), (second, first), (-1, second)):
        base.execute(text(f"UPDATE events SET number = {new} WHERE number = {old}"))


def made_anew(change: Tampering) -> Tampering:
    """A change after which every number and hash is right, the end of the chain too, and each table follows from it."""

    def all_of_it(base: Connection, root: Root, draw: random.Random) -> None:
        change(base, root, draw)
        rows = base.execute(
            text("SELECT number, kind, who, at, subject, body FROM events ORDER BY number")
        ).all()
        previous, anew = START, dict[int, tuple[int, str]]()
        for number, (old, kind, who, at, subject, body) in enumerate(rows, 1):
            said = json.loads(body)
            if kind == EventKind.UNDONE and said.get("undoes") in anew:
                said["undoes"], said["undoes_sha256"] = anew[said["undoes"]]
            row = {"body": canonical(said), "number": number, "previous": previous}
            previous = row["sha256"] = chained(number, kind, who, at, subject, row["body"], previous)
            anew[old] = number, previous
            base.execute(
                text(
                    "UPDATE events SET number = :number, body = :body, previous = :previous, sha256 = :sha256 "
                    "WHERE number = :old"
                ),
                row | {"old": old},
            )
        base.execute(
            text("UPDATE head SET count = :count, sha256 = :sha256"), {"count": len(rows), "sha256": previous}
        )
        for old in sorted(base.execute(text("SELECT DISTINCT queued FROM items")).scalars()):
            move = "UPDATE items SET queued = :new WHERE queued = :old" if old in anew else FORGET
            base.execute(text(move), {"new": anew.get(old, (0, ""))[0], "old": old})
        with contextlib.suppress(KeyError, TypeError, ValueError):  # what follows from nonsense is nothing
            replay = Replay.of(base)
            for table in ("answers", "decisions", "sent", "roles"):
                base.execute(text(f"DELETE FROM {table}"))
            follow(base, replay)

    return all_of_it


def value(table: str, column: str) -> Tampering:
    """One value of one row."""

    def change(base: Connection, root: Root, draw: random.Random) -> None:
        row = some_row(base, table, (TABLES[table][0], column), draw)
        old = row[1]
        new = another(old, draw) if isinstance(old, str) and old else "x" if old == "" else old + 1
        base.execute(
            text(f"UPDATE {table} SET {column} = :new WHERE {TABLES[table][0]} = :key AND {column} = :old"),
            {"new": new, "old": old, "key": row[0]},
        )

    return change


def other_types() -> dict[str, Tampering]:
    """The same letters or digits as bytes; the number of an event is SQLite's own, and always one."""
    columns = {"events": ("number", *COLUMNS), "head": ("one", "count", "sha256"), **TABLES}
    return {
        f"{table}.{column} of another type": other_type(table, names[0], column)
        for table, names in columns.items()
        for column in names
        if column not in ("number", "one") or table in TABLES
    }


def other_type(table: str, key: str, column: str) -> Tampering:
    def change(base: Connection, root: Root, draw: random.Random) -> None:
        row = some_row(base, table, (key, column), draw, key)
        base.execute(
            text(
                f"UPDATE {table} SET {column} = CAST({column} AS BLOB) WHERE {key} = :key AND {column} = :old"
            ),
            {"key": row[0], "old": row[1]},
        )

    return change


def row_less(table: str, columns: tuple[str, ...]) -> Tampering:
    def change(base: Connection, root: Root, draw: random.Random) -> None:
        row = some_row(base, table, columns, draw)
        same = " AND ".join(f"{name} = :{name}" for name in columns)
        base.execute(text(f"DELETE FROM {table} WHERE {same}"), dict(zip(columns, row, strict=True)))

    return change


def row_more(table: str, columns: tuple[str, ...]) -> Tampering:
    """One that is there already, under another key."""

    def change(base: Connection, root: Root, draw: random.Random) -> None:
        row = dict(zip(columns, some_row(base, table, columns, draw), strict=True))
        row[columns[0]] = another(row[columns[0]], draw)
        names = ", ".join(f":{name}" for name in columns)
        base.execute(text(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({names})"), row)

    return change


def some_row(base: Connection, table: str, columns: tuple[str, ...], draw: random.Random, key: str = ""):
    order = key or TABLES[table][0]
    rows = base.execute(text(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}")).all()
    return draw.choice(rows)


if __name__ == "__main__":
    sys.exit(main())
