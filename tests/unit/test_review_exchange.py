"""Labels out of a store and into one, in each form, and the reference's ground truth both ways."""

import csv
import io
import json
import multiprocessing
import uuid
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.cells import plain_cell, safe_cell
from audit.cli import main
from audit.errors import InputError
from audit.evidence.people import People
from audit.records import caption_id
from audit.review import agreement
from audit.review.events import LABELS, EventKind, Root
from audit.review.exchange import (
    FORMS,
    SCHEMA,
    export_labels,
    import_labels,
    read_root,
    table_of,
)
from audit.review.queue import Answer, Item, Queue, item_id
from audit.review.reference import (
    export_reference,
    import_reference,
    is_reference,
    reference_rows,
    seeds_of,
)
from audit.review.replay import Replay
from audit.review.roles import Person, Refused, Role
from audit.review.store import Store
from audit.settings import settings

ANN = Person("Ann", Role.AUDITOR)
BOB, CAT = (Person(name, Role.ANNOTATOR) for name in ("Bob", "Cat"))
JO = Person("Jo", Role.ADJUDICATOR)
READER = Person("Rea", Role.READER)
PROMPTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "prompts"
CAPTIONS = [
    "a red house",
    '=HYPERLINK("http://example.org")',
    "'=1+1",
    'she said "no",\r\nand left\tit',
    "ünïcode 猫 \u2028 𝕏",
    "plain",
]


def store_at(path):
    store = Store.open(f"sqlite:///{path}")
    store.enter(ANN.name)
    for person in (JO, READER):
        store.give_role(ANN, person.name, person.role)
    return store


@pytest.fixture
def store(tmp_path):
    store = store_at(tmp_path / "review.db")
    yield store
    assert store.verify() == []
    store.close()


@pytest.fixture
def other(tmp_path):
    store = store_at(tmp_path / "other.db")
    yield store
    assert store.verify() == []
    store.close()


def item(caption, place, queue="q"):
    key = caption_id(caption)
    return Item(
        item_id(queue, "run", key), queue, "run", "/runs/run", key, caption, place, "why", seed=2**60 + place
    )


def fill(store, captions=CAPTIONS):
    queue = Queue(store, "q")
    queue.fill(ANN, [item(caption, place) for place, caption in enumerate(captions)])
    return queue


def say(queue, person, label, **more):
    (taken,) = queue.take(person, 1)
    queue.answer(person, taken.item_id, Answer(uuid.uuid4().hex, label, **more))
    return taken.item_id


@pytest.fixture
def labelled(store):
    """Two people's labels of all captions, one of them decided, one flagged with a hostile note."""
    queue = fill(store)
    for place in range(len(CAPTIONS)):
        shown = {"generated_sha256": f"{place}" * 64, "training_sha256": "b" * 64, "mask_sha256": "c" * 64}
        say(
            queue, BOB, LABELS[place % 5], seed=2**60 + place, image_id="=cmd|x", seconds=1.1 + place, **shown
        )
        name = say(queue, CAT, LABELS[place % 4], template_id="-t", mask_version="ab", training_sha256="")
        if place == 1:
            queue.flag(CAT, name, "@SUM(1) 'quoted'")
    queue.adjudicate(JO, item(CAPTIONS[4], 4).item_id, Answer(uuid.uuid4().hex, "RV"))
    return store


def comparable(labels):
    """What a label says, wherever it is stored."""
    names = ["queue", "item_id", "caption_id", "caption", "who", "label", "image_id", "template_id", "seed"]
    names += [
        "mask_version",
        "note",
        "flagged",
        "blurred",
        "others_shown",
        "adjudicated",
        "run",
        "mask_sha256",
    ]
    names += ["generated_sha256", "training_sha256", "code_version"]
    return sorted(
        (tuple(row[name] for name in names), row["seconds"]) for row in table_of(labels).to_pylist()
    )


# Cells


@pytest.mark.parametrize("text", [*CAPTIONS, "'", "''=x", " =x", "' '-x", "it's", "", "a=b", "'a", "\n+1"])
def test_a_cell_comes_back_as_it_was(text):
    cell = safe_cell(text)
    assert plain_cell(cell) == text
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))


# Out and in


