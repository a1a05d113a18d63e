"""Milvus, by a real Milvus Lite in this process: what was built is what is found."""

import fcntl
import hashlib
import socket
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymilvus import MilvusClient

from audit.corpus.reader import Row
from audit.corpus.stored import Root, within
from audit.errors import InputError
from audit.retrieval import milvus
from audit.retrieval.milvus import MilvusIndex, build, checked_uri, sliced
from audit.settings import settings

COUNT, WIDTH = 1300, 16
EMBEDDER = {"embedder_name": "local-dir:clip", "embedder_sha256": "e" * 64}


def unit(count, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_rows(folder, count=COUNT):
    """Captions repeat after 100 rows, and all from 200 on have one; rows 0 and 1 are one file."""
    return [
        Row(
            image_id=f"p{i}",
            path=folder / "images" / f"p{i}.png",
            caption=f"caption {i % 100}" if i < 200 else "the same",
            author=f"Author {i}",
            licence="CC BY",
            url=f"http://x/{i}",
            sha256=hashlib.sha256(str(max(i, 1)).encode()).hexdigest(),
            md5=hashlib.md5(str(max(i, 1)).encode()).hexdigest(),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("milvus")


@pytest.fixture(scope="module")
def index(folder):
    uri = str(folder / "set.db")
    assert build(sliced(make_rows(folder), unit(COUNT)), uri, source=folder, **EMBEDDER) == COUNT
    with MilvusIndex.open(uri) as index:
        yield index


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind():
    yield
    serving = [thread for thread in threading.enumerate() if thread.name.endswith("(_serve)")]
    for thread in serving:
        thread.join(5)
    assert not [thread for thread in serving if thread.is_alive()]
    assert not +milvus._OPEN


def test_neighbours_are_those_of_an_exact_search(folder, index):
    queries = unit(40, seed=1)
    similarities = queries @ unit(COUNT).T
    nearest = np.argsort(-similarities, axis=1)[:, :7]
    found = index.search(queries, 7)
    assert [[hit.image_id for hit in hits] for hits in found] == [[f"p{i}" for i in row] for row in nearest]
    np.testing.assert_allclose(
        [[hit.similarity for hit in hits] for hits in found],
        np.take_along_axis(similarities, nearest, axis=1),
        atol=1e-6,
    )
    assert [hit.rank for hit in found[0]] == list(range(7))
    first, place = found[0][0], nearest[0][0]
    assert (first.author, first.licence, first.source) == (f"Author {place}", "CC BY", f"http://x/{place}")
    assert first.path == str(folder / "images" / f"p{place}.png")


def test_more_than_there_is(index):
    assert len(index.search(unit(1), COUNT + 100)[0]) == COUNT


def test_it_says_what_it_holds_and_how_it_searches(folder, index):
    assert (len(index), index.dimensions) == (COUNT, WIDTH)
    assert (index.embedder_name, index.embedder_sha256) == tuple(EMBEDDER.values())
    lines = "\n".join(f"{row.image_id} {row.sha256}" for row in make_rows(folder))
    assert index.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert index.exact and "every vector" in index.described
    told = index.provenance
    assert told["address"] == index.name == f"{folder / 'set.db'} (training_images)"
    assert told["images"] == COUNT and told["exact"] is True


def test_rows_are_found_by_name_caption_and_file(folder, index):
    rows = make_rows(folder)
    assert index.row("p42") == rows[42] and "p42" in index and "p1300" not in index and 42 not in index
    with pytest.raises(InputError, match="no picture 'p1300'"):
        index.row("p1300")
    assert {row.image_id for row in index.by_caption("caption 7")} == {"p7", "p107"}
    assert index.by_caption("Caption 7") == []
    assert index.duplicates("p0") == {"p1"} and index.duplicates("p2") == set() == index.duplicates("p1300")


def test_a_caption_that_more_share_than_one_answer_holds(index, monkeypatch):
    assert len({row.image_id for row in index.by_caption("the same")}) == COUNT - 200
    monkeypatch.setattr(milvus, "MAX_NEIGHBOURS", 500)
    assert len({row.image_id for row in index.by_caption("the same")}) == COUNT - 200


HOSTILE = (
    '" or image_id != "',
    "' or 1 == 1 or '",
    'p1" || true',
    "\\",
    "\0",
    "%",
    "p_",
    "😀" * 200,
    "\ud83d",
    "",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_reaches_an_expression(index, text):
    assert text not in index
    assert index.by_caption(text) == [] and index.duplicates(text) == set()
    with pytest.raises(InputError):
        index.row(text)


def test_hostile_texts_are_kept_as_they_are(tmp_path):
    names = [name for name in HOSTILE if name not in ("", "\ud83d")]
    rows = [Row(image_id=name, path=Path(), caption=name[::-1]) for name in names]
    uri = str(tmp_path / "hostile.db")
    build([(rows, unit(len(rows)))], uri, source=tmp_path, **EMBEDDER)
    with MilvusIndex.open(uri) as index:
        assert [index.row(name) for name in names] == rows
        assert [index.by_caption(name[::-1]) for name in names] == [[row] for row in rows]
        assert index.search(unit(len(rows)), 1)[2][0].image_id == names[2]


def test_a_graph_says_that_it_is_approximate(tmp_path):
    uri = str(tmp_path / "graph.db")
    build([(make_rows(tmp_path, 300), unit(300))], uri, source=tmp_path, index_type="HNSW", **EMBEDDER)
    with MilvusIndex.open(uri) as index:
        assert not index.exact and "approximate (HNSW)" in index.described
        assert [hits[0].image_id for hits in index.search(unit(300), 3)] == [f"p{i}" for i in range(300)]
    with pytest.raises(InputError, match="no index of type 'PQ'"):
        build([], uri, source=tmp_path, index_type="PQ", **EMBEDDER)


def interrupted(parts, after):
    for number, part in enumerate(parts):
        if number == after:
            raise KeyboardInterrupt
        yield part


def parts_of(rows, vectors, size=100):
    return [
        (rows[start : start + size], vectors[start : start + size]) for start in range(0, len(rows), size)
    ]


def test_an_interrupted_build_goes_on_where_it_was(tmp_path, monkeypatch):
    uri, rows, vectors = str(tmp_path / "again.db"), make_rows(tmp_path, 600), unit(600)
    with pytest.raises(KeyboardInterrupt):
        build(interrupted(parts_of(rows, vectors), 3), uri, source=tmp_path, **EMBEDDER)
    with pytest.raises(InputError, match="is not finished"):
        MilvusIndex.open(uri)
    with pytest.raises(InputError, match="embedder local-dir:clip, not of other"):
        build(parts_of(rows, vectors), uri, source=tmp_path, embedder_name="other", embedder_sha256="f" * 64)
    with pytest.raises(InputError, match="300 pictures of another training set"):
        build(parts_of(rows[::-1], vectors), uri, source=tmp_path, **EMBEDDER)

    written = []
    upsert = milvus._Connection.upsert
    monkeypatch.setattr(
        milvus._Connection,
        "upsert",
        lambda self, e: (written.extend(x["image_id"] for x in e), upsert(self, e)),
    )
    # parts of another size than before: one begins before the place and ends after it
    assert build(parts_of(rows, vectors, 250), uri, source=tmp_path, **EMBEDDER) == 600
    assert written == [row.image_id for row in rows[250:]]
    with MilvusIndex.open(uri) as index:
        assert [hits[0].image_id for hits in index.search(vectors, 1)] == [row.image_id for row in rows]

    written.clear()
    seen = []
    assert build(parts_of(rows, vectors), uri, source=tmp_path, progress=seen.append, **EMBEDDER) == 600
    assert written == [] and seen == [100, 200, 300, 400, 500, 600]
    for other in (rows[:-1], [*rows, replace(rows[0], image_id="new")], [*rows[:-1], rows[0]]):
        with pytest.raises(InputError, match="600 pictures of another training set"):
            build(parts_of(other, unit(len(other))), uri, source=tmp_path, **EMBEDDER)


def test_two_rows_of_one_name_are_refused(tmp_path):
    rows = make_rows(tmp_path, 20)
    rows[13] = replace(rows[13], image_id="p2")
    with pytest.raises(InputError, match=r"Of 20 pictures 19 are in .* share their names"):
        build(parts_of(rows, unit(20), 10), str(tmp_path / "twice.db"), source=tmp_path, **EMBEDDER)
    with pytest.raises(InputError, match="is not finished"):
        MilvusIndex.open(str(tmp_path / "twice.db"))


def test_what_does_not_fit_is_refused(tmp_path):
    rows, vectors, uri = make_rows(tmp_path, 3), unit(3), str(tmp_path / "unfit.db")

    def attempt(rows, vectors, said, source=tmp_path):
        with pytest.raises(InputError, match=said):
            build([(rows, vectors)], uri, source=source, **EMBEDDER)

    attempt([], unit(0), "no picture to write")
    attempt(rows, vectors[:2], "3 rows came with vectors of shape")
    attempt(rows, np.full((3, WIDTH), np.nan, np.float32), "no numbers")
    attempt([replace(rows[0], caption="é" * 40_000)], vectors[:1], "caption of p0 has more than the 65,535")
    attempt(rows, vectors, "does not lie in", source=tmp_path / "images" / "deeper")


def test_a_collection_of_another_program_is_left_alone(tmp_path):
    uri = str(tmp_path / "foreign.db")
    with closing(milvus._Connection(uri, "foreign", "", create=True)) as connection:
        connection._client.create_collection("foreign", dimension=4)
        with pytest.raises(InputError, match="none of this program's"):
            build([(make_rows(tmp_path, 3), unit(3))], uri, "foreign", source=tmp_path, **EMBEDDER)


@pytest.mark.parametrize("bad", [np.ones(WIDTH), np.ones((1, WIDTH + 1)), np.full((1, WIDTH), np.inf)])
def test_unfit_vectors_are_refused(index, bad):
    with pytest.raises(InputError):
        index.search(bad.astype(np.float32), 3)
    for k in (0, 16_385):
        with pytest.raises(InputError, match="from 1 to 16,384"):
            index.search(unit(1), k)


def test_pictures_lie_where_it_was_written_from_or_below_the_folder_that_is_set(
    folder, index, tmp_path, monkeypatch
):
    monkeypatch.setattr(settings(), "data_dir", tmp_path)
    with MilvusIndex.open(str(folder / "set.db")) as strange:
        assert strange.row("p3").path == Path()
    monkeypatch.setattr(settings(), "pictures", tmp_path)
    with MilvusIndex.open(str(folder / "set.db")) as moved:
        assert moved.row("p3").path == tmp_path / "images" / "p3.png"
    for path in ("../p.png", "/etc/passwd", "images/../../p.png"):
        assert within(Root(tmp_path), path) == Path()
    assert within(None, "p.png") == Path()


def test_one_process_at_a_time_until_the_last_lets_go(tmp_path):
    uri = str(tmp_path / "small.db")
    build([(make_rows(tmp_path, 20), unit(20))], uri, source=tmp_path, **EMBEDDER)
    first, second = MilvusIndex.open(uri), MilvusIndex.open(uri)
    first.close()
    assert len(second.search(unit(1), 5)[0]) == 5
    second.close()
    with open(Path(uri) / "LOCK") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as another process would hold it
        with pytest.raises(InputError, match="another process has it open"):
            MilvusIndex.open(uri)

    with closing(milvus._Connection(uri, "training_images", "", create=False)) as connection:
        connection.load()
        connection._client.delete("training_images", ids=[milvus._hash("p3", milvus.KEY)])
    with pytest.raises(InputError, match="holds 19 pictures where 20 were written"):
        MilvusIndex.open(uri)
    with pytest.raises(InputError, match=r"no collection .*\(other\)"):
        MilvusIndex.open(uri, "other")


def test_a_server_that_others_filled_names_no_files_of_this_machine(folder, index, tmp_path, monkeypatch):
    address = MilvusClient(index._milvus._file)._config.uri
    with MilvusIndex.open(address) as served:
        assert served.row("p3") == make_rows(folder)[3]
    monkeypatch.setattr(settings(), "data_dir", tmp_path)
    with MilvusIndex.open(address) as served:
        assert [hit.image_id for hit in served.search(unit(3), 1)[1]] == ["p1"]
        assert served.row("p3").path == Path() and served.search(unit(1), 1)[0][0].path == ""


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="There is no Milvus at"):
        MilvusIndex.open(f"http://127.0.0.1:{port}")


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="build it first"):
        MilvusIndex.open(str(tmp_path / "absent.db"))
    assert not (tmp_path / "absent.db").exists()
    (tmp_path / "old.db").write_bytes(b"SQLite format 3\0")
    with pytest.raises(InputError, match="before version 3"):
        build([], str(tmp_path / "old.db"), source=tmp_path, **EMBEDDER)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "set",
        "tcp://h:1/",
        "file:///x.db",
        "http://",
        "http://user:word@h:1",
        "http://h/?a=1",
        "unix:/x",
        "http://h#f",
    ],
)
def test_what_is_no_milvus(uri):
    with pytest.raises(InputError):
        checked_uri(uri)


@pytest.mark.parametrize("name", ["", "a b", "a-b", "1a", "a\n", "é", 'a" or "'])
def test_what_is_no_collection(tmp_path, name):
    with pytest.raises(InputError, match="no name of a collection"):
        MilvusIndex.open(str(tmp_path / "set.db"), name)


def test_without_the_package_a_sentence_says_which(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(InputError, match=r"pip install"):
        MilvusIndex.open(str(tmp_path / "set.db"))
