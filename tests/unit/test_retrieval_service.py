"""The client of a clip-retrieval service, against a real HTTP server that speaks its documented protocol."""

import hashlib
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import faiss
import numpy as np
import pytest

from audit.errors import InputError
from audit.retrieval import service
from audit.retrieval.engines import open_index
from audit.retrieval.service import ServiceIndex, checked_address, indices
from audit.settings import settings

ROWS, WIDTH = 60, 8


class Backend:
    """A back end over a flat faiss index: what it was asked, and answers as documented or as a test twists them."""

    def __init__(self):
        vectors = np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(np.float32)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors[5] = self.vectors[4]
        self.index = faiss.IndexFlatIP(WIDTH)
        self.index.add(self.vectors)
        self.metadata = [
            {
                "image_id": f"p{i}",
                "image_path": f"a/p{i}.png",
                "caption": f"caption {i}",
                "url": f"http://x/{i}",
            }
            | {"author": f"Author {i}", "license": "CC BY", "sha256": f"{i - (i == 5):064x}"}
            for i in range(ROWS)
        ]
        self.indices = ["demo"]
        self.asked: list[tuple[str, dict | None]] = []
        self.twist = lambda path, answer: answer
        self.raw = None

    def answer(self, path, body):
        self.asked.append((path, body))
        if path == "/indices-list":
            return self.indices
        if path == "/metadata":
            return [{"id": i, "metadata": self.metadata[i]} for i in body["ids"]]
        query = body.get("embedding_input") or self.vectors[int(body["text"].split()[-1])]
        similarities, ids = self.index.search(np.array([query], np.float32), body["num_result_ids"])
        hits = [(int(i), float(s)) for s, i in zip(similarities[0], ids[0], strict=True) if i >= 0]
        return [self.metadata[i] | {"id": i, "similarity": s} for i, s in hits]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        backend = self.server.backend
        if backend.raw is not None and self.path != "/indices-list":
            backend.raw(self)
            return
        try:
            answer, status = backend.twist(self.path, backend.answer(self.path, body)), 200
        except Exception:
            answer, status = {"message": "Internal Server Error"}, 500
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def served(backend):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.backend = backend
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def address(backend):
    with served(backend) as address:
        yield address


@pytest.fixture
def index(address):
    return ServiceIndex.open(address, dimensions=WIDTH)


def test_rows_are_those_of_an_exact_search(backend, index):
    queries = backend.vectors[[9, 41]]
    found = index.search(queries, 7)
    similarities, places = backend.index.search(queries, 7)
    assert [[hit.image_id for hit in hits] for hits in found] == [[f"p{i}" for i in row] for row in places]
    np.testing.assert_array_equal([[hit.similarity for hit in hits] for hits in found], similarities)
    assert [hit.rank for hit in found[0]] == list(range(7))
    first = found[0][0]
    assert (first.caption, first.author, first.licence) == ("caption 9", "Author 9", "CC BY")
    assert first.source == "http://x/9"


def test_every_filter_is_switched_off_in_what_is_sent_and_recorded(backend, index):
    backend.asked.clear()
    vector = backend.vectors[:1]
    answer = index.ask(vector, 4)[0]
    [(path, body)] = backend.asked
    np.testing.assert_array_equal(np.array(body.pop("embedding_input"), np.float32), vector[0])
    assert path == "/knn-service"
    assert body == {
        "indice_name": "demo",
        "num_images": 4,
        "num_result_ids": 4,
        "modality": "image",
        "deduplicate": False,
        "use_safety_model": False,
        "use_violence_detector": False,
        "use_mclip": False,
        "aesthetic_score": "",
        "aesthetic_weight": "",
    }
    assert answer.sent.body(vector[0]) == body | {"embedding_input": vector[0].tolist()}
    assert answer.sent.embedding_sha256 == hashlib.sha256(vector.tobytes()).hexdigest()
    assert len({answer.sent, index.ask(vector, 4)[0].sent, index.ask(vector, 5)[0].sent}) == 2


def test_provenance_names_the_place_the_denominator_and_the_settings(address, index):
    told = index.provenance
    assert told["address"] == address and told["images"] == ROWS and told["images_from"] == "asked row by row"
    assert told["exact"] is None and told["deduplicate"] is False and told["aesthetic_score"] == ""


@pytest.mark.parametrize("count", [1, 2, 3, 59, 60])
def test_images_are_counted(backend, count, address):
    backend.metadata = backend.metadata[:count]
    backend.index = faiss.IndexFlatIP(WIDTH)
    backend.index.add(backend.vectors[:count])
    assert len(ServiceIndex.open(address, dimensions=WIDTH)) == count


@pytest.mark.parametrize("failing", [0, 7, 31])
def test_a_failure_by_chance_is_not_taken_for_the_last_row(backend, address, failing):
    times = iter([True])

    def once(path, answer):
        if path == "/metadata" and answer[0]["id"] == failing and next(times, False):
            raise RuntimeError
        return answer

    backend.twist = once
    with pytest.raises(InputError, match="does not tell how many"):
        ServiceIndex.open(address, dimensions=WIDTH)


