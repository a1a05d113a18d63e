"""Captions to audit, from the files that people have them in."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audit.corpus.reader import CAPTION_NAMES
from audit.errors import InputError
from audit.records import caption_id
from audit.targets.pipelines import readable

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")
IMAGE_NAMES = ("image_id", "image")


@dataclass(frozen=True)
class CaptionFile:
    """The distinct captions of a file, in its order."""

    captions: pd.DataFrame
    """``caption_id, caption, occurrences``, and ``image_id`` of the own image where the file names it."""
    rows: int
    """Rows in the file."""
    empty: int
    """Rows left out because they hold no text."""
    column: str | None
    """The column read, None for a text file."""


def read_captions(path: Path, limit: int | None = None) -> CaptionFile:
    """Read ``.txt`` (one a line), ``.csv`` (comma or semicolon), ``.jsonl`` or ``.parquet``.

    The caption column is the first of ``caption, TEXT, text, prompt, Caption`` that there is. Equal captions
    become one row; half surrogate pairs are replaced.

    Parameters
    ----------
    limit
        Rows to read from the start; all by default.

    Raises
    ------
    InputError
        If the file is missing, damaged, of another kind, without a caption column, or without captions.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"Captions are read from {', '.join(SUFFIXES)}; got {path}.")
    try:
        frame = {".txt": read_text, ".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}[suffix](
            path
        )
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"The file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror or error}).") from error
    column = caption_column(frame, path)
    frame = frame.head(limit) if limit is not None else frame
    return distinct(frame, column, named=suffix != ".txt", path=path)


def caption_column(frame: pd.DataFrame, path: Path) -> str:
    for name in CAPTION_NAMES:
        if name in frame.columns:
            return name
    found = ", ".join(map(str, frame.columns[:12])) or "none"
    raise InputError(f"The file {path} has no column {' or '.join(CAPTION_NAMES)}; its columns: {found}.")


def distinct(frame: pd.DataFrame, column: str, *, named: bool, path: Path) -> CaptionFile:
    image = next((name for name in IMAGE_NAMES if name in frame.columns), None)
    texts = [as_text(value) for value in frame[column]]
    rows = pd.DataFrame({"caption": texts})
    if image:
        rows["image_id"] = [as_text(value) for value in frame[image]]
    filled = rows.loc[rows["caption"].str.strip() != ""]
    if filled.empty:
        raise InputError(f"The file {path} holds no captions; its {len(rows)} rows are empty.")
    captions = filled.drop_duplicates("caption").reset_index(drop=True)
    counts = Counter(filled["caption"])
    captions["occurrences"] = [counts[text] for text in captions["caption"]]
    captions.insert(0, "caption_id", [caption_id(text) for text in captions["caption"]])
    return CaptionFile(captions, len(rows), len(rows) - len(filled), column if named else None)


def as_text(value: object) -> str:
    """A cell as text; missing cells are empty."""
    if isinstance(value, str):
        return readable(value)
    missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    return "" if missing else readable(str(value))


def read_text(path: Path) -> pd.DataFrame:
    # str.splitlines would also cut at form feeds and U+2028, which occur inside captions
    lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    return pd.DataFrame({"caption": lines[:-1] if lines[-1] == "" else lines})


def read_csv(path: Path) -> pd.DataFrame:
    with open(path, encoding="utf-8-sig") as stream:
        header = stream.readline()
    separator = ";" if header.count(";") > header.count(",") else ","
    try:
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"The file {path} is no table of comma- or semicolon-separated values ({reason})."
        ) from error


def read_jsonl(path: Path) -> pd.DataFrame:
    with open(path, encoding="utf-8-sig") as stream:
        return pd.DataFrame(list(json_objects(stream, path)))


def json_objects(lines: Iterable[str], path: Path) -> Iterable[dict]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"Line {number} of {path} is not JSON; write one object a line.") from error
        if not isinstance(row, dict):
            raise InputError(f"Line {number} of {path} is not a JSON object; write one object a line.")
        yield row


def read_parquet(path: Path) -> pd.DataFrame:
    try:
        names = pq.read_schema(path).names
        wanted = [name for name in (*CAPTION_NAMES, *IMAGE_NAMES) if name in names]
        return pq.read_table(path, columns=wanted or None).to_pandas()
    except pa.ArrowException as error:
        raise InputError(f"The file {path} is no readable parquet file; write it anew.") from error
