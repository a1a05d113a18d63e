"""Exhibits of many captions: seconds for each, equal bytes, and what is there after kills, as JSON; exit status 1 where a
measure does not hold.

``python tests/measures/exhibits.py RUN [--count 500] [--kills 5] [--regenerate 3]``: a run is made of RUN's captions, each several
times under other words, as sampling so many would take hours; it is exported whole, exported again while being killed at
random instants, and both are compared byte for byte and verified. After each kill every exhibit there has to be equal to
that of the whole export, ten of them are verified, and no process may be left. Some of the pictures are made again from
their seeds, by another process and in another precision.
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
SECONDS = 0.5
"""For each exhibit, at most."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--regenerate", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked, Path(folder))
    print(json.dumps(found, indent=2))
    return int(not all(found["holds"].values()))


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

    kills = [killed(run, place, chance, seconds / (4 * asked.kills + 4)) for _ in range(asked.kills)]
    export(run, place / "two", place).wait()
    sampled = chance.sample(originals(one, asked.run), asked.regenerate)
    again = [regenerated(each, place, dtype) for each in sampled for dtype in ("float32", "bfloat16")]
    for_each = (seconds - start) / (len(one) - 1)
    return {
        "exhibits": len(one),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "seconds": round(seconds, 1),
        "seconds_to_start_and_make_one": round(start, 1),
        "seconds_for_each": round(for_each, 3),
        "megabytes_for_each": round(sum(path.stat().st_size for path in one[0].rglob("*")) / 1e6, 2),
        "kills": kills,
        "regenerated": again,
        "holds": {
            "all_exported": len(one) == asked.count,
            "quick_enough": for_each <= SECONDS,
            "killed_while_it_worked": all(each["killed"] for each in kills),
            "what_is_there_verifies": all(each["equal"] and each["verified"] for each in kills),
            "no_process_is_left": not any(each["processes_left"] for each in kills),
            "equal_byte_for_byte": equal(place / "one", place / "two"),
            "whole_export_verifies": verify(place / "two", anchor(place))["verified"],
            "regenerated_within_tolerance": all(each["within"] for each in again),
        },
    }


def killed(run: Path, place: Path, chance: random.Random, longest: float) -> dict[str, object]:
    """One export killed at a random instant, after it has made at least one exhibit more; what it left."""
    out = place / "two"
    before = len(exhibits(out))
    process = export(run, out, place)
    wait_for(out, before + 1, process)
    time.sleep(chance.uniform(0, longest))
    was_killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = exhibits(out)
    told = {
        "killed": was_killed,
        "there": len(found),
        "equal": all(equal(place / "one" / each.name, each) for each in found),
        "verified": all(
            verify(each, anchor(place))["verified"] for each in chance.sample(found, min(10, len(found)))
        )
        and verified_as_stopped(out, place),
        "processes_left": left_of(process.pid),
    }
    print(f"killed with {len(found)} exhibits there", file=sys.stderr)
    return told


def verified_as_stopped(out: Path, place: Path) -> bool:
    """Whether the export is told to be one that was stopped, by a copy of it with three exhibits."""
    few = place / "few of two"
    shutil.rmtree(few, ignore_errors=True)
    few.mkdir()
    for path in [*exhibits(out)[:3], *out.glob(".unfinished-*")]:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, few / path.name)
    found = verify(few, anchor(place))
    return found["verified"] and any("was stopped" in each for each in found["not_checked"])


def left_of(session: int) -> int:
    """Processes of an export's session that live ten seconds after it."""
    end = time.monotonic() + 10
    while (
        left := sum(in_session(path, session) for path in Path("/proc").glob("[0-9]*"))
    ) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def in_session(process: Path, session: int) -> bool:
    try:
        state, _, _, of = (process / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return False
    return int(of) == session and state != "Z"


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
        [sys.executable, "-m", "audit", *command],
        cwd=ROOT,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
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


def regenerated(exhibit: Path, place: Path, dtype: str) -> dict[str, object]:
    command = [
        "verify",
        str(exhibit),
        "--register",
        str(place / "register.jsonl"),
        "--regenerate",
        "--model",
        "demo",
        "--dtype",
        dtype,
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
    sys.exit(main())
