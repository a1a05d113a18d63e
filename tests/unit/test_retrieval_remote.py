"""A training set that knows only addresses: indexed, searched, compared, and a dead link told as one."""

import functools
import hashlib
import http.server
import io
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from audit.corpus.fetch import RemoteImages
from audit.corpus.reader import row_of
from audit.errors import Cancelled, InputError
from audit.images import decode, sha256
from audit.records import CheckStatus, Sample, VerdictKind
from audit.retrieval import search as search_module
from audit.retrieval.base import neighbour
from audit.retrieval.build import build
from audit.retrieval.index import Index
from audit.retrieval.search import PictureCache, Retriever
from audit.runs import pictures as pictures_module
from audit.runs.duplicates import find_duplicates
from audit.runs.pictures import Pictures
from audit.verbatim.verdict import decide


class Embedder:
    """Means of the picture's quarters: enough to tell these pictures apart."""

    name, sha256, dimensions = "quarters", "f" * 64, 12

    def images(self, images):
        found = [np.concatenate([part.mean((0, 1)) for part in quarters(image)]) - 0.5 for image in images]
        vectors = np.array(found, np.float32).reshape(-1, 12)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def quarters(image):
    half = len(image) // 2
    return image[:half, :half], image[:half, half:], image[half:, :half], image[half:, half:]


def png(seed):
    buffer = io.BytesIO()
    blocks = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def site(tmp_path):
    """A folder served on loopback, and its address."""
    (tmp_path / "site").mkdir()
    for number in range(6):
        (tmp_path / "site" / f"{number}.png").write_bytes(png(number))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    handler.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "site", f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def remote(site, tmp_path, monkeypatch):
    with RemoteImages(tmp_path / "cache", allowed_hosts=[site[1]]) as remote:
        monkeypatch.setattr(search_module, "remote_images", lambda: remote)
        yield remote


def metadata(folder, host, hashes=()):
    columns = {
        "URL": [f"http://{host}/{number}.png" for number in range(7)],
        "TEXT": [f"picture {number}" for number in range(7)],
        "sha256": [*hashes, *[None] * (7 - len(hashes))],
    }
    folder.mkdir()
    pq.write_table(
        pa.table(columns, schema=pa.schema(dict.fromkeys(columns, pa.string()))), folder / "part-0.parquet"
    )
    return folder


def test_addresses_become_an_index_and_pictures_of_it(site, remote, tmp_path):
    hashes = [sha256(png(0)), "0" * 64]
    built = build(
        metadata(tmp_path / "laion", site[1], hashes), tmp_path / "index", Embedder(), remote=remote
    )
    told = {error.image_id: error.message for error in built.errors}
    assert built.count == 5 and set(told) == {"row-1", "row-6"}
    assert told["row-1"].startswith("changed") and told["row-6"].startswith("dead")
    index = Index.open(tmp_path / "index")
    assert str(index.row("row-3").path) == "." and index.row("row-3").sha256 == sha256(png(3))

    retriever = Retriever(index, Embedder())
    picture = decode(png(4))
    nearest = retriever.nearest(picture, 3)
    assert nearest[0].image_id == "row-4" and nearest[0].sse == pytest.approx(0, abs=1e-3)
    assert nearest[0].source == f"http://{site[1]}/4.png"


def test_each_row_of_one_address_is_compared_with_its_own_md5(site, remote, tmp_path):
    """kNN metadata: lower-case url, caption, md5."""
    first, second = (hashlib.md5(png(number), usedforsecurity=False).hexdigest() for number in (0, 1))
    url = f"http://{site[1]}/0.png"
    table = pa.table({"url": [url] * 3, "caption": ["a", "b", "c"], "md5": [second, first, None]})
    (tmp_path / "knn").mkdir()
    pq.write_table(table, tmp_path / "knn" / "part-0.parquet")
    built = build(tmp_path / "knn", tmp_path / "index", Embedder(), remote=remote)
    assert [(error.image_id, error.message.partition(":")[0]) for error in built.errors] == [
        ("row-0", "changed")
    ]
    index = Index.open(tmp_path / "index")
    assert [(row.caption, row.md5, row.sha256) for row in index.rows] == [
        ("b", first, sha256(png(0))),
        ("c", "", sha256(png(0))),
    ]


