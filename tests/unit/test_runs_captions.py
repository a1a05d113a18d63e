"""Reading captions as people have them: in a stream, the usable rows all, the others told."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import tarfile
import tracemalloc

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.errors import InputError
from audit.records import caption_id
from audit.runs import captions as module
from audit.runs.captions import CaptionSource, read_captions
from audit.runs.intake import take_in


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(place, limit=None):
    return [text for chunk in CaptionSource(place).chunks(limit) for text in chunk.captions]


def rejected(place):
    return [row for chunk in CaptionSource(place).chunks() for row in chunk.rejected]


def reasons(place):
    return [(row.row, row.reason) for row in rejected(place)]


def test_text_is_one_caption_a_line(tmp_path):
    path = write(tmp_path / "c.txt", b"\xef\xbb\xbfa cat\r\n\r\n  \na dog\na cat\n")
    assert texts(path) == ["a cat", "a dog", "a cat"]
    assert read_captions(path) == ["a cat", "a dog"]
    assert reasons(path) == [(2, "no text"), (3, "no text")]


def test_lines_end_only_at_newlines(tmp_path):
    line = "a\u2028b\x0cc\x00d"
    assert texts(write(tmp_path / "c.txt", f"{line}\nx")) == [line, "x"]


@pytest.mark.parametrize(
    ("name", "content", "empty"),
    [
        ("c.txt", "a cat\n\na dog\na cat", [2]),
        ("c.csv", 'caption,n\n"two\nlines",1\n,2\na dog,3\n', [2]),
        ("c.jsonl", '{"text": "a cat"}\n\n{"text": ""}\n{"text": "a dog"}\n', [3]),
    ],
)
@pytest.mark.parametrize("end", ["\r", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_lines_end_as_on_any_system(tmp_path, name, content, empty, end, encoding):
    expected = texts(write(tmp_path / name, content))
    path = write(tmp_path / name, content.replace("\n", end).encode(encoding))
    assert texts(path) == expected and len(expected) > 1
    assert reasons(path) == [(row, "no text") for row in empty]


@pytest.mark.parametrize("name", ["caption", "TEXT", "text", "prompt", "Caption"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_column_is_found(tmp_path, name, separator):
    content = f'id{separator}{name}\n1{separator}"a cat, a dog; both"\n2{separator}NA\n'
    assert texts(write(tmp_path / "c.csv", content)) == ["a cat, a dog; both", "NA"]


def test_csv_cells_span_lines_and_bad_rows_do_not_swallow_the_rest(tmp_path):
    content = 'caption,n\n"two\nlines",1\na,1,2\n"it is ""quoted""",3\nx"y,4\n"never closed,5\nb,6\n'
    path = write(tmp_path / "c.csv", content)
    assert texts(path) == ["two\nlines", 'it is "quoted"', 'x"y', "b"]
    assert reasons(path) == [
        (2, "3 cells and not 2 (line 4)"),
        (5, "quotes that do not match in line 7"),
    ]


def test_an_open_quote_costs_one_row(tmp_path):
    rows = "".join(f"caption {number}\n" for number in range(1000))
    path = write(tmp_path / "c.csv", f'caption\n"open\n{rows}')
    assert len(texts(path)) == 1000
    assert reasons(path) == [(1, "quotes that do not match in line 2")]


def test_jsonl_with_own_images_surrogates_and_bad_lines(tmp_path):
    rows = [
        json.dumps({"prompt": "a cat", "image_id": "i1"}),
        json.dumps({"prompt": "\ud83e\udd84 \ud800"}),
        json.dumps({"prompt": None}),
        '{"prompt": "cut',
        "",
        "[1]",
        "[" * 100_000,
        json.dumps({"prompt": 7}),
    ]
    path = write(tmp_path / "c.jsonl", "\n".join(rows) + "\n")
    assert texts(path) == ["a cat", "🦄 \ufffd", "7"]
    assert [row for row, _ in reasons(path)] == [3, 4, 6, 7]
    assert next(CaptionSource(path).chunks()).image_ids == ["i1", "", ""]


