"""Ten annotators at once on one queue, one of them killed in the middle, in SQLite and in PostgreSQL, as JSON.

``python tests/measures/annotators.py [--items 1000] [--annotators 10]``: each annotator is a process that takes and
answers until nothing is left; one is killed with SIGKILL while it works and started again. Every process notes when it
held which item. Ends with 1 where an item is lost, was held by two at once, or where the chain does not verify.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.records import caption_id  # noqa: E402
from audit.review.events import LABELS, EventKind  # noqa: E402
from audit.review.queue import Answer, Item, Queue, item_id  # noqa: E402
from audit.review.roles import Person, Role  # noqa: E402
from audit.review.store import Store  # noqa: E402
from tests import postgresql  # noqa: E402

AUDITOR = Person("Auditor", Role.AUDITOR)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--annotators", type=int, default=10)
    parser.add_argument("--work", nargs=3, metavar=("URL", "NAME", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(*asked.work)
        return 0
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        found["sqlite"] = measure(f"sqlite:///{folder}/review.db", Path(folder), asked)
    if postgresql.programs():
        with postgresql.server() as url, tempfile.TemporaryDirectory() as folder:
            found["postgresql"] = measure(url, Path(folder), asked)
    print(json.dumps(found, indent=2))
    return 0 if all(each["sound"] for each in found.values()) else 1


def work(url: str, name: str, file: str) -> None:
    """One annotator: a line for each item when it is held and when it is answered, by this machine's clock."""
    queue, person = Queue(Store.open(url), "q"), Person(name, Role.ANNOTATOR)
    with open(file, "a", buffering=1) as notes:
        idle = 0
        while idle < 20:
            items = queue.take(person)
            idle = 0 if items else idle + 1
            if not items:
                time.sleep(0.1)  # others hold the rest
            for item in items:
                taken = time.monotonic()
                label = random.Random(name + item.item_id).choice(LABELS)
                time.sleep(random.uniform(0, 0.02))  # thinks
                began = time.monotonic()
                queue.answer(person, item.item_id, Answer(uuid.uuid4().hex, label, seconds=0.0))
                # the lease ends at some instant of that call: surely held from the first to the second
                notes.write(f"{item.item_id} {taken} {began} {time.monotonic() - began}\n")


def measure(url: str, folder: Path, asked: argparse.Namespace) -> dict[str, object]:
    store = Store.open(url)
    texts = [f"caption {i}" for i in range(asked.items)]
    Queue(store, "q").fill(
        AUDITOR,
        [
            Item(item_id("q", "r", caption_id(t)), "q", "r", "/r", caption_id(t), t, place, "because")
            for place, t in enumerate(texts)
        ],
    )
    names = [f"annotator {number}" for number in range(asked.annotators)]

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, __file__, "--work", url, name, str(folder / f"{name}.txt")]
        return subprocess.Popen(command, cwd=ROOT)

    began = time.monotonic()
    workers = [start(name) for name in names]
    while store.root().count < asked.items // 2:
        time.sleep(0.02)
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].wait()
    after_kill = store.verify()
    root = store.root()
    workers[0] = start(names[0])
    failed = sum(worker.wait() != 0 for worker in workers)
    seconds = time.monotonic() - began

    labels = store.labels()
    answered = labels.groupby("item_id")["who"].nunique()
    notes = [
        (*line.split(), name)
        for name in names
        for line in (folder / f"{name}.txt").read_text().splitlines()
        if len(line.split()) == 4
    ]
    spans: dict[str, list[tuple[float, float]]] = {}
    for name, taken, answering, _, _ in notes:
        spans.setdefault(name, []).append((float(taken), float(answering)))
    overlapping = sum(
        second[0] < first[1]
        for held in map(sorted, spans.values())
        for first, second in itertools.pairwise(held)
    )
    events = sum(1 for _ in store.events([EventKind.LABELLED]))
    waits = sorted(1000 * float(each[3]) for each in notes)
    found = {
        "items": asked.items,
        "annotators": asked.annotators,
        "answers": len(labels),
        "label_events": events,
        "items_with_two_answers": int((answered == 2).sum()),
        "items_with_more": int((answered > 2).sum()),
        "items_held_by_two_at_once": overlapping,
        "annotators_that_failed": failed,
        "findings_after_the_kill": len(after_kill),
        "findings_at_the_end": len(store.verify(store.root())),
        "findings_against_the_root_at_the_kill": len(store.verify(root)),
        "seconds": round(seconds, 1),
        "milliseconds_of_an_answer": {
            "median": round(waits[len(waits) // 2], 1),
            "p95": round(waits[int(0.95 * len(waits))], 1),
        },
    }
    wrong = ("items_with_more", "items_held_by_two_at_once", "annotators_that_failed")
    wrong += tuple(name for name in found if name.startswith("findings"))
    whole = found["items_with_two_answers"] == asked.items and events == len(labels) == 2 * asked.items
    store.close()
    return found | {"sound": whole and not any(found[name] for name in wrong)}


if __name__ == "__main__":
    sys.exit(main())
