"""Queues of captions to be labelled: who gets which item, what they answer, and what people agree on.

An item is leased to one person at a time, by the store's clock; what they answer is an event. The tables of a queue
change only together with the events that they follow from, so that a queue can be made anew from the events.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, tzinfo

import numpy as np
import pandas as pd
from sqlalchemy import text

from audit.errors import InputError
from audit.records import readable
from audit.review.events import LABELS, Event, EventKind, canonical
from audit.review.replay import SETTLE, TOLD, decides, giver, items_sha256, remember
from audit.review.roles import Action, Person, Refused
from audit.review.rows import BLOCK, as_event, streamed
from audit.review.store import ONE_EVENT, Change, Store, code_version, permit
from audit.runs.jobs import check_name
from audit.settings import settings

LEASE = 600.0
"""Seconds that an item waits for the person who took it."""
HELD = 20
"""Items that one person may hold at once."""
PACE = 50
"""Answers that the pace is taken from."""
BREAK = 300.0
"""Seconds between two answers, more than which somebody was away, and did not think."""
SHA256 = re.compile(r"[0-9a-f]{64}|")
ANSWER_ID = re.compile(r"[\w\-]{8,64}", re.ASCII)
LONGEST_NOTE = 2_000


@dataclass(frozen=True)
class Item:
    """A caption of a run that people are asked about."""

    item_id: str
    """16 hex digits: of the queue, the run and the caption."""
    queue: str
    run: str
    """Its name."""
    run_path: str
    caption_id: str
    caption: str
    place: int
    """In the queue; low ones come first."""
    why: str
    """Why it is shown, in a sentence that does not tell the machine's verdict."""
    seed: int | None = None
    neighbour_id: str = ""
    template_id: str = ""
    cluster: str = ""
    """Items about the same training image or template."""
    audit: bool = False
    """One of the random slice."""
    verdict: str = ""
    """The machine's; empty as long as it is hidden, as are distance, limit and gold."""
    distance: float | None = None
    """Of the check that decided, or that came nearest to it."""
    limit: float | None = None
    """What the distance had to be below."""
    gold: str = ""
    """The label that is known to be right; empty for most."""

    @property
    def blind(self) -> Item:
        """Without what would tell an annotator what to answer."""
        return replace(self, verdict="", distance=None, limit=None, gold="")


STORED = tuple(each.name for each in fields(Item) if each.name not in ("item_id", "queue", "place"))
"""Fields in an item's body; the others are columns."""


def item_id(queue: str, run: str, caption_id: str) -> str:
    """The same for the same caption of the same run in the same queue."""
    return hashlib.sha256(
        "\0".join((queue, run, caption_id)).encode("utf-8", "backslashreplace")
    ).hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """What somebody says of an item, and what was before their eyes."""

    answer_id: str
    """Chosen by who sends it, 8 to 64 letters, digits and hyphens: sent twice, it is one answer. A new answer to the same
    item has a new one."""
    label: str
    """One of `audit.review.events.LABELS`."""
    image_id: str = ""
    """The training image that was compared with."""
    template_id: str = ""
    seed: int | None = None
    """Of the generated picture."""
    mask_version: str = ""
    mask_sha256: str = ""
    """Of the template with that version of its mask (`audit.verbatim.versions.template_sha256`)."""
    generated_sha256: str = ""
    training_sha256: str = ""
    seconds: float | None = None
    """Since the item was shown."""
    blurred: bool = False
    """Whether the pictures were: such an answer is refused."""


@dataclass(frozen=True)
class Flag:
    """Somebody's mark on an item."""

    item_id: str
    who: str
    note: str
    when: str


@dataclass(frozen=True)
class Given:
    """A label as others see it."""

    who: str
    label: str
    when: str
    image_id: str
    template_id: str
    mask_version: str
    note: str
    adjudicated: bool
    others_shown: bool
    """Whether who gave it had been told what others say."""


@dataclass(frozen=True)
class Others:
    """What the machine and the other people say of an item."""

    item: Item
    """With the machine's verdict."""
    given: tuple[Given, ...]


