"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(rows: pa.Table, path: Path, *, row_group_size: int | None = None) -> None:
    """Write a table atomically; rows of a group are read together."""
    sink = pa.BufferOutputStream()  # Python's own writing says when the disk is full
    pq.write_table(rows, sink, row_group_size=row_group_size)
    replace_file(path, lambda partial: partial.write_bytes(sink.getvalue()))


def write_json(path: Path, content: dict[str, Any], *, sync: bool = True) -> None:
    """Write an object as indented JSON, atomically; see `replace_file`."""
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"), sync=sync)


def replace_file(path: Path, write: Callable[[Path], object], *, sync: bool = True) -> None:
    """The file has its old content or the new one, which `write` puts where it is told, whatever happens meanwhile.

    Without `sync` the new one may be lost with the machine's power.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        if sync:
            put(partial, path)
        else:
            os.replace(partial, path)
    except OSError:
        # on a full disk this is the room in which the run's state can be told
        partial.unlink(missing_ok=True)
        raise


def put(written: Path, path: Path) -> None:
    """Rename a file to its place once it is on the disk, so that it is whole there even if the power fails."""
    sync_to_disk(written)
    os.replace(written, path)
    sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