def test_a_service_that_has_every_row_is_not_believed(backend, address):
    backend.metadata = type("", (), {"__getitem__": lambda self, i: {}})()
    with pytest.raises(InputError, match="does not tell how many"):
        ServiceIndex.open(address, dimensions=WIDTH)


def test_only_another_set_behind_the_same_address_has_another_hash(backend, address, index):
    backend.metadata[0] = dict(reversed(backend.metadata[0].items()))
    assert index.sha256 == ServiceIndex.open(address, dimensions=WIDTH).sha256
    backend.metadata[0]["caption"] = "another"
    assert index.sha256 != ServiceIndex.open(address, dimensions=WIDTH).sha256
    opened = ServiceIndex.open(address, dimensions=WIDTH)
    backend.twist = lambda path, answer: answer[1:] if path == "/metadata" else answer
    with pytest.raises(InputError, match="does not give the rows"):
        _ = opened.sha256


def test_what_it_cannot_tell_is_not_made_up(backend, index):
    assert index.by_caption("caption 4") is None
    with pytest.raises(InputError, match="none of its answers"):
        index.row("p4")
    assert index.duplicates("p4") == set()
    assert "p4" not in index
    index.search(backend.vectors[4:5], 2)
    assert "p4" in index and "p6" not in index
    assert index.row("p4").caption == "caption 4"
    assert index.duplicates("p4") == {"p5"} and index.duplicates("p5") == {"p4"}


def test_the_least_recently_used_rows_are_forgotten(backend, index, monkeypatch):
    monkeypatch.setattr(service, "REMEMBERED", 3)
    index.search(backend.vectors[9:10], 3)
    index.row("p9")
    index.search(backend.vectors[4:5], 2)
    assert index.row("p9") and index.row("p4") and index.row("p5")
    index.search(backend.vectors[20:21], 1)
    with pytest.raises(InputError):
        index.row("p9")


def test_more_than_there_is(backend, index):
    assert len(index.search(backend.vectors[:1], 500)[0]) == ROWS


def test_gaps_numbers_and_half_characters_in_metadata(backend, index):
    backend.metadata[9] = {"image_id": float("nan"), "caption": "half \ud83d", "url": None, "author": 7}
    backend.metadata[9]["image_path"] = "b/c.tar.png"
    hit = index.search(backend.vectors[9:10], 1)[0][0]
    assert (hit.image_id, hit.caption, hit.author, hit.source) == ("c.tar", "half \ufffd", "7", "")
    backend.metadata[30] = {}
    assert index.search(backend.vectors[30:31], 1)[0][0].image_id == "30"


def test_pictures_lie_under_the_folder_that_is_set_or_nowhere(backend, address, tmp_path, monkeypatch):
    assert ServiceIndex.open(address, dimensions=WIDTH).search(backend.vectors[:1], 1)[0][0].path == ""
    monkeypatch.setattr(settings(), "pictures", tmp_path)
    index = open_index(address, WIDTH)
    assert index.search(backend.vectors[:1], 1)[0][0].path == str(tmp_path / "a/p0.png")
    for path in ("/etc/passwd", "../secret.png", "a/../../b.png", f"{tmp_path}-beside/x.png", "a\0.png", ""):
        backend.metadata[0]["image_path"] = path
        assert index.search(backend.vectors[:1], 1)[0][0].path == ""
    backend.metadata[0]["image_path"] = str(tmp_path / "whole.png")
    assert index.search(backend.vectors[:1], 1)[0][0].path == str(tmp_path / "whole.png")


def change(**values):
    def twist(path, answer):
        return [answer[0] | values, *answer[1:]] if path == "/knn-service" else answer

    return twist


def on_search(make):
    return lambda path, answer: make(answer) if path == "/knn-service" else answer