def test_an_exhibit_is_still_confirmed_by_labels_that_came_in(store, other, tmp_path):
    queue = fill(store)
    for person in (BOB, CAT):
        say(queue, person, "MV", generated_sha256="a" * 64)
    export_labels(store, ANN, tmp_path / "labels.parquet")
    import_labels(other, ANN, tmp_path / "labels.parquet")
    given = [People.of_store(each).of(caption_id(CAPTIONS[0]), "a" * 64) for each in (store, other)]
    assert [[label.who for label in each] for each in given] == [["Bob", "Cat"]] * 2


def test_what_came_in_of_an_item_is_that_persons_answer(store, tmp_path):
    queue = fill(store)
    rows = [GOOD | {"caption": text, "who": "Bob", "label": "MV"} for text in CAPTIONS]
    rows += [
        GOOD | {"caption": text, "who": "Cat", "label": "N" if text == "plain" else "MV"} for text in CAPTIONS
    ]
    assert import_labels(store, ANN, jsonl(tmp_path / "a.jsonl", *rows)).added == 12
    assert Counter(queue.decisions(ANN)["status"]) == {"agreed": 5, "disagreed": 1}
    (case,) = queue.disagreements(JO)
    assert [(each.who, each.label) for each in case.given] == [("Bob", "MV"), ("Cat", "N")]
    assert queue.take(BOB, 9) == [] and queue.take(ANN, 9) == [], "nobody is asked again"
    assert queue.undo(BOB) is None, "what was given elsewhere is not taken back here"
    labels = store.labels(ANN)
    assert labels["imported"].all() and len(labels) == 12
    assert agreement.decided(labels) == {
        name: label or agreement.DISAGREED
        for name, label in queue.decisions(ANN)[["item_id", "label"]].itertuples(index=False)
    }
    decision = GOOD | {"caption": "plain", "who": "Kim", "label": "N", "adjudicated": True}
    import_labels(store, ANN, jsonl(tmp_path / "b.jsonl", decision))
    assert queue.decisions(ANN)["status"].tolist().count("adjudicated") == 1 and not queue.disagreements(JO)
    came = import_labels(store, ANN, jsonl(tmp_path / "c.jsonl", decision | {"who": "Lou", "label": "TV"}))
    assert came.added == 0 and "of Kim that is as new or newer" in came.bad[0].message


def test_labels_that_came_in_before_their_queue_count_in_it(store, tmp_path):
    rows = [
        GOOD | {"item_id": item("a red house", 0).item_id, "who": who, "label": label, "queue": "q"}
        for who, label in (("Bob", "MV"), ("Cat", "N"))
    ]
    import_labels(store, ANN, jsonl(tmp_path / "a.jsonl", *rows))
    assert store.verify() == []
    queue = fill(store)
    assert queue.decisions(ANN)["status"].tolist()[0] == "disagreed" and len(queue.disagreements(JO)) == 1


def test_somebody_who_skipped_has_answered_elsewhere(store, tmp_path):
    queue = fill(store)
    queue.skip(BOB, queue.take(BOB)[0].item_id)
    import_labels(store, ANN, jsonl(tmp_path / "a.jsonl", GOOD | {"who": "Bob"}))
    assert queue.reopen(BOB) == 0 and queue.progress(BOB).done == 1


def test_a_label_of_another_item_than_its_caption_is_told(store, tmp_path):
    fill(store)
    wrong = GOOD | {"item_id": item("plain", 5).item_id}
    came = import_labels(store, ANN, jsonl(tmp_path / "a.jsonl", wrong, GOOD))
    assert came.added == 1 and [(each.row, each.column) for each in came.bad] == [(1, "item_id")]


@pytest.mark.parametrize("form", FORMS)
def test_labels_go_out_and_come_in_the_same(labelled, other, tmp_path, form):
    path = tmp_path / f"labels.{form}"
    before = labelled.labels(ANN)
    exported = export_labels(labelled, ANN, path)
    assert exported.rows == len(before) == 2 * len(CAPTIONS) + 1
    came = import_labels(other, ANN, path)
    assert (came.added, came.there, came.bad) == (exported.rows, 0, ())
    assert comparable(other.labels(ANN)) == comparable(before)
    root = other.root()
    again = import_labels(other, ANN, path)
    assert (again.added, again.there, again.bad) == (0, exported.rows, ()) and other.root() == root
    # and on to the store that it came from, by way of another file
    back = tmp_path / f"back.{form}"
    export_labels(other, ANN, back)
    ours = import_labels(labelled, ANN, back)
    assert (ours.added, ours.bad) == (0, ()) and comparable(labelled.labels(ANN)) == comparable(before)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_names_the_end_of_the_chain(labelled, tmp_path, form):
    path = tmp_path / f"labels.{form}"
    root = labelled.root()
    assert export_labels(labelled, ANN, path).root == root == read_root(path)
    assert labelled.verify(read_root(path)) == []
    (exported,) = labelled.events([EventKind.EXPORTED])
    assert exported.who == "Ann" and exported.body["sha256"] == root.sha256
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"changed since|does not name"):
        read_root(path)


