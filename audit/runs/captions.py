"""Captions to audit, read in a stream from where people have them: a file, a folder of parts, a remote store.

``.txt`` (one a line), ``.csv`` and ``.tsv`` (comma, semicolon or tab), ``.jsonl``, ``.parquet``, webdataset
``.tar``, and folders of these or of ``NAME.jpg|png|webp`` with ``NAME.txt`` beside each. Text files may be
compressed (``.gz``, ``.bz2``, ``.xz``).

A row that cannot be used is told with its file, its number and the reason, and never stops the rest.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from charset_normalizer import from_bytes
from fsspec.compression import compr
from fsspec.utils import infer_compression

from audit.corpus.reader import CAPTION_NAMES
from audit.corpus.reader import SUFFIXES as IMAGE_SUFFIXES
from audit.corpus.sources import natural
from audit.errors import InputError
from audit.records import readable

TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".tar")
COMPRESSED = (".gz", ".bz2", ".xz")
PROTOCOLS = ("file", "local", "s3", "gs", "gcs", "az", "abfs", "hf", "http", "https", "memory")
"""Stores that are read; others of fsspec run commands or open archives."""
IMAGE_NAMES = ("image_id", "image")
CHUNK = 16_384
"""Rows that travel together."""
LONGEST = 20_000
"""Characters of a caption: what is longer is no caption, and models read some hundreds of them."""
LONGEST_ROW = 1 << 20
"""Characters of a line, or of a row of CSV: the rest of a longer one is skipped and never in memory."""
LONGEST_NAME = 1_000
"""Characters of an image's name: some data sets keep the picture itself, as text, in a column ``image``."""
FOOTERS = 200
"""Tables that are opened to count their rows."""
BLOCK = (256, 1 << 23)
"""Rows of a table that are decoded together, and their bytes: a dictionary may hold one long cell for all of them.
Remote stores read some megabytes ahead, so that much less at once would fetch the same bytes again for each column."""
SHARED = 1 << 18
"""Bytes of a table's column up to which each of `BLOCK` rows may have its own copy of a shared cell."""
LONGEST_HEADER = 1 << 16
"""Bytes of an extended header in a tar file: it holds a long name, and is read whole."""
UNCLOSED = 200
"""Lines that one quoted cell of a CSV file may span; a quote that is never closed would swallow the rest."""
LEGACY = ["cp1252", "cp1251", "gb18030", "shift_jis", "euc_kr", "big5"]
"""Encodings of text that is not Unicode; of all that exist, some rare one would always look best."""
SAMPLE = 1 << 16
"""Bytes looked at to tell the encoding."""
SHOWN = 120
"""Characters of a rejected row that are kept."""

csv.field_size_limit(4 * LONGEST_ROW)  # rows have a limit of their own


@dataclass(frozen=True)
class Rejected:
    """A row that holds no usable caption."""

    file: str
    row: int
    """Counted from 1 within the file, the header of a table not among them; 0 for the file itself."""
    reason: str
    start: str = ""
    """How the row begins."""


@dataclass
class Chunk:
    """Rows that follow each other in a file."""

    captions: list[str] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)
    """The own image of each caption where the file names it, else empty."""
    rejected: list[Rejected] = field(default_factory=list)
    rows: int = 0
    """Rows read, the rejected ones among them."""

    def take(self, file: str, row: int, caption: object, image_id: object = "") -> None:
        """Add a row if it holds a caption; else tell why not."""
        self.rows += 1
        text = as_text(caption)
        if not text.strip():
            self._reject(file, row, EMPTY)
        elif len(text) > LONGEST:
            self._reject(file, row, f"longer than {LONGEST:,} characters ({len(text):,})", text)
        else:
            self.captions.append(text)
            self.image_ids.append(image_name(image_id))

    def refuse(self, file: str, row: int, reason: str, start: object = "") -> None:
        """Tell of a row that cannot be read."""
        self.rows += row > 0
        self._reject(file, row, reason, start)

    def _reject(self, file: str, row: int, reason: str, start: object = "") -> None:
        texts = file, reason, str(start)[:SHOWN]
        file, reason, start = (readable(text) for text in texts)  # names and headers come from outside too
        self.rejected.append(Rejected(file, row, reason, start))


EMPTY = "no text"


