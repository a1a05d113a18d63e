"""Exhibits of many captions: seconds for each, equal bytes, and what is there after kills, as JSON.

``python tests/measures/exhibits.py RUN [--count 500] [--kills 5] [--regenerate 3]``: a run is made of RUN's captions, each several
times under other words, as sampling so many would take hours; it is exported whole, exported again while being killed at
random instants, and both are compared byte for byte and verified. Some of the pictures are made again from their seeds by
another process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.evidence.verify import Anchor, verify  # noqa: E402
from audit.records import caption_id  # noqa: E402

TABLES = ("captions", "scores", "verdicts", "pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--regenerate", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(asked, Path(folder)), indent=2))


def measure(asked: argparse.Namespace, place: Path) -> dict[str, object]:
    chance = random.Random(asked.seed)
    run = place / "run"
    multiply(asked.run, run, asked.count)
    began = time.monotonic()
    export(run, place / "one", place).wait()
    seconds = time.monotonic() - began
    one = exhibits(place / "one")
    alone = time.monotonic()
    export(run, place / "few", place, caption=one[0].name).wait()
    start = time.monotonic() - alone

    verified_after_kills, there = 0, 0
    for number in range(asked.kills):
        process = export(run, place / "two", place)
        wait_for(place / "two", there + 1, process)
        time.sleep(chance.uniform(0, seconds / (asked.kills + 2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = exhibits(place / "two")
        there = len(found)
        verified_after_kills += all(
            verify(each, anchor(place))["verified"] for each in chance.sample(found, min(10, there))
        )
        print(f"kill {number + 1}: {there} exhibits there", file=sys.stderr)
    export(run, place / "two", place).wait()
    return {
        "exhibits": len(one),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "seconds": round(seconds, 1),
        "seconds_to_start_and_make_one": round(start, 1),
        "seconds_for_each": round((seconds - start) / (len(one) - 1), 3),
        "megabytes_for_each": round(sum(path.stat().st_size for path in one[0].rglob("*")) / 1e6, 2),
        "kills": asked.kills,
        "kills_after_which_ten_verify": verified_after_kills,
        "equal_byte_for_byte_after_kills": equal(place / "one", place / "two"),
        "whole_export_verifies": verify(place / "two", anchor(place))["verified"],
        "regenerated": [
            regenerated(each, place)
            for each in chance.sample(list(originals(one, asked.run)), asked.regenerate)
        ],
    }


def multiply(run: Path, out: Path, count: int) -> None:
    """A run with so many captions, those of `run` again and again under other words."""
    out.mkdir()
    for name in ("run.json", "verdicts.json"):
        shutil.copy(run / name, out / name)
    tables = {
        name: pa.concat_tables([pq.read_table(part) for part in sorted((run / name).glob("*.parquet"))])
        for name in TABLES
    }
    captions = tables["verdicts"].column("caption").to_pylist()
    copies = {name: [] for name in TABLES}
    for number in range(-(-count // len(captions))):
        words = {
            caption_id(text): text + f" ({number})" * (number > 0)
            for text in captions[: count - number * len(captions)]
        }
        for name, table in tables.items():
            rows = [row for row in table.to_pylist() if row["caption_id"] in words]
            for row in rows:
                text = words[row["caption_id"]]
                row["caption_id"] = caption_id(text)
                if "caption" in row:
                    row["caption"] = text
            copies[name].append(pa.Table.from_pylist(rows, schema=table.schema))
    for name, parts in copies.items():
        (out / name).mkdir()
        pq.write_table(pa.concat_tables(parts), out / name / "part-000000000000.parquet", row_group_size=64)
    shutil.copy(run / "input.parquet", out / "input.parquet")


def export(run: Path, out: Path, place: Path, caption: str = "") -> subprocess.Popen:
    which = ["--caption", caption] if caption else ["--verdicts", "MV,TV,RV,PV,N,U"]
    command = ["exhibit", str(run), *which, "--out", str(out), "--register", str(place / "register.jsonl")]
    return subprocess.Popen(
        [sys.executable, "-m", "audit", *command], cwd=ROOT, env=environment(place), stdout=subprocess.DEVNULL
    )


def environment(place: Path) -> dict[str, str]:
    """A data folder of this measure's own."""
    return os.environ | {"VERBATIM_DATA_DIR": str(place / "data")}


def exhibits(out: Path) -> list[Path]:
    return sorted(path for path in out.glob("[0-9a-f]*") if path.is_dir())


def wait_for(out: Path, count: int, process: subprocess.Popen) -> None:
    while process.poll() is None and len(exhibits(out)) < count:
        time.sleep(0.02)


def anchor(place: Path) -> Anchor:
    return Anchor.open(place / "register.jsonl")


def equal(one: Path, other: Path) -> bool:
    files = [
        sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) for out in (one, other)
    ]
    return files[0] == files[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files[0]
    )


def originals(found: list[Path], run: Path) -> list[Path]:
    """The exhibits whose captions are those of the run that was really sampled."""
    names = {
        name
        for part in (run / "verdicts").glob("*.parquet")
        for name in pq.read_table(part, columns=["caption_id"]).column(0).to_pylist()
    }
    return [each for each in found if each.name in names]


def regenerated(exhibit: Path, place: Path) -> dict[str, object]:
    command = [
        "verify",
        str(exhibit),
        "--register",
        str(place / "register.jsonl"),
        "--regenerate",
        "--model",
        "demo",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "audit", *command],
        cwd=ROOT,
        env=environment(place),
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)["regenerated"]


if __name__ == "__main__":
    main()