def test_a_picture_that_changed_since_is_told_by_its_md5(site, remote):
    expected = hashlib.md5(png(1), usedforsecurity=False).hexdigest()
    row = row_of({"url": f"http://{site[1]}/0.png", "md5": expected}, image_id="a", path=Path())
    for stored in (row, neighbour(row, 1.0, 0)):
        with pytest.raises(InputError, match="not the one that"):
            PictureCache().open(stored)


def test_duplicates_of_addresses_are_verified_on_pictures_fetched_together(
    site, remote, tmp_path, monkeypatch
):
    (site[0] / "5.png").write_bytes(png(2))
    folder = metadata(tmp_path / "laion", site[1])
    build(folder, tmp_path / "index", Embedder(), remote=remote)
    remote.clean(0)
    monkeypatch.setattr(pictures_module, "remote_images", lambda: remote)
    asked = []
    monkeypatch.setattr(
        remote,
        "get_many",
        lambda urls, get_many=remote.get_many, **how: asked.append(len(urls)) or get_many(urls, **how),
    )
    for have in (
        Pictures.of_index(Index.open(tmp_path / "index")),
        Pictures.of_source(folder, Embedder(), remote),
    ):
        found = find_duplicates(have)
        assert (
            sorted(found.members["image_id"]) == ["row-2", "row-5"]
            and found.report["verified_on"] == "pixels"
        )
        assert have.hashes[have.image_ids.index("row-0")] == sha256(png(0))  # they come in any order
    assert asked == [6, 7, 6]


def test_the_search_for_duplicates_tells_what_is_fetched_and_can_be_stopped(
    site, remote, tmp_path, monkeypatch
):
    build(metadata(tmp_path / "laion", site[1]), tmp_path / "index", Embedder(), remote=remote)
    remote.clean(0)
    monkeypatch.setattr(pictures_module, "remote_images", lambda: remote)
    index, seen, stopped = Index.open(tmp_path / "index"), [], []
    have = Pictures.of_index(index, lambda *told: seen.append(told), lambda: bool(stopped))
    assert seen[-1] == (6, 6)
    stopped.append("by somebody")
    with pytest.raises(Cancelled):  # while pixels are compared
        find_duplicates(have, [])
    with pytest.raises(Cancelled):  # while pictures are fetched
        Pictures.of_index(index, cancelled=lambda: bool(stopped))


def test_a_picture_that_died_since_is_a_dead_link_and_no_black_image(site, remote, tmp_path):
    build(metadata(tmp_path / "laion", site[1]), tmp_path / "index", Embedder(), remote=remote)
    for number in range(6):
        (site[0] / f"{number}.png").unlink()
    remote.clean(0)
    retriever = Retriever(Index.open(tmp_path / "index"), Embedder())
    black = np.zeros((32, 32, 3), np.float32)
    hits = retriever.nearest(black, 6)
    assert len(hits) == 6 and all(hit.sse is None for hit in hits)
    verdict = decide(
        [Sample(black, 0, 16, 7.5)], own={}, own_duplicates=(), neighbours_per_sample=[hits], templates=[]
    )
    assert verdict.kind is VerdictKind.U and verdict.checks[2].status is CheckStatus.DEAD_LINK


def test_stop_ends_the_wait_for_pictures(site, remote, tmp_path):
    build(metadata(tmp_path / "laion", site[1]), tmp_path / "index", Embedder(), remote=remote)
    remote.clean(0)
    retriever, picture = Retriever(Index.open(tmp_path / "index"), Embedder()), decode(png(4))
    near = retriever.by_image(picture, 6)
    with pytest.raises(Cancelled):
        retriever.rerank(picture, near, cancelled=lambda: True)
    told = []
    ranked = retriever.rerank(picture, near, progress=lambda *done: told.append(done))
    assert ranked[0].sse == pytest.approx(0, abs=1e-3) and told == [(n, 6) for n in range(1, 7)]


def test_where_nothing_is_fetched_it_is_said(site, remote, tmp_path, monkeypatch):
    folder = metadata(tmp_path / "laion", site[1])
    with pytest.raises(InputError, match="fetching is off"):
        build(folder, tmp_path / "index", Embedder())
    build(folder, tmp_path / "index", Embedder(), remote=remote)
    monkeypatch.setattr(search_module, "remote_images", lambda: None)
    retriever = Retriever(Index.open(tmp_path / "index"), Embedder())
    assert retriever.picture("row-0") is None
