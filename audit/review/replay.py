"""What follows from the events: labels that hold, what was skipped, roles. The tables beside the chain hold the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import Connection, text

from audit.records import readable
from audit.review.events import Event, EventKind
from audit.review.rows import events_of

LABEL_COLUMNS = (
    "queue",
    "run",
    "item_id",
    "caption_id",
    "caption",
    "who",
    "label",
    "image_id",
    "template_id",
    "seed",
    "mask_version",
    "mask_sha256",
    "generated_sha256",
    "training_sha256",
    "code_version",
    "flagged",
    "note",
    "when",
    "seconds",
    "blurred",
    "others_shown",
    "event_sha256",
    "adjudicated",
    "imported",
)
TEXTS = ("queue", "run", "caption_id", "caption", "label", "image_id", "template_id", "mask_version")
TEXTS += ("mask_sha256", "generated_sha256", "training_sha256", "code_version")
"""Columns out of an event's body."""
FLAGS = ("flagged", "blurred", "others_shown", "adjudicated", "imported")
HELD = ("item_id", "who", "queue", "label", "at", "number")
"""Columns of the tables ``answers`` and ``decisions``."""

Key = tuple[str, str]
"""An item and a name."""


class Replay:
    """The state after the events taken so far."""

    KINDS = (
        EventKind.LABELLED,
        EventKind.UNDONE,
        EventKind.SKIPPED,
        EventKind.REOPENED,
        EventKind.FLAGGED,
        EventKind.UNFLAGGED,
        EventKind.ADJUDICATED,
        EventKind.IMPORTED,
        EventKind.ROLE_GIVEN,
    )
    """Those that matter to it."""

    def __init__(self) -> None:
        self.answers: dict[Key, Event] = {}
        """What somebody says of an item: an answer, one that came in, or that they skipped it."""
        self.decisions: dict[str, Event] = {}
        self.flags: dict[Key, str] = {}
        self.roles: dict[str, str] = {}
        self.sent: dict[str, int] = {}
        self.undoable: dict[int, tuple[dict, Any]] = {}

    @classmethod
    def of(cls, base: Connection) -> Replay:
        """The state of a store, within a transaction."""
        replay = cls()
        for event in events_of(base, cls.KINDS):
            replay.take(event)
        return replay

    def take(self, event: Event) -> None:
        """Go on by one event."""
        key = (event.subject, event.who)
        if event.kind is not EventKind.IMPORTED and (answer_id := event.body.get("answer_id")):
            self.sent[answer_id] = event.number
        match event.kind:
            case EventKind.LABELLED | EventKind.SKIPPED | EventKind.ADJUDICATED | EventKind.IMPORTED:
                held: dict = self.decisions if decides(event) else self.answers
                place = event.subject if decides(event) else (event.subject, giver(event))
                held[place] = event
                self.undoable[event.number] = (held, place)
            case EventKind.UNDONE:
                held, place = self.undoable.pop(event.body["undoes"], ({}, None))
                if place in held and held[place].number == event.body["undoes"]:
                    del held[place]
            case EventKind.REOPENED:
                asked = event.who, event.body["queue"]
                for place, each in list(self.answers.items()):
                    if each.kind is EventKind.SKIPPED and (each.who, each.body["queue"]) == asked:
                        del self.answers[place]
            case EventKind.FLAGGED:
                self.flags[key] = event.body["note"]
            case EventKind.UNFLAGGED:
                self.flags.pop(key, None)
            case EventKind.ROLE_GIVEN:
                self.roles[event.subject] = event.body["role"]

    def labels(self) -> list[tuple[Any, ...]]:
        """Rows of `LABEL_COLUMNS`, in the order of their events."""
        found = [event for event in self.answers.values() if event.kind is not EventKind.SKIPPED]
        found += self.decisions.values()
        return [self._row(event) for event in sorted(found, key=lambda event: event.number)]

    def table(self) -> pd.DataFrame:
        """`labels` as a table; what it holds is said at `audit.review.store.Store.labels`."""
        return pd.DataFrame(self.labels(), columns=list(LABEL_COLUMNS)).astype(
            {"seed": "Int64", "seconds": "float64"} | dict.fromkeys(FLAGS, bool)
        )

    def _row(self, event: Event) -> tuple[Any, ...]:
        body, who = event.body, giver(event)
        note = self.flags.get((event.subject, who))
        told = {name: told_text(body.get(name)) for name in TEXTS} | {
            "item_id": event.subject,
            "who": who,
            "seed": body.get("seed"),
            "flagged": note is not None or bool(body.get("flagged")),
            "note": told_text(note or body.get("note")),
            "when": str(body.get("given_at") or event.when),
            "seconds": body.get("seconds"),
            "blurred": bool(body.get("blurred")),
            "others_shown": bool(body.get("others_shown")),
            "event_sha256": event.sha256,
            "adjudicated": decides(event),
            "imported": event.kind is EventKind.IMPORTED,
        }
        return tuple(told[name] for name in LABEL_COLUMNS)

    def answer_rows(self) -> list[dict[str, Any]]:
        """Rows of the table ``answers``: what holds, and with an empty label what was skipped."""
        return [held_row(event) for event in self.answers.values()]

    def decision_rows(self) -> list[dict[str, Any]]:
        """Rows of the table ``decisions``."""
        return [held_row(event) for event in self.decisions.values()]


