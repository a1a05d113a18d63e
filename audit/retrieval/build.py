"""From a training set to an index folder: read, embed, choose and train the index; resumed after a kill.

::

    metadata/metadata_<i>.parquet  rows, written part by part together with
    img_emb/img_emb_<i>.npy        their vectors, each of which goes once the index holds it
    left_out/part_<i>.parquet      rows that could not be used, and why; one file left_out.parquet at the end
    build.json                     how far it is; gone when the index is finished
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audit.corpus.download import FetchStatus
from audit.corpus.fetch import digests
from audit.corpus.reader import Row, RowError
from audit.corpus.roots import mark_built
from audit.corpus.sources import EMBEDDINGS, METADATA, Kind, Source, open_source, shard_number
from audit.corpus.stored import stored_bytes
from audit.errors import InputError
from audit.files import replace_file, write_json, write_parquet
from audit.images import decode, sha256
from audit.retrieval.index import INFO, PROGRESS, relative_name
from audit.retrieval.rows import COLUMNS, SCHEMA, name_apart, normalise
from audit.retrieval.vectors import FLAT, write_vectors

if TYPE_CHECKING:
    from audit.corpus.fetch import RemoteImages
    from audit.retrieval.embedding import Embedder
    from audit.retrieval.sscd import CopyDetector

PART, LARGE_PART = 512, 16_384
"""Rows that an interrupted build loses at most; a large training set would otherwise leave a million files."""
LOCK = "build.lock"
LEFT_OUT = "left_out.parquet"
TOLD = 100
"""Rows left out that are told by name; all stand in the file."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Built:
    """What a build took in and what it had to leave out."""

    count: int
    left_out: int
    errors: list[RowError]
    """The first hundred of them."""
    recall_at_10: float
    """Of the index against exact search, as measured when it was built; 1 for an exact one."""


@dataclass(frozen=True)
class Part:
    """Some rows of the source with their vectors."""

    vectors: np.ndarray
    """(n, d) float32 of unit norm."""
    rows: pa.RecordBatch
    errors: list[RowError]
    read: int
    """Rows of the source behind it, those left out among them."""