def test_the_root_of_an_export_is_of_the_labels_that_it_holds(labelled, tmp_path, monkeypatch):
    """Somebody labels while it is being written."""
    root, labels_of = labelled.root(), Replay.labels

    def slowly(replay):
        found = labels_of(replay)
        labelled.append(EventKind.VIEWED, BOB, "meanwhile", {})
        return found

    monkeypatch.setattr(Replay, "labels", slowly)
    assert export_labels(labelled, ANN, tmp_path / "labels.parquet").root == root
    root = labelled.root()
    assert export_reference(labelled, ANN, tmp_path / "truth.parquet").root == root


def test_an_export_to_parquet_has_the_stated_types(labelled, tmp_path):
    export_labels(labelled, READER, tmp_path / "labels.parquet")
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table.schema.equals(SCHEMA) and table.num_rows == 13
    with pytest.raises(InputError, match=r"none of .parquet, .csv and .jsonl"):
        export_labels(labelled, ANN, tmp_path / "labels.xlsx")
    assert export_labels(labelled, ANN, tmp_path / "labels.bin", "csv").rows == 13


def test_no_cell_of_a_csv_is_run(labelled, tmp_path):
    export_labels(labelled, ANN, tmp_path / "labels.csv")
    text = (tmp_path / "labels.csv").read_bytes().decode("utf-8-sig")
    for row in csv.reader(io.StringIO(text, newline="")):
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in row)


def test_roles_are_asked_before_anything_happens(labelled, tmp_path):
    before = labelled.root()
    with pytest.raises(Refused):
        export_labels(labelled, BOB, tmp_path / "labels.csv")
    with pytest.raises(Refused):
        export_reference(labelled, BOB, tmp_path / "truth.parquet")
    export_labels(labelled, READER, tmp_path / "read.csv")
    after = labelled.root()
    for person in (BOB, JO, READER):
        with pytest.raises(Refused):
            import_labels(labelled, person, tmp_path / "read.csv")
        with pytest.raises(Refused):
            import_reference(labelled, person, tmp_path / "read.csv")
    assert not (tmp_path / "labels.csv").exists() and not (tmp_path / "truth.parquet").exists()
    assert labelled.root() == after != before


def test_what_was_taken_back_here_does_not_come_in_again(store, tmp_path):
    queue = fill(store)
    say(queue, BOB, "MV")
    export_labels(store, ANN, tmp_path / "old.jsonl")
    queue.undo(BOB)
    assert import_labels(store, ANN, tmp_path / "old.jsonl").there == 1
    assert store.labels(ANN).empty
    name = say(queue, BOB, "TV")
    came = import_labels(store, ANN, tmp_path / "old.jsonl")
    assert (came.added, came.there) == (0, 1)
    assert store.labels(ANN)[["item_id", "label"]].to_numpy().tolist() == [[name, "TV"]]


