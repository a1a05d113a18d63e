"""Training sets as the public tools leave them, read in a stream: a billion rows never stand in memory together.

========================  ====================================================================================
``corpus.parquet``        our own table beside ``images/`` (`audit.corpus.reader`)
pictures                  a folder, at any depth, of ``NAME.jpg|png|webp`` with ``NAME.txt`` or ``NAME.json``
tar                       webdataset shards, as img2dataset and clip-retrieval read and write them
parquet with pictures     img2dataset's parquet output, or a Hugging Face dataset: bytes in a column
parquet with addresses    LAION metadata: pictures are fetched (`audit.corpus.fetch`)
embeddings                clip-retrieval's ``img_emb/`` and ``metadata/``: vectors are there already
========================  ====================================================================================
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audit.corpus.reader import ROW_NAMES, SUFFIXES, TABLE, Row, RowError, row_of, table_entries, utf8
from audit.errors import InputError
from audit.images import sha256
from audit.records import readable

PICTURE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image")
ID_NAMES = ("image_id", "key", "id", "SAMPLE_ID")
READ = {*ID_NAMES, "status", *ROW_NAMES}
"""Columns of a parquet file that a row is made of; others may be as wide as the pictures themselves."""
MAX_TEXT = 1_000_000
"""Bytes of a caption or a description beside a picture."""
ROWS = 4096
"""Rows of a parquet file read together."""
EMBEDDINGS, METADATA = "img_emb", "metadata"


class Kind(StrEnum):
    """What a source is, in words for people."""

    TABLE = "a training set's table"
    PICTURES = "a folder of pictures"
    TAR = "tar shards"
    PARQUET = "parquet files with pictures"
    ADDRESSES = "metadata with addresses of pictures"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Source:
    """A training set that can be read from its start, any number of times, always in the same order."""

    kind: Kind
    folder: Path
    files: tuple[Path, ...]
    """What it is read from, in order."""
    read: Callable[[], Iterator[Row | RowError]]
    count: int | None
    """Rows, where the files tell before they are read; an estimate for progress, no promise."""

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over names, sizes and times of its files: an interrupted build asks whether they are the same."""
        lines = [self.kind.name]
        for path in self.files:
            found = path.stat()
            lines.append(f"{path.relative_to(self.folder)} {found.st_size} {found.st_mtime_ns}")
        return sha256("\n".join(lines).encode("utf-8", "surrogatepass"))


def open_source(path: Path) -> Source:
    """What kind of training set a file or folder is; InputError in one sentence where it is none of them."""
    path = Path(path)
    if path.is_file():
        return _of_files(path.parent, [path])
    if not path.is_dir():
        raise InputError(f"There is no {path}; give a training set's folder or file.")
    if (path / EMBEDDINGS).is_dir():
        return _embeddings(path)
    if (path / TABLE).is_file():
        trained = table_entries(path, trained=True)
        return Source(Kind.TABLE, path, (path / TABLE,), lambda: iter(trained), len(trained))
    shards = sorted(
        (each for each in path.iterdir() if each.suffix in (".tar", ".parquet") and each.is_file()),
        key=natural,
    )
    tars = [each for each in shards if each.suffix == ".tar"]
    if tars:
        return _of_files(path, tars)
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    if found:  # img2dataset's folders of files have parquet beside them; the pictures are what counts
        return Source(Kind.PICTURES, path, tuple(found), partial(_pictures, path, found), len(found))
    if shards:
        return _of_files(path, shards)
    raise InputError(
        f"{path} holds no training set: no {TABLE}, pictures ({', '.join(SUFFIXES)}), .tar, .parquet "
        f"or {EMBEDDINGS}/; give a folder with one of these."
    )


def natural(path: Path | str) -> list[tuple[int, int | str]]:
    """Sorts shards in numeric order: as strings, shard 10 would come before shard 2."""
    return [
        (0, int(part)) if part.isascii() and part.isdigit() else (1, part)
        for part in re.split(r"([0-9]+)", str(path))
    ]


def shard_number(path: Path) -> int:
    """The last number in a shard's name, -1 where there is none: one before it may be a model's, as in ViT-B-32."""
    return int(([-1, *re.findall(r"[0-9]+", path.stem)])[-1])


def _of_files(folder: Path, files: Sequence[Path]) -> Source:
    if files[0].suffix == ".tar":
        count = sum(map(_told_by_img2dataset, files)) or None
        return Source(Kind.TAR, folder, tuple(files), partial(_tars, files), count)
    columns = _columns(files[0])
    picture = next((name for name in PICTURE_COLUMNS if name in columns), None)
    if picture is None and not {"url", "URL"} & set(columns):
        raise InputError(
            f"{files[0]} has neither a column of pictures ({', '.join(PICTURE_COLUMNS)}) nor of addresses "
            f"(url, URL); found {', '.join(columns)[:300]}."
        )
    count = sum(pq.read_metadata(path).num_rows for path in files if _is_parquet(path))
    kind = Kind.ADDRESSES if picture is None else Kind.PARQUET
    return Source(kind, folder, tuple(files), partial(_parquets, files, picture), count)


def _embeddings(folder: Path) -> Source:
    files = sorted((folder / METADATA).glob("*.parquet"), key=natural)
    if not files:
        raise InputError(
            f"{folder} has {EMBEDDINGS} but no {METADATA}/*.parquet: nothing says which picture a vector is of."
        )
    vectors = sorted((folder / EMBEDDINGS).glob("*.npy"), key=natural)
    count = sum(pq.read_metadata(path).num_rows for path in files if _is_parquet(path))
    # `audit.retrieval.build` takes vectors and metadata file by file: there is no picture to read a row for
    return Source(Kind.EMBEDDINGS, folder, (*vectors, *files), lambda: iter(()), count)


