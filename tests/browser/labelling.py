"""How fast the labelling page is, driven by keyboard alone in headless Chromium on the embedded demo, as JSON.

``python tests/browser/labelling.py [--items 200] [--think 0.25]``: from the press of a key to the next item painted
(two animation frames after its decoded pictures were drawn), in milliseconds. Every tenth answer is taken back and given
given again, every twentieth item is flagged with a note, and what two people disagree about is decided by a third. `think`
is how many seconds are let go by between an item's appearance and the next key. The exit status is 1 where a limit does not
hold, an answer was refused, something that was pressed is not in the store, or its chain does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from dashboard import ARGUMENTS, DEMO, chromium, serve  # noqa: E402
from review_run import Decided, write  # noqa: E402

QUEUE = "measured"
DISPUTED = 40
"""Items that somebody else has answered before, otherwise."""
MEDIAN_MS, P95_MS = 250.0, 500.0
"""Limits of the time from a key to the next item."""
WATCH = """() => {
  const roots = [...document.querySelectorAll('*')].map(node => node.shadowRoot?.querySelector('.root[data-item]'));
  const root = roots.find(Boolean);
  if (!root) return false;
  let pressed = null;
  window.marks = [];
  window.addEventListener('keydown', event => { pressed = event.timeStamp; }, {capture: true});
  const shown = () => root.dataset.item + (root.querySelector('.chip.flag') ? ' flagged' : '');
  let before = shown();
  new MutationObserver(() => {
    if (!root.dataset.item || shown() === before) return;
    before = shown();
    const began = pressed;
    requestAnimationFrame(() => requestAnimationFrame(now => {
      window.marks.push({item: before, ms: performance.now() - began});
    }));
  }).observe(root, {attributes: true, subtree: true, childList: true, attributeFilter: ['data-item']});
  window.shownItem = () => root.dataset.item ?? null;
  window.waitingAnswers = () => root.querySelector('.outbox').textContent;
  window.alarms = () => [...root.querySelectorAll('.alarm')].map(node => node.textContent);
  return true;
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--think", type=float, default=0.25)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        prepare(data, asked.items)
        settings = {"VERBATIM_DATA_DIR": folder, "VERBATIM_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with serve(data / "log", **settings) as address:
            found = measure(address, asked.items, asked.think)
    failed = faults(found)
    print(json.dumps(found | {"failed": failed}, indent=2))
    return int(bool(failed))


def prepare(data: Path, items: int) -> None:
    """A run of the demo's captions, a queue of it, and somebody's answers to some."""
    os.environ["VERBATIM_DATA_DIR"] = str(data)
    import pyarrow.parquet as pq

    from audit.images import decode, resize
    from audit.records import Neighbour
    from audit.review.fill import fill
    from audit.review.queue import Answer, Queue
    from audit.review.roles import Role
    from audit.review.store import Store

    corpus = pq.read_table(DEMO / "corpus" / "corpus.parquet").to_pylist()
    corpus = [row for row in corpus if row["indexed"]]
    captions = list({row["caption"]: row for row in corpus}.values())
    rng = np.random.default_rng(0)
    rows = []
    for row in (captions[int(place)] for place in np.linspace(0, len(captions) - 1, items + DISPUTED)):
        image = resize(decode(DEMO / "corpus" / row["file"], row["image_id"]))
        drawn = np.clip(image + rng.normal(0, 0.04, image.shape), 0, 1).astype(np.float32)
        others = [corpus[int(place)] for place in rng.integers(0, len(corpus), 5)]
        near = tuple(
            Neighbour(each["image_id"], each["caption"], 0.9, rank, 100.0 + rank)
            for rank, each in enumerate([row, *others])
        )
        rows.append(Decided(row["caption"], drawn, "MV", near, distance=float(rng.uniform(10, 5000))))
    run = data / "runs" / QUEUE
    run.parent.mkdir(parents=True)
    write(run, rows)
    store = Store.open()
    auditor, other = store.enter("ann"), store.enter("bob")
    fill(store, auditor, run, QUEUE, limit=len(rows))
    store.give_role(auditor, "jo", Role.ADJUDICATOR)
    queue = Queue(store, QUEUE)
    for _ in range(DISPUTED):
        (item,) = queue.take(other)
        queue.answer(other, item.item_id, Answer(uuid.uuid4().hex, "N"))
    store.close()


def measure(address: str, items: int, think: float) -> dict[str, object]:
    """Milliseconds of each kind of key; and what was pressed and what the store holds at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        page = sit_down(browser, f"{address}/review?queue={QUEUE}", "ann")
        took: dict[str, list[float]] = {"labelled": [], "undone": [], "flagged": [], "adjudicated": []}

        def press(kind: str, key: str) -> None:
            before = page.evaluate("marks.length")
            page.keyboard.press(key)
            page.wait_for_function("before => marks.length > before", arg=before, polling=50)
            took[kind].append(page.evaluate("marks.at(-1).ms"))
            page.wait_for_timeout(1_000 * think)

        for place in range(items):
            if place % 20 == 5:
                page.keyboard.press("f")
                page.keyboard.type(f"Look at the {place}th again, 1 2 3")
                press("flagged", "Enter")
            press("labelled", "1235"[place % 4])
            if place % 10 == 7:
                press("undone", "Backspace")
                press("labelled", "3")
        page.wait_for_function("!waitingAnswers()")
        alarms = page.evaluate("alarms()")
        page = sit_down(browser, f"{address}/review?queue={QUEUE}&task=decide", "jo")
        disputed = min(DISPUTED, items)
        for _ in range(disputed - 1):  # after the last there is no next one
            press("adjudicated", "1")
        page.keyboard.press("1")
        page.wait_for_function("!waitingAnswers()")
        alarms += page.evaluate("alarms()")
        browser.close()
    every = [ms for each in took.values() for ms in each]
    return {
        "think_s": think,
        "all_ms": summary(every),
        **{f"{kind}_ms": summary(each) for kind, each in took.items()},
        "refused": alarms,
        "pressed": {kind: len(each) for kind, each in took.items()} | {"adjudicated": disputed},
        "stored": stored(),
    }


def sit_down(browser, address: str, who: str):
    """A page in a browser of its own, at a queue, whose keys are timed."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.get_by_label("Your name").fill(who)
    page.keyboard.press("Enter")
    page.wait_for_function(WATCH)
    page.wait_for_timeout(2_000)
    return page


def stored() -> dict[str, object]:
    """What ann and jo did by the store, and what is wrong with its chain."""
    from collections import Counter

    from audit.review.store import Store

    store = Store.open()
    found = Counter(event.kind.value for who in ("ann", "jo") for event in store.events(who=who))
    return {
        "events": dict(found),
        "labels": int((store.labels(store.enter("ann"))["who"] == "ann").sum()),
        "chain": [each.sentence for each in store.verify(store.root())],
    }


def faults(found: dict) -> list[str]:
    """What of it does not hold, in sentences."""
    every, pressed, store = found["all_ms"], found["pressed"], found["stored"]
    told = []
    if every["median"] > MEDIAN_MS:
        told.append(f"The median is {every['median']} ms; {MEDIAN_MS:.0f} are allowed.")
    if every["p95"] > P95_MS:
        told.append(f"The 95th percentile is {every['p95']} ms; {P95_MS:.0f} are allowed.")
    told += [f"Refused: {each}" for each in found["refused"]]
    told += [
        f"{kind}: {count} pressed, {store['events'].get(kind, 0)} stored."
        for kind, count in pressed.items()
        if store["events"].get(kind, 0) != count
    ]
    if store["labels"] != pressed["labelled"] - pressed["undone"]:
        told.append(f"{store['labels']} labels hold, and not {pressed['labelled'] - pressed['undone']}.")
    return told + [f"The chain: {each}" for each in store["chain"]]


def summary(ms: list[float]) -> dict[str, float]:
    return {
        "count": len(ms),
        "median": round(float(np.median(ms)), 1),
        "p95": round(float(np.percentile(ms, 95)), 1),
        "max": round(max(ms), 1),
    }


if __name__ == "__main__":
    sys.exit(main())
