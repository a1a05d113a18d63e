"""Ten annotators at once on one queue, killed in the middle, in SQLite and in PostgreSQL, as JSON.

``python tests/measures/annotators.py [--items 1000] [--annotators 10]``: each annotator is a process that holds as many
items as a page does and answers until nothing is left. Each is killed once with SIGKILL while all write, then all of them at
once, as when the dashboard dies; then PostgreSQL's server, with all its processes. All go on where they were. Every
process notes what it held from when to when, and which answers the store took. Ends with 1 where an item is lost or has other
than two answers, was held by two at once, where an answer that was taken is not there once, where the chain does not
verify after any of it, or where a database is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.errors import InputError  # noqa: E402
from audit.records import caption_id  # noqa: E402
from audit.review.events import LABELS, EventKind  # noqa: E402
from audit.review.queue import Answer, Item, Queue, item_id  # noqa: E402
from audit.review.roles import Person, Refused, Role  # noqa: E402
from audit.review.store import Store  # noqa: E402
from tests import postgresql  # noqa: E402

FORKS = multiprocessing.get_context(
    "forkserver"
)  # of a process without a store, and with everything imported
FORKS.set_forkserver_preload(["__main__"])
HELD = 7
"""Items that the page holds: the one that is shown, and six that are being made ready."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--annotators", type=int, default=10)
    asked = parser.parse_args()
    if postgresql.programs() is None:
        print("PostgreSQL is not there; install Debian's package postgresql.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        found = {"sqlite": measure(f"sqlite:///{folder}/review.db", Path(folder), asked)}
    with postgresql.server() as server, tempfile.TemporaryDirectory() as folder:
        found["postgresql"] = measure(server.url, Path(folder), asked, server)
    print(json.dumps(found, indent=2))
    return 0 if all(each["sound"] for each in found.values()) else 1


def work(url: str, name: str, file: Path) -> None:
    """One annotator, with a line for whatever happens to an item, by this machine's clock."""
    person = Person(name, Role.ANNOTATOR)
    with open(file, "a", buffering=1) as notes:

        def note(what: str, item: str, when: float, more: str = "-") -> None:
            notes.write(f"{what} {item} {when} {more}\n")

        note("began", "-", time.monotonic())
        queue, hands = Queue(answered(Store.open, url), "q"), set[str]()

        def lost(when: float) -> None:
            """The store went away: what was held may be somebody else's when it is back."""
            for each in hands:
                note("lost", each, when)
            hands.clear()

        while True:
            items = answered(queue.take, person, HELD, away=lost)
            now = time.monotonic()
            for item in items:
                if item.item_id not in hands:
                    note("holds", item.item_id, now)
            hands |= {item.item_id for item in items}
            if not items:
                if not answered(queue.progress, person).left:
                    return
                time.sleep(0.1)  # others hold the rest
                continue
            name = items[0].item_id
            answer = Answer(uuid.uuid4().hex, random.choice(LABELS), seconds=0.0)
            time.sleep(random.uniform(0, 0.02))  # thinks
            began = time.monotonic()
            try:
                answered(queue.answer, person, name, answer, away=lost)
            except Refused:  # the lease went with the server
                continue
            if name in hands:
                hands.remove(name)
                # the lease ends at some instant of that call: it was surely held until it began
                note("lost", name, began)
            note("stored", name, time.monotonic() - began, answer.answer_id)


def answered(ask: Callable[..., Any], *arguments: Any, away: Callable[[float], None] | None = None) -> Any:
    """What the store says, asked again while it does not answer."""
    while True:
        began = time.monotonic()
        try:
            return ask(*arguments)
        except InputError as error:
            if isinstance(error, Refused):
                raise
            if away:
                away(began)
            time.sleep(0.1)


def measure(
    url: str, folder: Path, asked: argparse.Namespace, server: postgresql.Server | None = None
) -> dict[str, object]:
    store = Store.open(url)
    texts = [f"caption {i}" for i in range(asked.items)]
    Queue(store, "q").fill(
        store.enter("Auditor"),
        [
            Item(item_id("q", "r", caption_id(t)), "q", "r", "/r", caption_id(t), t, place, "because")
            for place, t in enumerate(texts)
        ],
    )
    names = [f"annotator {number}" for number in range(asked.annotators)]
    before, answers = store.root().count, 2 * asked.items

    def start(name: str) -> multiprocessing.process.BaseProcess:
        process = FORKS.Process(target=work, args=(url, name, folder / f"{name}.txt"), daemon=True)
        process.start()
        return process

    def until(share: float) -> None:
        while store.root().count - before < share * answers:
            time.sleep(0.01)

    roots, findings = [], Counter[str]()

    def check(after: str) -> None:
        findings[after] += len(answered(store.verify))
        roots.append(store.root())

    began = time.monotonic()
    workers = {name: start(name) for name in names}
    for place, name in enumerate(names):
        until(0.05 + 0.5 * place / len(names))
        workers[name].kill()
        workers[name].join()
        check("after an annotator was killed")
        workers[name] = start(name)
    until(0.65)
    for each in workers.values():
        each.kill()
    for each in workers.values():
        each.join()
    check("after all were killed at once")
    workers = {name: start(name) for name in names}
    if server:
        until(0.8)
        server.kill()
        time.sleep(1)
        server.start()
        check("after the server was killed")
    for each in workers.values():
        each.join()
    failed = sum(each.exitcode != 0 for each in workers.values())
    seconds = time.monotonic() - began
    findings["at the end, against the end"] += len(store.verify(store.root()))
    findings["at the end, against the root after each kill"] += sum(len(store.verify(root)) for root in roots)

    labels = store.labels(store.enter("Auditor"))
    by_item = labels.groupby("item_id")["who"].nunique()
    events = [event.body["answer_id"] for event in store.events([EventKind.LABELLED])]
    notes = [line.split() for name in names for line in (folder / f"{name}.txt").read_text().splitlines()]
    taken = Counter(each[3] for each in notes if each[0] == "stored")
    waits = sorted(1000 * float(each[2]) for each in notes if each[0] == "stored")
    overlapping = sum(
        second[0] < first[1]
        for held in spans([folder / f"{name}.txt" for name in names]).values()
        for first, second in itertools.pairwise(sorted(held))
    )
    found = {
        "items": asked.items,
        "annotators": asked.annotators,
        "kills": {"an_annotator": len(names), "all_at_once": 1, "the_server": int(server is not None)},
        "items_with_two_answers": int((by_item == 2).sum()),
        "label_events": len(events),
        "events_in_the_chain": store.root().count,
        "items_held_by_two_at_once": overlapping,
        "answers_taken": len(taken),
        "answers_taken_that_are_not_there_once": sum(events.count(each) != 1 for each in taken),
        "annotators_that_failed": failed,
        "findings": dict(findings),
        "seconds": round(seconds, 1),
        "milliseconds_of_an_answer": {
            "median": round(waits[len(waits) // 2], 1),
            "p95": round(waits[int(0.95 * len(waits))], 1),
        },
    }
    store.close()
    whole = found["items_with_two_answers"] == len(by_item) == asked.items
    whole &= len(labels) == len(events) == answers == found["events_in_the_chain"] - before
    wrong = overlapping or failed or sum(findings.values()) or found["answers_taken_that_are_not_there_once"]
    return found | {"sound": whole and not wrong and len(taken) > 0.9 * answers}


def spans(files: list[Path]) -> dict[str, list[tuple[float, float]]]:
    """From when to when each item was surely in somebody's hands."""
    found: dict[str, list[tuple[float, float]]] = {}
    for file in files:
        since: dict[str, float] = {}
        last = 0.0
        for what, item, when, _ in (line.split() for line in file.read_text().splitlines()):
            if what == "began":  # and was killed before: until what it noted last
                for each, first in since.items():
                    found.setdefault(each, []).append((first, last))
                since.clear()
            elif what == "holds":
                since[item] = float(when)
            elif what == "lost":
                found.setdefault(item, []).append((since.pop(item), float(when)))
            if what != "stored":
                last = float(when)
    return found


if __name__ == "__main__":
    sys.exit(main())