def test_parquet_and_limit(tmp_path):
    path = tmp_path / "c.parquet"
    pd.DataFrame({"URL": ["u"] * 4, "TEXT": ["a", None, "b", "c"]}).to_parquet(path)
    assert texts(path) == ["a", "b", "c"]
    assert texts(path, limit=3) == ["a", "b"]
    assert reasons(path) == [(2, "no text")]


def test_parquet_bytes_that_are_no_text(tmp_path):
    column = pa.array([b"good", b"caf\xe9", None, b"also"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"caption": column}), tmp_path / "c.parquet")
    assert texts(tmp_path / "c.parquet") == ["good", "also"]
    assert reasons(tmp_path / "c.parquet") == [(2, "bytes that are not UTF-8"), (3, "no text")]


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 7, 100])
def test_limit_counts_rows_over_files_and_chunks(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(module, "CHUNK", 3)
    write(tmp_path / "d/1.txt", "a\n\nb\nc\n")
    pd.DataFrame({"caption": ["d", "e", None, "f"]}).to_parquet(tmp_path / "d/2.parquet")
    whole = ["a", None, "b", "c", "d", "e", None, "f"]
    assert texts(tmp_path / "d", limit) == [text for text in whole[:limit] if text]
    assert sum(chunk.rows for chunk in CaptionSource(tmp_path / "d").chunks(limit)) == min(limit, 8)


def test_folders_are_read_in_natural_order_and_one_bad_part_is_told(tmp_path):
    for number in (10, 9, 1):
        pd.DataFrame({"caption": [f"part {number}"]}).to_parquet(tmp_path / f"part-{number}.parquet")
    write(tmp_path / "part-2.parquet", "PAR1")
    write(tmp_path / "notes.docx", "x")
    write(tmp_path / ".hidden.txt", "x")
    write(tmp_path / "_temporary/part-3.txt", "x")
    assert texts(tmp_path) == ["part 1", "part 9", "part 10"]
    told = rejected(tmp_path)
    assert [(row.file, row.row) for row in told] == [("part-2.parquet", 0)]
    assert "cannot be read" in told[0].reason


def test_pictures_with_text_beside_them(tmp_path):
    write(tmp_path / "a.png", b"x")
    write(tmp_path / "a.txt", "a red\nhouse \n")
    write(tmp_path / "list.txt", "one\ntwo\n")
    assert texts(tmp_path) == ["a red house", "one", "two"]
    assert next(CaptionSource(tmp_path).chunks()).image_ids == ["a"]


def test_webdataset_and_its_table(tmp_path):
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in [
            ("./d.v1/1.jpg", b"\xff"),
            ("./d.v1/1.txt", b"a cat"),
            ("./d.v1/1.json", b'{"caption": "another"}'),
            ("d/2.json", b'{"TEXT": "a dog"}'),
            ("d/3.txt", b"\xff\xff"),
            ("d/4.jpg", b"\xff"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert texts(path) == ["a cat", "a dog"]
    assert [row for row, _ in reasons(path)] == [3, 4]
    assert next(CaptionSource(path).chunks()).image_ids == ["1", "2"]
    # img2dataset puts the same captions beside it
    pd.DataFrame({"caption": ["from the table"]}).to_parquet(tmp_path / "00000.parquet")
    assert texts(tmp_path) == ["from the table"]


def test_compressed_text(tmp_path):
    write(tmp_path / "c.jsonl.gz", gzip.compress(b'{"caption": "a"}\n'))
    assert texts(tmp_path / "c.jsonl.gz") == ["a"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "naïve façade"),
        ("utf-16", "naïve façade"),
        ("utf-16-le", "naïve façade – an English caption"),
        ("utf-16-be", "naïve façade – an English caption"),
        ("cp1252", "naïve façade, crème brûlée, à bientôt, déjà vu"),
        ("cp1251", "красный дом у моря, зелёное дерево и кошка"),
    ],
)
def test_encodings_are_told(tmp_path, encoding, text):
    assert texts(write(tmp_path / "c.txt", (f"{text}\n" * 20).encode(encoding))) == [text] * 20


def test_some_wrong_bytes_do_not_change_the_encoding(tmp_path):
    path = write(tmp_path / "c.txt", "crème brûlée\n".encode() * 3 + b"caf\xe9\n" + "à bientôt\n".encode())
    assert texts(path) == ["crème brûlée"] * 3 + ["à bientôt"]
    assert reasons(path) == [(4, "bytes that are not UTF-8")]


def test_overlong_captions_are_told(tmp_path):
    path = write(tmp_path / "c.txt", "a\n" + "x" * 30_000 + "\nb\n")
    assert texts(path) == ["a", "b"]
    assert rejected(path)[0].reason == "longer than 20,000 characters (30,000)"
    assert len(rejected(path)[0].start) == 120


TOO_LONG = "longer than 1,048,576 characters"
POOL = pa.proxy_memory_pool(pa.default_memory_pool())
"""Memory of Arrow with a peak of its own; it has to outlive what is in it."""


@pytest.mark.parametrize(
    ("name", "content", "captions", "told"),
    [
        ("c.txt", "a\nLONG\nb\n\nLONG", ["a", "b"], [(2, TOO_LONG), (4, "no text"), (5, TOO_LONG)]),
        ("c.txt.gz", "a\nLONG\nb\n", ["a", "b"], [(2, TOO_LONG)]),
        ("c.jsonl", '{"text": "a"}\n{"text": "LONG"}\n\n{"text": "b"}', ["a", "b"], [(2, TOO_LONG)]),
        ("c.jsonl.gz", 'LONG\n{"text": "b"}\n', ["b"], [(1, TOO_LONG)]),
        ("c.csv", "n,text\n1,a\n2,LONG\n3,b\n", ["a", "b"], [(2, TOO_LONG)]),
        ("c.csv.gz", 'n,text\n1,"a\nLONG\n"\n3,b\n', ["b"], None),
        ("c.csv", 'text\n"LONG\nb\n', ["b"], [(1, TOO_LONG)]),
        ("c.csv", 'text\n"' + ("x" * 100_000 + "\n") * 150 + "b\n", ["b"], None),
        ("c.csv", "LONG\na\n", [], [(0, None)]),
    ],
)
def test_a_line_without_end_costs_its_row_and_no_memory(tmp_path, name, content, captions, told):
    content = content.replace("LONG", "x" * 20_000_000).encode()
    path = write(tmp_path / name, gzip.compress(content, 1) if name.endswith(".gz") else content)
    del content
    tracemalloc.start()
    try:
        chunks = list(CaptionSource(path).chunks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000
    assert [text for chunk in chunks for text in chunk.captions] == captions
    found = [row for chunk in chunks for row in chunk.rejected]
    assert all(len(row.reason) < 1000 and len(row.start) <= 120 for row in found)
    if told is not None:
        assert [
            (row.row, reason and row.reason) for row, (_, reason) in zip(found, told, strict=True)
        ] == told


def test_a_line_of_the_longest_length_is_whole(tmp_path):
    line = '{"text": "a"}'.ljust(2**20)
    path = write(tmp_path / "c.jsonl", f"{line}\n {line}\n{line}")
    assert texts(path) == ["a", "a"]
    assert reasons(path) == [(2, TOO_LONG)]


def test_a_long_cell_is_no_quote_that_does_not_match(tmp_path):
    path = write(tmp_path / "c.csv", "text,n\n" + "x" * 200_000 + ",1\na," + "x" * 200_000 + "\n")
    assert texts(path) == ["a"]
    assert reasons(path) == [(1, "longer than 20,000 characters (200,000)")]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_a_long_cell_of_a_table_costs_its_row(tmp_path, kind):
    long = "é" * 5_000_000
    cells = pa.array(["a", long, None, "x" * 30_000, "b"]).cast(kind)
    pq.write_table(pa.table({"caption": cells}), tmp_path / "c.parquet")
    del cells
    tracemalloc.start()
    try:
        found = rejected(tmp_path / "c.parquet")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert [(row.row, row.reason) for row in found] == [
        (2, "longer than 20,000 characters (10,000,000 bytes)"),
        (3, "no text"),
        (4, "longer than 20,000 characters (30,000)"),
    ]
    assert found[0].start == "é" * 120
    assert texts(tmp_path / "c.parquet") == ["a", "b"]


def test_tables_of_long_cells_are_read_a_few_rows_at_once(tmp_path):
    cells = pa.array([f"{number} " + "x" * 200_000 for number in range(400)])
    table = pa.table({"caption": cells, "image": cells})
    pq.write_table(
        table, tmp_path / "c.parquet", compression="none", use_dictionary=False, write_batch_size=4
    )
    del cells, table
    usual = pa.default_memory_pool()
    pa.set_memory_pool(POOL)
    try:
        assert len(rejected(tmp_path / "c.parquet")) == 400
    finally:
        pa.set_memory_pool(usual)
    assert POOL.max_memory() < 60_000_000


def test_pictures_in_a_text_column_are_no_names(tmp_path):
    rows = [{"text": "a", "image": "x" * 100_000}, {"text": "b", "image": "i"}]
    path = write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, rows)))
    assert next(CaptionSource(path).chunks()).image_ids == ["", "i"]