class Seen(NamedTuple):
    """How far a file has been read."""

    rows: int
    bytes: int
    """In which these rows are; of a compressed file its own."""
    whole: bool


class CaptionSource:
    """The files behind a path or a URL, in natural order; opened one after another.

    Raises
    ------
    InputError
        If there is nothing of a known kind, or the store cannot be reached.
    """

    def __init__(self, place: str | Path):
        self.place = str(place)
        self.fs, root = _file_system(self.place)
        with _reading(self.place):
            if self.fs.isdir(root):
                self.sizes = {path: info.get("size") or 0 for path, info in self._listing(root).items()}
                self.names = {path: path.removeprefix(root).lstrip("/") for path in self.sizes}
                self.pictures = {
                    path.rpartition(".")[0] for path in self.sizes if path.lower().endswith(IMAGE_SUFFIXES)
                }
            elif self.fs.exists(root):
                self.sizes = {root: self.fs.info(root).get("size") or 0}
                self.names = {root: PurePosixPath(root).name}
                self.pictures = set()
            else:
                raise InputError(f"There is no file {self.place}; check the path.")
        self.files = [path for path in sorted(self.sizes, key=natural) if kind(path)]
        tables = {path.rpartition(".")[0] for path in self.files if kind(path) == ".parquet"}
        # img2dataset writes each part twice: the pictures, and their captions as a table
        self.files = [
            path for path in self.files if kind(path) != ".tar" or path.rpartition(".")[0] not in tables
        ]
        if not self.files:
            raise InputError(
                f"Captions are read from {', '.join(SUFFIXES)} and folders of these; got {self.place}."
            )
        self.seen: dict[str, Seen] = {}

    def _listing(self, root: str) -> dict[str, dict[str, Any]]:
        return {
            path: info
            for path, info in self.fs.find(root, detail=True).items()
            if not any(part.startswith((".", "_")) for part in path.removeprefix(root).split("/"))
        }

    @property
    def bytes(self) -> int:
        """Of all files that are read."""
        return sum(self.sizes[path] for path in self.files)

    def sha256(self) -> str:
        """Of the bytes of a local file; elsewhere over the names and sizes of the files."""
        if len(self.files) == 1 and "file" in _protocols(self.fs):
            with open(self.files[0], "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        lines = (f"{self.names[path]} {self.sizes[path]}\n" for path in self.files)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    def chunks(self, limit: int | None = None) -> Iterator[Chunk]:
        """Rows in order, `limit` at most. A file that cannot be read is told as its row 0."""
        left = limit
        self.seen.clear()
        for path in self.files:
            name, rows = self.names[path], 0
            try:
                with _reading(name), self.fs.open(path, "rb") as stream:
                    beginning = Beginning(stream)
                    chunks = self._read(path, beginning, left)
                    for chunk in chunks:
                        yield chunk
                        rows += chunk.rows
                        left = left - chunk.rows if left is not None else None
                        if left is not None and left <= 0:
                            self._leave(path, beginning, rows, chunks)
                            return
            except InputError as error:
                chunk = Chunk()
                chunk.refuse(name, 0, str(error))
                yield chunk
            self.seen[path] = Seen(rows, self.sizes[path], True)

    def _leave(self, path: str, beginning: Beginning, rows: int, chunks: Iterator[Chunk]) -> None:
        """Note how many rows there are in what has been read of a file that is left here."""
        if kind(path) == ".parquet":
            return  # its footer says it
        beginning.ended = True
        with contextlib.suppress(Exception):  # it is cut in the middle of something
            for chunk in chunks:
                rows += chunk.rows
        self.seen[path] = Seen(rows, beginning.bytes, beginning.bytes == self.sizes[path])

    def estimate(self) -> tuple[int, bool]:
        """Rows of all files, and whether that is exact, from what `chunks` has read.

        Tables say how many they have; of other files the rows there are in the bytes that have been read are told, and
        the rest is taken to be like these.
        """
        seen = dict(self.seen)
        for path in [path for path in self.files if kind(path) == ".parquet"][:FOOTERS]:
            if path not in seen:
                seen[path] = Seen(self._footer(path), self.sizes[path], True)
        rows, read = sum(each.rows for each in seen.values()), sum(each.bytes for each in seen.values())
        if len(seen) == len(self.files) and all(each.whole for each in seen.values()):
            return rows, True
        return max(rows, round(rows * self.bytes / max(1, read))), False

    def _footer(self, path: str) -> int:
        """Rows of a table; 0 where it cannot be read, as none of its rows will be."""
        try:
            with _reading(path), self.fs.open(path, "rb") as stream:
                return pq.read_metadata(stream).num_rows
        except InputError:
            return 0

    def _read(self, path: str, beginning: Beginning, left: int | None) -> Iterator[Chunk]:
        name = self.names[path]
        suffix = kind(path)
        if suffix == ".parquet":
            return _gather(_parquet(beginning.stream, name), left)
        if suffix == ".tar":
            return _gather(_webdataset(beginning, name), left)
        stream = compr[infer_compression(path)](beginning, mode="r")  # type: ignore[index]
        lines = Lines(stream, name)
        if suffix in (".csv", ".tsv"):
            return _gather(_csv(lines), left)
        if suffix in (".jsonl", ".ndjson"):
            return _gather(_jsonl(lines), left)
        if path.rpartition(".")[0] in self.pictures:
            return _gather(_whole(lines), left)
        return _gather(_text(lines), left)


def kind(path: str) -> str:
    """The suffix that says how a file is read, lower case; empty where none does."""
    parts = [suffix.lower() for suffix in PurePosixPath(path).suffixes[-2:]]
    if len(parts) == 2 and parts[1] in COMPRESSED:
        return parts[0] if parts[0] in TEXT_SUFFIXES else ""
    return parts[-1] if parts and parts[-1] in SUFFIXES else ""


def _file_system(place: str) -> tuple[Any, str]:
    protocol = place.partition("://")[0] if "://" in place else "file"
    if protocol not in PROTOCOLS:
        raise InputError(
            f"Captions are not read over {protocol}://; use a local path, s3://, gs://, hf:// or https://."
        )
    try:
        if protocol in ("file", "local"):
            place = str(Path(place.partition("://")[2] or place).expanduser().absolute())
            return fsspec.filesystem("file"), place
        return fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise InputError(f"Reading {protocol}:// needs a package: {error}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"The place {place} cannot be opened ({error}).") from error


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Errors of stores and decoders as sentences."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"There is no file {name}; check the path.") from error
    except Exception as error:  # decoders of a dozen formats raise as many kinds
        reason = str(getattr(error, "strerror", None) or error).strip().splitlines()
        raise InputError(
            f"The file {name} cannot be read ({reason[0][:160] if reason else type(error).__name__})."
        ) from error


class Beginning(io.RawIOBase):
    """A file that ends where it has been read to, once it is `ended`."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.bytes = 0
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b"" if self.ended else self.stream.read(len(buffer))
        buffer[: len(content)] = content
        self.bytes += len(content)
        return len(content)


class Lines:
    """Numbered lines of a text file in its own encoding; bytes that are not of it stay recognisable.

    Lines end as on any system, and nowhere else: `str.splitlines` would also cut at form feeds and U+2028, which occur
    in captions. Of a line that is too long one character more than allowed is given.
    """

    def __init__(self, stream: io.RawIOBase, name: str):
        self.name = name
        buffered = io.BufferedReader(stream, SAMPLE)
        self.encoding = encoding_of(buffered.peek(SAMPLE)[:SAMPLE])
        utf8 = self.encoding.startswith("utf-8")
        errors = "surrogateescape" if utf8 else "replace"
        self.wrong = UNDECODABLE if utf8 else REPLACED
        self.text = io.TextIOWrapper(buffered, encoding=self.encoding, errors=errors)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for number in itertools.count(1):
            line = rest = self.text.readline(LONGEST_ROW + 1)
            if not line:
                return
            while len(rest) > LONGEST_ROW and not rest.endswith("\n"):
                rest = self.text.readline(LONGEST_ROW + 1)
            yield number, line.removesuffix("\n")

    def read(self) -> str:
        """The whole text, or one character more than a line may have."""
        return self.text.read(LONGEST_ROW + 1)

    def fault(self, text: str) -> str:
        """Why a text of the file cannot be used; empty where it can."""
        if len(text) > LONGEST_ROW:
            return f"longer than {LONGEST_ROW:,} characters"
        if not text.isascii() and self.wrong.search(text):
            return f"bytes that are not {self.encoding.removesuffix('-sig').upper()}"
        return ""


UNDECODABLE, REPLACED = re.compile("[\udc80-\udcff]"), re.compile("\ufffd")
NOT_UTF8 = "bytes that are not UTF-8"


def encoding_of(sample: bytes) -> str:
    """The encoding of a text from how it begins.

    UTF-8 also where some bytes are wrong, if others are right beyond ASCII; else what the bytes look most like.
    """
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if sample.startswith(mark):
            return name
    for name, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        zeros, others = sample[first::2].count(0), sample[1 - first :: 2].count(0)
        if zeros > len(sample) // 4 and others < zeros / 8:  # most characters are ASCII
            return name
    text = sample.decode("utf-8", "surrogateescape")
    wrong = len(UNDECODABLE.findall(text[:-3]))
    right = sum(1 for character in text if ord(character) > 127) - len(UNDECODABLE.findall(text))
    if not wrong or right >= wrong:
        return "utf-8"
    best = from_bytes(sample, cp_isolation=LEGACY).best()
    return best.encoding if best is not None else "utf-8"


Fill = Callable[[Chunk], Iterator[None]]
"""A reader: adds one row to the chunk, then yields."""


def _gather(fill: Fill, left: int | None) -> Iterator[Chunk]:
    """The rows of a reader in chunks, of which one ends after `left` rows."""
    chunk = Chunk()
    rows = fill(chunk)
    while True:
        try:
            next(rows)
        except StopIteration:
            break
        except Exception:
            if chunk.rows or chunk.rejected:  # what was read before the file failed
                yield chunk
            raise
        if chunk.rows >= CHUNK or chunk.rows == left:
            yield Chunk(chunk.captions[:], chunk.image_ids[:], chunk.rejected[:], chunk.rows)
            left = left - chunk.rows if left is not None else None
            chunk.captions.clear()
            chunk.image_ids.clear()
            chunk.rejected.clear()
            chunk.rows = 0
    if chunk.rows or chunk.rejected:
        yield chunk


def _text(lines: Lines) -> Fill:
    def fill(chunk: Chunk) -> Iterator[None]:
        for number, line in lines:
            if fault := lines.fault(line):
                chunk.refuse(lines.name, number, fault, line)
            else:
                chunk.take(lines.name, number, line)
            yield

    return fill


def _whole(lines: Lines) -> Fill:
    """A caption that stands beside its picture."""

    def fill(chunk: Chunk) -> Iterator[None]:
        text = lines.read()
        if fault := lines.fault(text):
            chunk.refuse(lines.name, 1, fault, text)
        else:
            chunk.take(lines.name, 1, " ".join(text.split()), PurePosixPath(lines.name).stem)
        yield

    return fill


def _jsonl(lines: Lines) -> Fill:
    def fill(chunk: Chunk) -> Iterator[None]:
        for number, line in lines:
            if fault := lines.fault(line):
                chunk.refuse(lines.name, number, fault, line)
            elif line.strip():
                take_object(chunk, lines.name, number, line)
            else:
                continue
            yield

    return fill


def take_object(chunk: Chunk, file: str, number: int, line: str) -> None:
    """Add a row of JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # a number of 5,000 digits is a ValueError too
        chunk.refuse(file, number, "not JSON; one object a line is read", line)
        return
    names = row if isinstance(row, dict) else ()
    column = next((name for name in CAPTION_NAMES if name in names), None)
    image = next((name for name in IMAGE_NAMES if name in names), None)
    if column is None:
        chunk.refuse(file, number, f"no field {' or '.join(CAPTION_NAMES)}", line)
    else:
        chunk.take(file, number, row[column], row[image] if image else "")


def _csv(lines: Lines) -> Fill:
    numbered = iter(lines)
    header = next(numbered, (1, ""))[1]
    separator = max((",", ";", "\t"), key=header.count)
    names = next(csv.reader([header], delimiter=separator), [])
    column = names.index(caption_column(names, lines.name))
    image = next((names.index(name) for name in IMAGE_NAMES if name in names), None)

    def fill(chunk: Chunk) -> Iterator[None]:
        for number, (line, text, cells) in enumerate(csv_rows(numbered, separator), start=1):
            if fault := lines.fault(text):
                chunk.refuse(lines.name, number, fault, text)
            elif cells is None:
                chunk.refuse(lines.name, number, f"quotes that do not match in line {line}", text)
            elif len(cells) != len(names):
                chunk.refuse(
                    lines.name, number, f"{len(cells)} cells and not {len(names)} (line {line})", text
                )
            else:
                chunk.take(lines.name, number, cells[column], cells[image] if image is not None else "")
            yield

    return fill


def csv_rows(lines: Iterator[tuple[int, str]], separator: str) -> Iterator[tuple[int, str, list[str] | None]]:
    """Rows of a CSV text as (line, text, cells); cells are None where quotes do not match.

    Quoted cells may span lines. A quote that is never closed costs its own line and not those that follow.
    """
    again: deque[tuple[int, str]] = deque()
    while (following := again.popleft() if again else next(lines, None)) is not None:
        number, text = following
        held = []
        while text.count('"') % 2 and len(held) < UNCLOSED and len(text) <= LONGEST_ROW:
            more = again.popleft() if again else next(lines, None)
            if more is None:
                break
            held.append(more)
            text += "\n" + more[1]
        cells = csv_cells(text, separator)
        if cells is None and held:
            again.extendleft(reversed(held))
            text = following[1]
            cells = csv_cells(text, separator)
        if text:
            yield number, text, cells


def csv_cells(text: str, separator: str) -> list[str] | None:
    """The cells of one row; None where its quotes do not match."""
    try:
        return next(csv.reader([text], delimiter=separator, strict=True), [])
    except csv.Error:
        return None


def _parquet(stream: IO[bytes], name: str) -> Fill:
    file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BLOCK[1])  # not whole columns
    names = file.schema_arrow.names
    column = caption_column(names, name)
    image = next(
        (each for each in IMAGE_NAMES if each in names and names_files(file.schema_arrow.field(each).type)),
        None,
    )
    columns = [column, *([image] if image else [])]
    if shares_long_cells(file.metadata, columns):
        file = pq.ParquetFile(
            stream, metadata=file.metadata, read_dictionary=columns, pre_buffer=False, buffer_size=BLOCK[1]
        )

    def fill(chunk: Chunk) -> Iterator[None]:
        rows = itertools.count(1)
        for group in range(file.num_row_groups):
            size = block_rows(file.metadata.row_group(group), columns)
            for block in file.iter_batches(size, row_groups=[group], columns=columns):
                captions = _cells(block.column(column))
                image_ids = _cells(block.column(image)) if image else itertools.repeat("")
                for caption, image_id, row in zip(captions, image_ids, rows, strict=False):
                    if isinstance(caption, Unusable):
                        chunk.refuse(name, row, *caption)
                    else:
                        chunk.take(name, row, caption, image_id)
                    yield

    return fill


def shares_long_cells(table: pq.FileMetaData, columns: list[str]) -> bool:
    """Whether a dictionary may hold a cell so long that it must not be written out for each row that has it."""
    parts = (
        table.row_group(group).column(number)
        for group in range(table.num_row_groups)
        for number in range(table.num_columns)
    )
    return any(
        part.has_dictionary_page and part.total_uncompressed_size > SHARED
        for part in parts
        if part.path_in_schema.partition(".")[0] in columns
    )


def block_rows(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    """Rows of a row group that are decoded together."""
    parts = [group.column(number) for number in range(group.num_columns)]
    size = sum(
        part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] in columns
    )
    rows, most = BLOCK
    return max(1, min(rows, most * group.num_rows // max(1, size)))


def names_files(kind: pa.DataType) -> bool:
    """Whether a column holds names; in some data sets the column ``image`` holds the pictures themselves."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


class Unusable(NamedTuple):
    """A cell of a table that is no text."""

    reason: str
    start: str


def _cells(column: pa.Array) -> list[Any]:
    """Cells as Python values; what is longer than any caption stays in Arrow."""
    if pa.types.is_dictionary(column.type):
        cells = _cells(column.dictionary)
        return [None if place is None else cells[place] for place in column.indices.to_pylist()]
    if not any(holds(column.type) for holds in TEXTS):
        return column.to_pylist()
    sizes = pc.binary_length(column)  # pyright: ignore[reportAttributeAccessIssue]
    long = pc.greater(sizes, 4 * LONGEST)  # pyright: ignore[reportAttributeAccessIssue]
    cells = _decoded(pc.if_else(long, None, column))  # pyright: ignore[reportAttributeAccessIssue]
    for place in pc.indices_nonzero(long).to_pylist():  # pyright: ignore[reportAttributeAccessIssue]
        start = column[place].as_buffer()[: 4 * SHOWN].to_pybytes().decode("utf-8", "replace")
        cells[place] = Unusable(f"longer than {LONGEST:,} characters ({sizes[place].as_py():,} bytes)", start)
    return cells


TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def _decoded(column: pa.Array) -> list[Any]:
    try:
        return pc.cast(column, pa.large_string()).to_pylist()
    except (pa.ArrowInvalid, UnicodeDecodeError):
        cells = pc.cast(column, pa.large_binary()).to_pylist()
    for place, cell in enumerate(cells):
        if cell is not None:
            try:
                cells[place] = cell.decode()
            except UnicodeDecodeError:
                cells[place] = Unusable(NOT_UTF8, str(cell[:SHOWN]))
    return cells


def _webdataset(stream: io.RawIOBase, name: str) -> Fill:
    def fill(chunk: Chunk) -> Iterator[None]:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=ShortHeaders) as archive:
            files = (member for member in archive if member.isfile())
            samples = itertools.groupby(files, key=lambda member: sample_key(member.name))
            for number, (key, members) in enumerate(samples, start=1):
                found: dict[str, bytes] = {}
                for member in members:
                    suffix = PurePosixPath(member.name).suffix.lower()
                    if suffix in (".txt", ".json") and member.size <= 4 * LONGEST:
                        part = archive.extractfile(member)
                        found[suffix] = part.read() if part else b""
                try:
                    caption = found[".txt"].decode() if ".txt" in found else _field(found.get(".json"))
                except (ValueError, RecursionError):
                    chunk.refuse(name, number, f"the text of {key} cannot be read")
                else:
                    chunk.take(name, number, caption, PurePosixPath(key).name)
                yield

    return fill


class ShortHeaders(tarfile.TarInfo):
    """A member whose extended headers are read only where they are as short as names are."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and self.size > LONGEST_HEADER:
            raise tarfile.ReadError("a header is too long")
        return super()._proc_member(archive)  # pyright: ignore[reportAttributeAccessIssue]


def sample_key(name: str) -> str:
    """The key of a webdataset member: its path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _field(content: bytes | None) -> object:
    row = json.loads(content) if content else {}
    return next((row[name] for name in CAPTION_NAMES if name in row), "") if isinstance(row, dict) else ""


def caption_column(names: Iterable[str], file: str) -> str:
    """The column that holds the captions."""
    names = list(names)
    for name in CAPTION_NAMES:
        if name in names:
            return name
    found = ", ".join(str(name)[:40] for name in names[:12]) or "none"
    raise InputError(f"The file {file} has no column {' or '.join(CAPTION_NAMES)}; its columns: {found}.")


def as_text(value: object) -> str:
    """A cell as text; missing cells are empty."""
    if isinstance(value, str):
        return value if value.isascii() else readable(value)
    missing = value is None or value is pd.NA or value != value
    return "" if missing else readable(str(value))


def image_name(value: object) -> str:
    """The name of an image as text; empty where the value is none."""
    name = as_text(value) if isinstance(value, str | int) else ""
    return name if len(name) <= LONGEST_NAME else ""


def read_captions(place: str | Path, limit: int = 1_000_000) -> list[str]:
    """The distinct captions of a source in memory, in its order; `limit` rows are read at most.

    Raises
    ------
    InputError
        If nothing in it is a caption: the first reason is told.
    """
    captions: dict[str, None] = {}
    rows, first = 0, None
    for chunk in CaptionSource(place).chunks(limit):
        captions |= dict.fromkeys(chunk.captions)
        first = first or next(iter(chunk.rejected), None)
        rows += chunk.rows
    if not captions:
        raise no_captions(str(place), rows, first)
    return list(captions)


def no_captions(place: str, rows: int, first: Rejected | None) -> InputError:
    """Why a source gave nothing."""
    if first is None:
        return InputError(f"The file {place} holds no captions; it is empty.")
    if first.row == 0:
        return InputError(first.reason)
    return InputError(
        f"The file {place} holds no captions in {rows:,} rows; row {first.row} of {first.file}: {first.reason}."
    )
