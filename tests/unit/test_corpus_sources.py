"""Training sets as img2dataset, clip-retrieval, webdataset and LAION leave them."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.corpus.reader import Row, RowError
from audit.corpus.sources import Kind, open_source
from audit.corpus.stored import open_stored, stored_bytes
from audit.errors import InputError


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def add(shard, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    shard.addfile(entry, io.BytesIO(data))


def img2dataset(folder, shards=2, rows=3):
    """Its default output: tar shards with jpg, txt and json, parquet and statistics beside each."""
    folder.mkdir()
    for number in range(shards):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as shard:
            for at in range(rows):
                key = f"{number:05d}{at:04d}"
                values = {
                    "url": f"https://example.org/{key}",
                    "key": key,
                    "sha256": f"{at:064d}",
                    "LICENSE": "CC0",
                }
                add(shard, f"{key}.png", png(10 * number + at))
                add(shard, f"{key}.txt", f"caption {key}".encode())
                add(shard, f"{key}.json", json.dumps(values | {"caption": "of the json"}).encode())
        pq.write_table(pa.table({"url": ["u"] * rows}), folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_text(json.dumps({"successes": rows, "count": rows + 1}))
    return folder


def rows_of(source):
    return [each for each in source.read() if isinstance(each, Row)]


def errors_of(source):
    return [each for each in source.read() if isinstance(each, RowError)]


def test_img2dataset_shards_give_rows_whose_pictures_are_read_by_their_place(tmp_path):
    source = open_source(img2dataset(tmp_path / "set"))
    assert source.kind is Kind.TAR and source.count == 6
    rows = rows_of(source)
    assert [row.image_id for row in rows] == [f"{n:05d}{a:04d}" for n in range(2) for a in range(3)]
    assert rows[4].caption == "caption 000010001" and rows[4].licence == "CC0"
    assert rows[4].url == "https://example.org/000010001" and rows[4].sha256 == f"{1:064d}"
    assert stored_bytes(rows[4].path, rows[4].member) == png(11)
    assert not errors_of(source)


def test_shards_are_read_in_numeric_order(tmp_path):
    (tmp_path / "set").mkdir()
    for number in (10, 2):
        with tarfile.open(tmp_path / "set" / f"{number}.tar", "w") as shard:
            add(shard, "a.png", png(number))
            add(shard, "a.txt", b"a")
    assert [row.image_id for row in rows_of(open_source(tmp_path / "set"))] == ["2/a", "10/a"]


def test_a_member_without_a_picture_and_a_cut_shard_are_told_and_the_rest_goes_on(tmp_path):
    folder = img2dataset(tmp_path / "set", shards=3)
    with tarfile.open(folder / "00003.tar", "w") as shard:
        add(shard, "k.json", json.dumps({"status": "failed_to_download"}).encode())
        add(shard, "dir/../k2.png", png(1))
        add(shard, "dir/../k2.txt", b"x")
    data = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(data[:3000])
    source = open_source(folder)
    assert len(rows_of(source)) >= 7
    told = [error.message for error in errors_of(source)]
    assert any("failed_to_download" in each for each in told) and any("damaged" in each for each in told)


def test_a_compressed_tar_is_left_out_with_a_sentence(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as shard:
        add(shard, "a.png", png(1))
    assert "have to be uncompressed" in errors_of(open_source(tmp_path / "a.tar"))[0].message


def test_parquet_with_pictures_is_read_by_row(tmp_path):
    table = pa.table({"jpg": [png(1), png(2), png(3)], "caption": ["a", "b", "c"], "key": ["k1", "k2", "k3"]})
    pq.write_table(table, tmp_path / "00000.parquet", row_group_size=2)
    source = open_source(tmp_path)
    assert source.kind is Kind.PARQUET and source.count == 3
    assert [stored_bytes(row.path, row.member) for row in rows_of(source)] == [png(1), png(2), png(3)]


def test_parquet_with_nothing_but_pictures_has_rows(tmp_path):
    pq.write_table(pa.table({"image": [png(1), png(2)]}), tmp_path / "a.parquet")
    found = rows_of(open_source(tmp_path))
    assert [(row.image_id, row.member) for row in found] == [("row-0", "image:0"), ("row-1", "image:1")]


def test_columns_that_no_row_is_made_of_are_not_read(tmp_path, monkeypatch):
    columns = {"jpg": [png(1)], "TEXT": ["a"], "license": ["CC0"], "title": ["t"], "latents": [[0.0] * 9]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    read, asked = pq.ParquetFile.iter_batches, []
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, *rest, columns: asked.append(columns) or read(self, *rest, columns=columns),
    )
    (row,) = rows_of(open_source(tmp_path))
    assert asked == [["TEXT", "license", "title"]]
    assert (row.caption, row.licence, row.title) == ("a", "CC0", "t")


def test_pictures_of_one_row_group_are_read_once_in_order_and_a_new_file_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("audit.corpus.stored.HELD", 0)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"jpg": [png(at) for at in range(6)]}), path, row_group_size=3)
    read, groups = pq.ParquetFile.iter_batches, []
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, size, group, *rest, **how: groups.append(group) or read(self, size, group, *rest, **how),
    )
    assert [stored_bytes(path, f"jpg:{at}") for at in range(6)] == [png(at) for at in range(6)]
    assert groups == [[0], [1]]
    assert [stored_bytes(path, f"jpg:{at}") for at in (5, 3, 4, 1)] == [png(at) for at in (5, 3, 4, 1)]
    assert groups == [[0], [1], [1], [0]]
    pq.write_table(pa.table({"jpg": [png(9)] * 6}), path, row_group_size=3)
    assert stored_bytes(path, "jpg:5") == png(9)


def test_memory_holds_one_picture_of_a_row_group_and_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("audit.corpus.stored.HELD", 0)
    data = [np.random.default_rng(at).bytes(1_000_000) for at in range(40)]
    pq.write_table(pa.table({"jpg": data}), tmp_path / "a.parquet", write_batch_size=1)
    bomb = pa.table({"jpg": [bytes(3_000_000)] * 40})
    pq.write_table(bomb, tmp_path / "b.parquet", compression="zstd", use_dictionary=False)
    before, peak = pa.total_allocated_bytes(), 0
    for at in (0, 20, 39):
        assert stored_bytes(tmp_path / "a.parquet", f"jpg:{at}") == data[at]
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 10_000_000
    with pytest.raises(InputError, match="would unpack to 120,"):
        stored_bytes(tmp_path / "b.parquet", "jpg:0")


def test_hugging_face_pictures_are_read_by_row(tmp_path):
    table = pa.table({"image": [{"bytes": png(7), "path": "x.png"}], "text": ["a"]})
    pq.write_table(table, tmp_path / "train.parquet")
    row = rows_of(open_source(tmp_path))[0]
    assert open_stored(row).shape == (6, 5, 3) and row.caption == "a"


def test_laion_metadata_gives_addresses(tmp_path):
    columns = {
        "URL": ["https://a/1.jpg", None],
        "TEXT": ["one", "two"],
        "WIDTH": [1.0, 2.0],
        "LICENSE": ["?", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "part-0.parquet")
    source = open_source(tmp_path)
    row = rows_of(source)[0]
    assert source.kind is Kind.ADDRESSES and (row.url, row.caption, row.image_id) == (
        "https://a/1.jpg",
        "one",
        "row-0",
    )
    assert [error.image_id for error in errors_of(source)] == ["row-1"]
    with pytest.raises(InputError, match="its address is all that is known"):
        open_stored(row)


def test_pictures_at_any_depth_with_txt_or_json(tmp_path):
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "a.png").write_bytes(png(1))
    (tmp_path / "00000" / "a.json").write_text(json.dumps({"caption": "j", "url": "https://x"}))
    (tmp_path / "b.png").write_bytes(png(2))
    (tmp_path / "b.txt").write_text("t")
    (tmp_path / "c.png").write_bytes(png(3))
    source = open_source(tmp_path)
    assert [(row.image_id, row.caption) for row in rows_of(source)] == [("00000/a", "j"), ("b", "t")]
    assert [error.image_id for error in errors_of(source)] == ["c.png"]


@pytest.mark.parametrize("make", ["nothing", "empty", "text", "columns", "embeddings"])
def test_what_is_no_training_set_is_one_sentence(make, tmp_path):
    path = tmp_path / "set"
    if make != "nothing":
        path.mkdir()
    if make == "text":
        (path / "a.parquet").write_text("no parquet")
    if make == "columns":
        pq.write_table(pa.table({"caption": ["a"]}), path / "a.parquet")
    if make == "embeddings":
        (path / "img_emb").mkdir()
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_fingerprint_follows_the_files(tmp_path):
    folder = img2dataset(tmp_path / "set")
    before = open_source(folder).fingerprint
    assert open_source(folder).fingerprint == before
    (folder / "00000.tar").write_bytes((folder / "00000.tar").read_bytes() + b"\0")
    assert open_source(folder).fingerprint != before


@pytest.mark.parametrize("member", ["../x", "1+", "-1+5", "0+999999999999", "jpg:99", "nope:0", "0+5;"])
def test_a_hostile_member_reads_nothing(member, tmp_path):
    pq.write_table(pa.table({"jpg": [png(1)]}), tmp_path / "a.parquet")
    with pytest.raises(InputError):
        stored_bytes(tmp_path / "a.parquet", member)


@pytest.mark.parametrize("damage", ["overwritten", "cut"])
def test_a_tar_that_ends_in_a_damaged_header_is_told(tmp_path, damage):
    path = img2dataset(tmp_path / "set", shards=1, rows=3) / "00000.tar"
    with tarfile.open(path) as shard:
        at = next(entry.offset for entry in shard if entry.name == "000000002.png")
    data = bytearray(path.read_bytes())
    data[at : at + 512] = b"\xff" * 512
    path.write_bytes(data if damage == "overwritten" else data[: at + 100])
    source = open_source(tmp_path / "set")
    assert [row.image_id for row in rows_of(source)] == ["000000000", "000000001"]
    (error,) = errors_of(source)
    assert "what stands behind the damage was left out" in error.message


def test_equal_keys_of_different_shards_are_different_pictures(tmp_path):
    for number in (1, 10):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            for key in ("100", "7"):
                add(shard, f"{key}.png", png(number))
                add(shard, f"{key}.txt", b"a caption")
    names = [row.image_id for row in rows_of(open_source(tmp_path))]
    assert names == ["1/100", "1/7", "10/100", "10/7"]


def test_text_that_is_no_utf_8_ends_nothing(tmp_path):
    spoiled = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfea")]
    )
    table = pa.table(
        {"caption": spoiled, "image": pa.array([png(1), png(2)]), "SAMPLE_ID": [float("nan"), 2.0]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = rows_of(open_source(tmp_path))
    assert first.caption == "\ufffd\ufffd" and second.caption == "a"
    assert (first.image_id, second.image_id) == ("row-0", "2.0")
    with tarfile.open(tmp_path / "b.tar", "w") as shard:
        add(shard, "k.png", png(1))
        add(shard, "k.json", b'{"caption": "\\ud800 half"}')
    (row,) = rows_of(open_source(tmp_path / "b.tar"))
    assert row.caption == "\ufffd half"


def test_a_name_that_is_no_utf_8_is_told(tmp_path):
    (tmp_path / "good.png").write_bytes(png(1))
    (tmp_path / "good.txt").write_text("good")
    bad = os.fsencode(tmp_path) + b"/b\xffd.png"
    with open(bad, "wb") as stream:
        stream.write(png(2))
    source = open_source(tmp_path)
    assert [row.image_id for row in rows_of(source)] == ["good"]
    assert "is not UTF-8; rename the file" in errors_of(source)[0].message


def test_a_picture_that_goes_missing_shifts_no_row_of_a_table(tmp_path):
    (tmp_path / "images").mkdir()
    names = ["a", "b", "held", "c"]
    for name in names:
        (tmp_path / f"images/{name}.png").write_bytes(png(1))
    pq.write_table(
        pa.table(
            {
                "image_id": names,
                "file": [f"images/{name}.png" for name in names],
                "caption": names,
                "indexed": [True, True, False, True],
            }
        ),
        tmp_path / "corpus.parquet",
    )
    before = [each.image_id for each in open_source(tmp_path).read()]
    for name in ("b", "held"):
        (tmp_path / f"images/{name}.png").unlink()
    assert [each.image_id for each in open_source(tmp_path).read()] == before == ["a", "b", "c"]
