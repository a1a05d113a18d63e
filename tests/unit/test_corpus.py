"""Readers of training sets, and what repeats in them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.corpus.reader import Row, RowError, pictures, read_corpus
from audit.corpus.sources import open_source
from audit.errors import InputError


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path)


def table(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    return folder


def test_table_gives_rows_with_attribution_in_file_order(tmp_path):
    save(tmp_path / "images" / "b.webp", 10)
    save(tmp_path / "images" / "a.png", 20)
    rows = [
        {
            "image_id": "b",
            "file": "images/b.webp",
            "caption": "second first",
            "author": "Ann",
            "indexed": True,
        },
        {"image_id": "a", "file": "a.png", "caption": "<b>x</b>", "author": None, "indexed": False},
    ]
    corpus = read_corpus(table(tmp_path, rows))
    assert [(row.image_id, row.caption, row.author) for row in corpus.rows] == [
        ("b", "second first", "Ann"),
        ("a", "<b>x</b>", ""),
    ]
    assert [row.image_id for row in corpus.indexed()] == ["b"]
    assert not corpus.errors


def test_bad_rows_are_collected_and_never_fatal(tmp_path):
    save(tmp_path / "images" / "a.png", 20)
    save(tmp_path.parent / "outside.png", 20)
    (tmp_path / "images" / "damaged.png").write_bytes(b"\x89PNG nothing")
    rows = [
        {"image_id": "a", "file": "images/a.png", "caption": "good"},
        {"image_id": "a", "file": "images/a.png", "caption": "again"},
        {"image_id": "gone", "file": "images/gone.png", "caption": ""},
        {"image_id": "outside", "file": "../outside.png", "caption": ""},
        {"image_id": "absolute", "file": str(tmp_path.parent / "outside.png"), "caption": ""},
        {"image_id": "", "file": "images/a.png", "caption": ""},
        {"image_id": "long", "file": "a" * 300 + ".png", "caption": ""},
        {"image_id": "damaged", "file": "images/damaged.png", "caption": ""},
    ]
    corpus = read_corpus(table(tmp_path, rows))
    assert [error.image_id for error in corpus.errors] == ["a", "gone", "outside", "absolute", "", "long"]
    errors, seen = [], []
    decoded = list(pictures(corpus.rows, errors, progress=lambda done, total: seen.append((done, total))))
    assert [(row.image_id, picture.shape) for row, picture in decoded] == [("a", (6, 5, 3))]
    assert [error.image_id for error in errors] == ["damaged"]
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "values",
    [[True, False, None], [1, 0, None], [1.0, 0.0, float("nan")], ["true", "False", ""], ["1", "0", None]],
)
def test_indexed_is_read_however_it_is_written(tmp_path, values):
    save(tmp_path / "images" / "a.png", 20)
    rows = [
        {"image_id": str(at), "file": "a.png", "caption": "", "indexed": value}
        for at, value in enumerate(values)
    ]
    assert [row.image_id for row in read_corpus(table(tmp_path, rows)).indexed()] == ["0", "2"]


@pytest.mark.parametrize("value", ["maybe", 2])
def test_a_row_whose_indexed_is_neither_true_nor_false_is_left_out_by_its_name(tmp_path, value):
    save(tmp_path / "images" / "a.png", 20)
    rows = [{"image_id": "held", "file": "a.png", "caption": "", "indexed": value}]
    rows.append({"image_id": "b", "file": "a.png", "caption": "", "indexed": type(value)("1")})
    found = read_corpus(table(tmp_path, rows))
    assert [row.image_id for row in found.rows] == ["b"]
    assert f"row 'held', has '{value}' as indexed; write true or false" in str(vars(found.errors[0]))


@pytest.mark.parametrize("column", ["licence", "license", "LICENSE"])
def test_a_licence_is_read_however_its_column_is_spelt(tmp_path, column):
    save(tmp_path / "images" / "a.png", 20)
    rows = [{"image_id": "a", "file": "a.png", "caption": "", column: "CC0"}]
    assert read_corpus(table(tmp_path, rows)).rows[0].licence == "CC0"


@pytest.mark.parametrize("column", ["TEXT", "text", "prompt", "Caption"])
def test_public_names_of_columns_are_read(tmp_path, column):
    save(tmp_path / "images" / "a.png", 20)
    corpus = read_corpus(table(tmp_path, [{"image_id": "a", "file": "a.png", column: "words", "URL": "u"}]))
    assert (corpus.rows[0].caption, corpus.rows[0].url) == ("words", "u")


def test_missing_column_is_named(tmp_path):
    with pytest.raises(InputError, match="lacks the column file, caption"):
        read_corpus(table(tmp_path, [{"image_id": "a"}]))


def test_plain_folder_pairs_pictures_with_text_files(tmp_path):
    for name in ("one.jpg", "two.PNG", "three.webp", "bare.png", "one.webp"):
        save(tmp_path / name, 50)
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(f" caption {name}\n", encoding="utf-8")
    found = list(open_source(tmp_path).read())
    assert [(each.image_id, each.caption) for each in found if isinstance(each, Row)] == [
        ("one", "caption one"),
        ("three", "caption three"),
        ("two", "caption two"),
    ]
    assert [each.image_id for each in found if isinstance(each, RowError)] == ["bare.png", "one.webp"]


@pytest.mark.parametrize("fault", ["missing", "empty", "damaged"])
def test_unusable_folder_is_one_sentence(tmp_path, fault):
    folder = tmp_path / "corpus"
    if fault != "missing":
        folder.mkdir()
    if fault == "damaged":
        (folder / "corpus.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError) as caught:
        read_corpus(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