def build(
    source: Path,
    out: Path,
    embedder: Embedder | CopyDetector | None,
    progress: Progress | None = None,
    *,
    remote: RemoteImages | None = None,
    description: str | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Built:
    """Write an index folder `out` of the training set in `source`.

    An interrupted build goes on where it was. Rows that cannot be used are left out and listed.

    Parameters
    ----------
    embedder
        Makes the vectors; None where `source` holds embeddings already and nobody says what made them.
    remote
        Fetches the pictures where `source` has addresses only.
    description
        faiss's name of the index; by default it is chosen by size (`audit.retrieval.vectors.factory`).
    tell
        Called with a sentence before what takes minutes and has no progress of its own.

    Raises
    ------
    InputError
        If `source` is no training set, nothing in it can be used, or `out` holds the build of another one.
    """
    found = embeddable(source, embedder, remote)
    _check_folder(out)
    with _alone(out):
        made_with = f"{embedder.sha256 if embedder else ''}{description or ''}"
        state = _state(out, sha256(f"{found.fingerprint} {made_with}".encode()))
        return _build(found, out, embedder, state, progress, remote, description, tell)


def embeddable(source: Path, embedder: Embedder | CopyDetector | None, remote: RemoteImages | None) -> Source:
    """The training set in `source`; InputError where its vectors are not there and cannot be made."""
    found = open_source(source)
    if found.kind is not Kind.EMBEDDINGS and embedder is None:
        raise InputError(f"{source} is {found.kind.value}: name the embedder that makes its vectors.")
    if found.kind is Kind.ADDRESSES and remote is None:
        raise InputError(
            f"{source} has addresses of pictures only, and fetching is off; allow it, or download them."
        )
    return found


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Refuse a second build in the same folder: each would write rows beside the other's vectors."""
    with open(out / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"Another process is building {out}; wait for it, or name another folder."
            ) from error
        yield
    (out / LOCK).unlink(missing_ok=True)


def _build(
    found: Source,
    out: Path,
    embedder: Embedder | CopyDetector | None,
    state: dict,
    progress: Progress | None,
    remote: RemoteImages | None,
    description: str | None,
    tell: Callable[[str], None],
) -> Built:
    source = found.folder
    precision = np.float16 if (found.count or 0) > FLAT else np.float32
    for part in embedded(found, embedder, remote, state["read"], progress):
        number = state["parts"]
        replace_file(
            out / EMBEDDINGS / f"img_emb_{number}.npy", partial(_save, part.vectors.astype(precision))
        )
        table = pa.Table.from_batches([part.rows], SCHEMA)
        write_parquet(table, out / METADATA / f"metadata_{number}.parquet")
        write_parquet(_errors(part.errors), out / "left_out" / f"part_{number}.parquet")
        state |= {
            "parts": number + 1,
            "read": state["read"] + part.read,
            "count": state["count"] + len(part.rows),
            "dimensions": part.vectors.shape[1],
        }
        write_json(out / PROGRESS, state)
    if not state["count"]:
        raise InputError(
            f"No picture in {source} can be decoded and indexed; {state['read']:,} were left out."
        )
    rows = [out / METADATA / f"metadata_{number}.parquet" for number in range(state["parts"])]
    name_apart(rows)
    parts = [out / EMBEDDINGS / f"img_emb_{number}.npy" for number in range(state["parts"])]
    tuned = write_vectors(
        out,
        parts,
        state["count"],
        state["dimensions"],
        description=description,
        tell=tell,
        progress=progress,
    )
    left_out = pa.concat_tables(
        [pq.read_table(out / "left_out" / f"part_{number}.parquet") for number in range(state["parts"])]
    )
    write_parquet(left_out, out / LEFT_OUT)
    info = {
        "embedder": relative_name(embedder.name, out) if embedder else None,
        "embedder_sha256": embedder.sha256 if embedder else None,
        "count": state["count"],
        "dimensions": state["dimensions"],
        "source": os.path.relpath(found.folder, out),
        "left_out": len(left_out),
        "clusters": tuned.clusters,
        "recall_at_10": tuned.recall_at_10,
    }
    write_json(out / INFO, info)
    mark_built((out / INFO).read_bytes(), found.folder)
    (out / PROGRESS).unlink()  # first: what is left of the parts after a kill is in nobody's way
    for name in (EMBEDDINGS, "left_out"):
        shutil.rmtree(out / name)
    told = [RowError(**row) for row in left_out.slice(0, TOLD).to_pylist()]
    return Built(state["count"], len(left_out), told, tuned.recall_at_10)


def embedded(
    source: Source,
    embedder: Embedder | CopyDetector | None,
    remote: RemoteImages | None,
    skip: int = 0,
    progress: Progress | None = None,
) -> Iterator[Part]:
    """The rows of an `embeddable` source with their vectors, part by part, but for the first `skip` rows."""
    size = PART if (source.count or 0) <= FLAT else LARGE_PART
    progress = _from(progress, skip, source.count)
    if source.kind is Kind.EMBEDDINGS:
        yield from _embedded_before(source, skip, progress)
        return
    assert embedder is not None
    waiting = islice(source.read(), skip, None)
    done = 0
    while chunk := list(islice(waiting, size)):
        errors = [each for each in chunk if isinstance(each, RowError)]
        taken: list[Row] = []
        rows = [each for each in chunk if isinstance(each, Row)]
        began = done + len(errors)
        tell = (lambda count, began=began: progress(began + count, 0)) if progress else None
        vectors = embedder.images(_noted(rows, taken, errors, remote, tell))
        done += len(chunk)
        yield Part(vectors, _batch(taken, source.folder), errors, len(chunk))


def _noted(
    rows: Sequence[Row],
    taken: list[Row],
    errors: list[RowError],
    remote: RemoteImages | None,
    tell: Callable[[int], None] | None,
) -> Iterator[np.ndarray]:
    """The pictures, one at a time; the row of each is put into `taken`, those that cannot be had into `errors`."""
    before = len(errors)
    for row, data in _bytes(rows, errors, remote):
        if tell:
            tell(len(taken) + len(errors) - before + 1)
        try:
            picture = decode(data, row.image_id)
        except InputError as error:
            errors.append(RowError(row.image_id, str(error)))
            continue
        # of these bytes, whatever the metadata claim: equal hashes make a picture count as the caption's own
        taken.append(Row(**{**vars(row), "sha256": sha256(data)}))
        yield picture


def _bytes(
    rows: Sequence[Row], errors: list[RowError], remote: RemoteImages | None
) -> Iterator[tuple[Row, bytes]]:
    local = [row for row in rows if row.path != Path()]
    for row in local:
        try:
            yield row, stored_bytes(row.path, row.member)
        except InputError as error:
            errors.append(RowError(row.image_id, str(error)))
    if remote is None or len(local) == len(rows):
        return
    by_url: dict[str, list[Row]] = {}
    for row in rows:
        if row.path == Path():
            by_url.setdefault(row.url, []).append(row)
    for url in (each.url for each in remote.get_many(list(by_url))):
        for row in by_url[url]:
            # rows of one address may tell of different pictures: it gave one of them at most
            found = remote.get(url, digests({url: row.sha256 or row.md5}).get(url))
            if found.status is FetchStatus.FETCHED and found.path is not None:
                yield row, found.path.read_bytes()
            else:
                errors.append(RowError(row.image_id, f"{found.status.value}: {found.reason}"))


def _embedded_before(source: Source, skip: int, progress: Progress | None) -> Iterator[Part]:
    """Vectors that a public tool has made, with their metadata; counts have to agree file by file."""
    vectors = [path for path in source.files if path.suffix == ".npy"]
    tables = [path for path in source.files if path.suffix == ".parquet"]
    if list(map(shard_number, vectors)) != list(map(shard_number, tables)):
        raise InputError(
            f"{source.folder} has {len(vectors)} files of vectors and {len(tables)} of metadata that do not belong "
            "together by number; copy it again whole."
        )
    start, dimensions = 0, 0
    for file, table in zip(vectors, tables, strict=True):
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            rows = pq.ParquetFile(table)
        except (OSError, ValueError, EOFError, pa.ArrowException) as error:
            raise InputError(f"{file.name} or {table.name} is damaged; copy them again.") from error
        if array.dtype.kind != "f":
            raise InputError(
                f"{file.name} holds {array.dtype}, no vectors of floating-point numbers; copy it again."
            )
        if array.ndim != 2 or len(array) != rows.metadata.num_rows:
            raise InputError(
                f"{file.name} holds {array.shape} numbers and {table.name} {rows.metadata.num_rows:,} rows: a row "
                "would stand for another picture. Copy both again."
            )
        dimensions = dimensions or array.shape[1]
        if array.shape[1] != dimensions:
            raise InputError(
                f"{file.name} holds vectors of {array.shape[1]} numbers, those before it have {dimensions}: another model "
                "made them. Give the embeddings of one."
            )
        at = 0
        for batch in rows.iter_batches(LARGE_PART):
            if start >= skip:
                yield _unit(array[at : at + len(batch)], normalise(batch, start))
            at, start = at + len(batch), start + len(batch)
            if progress and start > skip:
                progress(start - skip, 0)


def _unit(block: np.ndarray, rows: pa.RecordBatch) -> Part:
    """Vectors at unit norm; those that are none (zero, not numbers) are left out with their rows."""
    vectors = np.asarray(block, np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    names = rows.column(COLUMNS.index("image_id"))
    errors = [
        RowError(names[int(at)].as_py(), "Its vector is zero or holds no numbers.")
        for at in np.flatnonzero(~usable)
    ]
    unit = vectors[usable] / norms[usable, None]
    return Part(unit, rows.filter(pa.array(usable)), errors, len(rows))


def _batch(rows: Sequence[Row], folder: Path) -> pa.RecordBatch:
    columns = {name: [getattr(row, name, "") for row in rows] for name in COLUMNS}
    columns["image_path"] = ["" if row.path == Path() else os.path.relpath(row.path, folder) for row in rows]
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _errors(errors: Sequence[RowError]) -> pa.Table:
    columns = {"image_id": [each.image_id for each in errors], "message": [each.message for each in errors]}
    return pa.table(columns, schema=pa.schema([("image_id", pa.string()), ("message", pa.string())]))


def _check_folder(out: Path) -> None:
    """Make it, or refuse one that holds something else: a build overwrites, and deletes in the end."""
    if (out.exists() and not out.is_dir()) or (
        out.is_dir()
        and any(out.iterdir())
        and not any((out / name).is_file() for name in (PROGRESS, INFO, LOCK))
    ):
        raise InputError(f"{out} holds something else than an index of ours; name a new or empty folder.")
    out.mkdir(parents=True, exist_ok=True)


def _state(out: Path, fingerprint: str) -> dict:
    for name in (EMBEDDINGS, METADATA, "left_out"):
        (out / name).mkdir(exist_ok=True)
    if (out / PROGRESS).is_file():
        try:
            state = json.loads((out / PROGRESS).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{out / PROGRESS} is damaged; name another folder.") from error
        if state["fingerprint"] != fingerprint:
            raise InputError(
                f"{out} holds the unfinished index of another training set, embedder or kind; name another folder."
            )
        return state
    if (out / INFO).is_file():
        raise InputError(f"{out} already holds an index; delete it or name another folder.")
    state = {"fingerprint": fingerprint, "parts": 0, "read": 0, "count": 0, "dimensions": 0}
    write_json(out / PROGRESS, state)
    return state


def _from(progress: Progress | None, start: int, count: int | None) -> Progress | None:
    """Progress that goes on from `start`, out of `count` rows or of as many as have been seen."""
    if progress is None:
        return None
    return lambda done, _: progress(start + done, max(count or 0, start + done))


def _save(array: np.ndarray, path: Path) -> None:
    with open(path, "wb") as stream:
        np.save(stream, array)
