"""A worker whose disk is full again and again, and one whose memory runs out: what they say, and their rows, as JSON.

``python tests/measures/scarcity.py [--captions 3000] [--model demo]``. The disk is a small tmpfs that grows each time it
was full (mounting it needs root); memory is bounded by the size of the process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.runs.bench import some_captions  # noqa: E402
from audit.runs.folder import RunFolder  # noqa: E402
from tests.measures.kills import check  # noqa: E402

DISK, GROWTH = 300, 150
"""kB of the tmpfs at first, and added whenever it was full."""
SPARE = 300 * 1024**2
"""Bytes beyond what batches of 32 take."""
BATCH = 2048
BOUNDED = """
import json, resource, sys
sys.path.insert(0, {root!r})
from audit.cli import main
if {limit}:
    resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
status = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmPeak"))
print(int(peak.split()[1]) * 1024, file=sys.stderr)
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=3000)
    parser.add_argument("--model", default="demo")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captions = folder / "captions.txt"
        captions.write_text("".join(f"{text}\n" for text in some_captions(asked.captions)), encoding="utf-8")
        command = ["score", str(captions), "--model", asked.model]
        undisturbed = folder / "undisturbed"
        done = worker([*command, "--batch", "32"], undisturbed)
        if done.returncode:
            raise SystemExit(done.stderr)
        report = {
            "captions": asked.captions,
            "full_disk": full_disk(command, folder, undisturbed),
            "out_of_memory": out_of_memory(command, folder, undisturbed, peak(done)),
        }
    print(json.dumps(report, indent=2))


def full_disk(command: list[str], folder: Path, undisturbed: Path) -> dict[str, object]:
    """Score onto a disk that is full, make room, go on; until it is done."""
    disk, size = folder / "disk", DISK
    disk.mkdir()
    mount = ["-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    if subprocess.run(["mount", *mount], check=False).returncode:
        return {"not_available": "mounting a tmpfs needs root"}
    told, states, rows = [], [], []
    try:
        while (done := worker(command, disk / "run")).returncode:
            if done.returncode != 3:
                raise SystemExit(done.stderr)
            told.append(done.stderr.strip().splitlines()[-2])  # the last one is the size of the process
            there = RunFolder.exists(disk / "run")
            states.append(RunFolder(disk / "run").state().stage if there else "no run")
            rows.append(RunFolder(disk / "run").count("captions") if there else 0)
            size += GROWTH
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        difference = check(undisturbed, disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    return {
        "times_full": len(told),
        "told": sorted(set(told)),
        "states": sorted(set(states)),
        "rows_kept": rows,
        "kb_at_last": size,
        "largest_relative_difference": difference,
    }


def out_of_memory(command: list[str], folder: Path, undisturbed: Path, usual: int) -> dict[str, object]:
    """Batches far too large for the memory there is: they are halved until they fit."""
    done = worker([*command, "--batch", str(BATCH)], folder / "bounded", usual + SPARE)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {
        "batch_asked_for": BATCH,
        "spare_mb": SPARE // 1024**2,
        "largest_relative_difference": check(undisturbed, folder / "bounded"),
    }


def worker(command: list[str], out: Path, limit: int = 0) -> subprocess.CompletedProcess:
    program = BOUNDED.format(root=str(ROOT), limit=limit)
    return subprocess.run(
        [sys.executable, "-c", program, *command, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def peak(done: subprocess.CompletedProcess) -> int:
    """Bytes of address space that a worker took at most."""
    return int(done.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
