"""The reference's ground truth, ``*_groundtruth.parquet``, in and out, joined to a review by the text of captions.

Its columns: ``caption, url, overfit_type`` (MV, RV, TV or N), ``gen_seeds`` (seeds, or pairs of a seed and an index;
empty for MV), ``retrieved_urls, mse_real_gen, template_indices`` (nested), and ``scores`` (whitebox) or
``edge_scores`` (blackbox).

A file that came in is kept whole in events of its own, with what is not known of here, so that it goes out equal: same
columns, types, order and values. Only labels that people gave since stand in their place. Its labels are of the caption
alone and no answer to an item: whoever gave them was not asked here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection

from audit.errors import InputError
from audit.files import replace_file
from audit.images import sha256
from audit.records import caption_id, readable
from audit.review.agreement import decided
from audit.review.events import EventKind
from audit.review.exchange import (
    LARGEST_SEED,
    LONGEST,
    LONGEST_NAME,
    MOST_ROWS,
    BadRow,
    Exported,
    Imported,
    Incoming,
    body_of,
    bring,
    table_of,
    write_root,
)
from audit.review.queue import item_id
from audit.review.replay import LABEL_COLUMNS, Replay
from audit.review.roles import LONGEST_NAME as LONGEST_PERSON
from audit.review.roles import Action, Person, person_name
from audit.review.rows import events_of
from audit.review.store import Store, root_of
from audit.runs.folder import RunFolder

KINDS = ("MV", "RV", "TV", "N")
"""That the reference has words for: a copied patch is none of them."""
REQUIRED = ("caption", "overfit_type")
SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("url", pa.string()),
        ("overfit_type", pa.string()),
        ("gen_seeds", pa.list_(pa.int64())),
        ("retrieved_urls", pa.list_(pa.string())),
        ("mse_real_gen", pa.float64()),
        ("template_indices", pa.list_(pa.list_(pa.int64()))),
        ("scores", pa.float64()),
    ]
)
PART = 600_000
"""Characters of a kept file that one event holds."""


def is_reference(path: Path) -> bool:
    """Whether a file has the reference's columns."""
    try:
        return path.suffix.lower() == ".parquet" and set(REQUIRED) <= set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return False


def import_reference(store: Store, person: Person, path: Path) -> Imported:
    """Take the labels of a reference's file, and keep the file; a second time changes nothing.

    A label is of the caption alone, and was given by somebody with the file's name. A newer file of the same name takes
    the place of the one before.
    """
    store.require(person, Action.IMPORT)
    path = Path(path)
    table = read_reference(path)
    rows, bad = reference_rows(table, _annotator(path))
    if not rows:
        raise InputError(f"{path} has no row that can be used{': ' + bad[0].message if bad else ''}")
    file, parts = _packed(table)
    with store.change(person, Action.IMPORT) as change:
        if file in {event.subject for event in events_of(change.base, [EventKind.REFERENCE])}:
            return Imported(0, len(rows), tuple(bad))
        name = readable(path.name)[:LONGEST_NAME]
        kept = [
            (EventKind.REFERENCE, file, {"name": name, "part": place, "parts": len(parts), "content": part})
            for place, part in enumerate(parts)
        ]
        change.append_many(person.name, kept)
        bodies = [
            (
                item_id("", "", row.values["caption_id"]),
                body_of(row.values, row, path.name) | {"reference": {"file": file, "row": row.row}},
            )
            for row in rows
        ]
        bring(change, person, bodies)
    return Imported(len(bodies), 0, tuple(bad))