def test_text_beside_a_picture_has_an_end(tmp_path):
    write(tmp_path / "a.png", b"x")
    write(tmp_path / "a.txt", "x\n" * 1_000_000)
    assert reasons(tmp_path) == [(1, TOO_LONG)]


def test_remote_stores_are_read_and_others_refused():
    with fsspec.open("memory://captions/1.txt", "wb") as stream:
        stream.write(b"a cat\n")
    assert texts("memory://captions") == ["a cat"]
    assert texts("memory://captions/1.txt") == ["a cat"]
    with pytest.raises(InputError, match="not read over ssh://"):
        CaptionSource("ssh://host/captions.txt")
    with pytest.raises(InputError, match="There is no file memory://nowhere"):
        CaptionSource("memory://nowhere")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("c.docx", "a", "are read from .txt"),
        ("c.txt", "", "it is empty"),
        ("c.txt", "\n \n", "holds no captions in 2 rows; row 1 of c.txt: no text"),
        ("c.csv", "", "no column caption or TEXT"),
        ("c.csv", "url,words\n1,2\n", "no column caption .* its columns: url, words"),
        ("c.jsonl", '{"capt', "row 1 of c.jsonl: not JSON"),
        ("c.parquet", "PAR1", "c.parquet cannot be read"),
        ("c.tar", "no archive", "c.tar cannot be read"),
        ("c.jsonl.gz", "no gzip", "c.jsonl.gz cannot be read"),
    ],
)
def test_sources_without_captions_are_told_in_one_sentence(tmp_path, name, content, match):
    with pytest.raises(InputError, match=match):
        read_captions(write(tmp_path / name, content))


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        CaptionSource(tmp_path / "c.txt")


