"""Rows of a run that is killed again and again against those of an undisturbed one, as JSON.

``python tests/measures/kills.py [--kills 100] [--captions 3000] [--model demo] [--batch N]``: the worker is killed with SIGKILL at
random instants and started again each time, then left to end.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.runs.bench import some_captions  # noqa: E402
from audit.runs.folder import RunFolder  # noqa: E402

TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--captions", type=int, default=3000)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--batch", default="32", help="captions at once: small ones make a small model slow")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), asked), indent=2))


def measure(folder: Path, asked: argparse.Namespace) -> dict[str, object]:
    captions = folder / "captions.txt"
    captions.write_text("".join(f"{text}\n" for text in some_captions(asked.captions)), encoding="utf-8")

    def worker(out: Path) -> subprocess.Popen:
        command = ["score", str(captions), "--out", str(out), "--model", asked.model, "--batch", asked.batch]
        return subprocess.Popen(
            [sys.executable, "-m", "audit", *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    began = time.monotonic()
    finish(worker(folder / "undisturbed"))
    whole = time.monotonic() - began
    instants = random.Random(asked.seed)
    killed, grown, again = 0, 0, folder / "killed"
    while killed < asked.kills:
        process = worker(again)
        time.sleep(instants.uniform(0, whole))
        if process.poll() is not None:
            # it ended before it was to be killed: begin once more with what was never disturbed so far
            finish(process)
            check(folder / "undisturbed", again)
            again = folder / f"killed-{killed}"
            continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        rows = RunFolder(again).count("captions")
        grown += rows > 0
        print(f"{killed} kills, {rows} rows there", file=sys.stderr)
    finish(worker(again))
    return {
        "captions": asked.captions,
        "kills": killed,
        "kills_with_rows_there": grown,
        "seconds_undisturbed": round(whole, 1),
        "largest_relative_difference": check(folder / "undisturbed", again),
    }


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"The worker ended with {process.returncode}: {errors.decode()[-2000:]}")


def check(undisturbed: Path, killed: Path) -> float:
    """Largest relative difference of the scores; ends the program where a row is missing, doubled or another one."""
    first, second = (RunFolder.open(path).table("captions") for path in (undisturbed, killed))
    if len(first) != len(second) or not second["caption_id"].is_unique:
        raise SystemExit(f"{len(second)} rows, {second['caption_id'].nunique()} distinct, of {len(first)}")
    both = first.merge(second, on=["caption_id", "caption"], validate="one_to_one")
    if len(both) != len(first):
        raise SystemExit(f"only {len(both)} of {len(first)} captions are the same")
    difference = max(
        float((both[f"{name}_x"] / both[f"{name}_y"] - 1).abs().max()) for name in ("dcs", "magnitude")
    )
    if difference > TOLERANCE:
        raise SystemExit(f"scores differ by {difference:.2e}")
    return difference


if __name__ == "__main__":
    main()
