"""Who loaded which model, ran, viewed, labelled and exported: the chain of events, as a file that verifies by itself.

One event a line, in order, as JSON, each with the sha256 of the one before; the last line is the root. Whoever can
write the whole file anew can compute a chain anew: the root that was kept elsewhere tells.
"""

from __future__ import annotations

import getpass
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from audit.errors import InputError
from audit.files import replace_file
from audit.review.events import (
    LARGEST_BODY,
    START,
    Event,
    EventKind,
    Finding,
    Root,
    body_text,
    canonical,
    chained,
)
from audit.review.roles import Action, Person, Role
from audit.review.rows import FIELDS as COLUMNS
from audit.review.rows import as_event
from audit.review.store import Store
from audit.settings import settings

log = logging.getLogger(__name__)

NOBODY = "somebody without a name"
FIELDS = ("number", "kind", "who", "when", "subject", "body", "previous", "sha256")
LONGEST_LINE = LARGEST_BODY + 10_000
"""Characters: an event's body, and its other fields."""


def command_line_user() -> str:
    """Under whose name commands are recorded: the setting ``who``, else the system's user."""
    try:
        return settings().who or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return NOBODY


def note(store: Store, kind: EventKind, who: str, subject: str, body: Mapping[str, Any]) -> None:
    """Record what somebody did. Where that fails, the work goes on, and the log says that the trail has a gap."""
    try:
        store.append(kind, Person(who or NOBODY, Role.READER), subject[:200] or "-", body)
    except (InputError, OSError) as error:
        log.error("The audit trail lacks an event (%s by %s): %s", kind.value, who, error)


def note_command(kind: EventKind, subject: str, body: Mapping[str, Any]) -> None:
    """`note` for a command, with the store of the settings."""
    try:
        store = Store.open()
    except (InputError, OSError) as error:
        log.error("The audit trail lacks an event (%s): %s", kind.value, error)
        return
    try:
        note(store, kind, command_line_user(), subject, body)
    finally:
        store.close()


@dataclass(frozen=True)
class Asked:
    """Which events are looked for; what is empty is not asked."""

    kind: str = ""
    who: str = ""
    words: str = ""
    """Stand in the subject or in the body; small and capital letters of English are one."""
    since: str = ""
    """A day, ISO 8601, or any other beginning of a time."""


def found(store: Store, person: Person, asked: Asked, first: int, rows: int) -> tuple[int, list[Event]]:
    """How many events are so, and `rows` of them from the `first` on, the newest first."""
    conditions, values = ["1 = 1"], {"first": first, "rows": rows}
    for condition, name in (("kind = :kind", "kind"), ("who = :who", "who"), ("at >= :since", "since")):
        if value := getattr(asked, name):
            conditions.append(condition)
            values[name] = value
    if asked.words:
        like = "LIKE" if store.sqlite else "ILIKE"
        conditions.append(f"(subject {like} :words ESCAPE '!' OR body {like} :written ESCAPE '!')")
        literal = asked.words.translate({ord(sign): f"!{sign}" for sign in "!%_"})
        # a body is stored as JSON in ASCII
        values |= {"words": f"%{literal}%", "written": f"%{json.dumps(literal)[1:-1]}%"}
    where = f"FROM events WHERE {' AND '.join(conditions)}"
    with store.read(person, Action.SEE_TRAIL, still=True) as base:
        count = base.execute(text(f"SELECT count(*) {where}"), values).scalar_one()
        page = text(f"SELECT {COLUMNS} {where} ORDER BY number DESC LIMIT :rows OFFSET :first")
        return count, [as_event(row) for row in base.execute(page, values)]


def everybody(store: Store, person: Person) -> list[str]:
    """Who did anything, in order."""
    with store.read(person, Action.SEE_TRAIL) as base:
        return list(base.execute(text("SELECT DISTINCT who FROM events ORDER BY who")).scalars())


def export_trail(store: Store, person: Person, path: Path) -> Root:
    """Write every event and the root; replaces `path` in one step."""
    store.require(person, Action.SEE_TRAIL)
    root = Root(0, START)

    def write(partial: Path) -> None:
        nonlocal root
        with open(partial, "w", encoding="ascii") as stream:
            for event in store.events():
                stream.write(canonical(asdict(event)) + "\n")
                root = Root(event.number, event.sha256)
            stream.write(canonical({"root": asdict(root)}) + "\n")

    replace_file(path, write)
    return root


def verify_trail(path: Path, root: Root | None = None) -> tuple[list[Finding], Root]:
    """What is not as it was written in an exported trail, and its own root; offline.

    Parameters
    ----------
    root
        One that was kept elsewhere; the file may have grown since.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    found: list[Finding] = []
    number, previous, told, at_root = 0, START, None, root is None or root == Root(0, START)
    for line, values in _lines(path):
        if told is not None:
            found.append(Finding(number, f"Line {line} stands behind the end of the trail."))
            break
        if isinstance(values, dict) and set(values) == {"root"}:
            told = values["root"]
            continue
        if not isinstance(values, dict) or set(values) != set(FIELDS):
            found.append(Finding(number + 1, f"Line {line} is no event."))
            break
        try:
            body = body_text(values["body"])
            texts = kind, who, when, subject = [values[name] for name in ("kind", "who", "when", "subject")]
            chain = chained(values["number"], kind, who, when, subject, body, values["previous"])
            proper = all(isinstance(each, str) for each in texts) and chain == values["sha256"]
        except (TypeError, InputError):
            proper = False
        if values["number"] != number + 1:
            found.append(Finding(number + 1, f"Event {number + 1} is missing: line {line} holds another."))
        elif values["previous"] != previous:
            found.append(Finding(number + 1, f"Event {number + 1} does not follow the one before it."))
        elif not proper:
            found.append(Finding(number + 1, f"Event {number + 1} was changed after it was written."))
        if found:
            break  # all that follows hangs on it
        number, previous = values["number"], values["sha256"]
        if root is not None and number == root.count:
            at_root = previous == root.sha256
    own = Root(number, previous)
    if not found:
        if told != asdict(own):
            found.append(
                Finding(
                    number, "The end of the trail was cut off or changed: its root is missing or another."
                )
            )
        elif root is not None and number < root.count:
            found.append(
                Finding(number + 1, f"The root was taken of {root.count:,} events; there are {number:,}.")
            )
        elif not at_root:
            found.append(Finding(0, "It is not the trail that the root was taken of: it was written anew."))
    return found, own


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered lines; None for one that is not written as `export_trail` writes its content: what JSON reads alike,
    a key twice or a letter otherwise escaped, could be read in two ways.
    """
    try:
        with open(path, encoding="ascii", errors="replace", newline="\n") as stream:
            number = 0
            while text := stream.readline(LONGEST_LINE):
                number += 1
                try:
                    values = json.loads(text)
                    yield number, values if canonical(values) + "\n" == text else None
                except (ValueError, RecursionError, InputError):
                    yield number, None
    except OSError as error:
        raise InputError(f"{path} cannot be read; give what `python -m audit trail export` wrote.") from error
