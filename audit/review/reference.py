"""The reference's ground truth, ``*_groundtruth.parquet``, in and out, joined to a review by the text of captions.

Its columns: ``caption, url, overfit_type`` (MV, RV, TV or N), ``gen_seeds`` (seeds, or pairs of a seed and an index;
empty for MV), ``retrieved_urls, mse_real_gen, template_indices`` (nested), and ``scores`` (whitebox) or
``edge_scores`` (blackbox).

A file that came in is kept whole in the store's events, with what is not known of here, so that it goes out equal:
same columns, types, order and values. Only labels that people gave since stand in their place.
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
    items_by_caption,
    placed,
    table_of,
    write_root,
)
from audit.review.replay import LABEL_COLUMNS
from audit.review.roles import LONGEST_NAME as LONGEST_PERSON
from audit.review.roles import Action, Person, person_name, require
from audit.review.store import Store
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
CHUNK = 600_000
"""Characters of a kept file that one event holds."""


def is_reference(path: Path) -> bool:
    """Whether a file has the reference's columns."""
    try:
        return path.suffix.lower() == ".parquet" and set(REQUIRED) <= set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return False


def import_reference(store: Store, person: Person, path: Path) -> Imported:
    """Take the labels of a reference's file, and keep the file; a second time changes nothing.

    A label is of each item of the store that has its caption, or else of the caption alone. It was given by somebody
    with the file's name.
    """
    require(person, Action.IMPORT)
    path = Path(path)
    table = read_reference(path)
    rows, bad = reference_rows(table, _annotator(path))
    if not rows:
        raise InputError(f"{path} has no row that can be used{': ' + bad[0].message if bad else ''}")
    file, chunks = _packed(table)
    if len(chunks) > len(rows):
        raise InputError(f"{path} has rows too large to be kept; import it in parts.")
    with store.change() as change:
        if any(each["file"] == file for each in _kept(store)):
            return Imported(0, len(rows), tuple(bad))
        items = items_by_caption(change.base)
        events = [
            (
                values["item_id"],
                body_of(values, row, path.name) | {"reference": {"file": file, "row": row.row}},
            )
            for row in rows
            for values in placed(row.values, items)
        ]
        for place, chunk in enumerate(chunks):
            events[place][1]["reference"] |= {"chunk": place, "content": chunk}
        change.append_many(person.name, [(EventKind.IMPORTED, name, body) for name, body in events])
    return Imported(len(events), 0, tuple(bad))


def _packed(table: pa.Table) -> tuple[str, list[str]]:
    """A table's content in chunks, and its sha256: the same for the same table, whatever its file is called."""
    stream = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(stream, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    content = stream.getvalue().to_pybytes()
    kept = base64.b64encode(content).decode()
    return sha256(content), [kept[first : first + CHUNK] for first in range(0, len(kept), CHUNK)]


def export_reference(store: Store, person: Person, path: Path, run: Path | None = None) -> Exported:
    """Write what people say of captions all in all, as the reference does.

    The last file of the reference that came in is written again, with what people gave other labels changed, and with
    new captions after it. Captions on which they disagree, or of which they say what the reference has no word for,
    keep the label that they had, or are left out where they had none.

    Parameters
    ----------
    run
        Gives the scores and distances of new captions.
    """
    require(person, Action.SEE_LABELS)
    path = Path(path)
    labels = store.labels()
    root = store.root()
    base = kept_table(store)
    brought = _from_reference(store)
    ours = labels.loc[[each not in brought for each in labels["event_sha256"]]]
    said = decided(ours, by="caption_id")
    usable = {key: label for key, label in said.items() if label in KINDS}
    table, there = (SCHEMA.empty_table(), set()) if base is None else _relabelled(base, usable)
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
    left_out = sum(key not in usable and key not in there for key in said)
    return Exported(table.num_rows, root, left_out)


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
            "others_shown": False,
            "adjudicated": False,
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


def _kept(store: Store) -> list[dict[str, Any]]:
    """What events say of files of the reference, in order."""
    return [
        event.body["reference"]
        for event in store.events([EventKind.IMPORTED])
        if isinstance(event.body.get("reference"), dict)
    ]


def _from_reference(store: Store) -> set[str]:
    return {event.sha256 for event in store.events([EventKind.IMPORTED]) if "reference" in event.body}


def kept_table(store: Store) -> pa.Table | None:
    """The last file of the reference that came in, as it was; None where none did."""
    kept = _kept(store)
    if not kept:
        return None
    file = kept[-1]["file"]
    try:
        parts = {each["chunk"]: each["content"] for each in kept if each["file"] == file and "chunk" in each}
        content = base64.b64decode("".join(parts[place] for place in sorted(parts)), validate=True)
        if sha256(content) != file:
            raise ValueError("its hash is another")
        return pa.ipc.open_stream(content).read_all()
    except (KeyError, TypeError, ValueError, binascii.Error, pa.ArrowException) as error:
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
