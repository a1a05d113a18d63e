"""The whole label store as one file, and back, also from SQLite to PostgreSQL and the other way.

The file is JSON lines, compressed by zstd: what it is and the root of its chain, each event as it is stored, each item,
and a last line without which it was cut. What follows from the events is made anew from them; leases are left out.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, text

from audit.errors import InputError
from audit.files import replace_file
from audit.review.events import Root
from audit.review.replay import HELD, SETTLE, Replay
from audit.review.roles import Action, Person
from audit.review.rows import BLOCK, FIELDS, as_event, streamed
from audit.review.store import Store, root_of
from audit.review.verify import findings

FORMAT = {"format": "verbatim labels", "version": 1}
ITEM_FIELDS = "item_id, queue, place, caption_id, body, queued"
LONGEST_LINE = 8_000_000
"""Characters: an event's largest body, and what JSON makes of it."""


def backup(store: Store, person: Person, path: Path) -> Root:
    """Write all of a store into one file, as it is at one instant; the root of its chain."""
    with store.read(person, Action.SEE_LABELS, still=True) as base:
        root = root_of(base)

        def write(partial: Path) -> None:
            with (
                pa.CompressedOutputStream(str(partial), "zstd") as packed,
                io.TextIOWrapper(packed, encoding="ascii") as out,
            ):
                for line in lines(base, root):
                    out.write(json.dumps(line) + "\n")

        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    return root


def lines(base: Connection, root: Root) -> Iterator[dict[str, Any] | list[Any]]:
    """Everything that a back-up holds, in order."""
    yield {**FORMAT, "count": root.count, "sha256": root.sha256}
    for row in streamed(base, f"SELECT {FIELDS} FROM events ORDER BY number"):
        yield ["event", *row]
    items = 0
    for row in streamed(base, f"SELECT {ITEM_FIELDS} FROM items ORDER BY item_id"):
        items += 1
        yield ["item", *row]
    yield ["end", items]


def restore(path: Path, url: str = "") -> Root:
    """Read a back-up into an empty store, all of it or nothing; the root of its chain.

    Raises
    ------
    InputError
        If the store holds anything, if the file is no whole back-up, or if its chain does not verify.
    """
    store = Store.open(url)
    try:
        with store.change() as change:
            if change.head.count:
                raise InputError(
                    f"The label store holds {change.head.count:,} events already; restore into an empty one: name "
                    "another with VERBATIM_DATABASE, or move its file away."
                )
            found = read(change.base, path)
            wrong = next(findings(change.base, found), None)
            if wrong is not None:
                raise InputError(
                    f"{path} was changed after it was written, and was not restored. {wrong.sentence}"
                )
        return found
    finally:
        store.close()


def read(base: Connection, path: Path) -> Root:
    """Fill the tables of an empty store with what a file holds; the root that it names."""
    replay, items = Replay(), 0
    found = content(path)
    try:
        first = next(found)
        if {name: first[name] for name in FORMAT} != FORMAT:
            raise InputError(
                f"{path} has a form that this Verbatim does not know; use the one that wrote it."
            )
        root = Root(int(first["count"]), str(first["sha256"]))
        for block in blocks(found):
            events = [line[1:] for line in block if line[0] == "event"]
            for row in events:
                replay.take(as_event(row))
            insert(base, "events", FIELDS, events)
            rows = [line[1:] for line in block if line[0] == "item"]
            insert(base, "items", ITEM_FIELDS, [[*row, 0, 0] for row in rows], ", answers, disputed")
            items += len(rows)
            if block[-1][0] == "end":
                break
        else:
            raise ValueError("its end is missing")
        if block[-1][1] != items:
            raise ValueError("items are missing")
    except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no back-up of labels, or not a whole one ({error}).") from error
    base.execute(
        text("UPDATE head SET count = :count, sha256 = :sha256"), {"count": root.count, "sha256": root.sha256}
    )
    follow(base, replay)
    return root


def content(path: Path) -> Iterator[Any]:
    """The lines of a back-up, as JSON."""
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path.")
    with (
        pa.CompressedInputStream(str(path), "zstd") as packed,
        io.TextIOWrapper(packed, encoding="ascii") as stream,
    ):
        while line := stream.readline(LONGEST_LINE):
            yield json.loads(line)


def blocks(lines: Iterator[Any]) -> Iterator[list[Any]]:
    """So many lines at once as are written at once."""
    while block := list(itertools.islice(lines, BLOCK)):
        yield block


def insert(base: Connection, table: str, names: str, rows: Sequence[Sequence[Any]], more: str = "") -> None:
    columns = [name.strip() for name in f"{names}{more}".split(",")]
    if rows:
        values = ", ".join(f":{name}" for name in columns)
        base.execute(
            text(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"),
            [dict(zip(columns, row, strict=True)) for row in rows],
        )


def follow(base: Connection, replay: Replay) -> None:
    """Make the tables beside the chain that follow from its events."""
    for table, rows in (("answers", replay.answer_rows()), ("decisions", replay.decision_rows())):
        insert(base, table, ", ".join(HELD), [[row[name] for name in HELD] for row in rows])
    insert(base, "roles", "name, role", list(replay.roles.items()))
    insert(base, "sent", "answer_id, number", list(replay.sent.items()))
    base.execute(text(SETTLE))