def _pictures(folder: Path, files: Sequence[Path]) -> Iterator[Row | RowError]:
    names: set[str] = set()
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if readable(name) != name:
            yield RowError(
                readable(name), f"The name of {readable(path.name)} is not UTF-8; rename the file."
            )
            continue
        text, description = path.with_suffix(".txt"), path.with_suffix(".json")
        if name in names:
            yield RowError(path.name, f"{path.name} shares its name with another picture.")
        elif not (text.is_file() or description.is_file()):
            yield RowError(path.name, f"{path.name} has no caption file {text.name} beside it.")
        else:
            names.add(name)
            values = _described(description.read_bytes()) if description.is_file() else {}
            if text.is_file():
                values["caption"] = text.read_text(encoding="utf-8", errors="replace").strip()
            yield row_of(values, image_id=name, path=path)


def _tars(files: Sequence[Path]) -> Iterator[Row | RowError]:
    for path in files:
        try:
            with tarfile.open(path, "r:") as shard:
                yield from _tar(path, shard)
        except (tarfile.TarError, OSError, EOFError):
            yield RowError(
                path.name,
                f"{path.name} is compressed or damaged: what stands behind the damage was left out. Shards have to be "
                "uncompressed, since a picture is read by its place in the file.",
            )


def _tar(path: Path, shard: tarfile.TarFile) -> Iterator[Row | RowError]:
    """Rows of one shard: members of one key stand together, as webdataset asks."""
    key, values, member = "", {}, ""

    def finished() -> Iterator[Row | RowError]:
        name = readable(key.lstrip("./"))
        # img2dataset's keys begin with their shard's number, in five digits or more; others may occur in any shard
        own = name.startswith(path.stem) and len(path.stem) >= 5 and name.isdigit()
        name = name if own else f"{path.stem}/{name}"
        if member:
            yield row_of(values, image_id=name, path=path, member=member)
        elif values:
            status = str(values.get("status") or "no picture")
            yield RowError(name, f"{name} in {path.name} has no picture ({status[:60]}).")

    for entry in shard:
        # tarfile keeps every header it has read
        shard.members = []  # pyright: ignore[reportAttributeAccessIssue]
        if not entry.isreg():
            continue
        pure = PurePosixPath(entry.name)
        stem, _, suffix = pure.name.partition(".")
        found = (pure.parent / stem).as_posix()
        if found != key:
            yield from finished()
            key, values, member = found, {}, ""
        if f".{suffix.lower()}" in SUFFIXES:
            member = f"{entry.offset_data}+{entry.size}"
        elif suffix in ("txt", "json") and entry.size <= MAX_TEXT:
            stream = shard.extractfile(entry)
            data = stream.read() if stream else b""
            if suffix == "json":
                values = _described(data) | values
            else:
                values["caption"] = data.decode("utf-8", "replace").strip()
    yield from finished()
    _check_end(shard)


def _check_end(shard: tarfile.TarFile) -> None:
    """Where tarfile sees no header it stops without a word: it has to be the end, and no damage."""
    stream = shard.fileobj
    assert stream is not None
    stream.seek(shard.offset)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("a damaged header")


def _parquets(files: Sequence[Path], picture: str | None) -> Iterator[Row | RowError]:
    place = 0
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                wanted = [name for name in file.schema_arrow.names if name in READ]
                row = 0
                batches = file.iter_batches(ROWS, columns=wanted)
                for values in chain.from_iterable(map(_values, batches)):
                    yield _parquet_row(values, path, row, place, picture)
                    row, place = row + 1, place + 1
        except (pa.ArrowException, OSError):
            yield RowError(path.name, f"{path.name} is damaged: what stands behind the damage was left out.")


def _values(batch: pa.RecordBatch) -> list[dict]:
    """Rows of a batch."""
    if not batch.num_columns:
        return [{} for _ in range(len(batch))]
    return pa.RecordBatch.from_arrays(list(map(utf8, batch.columns)), names=batch.schema.names).to_pylist()


def _parquet_row(values: dict, path: Path, row: int, place: int, picture: str | None) -> Row | RowError:
    name = next(
        (
            str(values[each])
            for each in ID_NAMES
            if values.get(each) is not None
            and values[each] == values[each]  # a number that is missing is NaN
        ),
        "",
    )
    name = name or f"row-{place}"
    if values.get("status", "success") not in ("success", None):
        return RowError(name, f"{name} in {path.name} has no picture ({str(values['status'])[:60]}).")
    if picture is not None:
        return row_of(values, image_id=name, path=path, member=f"{picture}:{row}")
    found = row_of(values, image_id=name, path=Path())
    return found if found.url else RowError(name, f"{name} in {path.name} has no address.")


def _described(data: bytes) -> dict:
    """What a JSON file beside a picture says; nothing where it is no JSON object."""
    try:
        values = json.loads(data[:MAX_TEXT])
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _told_by_img2dataset(shard: Path) -> int:
    """Pictures in a shard by ``NAME_stats.json`` beside it, 0 where there is none."""
    stats = shard.with_name(f"{shard.stem}_stats.json")
    successes = _described(stats.read_bytes()).get("successes") if stats.is_file() else None
    return successes if isinstance(successes, int) else 0


def _columns(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file; write it anew.") from error


def _is_parquet(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    return True
