"""Training set: browse, search, families, bad pictures."""

import io
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

HOSTILE = "<script>alert(1)</script> **bold** :red[x] $a$ [link](http://x.invalid)"


def picture_bytes(kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def bomb():
    """A small PNG whose header promises 60,000 x 60,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_shows_pictures_with_attribution_page_by_page(app, words):
    page = app("training_set")
    assert not page.exception
    text = words(page)
    assert "by A. Nonymous" in text
    assert "Public domain" in text
    assert len(page.get("image")) == 24
    page = app("training_set", page="2")
    assert len(page.get("image")) == 6


def test_captions_are_text(app, words):
    page = app("training_set", query="alert")
    assert not page.exception
    text = words(page)
    assert "&lt;script&gt;alert(1)" in text
    assert HOSTILE not in text
    assert "1 of 30 captions contain these words" in text


def test_search_by_words_finds_captions_and_neighbours(app, words):
    page = app("training_set")
    page = page.text_input(key="set-query").set_value("red house").run()
    assert not page.exception
    assert page.query_params["query"] == "red house"
    assert "1 of 30 captions contain these words" in words(page)
    assert "nearest others" in words(page)


def test_captions_are_looked_through_once_a_query(app, words, environment):
    """It was done on each rerun: seconds, for millions of captions."""
    from audit.retrieval.rows import Rows

    asked = []
    containing = Rows.containing
    environment.setattr(
        Rows, "containing", lambda rows, words: asked.append(words) or containing(rows, words)
    )
    page = app("training_set", query="picture")
    page = page.run().run()
    assert "24 of 30 captions contain these words" in words(page) and asked == [["picture"]]
    assert "The 6 nearest others" in words(page)  # those with the words stand above
    assert "1 of 30 captions" in words(page.text_input(key="set-query").set_value("red house").run())
    assert asked == [["picture"], ["red", "house"]]


def test_the_heading_counts_the_pictures_that_are_shown(app, words):
    page = app("training_set", query="zebra")
    assert "The 24 nearest others" in words(page) and len(page.get("image")) == 24


def test_another_search_that_finds_as_many_begins_at_its_first_page(app, words, environment):
    from audit.ui import training

    environment.setattr(training, "PAGE", 6)
    page = app("training_set", query="picture", page="3")
    assert "24 of 30 captions contain these words" in words(page) and page.query_params["page"] == "3"
    page = page.text_input(key="set-query").set_value("pictur").run()
    assert "24 of 30 captions contain these words" in words(page) and "page" not in page.query_params


def test_too_many_images_to_gather_families_of_are_told(app, words, environment):
    from audit.ui import bench

    environment.setattr(bench, "LOOKED_THROUGH", 29)
    for params in ({}, {"family": "fam"}):
        page = app("training_set", view="families", **params)
        assert not page.exception
        text = words(page)
        assert "from 29 training images at most" in text and "this training set has 30" in text
        assert "No family of near-duplicates is known" not in text and "no family of that name" not in text


def test_nothing_found_still_shows_the_nearest(app, words):
    page = app("training_set", query="zebra")
    assert "0 of 30 captions contain these words" in words(page)


def test_families_and_one_family(app, words):
    page = app("training_set", view="families")
    assert not page.exception
    assert "by A. Nonymous · Public domain · made for a test" in words(page)
    button = next(button for button in page.button if button.label == "Show all 4")
    page = button.click().run()
    assert page.query_params["family"] == "fam"
    assert "4 near-duplicates" in words(page)
    page = next(button for button in page.button if button.label == "All families").click().run()
    assert "family" not in page.query_params


def test_families_that_no_table_marks_are_the_clusters_that_were_found(
    app, words, environment, tiny_training_set, tmp_path
):
    """The page told of templates and equal files alone, and so of others than the page Duplicates."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from audit.settings import settings

    shutil.copytree(tiny_training_set, tmp_path / "unmarked")
    for path in (tmp_path / "unmarked" / "index" / "metadata").glob("*.parquet"):
        table = pq.read_table(path)
        place = table.schema.names.index("family")
        pq.write_table(table.set_column(place, "family", pa.array([""] * len(table))), path)
    environment.setenv("VERBATIM_INDEX", str(tmp_path / "unmarked" / "index"))
    environment.setenv("VERBATIM_PICTURES", str(tmp_path / "unmarked" / "corpus"))
    settings.cache_clear()
    page = app("training_set", view="families")
    assert not page.exception
    assert "No family of near-duplicates is known" in words(page)
    page = page.switch_page("pages/duplicates.py").run()
    page = next(button for button in page.button if button.label == "Look for duplicates").click().run()
    assert not page.exception
    page.query_params["view"] = "families"
    page = page.switch_page("pages/training_set.py").run()
    assert [button.label for button in page.button if button.label.startswith("Show all")] == ["Show all 4"]


def test_the_pictures_of_a_line_name_each_author_once_with_all_sources(monkeypatch):
    from pathlib import Path

    from audit.corpus.reader import Row
    from audit.ui import cards

    told = []
    monkeypatch.setattr(cards, "literal", lambda text, style: told.append(text))
    owed = [("A", "a/1"), ("B", ""), ("A", "a/2"), ("A", "a/1")]
    rows = [
        Row(str(n), Path(), "", author=who, licence="free", source=where)
        for n, (who, where) in enumerate(owed)
    ]
    cards.owed_together(rows)
    assert told == ["by A · free · a/1, a/2", "by B · free"]
    assert len(cards.attribution("T" * 5000, "A" * 5000, "free", "where")) < 200


def test_an_unknown_family_is_told(app):
    page = app("training_set", view="families", family="nothing")
    assert not page.exception
    assert any("no family of that name" in info.value for info in page.info)


def test_similar_to_a_training_picture(app, words):
    page = app("training_set", like="p0")
    assert not page.exception
    assert "Nearest training images to this one" in words(page)
    page = app("training_set", like="unknown")
    assert not page.exception
    assert any("no picture" in error.value for error in page.error)


def test_search_by_an_uploaded_picture(app, words):
    page = app("training_set")
    page = page.file_uploader(key="set-upload").set_value(("mine.png", picture_bytes(), "image/png")).run()
    assert not page.exception
    assert "Nearest of 30 training images to your picture" in words(page)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"not a picture", "is not a JPEG, PNG, WebP or GIF"),
        (picture_bytes()[:200], "is damaged"),
        (picture_bytes("BMP"), "is not a JPEG, PNG, WebP or GIF"),
        (bomb(), "would unpack to more than"),
        (b"", "is not a JPEG, PNG, WebP or GIF"),
    ],
)
def test_bad_pictures_are_told_in_one_sentence(app, data, sentence):
    page = app("training_set")
    page = page.file_uploader(key="set-upload").set_value(("mine.png", data, "image/png")).run()
    assert not page.exception
    assert any(sentence in error.value.replace("\\", "") for error in page.error)


