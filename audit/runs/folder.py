"""A run on disk: ``run.json`` and tables of parquet parts, written so that it can stop at any instant.

::

    run.json            every parameter, version and hash
    state.json          where it is: a heartbeat of the process that works on it
    input.parquet       the distinct captions, in the order in which they are scored
    rejected.parquet    rows of the source that hold no usable caption, with the reason
    scores/, captions/  parts, each named by its first row of input.parquet
    verdicts/           parts, numbered
    pictures/           the generated pictures behind the verdicts, in parts of the same numbers
    cancel              somebody asked the worker to stop
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import Cancelled, InputError
from audit.files import write_json, write_parquet

DESCRIPTION = "run.json"
REQUIRED = ("model", "model_sha256", "seeds", "guidance", "noise")
"""What it has to say for the run to be gone on with."""
INPUT = "input.parquet"
STATE, LOCK, CANCEL = "state.json", "lock", "cancel"
WORKING = ("reading", "scoring", "deciding")
BEAT = 2.0
"""Seconds between two heartbeats."""
GROUPS = (("scores", "captions"), ("verdicts",))
"""Tables whose parts are written together: a part counts when all of its group have it."""
FOLLOWS = {"pictures": "verdicts"}
"""Tables whose parts are written before those of another, which say that they count; a run of an earlier version has none."""
GROUP_ROWS = {"pictures": 8}
"""Rows that are read together, where they are large."""
PART_ROWS = 16_384
PART_BYTES = 256_000_000
PART_SECONDS = (1.0, 20.0)
"""A part is written after so many rows or seconds: as much is lost at most when the machine stops. The first one comes
soon, so that there is something to see; each waits twice as long as the one before, up to the second figure."""


class RunFolder:
    """A run's folder: ``run.json``, ``input.parquet``, and ``TABLE/part-00000.parquet`` and so on."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path, description: dict[str, Any]) -> RunFolder:
        """A new run, or InputError where other files are in the way."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} holds something else than a run; give an empty or new folder.")
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / DESCRIPTION, description)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run."""
        if not (path / DESCRIPTION).is_file():
            raise InputError(f"{path} is no run (it has no {DESCRIPTION}); make one with `score`.")
        return cls(path)

    @staticmethod
    def exists(path: Path) -> bool:
        return (path / DESCRIPTION).is_file()

    @property
    def description(self) -> dict[str, Any]:
        """``run.json``: parameters, versions, hashes."""
        try:
            description = json.loads((self.path / DESCRIPTION).read_text(encoding="utf-8"))
            absent = [name for name in REQUIRED if name not in description]
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.path / DESCRIPTION} is damaged; start the run anew elsewhere."
            ) from error
        if absent:
            raise InputError(
                f"{self.path / DESCRIPTION} lacks {', '.join(absent)}; start the run anew elsewhere."
            )
        return description

    def describe(self, **more: Any) -> None:
        """Add to ``run.json``."""
        write_json(self.path / DESCRIPTION, self.description | more)

    @property
    def has_input(self) -> bool:
        """Whether the captions have been read."""
        return (self.path / INPUT).is_file()

    @property
    def total(self) -> int:
        """Distinct captions under audit; 0 before they have been read."""
        return pq.read_metadata(self.path / INPUT).num_rows if self.has_input else 0

    def missing(self) -> list[tuple[int, int]]:
        """Row ranges of the captions that are not scored yet, each first and one past the last."""
        gaps, place = [], 0
        for part in self.parts("captions"):
            first = part_number(part)
            if first > place:
                gaps.append((place, first))
            place = first + pq.read_metadata(part).num_rows
        return [*gaps, (place, self.total)] if place < self.total else gaps

    def count(self, name: str) -> int:
        """Rows of a table, from what its parts say of themselves."""
        return sum(pq.read_metadata(part).num_rows for part in self.parts(name) if is_whole(part))

    def table(self, name: str) -> pd.DataFrame:
        """All rows of a table, in the order they were written; empty before the first part."""
        parts = self.parts(name)
        return pd.concat([read_part(part) for part in parts], ignore_index=True) if parts else pd.DataFrame()

    def parts(self, name: str) -> list[Path]:
        """The whole parts of a table: those that all tables of its group have."""
        needed = [FOLLOWS[name]] if name in FOLLOWS else next(group for group in GROUPS if name in group)
        return [
            self.path / name / part
            for part in sorted(path.name for path in (self.path / name).glob("part-*.parquet"))
            if all((self.path / table / part).is_file() for table in needed)
        ]

    def next_part(self, names: Sequence[str]) -> int:
        """A number that no part of these tables has yet."""
        there = [path for name in names for path in (self.path / name).glob("part-*.parquet")]
        return max(map(part_number, there), default=-1) + 1

    def append(self, tables: dict[str, pa.Table], number: int | None = None) -> None:
        """Write one part of a group of tables; `repair` removes what a crash leaves of it."""
        number = self.next_part(tuple(tables)) if number is None else number
        part = f"part-{number:012d}.parquet"
        for name in sorted(tables, key=lambda name: name not in FOLLOWS):
            (self.path / name).mkdir(exist_ok=True)
            write_parquet(tables[name], self.path / name / part, row_group_size=GROUP_ROWS.get(name))

    def repair(self) -> None:
        """Remove unfinished and damaged parts, with their companions: their rows are computed again."""
        for group in GROUPS:
            for name in group:
                for leftover in (self.path / name).glob("*.partial"):
                    leftover.unlink()
            parts = {path.name for name in group for path in (self.path / name).glob("part-*.parquet")}
            for part in parts:
                paths = [self.path / name / part for name in group]
                if not all(is_whole(path) for path in paths):
                    for path in paths:
                        path.unlink(missing_ok=True)
        for name, needed in FOLLOWS.items():
            for leftover in (self.path / name).glob("part-*.parquet*"):
                if leftover.suffix != ".parquet" or not is_whole(self.path / needed / leftover.name):
                    leftover.unlink()

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the run for this process; InputError where another one holds it."""
        with open(self.path / LOCK, "w") as stream:
            if not hold(stream):
                raise InputError(f"Another process works on the run {self.path}; wait for it.")
            yield

    @contextlib.contextmanager
    def work(self, stage: str) -> Iterator[Heart]:
        """Hold the run, mend what a crash left of it, and tell of the work until its end, however it ends."""
        with self.owned(), Heart(self, stage) as heart:
            self.repair()
            yield heart

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the worker to stop."""
        return (self.path / CANCEL).exists()

    def cancel(self) -> None:
        """Ask the worker to stop at its next batch; what it has done is kept."""
        (self.path / CANCEL).touch()

    def state(self) -> State:
        """Where the run is. A worker that died without a word is told from one that works by the run's lock."""
        try:
            state = State(**json.loads((self.path / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            done, total = self.count("captions"), self.total
            state = State(stage="done" if total and done == total else "new", done=done, total=total)
        if state.stage in WORKING and not self.locked():
            return replace(state, stage="interrupted", done=self.count("captions"), total=self.total)
        return state

    def locked(self) -> bool:
        """Whether a process works on the run now."""
        return is_held(self.path / LOCK)


@dataclass(frozen=True)
class State:
    """What a worker says of its run, every few seconds."""

    stage: str
    """``reading``, ``scoring`` or ``deciding`` while it works; ``done``, ``cancelled`` or ``failed``."""
    done: int = 0
    total: int = 0
    """Captions; 0 while they are not counted yet."""
    rate: float = 0.0
    """Captions a second in this stage, lately."""
    at: float = 0.0
    """Unix time."""
    pid: int = 0
    message: str = ""
    """Why it failed, in a sentence."""

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate > 0 and self.total else None


class Parts:
    """Rows of a group of tables that wait for their part to be written; what waits at the end is written too.

    Rows that are numbered (`first`) follow each other without a gap within a part.
    """

    def __init__(self, run: RunFolder):
        self.run = run
        self.waiting: list[dict[str, pa.Table]] = []
        self.first: int | None = None
        self.next: int | None = None
        self.rows = self.bytes = 0
        self.patience = PART_SECONDS[0]
        self.written = time.monotonic()

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, (Exception, KeyboardInterrupt)):
            self.write()

    def add(self, tables: dict[str, pa.Table], first: int | None = None) -> None:
        if first != self.next:
            self.write()
        if not self.waiting:
            self.first = first
        if first is not None:
            self.next = first + min(map(len, tables.values()))
        self.waiting.append(tables)
        self.rows += max(len(rows) for rows in tables.values())
        self.bytes += sum(rows.nbytes for rows in tables.values())
        late = time.monotonic() - self.written > self.patience
        if self.rows >= PART_ROWS or self.bytes >= PART_BYTES or late:
            self.write()
            self.patience = min(2 * self.patience, PART_SECONDS[1])

    def write(self) -> None:
        if self.waiting:
            names = self.waiting[0]
            whole = {
                name: pa.concat_tables([tables[name] for tables in self.waiting]).combine_chunks()
                for name in names
            }
            if self.first is None:  # set before the first try: a second one writes the same part
                self.first = self.run.next_part(tuple(names))
            self.run.append(whole, self.first)
        self.first = None
        self.waiting, self.rows, self.bytes, self.written = [], 0, 0, time.monotonic()


class Heart:
    """Writes a run's state while a worker is at it, from a thread of its own, and its end."""

    def __init__(self, run: RunFolder, stage: str):
        self.run = run
        self.now = State(stage, pid=os.getpid())
        self.began: tuple[float, int] | None = None
        self.stopped = threading.Event()
        self.writing = threading.Lock()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heart:
        (self.run.path / CANCEL).unlink(missing_ok=True)
        self._write()
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.stopped.set()
        self.thread.join()
        if error is None:
            stage, message = "done", ""
        elif isinstance(error, (Cancelled, KeyboardInterrupt)):
            stage, message = "cancelled", ""
        else:
            stage, message = "failed", sentence(error)
        self.now = replace(self.now, stage=stage, rate=0.0, message=message)
        with contextlib.suppress(OSError):  # a full disk must not hide the error that tells of it
            self._write()

    def tell(self, done: int, total: int, stage: str | None = None) -> None:
        """Where the work is; raises Cancelled where somebody asked to stop."""
        clock, stage = time.monotonic(), stage or self.now.stage
        turned = stage != self.now.stage
        if self.began is None or turned:
            self.began = (clock, done)
        seconds, before = clock - self.began[0], self.began[1]
        rate = (done - before) / seconds if seconds > 0.5 else 0.0
        self.now = replace(self.now, stage=stage, done=done, total=total, rate=rate)
        if turned:
            self._write()
        if self.run.cancelled:
            raise Cancelled(f"The run {self.run.path} was stopped; the same command goes on where it was.")

    def _beat(self) -> None:
        while not self.stopped.wait(BEAT):
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        with self.writing:
            write_json(self.run.path / STATE, asdict(replace(self.now, at=time.time())), sync=False)


def sentence(error: BaseException) -> str:
    """An error as one line for people."""
    if disk_is_full(error):
        return "The disk is full; make room and resume the run."
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left, in the words of the system or of DuckDB."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return "No space left on device" in str(error)


def hold(stream: IO[Any]) -> bool:
    """Take the lock on an open file; False where another process has it.

    A page that looks whether it is held (`is_held`) has it for an instant itself, so this tries more than once.
    """
    for wait in (0.05, 0.2, 0.5, 0.0):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(wait)
    return False


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock on a file."""
    try:
        with open(lock) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def part_number(path: Path) -> int:
    return int(path.stem.removeprefix("part-"))


def is_whole(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    return True


def read_part(path: Path) -> pd.DataFrame:
    try:
        return pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged; resume the run with the command that made it.") from error