def giver(event: Event) -> str:
    """Who says what an event tells: of one that came in, not who brought it."""
    return str(event.body.get("annotator", event.who)) if event.kind is EventKind.IMPORTED else event.who


def decides(event: Event) -> bool:
    """Whether an event is a decision over a disagreement, made here or elsewhere."""
    came_in = event.kind is EventKind.IMPORTED and bool(event.body.get("adjudicated"))
    return came_in or event.kind is EventKind.ADJUDICATED


def held_row(event: Event) -> dict[str, Any]:
    """The row of `HELD` that follows from a label, a skip or a decision."""
    return {
        "item_id": event.subject,
        "who": giver(event),
        "queue": str(event.body.get("queue", "")),
        "label": str(event.body.get("label", "")),
        "at": moment(str(event.body.get("given_at") or event.when)),
        "number": event.number,
    }


def remember(base: Connection, events: Iterable[Event]) -> None:
    """Write the rows that follow from new events; their items are to be settled (`SETTLE`)."""
    of_table: dict[str, dict[Any, dict[str, Any]]] = {"answers": {}, "decisions": {}}
    for event in events:
        row = held_row(event)
        if decides(event):
            of_table["decisions"][row["item_id"]] = row
        else:
            of_table["answers"][row["item_id"], row["who"]] = row
    for table, key in (("answers", "item_id = :item_id AND who = :who"), ("decisions", "item_id = :item_id")):
        if rows := list(of_table[table].values()):
            base.execute(text(f"DELETE FROM {table} WHERE {key}"), rows)
            values = ", ".join(f":{name}" for name in HELD)
            base.execute(text(f"INSERT INTO {table} ({', '.join(HELD)}) VALUES ({values})"), rows)


GIVEN = "FROM answers WHERE answers.item_id = items.item_id AND label <> ''"
TOLD = (
    "EXISTS (SELECT 1 FROM events WHERE events.number = answers.number "
    "AND events.body LIKE '%\"others_shown\"\\:true%')"
)
"""Whether who answered had been told what others say. A body is canonical JSON, in which a quotation mark within a text
has a backslash before it: only the key itself is found."""
ANSWERS = f"(SELECT count(*) {GIVEN})"
DISPUTED = (
    f"CASE WHEN ((SELECT count(DISTINCT label) {GIVEN} AND NOT {TOLD}) > 1 "
    f"OR (EXISTS (SELECT 1 {GIVEN} AND {TOLD}) AND (SELECT count(*) {GIVEN} AND NOT {TOLD}) < 2)) "
    "AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.item_id = items.item_id) THEN 1 ELSE 0 END"
)
"""Whether an item is for an adjudicator once it has its answers: people disagree, or one of them had been told what
others say, and no two answered by themselves."""
SETTLE = f"UPDATE items SET answers = {ANSWERS}, disputed = {DISPUTED}"
"""Counts the answers of items anew, of all unless a condition follows."""
UNSETTLED = text(
    f"SELECT count(*) FROM items WHERE items.answers <> {ANSWERS} OR items.disputed <> {DISPUTED}"
)
"""How many items are counted otherwise."""


def told_text(value: Any) -> str:
    """A text that a table can hold; empty for nothing."""
    told = str(value or "")
    return told if told.isascii() else readable(told)


def moment(when: str) -> float:
    """Unix time of an event's ``when``."""
    return datetime.fromisoformat(when).timestamp()


def items_sha256(items: Iterable[tuple[str, int, str]]) -> str:
    """sha256 of what a filling put into a queue: ids, places and bodies, in the order of the ids."""
    sha256 = hashlib.sha256()
    for item_id, place, body in items:
        sha256.update(f"{item_id} {place} {body}\n".encode("utf-8", "backslashreplace"))
    return sha256.hexdigest()