def _packed(table: pa.Table) -> tuple[str, list[str]]:
    """A table's content in parts, and its sha256: the same for the same table, whatever its file is called."""
    stream = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(stream, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    content = stream.getvalue().to_pybytes()
    kept = base64.b64encode(content).decode()
    return sha256(content), [kept[first : first + PART] for first in range(0, len(kept), PART)]


def export_reference(
    store: Store, person: Person, path: Path, run: Path | None = None, base: str = ""
) -> Exported:
    """Write what people say of captions all in all, as the reference does.

    A file of the reference that came in is written again, with what people gave other labels changed, and with new
    captions after it. Captions on which they disagree, which one person only answered, or of which they say what the
    reference has no word for, keep the label that they had, or are left out where they had none; so are captions of
    another file of the reference.

    Parameters
    ----------
    run
        Gives the scores and distances of new captions.
    base
        Name of the file of the reference that is written again; by default the only one.

    Raises
    ------
    InputError
        If none of that name came in, or several did and none is named.
    """
    path = Path(path)
    with store.read(person, Action.SEE_LABELS, still=True) as state:
        labels, root = Replay.of(state).table(), root_of(state)
        files, brought = kept_files(state), _from_reference(state)
        chosen = _chosen(files, base)
        before = kept_table(state, chosen) if chosen else None
    ours = labels.loc[[each not in brought for each in labels["event_sha256"]]]
    theirs = labels.loc[[brought.get(each) in files.values() for each in labels["event_sha256"]]]
    said = decided(ours, by="caption_id")
    usable = {key: label for key, label in said.items() if label in KINDS}
    table, there = (SCHEMA.empty_table(), set()) if before is None else _relabelled(before, usable)
    given: dict[str, list[dict[str, Any]]] = {}
    for row in table_of(ours).to_pylist():
        given.setdefault(row["caption_id"], []).append(row)
    measured = _measured(run) if run else {}
    rows = [
        _row_of(label, given[key], measured.get(key, {})) for key, label in usable.items() if key not in there
    ]
    if rows:
        table = pa.concat_tables([table, _as_table(rows, table.schema)])
    _write(table, path)
    write_root(path, root)
    told = {"file": path.name, "form": "reference", "rows": table.num_rows, **asdict(root)}
    store.append(EventKind.EXPORTED, person, "labels", told)
    left_out = {*said, *theirs["caption_id"]} - {*usable, *there}
    return Exported(table.num_rows, root, len(left_out))


def _chosen(files: Mapping[str, str], base: str) -> str:
    """The file that is written again, by its sha256; empty where none came in."""
    names = ", ".join(files)
    if base and base not in files:
        raise InputError(
            f"No file of the reference called {base[:80]!r} came in; there is {names or 'none'}."
        )
    if not base and len(files) > 1:
        raise InputError(
            f"Several files of the reference came in; name the one that is written again: {names}."
        )
    return files[base] if base else next(iter(files.values()), "")


def read_reference(path: Path) -> pa.Table:
    """A file of the reference, as it is.

    Raises
    ------
    InputError
        If it cannot be read, lacks a column or has too many rows.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the path.") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is no readable parquet file; write it anew.") from error
    absent = [name for name in REQUIRED if name not in table.column_names]
    if absent:
        raise InputError(f"{path} lacks the columns {', '.join(absent)}; a ground truth has them.")
    if table.num_rows > MOST_ROWS:
        raise InputError(f"{path} has {table.num_rows:,} rows; import at most {MOST_ROWS:,} at once.")
    return table


def reference_rows(table: pa.Table, annotator: str) -> tuple[list[Incoming], list[BadRow]]:
    """What its rows say, as labels of an annotator; and rows that cannot be used."""
    names = [name for name in (*REQUIRED, "gen_seeds", "retrieved_urls") if name in table.column_names]
    rows, bad, seen = [], [], set()
    for number, values in enumerate(table.select(names).to_pylist(), start=1):
        caption, label = values["caption"], values["overfit_type"]
        if not isinstance(caption, str) or not caption.strip() or len(caption) > LONGEST:
            bad.append(
                BadRow(number, "caption", f"The caption is empty or no text of {LONGEST:,} characters.")
            )
            continue
        if label not in KINDS:
            message = f"{repr(label)[:40]} is no label of the reference; those are {', '.join(KINDS)}."
            bad.append(BadRow(number, "overfit_type", message))
            continue
        try:
            seeds = seeds_of(values.get("gen_seeds"))
        except InputError as error:
            bad.append(BadRow(number, "gen_seeds", str(error)))
            continue
        caption = readable(caption)
        key = caption_id(caption)
        if key in seen:
            bad.append(BadRow(number, "caption", "The caption stands in an earlier row; that one counts."))
            continue
        seen.add(key)
        urls = values.get("retrieved_urls")
        url = urls[0] if label == "RV" and isinstance(urls, list) and urls else None
        told = dict.fromkeys(LABEL_COLUMNS, "") | {
            "caption_id": key,
            "caption": caption,
            "who": annotator,
            "label": label,
            "image_id": readable(url)[:LONGEST_NAME] if isinstance(url, str) else "",
            "seed": seeds[0] if seeds else None,
            "seconds": None,
            "flagged": False,
            "blurred": False,
            "others_shown": False,
            "adjudicated": False,
            "imported": True,
        }
        rows.append(Incoming(number, told))
    return rows, bad


def seeds_of(value: object) -> tuple[int, ...]:
    """The seeds in ``gen_seeds``: a list of them, or of pairs of one and an index (-1 for MV).

    >>> seeds_of([3, 5]), seeds_of([[3, 0], [5, -1]]), seeds_of([]), seeds_of(None)
    ((3, 5), (3, 5), (), ())
    """
    if value is None:
        return ()
    seeds = []
    for each in _listed(value):
        seed = each[0] if isinstance(each, list) and len(each) == 2 else each
        if isinstance(seed, bool) or not isinstance(seed, (int, float)) or seed % 1 != 0:
            raise InputError(
                f"{repr(seed)[:40]} is no seed; give whole numbers, or pairs of one and an index."
            )
        if not 0 <= seed <= LARGEST_SEED:
            raise InputError(f"The seed {seed:g} is not from 0 to {LARGEST_SEED}.")
        seeds.append(int(seed))
    return tuple(seeds)


def _listed(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{repr(value)[:40]} is no list of seeds.")
    return value


def _annotator(path: Path) -> str:
    try:
        return person_name(path.stem[:LONGEST_PERSON])
    except InputError:
        return "reference"


def _from_reference(base: Connection) -> dict[str, str]:
    """The file of each label that came out of one, by the event's sha256."""
    return {
        event.sha256: event.body["reference"]["file"]
        for event in events_of(base, [EventKind.IMPORTED])
        if "reference" in event.body
    }


def kept_files(base: Connection) -> dict[str, str]:
    """The sha256 of each file of the reference that is kept, by name; of several of one name the last."""
    return {event.body["name"]: event.subject for event in events_of(base, [EventKind.REFERENCE])}


def kept_table(base: Connection, file: str) -> pa.Table:
    """A file of the reference that came in, as it was, by its sha256."""
    parts = {
        event.body["part"]: event.body["content"]
        for event in events_of(base, [EventKind.REFERENCE])
        if event.subject == file
    }
    try:
        content = base64.b64decode("".join(parts[place] for place in sorted(parts)), validate=True)
        if sha256(content) != file:
            raise ValueError("its hash is another")
        return pa.ipc.open_stream(content).read_all()
    except (TypeError, ValueError, binascii.Error, pa.ArrowException) as error:
        raise InputError(
            "The file of the reference that the store keeps is damaged; `python -m audit labels verify` tells more."
        ) from error


def _write(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    # else the items of lists would be called otherwise than in the file that came in
    pq.write_table(table, sink, use_compliant_nested_type=False)
    replace_file(path, lambda partial: partial.write_bytes(sink.getvalue()))


def _relabelled(base: pa.Table, said: Mapping[str, str]) -> tuple[pa.Table, set[str]]:
    """The table with what people say instead of its labels, and the captions that it has."""
    captions = [
        caption_id(readable(each)) if isinstance(each, str) else ""
        for each in base.column("caption").to_pylist()
    ]
    before = base.column("overfit_type").to_pylist()
    after = [said.get(key, label) for key, label in zip(captions, before, strict=True)]
    if after != before:
        place = base.schema.get_field_index("overfit_type")
        field = base.schema.field(place)
        base = base.set_column(place, field, pa.array(after, pa.string()).cast(field.type))
    return base, set(captions)


def _row_of(label: str, given: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a caption that people gave one label; `given` are their labels of it."""
    agreeing = [row for row in given if row["label"] == label]
    seeds = sorted({row["seed"] for row in agreeing if row["seed"] is not None})
    images = list(dict.fromkeys(row["image_id"] for row in agreeing if row["image_id"]))
    return {
        "caption": readable(given[0]["caption"]),
        "url": "",
        "overfit_type": label,
        "gen_seeds": [] if label in ("MV", "N") else seeds,
        "retrieved_urls": images if label == "RV" else [],
        "template_indices": [],
        **measured,
    }


def _as_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows in the columns and types of another file; what does not fit is null."""
    columns = []
    for field in schema:
        cells = []
        for row in rows:
            value = row.get(field.name)
            if field.name == "gen_seeds" and value and _is_nested(field.type):
                value = [[seed, 0 if row["retrieved_urls"] else -1] for seed in value]
            try:
                pa.array([value], field.type)
            except (pa.ArrowException, TypeError):
                value = None
            cells.append(value)
        columns.append(pa.array(cells, field.type))
    return pa.table(columns, schema=schema)


def _is_nested(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in lists) and any(test(kind.value_type) for test in lists)


def _measured(run: Path) -> dict[str, dict[str, Any]]:
    """``scores`` or ``edge_scores``, and ``mse_real_gen``, of a run's captions by id."""
    folder = RunFolder.open(run)
    measured: dict[str, dict[str, Any]] = {}
    for name, ours, theirs in (
        ("captions", "dcs", "scores"),
        ("captions", "ecs", "edge_scores"),
        ("verdicts", "sse", "mse_real_gen"),
    ):
        table = folder.table(name)
        if ours in table.columns:
            for key, value in zip(table["caption_id"], table[ours], strict=True):
                if value == value and value is not None:
                    measured.setdefault(key, {})[theirs] = float(value)
    return measured