def jsonl(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


GOOD = {"caption": "a red house", "who": "Dan", "label": "MV"}


def test_three_columns_are_enough_and_a_caption_finds_its_items(store, tmp_path):
    fill(store)
    Queue(store, "p").fill(ANN, [item("a red house", 0, "p")])
    path = tmp_path / "labels.csv"
    path.write_text("label,who,caption\nMV,Dan,a red house\nN,Dan,never queued\n")
    assert import_labels(store, ANN, path).added == 3
    found = {(row.queue, row.item_id, row.label) for row in store.labels(ANN).itertuples()}
    key = caption_id("never queued")
    assert found == {
        ("q", item("a red house", 0).item_id, "MV"),
        ("p", item("a red house", 0, "p").item_id, "MV"),
        ("", item_id("", "", key), "N"),
    }
    assert import_labels(store, ANN, path).added == 0


def test_the_newer_of_two_that_came_in_holds(store, tmp_path):
    early, late = (
        GOOD | {"when": f"2026-01-0{day}T00:00:00Z", "label": label} for day, label in ((1, "MV"), (2, "N"))
    )
    assert import_labels(store, ANN, jsonl(tmp_path / "a.jsonl", early)).added == 1
    assert import_labels(store, ANN, jsonl(tmp_path / "b.jsonl", late)).added == 1
    came = import_labels(store, ANN, jsonl(tmp_path / "c.jsonl", early | {"seconds": 1}))
    assert came.added == 0 and "newer was imported before: N" in came.bad[0].message
    assert store.labels(ANN)["label"].tolist() == ["N"]


def test_what_somebody_said_here_goes_before_what_comes_in(store, tmp_path):
    queue = fill(store)
    say(queue, BOB, "TV")
    came = import_labels(store, ANN, jsonl(tmp_path / "a.jsonl", GOOD | {"who": "Bob"}))
    assert came.added == 0 and came.bad[0].message == "Bob has labelled this item TV here; that label stays."
    assert store.labels(ANN)["label"].tolist() == ["TV"]


BAD = [
    ("label", {"label": "U"}),
    ("label", {"label": None}),
    ("label", {"label": ["MV"]}),
    ("who", {"who": ""}),
    ("who", {"who": 7}),
    ("who", {"who": "x" * 200}),
    ("who", {"who": "a\nb\x00"}),
    ("caption", {"caption": " "}),
    ("caption", {"caption": {"a": 1}}),
    ("caption", {"caption": "x" * 10_001}),
    ("caption_id", {"caption_id": "0" * 16}),
    ("item_id", {"item_id": "../../etc/passwd"}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": 2**63}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": True}),
    ("seed", {"seed": "9" * 5000}),
    ("seconds", {"seconds": "long"}),
    ("seconds", {"seconds": 1e999}),
    ("when", {"when": "yesterday"}),
    ("when", {"when": 12}),
    ("flagged", {"flagged": "perhaps"}),
    ("adjudicated", {"adjudicated": 2}),
    ("event_sha256", {"event_sha256": "A" * 64}),
    ("note", {"note": "x" * 2001}),
    ("image_id", {"image_id": 5}),
    ("", "[1]"),
    ("", '{"caption": '),
    ("", "[" * 50_000),
]


