"""Captions of a run that were set aside for people to look at: a parquet file each, with all that the run says of them.

A selection stands for itself: the run may be deleted, the selection keeps what was seen. It lies in ``selections``
in the data folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import InputError
from audit.files import put
from audit.runs.jobs import check_name
from audit.runs.results import EVERYTHING, Filter, Results
from audit.settings import settings


@dataclass(frozen=True)
class Selection:
    """One selection, without its rows."""

    name: str
    path: Path
    captions: int
    run: str


def selections_folder() -> Path:
    return settings().data_dir / "selections"


def select(
    found: Results, name: str, *, wanted: Filter = EVERYTHING, caption_ids: Sequence[str] | None = None
) -> Selection:
    """Set captions of a run aside: those named, or all that a filter leaves.

    Raises
    ------
    InputError
        If the name is no name or there is such a selection, or if no caption is meant.
    """
    path = selections_folder() / f"{check_name(name)}.parquet"
    if path.exists():
        raise InputError(f"There is a selection {name!r} already; give another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        found.export(partial, "parquet", wanted, caption_ids=caption_ids, also={"run": found.run.path.name})
        if not pq.read_metadata(partial).num_rows:
            raise InputError("No caption is chosen; tick some, or take a filter away.")
        put(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return read(path)


def selections() -> list[Selection]:
    """All selections, the newest first."""
    paths = sorted(selections_folder().glob("*.parquet"), key=lambda path: (-path.stat().st_mtime, path.name))
    return [read(path) for path in paths]


def delete(name: str) -> None:
    (selections_folder() / f"{check_name(name)}.parquet").unlink(missing_ok=True)


def read(path: Path) -> Selection:
    try:
        rows = pq.ParquetFile(path)
        first = next(rows.iter_batches(1, columns=["run"]), None)
    except (OSError, pa.ArrowException):
        return Selection(path.stem, path, 0, "a damaged file")
    return Selection(path.stem, path, rows.metadata.num_rows, first.column("run")[0].as_py() if first else "")
