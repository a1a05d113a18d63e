"""Changes to a label store's chain that are found against a root that was kept elsewhere, as JSON.

``python tests/measures/tampering.py [--times 50] [--events 200]``: an edited event, a removed one, a cut tail, two
reordered, and an edit with the whole chain computed anew, so many times each at random places; the last four also with
the end of the chain put right. Ends with 1 where one is not found, or where the untouched store does not verify.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sqlalchemy import Connection, text  # noqa: E402

from audit.review.events import START, EventKind, chained  # noqa: E402
from audit.review.roles import Person, Role  # noqa: E402
from audit.review.store import Store  # noqa: E402
from audit.review.verify import findings  # noqa: E402

PERSON = Person("Ann", Role.AUDITOR)
COLUMNS = ("kind", "who", "at", "subject", "body", "previous", "sha256")


def edited(base: Connection, count: int, draw: random.Random, columns: tuple[str, ...] = COLUMNS) -> None:
    """One character of one field of one event."""
    number, name = draw.randint(1, count), draw.choice(columns)
    old = base.execute(text(f"SELECT {name} FROM events WHERE number = {number}")).scalar_one()
    place = draw.randrange(len(old))
    letter = draw.choice([each for each in "0123456789abcdefxyz" if each != old[place]])
    new = old[:place] + letter + old[place + 1 :]
    base.execute(text(f"UPDATE events SET {name} = :new WHERE number = {number}"), {"new": new})


def removed(base: Connection, count: int, draw: random.Random) -> None:
    base.execute(text(f"DELETE FROM events WHERE number = {draw.randint(1, count)}"))


def cut(base: Connection, count: int, draw: random.Random) -> None:
    """Some of the last events, with the end of the chain put right."""
    base.execute(text(f"DELETE FROM events WHERE number > {draw.randint(0, count - 1)}"))
    last = base.execute(text("SELECT number, sha256 FROM events ORDER BY number DESC LIMIT 1")).first()
    number, sha256 = last or (0, START)
    base.execute(
        text("UPDATE head SET count = :number, sha256 = :sha256"), {"number": number, "sha256": sha256}
    )


def reordered(base: Connection, count: int, draw: random.Random) -> None:
    first, second = draw.sample(range(1, count + 1), 2)
    for old, new in ((first, -1), (second, first), (-1, second)):
        base.execute(text(f"UPDATE events SET number = {new} WHERE number = {old}"))


def recomputed(base: Connection, count: int, draw: random.Random) -> None:
    """An edit, after which every hash is right."""
    edited(base, count, draw, ("who", "subject"))
    previous = START
    rows = base.execute(text("SELECT number, kind, who, at, subject, body FROM events ORDER BY number")).all()
    for row in rows:
        sha256 = chained(*row, previous)
        base.execute(
            text("UPDATE events SET previous = :previous, sha256 = :sha256 WHERE number = :number"),
            {"previous": previous, "sha256": sha256, "number": row[0]},
        )
        previous = sha256
    base.execute(text("UPDATE head SET sha256 = :sha256"), {"sha256": previous})


CHANGES: tuple[Callable[[Connection, int, random.Random], None], ...] = (
    edited,
    removed,
    cut,
    reordered,
    recomputed,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--events", type=int, default=200)
    asked = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(f"sqlite:///{folder}/review.db")
        log = [(EventKind.VIEWED, f"subject {i}", {"n": i}) for i in range(asked.events)]
        store.append_many(PERSON, log)
        root = store.root()
        found = {
            change.__name__: {"times": asked.times, "found": 0, "found_without_a_root": 0}
            for change in CHANGES
        }
        untouched = 0
        for change in CHANGES:
            for _ in range(asked.times):
                with store.engine.connect() as base:
                    change(base, asked.events, draw)
                    found[change.__name__]["found"] += bool(list(findings(base, root)))
                    found[change.__name__]["found_without_a_root"] += bool(list(findings(base, None)))
                    base.rollback()
                untouched += store.verify(root) == []
        store.close()
    print(
        json.dumps({"events": asked.events, "changes": found, "untouched_that_verify": untouched}, indent=2)
    )
    all_found = all(each["found"] == asked.times for each in found.values())
    return 0 if all_found and untouched == asked.times * len(CHANGES) else 1


if __name__ == "__main__":
    sys.exit(main())
