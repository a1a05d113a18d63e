"""Training sets on disk: rows with caption and attribution, pictures decoded one at a time.

The table of our own is read here, ``corpus.parquet`` (one row a picture, columns as in `COLUMNS`) beside ``images/``;
`audit.corpus.sources` opens every layout.

A row that cannot be used is collected as a `RowError` and never stops the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audit.corpus.stored import open_stored
from audit.errors import InputError
from audit.records import readable

TABLE = "corpus.parquet"
COLUMNS = (
    "image_id",
    "file",
    "caption",
    "title",
    "keywords",
    "author",
    "licence",
    "source",
    "url",
    "family",
    "sha256",
    "indexed",
)
REQUIRED = ("image_id", "file", "caption")
CAPTION_NAMES = ("caption", "TEXT", "text", "prompt", "Caption")
URL_NAMES = ("url", "URL", "urls")
LICENCE_NAMES = ("licence", "license", "LICENSE")
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
TRUTHS = {
    **dict.fromkeys(("true", "yes", "1", "1.0", ""), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}
OTHER_NAMES = ("title", "keywords", "author", "source", "family", "sha256", "md5")
ROW_NAMES = (*CAPTION_NAMES, *URL_NAMES, *LICENCE_NAMES, *OTHER_NAMES)
"""Columns of the public tools that `row_of` reads."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Row:
    """One training picture with its caption and to whom it is owed."""

    image_id: str
    path: Path
    """Its file; ``Path()`` where there is none and only ``url`` is known."""
    caption: str
    title: str = ""
    keywords: str = ""
    author: str = ""
    licence: str = ""
    source: str = ""
    url: str = ""
    family: str = ""
    sha256: str = ""
    md5: str = ""
    """Of the bytes, as kNN metadata have it."""
    member: str = ""
    """Which part of the file it is, where that holds many (`audit.corpus.stored`)."""
    indexed: bool = True
    """False for a picture that the model was never trained on: it does not belong into an index."""


@dataclass(frozen=True)
class RowError:
    """A row that was left out, and why."""

    image_id: str
    message: str


@dataclass(frozen=True)
class Corpus:
    """Rows of a training set in file order, and the rows that could not be used."""

    folder: Path
    rows: list[Row]
    errors: list[RowError] = field(default_factory=list)

    def indexed(self) -> list[Row]:
        """The rows that the model was trained on."""
        return [row for row in self.rows if row.indexed]


def read_corpus(folder: Path) -> Corpus:
    """Rows of the table in `folder`; pictures are not opened.

    Raises
    ------
    InputError
        If the folder or its table is missing, or the table lacks a column.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give a folder with {TABLE}.")
    entries = table_entries(folder)
    return Corpus(
        folder,
        [each for each in entries if isinstance(each, Row)],
        [each for each in entries if isinstance(each, RowError)],
    )


def pictures(
    rows: list[Row],
    errors: list[RowError],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Row, np.ndarray]]:
    """Each row with its decoded picture, (H, W, 3) float32 in [0, 1]; undecodable ones go to `errors`."""
    for done, row in enumerate(rows, start=1):
        try:
            picture = open_stored(row)
        except InputError as error:
            errors.append(RowError(row.image_id, str(error)))
        else:
            yield row, picture
        if progress:
            progress(done, len(rows))


def row_of(values: Mapping[str, object], *, image_id: str, path: Path, member: str = "") -> Row:
    """A row out of what the public tools call its columns; what is missing is empty."""

    def text(*names: str) -> str:
        return next((_text(values[name]) for name in names if values.get(name) is not None), "")

    return Row(
        image_id=image_id,
        path=path,
        caption=text(*CAPTION_NAMES),
        licence=text(*LICENCE_NAMES),
        url=text(*URL_NAMES),
        member=member,
        indexed=True,
        **{name: text(name) for name in OTHER_NAMES},
    )


def table_entries(folder: Path, *, trained: bool = False) -> list[Row | RowError]:
    """Rows of ``corpus.parquet`` and those that cannot be used, in the table's order; with `trained` without those
    that the model was not trained on.

    A picture that goes missing changes no other's place: an interrupted build counts them.
    """
    table = _renamed(_read_table(folder / TABLE))
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise InputError(
            f"{folder / TABLE} lacks the column {', '.join(missing)}; found {table.column_names}."
        )
    found: list[Row | RowError] = []
    seen: set[str] = set()
    for values in table.select([name for name in COLUMNS if name in table.column_names]).to_pylist():
        image_id = _text(values["image_id"])
        try:
            indexed = _truth(values.get("indexed"))
        except InputError as error:
            found.append(RowError(image_id, f"{folder / TABLE}, the row {image_id[:80]!r}, {error}"))
            continue
        if trained and not indexed:
            continue
        path = inside(folder, _text(values["file"]))
        if not image_id or image_id in seen:
            found.append(RowError(image_id, f"The image_id {image_id!r} is empty or occurs twice."))
        elif path is None:
            found.append(RowError(image_id, f"There is no picture {values['file']!r} inside {folder}."))
        else:
            seen.add(image_id)
            texts = {name: _text(values.get(name)) for name in COLUMNS[2:-1]}
            found.append(Row(image_id, path, indexed=indexed, **texts))
    return found


def utf8(column: pa.Array) -> pa.Array:
    """A column of text or bytes as text, its bytes that are no UTF-8 replaced; one of anything else as it is."""
    kind = column.type
    if not any(is_one(kind) for is_one in TEXTS):
        return column
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.binary()).to_pylist()
        return pa.array(
            [None if each is None else each.decode("utf-8", "replace") for each in raw], pa.string()
        )
    return text


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file; write it anew.") from error


def _renamed(table: pa.Table) -> pa.Table:
    """The public tools' names for the columns of captions, addresses and licences as ours."""
    for ours, names in (("caption", CAPTION_NAMES), ("url", URL_NAMES), ("licence", LICENCE_NAMES)):
        found = next((name for name in names if name in table.column_names), ours)
        table = table.rename_columns([ours if name == found else name for name in table.column_names])
    return table


def _truth(value: object) -> bool:
    """Whether a picture belongs into the index: it does where nothing is said, and nothing else than yes or no is guessed."""
    if value is None or value != value:  # a number that is missing is NaN
        return True
    found = TRUTHS.get(_text(value).strip().lower())
    if found is None:
        raise InputError(
            f"has {_text(value)[:40]!r} as indexed; write true or false, or 1 or 0, or leave it empty."
        )
    return found


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return readable(", ".join(map(str, value)))
    return "" if value is None or value != value else readable(str(value))


def inside(folder: Path, file: str) -> Path | None:
    """The picture's path, unless it is missing or lies outside the training set's folder."""
    root = folder.resolve()
    for path in (folder / file, folder / "images" / file):
        try:
            if file and path.is_file() and path.resolve().is_relative_to(root):
                return path
        except OSError:  # no file can have so long a name
            continue
    return None
