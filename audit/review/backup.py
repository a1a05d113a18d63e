"""The whole label store as one file, and back, also from SQLite to PostgreSQL and the other way.

The file is JSON lines, compressed by zstd: what it is and the root of its chain, each event as it is stored, each item,
each version of a mask that people edited, and a last line without which it was cut. What follows from the events is made
anew from them; leases are left out.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, text

from audit.errors import InputError
from audit.files import replace_file
from audit.review.events import EventKind, Root
from audit.review.replay import HELD, SETTLE, Replay
from audit.review.roles import Action, Person
from audit.review.rows import BLOCK, FIELDS, as_event, events_of, streamed
from audit.review.store import Store, root_of
from audit.review.verify import findings
from audit.verbatim.versions import version_path

FORMAT = {"format": "verbatim labels", "version": 2}
ITEM_FIELDS = "item_id, queue, place, caption_id, body, queued"
LONGEST_LINE = 8_000_000
"""Characters: an event's largest body, and what JSON makes of it."""


def backup(store: Store, person: Person, path: Path, masks: Path) -> Root:
    """Write all of a store into one file, as it is at one instant; the root of its chain.

    Parameters
    ----------
    masks
        Folder of the versions of masks (`audit.runs.templates.versions_of`); there may be none yet.
    """
    with store.read(person, Action.SEE_LABELS, still=True) as base:
        root = root_of(base)

        def write(partial: Path) -> None:
            with (
                pa.CompressedOutputStream(str(partial), "zstd") as packed,
                io.TextIOWrapper(packed, encoding="ascii") as out,
            ):
                for line in lines(base, root, masks):
                    out.write(json.dumps(line) + "\n")

        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    return root


def lines(base: Connection, root: Root, masks: Path) -> Iterator[dict[str, Any] | list[Any]]:
    """Everything that a back-up holds, in order."""
    yield {**FORMAT, "count": root.count, "sha256": root.sha256}
    for row in streamed(base, f"SELECT {FIELDS} FROM events ORDER BY number"):
        yield ["event", *row]
    items = 0
    for row in streamed(base, f"SELECT {ITEM_FIELDS} FROM items ORDER BY item_id"):
        items += 1
        yield ["item", *row]
    for name, sha256 in told_masks(base).items():
        version = masks / name
        if version.is_file() and mask_sha256(content := version.read_text(encoding="utf-8")) == sha256:
            yield ["mask", name, content]
    yield ["end", items]


def restore(path: Path, masks: Path, url: str = "") -> Root:
    """Read a back-up into an empty store, all of it or nothing; the root of its chain.

    Parameters
    ----------
    masks
        Folder that the versions of masks are put into; one that is there already stays.

    Raises
    ------
    InputError
        If the store holds anything, if the file is no whole back-up, if its chain does not verify, or if another version
        of a mask is in the place of one of its.
    """
    store = Store.open(url)
    try:
        with store.change() as change:
            if change.head.count:
                raise InputError(
                    f"The label store holds {change.head.count:,} events already; restore into an empty one: name "
                    "another with VERBATIM_DATABASE, or move its file away."
                )
            found, versions = read(change.base, path)
            wrong = next(findings(change.base, found), None)
            if wrong is not None:
                raise InputError(
                    f"{path} was changed after it was written, and was not restored. {wrong.sentence}"
                )
            put_back(masks, versions, told_masks(change.base))
        return found
    finally:
        store.close()


def told_masks(base: Connection) -> dict[str, str]:
    """sha256 of each version of a mask that an event tells of, by its file below the folder of all versions."""
    return {
        version_path(event.subject, event.body["number"]): event.body["sha256"]
        for event in events_of(base, [EventKind.MASK_SAVED])
        if type(event.body.get("number")) is int and "sha256" in event.body
    }


def mask_sha256(content: str) -> str:
    """The sha256 that a version's file names; empty if it names none."""
    try:
        return str(json.loads(content)["sha256"])
    except (ValueError, KeyError, TypeError):
        return ""


def put_back(masks: Path, versions: Mapping[str, str], told: Mapping[str, str]) -> None:
    """Write versions of masks where none is; their events say which they are."""
    for name, content in versions.items():
        path = masks / name
        if mask_sha256(content) != told.get(name):
            raise InputError(
                f"The back-up holds a mask {name[:80]!r} that no event tells of; nothing was restored."
            )
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda partial, content=content: partial.write_text(content, encoding="utf-8"))
        elif path.read_text(encoding="utf-8") != content:
            raise InputError(
                f"{path} is another version of a mask than that in the back-up; move {masks} away."
            )


def read(base: Connection, path: Path) -> tuple[Root, dict[str, str]]:
    """Fill the tables of an empty store with what a file holds; the root that it names, and versions of masks by file."""
    replay, items, masks = Replay(), 0, dict[str, str]()
    found = content(path)
    try:
        first = next(found)
        if first["format"] != FORMAT["format"] or first["version"] not in (
            1,
            FORMAT["version"],
        ):  # 1: without masks
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
            masks |= {str(line[1]): str(line[2]) for line in block if line[0] == "mask"}
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
    return root, masks


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
