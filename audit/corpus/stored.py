"""Where a training picture's bytes lie: in a file of its own, inside a tar or a parquet file.

A row says it by ``path`` and ``member``: ``""`` for a file of its own, ``OFFSET+SIZE`` for bytes inside an
uncompressed tar, ``COLUMN:ROW`` for a cell of a parquet file. So any picture of a tar is read without the others, and of a
parquet file with those of its row group, or where these are too many to be held, after those before it, one at a time.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import InputError
from audit.images import decode

MAX_BYTES = 100_000_000
"""A stored picture of more bytes is refused: metadata could ask for any length."""
BUFFER = 1_000_000
"""Bytes of a parquet file read together."""
HELD = 100_000_000
"""A parquet row group's column of as many bytes, unpacked, is held whole: its pictures are asked for in any order."""
MOST_PACKED = 20
"""Bytes that one byte of a packed column of pictures may unpack to: they are packed themselves."""
IN_TAR = re.compile(r"(\d{1,15})\+(\d{1,12})")
IN_PARQUET = re.compile(r"(\w{1,40}):(\d{1,12})")


class Stored(Protocol):
    """What names a picture: a row of a training set, or a neighbour."""

    @property
    def image_id(self) -> str: ...
    @property
    def path(self) -> Path | str: ...
    @property
    def member(self) -> str: ...
    @property
    def url(self) -> str: ...


@dataclass(frozen=True)
class Root:
    """A folder that paths of pictures start from, and do not leave."""

    folder: Path
    links: bool = True
    """Whether links in it may lead out of it: they are whoever's made it."""


def stored_bytes(path: Path, member: str = "") -> bytes:
    """The bytes of one picture.

    Raises
    ------
    InputError
        If the file is missing, ends before the picture does, or `member` is none of the forms above.
    """
    try:
        if not member:
            if path.stat().st_size > MAX_BYTES:
                raise InputError(
                    f"{path.name} is larger than {MAX_BYTES:,} bytes; pictures are smaller: leave it out."
                )
            return path.read_bytes()
        if found := IN_TAR.fullmatch(member):
            return _slice(path, *map(int, found.groups()))
        if found := IN_PARQUET.fullmatch(member):
            return _cell(path, found[1], int(found[2]))
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read; check that the training set is still there."
        ) from error
    raise InputError(f"{member[:60]!r} names no place inside {path.name}; build the index again.")


def within(root: Root | None, path: str) -> Path:
    """A picture's path below `root`, or ``Path()``, which none has, where metadata would point anywhere else."""
    if root is None or not path or "\0" in path:
        return Path()
    base = os.path.abspath(root.folder)
    whole = os.path.normpath(os.path.join(base, path))
    if not _below(whole, base):
        return Path()
    if not root.links and not _below(os.path.realpath(whole), os.path.realpath(base)):
        return Path()
    return Path(whole)


def _below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def is_local(stored: Stored) -> bool:
    """Whether a picture lies in a file here."""
    return str(stored.path) not in ("", ".")


def open_stored(stored: Stored) -> np.ndarray:
    """The decoded picture of a row or a neighbour, (H, W, 3) float32 in [0, 1]; InputError where it cannot be read."""
    return decode(local_bytes(stored), stored.image_id)


def local_bytes(stored: Stored) -> bytes:
    """The bytes of the picture of a row or a neighbour; InputError where they are not here or cannot be read."""
    if not is_local(stored):
        if stored.url:
            raise InputError(f"{stored.image_id[:80]} has no file here; its address is all that is known.")
        raise InputError(
            f"{stored.image_id[:80]} has no file that is opened here; where its training set lies on this machine, name "
            "that folder in VERBATIM_PICTURES."
        )
    return stored_bytes(Path(stored.path), stored.member)


def _slice(path: Path, offset: int, size: int) -> bytes:
    if size > MAX_BYTES:
        raise InputError(f"A picture of {size:,} bytes in {path.name} is too large; build the index again.")
    with open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) < size:
        raise InputError(f"{path.name} is shorter than when it was indexed; build the index again.")
    return data


class _Column:
    """A column of one row group: held whole where that is little, and else read forwards, so that memory holds one page of
    it and one value, whatever the group holds.

    What unpacks to far more than it takes on disk holds no pictures and is refused: one page of it could be 2 GB.
    """

    def __init__(self, path: Path, group: int, column: str):
        # without these two, the column is read as a whole before its first value is given
        self._file = pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
        size = self._check_size(path, group, column)
        self._whole = None
        if size <= HELD:
            self._whole = self._file.read_row_group(group, [column]).column(0)
        else:
            self._batches = self._file.iter_batches(1, [group], [column], use_threads=False)
        self._value: pa.Array | None = None
        self._row = -1
        """Of the value read last."""

    def _check_size(self, path: Path, group: int, column: str) -> int:
        """Bytes of the column, unpacked."""
        columns = self._file.metadata.row_group(group)
        size = 0
        for chunk in map(columns.column, range(columns.num_columns)):
            if chunk.path_in_schema.split(".")[0] != column:
                continue
            if chunk.total_uncompressed_size > MAX_BYTES + MOST_PACKED * chunk.total_compressed_size:
                raise InputError(
                    f"{path.name} would unpack to {chunk.total_uncompressed_size:,} bytes, and pictures do not pack so "
                    "well; leave it out."
                )
            size += chunk.total_uncompressed_size
        return size

    def has(self, row: int) -> bool:
        """Whether a row can still be read."""
        return self._whole is not None or row >= self._row

    def __getitem__(self, row: int) -> object:
        if self._whole is not None:
            return self._whole[row].as_py()
        while self._row < row:
            batch = next(self._batches, None)
            if batch is None:
                raise IndexError(row)
            value = batch.column(0)
            if value.nbytes > MAX_BYTES:
                raise InputError(f"A picture of {value.nbytes:,} bytes is too large; leave it out.")
            self._value = value
            self._row += 1
        assert self._value is not None
        return self._value[0].as_py()


_reading = Lock()
_last: dict[tuple[Path, int, int, str], _Column] = {}
"""The column read last, by its file with its time, group and name: a build asks for one picture of it after the other."""


def _in_group(path: Path, group: int, column: str, row: int) -> object:
    name = (path, path.stat().st_mtime_ns, group, column)
    with _reading:
        found = _last.pop(name, None)
        _last.clear()
        if found is None or not found.has(row):
            found = _Column(path, group, column)
        value = found[row]
        _last[name] = found
    return value


def _cell(path: Path, column: str, row: int) -> bytes:
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < rows:
                    value = _in_group(path, group, column, row)
                    break
                row -= rows
            else:
                value = None
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise InputError(
            f"{path.name} is no readable parquet file with pictures; build the index again."
        ) from error
    if isinstance(value, dict):  # as Hugging Face's datasets keep an image
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise InputError(f"{path.name} holds no picture in its column {column}; build the index again.")
    return value