def test_sha256_is_of_the_content(tmp_path):
    path = write(tmp_path / "c.txt", "a")
    before = CaptionSource(path).sha256()
    assert before != CaptionSource(write(path, "b")).sha256()
    assert len(before) == len(CaptionSource(tmp_path).sha256()) == 64


def test_intake_keeps_each_caption_once(tmp_path):
    rows = [("a cat", ""), ("a long caption", "x"), ("", ""), ("a cat", "i"), ("dog", ""), ("a cat", "")]
    path = write(tmp_path / "c.jsonl", "\n".join(json.dumps({"caption": t, "image": i}) for t, i in rows))
    run = tmp_path / "it's a run"
    run.mkdir()
    read = take_in(CaptionSource(path), run)
    assert (read.rows, read.captions, read.empty, read.rejected) == (6, 3, 1, 1)
    table = pd.read_parquet(run / "input.parquet")
    assert table["caption"].tolist() == ["dog", "a cat", "a long caption"]
    assert table["occurrences"].tolist() == [1, 3, 1]
    assert table["image_id"].tolist() == ["", "i", "x"]
    assert table["caption_id"].tolist() == [caption_id(text) for text in table["caption"]]
    told = pd.read_parquet(run / "rejected.parquet")
    assert told.to_dict("records") == [{"file": "c.jsonl", "row": 3, "reason": "no text", "start": ""}]
    assert sorted(each.name for each in run.iterdir()) == ["input.parquet", "rejected.parquet"]


