"""Rows of the table of events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, text

from audit.errors import InputError
from audit.review.events import Event, EventKind

FIELDS = "number, kind, who, at, subject, body, previous, sha256"
BLOCK = 2_000
"""Rows that are read or written at once."""


def as_event(row: Sequence[Any]) -> Event:
    """A row of `FIELDS` as an event.

    Raises
    ------
    InputError
        If it is no event any more.
    """
    try:
        return Event(row[0], EventKind(row[1]), row[2], row[3], row[4], json.loads(row[5]), row[6], row[7])
    except ValueError as error:
        raise InputError(
            f"Event {row[0]} of the label store is damaged; `python -m audit labels verify` tells more."
        ) from error


def events_of(base: Connection, kinds: Sequence[EventKind]) -> Iterator[Event]:
    """Events of some kinds in order, in a stream, within a transaction."""
    names = ", ".join(f"'{kind.value}'" for kind in kinds)
    return map(
        as_event, streamed(base, f"SELECT {FIELDS} FROM events WHERE kind IN ({names}) ORDER BY number")
    )


def streamed(base: Connection, query: str, **values: Any) -> Iterator[Sequence[Any]]:
    """Rows of a query, without holding them all."""
    found = base.execute(text(query), values, execution_options={"stream_results": True, "yield_per": BLOCK})
    for block in found.partitions(BLOCK):
        yield from block
