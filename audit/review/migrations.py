"""The tables of a label store, version by version: named functions, run in order when a store is opened.

One that was published is never changed; a new version is a new function. The SQL is what SQLite and PostgreSQL share.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

from audit.errors import InputError
from audit.review.events import START
from audit.review.replay import SETTLE, Replay, remember


def events(base: Connection) -> None:
    """The chain, and its end."""
    base.execute(
        text(
            "CREATE TABLE events (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, who TEXT NOT NULL, "
            "at TEXT NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL, previous TEXT NOT NULL, sha256 TEXT NOT NULL)"
        )
    )
    base.execute(text("CREATE INDEX events_kind ON events (kind, number)"))
    base.execute(text("CREATE INDEX events_subject ON events (subject, number)"))
    base.execute(
        text("CREATE TABLE head (one INTEGER PRIMARY KEY, count INTEGER NOT NULL, sha256 TEXT NOT NULL)")
    )
    base.execute(text("INSERT INTO head (one, count, sha256) VALUES (1, 0, :start)"), {"start": START})


def queues(base: Connection) -> None:
    """What waits to be labelled, and what follows from the events: who answered what, and who may do what.

    ``answers`` holds answers that hold and items that were skipped; ``sent`` names the event of each answer that came
    in, so that one sent twice is one.
    """
    base.execute(
        text(
            "CREATE TABLE items (item_id TEXT PRIMARY KEY, queue TEXT NOT NULL, place INTEGER NOT NULL, "
            "caption_id TEXT NOT NULL, body TEXT NOT NULL, queued INTEGER NOT NULL, answers INTEGER NOT NULL, "
            "disputed INTEGER NOT NULL, leased_by TEXT, leased_until DOUBLE PRECISION)"
        )
    )
    base.execute(text("CREATE INDEX items_next ON items (queue, answers, place, item_id)"))
    base.execute(text("CREATE INDEX items_leased ON items (leased_by, queue)"))
    base.execute(text("CREATE INDEX items_disputed ON items (queue, disputed, place)"))
    base.execute(text("CREATE INDEX items_queued ON items (queued, item_id)"))
    base.execute(
        text(
            "CREATE TABLE answers (item_id TEXT NOT NULL, who TEXT NOT NULL, queue TEXT NOT NULL, "
            "label TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (item_id, who))"
        )
    )
    base.execute(text("CREATE INDEX answers_of ON answers (who, queue, number)"))
    base.execute(
        text(
            "CREATE TABLE decisions (item_id TEXT PRIMARY KEY, who TEXT NOT NULL, queue TEXT NOT NULL, "
            "label TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, number INTEGER NOT NULL)"
        )
    )
    base.execute(text("CREATE INDEX decisions_of ON decisions (who, queue, number)"))
    base.execute(text("CREATE TABLE sent (answer_id TEXT PRIMARY KEY, number INTEGER NOT NULL)"))
    base.execute(text("CREATE TABLE roles (name TEXT PRIMARY KEY, role TEXT NOT NULL)"))


def imported_answers(base: Connection) -> None:
    """Labels that came in are answers of whoever gave them."""
    replay = Replay.of(base)
    remember(base, [*replay.answers.values(), *replay.decisions.values()])
    base.execute(text(SETTLE))


def told_answers(base: Connection) -> None:
    """Answers of people who had been told what others say count in no agreement; an item is found by its caption."""
    base.execute(text("CREATE INDEX items_caption ON items (caption_id)"))
    base.execute(text(SETTLE))


MIGRATIONS = (events, queues, imported_answers, told_answers)


def version(base: Connection) -> int:
    """How many of them a store has had; 0 for an empty database."""
    if not inspect(base).has_table("schema_version"):
        return 0
    return base.execute(text("SELECT version FROM schema_version")).scalar_one()


def migrate(base: Connection) -> None:
    """Bring a store to this version, within one transaction.

    Raises
    ------
    InputError
        If a newer Verbatim has written it.
    """
    have = version(base)
    if have > len(MIGRATIONS):
        raise InputError(
            f"The label store has version {have}, this Verbatim knows {len(MIGRATIONS)}; use the newer one that wrote it."
        )
    if not have:
        base.execute(text("CREATE TABLE schema_version (version INTEGER NOT NULL)"))
        base.execute(text("INSERT INTO schema_version VALUES (0)"))
    for change in MIGRATIONS[have:]:
        change(base)
    base.execute(text("UPDATE schema_version SET version = :now"), {"now": len(MIGRATIONS)})
