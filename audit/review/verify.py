"""Whether a store is what was written: its chain, its items, and what follows from them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from audit.errors import InputError
from audit.review.events import START, EventKind, Finding, Root, chained
from audit.review.replay import HELD, UNSETTLED, Replay, held_row, items_sha256
from audit.review.rows import FIELDS, as_event, streamed

EVENT = (int, *[str] * 7)
"""Types of an event's columns: SQLite's own columns hold anything."""
ITEM = (int, str, int, str, str, str)
"""Of an item's that its filling tells of."""


def read_root(path: Path) -> Root:
    """A root that was kept in a file, as ``labels root`` prints it."""
    try:
        return parse_root(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no root; give what `python -m audit labels root` printed.") from error


def parse_root(text: str, name: str) -> Root:
    """A root that was kept, as ``labels root`` prints it; `name` is what it is called in an error."""
    try:
        said = json.loads(text)
        root = Root(said["count"], said["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{name} is no root; give what `python -m audit labels root` printed.") from error
    if type(root.count) is not int or root.count < 0 or not re.fullmatch("[0-9a-f]{64}", str(root.sha256)):
        raise InputError(f"{name} holds no count and sha256 of a chain of events.")
    return root


def findings(base: Connection, root: Root | None) -> Iterator[Finding]:
    """Everything that is wrong, in the order of the events; `base` has to see one state of the store."""
    replay, queued = Replay(), dict[int, tuple[str, str]]()
    heads = base.execute(text("SELECT count, sha256 FROM head")).all()
    head = Root(*heads[0]) if [_types(row) for row in heads] == [(int, str)] else None
    damaged = head is None
    if damaged:
        yield Finding(0, "What the store says of how many events it has, and of the last one, was changed.")
    for finding in chain(base, head, root, replay, queued):
        damaged = True
        yield finding
    if not damaged:  # else they say the same once more
        yield from items(base, queued)
        yield from state(base, replay)


def chain(
    base: Connection, head: Root | None, root: Root | None, replay: Replay, queued: dict[int, tuple[str, str]]
) -> Iterator[Finding]:
    """What is wrong with the events; fills `replay`, and `queued` with the queue and the hash of each filling.

    `head` is None where the store does not say what it is.
    """
    number, previous, at_root = 0, START, root is None or root == Root(0, START)
    for row in streamed(base, f"SELECT {FIELDS} FROM events ORDER BY number"):
        if row[0] != number + 1:
            yield Finding(
                number + 1,
                f"Event {number + 1} is missing."
                if row[0] == number + 2
                else f"Events {number + 1} to {row[0] - 1} are missing.",
            )
        elif row[6] != previous:
            yield Finding(
                row[0],
                f"Event {row[0]} does not follow the one before it: events were removed, put in or reordered.",
            )
        if _types(row) != EVENT:
            yield Finding(
                row[0], f"Event {row[0]} was changed after it was written: one of its fields is no text."
            )
        elif chained(row[0], row[1], row[2], row[3], row[4], row[5], row[6]) != row[7]:
            yield Finding(row[0], f"Event {row[0]} was changed after it was written: its hash is another.")
        else:
            try:
                event = as_event(row)
                replay.take(event)
                if event.number in replay.undoable:
                    held_row(event)
                if event.kind is EventKind.QUEUED:
                    queued[event.number] = event.subject, event.body["items_sha256"]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                yield Finding(row[0], f"Event {row[0]} is none that Verbatim writes.")
        number, previous = row[0], row[7]
        if root is not None and number == root.count:
            at_root = previous == root.sha256
    if head is not None and number != head.count:
        yield Finding(
            min(number, head.count) + 1,
            f"The store says that it has {head.count:,} events and has {number:,}: its end was cut off or added to.",
        )
    elif head is not None and previous != head.sha256:
        yield Finding(number, "The last event is not the one that the store was left with.")
    if root is not None and number < root.count:
        yield Finding(
            number + 1,
            f"The root was taken of {root.count:,} events and there are {number:,}: the end was cut off.",
        )
    elif root is not None and not at_root:
        yield Finding(
            0,
            f"The first {root.count:,} events are not those that the root was taken of: one was changed and the "
            "chain computed anew, or it is the root of another store.",
        )


def items(base: Connection, queued: dict[int, tuple[str, str]]) -> Iterator[Finding]:
    """Fillings whose items are not what was put in, or stand in another queue or under another caption."""
    rows = streamed(
        base, "SELECT queued, item_id, place, body, queue, caption_id FROM items ORDER BY queued, item_id"
    )
    found: dict[int, list[tuple[str, int, str]]] = {}
    columns: dict[int, list[tuple[str, str]]] = {}
    for row in rows:
        if _types(row) != ITEM:
            number = row[0] if type(row[0]) is int else 0
            yield Finding(number, "An item was changed: one of its columns is of another type.")
            continue
        number, *item, queue, caption = row
        found.setdefault(number, []).append((item[0], item[1], item[2]))
        columns.setdefault(number, []).append((queue, caption))
    for number in sorted({*found, *queued}):
        put_in, (queue, sha256) = found.get(number, []), queued.get(number, ("", ""))
        # Databases order texts by their own rules; ids are hex digits, and so in one order everywhere.
        if items_sha256(put_in) != sha256 or columns.get(number, []) != [
            (queue, _caption(body)) for _, _, body in put_in
        ]:
            yield Finding(number, f"Items that event {number} put into a queue are not what was put in.")


def state(base: Connection, replay: Replay) -> Iterator[Finding]:
    """Tables beside the chain that say other than the events."""
    for table, rows in (("answers", replay.answer_rows()), ("decisions", replay.decision_rows())):
        expected = {tuple(row[name] for name in HELD) for row in rows}
        there = {tuple(row) for row in base.execute(text(f"SELECT {', '.join(HELD)} FROM {table}"))}
        if there != expected:
            numbers = [row[HELD.index("number")] for row in there ^ expected]
            number = min((each for each in numbers if type(each) is int), default=0)
            yield Finding(
                number, f"The table {table} says other than the events, first about event {number}."
            )
    if dict(base.execute(text("SELECT name, role FROM roles")).all()) != replay.roles:
        yield Finding(0, "The table roles says other than the events.")
    if dict(base.execute(text("SELECT answer_id, number FROM sent")).all()) != replay.sent:
        yield Finding(0, "The table sent says other than the events.")
    wrong = base.execute(UNSETTLED).scalar_one()
    if wrong:
        yield Finding(0, f"{wrong:,} items are counted otherwise than their answers are.")


def _types(row: Sequence[Any]) -> tuple[type, ...]:
    return tuple(map(type, row))


def _caption(body: str) -> Any:
    """The caption that an item's body names; None where it is no item's."""
    try:
        return json.loads(body)["caption_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
