"""The results page on a run of millions of captions, in the browser: sorting, filtering, turning pages, as JSON.

``python tests/browser/large_run.py [--rows 2000000] [--times 20]``: seconds from the click to the new rows, median and
95th percentile. The run is written as workers write it, with random scores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from dashboard import ARGUMENTS, chromium, serve  # noqa: E402
from latency import summary  # noqa: E402

from audit.files import write_json, write_parquet  # noqa: E402
from audit.runs.folder import PART_ROWS, RunFolder  # noqa: E402

WORDS = (
    "red",
    "house",
    "cat",
    "river",
    "clock",
    "tree",
    "window",
    "music",
    "flag",
    "apple",
    "horse",
    "night",
)
TABLE = """before => {
  const found = [...document.querySelectorAll('[class*="st-key-found-table-"]')].filter(
    node => !node.closest('[data-stale="true"]'));
  const name = found.length === 1 ? [...found[0].classList].find(each => each.startsWith('st-key-found-table-')) : null;
  return name && name !== before ? name : false;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--times", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder / "runs" / "large", asked.rows)
        with serve(folder / "log", VERBATIM_DATA_DIR=str(folder)) as address:
            print(json.dumps({"rows": asked.rows, **measure(address, asked.times)}, indent=2))


def write_run(path: Path, rows: int) -> None:
    """A finished run with a verdict for each of a thousand captions."""
    run = RunFolder.create(
        path,
        {
            "model": "demo",
            "model_sha256": "0" * 64,
            "seeds": [0],
            "guidance": 7.5,
            "noise": "cpu",
            "captions_rows": rows,
            "captions_rejected": 0,
        },
    )
    chance, words = np.random.default_rng(0), np.array(WORDS)
    inputs = []
    for first in range(0, rows, PART_ROWS):
        count = min(PART_ROWS, rows - first)
        ids = [f"{number:016x}" for number in range(first, first + count)]
        texts = [" ".join(row) for row in words[chance.integers(len(words), size=(count, 6))]]
        captions = pa.table(
            {
                "caption_id": ids,
                "caption": [f"{text} {number}" for number, text in enumerate(texts, first)],
                "occurrences": pa.array(chance.integers(1, 5, count)),
                "tokens": pa.array(chance.integers(5, 40, count)),
                "truncated": pa.array(np.zeros(count, bool)),
                "dcs": pa.array(chance.normal(220, 9, count).astype(np.float32)),
                "magnitude": pa.array(chance.gamma(4, 2, count).astype(np.float32)),
            }
        )
        scores = captions.select(["caption_id", "caption", "dcs", "magnitude"]).append_column(
            "seed", pa.array(np.zeros(count, np.int64))
        )
        run.append({"scores": scores, "captions": captions}, first)
        inputs.append(captions.select(["caption_id", "caption", "occurrences"]))
    whole = pa.concat_tables(inputs)
    write_parquet(whole, run.path / "input.parquet")
    decided = whole.slice(0, 1000).select(["caption_id", "caption"])
    kinds = pa.array([("MV", "N", "N", "N")[number % 4] for number in range(len(decided))])
    run.append({"verdicts": decided.append_column("verdict", kinds)})
    write_json(run.path / "state.json", {"stage": "done", "done": rows, "total": rows})


def measure(address: str, times: int) -> dict[str, object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(120_000)
        began = time.monotonic()
        page.goto(f"{address}/results?run=large")
        table = page.wait_for_function(TABLE, arg="", polling=20).json_value()
        opened = time.monotonic() - began
        page.wait_for_timeout(20_000)  # model and training set are loaded meanwhile, as after any start

        def timed(act) -> float:
            nonlocal table
            began = time.monotonic()
            act()
            table = page.wait_for_function(TABLE, arg=table, polling=20).json_value()
            seconds = time.monotonic() - began
            page.wait_for_timeout(500)
            return seconds

        search = page.get_by_label("Caption contains")

        def look_for(text: str):
            search.fill(text)
            return lambda: search.press("Enter")

        orders = [page.get_by_role("radio", name=name) for name in ("Lowest first", "Highest first")]
        sorts = [timed(orders[number % 2].click) for number in range(times)]
        turn = page.get_by_role("button", name="Next page", exact=True)
        pages = [timed(turn.click) for _ in range(times)]
        filters = [
            timed(look_for(f"{WORDS[number % len(WORDS)]} {WORDS[(number + 1) % len(WORDS)]}"))
            for number in range(times)
        ]
        browser.close()
    return {
        "opened_s": round(opened, 2),
        "sort_s": summary(sorts),
        "next_page_s": summary(pages),
        "filter_s": summary(filters),
    }


if __name__ == "__main__":
    main()
