"""Metadata of an index: by place, by name, by caption, in memory and memory-mapped."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.corpus.stored import Root
from audit.errors import InputError
from audit.retrieval import rows as rows_module
from audit.retrieval.rows import Rows, name_apart, normalise
from audit.settings import settings


@pytest.fixture(params=["in memory", "mapped"])
def kept(request, monkeypatch, tmp_path):
    """Both ways in which rows are kept."""
    if request.param == "mapped":
        monkeypatch.setattr(rows_module, "IN_MEMORY", 2)
        monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")
    return request.param


def parts(folder, *tables):
    folder.mkdir(exist_ok=True)
    for number, columns in enumerate(tables):
        pq.write_table(pa.table(columns), folder / f"metadata_{number}.parquet")
    return sorted(folder.glob("*.parquet"))


def test_rows_by_place_name_caption_and_hash(kept, tmp_path):
    first = {
        "image_id": ["a", "b"],
        "image_path": ["x/a.png", "../b.png"],
        "caption": ["one", "ONE two"],
        "sha256": ["1", "2"],
    }
    second = {"image_id": ["c", "d"], "caption": ["one", None], "sha256": ["1", ""], "url": ["https://c", ""]}
    rows = Rows.open(parts(tmp_path / "m", first, second), Root(tmp_path))
    assert len(rows) == 4 and [row.image_id for row in rows] == ["a", "b", "c", "d"]
    assert rows[0].path == tmp_path / "x/a.png" and rows[-1].caption == ""
    assert str(rows[1].path) == "." and rows[2].url == "https://c"
    assert [row.image_id for row in rows[1:3]] == ["b", "c"]
    assert rows.find("caption", "one") == [0, 2] and rows.find("sha256", "1") == [0, 2]
    assert rows.find("image_id", "d") == [3] and rows.find("image_id", "e") == []
    assert rows.containing(["one"]).tolist() == [0, 1, 2]
    assert rows.containing(["one", "TWO"]).tolist() == [1] and not len(rows.containing(["three"]))
    assert list(rows.column("image_id")) == ["a", "b", "c", "d"]
    with pytest.raises(IndexError):
        rows[4]


def test_a_second_opening_reads_what_the_first_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "IN_MEMORY", 2)
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")
    files = parts(tmp_path / "m", {"image_id": ["a", "b", "c"]})
    Rows.open(files, Root(tmp_path))
    monkeypatch.setattr(rows_module, "_normalised", None)
    assert Rows.open(files, Root(tmp_path)).find("image_id", "c") == [2]


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
def test_bytes_that_are_no_utf_8_are_replaced(kept, kind, tmp_path):
    texts = pa.array([b"ok", b"caf\xe9", None], pa.binary())
    spoiled = texts if kind == pa.binary() else texts.view(kind)
    rows = Rows.open(parts(tmp_path / "m", {"image_id": ["a", "b", "c"], "caption": spoiled}), Root(tmp_path))
    assert [row.caption for row in rows] == [rows[at].caption for at in range(3)] == ["ok", "caf\ufffd", ""]
    assert rows.find("caption", "caf\ufffd") == rows.containing(["caf"]).tolist() == [1]


def test_files_of_one_name_in_several_folders_are_called_by_their_whole_path(kept, tmp_path):
    rows = Rows.open(parts(tmp_path / "m", {"image_path": ["x/a.png", "y/a.png", "y/b.png"]}), Root(tmp_path))
    assert [row.image_id for row in rows] == ["x/a.png", "y/a.png", "y/b.png"]
    rows = Rows.open(parts(tmp_path / "m", {"image_path": ["x/a.png", "y/c.png", "y/b.png"]}), Root(tmp_path))
    assert [row.image_id for row in rows] == ["a", "c", "b"]


def test_a_name_that_occurs_twice_is_refused(kept, tmp_path):
    with pytest.raises(InputError, match="two rows named b"):
        Rows.open(parts(tmp_path / "m", {"image_id": ["a", "b"]}, {"image_id": ["b"]}), Root(tmp_path))


def test_names_that_start_anew_in_each_file_get_their_place(kept, tmp_path):
    files = parts(
        tmp_path / "m", {"image_id": ["0", "1"]}, {"image_id": ["0", "2", "0"]}, {"image_id": ["3"]}
    )
    for path in files:
        rows = Rows([normalise(batch, 0) for batch in pq.read_table(path).to_batches()], Root(tmp_path))
        pq.write_table(pa.Table.from_batches(rows._batches), path)
    in_memory = Rows([batch for path in files for batch in pq.read_table(path).to_batches()], Root(tmp_path))
    names = ["0#0", "1", "0#2", "2", "0#4", "3"]
    assert [row.image_id for row in in_memory.named_apart()] == names
    name_apart(files)
    opened = Rows.open(files, Root(tmp_path))
    assert [row.image_id for row in opened] == names and opened.find("image_id", "0#4") == [4]


def test_the_tables_sha256_is_over_names_and_files_and_kept(kept, tmp_path, monkeypatch):
    columns = {
        "image_id": ["a", "b", "c"],
        "image_path": ["x/1.png", "", "../9.png"],
        "sha256": ["", "f0", ""],
    }
    files = parts(tmp_path / "m", columns, {"image_id": ["d"]})
    rows = Rows.open(files, Root(tmp_path))
    assert rows.sha256 == hashlib.sha256(b"a 1.png\nb f0\nc 9.png\nd ").hexdigest()
    if kept == "mapped":
        monkeypatch.setattr(rows_module, "within", None)
        assert Rows.open(files, Root(tmp_path)).sha256 == rows.sha256


def test_lookups_are_sorted_on_disk_as_in_memory(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 500, 3000).astype(np.uint64)
    monkeypatch.setattr(rows_module, "BATCH", 64)
    rows_module._sorted_on_disk(iter(np.split(values, [1, 1000])), len(values), tmp_path, "caption")
    hashes, places = rows_module._read_lookup(tmp_path, "caption")
    np.testing.assert_array_equal(places, np.argsort(values, kind="stable"))
    np.testing.assert_array_equal(hashes, np.sort(values))
    assert len(list(tmp_path.iterdir())) == 2


def test_arrow_as_clip_retrieval_writes_it(kept, tmp_path):
    tables = {"image_path": ["a/1.png", "a/2.png"], "caption": ["one", "two"]}, {"image_path": ["3.png"]}
    files = []
    for number, columns in enumerate(tables):
        files.append(tmp_path / f"{number}.arrow")
        table = pa.table(columns)
        with pa.OSFile(str(files[-1]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    rows = Rows.open(files, Root(tmp_path))
    assert [(row.image_id, row.caption) for row in rows] == [("1", "one"), ("2", "two"), ("3", "")]
    files[1].write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not readable Arrow"):
        Rows.open(files, Root(tmp_path))


def test_lists_and_numbers_of_public_tables_become_text(kept, tmp_path):
    columns = {
        "id": [1, 2, 3],
        "urls": [["u", "v"], [], None],
        "TEXT": ["a", "b", "c"],
        "LICENSE": ["?", "?", None],
    }
    rows = Rows.open(parts(tmp_path / "m", columns), Root(tmp_path))
    assert rows[1].image_id == "2" and rows[0].caption == "a" and rows[0].licence == "?"


def test_unreadable_metadata_is_one_sentence(tmp_path):
    (tmp_path / "metadata_0.parquet").write_text("nothing")
    with pytest.raises(InputError, match="not readable parquet"):
        Rows.open([tmp_path / "metadata_0.parquet"], Root(tmp_path))
