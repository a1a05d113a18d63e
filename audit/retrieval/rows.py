"""Whose vector is whose: the metadata of an index, row for row, in constant memory.

A small table stands in memory. A large one is written once into the data folder as Arrow, memory-mapped from then
on, with sorted hashes beside it: a name, a caption or a file's hash is found by bisection, not by a scan. They are
sorted on disk, and what names the whole table is kept with them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import overload

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audit.corpus.reader import CAPTION_NAMES, LICENCE_NAMES, URL_NAMES, Row, utf8
from audit.corpus.stored import Root, within
from audit.errors import InputError
from audit.files import write_parquet
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
    "md5",
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
SORTING_MEMORY = "256MB"
"""Of a sort; what is more waits on disk."""
FORM = 2
"""Of what is kept in the data folder: another one is made anew."""
DIGEST = "table.sha256"
LOOKUP = pa.schema([("hashes", pa.uint64()), ("places", pa.int64())])
ARROW = ".arrow"


class Rows(Sequence[Row]):
    """The rows of an index, each made when it is asked for."""

    def __init__(self, batches: Sequence[pa.RecordBatch], root: Root | None, saved: Path | None = None):
        self._batches = [batch for batch in batches if len(batch)]
        self._starts = np.cumsum([0, *map(len, self._batches)])
        self.root = root
        """Folder that the pictures' paths start from; None where none of them is opened."""
        self._saved = saved
        self._lookups: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @classmethod
    def open(cls, files: Sequence[Path], root: Root | None) -> Rows:
        """Rows of parquet or Arrow files in the order given; pictures are named relative to `root`.

        Raises
        ------
        InputError
            If a file is not readable, or two rows have one name: a row would stand for another picture.
        """
        for named in ("image_path", "whole path"):
            rows = cls._read(files, named, root)
            shared = next(rows._sharing_a_name(), None) if rows._saved is None else None
            if shared is None:
                return rows
            twice = rows._value("image_id", shared)
            if "image_id" in _columns(files[0]):
                break
        raise InputError(
            f"The index has two rows named {twice[:80]}; give each picture its own image_id and build it again."
        )

    @classmethod
    def _read(cls, files: Sequence[Path], named: str, root: Root | None) -> Rows:
        if sum(map(_count, files)) <= IN_MEMORY:
            return cls(list(_normalised(files, named)), root)
        return cls._mapped(files, named, root)

    @classmethod
    def _mapped(cls, files: Sequence[Path], named: str, root: Root | None) -> Rows:
        found = [path.stat() for path in files]
        lines = [
            f"{path.resolve()} {each.st_size} {each.st_mtime_ns}"
            for path, each in zip(files, found, strict=True)
        ]
        folder = settings().data_dir / "rows" / sha256("\n".join([f"{FORM} {named}", *lines]).encode())[:32]
        if folder.is_dir():
            return cls(_memory_mapped(folder / "rows.arrow"), root, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            unfinished = Path(name) / "rows"
            unfinished.mkdir()
            with (
                pa.OSFile(str(unfinished / "rows.arrow"), "wb") as sink,
                pa.ipc.new_file(sink, SCHEMA) as writer,
            ):
                for batch in _normalised(files, named):
                    writer.write_batch(batch)
            made = cls(_memory_mapped(unfinished / "rows.arrow"), root)
            for column in LOOKUPS:
                hashes = (_hashes(batch.column(COLUMNS.index(column))) for batch in made._batches)
                _sorted_on_disk(hashes, len(made), unfinished, column)
                made._lookups[column] = _read_lookup(unfinished, column)
            if next(made._sharing_a_name(), None) is not None:
                return made  # and nothing is kept of it: it is refused
            (unfinished / DIGEST).write_text(made.sha256, encoding="utf-8")
            try:
                os.replace(unfinished, folder)
            except OSError:  # another process was first
                shutil.rmtree(unfinished, ignore_errors=True)
        return cls(_memory_mapped(folder / "rows.arrow"), root, folder)

    @cached_property
    def sha256(self) -> str:
        """Hex sha256 over the names and files of the pictures, in order."""
        if self._saved is not None:
            return (self._saved / DIGEST).read_text(encoding="utf-8")
        digest = hashlib.sha256()
        between = ""
        for batch in self._batches:
            columns = (
                batch.column(COLUMNS.index(name)).to_pylist() for name in ("image_id", "sha256", "image_path")
            )
            lines = [
                f"{name} {file or PurePosixPath(path).name}"
                for name, file, path in zip(*columns, strict=True)
            ]
            digest.update((between + "\n".join(lines)).encode("utf-8", "surrogatepass"))
            between = "\n"
        return digest.hexdigest()

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

    def containing(self, words: Sequence[str]) -> np.ndarray:
        """Places (m,) of the rows whose caption contains all of the words, however they are capitalised, in order."""
        found = []
        for start, batch in zip(self._starts, self._batches, strict=False):
            captions = batch.column(COLUMNS.index("caption"))
            has = pa.array(np.ones(len(batch), bool))
            for word in words:
                has = pc.and_(has, pc.match_substring(captions, word, ignore_case=True))  # pyright: ignore[reportAttributeAccessIssue]
            found.append(int(start) + np.flatnonzero(has.to_numpy(zero_copy_only=False)))
        return np.concatenate([np.empty(0, np.int64), *found])

    def column(self, name: str) -> Iterator[str]:
        """The values of one column, in order."""
        for batch in self._batches:
            yield from batch.column(COLUMNS.index(name)).to_pylist()

    def named_apart(self) -> Rows:
        """The same rows in memory, each with a name of its own: its place stands behind one that several have."""
        shared = _places(self._sharing_a_name())
        batches = zip(self._batches, self._starts, strict=False)
        return Rows([_named_apart(batch, int(start), shared) for batch, start in batches], self.root)

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
                self._lookups[column] = _read_lookup(self._saved, column)
            else:
                number = COLUMNS.index(column)
                hashes = [_hashes(batch.column(number)) for batch in self._batches]
                whole = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
                places = np.argsort(whole, kind="stable")
                self._lookups[column] = (whole[places], places)
        return self._lookups[column]

    def _sharing_a_name(self) -> Iterator[int]:
        hashes, places = self._lookup("image_id")
        for start in range(0, len(hashes), BATCH):
            block = np.asarray(hashes[start : start + BATCH + 1])
            for at in (start + np.flatnonzero(block[1:] == block[:-1])).tolist():
                pair = [int(place) for place in places[at : at + 2]]
                if self._value("image_id", pair[0]) == self._value("image_id", pair[1]):
                    yield from pair


def name_apart(files: Sequence[Path]) -> None:
    """Rewrite metadata of ours so that each row has a name of its own: ids may start anew in each file of a source."""
    shared = _places(Rows._read(files, "image_path", None)._sharing_a_name())
    start = 0
    for path in files if len(shared) else ():
        (batch,) = pq.read_table(path, schema=SCHEMA).combine_chunks().to_batches()
        write_parquet(pa.Table.from_batches([_named_apart(batch, start, shared)]), path)
        start += len(batch)


def _places(found: Iterable[int]) -> np.ndarray:
    return np.unique(np.fromiter(found, np.int64))


def _named_apart(batch: pa.RecordBatch, start: int, shared: np.ndarray) -> pa.RecordBatch:
    """A batch whose first row has the place `start`; `shared` are the places of rows to be named anew, sorted."""
    here = shared[np.searchsorted(shared, start) : np.searchsorted(shared, start + len(batch))]
    names = batch.column(COLUMNS.index("image_id")).to_pylist()
    for place in here.tolist():
        names[place - start] += f"#{place}"
    return batch.set_column(COLUMNS.index("image_id"), SCHEMA.field("image_id"), pa.array(names, pa.string()))


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
        with _readable(path):
            for batch in _batches(path):
                yield normalise(batch, start, named)
                start += len(batch)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ARROW:
        for whole in _memory_mapped(path):
            yield from (whole.slice(start, BATCH) for start in range(0, len(whole), BATCH))
        return
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH)


