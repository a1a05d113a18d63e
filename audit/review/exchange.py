"""Labels out of a store and into one: parquet, CSV and JSON lines.

What goes out names the end of the store's chain (`read_root`), in the metadata of parquet, else in ``FILE.root.json``
beside it. What comes in is checked row by row, and a row that came in before changes nothing. The reference's ground
truth has a file of its own, `audit.review.reference`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, text

from audit.cells import plain_cell, safe_cell
from audit.errors import InputError
from audit.files import replace_file, write_json, write_parquet
from audit.images import sha256
from audit.records import caption_id, readable
from audit.review.events import LABELS, EventKind, Root, canonical
from audit.review.queue import LONGEST_NOTE, item_id
from audit.review.replay import FLAGS, LABEL_COLUMNS, SETTLE, TEXTS, Replay, remember
from audit.review.roles import Action, Person, person_name
from audit.review.rows import events_of
from audit.review.store import Change, Store, root_of

FORMS = ("parquet", "csv", "jsonl")
ROOT_KEY = b"verbatim.root"
TYPES = {"seed": pa.int64(), "seconds": pa.float64()} | dict.fromkeys(FLAGS, pa.bool_())
SCHEMA = pa.schema([(name, TYPES.get(name, pa.string())) for name in LABEL_COLUMNS])
REQUIRED = ("caption", "who", "label")
LONGEST = 10_000
"""Characters of a caption."""
LONGEST_NAME = 500
"""Of the name of an image, a template, a queue ..."""
LARGEST_SEED = 2**63 - 1
MOST_ROWS = 1_000_000
HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class BadRow:
    """A row that was left out."""

    row: int
    """From 1, the heading not counted; in JSON lines the line."""
    column: str
    """Empty where it is the row as a whole."""
    message: str


@dataclass(frozen=True)
class Exported:
    """What was written."""

    rows: int
    root: Root
    left_out: int = 0
    """Captions of which people say nothing together, for which the form has no word, or which are in another file."""


@dataclass(frozen=True)
class Imported:
    """What came of reading a file."""

    added: int
    there: int
    """Rows that the store has already."""
    bad: tuple[BadRow, ...]
    """Rows that were left out, and why."""


@dataclass(frozen=True)
class Incoming:
    """A label out of a file, before it is a store's."""

    row: int
    values: dict[str, Any]
    """By `LABEL_COLUMNS`; ``item_id`` and ``when`` may be empty."""

    @property
    def source_sha256(self) -> str:
        """Of the event that it was in another store, or else of what it says."""
        told = {name: value for name, value in self.values.items() if name != "event_sha256"}
        return self.values["event_sha256"] or hashlib.sha256(canonical(told).encode()).hexdigest()


# Out


def export_labels(store: Store, person: Person, path: Path, form: str = "") -> Exported:
    """Write everybody's labels, as `audit.review.store.Store.labels` has them.

    Parameters
    ----------
    form
        One of `FORMS`; by default what the file's name ends with.
    """
    path, form = Path(path), form_of(path, form)
    with store.read(person, Action.SEE_LABELS, still=True) as base:
        labels, root = Replay.of(base).table(), root_of(base)
    write_labels(labels, path, form, root)
    told = {"file": path.name, "form": form, "rows": len(labels), **asdict(root)}
    store.append(EventKind.EXPORTED, person, "labels", told)
    return Exported(len(labels), root)


def write_labels(labels: pd.DataFrame, path: Path, form: str, root: Root) -> None:
    """Write a table of labels with the end of the chain that they are of."""
    table = table_of(labels)
    if form == "parquet":
        metadata = {ROOT_KEY: json.dumps(asdict(root)).encode()}
        write_parquet(table.replace_schema_metadata(metadata), path)
        return
    text_of = _csv if form == "csv" else _jsonl
    replace_file(path, lambda partial: partial.write_bytes(text_of(table.to_pylist())))
    write_root(path, root)


def table_of(labels: pd.DataFrame) -> pa.Table:
    """Labels with the columns and types of `SCHEMA`."""

    def cell(value: Any) -> Any:
        if value is None or value is pd.NA or value != value:
            return None
        return readable(value) if isinstance(value, str) else value

    columns = [pa.array([cell(value) for value in labels[each.name].tolist()], each.type) for each in SCHEMA]
    return pa.table(columns, schema=SCHEMA)