@pytest.mark.parametrize(("column", "fault"), BAD, ids=lambda each: str(each)[:30])
def test_a_bad_row_is_told_and_the_rest_goes_through(store, tmp_path, column, fault):
    bad = fault if isinstance(fault, str) else GOOD | fault
    path = jsonl(tmp_path / "labels.jsonl", GOOD, bad, GOOD | {"caption": "another"})
    came = import_labels(store, ANN, path)
    assert came.added == 2
    (told,) = came.bad
    assert (told.row, told.column) == (2, column)
    assert told.message and "\n" not in told.message and len(told.message) < 200


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"caption,label\nx,MV\n"),
        ("a.csv", b""),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.csv", b'caption,who,label\n"x'),
        ("a.parquet", b"PAR1"),
        ("a.jsonl", b"\xff\xff"),
        ("missing.csv", None),
    ],
)
def test_a_file_that_is_none_is_one_sentence(store, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = store.root()
    with pytest.raises(InputError) as caught:
        import_labels(store, ANN, tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert store.root() == before


def test_rows_of_csv_with_other_cells_than_the_heading_are_told(store, tmp_path):
    (tmp_path / "a.csv").write_text("caption,who,label\na,Dan\nb,Dan,MV,more\nc,Dan,N\n")
    came = import_labels(store, ANN, tmp_path / "a.csv")
    assert came.added == 1 and [each.row for each in came.bad] == [1, 2]


def importing(url, path):
    Store_ = Store.open(url)
    import_labels(Store_, ANN, path)
    Store_.close()


def test_two_imports_at_once_double_nothing(tmp_path, store):
    path = jsonl(tmp_path / "a.jsonl", *(GOOD | {"caption": f"caption {i}"} for i in range(300)))
    context = multiprocessing.get_context("spawn")
    running = [
        context.Process(target=importing, args=(f"sqlite:///{tmp_path / 'review.db'}", path))
        for _ in range(3)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert len(list(store.events([EventKind.IMPORTED]))) == 300 == len(store.labels(ANN))


# The reference's ground truth


def reference_table(pairs=False):
    captions = [f"caption {i}" for i in range(6)]
    kinds = ["MV", "RV", "TV", "N", "TV", "RV"]
    seeds = [[], [3, 5], [7], [], [9, 11, 12], [2**40]]
    if pairs:
        seeds = [[[seed, place] for place, seed in enumerate(each)] or [[1, -1]] for each in seeds]
    frame = pd.DataFrame(
        {
            "caption": captions,
            "url": [f"https://example.org/{i}.jpg" if i else None for i in range(6)],
            "overfit_type": kinds,
            "gen_seeds": seeds,
            "retrieved_urls": [[], ["https://example.org/r.jpg"], [], [], [], ["u", "v"]],
            "mse_real_gen": [10.5, float("nan"), 1e-30, None, 2500.0, 3.0],
            "template_indices": [[], [], [[0, 2], [1]], [], [[5]], [[]]],
            "scores": pd.array([1.5, 2.5, 0.1, 0.2, 0.3, 0.4], "float32"),
            "something else": [b"\x00\xff", None, b"", b"x", b"y", b"z"],
        },
        index=pd.Index(range(10, 16), name="row"),
    )
    return pa.Table.from_pandas(frame)


def equal(one, other):
    """Columns, types, order, nested values, metadata, and each cell to the bit; a NaN is equal to a NaN."""
    assert one.schema.equals(other.schema, check_metadata=True)

    def bits(table):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        return pa.ipc.open_stream(sink.getvalue()).read_all().to_pylist()

    assert repr(bits(one)) == repr(bits(other))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_ground_truth_goes_in_and_comes_out_equal(store, tmp_path, pairs):
    table = reference_table(pairs)
    pq.write_table(table, tmp_path / "sd_groundtruth.parquet")
    assert is_reference(tmp_path / "sd_groundtruth.parquet")
    came = import_reference(store, ANN, tmp_path / "sd_groundtruth.parquet")
    assert (came.added, came.there, came.bad) == (6, 0, ())
    export_reference(store, ANN, tmp_path / "out.parquet")
    equal(pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "sd_groundtruth.parquet"))
    assert store.verify(read_root(tmp_path / "out.parquet")) == []
    root = store.root()
    pq.write_table(table, tmp_path / "renamed.parquet")
    assert import_reference(store, ANN, tmp_path / "renamed.parquet").added == 0 and store.root() == root
    labels = store.labels(ANN)
    assert labels["label"].tolist() == table["overfit_type"].to_pylist()
    assert labels["seed"].astype(object).where(labels["seed"].notna(), None).tolist() == (
        [1, 3, 7, 1, 9, 2**40] if pairs else [None, 3, 7, None, 9, 2**40]
    )
    assert set(labels["who"]) == {"sd_groundtruth"}


def test_columns_of_any_type_come_out_equal(store, tmp_path):
    table = reference_table()
    kinds = pa.array(table["overfit_type"].to_pylist()).dictionary_encode()
    table = table.set_column(2, "overfit_type", kinds)
    table = table.append_column("when", pa.array([0, 1, None, 3, 4, 5], pa.timestamp("us", "UTC")))
    table = table.append_column("edge_scores", pa.array([0.5] * 6, pa.float16()))
    # as older versions of pyarrow name the items of lists
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2, use_compliant_nested_type=False)
    assert str(pq.read_schema(tmp_path / "a.parquet").field("gen_seeds").type) == "list<item: int64>"
    import_reference(store, ANN, tmp_path / "a.parquet")
    export_reference(store, ANN, tmp_path / "b.parquet")
    equal(pq.read_table(tmp_path / "b.parquet"), pq.read_table(tmp_path / "a.parquet"))


def test_a_newer_file_of_the_same_captions_is_the_one_that_goes_out(store, tmp_path):
    pq.write_table(reference_table(), tmp_path / "a.parquet")
    import_reference(store, ANN, tmp_path / "a.parquet")
    newer = reference_table().drop_columns("scores")
    pq.write_table(newer, tmp_path / "a.parquet")
    import_reference(store, ANN, tmp_path / "a.parquet")
    export_reference(store, ANN, tmp_path / "out.parquet")
    equal(pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "a.parquet"))
    assert len(store.labels(ANN)) == 6


