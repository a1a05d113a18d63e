"""Reading captions as people have them."""

import json

import pandas as pd
import pytest

from audit.errors import InputError
from audit.records import caption_id
from audit.runs.captions import read_captions


def read(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_captions(path, **options)


def texts(file):
    return file.captions["caption"].tolist()


def test_text_is_one_caption_a_line(tmp_path):
    file = read(tmp_path / "c.txt", b"\xef\xbb\xbfa cat\r\n\r\n  \na dog\na cat\n")
    assert texts(file) == ["a cat", "a dog"]
    assert file.captions["occurrences"].tolist() == [2, 1]
    assert (file.rows, file.empty, file.column) == (5, 2, None)
    assert file.captions["caption_id"].tolist() == [caption_id("a cat"), caption_id("a dog")]


def test_lines_end_only_at_newlines(tmp_path):
    line = "a\u2028b\x0cc\x00d"
    assert texts(read(tmp_path / "c.txt", f"{line}\nx")) == [line, "x"]


@pytest.mark.parametrize("name", ["caption", "TEXT", "text", "prompt", "Caption"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_column_is_found(tmp_path, name, separator):
    content = f'id{separator}{name}\n1{separator}"a cat, a dog; both"\n2{separator}NA\n'
    file = read(tmp_path / "c.csv", content)
    assert texts(file) == ["a cat, a dog; both", "NA"]
    assert file.column == name


def test_jsonl_with_own_images_and_surrogates(tmp_path):
    rows = [
        {"prompt": "a cat", "image_id": "i1"},
        {"prompt": "\ud83e\udd84 \ud800"},
        {"prompt": None},
        {"prompt": 7},
    ]
    file = read(tmp_path / "c.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert texts(file) == ["a cat", "🦄 \ufffd", "7"]
    assert file.captions["image_id"].tolist() == ["i1", "", ""]
    assert file.empty == 1


def test_parquet_and_limit(tmp_path):
    path = tmp_path / "c.parquet"
    pd.DataFrame({"URL": ["u"] * 4, "TEXT": ["a", None, "b", "c"]}).to_parquet(path)
    assert texts(read_captions(path)) == ["a", "b", "c"]
    assert texts(read_captions(path, limit=3)) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("c.docx", "a", "are read from .txt"),
        ("c.txt", "\n \n", "holds no captions; its 2 rows are empty"),
        ("c.txt", b"caf\xe9\n", "not UTF-8 text \\(byte 3\\)"),
        ("c.csv", "", "no column caption or TEXT|no table"),
        ("c.csv", "url,words\n1,2\n", "no column caption .* its columns: url, words"),
        ("c.csv", 'caption\n"a', "no table"),
        ("c.jsonl", '{"caption": "a"}\n{"capt', "Line 2 of .* is not JSON"),
        ("c.jsonl", "[1]\n", "Line 1 of .* not a JSON object"),
        ("c.jsonl", "[" * 100_000, "Line 1 of .* is not JSON"),
        ("c.parquet", "PAR1", "no readable parquet"),
    ],
)
def test_bad_files_are_told_in_one_sentence(tmp_path, name, content, match):
    with pytest.raises(InputError, match=match):
        read(tmp_path / name, content)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        read_captions(tmp_path / "c.txt")
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_captions(tmp_path / "d.txt")