def _csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=[*SCHEMA.names])
    writer.writeheader()
    for row in rows:
        writer.writerow({name: safe_cell(_cell(value)) for name, value in row.items()})
    return stream.getvalue().encode("utf-8-sig")


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_root(path: Path, root: Root) -> None:
    """Write the end of the chain beside a file, with the file's hash."""
    write_json(root_path(path), {"file": path.name, "file_sha256": sha256(path), "root": asdict(root)})


def root_path(path: Path) -> Path:
    return path.with_name(path.name + ".root.json")


def read_root(path: Path) -> Root:
    """The end of the chain that an exported file names, for `audit.review.store.Store.verify`.

    Raises
    ------
    InputError
        If it names none, or if the file is not the one that the root was written for.
    """
    path = Path(path)
    try:
        metadata = pq.read_schema(path).metadata or {} if path.suffix == ".parquet" else {}
        if ROOT_KEY in metadata:
            root = json.loads(metadata[ROOT_KEY])
        else:
            content = json.loads(root_path(path).read_text(encoding="utf-8"))
            if content["file_sha256"] != sha256(path):
                raise InputError(f"{path} was changed since {root_path(path).name} was written for it.")
            root = content["root"]
        return Root(int(root["count"]), str(root["sha256"]))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{path} does not name the end of a chain; export the labels again.") from error


# In


def import_labels(store: Store, person: Person, path: Path, form: str = "") -> Imported:
    """Take labels out of a file; all that can be used or, where the store fails, none.

    A row has at least ``caption, who, label``. Without an ``item_id`` it is of each item that has its caption, or of
    the caption alone. What it says of an item is that person's answer, as if given here, and marked as one that came
    in. Rows that the store has change nothing, nor does one about which it knows something newer.
    """
    store.require(person, Action.IMPORT)
    path, form = Path(path), form_of(path, form)
    rows, bad = read_labels(path, form)
    return _take(store, person, rows, bad, path.name)


def _take(
    store: Store, person: Person, rows: Sequence[Incoming], bad: Sequence[BadRow], file: str
) -> Imported:
    """Append what came out of a file, in one change of the store."""
    told, there = list(bad), 0
    with store.change(person, Action.IMPORT) as change:
        items, known = Items.of(change.base), _Known(change.base)
        bodies = []
        for row in rows:
            if fault := items.fault(row.values):
                told.append(BadRow(row.row, "item_id", fault))
                continue
            for values in items.placed(row.values):
                reason = known.has(values, row.source_sha256)
                if reason is None:
                    there += 1
                elif reason:
                    told.append(BadRow(row.row, "label", reason))
                else:
                    bodies.append((values["item_id"], body_of(values, row, file)))
                    known.add(values, row.source_sha256)
        bring(change, person, bodies)
    return Imported(len(bodies), there, tuple(sorted(told, key=lambda each: each.row)))