def test_what_was_read_before_a_file_failed_is_kept(tmp_path):
    whole = gzip.compress("".join(f"caption {number}\n" for number in range(50_000)).encode())
    path = write(tmp_path / "d/1.txt.gz", whole[:-8] + b"\0" * 8)
    write(tmp_path / "d/2.jsonl", '{"caption": "a"}\n{"caption": ' + "9" * 5000 + '}\n{"caption": "b"}\n')
    write(tmp_path / "d/3.csv", "caption\r1\r")
    write(tmp_path / "d/a1\u00b23.txt", "c\n")
    found = texts(tmp_path / "d")
    assert len(found) > 40_000 and found[-4:] == ["a", "b", "1", "c"]
    assert {(row.file, row.row) for row in rejected(tmp_path / "d")} >= {(path.name, 0), ("2.jsonl", 2)}


def test_an_inch_is_no_open_quote(tmp_path):
    path = write(tmp_path / "c.csv", 'caption,n\na 19" monitor,1\nb,2\n')
    assert texts(path) == ['a 19" monitor', "b"]


def test_pictures_in_a_table_are_no_names(tmp_path):
    image = pa.array([{"bytes": b"\x89PNG", "path": "x"}])
    pq.write_table(pa.table({"text": ["a cat"], "image": image}), tmp_path / "c.parquet")
    chunk = next(CaptionSource(tmp_path / "c.parquet").chunks())
    assert (chunk.captions, chunk.image_ids) == (["a cat"], [""])


def test_binary_text_is_text(tmp_path):
    pq.write_table(pa.table({"caption": pa.array([b"a cat", b"\xff"])}), tmp_path / "c.parquet")
    assert texts(tmp_path / "c.parquet") == ["a cat"]


def test_the_tables_of_a_run_are_on_the_disk_before_they_are_in_place(tmp_path, monkeypatch):
    path, run, steps = write(tmp_path / "c.txt", "a\n\n"), tmp_path / "run", []
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        found = os.fstat(handle)
        steps.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_ino)
        fsync(handle)

    def renamed(written, target):
        steps.append(target.name)
        replace(written, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    take_in(CaptionSource(path), run)
    expected = []
    for name in ("rejected.parquet", "input.parquet"):
        expected += [(run / name).stat().st_ino, name, "folder"]
    assert steps == expected


WORDS = "a red house with one small blue tree and the round star on a flag of green cats".split()


def caption(number):
    key = hashlib.sha256(b"%d" % number).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in key[: 4 + key[0] % 12])