def _count(path: Path) -> int:
    with _readable(path):
        return (
            sum(map(len, _memory_mapped(path))) if path.suffix == ARROW else pq.read_metadata(path).num_rows
        )


def _columns(path: Path) -> list[str]:
    with _readable(path):
        return pa.ipc.open_file(path).schema.names if path.suffix == ARROW else pq.read_schema(path).names


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        kind = "Arrow" if path.suffix == ARROW else "parquet"
        raise InputError(f"{path} is not readable {kind}; build the index again.") from error


def _memory_mapped(path: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _sorted_on_disk(hashes: Iterable[np.ndarray], count: int, folder: Path, column: str) -> None:
    """Write the lookup of a column of `count` rows into `folder`, in memory that does not grow with them."""

    def placed() -> Iterator[pa.RecordBatch]:
        start = 0
        for block in hashes:
            places = np.arange(start, start + len(block))
            yield pa.RecordBatch.from_arrays([pa.array(block), pa.array(places)], schema=LOOKUP)
            start += len(block)

    arrays = [
        np.lib.format.open_memmap(
            _part(folder, column, each.name), "w+", each.type.to_pandas_dtype(), (count,)
        )
        for each in LOOKUP
    ]
    sorting = folder / "sorting"
    with duckdb.connect(config={"memory_limit": SORTING_MEMORY, "temp_directory": str(sorting)}) as database:
        database.register("unsorted", pa.RecordBatchReader.from_batches(LOOKUP, placed()))
        start = 0
        for batch in database.sql("FROM unsorted ORDER BY hashes, places").to_arrow_reader(BATCH):
            for array, values in zip(arrays, batch.columns, strict=True):
                array[start : start + len(batch)] = values.to_numpy()
            start += len(batch)
    shutil.rmtree(sorting, ignore_errors=True)


def _read_lookup(folder: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    hashes, places = (
        np.load(_part(folder, column, name), mmap_mode="r", allow_pickle=False) for name in LOOKUP.names
    )
    return hashes, places


def _part(folder: Path, column: str, name: str) -> Path:
    return folder / f"{column}.{name}.npy"


def _hashes(column: pa.Array) -> np.ndarray:
    return pd.util.hash_array(column.to_numpy(zero_copy_only=False), categorize=False)  # pyright: ignore[reportAttributeAccessIssue]
