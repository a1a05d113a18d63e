"""Exports that the dashboard starts: stopped, they are gone with all of their processes."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from audit.evidence import exports
from audit.runs.folder import is_held

POOL = """
import concurrent.futures, multiprocessing, os, sys, time
sys.path.insert(0, sys.argv[1])
from audit.evidence.export import serve

if __name__ == "__main__":
    pool = concurrent.futures.ProcessPoolExecutor(
        2, mp_context=multiprocessing.get_context("spawn"), initializer=serve
    )
    for each in [pool.submit(time.sleep, 1) for _ in range(4)]:
        each.result()
    print(*(each.pid for each in multiprocessing.active_children()), flush=True)
    time.sleep(300)
"""


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def lives(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


def test_processes_that_build_end_with_the_one_that_they_build_for(tmp_path):
    code, log = tmp_path / "pool.py", tmp_path / "log"
    code.write_text(POOL)
    with open(log, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, str(code), str(Path(exports.__file__).parents[2])],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        assert until(lambda: log.read_text().endswith("\n")), log.read_text()
        pids = log.read_text().split()
        assert len(pids) == 2 and all(map(lives, pids)) and is_held(log)
        process.kill()
        process.wait()
        assert until(lambda: not any(map(lives, pids)), 10)
        assert until(lambda: not is_held(log), 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_stop_ends_an_export_that_another_dashboard_started(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "exports_folder", lambda: tmp_path)
    exports.start("mine", tmp_path / "nowhere", ["0" * 16])
    exports.stop("mine")  # it is known by its file alone
    assert until(lambda: not exports.export("mine").works, 20)
    assert "no run" not in exports.export("mine").message  # which it would have come to
    exports.stop("mine")
