"""The label store: one chain of events in SQLite or PostgreSQL, and what follows from it.

Whatever changes the store is one transaction that holds the end of the chain: an event and the change that it tells
of are both there or neither, and two processes never append at once. Nothing here updates or deletes an event.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

import audit
from audit.errors import InputError
from audit.review.events import (
    Event,
    EventKind,
    Finding,
    Root,
    body_text,
    chained,
    check_name,
)
from audit.review.migrations import MIGRATIONS, migrate, version
from audit.review.replay import Replay
from audit.review.roles import NEEDS, Action, Person, Refused, Role, person_name, require
from audit.review.rows import BLOCK, FIELDS, as_event
from audit.review.verify import findings
from audit.settings import ROOT, settings

FILE = "review.db"
PATIENCE = 30
"""Seconds that SQLite waits for another process's transaction."""
FINDINGS = 100
"""After so many, a verification stops: the store is not what was written."""
MIGRATING = 0x7665726261
"""PostgreSQL's advisory lock while tables are made."""
SYSTEM = "verbatim"
"""Who gave the first role."""


class Store:
    """A label store. One of them serves any number of threads; every call is a short transaction of its own."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] | None = None):
        self.engine = engine
        self.sqlite = engine.dialect.name == "sqlite"
        self._clock = clock or (functools.partial(datetime.now, UTC) if self.sqlite else None)

    @classmethod
    def open(cls, url: str = "", clock: Callable[[], datetime] | None = None) -> Store:
        """Open a store by URL, by default the one of the settings, and make or migrate its tables.

        Parameters
        ----------
        url
            ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``; empty for the settings'.
        clock
            Instead of the database's own (PostgreSQL) or this machine's (SQLite).

        Raises
        ------
        InputError
            If it is no such URL, if the server does not answer, or if a newer Verbatim wrote the store.
        """
        where = database_url(url)
        store = cls(make_engine(where), clock)
        with store._told():
            with store.engine.connect() as base:
                have = version(base)
            if have != len(MIGRATIONS):
                with store.engine.execution_options(immediate=True).begin() as base:
                    if not store.sqlite:
                        base.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATING})
                    migrate(base)
        return store

    def close(self) -> None:
        """Let go of the database's connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def change(
        self, person: Person | None = None, *actions: Action, lasting: bool = True
    ) -> Iterator[Change]:
        """A transaction that alone may change the store until it ends; nothing of it stays if it fails.

        A person that is named has to be allowed the actions by the role that they have now (`permit`).
        What is `lasting` is on the disk when it has ended; the rest, such as who holds which item, may be lost with the
        machine's power, and waits for no disk.
        """
        with self._told(), self.engine.execution_options(immediate=True, lasting=lasting).begin() as base:
            if not (self.sqlite or lasting):
                base.execute(text("SET LOCAL synchronous_commit = off"))
            row = base.execute(
                text(
                    "SELECT count, sha256 FROM head"
                    if self.sqlite
                    else "SELECT count, sha256, clock_timestamp() FROM head FOR UPDATE"
                )
            ).one()
            if person is not None:
                permit(
                    base, person, *actions
                )  # not before: whoever held the end of the chain may have changed it
            now = self._clock() if self._clock else row[2].astimezone(UTC)
            yield Change(base, Root(row[0], row[1]), now)

    @contextlib.contextmanager
    def read(
        self, person: Person | None = None, *actions: Action, still: bool = False
    ) -> Iterator[Connection]:
        """A transaction that reads, by a person as in `change`; with `still`, all of it sees one state of the store."""
        options = {"isolation_level": "REPEATABLE READ"} if still and not self.sqlite else {}
        with self._told(), self.engine.connect() as connection:
            base = connection.execution_options(**options)
            if person is not None:
                permit(base, person, *actions)
            yield base

    def now(self) -> datetime:
        """The time by the clock of the store, in UTC: the same for everybody who uses it."""
        if self._clock:
            return self._clock().astimezone(UTC)
        with self.read() as base:
            return base.execute(text("SELECT clock_timestamp()")).scalar_one().astimezone(UTC)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the database says, in a sentence without its URL, which may hold a password."""
        try:
            yield
        except DatabaseError as error:
            reason = next(iter(str(error.orig).splitlines()), "")[:200]
            if "database or disk is full" in reason:
                raise OSError(errno.ENOSPC, "No space left on device") from error
            if isinstance(error, OperationalError):
                raise InputError(
                    f"The label store does not answer, and nothing was saved; try again, or look at VERBATIM_DATABASE. ({reason})"
                ) from error
            if type(error) is DatabaseError:
                raise InputError(
                    f"The label store is damaged; restore a back-up with `python -m audit labels restore`. ({reason})"
                ) from error
            raise

    # Events

    def append(self, kind: EventKind, person: Person, subject: str, body: Mapping[str, Any]) -> Event:
        """Append one event that changes nothing else in the store; see `append_many`."""
        return self.append_many(person, [(kind, subject, body)])[0]

    def append_many(
        self, person: Person, events: Iterable[tuple[EventKind, str, Mapping[str, Any]]]
    ) -> list[Event]:
        """Append events, all or none.

        Raises
        ------
        Refused
            If the person may not do what they tell of, or if they come with a change of a queue or a role only.
        """
        events = list(events)
        for kind, _, _ in events:
            if kind not in NEEDS:
                raise Refused(f"An event {kind.value} is written with what it tells of, never by itself.")
        needed = {NEEDS[kind] for kind, _, _ in events}
        with self.change(person, *sorted(needed)) as change:
            return change.append_many(person.name, events)

    def events(
        self,
        kinds: Sequence[EventKind] | None = None,
        subject: str | None = None,
        who: str | None = None,
        after: int = 0,
    ) -> Iterator[Event]:
        """Events in order, in a stream: of some kinds, about a subject, by somebody, after a number."""
        asked = ["number > :after"]
        values: dict[str, Any] = {"after": after, "block": BLOCK}
        for name, value in (("subject", subject), ("who", who)):
            if value is not None:
                asked.append(f"{name} = :{name}")
                values[name] = value
        if kinds is not None:
            if not kinds:
                return
            asked.append("kind IN (" + ", ".join(f":kind{place}" for place in range(len(kinds))) + ")")
            values |= {f"kind{place}": kind.value for place, kind in enumerate(kinds)}
        query = text(f"SELECT {FIELDS} FROM events WHERE {' AND '.join(asked)} ORDER BY number LIMIT :block")
        while True:
            with self.read() as base:
                rows = base.execute(query, values).all()
            yield from map(as_event, rows)
            if len(rows) < BLOCK:
                return
            values["after"] = rows[-1][0]

    def event(self, number: int) -> Event | None:
        """One event by its number."""
        with self.read() as base:
            row = base.execute(ONE_EVENT, {"number": number}).first()
        return as_event(row) if row else None

    def root(self) -> Root:
        """The end of the chain, to be kept elsewhere."""
        with self.read() as base:
            return root_of(base)

    def verify(self, root: Root | None = None) -> list[Finding]:
        """Check every event against its hash and the one before, what follows from the events against them, and all of
        it against a root that was kept elsewhere.

        Without a root, a chain that was computed anew from its first changed event on, or whose end was cut off with
        care, cannot be told from a true one.

        Returns
        -------
        What is wrong, the first `FINDINGS` of it; empty if nothing is.
        """
        with self.read(still=True) as base:
            return list(itertools.islice(findings(base, root), FINDINGS))

    def labels(self, person: Person) -> pd.DataFrame:
        """What everybody says now: a row for each label that holds, after what was undone, in the order of the events.

        Returns
        -------
        `audit.review.replay.LABEL_COLUMNS`: what was said, by whom and when, and what was shown. ``adjudicated`` rows are
        decisions over a disagreement, ``imported`` ones came in from elsewhere, and with ``others_shown`` somebody had
        been told what others and the machine say.

        Raises
        ------
        Refused
            If this person is not to see others' labels.
        """
        with self.read(person, Action.SEE_LABELS) as base:
            return Replay.of(base).table()

    def require(self, person: Person, *actions: Action) -> None:
        """Refuse what somebody may not do, before long work; where its outcome is stored, that asks again."""
        with self.read(person, *actions):
            pass

    # People

    def enter(self, name: str, *, signed_in: bool = False) -> Person:
        """The person of a name, with the role they have now.

        Somebody who `signed_in` has the role of the setting ``roles``, or the one that an auditor gave, and is a reader
        otherwise. A local name is believed as it is: the first one in a new store is an auditor, others annotate until
        they are given another role.
        """
        name = person_name(name)
        with self.read() as base:
            role = role_now(base, name, signed_in)
            fresh = not signed_in and nobody(base)
        if fresh:
            with self.change() as change:
                if nobody(change.base):
                    change.give_role(SYSTEM, name, Role.AUDITOR)
                role = role_now(change.base, name, signed_in)
        return Person(name, role, signed_in)

    def give_role(self, person: Person, name: str, role: Role) -> Event:
        """Give somebody a role; refused where no auditor would be left."""
        name = person_name(name)
        with self.change(person, Action.GIVE_ROLE) as change:
            auditors = change.base.execute(
                text("SELECT count(*) FROM roles WHERE role = :role AND name <> :name"),
                {"role": Role.AUDITOR.value, "name": name},
            ).scalar_one()
            if role is not Role.AUDITOR and role_of(change.base, name) is Role.AUDITOR and not auditors:
                raise Refused(f"{name} is the only auditor; make somebody else an auditor first.")
            return change.give_role(person.name, name, role)

    def roles(self) -> dict[str, Role]:
        """Roles that were given, by name."""
        with self.read() as base:
            return {
                name: Role(role)
                for name, role in base.execute(text("SELECT name, role FROM roles ORDER BY name"))
            }

    # Pictures removed from view

    def remove_from_view(self, person: Person, sha256: str, reason: str) -> Event:
        """Show a training picture no more; its hash and its labels stay."""
        return self.append(EventKind.REMOVED_FROM_VIEW, person, check_sha256(sha256), {"reason": reason})

    def restore_to_view(self, person: Person, sha256: str, reason: str) -> Event:
        """Show a training picture again."""
        return self.append(EventKind.RESTORED_TO_VIEW, person, check_sha256(sha256), {"reason": reason})

    def hidden(self) -> set[str]:
        """sha256 of the pictures that are not to be shown."""
        now: dict[str, bool] = {}
        with self.read() as base:
            query = text(
                "SELECT subject, kind FROM events WHERE kind IN (:removed, :restored) ORDER BY number"
            )
            kinds = {
                "removed": EventKind.REMOVED_FROM_VIEW.value,
                "restored": EventKind.RESTORED_TO_VIEW.value,
            }
            for subject, kind in base.execute(query, kinds):
                now[subject] = kind == kinds["removed"]
        return {subject for subject, removed in now.items() if removed}


@dataclass
class Change:
    """A transaction under way: the events that it appends, and the connection for the rest of it."""

    base: Connection
    head: Root
    now: datetime

    def append(self, kind: EventKind, who: str, subject: str, body: Mapping[str, Any]) -> Event:
        """Append one event."""
        return self.append_many(who, [(kind, subject, body)])[0]

    def append_many(
        self, who: str, events: Sequence[tuple[EventKind, str, Mapping[str, Any]]]
    ) -> list[Event]:
        """Append events, in order."""
        when = self.now.astimezone(UTC).isoformat(timespec="microseconds")
        rows, made = [], []
        head = self.head
        for kind, subject, body in events:
            check_name(subject, "a subject")
            stored, number = body_text(body), head.count + 1
            sha256 = chained(number, kind.value, who, when, subject, stored, head.sha256)
            made.append(Event(number, kind, who, when, subject, dict(body), head.sha256, sha256))
            rows.append(
                {
                    "number": number,
                    "kind": kind.value,
                    "who": who,
                    "at": when,
                    "subject": subject,
                    "body": stored,
                    "previous": head.sha256,
                    "sha256": sha256,
                }
            )
            head = Root(number, sha256)
        if rows:
            self.base.execute(INSERT, rows)
            self.base.execute(
                text("UPDATE head SET count = :count, sha256 = :sha256"),
                {"count": head.count, "sha256": head.sha256},
            )
            self.head = head
        return made

    def give_role(self, who: str, name: str, role: Role) -> Event:
        """Write a role, and the event that tells of it."""
        given = self.append(EventKind.ROLE_GIVEN, who, name, {"role": role.value})
        self.base.execute(text("DELETE FROM roles WHERE name = :name"), {"name": name})
        self.base.execute(
            text("INSERT INTO roles (name, role) VALUES (:name, :role)"), {"name": name, "role": role.value}
        )
        return given


ONE_EVENT = text(f"SELECT {FIELDS} FROM events WHERE number = :number")
INSERT = text(
    f"INSERT INTO events ({FIELDS}) VALUES (:number, :kind, :who, :at, :subject, :body, :previous, :sha256)"
)


def root_of(base: Connection) -> Root:
    return Root(*base.execute(text("SELECT count, sha256 FROM head")).one())


def role_of(base: Connection, name: str) -> Role | None:
    found = base.execute(text("SELECT role FROM roles WHERE name = :name"), {"name": name}).scalar()
    return Role(found) if found else None


def role_now(base: Connection, name: str, signed_in: bool) -> Role:
    """The role of somebody by the settings, if they signed in, or as it was given; else that of those who have none."""
    if signed_in:
        given = {person_name(each): role for each, role in settings().roles.items()}.get(name)
        if given is not None:
            return Role(given)
    return role_of(base, name) or (Role.READER if signed_in else Role.ANNOTATOR)


def permit(base: Connection, person: Person, *actions: Action) -> None:
    """Refuse what somebody may not do, by the role that they have now, whatever they had when they entered."""
    role = role_now(base, person.name, person.signed_in)
    for action in actions:
        require(role, action)


def nobody(base: Connection) -> bool:
    """Whether no role was given to anybody yet."""
    return base.execute(text("SELECT 1 FROM roles LIMIT 1")).scalar() is None


def check_sha256(value: str) -> str:
    """A sha256 in small hex digits."""
    value = value.strip().lower()
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise InputError(f"{value[:80]!r} is no sha256; give its 64 hex digits.")
    return value


def database_url(url: str = "") -> URL:
    """A store's URL with the driver that is used; the settings' by default, a file in the data folder without any."""
    given = url or settings().database
    if not given:
        folder = settings().data_dir
        folder.mkdir(parents=True, exist_ok=True)
        return URL.create("sqlite", database=str(folder / FILE))
    try:
        where = make_url(given)
        kind = where.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise InputError(f"The database is no URL; {WHERE}.") from error
    if kind == "sqlite" and where.database not in (None, "", ":memory:"):
        Path(where.database).absolute().parent.mkdir(parents=True, exist_ok=True)
        return URL.create("sqlite", database=where.database)
    if kind in ("postgresql", "postgres"):
        return where.set(drivername="postgresql+psycopg")
    raise InputError(f"A database of the kind {kind[:40]!r} without a file holds no labels; {WHERE}.")


WHERE = "give sqlite:///FILE or postgresql://USER@HOST/DATABASE"


def make_engine(where: URL) -> Engine:
    """An engine whose transactions are begun by us: SQLite's driver would begin them at the first change only."""
    if where.get_backend_name() != "sqlite":
        try:
            return create_engine(where, pool_pre_ping=True)
        except ImportError as error:
            raise InputError(
                "PostgreSQL needs the package psycopg; install it with `pip install -e '.[postgresql]'`."
            ) from error
    engine = create_engine(where, connect_args={"timeout": PATIENCE})

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        end = time.monotonic() + PATIENCE
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").close()
                return
            except sqlite3.OperationalError:
                # SQLite does not wait here by itself while another process makes the store
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    @event.listens_for(engine, "begin")
    def begun(base: Connection) -> None:
        options = base.get_execution_options()
        base.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if options.get('lasting', True) else 'NORMAL'}")
        base.exec_driver_sql("BEGIN IMMEDIATE" if options.get("immediate") else "BEGIN")

    return engine


@functools.cache
def code_version() -> str:
    """The code that runs: its git commit, ``+`` where files were changed since; the package's version without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return audit.__version__
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return audit.__version__
