"""How often a picture was trained with which caption."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.corpus.occurrences import counted, of_rows, of_table
from audit.errors import InputError

IDS, URLS, CAPTIONS = ["a", "b", "c"], ["http://x/a", "", "http://x/c"], ["one", "two", "three"]


def read(folder, **columns):
    pd.DataFrame(columns).to_parquet(folder / "table.parquet")
    rows, unknown = of_table(folder / "table.parquet", IDS, URLS, CAPTIONS)
    return list(rows.itertuples(index=False, name=None)), unknown


def test_each_row_counts_once_without_a_table():
    assert of_rows(CAPTIONS).to_dict("list") == {"place": [0, 1, 2], "caption": CAPTIONS, "times": [1, 1, 1]}


def test_a_table_replaces_the_rows_of_the_pictures_that_it_names(tmp_path):
    rows, unknown = read(
        tmp_path, image=["a", "a", "nobody", "b"], caption=["x", "y", "z", "gone"], weight=[3, 1, 5, 0]
    )
    assert rows == [(0, "x", 3), (0, "y", 1), (2, "three", 1)]
    assert unknown == 1


def test_metadata_with_addresses_count_their_rows(tmp_path):
    rows, unknown = read(tmp_path, URL=["http://x/c", "http://x/c", ""], TEXT=["p", "p", "q"])
    assert rows == [(2, "p", 1), (2, "p", 1), (0, "one", 1), (1, "two", 1)]
    assert unknown == 1


def test_bytes_that_are_no_utf_8_are_replaced(tmp_path):
    caption = pa.array([b"caf\xe9", b"x"], pa.binary()).view(pa.string())
    image = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image_id": image, "caption": caption}), tmp_path / "table.parquet")
    rows, unknown = of_table(tmp_path / "table.parquet", IDS, URLS, CAPTIONS)
    assert (rows["caption"].tolist(), unknown) == (["caf\ufffd", "two", "three"], 1)


def test_the_answer_of_the_demos_truth_is_what_was_trained(tmp_path):
    rows, _ = read(tmp_path, image=["a"], answer=["b"], caption=["x"], weight=[15.0])
    assert rows[0] == (1, "x", 15)


def test_parts_in_a_folder_are_one_table(tmp_path):
    for number, name in enumerate("ab"):
        pd.DataFrame({"image_id": [name], "caption": ["t"]}).to_parquet(tmp_path / f"part-{number}.parquet")
    rows, _ = of_table(tmp_path, IDS, URLS, CAPTIONS)
    assert rows["place"].tolist() == [0, 1, 2]


def test_captions_of_a_group_are_counted_together():
    rows = pd.DataFrame(
        {"place": [0, 1, 1, 2, 3], "caption": ["p", "p", "q", "p", "q"], "times": [2, 3, 1, 7, 9]}
    )
    found = counted(rows, np.array([0, 0, 2, -1]))
    assert list(found.itertuples(index=False, name=None)) == [(0, "p", 5, 1), (0, "q", 1, 5), (2, "p", 7, 0)]


def test_a_picture_that_was_trained_no_times_counts_no_time(tmp_path):
    rows, _ = read(tmp_path, image=["a", "b", "b"], caption=["x", "y", "z"], times=[0, 0, 2])
    assert rows == [(1, "z", 2), (2, "three", 1)]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"caption": ["x"]}, "needs a caption"),
        ({"image": ["a"]}, "needs a caption"),
        ({"image": ["a"], "caption": ["x"], "times": ["many"]}, "times of .* whole numbers"),
        ({"image": ["a"], "caption": ["x"], "times": [1.5]}, "whole numbers"),
    ],
)
def test_a_table_that_does_not_tell_is_one_sentence(tmp_path, columns, told):
    with pytest.raises(InputError, match=told):
        read(tmp_path, **columns)


@pytest.mark.parametrize("content", [None, b"PAR1 no"])
def test_a_file_that_is_no_table(tmp_path, content):
    path = tmp_path / "table.parquet"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match="no readable parquet"):
        of_table(path, IDS, URLS, CAPTIONS)