HOSTILE = {
    "an object": on_search(lambda answer: {"message": "SECRET"}),
    "a number": on_search(lambda answer: 7),
    "rows that are none": on_search(lambda answer: ["SECRET"]),
    "more than asked for": on_search(lambda answer: [*answer, answer[0] | {"id": 50, "similarity": -1.0}]),
    "no id": on_search(lambda answer: [{"similarity": 1.0}]),
    "an id of text": change(id="1"),
    "an id that is true": change(id=True),
    "a fraction": change(id=1.5),
    "a negative id": change(id=-1),
    "an id beyond the last": change(id=ROWS),
    "an id of 300 digits": change(id=10**300),
    "one row twice": on_search(lambda answer: [answer[0], answer[0]]),
    "no similarity": on_search(lambda answer: [{"id": 1}]),
    "NaN": change(similarity=float("nan")),
    "infinity": change(similarity=float("inf")),
    "too similar": change(similarity=1.2),
    "too unlike": on_search(lambda answer: [answer[0] | {"similarity": -1.2}]),
    "a similarity of text": change(similarity="0.9"),
    "a similarity that is true": change(similarity=True),
    "ascending": on_search(lambda answer: answer[::-1]),
    "two rows of one name": on_search(lambda answer: [row | {"image_id": "same"} for row in answer]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_answer_is_refused_in_one_sentence(backend, index, kind):
    backend.twist = HOSTILE[kind]
    with pytest.raises(InputError) as refused:
        index.search(backend.vectors[:1], 3)
    said = str(refused.value)
    assert "SECRET" not in said and "\n" not in said and len(said) < 400 and said.endswith(".")
    assert said.startswith("The service http://127.0.0.1:")


def test_two_rows_of_one_name_are_seen_across_answers(backend, index):
    backend.metadata[9]["image_id"] = backend.metadata[30]["image_id"] = "same"
    index.search(backend.vectors[9:10], 1)
    with pytest.raises(InputError, match="two rows named 'same'"):
        index.search(backend.vectors[30:31], 1)


def page(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<html>SECRET</html>")


def redirect(handler):
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1/SECRET")
    handler.end_headers()


def error(handler):
    handler.send_error(503, "SECRET")


def nested(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"[" * 200_000)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    with_more = b" " * 65536
    while True:
        handler.wfile.write(with_more)


def cut_short(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"[]")


def silent(handler):
    time.sleep(1.0)


def slow_body(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def slow_headers(handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    for _ in range(60):
        handler.wfile.write(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (page, "not JSON"),
        (redirect, "HTTP 302"),
        (error, "HTTP 503"),
        (nested, "not JSON"),
        (endless, "more than 1 MiB"),
        (cut_short, "broke off"),
        (silent, "within 0.3 seconds"),
        (slow_body, "within 0.3 seconds"),
        (slow_headers, "within 0.3 seconds"),
    ],
)
def test_bytes_and_time_are_bounded(backend, index, monkeypatch, raw, said):
    monkeypatch.setattr(service, "SECONDS", 0.3)
    monkeypatch.setattr(service, "MAX_BYTES", 2**20)

    def quietly(handler):
        handler.close_connection = True
        with suppress(OSError):  # the client hangs up, as it should
            raw(handler)

    backend.raw = quietly
    began = time.monotonic()
    with pytest.raises(InputError) as refused:
        index.search(backend.vectors[:1], 3)
    assert said in str(refused.value) and "SECRET" not in str(refused.value)
    assert time.monotonic() - began < 1.0


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match="cannot be reached"):
        ServiceIndex.open(address, dimensions=WIDTH)


def test_vectors_of_another_length_are_refused_when_it_is_opened(address):
    with pytest.raises(InputError, match="vectors of this length"):
        ServiceIndex.open(address, dimensions=WIDTH + 1)


@pytest.mark.parametrize("bad", [np.ones(WIDTH), np.ones((1, WIDTH + 1)), np.full((1, WIDTH), np.nan)])
def test_unfit_vectors_are_not_sent(backend, index, bad):
    backend.asked.clear()
    with pytest.raises(InputError):
        index.search(bad.astype(np.float32), 3)
    with pytest.raises(InputError, match="at least 1"):
        index.search(backend.vectors[:1], 0)
    assert not backend.asked


def test_one_of_several_indices_is_named(backend, address):
    backend.indices = ["one", "two", "<b>three</b>"]
    assert indices(address) == backend.indices
    with pytest.raises(InputError, match=r"several indices; take one of: one, two\."):
        ServiceIndex.open(address, dimensions=WIDTH)
    with pytest.raises(InputError, match="no index 'four'"):
        ServiceIndex.open(address, dimensions=WIDTH, indice_name="four")
    assert ServiceIndex.open(address, dimensions=WIDTH, indice_name="two").indice_name == "two"


@pytest.mark.parametrize("listed", [[], {}, [1], "demo", None])
def test_a_service_without_indices_is_none(backend, address, listed):
    backend.indices = listed
    with pytest.raises(InputError, match="lists no indices"):
        ServiceIndex.open(address, dimensions=WIDTH)


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("http://127.0.0.1:1234", "http://127.0.0.1:1234"),
        (" http://knn.example/ ", "http://knn.example"),
        ("https://knn.example:8443/clip/knn-service", "https://knn.example:8443/clip"),
        ("http://[::1]:1234/", "http://[::1]:1234"),
    ],
)
def test_addresses(typed, address):
    assert checked_address(typed) == address


NO_ADDRESS = ("", "localhost:1234", "127.0.0.1", "ftp://h", "file:///etc/passwd", "http://", "http://a b/")
NO_ADDRESS += ("http://h:99999", "http://user:word@h/", "http://h/?q=1", "http://h/#f", "http://h\nx/")


@pytest.mark.parametrize("typed", NO_ADDRESS)
def test_what_is_no_address(typed):
    with pytest.raises(InputError):
        checked_address(typed)


def test_a_service_behind_a_path(backend):
    class Prefixed(Handler):
        def do_POST(self):
            assert self.path.startswith("/clip/")
            self.path = self.path.removeprefix("/clip")
            super().do_POST()

        do_GET = do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Prefixed) as server:
        server.backend = backend
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        index = ServiceIndex.open(f"http://127.0.0.1:{server.server_port}/clip/", dimensions=WIDTH)
        assert index.search(backend.vectors[2:3], 1)[0][0].image_id == "p2"
        server.shutdown()
        thread.join()
