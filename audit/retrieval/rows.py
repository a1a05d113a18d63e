"""Whose vector is whose: the metadata of an index, row for row, in constant memory.

A small table stands in memory. A large one is written once into the data folder as Arrow, memory-mapped from then
on, with sorted hashes beside it: a name, a caption or a file's hash is found by bisection, not by a scan.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit.corpus.reader import CAPTION_NAMES, LICENCE_NAMES, URL_NAMES, Row, utf8
from audit.corpus.stored import within
from audit.errors import InputError
from audit.images import sha256
from audit.settings import settings

COLUMNS = (
    "image_id",
    "image_path",
    "member",
    "caption",
    "title",
    "keywords",
    "author",
    "licence",
    "source",
    "url",
    "family",
    "sha256",
)
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
NAMES = {
    "image_id": ("image_id", "id"),
    "caption": CAPTION_NAMES,
    "licence": LICENCE_NAMES,
    "url": URL_NAMES,
}
"""What the public tools call our columns."""
LOOKUPS = ("image_id", "caption", "sha256")
IN_MEMORY = 200_000
"""Rows; a table of more is memory-mapped."""
BATCH = 65_536


class Rows(Sequence[Row]):
    """The rows of an index, each made when it is asked for."""

    def __init__(self, batches: Sequence[pa.RecordBatch], root: Path, saved: Path | None = None):
        self._batches = [batch for batch in batches if len(batch)]
        self._starts = np.cumsum([0, *map(len, self._batches)])
        self.root = Path(os.path.abspath(root))
        """Folder that the pictures' paths start from."""
        self._saved = saved
        self._lookups: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @classmethod
    def open(cls, files: Sequence[Path], root: Path) -> Rows:
        """Rows of parquet files in the order given; pictures are named relative to `root`.

        Raises
        ------
        InputError
            If a file is not readable parquet, or two rows have one name: a row would stand for another picture.
        """
        count = sum(_metadata(path).num_rows for path in files)
        for named in ("image_path", "whole path"):
            if count <= IN_MEMORY:
                rows = cls(list(_normalised(files, named)), root)
            else:
                rows = cls._mapped(files, named, root)
            twice = rows._repeated()
            if twice is None:
                return rows
            if "image_id" in _metadata(files[0]).schema.names:
                break
        raise InputError(
            f"The index has two rows named {twice[:80]}; give each picture its own image_id and build it again."
        )

    @classmethod
    def _mapped(cls, files: Sequence[Path], named: str, root: Path) -> Rows:
        found = [path.stat() for path in files]
        lines = [
            f"{path.resolve()} {each.st_size} {each.st_mtime_ns}"
            for path, each in zip(files, found, strict=True)
        ]
        folder = settings().data_dir / "rows" / sha256("\n".join([named, *lines]).encode())[:32]
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
            with (
                pa.OSFile(str(unfinished / "rows.arrow"), "wb") as sink,
                pa.ipc.new_file(sink, SCHEMA) as writer,
            ):
                for batch in _normalised(files, named):
                    writer.write_batch(batch)
            made = cls(_memory_mapped(unfinished / "rows.arrow"), root)
            for column in LOOKUPS:
                for part, values in zip(("hashes", "places"), made._lookup(column), strict=True):
                    np.save(unfinished / f"{column}.{part}.npy", values)
            try:
                os.replace(unfinished, folder)
            except OSError:  # another process was first
                shutil.rmtree(unfinished, ignore_errors=True)
        return cls(_memory_mapped(folder / "rows.arrow"), root, folder)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = place + len(self) if place < 0 else place
        if not 0 <= place < len(self):
            raise IndexError(place)
        batch = int(np.searchsorted(self._starts, place, side="right")) - 1
        rows, at = self._batches[batch], place - int(self._starts[batch])
        return self._row([rows.column(column)[at].as_py() for column in range(len(COLUMNS))])

    def __iter__(self) -> Iterator[Row]:
        for batch in self._batches:
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield self._row(values)

    def find(self, column: str, value: str) -> list[int]:
        """Places of the rows whose `column` (one of `LOOKUPS`) is exactly `value`, in order."""
        hashes, places = self._lookup(column)
        wanted = _hashes(pa.array([value], pa.string()))[0]
        first, last = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        found = sorted(int(place) for place in places[first:last])
        # a hash of 64 bits is shared by chance once in billions of rows: the value itself decides
        return [place for place in found if self._value(column, place) == value]

    def containing(self, words: Sequence[str]) -> list[int]:
        """Places of the rows whose caption contains all of the words, however they are capitalised, in order."""
        found = []
        for start, batch in zip(self._starts, self._batches, strict=False):
            captions = batch.column(COLUMNS.index("caption"))
            has = pa.array(np.ones(len(batch), bool))
            for word in words:
                has = pc.and_(has, pc.match_substring(captions, word, ignore_case=True))  # pyright: ignore[reportAttributeAccessIssue]
            found.append(int(start) + np.flatnonzero(has.to_numpy(zero_copy_only=False)))
        return np.concatenate(found).tolist() if found else []

    def column(self, name: str) -> Iterator[str]:
        """The values of one column, in order."""
        for batch in self._batches:
            yield from batch.column(COLUMNS.index(name)).to_pylist()

    def _value(self, column: str, place: int) -> str:
        batch = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._batches[batch].column(COLUMNS.index(column))[place - int(self._starts[batch])].as_py()

    def _row(self, values: Sequence[str]) -> Row:
        texts = dict(zip(COLUMNS, values, strict=True))
        return Row(path=within(self.root, texts.pop("image_path")), **texts)

    def _lookup(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Sorted hashes (n,) uint64 of a column, and the place of each."""
        if column not in self._lookups:
            if self._saved is not None:
                self._lookups[column] = (
                    np.load(self._saved / f"{column}.hashes.npy", mmap_mode="r", allow_pickle=False),
                    np.load(self._saved / f"{column}.places.npy", mmap_mode="r", allow_pickle=False),
                )
            else:
                number = COLUMNS.index(column)
                hashes = [_hashes(batch.column(number)) for batch in self._batches]
                whole = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
                places = np.argsort(whole, kind="stable")
                self._lookups[column] = (whole[places], places)
        return self._lookups[column]

    def _repeated(self) -> str | None:
        """A name that two rows have; None where each has its own."""
        hashes, places = self._lookup("image_id")
        for at in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            name = self._value("image_id", int(places[at]))
            if name == self._value("image_id", int(places[at + 1])):
                return name
        return None


def normalise(batch: pa.RecordBatch, start: int, named: str = "image_path") -> pa.RecordBatch:
    """A batch of metadata by whatever public tool, as `SCHEMA`; `start` is the place of its first row.

    Rows without a name are called after their file (or its whole path, where files in several folders share a name),
    else after their place.
    """
    columns = {name: _texts(batch, NAMES.get(name, (name,))) for name in COLUMNS}
    if columns["image_id"] is None:
        paths = columns["image_path"]
        if paths is not None:
            columns["image_id"] = paths if named == "whole path" else _stems(paths)
        else:
            columns["image_id"] = pa.array([str(start + at) for at in range(len(batch))])
    empty = pa.array([""] * len(batch), pa.string())
    return pa.RecordBatch.from_arrays(
        [empty if (column := columns[name]) is None else column for name in COLUMNS], schema=SCHEMA
    )


def _texts(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array | None:
    name = next((name for name in names if name in batch.schema.names), None)
    if name is None:
        return None
    column = utf8(batch.column(name))
    try:
        return pc.fill_null(column.cast(pa.string()), "")
    except pa.ArrowException:  # lists, as `urls` of some sets
        return pa.array(["" if value is None else str(value) for value in column.to_pylist()], pa.string())


def _stems(paths: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(paths, r"^.*/|\.[^./]*$", "")  # pyright: ignore[reportAttributeAccessIssue]


def _normalised(files: Sequence[Path], named: str) -> Iterator[pa.RecordBatch]:
    start = 0
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH):
                    yield normalise(batch, start, named)
                    start += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not readable parquet; build the index again.") from error


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not readable parquet; build the index again.") from error


def _memory_mapped(path: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _hashes(column: pa.Array) -> np.ndarray:
    return pd.util.hash_array(column.to_numpy(zero_copy_only=False), categorize=False)
