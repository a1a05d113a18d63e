"""A run on disk: ``run.json`` and tables of parquet parts, written so that it can stop at any instant."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import InputError

DESCRIPTION = "run.json"
REQUIRED = ("model", "model_sha256", "seeds", "guidance", "noise")
"""What it has to say for the run to be gone on with."""
INPUT = "input.parquet"
GROUPS = (("scores", "captions"), ("verdicts",))
"""Tables whose parts are written together: a part counts when all of its group have it."""
PART_ROWS = 4096
PART_SECONDS = 20.0
"""A part is written after so many rows or seconds: as much is lost at most when the machine stops."""


class RunFolder:
    """A run's folder: ``run.json``, ``input.parquet``, and ``TABLE/part-00000.parquet`` and so on."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path, description: dict[str, Any], captions: pd.DataFrame) -> RunFolder:
        """A new run, or InputError where other files are in the way."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} holds something else than a run; give an empty or new folder.")
        path.mkdir(parents=True, exist_ok=True)
        write_parquet(captions, path / INPUT)
        write_atomically(path / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())
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

    def captions(self) -> pd.DataFrame:
        """The distinct captions under audit."""
        return read_part(self.path / INPUT)

    def table(self, name: str) -> pd.DataFrame:
        """All rows of a table, in the order they were written; empty before the first part."""
        parts = self.parts(name)
        return pd.concat([read_part(part) for part in parts], ignore_index=True) if parts else pd.DataFrame()

    def parts(self, name: str) -> list[Path]:
        """The whole parts of a table: those that all tables of its group have."""
        group = next(group for group in GROUPS if name in group)
        return [
            self.path / name / part
            for part in sorted(path.name for path in (self.path / name).glob("part-*.parquet"))
            if all((self.path / table / part).is_file() for table in group)
        ]

    def append(self, tables: dict[str, pd.DataFrame]) -> None:
        """Write one part of a group of tables; `repair` removes what a crash leaves of it."""
        numbers = [
            int(path.stem.removeprefix("part-"))
            for name in tables
            for path in (self.path / name).glob("part-*.parquet")
        ]
        part = f"part-{max(numbers, default=-1) + 1:05d}.parquet"
        for name, rows in tables.items():
            (self.path / name).mkdir(exist_ok=True)
            write_parquet(rows, self.path / name / part)

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

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the run for this process; InputError where another one holds it."""
        with open(self.path / "lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"Another process works on the run {self.path}; wait for it.") from error
            yield


class Parts:
    """Rows of a group of tables that wait for their part to be written."""

    def __init__(self, run: RunFolder):
        self.run = run
        self.waiting: list[dict[str, pd.DataFrame]] = []
        self.written = time.monotonic()

    def add(self, tables: dict[str, pd.DataFrame]) -> None:
        self.waiting.append(tables)
        rows = max(sum(len(tables[name]) for tables in self.waiting) for name in tables)
        if rows >= PART_ROWS or time.monotonic() - self.written > PART_SECONDS:
            self.write()

    def write(self) -> None:
        if self.waiting:
            names = self.waiting[0]
            self.run.append(
                {
                    name: pd.concat([tables[name] for tables in self.waiting], ignore_index=True)
                    for name in names
                }
            )
        self.waiting, self.written = [], time.monotonic()


def is_whole(path: Path) -> bool:
    try:
        pq.read_table(path)
    except (OSError, pa.ArrowException):
        return False
    return True


def read_part(path: Path) -> pd.DataFrame:
    try:
        return pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged; resume the run with the command that made it.") from error


def write_parquet(rows: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def write_atomically(path: Path, content: bytes) -> None:
    """The file has its old content or the new one, whatever happens meanwhile."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