def test_a_missing_file_is_a_dead_link_not_a_black_picture(app, tiny_training_set):
    path = tiny_training_set / "corpus" / "images" / "p20.png"
    data = path.read_bytes()
    path.unlink()
    try:
        page = app("training_set")
    finally:
        path.write_bytes(data)
    assert not page.exception
    assert any("dead link" in warning.value for warning in page.warning)
    assert len(page.get("image")) == 23


def test_the_way_back_from_a_picture_that_does_not_exist(app, words):
    """The page ended in an error before anything was remembered of it."""
    page = app("training_set", like="p999")
    assert any("has no picture" in error.value.replace("\\", "") for error in page.error)
    page = next(button for button in page.button if button.label == "Back to all pictures").click().run()
    assert not page.exception
    assert not page.error
    assert len(page.get("image")) == 24


def test_a_run_begun_on_the_page_is_no_link_whatever_address_comes_with_it(app):
    page = app("training_set", query="blue tree")
    page = page.text_input(key="set-query").set_value("red house").run()
    page.query_params["query"] = "blue tree"
    page.session_state["set touched"] = True
    page = page.run()
    assert page.query_params["query"] == "red house"
    page.query_params["query"] = "blue tree"
    page = page.run()
    assert page.query_params["query"] == "blue tree"
    assert page.text_input(key="set-query").value == "blue tree"