@dataclass(frozen=True)
class Progress:
    """How far somebody is in a queue."""

    done: int
    """Items that they have answered."""
    left: int
    """Items that wait for an answer of theirs, those leased by others among them."""
    skipped: int
    today: int
    """Answered since midnight."""
    per_hour: float | None
    """Of their last answers, without breaks; None before there are any."""
    seconds_left: float | None


@dataclass(frozen=True)
class Overview:
    """A queue as a whole."""

    name: str
    items: int
    unanswered: int
    begun: int
    """That have an answer, and wait for another."""
    disagreements: int
    """That wait for an adjudicator: all have answered who are asked, and they differ, or one had been told what others
    say."""
    adjudicated: int


def queues(store: Store) -> list[Overview]:
    """All queues by name."""
    with store.read() as base:
        rows = base.execute(
            text(
                "SELECT items.queue, count(*), sum(CASE WHEN answers = 0 THEN 1 ELSE 0 END), "
                "sum(CASE WHEN answers > 0 AND answers < :annotators THEN 1 ELSE 0 END), "
                "sum(CASE WHEN answers >= :annotators THEN disputed ELSE 0 END), count(decisions.item_id) "
                "FROM items LEFT JOIN decisions ON decisions.item_id = items.item_id "
                "GROUP BY items.queue ORDER BY items.queue"
            ),
            {"annotators": settings().annotators},
        ).all()
    return [Overview(row[0], *map(int, row[1:])) for row in rows]