def table(rows):
    """A CSV text of ten columns, one of them the captions."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["url", "caption", *(f"column {number}" for number in range(8))])
    for number in range(rows):
        others = [caption(number * 8 + place)[:12] for place in range(8)]
        writer.writerow([f"https://example.org/{number}.jpg", caption(number), *others])
    return out.getvalue()


def archive(rows):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(rows):
            for suffix, content in (
                (".jpg", b"\xff" * (600 + number % 700)),
                (".txt", caption(number).encode()),
            ):
                member = tarfile.TarInfo(f"{number:06d}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def captions(rows):
    return "".join(f"{caption(number)}\n" for number in range(rows)).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", lambda: captions(10_000)),
        ("c.txt.bz2", lambda: bz2.compress(captions(60_000))),
        ("c.txt.xz", lambda: lzma.compress(captions(10_000))),
        ("c.csv", lambda: table(10_000).encode()),
        ("c.csv.gz", lambda: gzip.compress(table(10_000).encode())),
        ("c.tar", lambda: archive(5_000)),
    ],
)
def test_rows_are_estimated_from_those_that_were_read(tmp_path, monkeypatch, name, content):
    source = CaptionSource(write(tmp_path / name, content()))
    assert source.estimate() == (0, False)
    given, opened = [0], source.fs.open

    def counted(*arguments):
        stream = opened(*arguments)
        read = stream.read

        def reading(*size):
            found = read(*size)
            given[0] += len(found)
            return found

        monkeypatch.setattr(stream, "read", reading)
        return stream

    monkeypatch.setattr(source.fs, "open", counted)
    assert sum(chunk.rows for chunk in source.chunks(2_000)) == 2_000
    rows, exact = source.estimate()
    assert given[0] < 0.5 * source.bytes and not exact
    whole = sum(chunk.rows for chunk in source.chunks())
    assert 0.8 * whole < rows < 1.2 * whole
    assert source.estimate() == (whole, True)


def test_rows_of_tables_are_told_by_themselves(tmp_path):
    for number in (1, 2):
        pd.DataFrame({"caption": ["a"] * 3_000}).to_parquet(tmp_path / f"{number}.parquet")
    write(tmp_path / "3.parquet", "PAR1")
    source = CaptionSource(tmp_path)
    assert sum(chunk.rows for chunk in source.chunks(2_000)) == 2_000
    assert source.estimate() == (6_000, True)


def test_rows_of_a_folder_are_estimated_from_the_first_files(tmp_path):
    for number in range(10):
        write(tmp_path / f"{number}.txt", captions(1_000))
    source = CaptionSource(tmp_path)
    assert sum(chunk.rows for chunk in source.chunks(2_500)) == 2_500
    rows, exact = source.estimate()
    assert (rows, exact) == (10_000, False)


def test_a_shared_long_cell_is_not_written_out_for_each_row(tmp_path):
    """A file of some hundred bytes whose rows share a cell of 2 MB through a dictionary."""
    long = pa.DictionaryArray.from_arrays(
        pa.array([0, 1] * 1000, pa.int32()), pa.array(["x" * 2_000_000, "a cat"])
    )
    pq.write_table(pa.table({"caption": long}), tmp_path / "c.parquet", compression="zstd")
    usual = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(watched)
    try:
        chunks = list(CaptionSource(tmp_path / "c.parquet").chunks())
    finally:
        pa.set_memory_pool(usual)
    assert sum(len(chunk.captions) for chunk in chunks) == 1000
    assert sum(len(chunk.rejected) for chunk in chunks) == 1000
    assert 0 < watched.max_memory() < 50_000_000


def test_a_tar_file_whose_header_is_a_bomb_is_refused(tmp_path):
    path = tmp_path / "c.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("n" * 1_000_000 + ".txt")
        archive.addfile(member, io.BytesIO(b""))
    (told,) = rejected(path)
    assert told.row == 0 and told.reason != "no text"


def test_names_that_are_no_text_do_not_stop_the_intake(tmp_path):
    folder = tmp_path / "captions"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/\xff.txt", "w") as stream:
        stream.write("a cat\n\n")
    read = take_in(CaptionSource(folder), tmp_path / "run")
    assert (read.captions, read.empty) == (1, 1)


def test_files_that_were_not_read_are_counted_apart(tmp_path):
    folder = tmp_path / "captions"
    folder.mkdir()
    (folder / "a.txt").write_text("a cat\n\n")
    (folder / "b.parquet").write_bytes(b"PAR1 no table")
    read = take_in(CaptionSource(folder), tmp_path / "run")
    assert (read.captions, read.empty, read.rejected, read.unread) == (1, 1, 2, 1)
