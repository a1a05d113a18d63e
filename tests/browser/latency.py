"""Warm latency of the prompt lab and of page switches in the browser, on the embedded demo, as JSON.

``python tests/browser/latency.py [--captions 20]``: from pressing Enter to the one-step pictures, scores and heatmaps;
to neighbours, full samples and verdict; and from one page to another. Medians and 95th percentiles in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from dashboard import ARGUMENTS, DEMO, chromium, serve  # noqa: E402

from audit.records import caption_id  # noqa: E402

ONE_STEP = """caption => {
  const title = document.querySelector('.verbatim-title');
  if (!title || title.textContent !== caption || title.closest('[data-stale="true"]')) return false;
  const roots = [...document.querySelectorAll('.stMain *')].filter(
    node => node.shadowRoot && !node.closest('[data-stale="true"]')).map(node => node.shadowRoot);
  const shown = roots.flatMap(root => [...root.querySelectorAll('img[alt^="Picture after one"]')]);
  return shown.length > 0 && shown.every(image => image.complete && image.naturalWidth);
}"""
PAGE = """([heading, least]) => {
  const fresh = node => !node.closest('[data-stale="true"]');
  const title = [...document.querySelectorAll('h1')].some(node => fresh(node) && node.textContent.includes(heading));
  const images = [...document.querySelectorAll('.stMain img')].filter(fresh);
  return title && images.length >= least && images.every(image => image.complete && image.naturalWidth);
}"""
VERDICT = """id => {
  const card = document.querySelector(`.st-key-verdict-${id}`);
  const compare = [...document.querySelectorAll('h2')].find(node => node.textContent === 'Compare');
  return [card, compare].every(node => node && !node.closest('[data-stale="true"]'));
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=20)
    count = parser.parse_args().captions
    truth = pq.read_table(DEMO / "corpus" / "truth.parquet").to_pylist()
    captions = [
        row["caption"] for row in truth if row["split"] == "test" and row["kind"] in ("multimodal", "once")
    ]
    captions = captions[:: max(1, len(captions) // (count + 2))][: count + 2]
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "log") as address:
        print(json.dumps(measure(address, captions), indent=2))


def measure(address: str, captions: list[str]) -> dict[str, object]:
    """Seconds of each kind; the first two captions warm up."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        began = time.monotonic()
        page.goto(f"{address}/prompt_lab")
        field = page.get_by_label("Caption", exact=True)
        field.wait_for()
        usable = time.monotonic() - began
        first, whole = [], []
        for caption in captions:
            field.fill(caption)
            began = time.monotonic()
            field.press("Enter")
            page.wait_for_function(ONE_STEP, arg=caption, polling=50)
            first.append(time.monotonic() - began)
            page.wait_for_function(VERDICT, arg=caption_id(caption), polling=50)
            whole.append(time.monotonic() - began)
            page.wait_for_timeout(300)
        switches = []
        for name in ["Home", "Training set"] * 6:
            began = time.monotonic()
            page.get_by_role("link", name=name).first.click()
            content = ["Which training images", 3] if name == "Home" else [name, 24]
            page.wait_for_function(PAGE, arg=content, polling=50)
            switches.append(time.monotonic() - began)
            page.wait_for_timeout(700)
        browser.close()
    return {
        "captions": len(captions) - 2,
        "first_page_s": round(usable, 3),
        "one_step_pictures_scores_heatmaps_s": summary(first[2:]),
        "neighbours_full_samples_verdict_s": summary(whole[2:]),
        "page_switch_s": summary(switches[2:]),
    }


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median": round(float(np.median(seconds)), 3), "p95": round(float(np.percentile(seconds, 95)), 3)}


if __name__ == "__main__":
    main()