class Queue:
    """One queue of a store."""

    def __init__(self, store: Store, name: str):
        self.store = store
        self.name = check_name(name)

    # Filling

    def fill(self, person: Person, items: Iterable[Item]) -> int:
        """Put items into the queue, with the event that tells of it; those that are there already stay as they are.

        Returns
        -------
        How many are new.
        """
        given: dict[str, tuple[int, str, str, str]] = {}
        for each in items:
            if each.queue != self.name or each.item_id != item_id(each.queue, each.run, each.caption_id):
                raise InputError(f"The item {each.item_id[:40]!r} belongs to no caption of this queue.")
            if each.gold and each.gold not in LABELS:
                raise InputError(f"{each.gold[:40]!r} is no label; give one of {', '.join(LABELS)}.")
            body = canonical(
                {name: value for name, value in asdict(each).items() if name in STORED}
                | {"caption": readable(each.caption)}
            )
            given[each.item_id] = (each.place, body, each.caption_id, each.run)
        with self.store.change(person, Action.FILL) as change:
            there = set(
                change.base.execute(
                    text("SELECT item_id FROM items WHERE queue = :queue"), {"queue": self.name}
                ).scalars()
            )
            new = sorted(given.keys() - there)
            if not new:
                return 0
            told = change.append(
                EventKind.QUEUED,
                person.name,
                self.name,
                {
                    "runs": sorted({given[name][3] for name in new}),
                    "items": len(new),
                    "items_sha256": items_sha256((name, *given[name][:2]) for name in new),
                },
            )
            for first in range(0, len(new), BLOCK):
                change.base.execute(
                    INSERT_ITEM,
                    [
                        {
                            "item_id": name,
                            "queue": self.name,
                            "place": given[name][0],
                            "body": given[name][1],
                            "caption_id": given[name][2],
                            "queued": told.number,
                        }
                        for name in new[first : first + BLOCK]
                    ],
                )
            # labels of them may have come in before
            change.base.execute(text(f"{SETTLE} WHERE queued = :queued"), {"queued": told.number})
        return len(new)

    # Leases

    def take(self, person: Person, count: int = 1) -> list[Item]:
        """Lease items to a person, with those they hold already, which they hold longer: those first, then those that
        others have answered, then by place.

        An item has one holder at a time. Nobody gets what they have answered or skipped, or what has its answers.

        Returns
        -------
        At most `count` items, fewer where no more are free.
        """
        count = min(max(count, 1), HELD)
        with self.store.change(person, Action.LABEL, lasting=False) as change:
            now = change.now.timestamp()
            me = {"queue": self.name, "me": person.name, "now": now, "annotators": settings().annotators}
            found = list(change.base.execute(MINE, me | {"count": count}).all())
            for answers in range(settings().annotators - 1, -1, -1):
                if len(found) < count:
                    more = me | {"answers": answers, "count": count - len(found)}
                    found += change.base.execute(FREE, more).all()
            self._lease(change, person, [row[0] for row in found])
        items = [as_item(row) for row in found]
        return items if settings().show_others else [item.blind for item in items]

    def give_back(self, person: Person, item_ids: Sequence[str] | None = None) -> None:
        """Let others have items, by default all that this person holds."""
        asked = (
            "UPDATE items SET leased_by = NULL, leased_until = NULL WHERE leased_by = :me AND queue = :queue"
        )
        values: list[dict[str, str]] = [{"me": person.name, "queue": self.name}]
        if item_ids is not None:
            asked += " AND item_id = :item_id"
            values = [values[0] | {"item_id": name} for name in item_ids]
        with self.store.change(person, Action.LABEL, lasting=False) as change:
            if values:
                change.base.execute(text(asked), values)

    def _lease(self, change: Change, person: Person, names: Sequence[str]) -> None:
        if names:
            until = change.now.timestamp() + LEASE
            change.base.execute(
                text("UPDATE items SET leased_by = :me, leased_until = :until WHERE item_id = :item_id"),
                [{"me": person.name, "until": until, "item_id": name} for name in names],
            )

    # Answers

    def answer(self, person: Person, item_id: str, answer: Answer) -> Event:
        """Label an item that this person holds.

        Raises
        ------
        Refused
            If it is not theirs (any more), or if they have answered it. Nothing is saved then.
        """
        body = checked(answer)
        with self.store.change(person, Action.LABEL) as change:
            before = sent(change, answer.answer_id, EventKind.LABELLED, person, item_id, answer.label)
            if before is not None:
                return before
            item, holder = self._item(change, item_id)
            if self._own(change, person, item_id) not in (None, ""):
                raise Refused("You have answered this item already; take the answer back to give another.")
            if holder != person.name and not (holder is None and self._wants(change, item_id)):
                raise Refused(
                    f"Your answer {answer.label} was not saved: the time for this item ran out and it went to somebody "
                    "else. Go on with the next; this one comes back to you if it still needs an answer."
                )
            # where one answer is enough, nobody else is asked who could answer in their place
            told = settings().annotators > 1 and self._revealed(change, person, item, answer)
            body["others_shown"] = settings().show_others or told
            event = append(change, EventKind.LABELLED, person, item_id, self._told(item, body))
            remember(change.base, [event])
            self._settle(change, item_id)
        return event

    def skip(self, person: Person, item_id: str, answer_id: str = "") -> Event:
        """Leave an item that this person holds to others; it does not come back to them until they `reopen`."""
        with self.store.change(person, Action.LABEL) as change:
            if (before := sent(change, answer_id, EventKind.SKIPPED, person, item_id)) is not None:
                return before
            _, holder = self._item(change, item_id)
            if self._own(change, person, item_id) is not None:
                raise Refused("You have answered or skipped this item already.")
            if holder not in (None, person.name):
                raise Refused("This item went to somebody else meanwhile; go on with the next.")
            body = {"queue": self.name, "answer_id": answer_id}
            event = append(change, EventKind.SKIPPED, person, item_id, body)
            remember(change.base, [event])
            self._settle(change, item_id)
        return event

    def reopen(self, person: Person) -> int:
        """Offer somebody again what they skipped; how many items."""
        with self.store.change(person, Action.LABEL) as change:
            me = {"me": person.name, "queue": self.name}
            mine = "who = :me AND queue = :queue AND label = ''"
            count = change.base.execute(text(f"SELECT count(*) FROM answers WHERE {mine}"), me).scalar_one()
            if count:
                change.append(
                    EventKind.REOPENED, person.name, self.name, {"queue": self.name, "items": count}
                )
                change.base.execute(text(f"DELETE FROM answers WHERE {mine}"), me)
        return count

    def undo(self, person: Person, answer_id: str = "", item_id: str = "") -> str | None:
        """Take back the last thing that this person answered, skipped or decided; an event of its own.

        Where an item is named, it has to be the last one: what was meant was refused, or another tab answered since.

        Returns
        -------
        The item, which is theirs again unless somebody else holds it; None where there is nothing to take back.

        Raises
        ------
        Refused
            If an adjudicator has decided about the item since.
        """
        with self.store.change(person, Action.LABEL) as change:
            if (before := sent(change, answer_id, EventKind.UNDONE, person)) is not None:
                return before.subject
            me = {"me": person.name, "queue": self.name}
            found = change.base.execute(LAST, me).first()
            if found is None:
                return None
            number, last, table = found
            if item_id and last != item_id:
                raise Refused(
                    "Nothing was taken back: the last answer that is stored for you is of another item. Press backspace again "
                    "to take that one back."
                )
            item_id = last
            undone = as_event(change.base.execute(ONE_EVENT, {"number": number}).one())
            if table == "answers" and undone.kind is EventKind.LABELLED and self._decided(change, item_id):
                raise Refused("An adjudicator has decided about this item since; it cannot be taken back.")
            append(
                change,
                EventKind.UNDONE,
                person,
                item_id,
                {
                    "queue": self.name,
                    "undoes": number,
                    "undoes_sha256": undone.sha256,
                    "was": undone.kind.value,
                    "answer_id": answer_id,
                },
            )
            change.base.execute(
                text(f"DELETE FROM {table} WHERE item_id = :item_id AND who = :me"),
                {"item_id": item_id, "me": person.name},
            )
            self._settle(change, item_id, leave_lease=True)
            change.base.execute(
                text(
                    "UPDATE items SET leased_by = :me, leased_until = :until WHERE item_id = :item_id "
                    "AND (leased_by IS NULL OR leased_by = :me OR leased_until < :now)"
                ),
                {
                    "me": person.name,
                    "item_id": item_id,
                    "now": change.now.timestamp(),
                    "until": change.now.timestamp() + LEASE,
                },
            )
        return item_id

    def flag(self, person: Person, item_id: str, note: str, answer_id: str = "") -> Event:
        """Mark an item, with a note for whoever reads the labels; again, it replaces the note."""
        if len(note) > LONGEST_NOTE:
            raise InputError(f"The note has {len(note):,} characters; {LONGEST_NOTE:,} are taken at most.")
        with self.store.change(person, Action.LABEL) as change:
            if (before := sent(change, answer_id, EventKind.FLAGGED, person, item_id)) is not None:
                return before
            self._item(change, item_id)
            body = {"queue": self.name, "note": note.strip(), "answer_id": answer_id}
            return append(change, EventKind.FLAGGED, person, item_id, body)

    def unflag(self, person: Person, item_id: str, answer_id: str = "") -> Event:
        """Take one's own mark from an item."""
        with self.store.change(person, Action.LABEL) as change:
            if (before := sent(change, answer_id, EventKind.UNFLAGGED, person, item_id)) is not None:
                return before
            self._item(change, item_id)
            body = {"queue": self.name, "answer_id": answer_id}
            return append(change, EventKind.UNFLAGGED, person, item_id, body)

    def flags(self, person: Person) -> list[Flag]:
        """Everybody's marks that hold, in the order in which they were made."""
        self.store.require(person, Action.SEE_LABELS)
        return self._flags()

    def own_flags(self, person: Person) -> dict[str, str]:
        """The notes of this person's own marks, by item."""
        self.store.require(person, Action.LABEL)
        return {each.item_id: each.note for each in self._flags(person.name)}

    def _flags(self, who: str | None = None) -> list[Flag]:
        flags: dict[tuple[str, str], Flag] = {}
        for event in self.store.events([EventKind.FLAGGED, EventKind.UNFLAGGED], who=who):
            flags.pop((event.subject, event.who), None)
            if event.kind is EventKind.FLAGGED and event.body["queue"] == self.name:
                flags[event.subject, event.who] = Flag(
                    event.subject, event.who, event.body["note"], event.when
                )
        return list(flags.values())

    # Disagreements

    def disagreements(self, person: Person, count: int = HELD) -> list[Others]:
        """Lease items to an adjudicator on which nobody has decided, and people disagree or somebody answered who had been
        told what others say, with all that was said: those they hold already first, then by place.

        Nobody gets what they have answered themselves, or skipped: a third person decides.
        """
        count = min(max(count, 1), HELD)
        with self.store.change(person, Action.ADJUDICATE, lasting=False) as change:
            me = {"queue": self.name, "me": person.name, "annotators": settings().annotators}
            rows = change.base.execute(DISPUTED, me | {"now": change.now.timestamp(), "count": count}).all()
            self._lease(change, person, [row[0] for row in rows])
            return [Others(as_item(row), self._given(change.base, row[0])) for row in rows]

    def adjudicate(self, person: Person, item_id: str, answer: Answer) -> Event:
        """Decide about an item of `disagreements`.

        Raises
        ------
        Refused
            If people agree (by now), if somebody has decided or holds it, or if this person is one of those who disagree.
        """
        body = checked(answer)
        with self.store.change(person, Action.ADJUDICATE) as change:
            before = sent(change, answer.answer_id, EventKind.ADJUDICATED, person, item_id, answer.label)
            if before is not None:
                return before
            item, holder = self._item(change, item_id)
            disputed = change.base.execute(
                text("SELECT disputed FROM items WHERE item_id = :item_id"), {"item_id": item_id}
            ).scalar_one()
            if not disputed:
                raise Refused(
                    "Nobody disagrees about this item any more, or somebody has decided; go on with the next."
                )
            if self._own(change, person, item_id) not in (None, ""):
                raise Refused(
                    "You are one of those who disagree about this item; somebody else has to decide."
                )
            if holder not in (None, person.name):
                raise Refused(
                    f"Your decision {answer.label} was not saved: the item went to another adjudicator. Go on with the next."
                )
            event = append(change, EventKind.ADJUDICATED, person, item_id, self._told(item, body))
            remember(change.base, [event])
            self._settle(change, item_id)
        return event

    def others(self, person: Person, item_id: str) -> Others | None:
        """What the machine and the others say of an item; None as long as it is hidden from this person.

        It is hidden from annotators until they have answered, unless the setting ``show_others`` shows it. Adjudicators,
        auditors and readers see everybody's labels, but of what they hold themselves only after their answer.
        """
        with self.store.read(person, Action.READ) as base:
            row = base.execute(
                text(f"SELECT {ITEM}, leased_by FROM items WHERE item_id = :item_id AND queue = :queue"),
                {"item_id": item_id, "queue": self.name},
            ).first()
            if row is None:
                raise InputError(f"There is no item {item_id[:40]!r} in the queue {self.name}.")
            answered = base.execute(
                text("SELECT 1 FROM answers WHERE item_id = :item_id AND who = :me AND label <> ''"),
                {"item_id": item_id, "me": person.name},
            ).scalar()
            if not (answered or settings().show_others):
                try:
                    permit(base, person, Action.SEE_LABELS)
                except Refused:
                    return None
                if row[-1] == person.name:
                    return None
            return Others(
                as_item(row), tuple(each for each in self._given(base, item_id) if each.who != person.name)
            )

    def item(self, person: Person, item_id: str) -> Item:
        """One item, without what is hidden from this person."""
        shown = self.others(person, item_id)
        if shown is not None:
            return shown.item
        with self.store.read() as base:
            return as_item(
                base.execute(
                    text(f"SELECT {ITEM} FROM items WHERE item_id = :item_id"), {"item_id": item_id}
                ).one()
            ).blind

    def own_label(self, person: Person, item_id: str) -> str | None:
        """What this person has answered; empty where they skipped it, None where neither."""
        with self.store.read(person, Action.READ) as base:
            return base.execute(OWN, {"item_id": item_id, "me": person.name}).scalar()

    # How far

    def progress(self, person: Person, zone: tzinfo = UTC) -> Progress:
        """How far a person is, and how long the rest would take at the pace of their last answers.

        Parameters
        ----------
        zone
            Of the midnight at which today began.
        """
        me = {"me": person.name, "queue": self.name, "annotators": settings().annotators, "pace": PACE}
        midnight = self.store.now().astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
        with self.store.read(person, Action.READ) as base:
            waiting = base.execute(WAITING, me).scalar_one()
            done, skipped, today, mine = base.execute(DONE, me | {"since": midnight.timestamp()}).one()
            last = base.execute(RECENT, me).scalars().all()
        gaps = -np.diff(np.array(last, float)) if len(last) > 1 else np.empty(0)
        gaps = gaps[gaps <= BREAK]
        pace = float(gaps.mean()) if gaps.size else 0.0
        left = waiting - int(mine or 0)
        return Progress(
            done=int(done or 0),
            left=left,
            skipped=int(skipped or 0),
            today=int(today or 0),
            per_hour=3600 / pace if pace > 0 else None,
            seconds_left=left * pace if pace > 0 else None,
        )

    def decisions(self, person: Person) -> pd.DataFrame:
        """What people say of each item, all in all: a row an item, by place.

        Returns
        -------
        ``item_id, run, caption_id, caption, label, status, annotators, flagged, gold, verdict, cluster, audit``.
        ``status`` is open, one answer, agreed, disagreed or adjudicated. ``label`` is the adjudicator's, or what all
        agree on who answered without knowing what others say; empty while there is none. It is *one answer* too where
        others answered who did know, and they count no more. ``annotators`` are the names of all, in order.
        """
        with self.store.read(person, Action.SEE_LABELS, still=True) as base:
            items = [
                as_item(row)
                for row in streamed(
                    base,
                    f"SELECT {ITEM} FROM items WHERE queue = :queue ORDER BY place, item_id",
                    queue=self.name,
                )
            ]
            annotators: dict[str, list[str]] = {}
            given: dict[str, list[str]] = {}
            for name, who, label, told in streamed(
                base,
                f"SELECT item_id, who, label, {TOLD} FROM answers WHERE queue = :queue AND label <> '' ORDER BY number",
                queue=self.name,
            ):
                annotators.setdefault(name, []).append(who)
                given.setdefault(name, []).extend([] if told else [label])
            decided = dict(
                base.execute(
                    text("SELECT item_id, label FROM decisions WHERE queue = :queue"), {"queue": self.name}
                ).all()
            )
        flagged = {each.item_id for each in self._flags()}
        rows = []
        for item in items:
            label, status = agreed(given.get(item.item_id), decided.get(item.item_id))
            rows.append(
                (
                    item.item_id,
                    item.run,
                    item.caption_id,
                    item.caption,
                    label,
                    status,
                    tuple(sorted(annotators.get(item.item_id, ()))),
                    item.item_id in flagged,
                    item.gold,
                    item.verdict,
                    item.cluster,
                    item.audit,
                )
            )
        return pd.DataFrame(rows, columns=list(DECISIONS))

    # Inside a change

    def _item(self, change: Change, name: str) -> tuple[Item, str | None]:
        row = change.base.execute(
            text(f"SELECT {ITEM}, leased_by FROM items WHERE item_id = :item_id AND queue = :queue"),
            {"item_id": name, "queue": self.name},
        ).first()
        if row is None:
            raise InputError(f"There is no item {name[:40]!r} in the queue {self.name}.")
        return as_item(row), row[-1]

    def _told(self, item: Item, body: dict) -> dict:
        """A label event's body: what was said, of what, and by which code it was shown."""
        return body | {
            "queue": self.name,
            "run": item.run,
            "caption_id": item.caption_id,
            "caption": item.caption,
            "code_version": code_version(),
        }

    def _own(self, change: Change, person: Person, name: str) -> str | None:
        return change.base.execute(OWN, {"item_id": name, "me": person.name}).scalar()

    def _wants(self, change: Change, name: str) -> bool:
        """Whether an item still needs an answer."""
        have = change.base.execute(
            text("SELECT answers FROM items WHERE item_id = :item_id"), {"item_id": name}
        ).scalar_one()
        return have < settings().annotators

    def _revealed(self, change: Change, person: Person, item: Item, answer: Answer) -> bool:
        """Whether somebody has answered or decided before, and was told what the others and the machine say: of this item,
        and took it back, or of the same caption in another queue, of the same run or with the same picture.
        """
        before = change.base.execute(BEFORE, {"caption_id": item.caption_id, "me": person.name}).scalars()
        return any(
            body["run"] == item.run or body["generated_sha256"] == answer.generated_sha256 != ""
            for body in map(json.loads, before)
        )

    def _decided(self, change: Change, name: str) -> bool:
        return (
            change.base.execute(
                text("SELECT 1 FROM decisions WHERE item_id = :item_id"), {"item_id": name}
            ).scalar()
            is not None
        )

    def _given(self, base, name: str) -> tuple[Given, ...]:
        """Labels of an item that hold, in order."""
        rows = base.execute(GIVEN, {"item_id": name}).all()
        notes: dict[str, str] = {}
        for who, kind, body in base.execute(FLAGS, {"item_id": name}).all():
            notes[who] = json.loads(body)["note"] if kind == EventKind.FLAGGED.value else ""
        return tuple(
            Given(
                giver(event),
                event.body["label"],
                event.when,
                event.body["image_id"],
                event.body["template_id"],
                event.body["mask_version"],
                notes.get(giver(event), "") or str(event.body.get("note", "")),
                decides(event),
                bool(event.body.get("others_shown")),
            )
            for event in map(as_event, rows)
        )

    def _settle(self, change: Change, name: str, *, leave_lease: bool = False) -> None:
        """Count an item's answers anew, and let go of it."""
        lease = "" if leave_lease else ", leased_by = NULL, leased_until = NULL"
        change.base.execute(text(f"{SETTLE}{lease} WHERE item_id = :item_id"), {"item_id": name})


