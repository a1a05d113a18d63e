"""The zip of everything shown, tables that no spreadsheet runs, and text that stays text."""

import csv
import hashlib
import io
import zipfile

import numpy as np
import pytest

from audit.ui import bundle, plots, text


@pytest.mark.parametrize("evil", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1"])
def test_formulas_are_escaped(evil):
    assert bundle.safe_cell(evil) == "'" + evil


@pytest.mark.parametrize("plain", ["a=b", "house", "", -1.5, 3, None, True])
def test_other_cells_are_kept(plain):
    assert bundle.safe_cell(plain) is plain


def test_csv_is_read_back_as_it_was():
    rows = [{"caption": 'a "b", c\nd', "sse": -1.5}, {"caption": "=evil()", "sse": 2}]
    read = list(csv.DictReader(io.StringIO(bundle.csv_bytes(rows).decode("utf-8-sig"))))
    assert read == [{"caption": 'a "b", c\nd', "sse": "-1.5"}, {"caption": "'=evil()", "sse": "2"}]


def test_zip_holds_the_files_and_their_hashes_and_is_the_same_each_time():
    files = {"b.json": bundle.json_bytes({"x": 1}), "a/p.png": b"\x89PNG"}
    data = bundle.zip_bytes(files)
    assert data == bundle.zip_bytes(dict(reversed(files.items())))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sums = archive.read("SHA256SUMS").decode().splitlines()
        assert archive.read("b.json") == files["b.json"]
    assert sums == [f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in sorted(files)]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (1000.0, "Higher than all 1,000 ordinary captions."),
        (-1.0, "Higher than none of 1,000 ordinary captions."),
        (999.0, "Higher than 99.9% of 1,000 ordinary captions."),
        (500.0, "Higher than 50.0% of 1,000 ordinary captions."),
    ],
)
def test_position(value, sentence):
    assert plots.position(value, np.arange(1000.0)) == sentence


def test_position_never_rounds_up_to_all():
    assert plots.position(9_999.0, np.arange(10_000.0)) == "Higher than 99.9% of 10,000 ordinary captions."


def test_distribution_counts_every_ordinary_caption_and_shows_the_value():
    figure = plots.distribution(
        250.0,
        np.sort(np.random.default_rng(0).normal(200, 5, 321)),
        colour="#c00",
        text_colour="#000",
        threshold=212.0,
    )
    assert sum(figure.data[0].y) == 321
    assert [shape.x0 for shape in figure.layout.shapes] == [250.0, 212.0]
    low, high = figure.layout.xaxis.range
    assert low < 250.0 < high


@pytest.mark.parametrize(
    "evil",
    [
        "**b**",
        "[x](http://e)",
        "# h",
        ":red[x]",
        "$x$",
        "<b>",
        "`c`",
        "~~s~~",
        ":material/home:",
        "![i](x)",
        "a | b",
        "1. x",
    ],
)
def test_escape_leaves_no_bare_sign(evil):
    escaped = text.escape(evil)
    bare = [
        sign
        for before, sign in zip(" " + escaped, escaped, strict=False)
        if sign in "*[]#:$<>`~!|_" and before != "\\"
    ]
    assert bare == []


def test_shorten():
    assert text.shorten("abc", 3) == "abc"
    assert text.shorten("abcd", 3) == "ab…"