def bring(change: Change, person: Person, bodies: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Append labels that came in, each as an item and a body, and what follows from them."""
    events = change.append_many(person.name, [(EventKind.IMPORTED, *each) for each in bodies])
    remember(change.base, events)
    if events:
        items = [{"item_id": name} for name in {event.subject for event in events}]
        change.base.execute(text(f"{SETTLE} WHERE item_id = :item_id"), items)


def body_of(values: Mapping[str, Any], row: Incoming, file: str) -> dict[str, Any]:
    """What the event of a label out of a file holds."""
    names = (*TEXTS, "seed", "seconds", "note", "flagged", "blurred", "others_shown", "adjudicated")
    return {name: values[name] for name in names} | {
        "annotator": values["who"],
        "given_at": values["when"],
        "source_sha256": row.source_sha256,
        "source": readable(file)[:LONGEST_NAME],
    }


@dataclass(frozen=True)
class Items:
    """The items of a store."""

    known: Mapping[str, tuple[str, str]]
    """Queue and caption of each, by its id."""
    by_caption: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, base: Connection) -> Items:
        known: dict[str, tuple[str, str]] = {}
        by_caption: dict[str, list[str]] = {}
        for name, queue, caption in base.execute(text("SELECT item_id, queue, caption_id FROM items")):
            known[name] = queue, caption
            by_caption.setdefault(caption, []).append(name)
        return cls(known, by_caption)

    def fault(self, values: Mapping[str, Any]) -> str:
        """Why a label cannot be of the item that it names; empty if it can."""
        queue, caption = self.known.get(values["item_id"], (values["queue"], values["caption_id"]))
        if (queue, caption) == (values["queue"] or queue, values["caption_id"]):
            return ""
        return (
            "The item is of another caption or in another queue; leave item_id empty to join by the caption."
        )

    def placed(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        """A label for each item that it is of: its own, or those of its caption, or the caption alone."""
        if values["item_id"]:
            queue, _ = self.known.get(values["item_id"], (values["queue"], ""))
            return [values | {"queue": queue}]
        there = [
            (name, self.known[name][0])
            for name in self.by_caption.get(values["caption_id"], ())
            if values["queue"] in ("", self.known[name][0])
        ]
        there = there or [(item_id(values["queue"], "", values["caption_id"]), values["queue"])]
        return [values | {"item_id": name, "queue": queue} for name, queue in there]


class _Known:
    """What a store has already."""

    SAME = ("label", "image_id", "template_id", "seed", "mask_version")

    def __init__(self, base: Connection):
        self.sources: set[tuple[str, str]] = set()
        given_at: dict[str, str] = {}
        for event in events_of(base, [EventKind.LABELLED, EventKind.ADJUDICATED, EventKind.IMPORTED]):
            self.sources.add((event.sha256, event.subject))
            if event.kind is EventKind.IMPORTED:
                self.sources.add((str(event.body.get("source_sha256", "")), event.subject))
                given_at[event.sha256] = str(event.body.get("given_at", ""))
        self.now: dict[tuple[str, str], tuple[Mapping[str, Any], str | None]] = {}
        for label in table_of(Replay.of(base).table()).to_pylist():
            self.now[self._key(label)] = (label, given_at.get(label["event_sha256"]))

    @staticmethod
    def _key(label: Mapping[str, Any]) -> tuple[str, str]:
        """An item and a person have one label, and an item one decision, whoever made it."""
        return label["item_id"], "" if label["adjudicated"] else label["who"]

    def has(self, values: Mapping[str, Any], source: str) -> str | None:
        """None where the store has this label, a sentence where it has another that goes before it, else empty."""
        if (source, values["item_id"]) in self.sources:
            return None
        found = self.now.get(self._key(values))
        if found is None:
            return ""
        label, given_at = found
        if all(label[name] == values[name] for name in self.SAME):
            return None
        if given_at is None:
            done = "decided about" if label["adjudicated"] else "labelled"
            return f"{label['who']} has {done} this item {label['label']} here; that label stays."
        if not values["when"] or given_at >= values["when"]:
            return f"A label of {label['who']} that is as new or newer was imported before: {label['label']}."
        return ""

    def add(self, values: Mapping[str, Any], source: str) -> None:
        self.sources.add((source, values["item_id"]))
        self.now[self._key(values)] = (values, values["when"])


def form_of(path: Path, form: str = "") -> str:
    """A file's form, by what its name ends with if none is given."""
    found = form or path.suffix.lower().removeprefix(".")
    found = {"ndjson": "jsonl"}.get(found, found)
    if found not in FORMS:
        raise InputError(f"{path.name!r} ends with none of .parquet, .csv and .jsonl; say which form it has.")
    return found


def read_labels(path: Path, form: str) -> tuple[list[Incoming], list[BadRow]]:
    """Rows of a file that can be used, and those that cannot.

    Raises
    ------
    InputError
        If it cannot be read as a whole, or lacks a column.
    """
    rows, bad = [], []
    for number, values in _values(path, form, bad):
        found, faults = _checked(values, form)
        if faults:
            bad += [BadRow(number, name, message) for name, message in faults]
        else:
            rows.append(Incoming(number, found))
    return rows, bad


def _values(path: Path, form: str, bad: list[BadRow]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers; a line that holds none goes to `bad`."""
    try:
        if form == "parquet":
            table = pq.read_table(path)
            _complete(path, table.column_names, table.num_rows)
            kept = table.select([name for name in LABEL_COLUMNS if name in table.column_names])
            yield from enumerate(kept.to_pylist(), start=1)
            return
        lines = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the path.") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} is no readable {form} file in UTF-8; write it anew.") from error
    if form == "csv":
        yield from _csv_values(path, lines, bad)
        return
    for number, line in enumerate(lines.split("\n"), start=1):
        if number > MOST_ROWS:
            raise InputError(f"{path} has more than {MOST_ROWS:,} rows; import it in parts.")
        if line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            if isinstance(values, dict):
                yield number, values
            else:
                bad.append(BadRow(number, "", "The line is no JSON object."))


def _csv_values(path: Path, lines: str, bad: list[BadRow]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        reader = csv.DictReader(io.StringIO(lines, newline=""), strict=True)
        _complete(path, reader.fieldnames or [], 0)
        for number, values in enumerate(reader, start=1):
            if number > MOST_ROWS:
                raise InputError(f"{path} has more than {MOST_ROWS:,} rows; import it in parts.")
            if None in values or None in values.values():
                bad.append(BadRow(number, "", "The row has more or fewer cells than the heading."))
            else:
                yield number, {name: plain_cell(value) for name, value in values.items()}
    except csv.Error as error:
        raise InputError(f"{path} is no readable csv file ({error}); write it anew.") from error


def _complete(path: Path, columns: Sequence[str], rows: int) -> None:
    absent = [name for name in REQUIRED if name not in columns]
    if absent:
        raise InputError(f"{path} lacks the columns {', '.join(absent)}; labels have {', '.join(REQUIRED)}.")
    if rows > MOST_ROWS:
        raise InputError(f"{path} has {rows:,} rows; import at most {MOST_ROWS:,} at once.")


def _checked(values: Mapping[str, Any], form: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A row by `LABEL_COLUMNS`, and what is wrong with it by column."""
    found: dict[str, Any] = {}
    faults = []
    for name in LABEL_COLUMNS:
        value = values.get(name)
        if value is None or value != value or (form == "csv" and value == ""):
            value = None
        try:
            found[name] = CHECKS[name](value)
        except InputError as error:
            faults.append((name, str(error)))
        except (ValueError, TypeError, OverflowError, KeyError, AttributeError):
            faults.append((name, f"{repr(value)[:40]} is no {name.replace('_', ' ')} that is taken."))
    if not faults:
        own = caption_id(found["caption"])
        if found["caption_id"] not in ("", own):
            faults.append(("caption_id", f"{found['caption_id']} is not the caption's; that has {own}."))
        found["caption_id"] = own
    return found, faults


def _text(most: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ValueError
        if len(value) > most:
            raise InputError(f"The text has {len(value):,} characters; at most {most:,} are taken.")
        return readable(value)

    return check


def _caption(value: Any) -> str:
    caption = _text(LONGEST)(value)
    if not caption.strip():
        raise InputError("The caption is empty; labels are joined by it.")
    return caption


def _who(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return person_name(readable(value))


def _label(value: Any) -> str:
    if value not in LABELS:
        raise InputError(f"{repr(value)[:40]} is no label; there are {', '.join(LABELS)}.")
    return value


def _hex(digits: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value in (None, ""):
            return ""
        if not isinstance(value, str) or len(value) != digits or not set(value) <= HEX:
            raise InputError(f"{repr(value)[:40]} is not of {digits} hex digits.")
        return value

    return check


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    seed = int(value)
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError
    return seed


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    seconds = float(value)
    if isinstance(value, bool) or not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError
    return seconds


def _when(value: Any) -> str:
    if value in (None, ""):
        return ""
    when = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    # all in one form, so that the newer one is the greater text
    return (
        (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="microseconds")
    )


def _flag(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    return {"true": True, "false": False}[value.lower()]


CHECKS: dict[str, Callable[[Any], Any]] = {
    "queue": _text(LONGEST_NAME),
    "run": _text(LONGEST_NAME),
    "item_id": _hex(16),
    "caption_id": _hex(16),
    "caption": _caption,
    "who": _who,
    "label": _label,
    "image_id": _text(LONGEST_NAME),
    "template_id": _text(LONGEST_NAME),
    "seed": _seed,
    "mask_version": _text(LONGEST_NAME),
    "mask_sha256": _hex(64),
    "generated_sha256": _hex(64),
    "training_sha256": _hex(64),
    "code_version": _text(LONGEST_NAME),
    "flagged": _flag,
    "note": _text(LONGEST_NOTE),
    "when": _when,
    "seconds": _seconds,
    "blurred": _flag,
    "others_shown": _flag,
    "event_sha256": _hex(64),
    "adjudicated": _flag,
    "imported": _flag,
}
