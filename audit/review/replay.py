"""What follows from the events: labels that hold, what was skipped, roles. The tables beside the chain hold the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from audit.records import readable
from audit.review.events import Event, EventKind

LABEL_COLUMNS = (
    "queue",
    "item_id",
    "caption_id",
    "caption",
    "who",
    "label",
    "image_id",
    "template_id",
    "seed",
    "mask_version",
    "flagged",
    "note",
    "when",
    "seconds",
    "others_shown",
    "event_sha256",
    "adjudicated",
)
TEXTS = ("queue", "caption_id", "caption", "label", "image_id", "template_id", "mask_version")
"""Columns out of an event's body."""

Key = tuple[str, str]
"""An item and a name."""


class Replay:
    """The state after the events taken so far."""

    KINDS = ", ".join(
        f"'{kind.value}'"
        for kind in (
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
    )
    """Those that matter to it, as SQL."""

    def __init__(self) -> None:
        self.answers: dict[Key, Event] = {}
        self.imported: dict[tuple[str, str, bool], Event] = {}
        self.decisions: dict[str, Event] = {}
        self.skipped: dict[Key, Event] = {}
        self.flags: dict[Key, str] = {}
        self.roles: dict[str, str] = {}
        self.sent: dict[str, int] = {}
        self.undoable: dict[int, tuple[dict, Any]] = {}

    def take(self, event: Event) -> None:
        """Go on by one event."""
        key = (event.subject, event.who)
        if event.kind is not EventKind.IMPORTED and (answer_id := event.body.get("answer_id")):
            self.sent[answer_id] = event.number
        match event.kind:
            case EventKind.LABELLED:
                self._hold(self.answers, key, event)
            case EventKind.SKIPPED:
                self._hold(self.skipped, key, event)
            case EventKind.ADJUDICATED:
                self._hold(self.decisions, event.subject, event)
            case EventKind.IMPORTED:
                annotator = str(event.body.get("annotator", event.who))
                self._hold(
                    self.imported, (event.subject, annotator, bool(event.body.get("adjudicated"))), event
                )
            case EventKind.UNDONE:
                held, place = self.undoable.pop(event.body["undoes"], ({}, None))
                if place in held and held[place].number == event.body["undoes"]:
                    del held[place]
            case EventKind.REOPENED:
                for item, who in [each for each in self.skipped if each[1] == event.who]:
                    if self.skipped[item, who].body["queue"] == event.body["queue"]:
                        del self.skipped[item, who]
            case EventKind.FLAGGED:
                self.flags[key] = event.body["note"]
            case EventKind.UNFLAGGED:
                self.flags.pop(key, None)
            case EventKind.ROLE_GIVEN:
                self.roles[event.subject] = event.body["role"]

    def _hold(self, held: dict, place: Any, event: Event) -> None:
        held[place] = event
        self.undoable[event.number] = (held, place)

    def labels(self) -> list[tuple[Any, ...]]:
        """Rows of `LABEL_COLUMNS`, in the order of their events."""
        found = [(who, event) for (_, who), event in self.answers.items()]
        found += [(who, event) for (_, who, _), event in self.imported.items()]
        found += [(event.who, event) for event in self.decisions.values()]
        found.sort(key=lambda each: each[1].number)
        return [self._row(who, event) for who, event in found]

    def _row(self, who: str, event: Event) -> tuple[Any, ...]:
        body = event.body
        note = self.flags.get((event.subject, who))
        told = {name: told_text(body.get(name)) for name in TEXTS} | {
            "item_id": event.subject,
            "who": who,
            "seed": body.get("seed"),
            "flagged": note is not None or bool(body.get("flagged")),
            "note": told_text(note or body.get("note")),
            "when": str(body.get("given_at") or event.when),
            "seconds": body.get("seconds"),
            "others_shown": bool(body.get("others_shown")),
            "event_sha256": event.sha256,
            "adjudicated": event.kind is EventKind.ADJUDICATED or bool(body.get("adjudicated")),
        }
        return tuple(told[name] for name in LABEL_COLUMNS)

    def answer_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table ``answers``: what holds, and with an empty label what was skipped."""
        for held in (self.answers, self.skipped):
            for (item, who), event in held.items():
                yield {"item_id": item, "who": who} | self._state(event)

    def decision_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table ``decisions``."""
        for item, event in self.decisions.items():
            yield {"item_id": item, "who": event.who} | self._state(event)

    @staticmethod
    def _state(event: Event) -> dict[str, Any]:
        return {
            "queue": event.body["queue"],
            "label": event.body.get("label", ""),
            "at": moment(event.when),
            "number": event.number,
        }


def told_text(value: Any) -> str:
    """A text that a table can hold; empty for nothing."""
    text = str(value or "")
    return text if text.isascii() else readable(text)


def moment(when: str) -> float:
    """Unix time of an event's ``when``."""
    return datetime.fromisoformat(when).timestamp()


def items_sha256(items: Iterable[tuple[str, int, str]]) -> str:
    """sha256 of what a filling put into a queue: ids, places and bodies, in the order of the ids."""
    sha256 = hashlib.sha256()
    for item_id, place, body in items:
        sha256.update(f"{item_id} {place} {body}\n".encode("utf-8", "backslashreplace"))
    return sha256.hexdigest()