def append(change: Change, kind: EventKind, person: Person, subject: str, body: dict) -> Event:
    """Append an event, and remember what it came in as."""
    if body.get("answer_id") == "":
        del body["answer_id"]
    event = change.append(kind, person.name, subject, body)
    if "answer_id" in body:
        change.base.execute(
            text("INSERT INTO sent (answer_id, number) VALUES (:answer_id, :number)"),
            {"answer_id": body["answer_id"], "number": event.number},
        )
    return event


def sent(
    change: Change,
    answer_id: str,
    kind: EventKind,
    person: Person,
    subject: str | None = None,
    label: str | None = None,
) -> Event | None:
    """The event of what came in before under the same id; None where nothing did, or where no id is given.

    Raises
    ------
    InputError
        If that was something else.
    """
    if not answer_id:
        return None
    if not ANSWER_ID.fullmatch(answer_id):
        raise InputError(f"{answer_id[:80]!r} names no answer; give 8 to 64 letters, digits and hyphens.")
    number = change.base.execute(
        text("SELECT number FROM sent WHERE answer_id = :answer_id"), {"answer_id": answer_id}
    ).scalar()
    if number is None:
        return None
    event = as_event(change.base.execute(ONE_EVENT, {"number": number}).one())
    same = event.kind is kind and event.who == person.name
    if not same or subject not in (None, event.subject) or label != event.body.get("label"):
        raise InputError(f"Another answer came in as {answer_id}; send this one under a new id.")
    return event