def test_a_large_file_is_kept_in_several_events(store, tmp_path):
    rng = __import__("numpy").random.default_rng(0)
    table = pa.table(
        {
            "caption": [f"c{i}" for i in range(40)],
            "overfit_type": ["N"] * 40,
            "noise": [rng.bytes(50_000) for _ in range(40)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    import_reference(store, ANN, tmp_path / "a.parquet")
    export_reference(store, ANN, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(table)
    lone = table.slice(0, 1).set_column(2, "noise", [[rng.bytes(2_000_000)]])
    pq.write_table(lone, tmp_path / "b.parquet")
    import_reference(store, ANN, tmp_path / "b.parquet")
    export_reference(store, ANN, tmp_path / "out.parquet", base="b.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(lone)


def test_each_of_several_files_comes_out_by_its_name(store, tmp_path):
    for name in ("one", "two"):
        rows = {"caption": [f"{name} a", f"{name} b"], "overfit_type": ["MV", "N"]}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
        assert import_reference(store, ANN, tmp_path / f"{name}.parquet").added == 2
    with pytest.raises(InputError, match=r"name the one that is written again: one.parquet, two.parquet"):
        export_reference(store, ANN, tmp_path / "out.parquet")
    with pytest.raises(InputError, match=r"'three' came in; there is one.parquet, two.parquet"):
        export_reference(store, ANN, tmp_path / "out.parquet", base="three")
    for name in ("one", "two"):
        exported = export_reference(store, ANN, tmp_path / "out.parquet", base=f"{name}.parquet")
        assert (exported.rows, exported.left_out) == (2, 2), "the other file's captions are counted"
        equal(pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / f"{name}.parquet"))


def test_it_is_joined_to_a_run_by_the_text_of_captions(store, tmp_path):
    queue = fill(store, ["caption 2", "caption 3", "caption 9", "caption 8", "caption 7"])
    pq.write_table(reference_table(), tmp_path / "truth.parquet")
    import_reference(store, ANN, tmp_path / "truth.parquet")
    joined = store.labels(ANN)["caption_id"].isin(queue.decisions(ANN)["caption_id"])
    assert store.labels(ANN).loc[joined, "caption"].tolist() == ["caption 2", "caption 3"]
    assert set(queue.decisions(ANN)["status"]) == {"open"}, "whoever made the file was not asked"
    said = {}
    for bob, cat in (("N", "N"), ("TV", "MV"), ("RV", "RV"), ("PV", "PV"), ("TV", "TV")):
        said[say(queue, BOB, bob, seed=4, image_id="img")] = bob
        say(queue, CAT, cat, seed=6)
    exported = export_reference(store, ANN, tmp_path / "out.parquet")
    before, after = (pq.read_table(tmp_path / name) for name in ("truth.parquet", "out.parquet"))
    assert after.schema.equals(before.schema, check_metadata=True)
    # 2 changed to N by both; 3 disputed, so it stays; 9 and 7 are new; 8 is a patch, which has no word there
    assert after["overfit_type"].to_pylist() == ["MV", "RV", "N", "N", "TV", "RV", "RV", "TV"]
    assert after["caption"].to_pylist()[6:] == ["caption 9", "caption 7"]
    assert after["gen_seeds"].to_pylist()[6:] == [[4, 6], [4, 6]]
    assert after["retrieved_urls"].to_pylist()[6:] == [["img"], []]
    assert exported.left_out == 1
    same = [name for name in before.column_names if name != "overfit_type"]
    equal(after.slice(0, 6).select(same), before.select(same))


def test_labels_alone_make_a_ground_truth_that_reads_back(store, other, tmp_path):
    queue = fill(store, ["one", "two", "three"])
    for label in ("MV", "RV", "N"):
        say(queue, BOB, label, seed=8, image_id="p7")
    assert export_reference(store, ANN, tmp_path / "truth.parquet").left_out == 3, "one person is no people"
    for label in ("MV", "RV", "N"):
        say(queue, CAT, label, seed=8, image_id="p7")
    export_reference(store, ANN, tmp_path / "truth.parquet")
    table = pq.read_table(tmp_path / "truth.parquet")
    assert table.column_names[:4] == ["caption", "url", "overfit_type", "gen_seeds"]
    assert table["gen_seeds"].to_pylist() == [[], [8], []]
    assert import_reference(other, ANN, tmp_path / "truth.parquet").added == 3
    assert other.labels(ANN)["label"].tolist() == ["MV", "RV", "N"]


def test_bad_rows_of_a_ground_truth_are_told_and_kept(store, tmp_path):
    table = pa.table(
        {
            "caption": ["a", None, " ", "d", "e", "a", "f"],
            "overfit_type": ["MV", "MV", "MV", "XX", "TV", "TV", "N"],
            "gen_seeds": [[], [], [], [], [-4], [], None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    came = import_reference(store, ANN, tmp_path / "a.parquet")
    assert came.added == 2
    assert [(each.row, each.column) for each in came.bad] == [
        (2, "caption"),
        (3, "caption"),
        (4, "overfit_type"),
        (5, "gen_seeds"),
        (6, "caption"),
    ]
    export_reference(store, ANN, tmp_path / "b.parquet")
    equal(pq.read_table(tmp_path / "b.parquet"), pq.read_table(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    "hostile", [7, "3", [None], [[1, 2, 3]], [1.5], [True], [float("inf")], [[[]]], [2**63]]
)
def test_seeds_that_are_none(hostile):
    with pytest.raises(InputError):
        seeds_of(hostile)


def test_seeds_in_both_forms():
    assert (
        seeds_of([[3, 0], [5, -1]]) == seeds_of([3, 5.0]) == (3, 5) and seeds_of(None) == seeds_of([]) == ()
    )


@pytest.mark.skipif(not PROMPTS.is_dir(), reason="no folder of published prompts")
def test_published_captions_go_in_and_out(store, tmp_path):
    """500 captions as published, with every label; none of them is doubled or lost."""
    lines = (PROMPTS / "sdv1_500_memorized.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    table = pa.table(
        {
            "caption": [row["caption"] for row in rows],
            "url": [row["url"] for row in rows],
            "overfit_type": [("MV", "RV", "TV", "N")[i % 4] for i in range(len(rows))],
            "gen_seeds": [[] if i % 4 == 0 else [i] for i in range(len(rows))],
        }
    )
    pq.write_table(table, tmp_path / "sd1.parquet")
    found, bad = reference_rows(table, "x")
    assert len(found) == len({row["caption"] for row in rows}) and len(found) + len(bad) == 500
    assert import_reference(store, ANN, tmp_path / "sd1.parquet").added == len(found)
    export_reference(store, ANN, tmp_path / "out.parquet")
    equal(pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "sd1.parquet"))


# The command line


def command(capsys, *arguments):
    status = main([str(each) for each in arguments])
    said = capsys.readouterr()
    return status, json.loads(said.out) if said.out else None, said.err


def test_labels_by_the_command_line(labelled, other, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings(), "database", str(labelled.engine.url))
    path = tmp_path / "labels.csv"
    status, told, _ = command(capsys, "labels", "export", path, "--who", "Ann")
    assert (status, told["rows"]) == (0, 13) and labelled.verify(Root(**told["root"])) == []
    monkeypatch.setattr(settings(), "database", str(other.engine.url))
    for added, there in ((13, 0), (0, 13)):
        status, told, said = command(capsys, "labels", "import", path, "--who", "Ann")
        assert (status, told["added"], told["there"], told["left_out"], said) == (0, added, there, 0, "")
    assert comparable(other.labels(ANN)) == comparable(labelled.labels(ANN))
    broken = jsonl(tmp_path / "some.jsonl", GOOD, GOOD | {"label": "X"})
    status, told, said = command(capsys, "labels", "import", broken, "--who", "Ann")
    assert (status, told["added"], told["left_out"]) == (0, 1, 1)
    assert said == "Row 2, label: 'X' is no label; there are MV, RV, TV, PV, N.\n"


def test_a_ground_truth_by_the_command_line(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings(), "database", str(store.engine.url))
    pq.write_table(reference_table(), tmp_path / "in.parquet")
    status, told, _ = command(capsys, "labels", "import", tmp_path / "in.parquet", "--who", "Ann")
    assert (status, told["added"]) == (0, 6)
    status, told, _ = command(
        capsys, "labels", "export", tmp_path / "out.parquet", "--reference", "--who", "Ann"
    )
    assert (status, told["rows"]) == (0, 6)
    equal(pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "in.parquet"))
    status, _, said = command(
        capsys, "labels", "export", tmp_path / "x.csv", "--run", tmp_path, "--who", "Ann"
    )
    assert status == 2 and "--run belongs to --reference" in said
    status, _, said = command(capsys, "labels", "import", tmp_path / "in.parquet", "--who", "Somebody else")
    assert status == 2 and "may not import labels" in said