def agreed(labels: Sequence[str] | None, decided: str | None) -> tuple[str, str]:
    """The label that holds, and its status, of what people answered by themselves and an adjudicator decided.

    Parameters
    ----------
    labels
        None where nobody answered; empty where all who did had been told what others say.
    """
    if decided is not None:
        return decided, "adjudicated"
    if labels is None:
        return "", "open"
    if len(set(labels)) > 1:
        return "", "disagreed"
    return "".join(labels[:1]), "agreed" if len(labels) > 1 else "one answer"


def as_item(row: Sequence) -> Item:
    """A row of `ITEM`."""
    return Item(item_id=row[0], queue=row[1], place=row[2], **json.loads(row[3]))


def checked(answer: Answer) -> dict:
    """An answer as an event's body; InputError where it is none."""
    if answer.label not in LABELS:
        raise InputError(f"{answer.label[:40]!r} is no label; give one of {', '.join(LABELS)}.")
    if not answer.answer_id:
        raise InputError("The answer has no id; give one, so that the same answer sent twice is one.")
    if answer.blurred:
        raise Refused("The pictures were blurred; switch off “Blur pictures”, look, and answer then.")
    for name in ("generated_sha256", "training_sha256", "mask_sha256"):
        if not SHA256.fullmatch(getattr(answer, name)):
            raise InputError(f"{getattr(answer, name)[:80]!r} is no {name}; give 64 hex digits, or nothing.")
    if answer.seconds is not None and not (math.isfinite(answer.seconds) and answer.seconds >= 0):
        raise InputError(f"{answer.seconds} is no number of seconds.")
    return asdict(answer)


DECISIONS = (
    "item_id",
    "run",
    "caption_id",
    "caption",
    "label",
    "status",
    "annotators",
    "flagged",
    "gold",
    "verdict",
    "cluster",
    "audit",
)
ITEM = "items.item_id, items.queue, items.place, items.body"
INSERT_ITEM = text(
    "INSERT INTO items (item_id, queue, place, caption_id, body, queued, answers, disputed) "
    "VALUES (:item_id, :queue, :place, :caption_id, :body, :queued, 0, 0)"
)
MINE = text(
    f"SELECT {ITEM} FROM items WHERE leased_by = :me AND queue = :queue AND leased_until >= :now "
    "AND answers < :annotators ORDER BY place, item_id LIMIT :count"
)
FREE = text(
    f"SELECT {ITEM} FROM items WHERE queue = :queue AND answers = :answers "
    "AND (leased_until IS NULL OR leased_until < :now) "
    "AND NOT EXISTS (SELECT 1 FROM answers WHERE answers.item_id = items.item_id AND answers.who = :me) "
    "ORDER BY place, item_id LIMIT :count"
)
DISPUTED = text(
    f"SELECT {ITEM} FROM items WHERE queue = :queue AND disputed = 1 AND answers >= :annotators "
    "AND (leased_by = :me OR leased_until IS NULL OR leased_until < :now) "
    "AND NOT EXISTS (SELECT 1 FROM answers WHERE answers.item_id = items.item_id AND answers.who = :me) "
    "ORDER BY CASE WHEN leased_by = :me AND leased_until >= :now THEN 0 ELSE 1 END, place, item_id LIMIT :count"
)
LAST = text(
    " UNION ALL ".join(
        f"SELECT {table}.number AS number, item_id, '{table}' AS held FROM {table} "
        f"JOIN events ON events.number = {table}.number AND kind <> '{EventKind.IMPORTED.value}' "
        f"WHERE {table}.who = :me AND queue = :queue"
        for table in ("answers", "decisions")
    )
    + " ORDER BY number DESC LIMIT 1"
)
OWN = text("SELECT label FROM answers WHERE item_id = :item_id AND who = :me")
BEFORE = text(
    "SELECT events.body FROM items JOIN events ON subject = item_id "
    "WHERE caption_id = :caption_id AND who = :me AND kind IN ('labelled', 'adjudicated')"
)
GIVEN = text(
    "SELECT events.number, kind, events.who, events.at, subject, body, previous, sha256 FROM events JOIN "
    "(SELECT number FROM answers WHERE item_id = :item_id AND label <> '' "
    "UNION ALL SELECT number FROM decisions WHERE item_id = :item_id) AS held ON held.number = events.number "
    "ORDER BY events.number"
)
FLAGS = text(
    "SELECT who, kind, body FROM events WHERE subject = :item_id AND kind IN ('flagged', 'unflagged') ORDER BY number"
)
WAITING = text("SELECT count(*) FROM items WHERE queue = :queue AND answers < :annotators")
DONE = text(
    "SELECT sum(CASE WHEN label <> '' THEN 1 ELSE 0 END), sum(CASE WHEN label = '' THEN 1 ELSE 0 END), "
    "sum(CASE WHEN label <> '' AND at >= :since THEN 1 ELSE 0 END), "
    "sum(CASE WHEN items.answers < :annotators THEN 1 ELSE 0 END) "
    "FROM answers JOIN items ON items.item_id = answers.item_id WHERE who = :me AND answers.queue = :queue"
)
RECENT = text(
    "SELECT at FROM answers WHERE who = :me AND queue = :queue AND label <> '' ORDER BY number DESC LIMIT :pace"
)
