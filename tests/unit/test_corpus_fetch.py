"""The fetcher against a hostile server on loopback, and its cache against threads, kills and meddling."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, timedelta

import numpy as np
import pytest
from PIL import Image

from audit.corpus.addresses import DEFAULT_PORTS
from audit.corpus.cache import FetchedPictures
from audit.corpus.fetch import FetchStatus, Limits, RemoteImages
from audit.errors import Cancelled, InputError
from audit.images import decode

SECRET = b"SECRET-OF-THE-SERVER"
"""Stands in whatever the server writes, and must turn up nowhere."""
SECONDS = 0.5
LONG = 3.0
"""A deadline that does not hold takes far longer; one that holds does not, on a busy machine either."""


def encoded(format="PNG", side=8, value=None):
    pixels = np.random.default_rng(0 if value is None else value).integers(0, 255, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


PNG = encoded()


def answer(body=b"", status="200 OK", *headers, length=True):
    lines = [f"HTTP/1.1 {status}", *headers]
    if length is not False:
        lines.append(f"Content-Length: {len(body) if length is True else length}")
    return "\r\n".join([*lines, f"X-Secret: {SECRET.decode()}", "", ""]).encode() + body


def chunked(*chunks):
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return answer(b"", "200 OK", "Transfer-Encoding: chunked", length=False) + parts + b"0\r\n\r\n"


def redirect(location, status="302 Found"):
    return answer(SECRET, status, f"Location: {location}")


class Server:
    """Answers each path with bytes, or by a function that has the connection to itself."""

    def __init__(self, context=None):
        self.routes = {}
        self.requests = []
        self.open = self.most_open = 0
        self._context = context
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    def url(self, path, name="127.0.0.1", scheme="http"):
        return f"{scheme}://{name}:{self.port}{path}"

    def count(self, path):
        return sum(request.startswith(b"GET %b " % path.encode()) for request in self.requests)

    def close(self):
        self._listening.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            with self._lock:
                self.requests.append(request)
                self.open += 1
                self.most_open = max(self.most_open, self.open)
            route = self.routes[request.split()[1].decode()]
            # counted out before the answer is whole: the client may be gone, and back, sooner than this thread
            try:
                last = route(connection) if callable(route) else route
            finally:
                with self._lock:
                    self.open -= 1
            connection.sendall(last or b"")
        except OSError:
            pass
        finally:
            connection.close()


def again_and_again(data, pause=0.0, first=b""):
    """A server that sends `first`, then `data` until nobody listens (half a minute at most)."""

    def handler(connection):
        connection.sendall(first)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            connection.sendall(data)
            time.sleep(pause)

    return handler


def silence_after(first):
    """A server that sends `first`, and then nothing until nobody listens."""

    def handler(connection):
        connection.sendall(first)
        return connection.recv(1)

    return handler


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def connections(monkeypatch, server):
    """Where the process connects to; nothing but the server's own port is ever reached, nor a name looked up."""
    seen = []
    connect = socket.socket.connect

    def recording(self, address):
        seen.append(address)
        if address[0] not in ("127.0.0.1", "127.0.0.2"):
            raise OSError("nothing leaves this test")
        connect(self, address)

    def no_look_up(*arguments, **_):
        raise AssertionError(f"the name {arguments} was looked up behind the fetcher's back")

    monkeypatch.setattr(socket.socket, "connect", recording)
    monkeypatch.setattr(socket, "getaddrinfo", no_look_up)
    return seen


@pytest.fixture
def remote(tmp_path, server):
    """Makes fetchers on one cache that may ask the server, and takes names for loopback."""
    made = []

    def make(*, resolve=lambda host, port: ["127.0.0.1"], allowed=(), **limits):
        options = {name: limits.pop(name) for name in list(limits) if name.startswith("retry")}
        limits = Limits(**{"seconds": SECONDS, "max_bytes": 300_000, "max_pixels": 1_000_000} | limits)
        allowed = [server.host, *allowed]
        made.append(
            RemoteImages(tmp_path / "cache", limits=limits, allowed_hosts=allowed, resolve=resolve, **options)
        )
        return made[-1]

    yield make
    for images in made:
        images.close()


def kept(tmp_path):
    return [path for path in (tmp_path / "cache" / "pictures").rglob("*") if path.is_file()]


# ---- what an ordinary server gives


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("sent", ["whole", "chunked", "until it closes"])
def test_picture_comes_as_it_was_sent(format, sent, server, remote):
    data = encoded(format, 40)
    server.routes["/a"] = {
        "whole": answer(data, "200 OK", "Content-Type: text/plain"),
        "chunked": chunked(data[:7], data[7:1000], data[1000:]),
        "until it closes": answer(data, length=False),
    }[sent]
    fetched = remote(seconds=LONG).get(server.url("/a"))
    assert fetched.status is FetchStatus.FETCHED
    assert fetched.path.read_bytes() == data and fetched.path.name == fetched.sha256
    assert fetched.sha256 == hashlib.sha256(data).hexdigest() and fetched.size == len(data)
    assert fetched.media_type == f"image/{format.lower()}"
    assert fetched.time.tzinfo is UTC and decode(fetched.path).shape == (40, 40, 3)


def test_request_is_polite_and_carries_nothing_of_ours(server, remote, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.routes["/%C3%A4?q=%C3%A9"] = redirect("/b?x=1", "302 Found\r\nSet-Cookie: a=b")
    server.routes["/b?x=1"] = answer(PNG)
    assert remote(seconds=LONG).get(server.url("/ä?q=é", "bücher.example")).status is FetchStatus.FETCHED
    for request, path in zip(server.requests, (b"/%C3%A4?q=%C3%A9", b"/b?x=1"), strict=True):
        first, *headers = request.decode().strip().split("\r\n")
        assert first == f"GET {path.decode()} HTTP/1.1"
        assert sorted(headers) == [
            "Accept-Encoding: identity",
            "Connection: close",
            f"Host: xn--bcher-kva.example:{server.port}",
            "User-Agent: Verbatim audit (training image check)",
        ]


@pytest.mark.parametrize(
    ("status", "lasting"),
    [(404, True), (410, True)]
    + [(status, False) for status in (204, 206, 300, 302, 304, 401, 403, 418, 429, 451, 500, 503, 999)],
)
def test_other_answers_are_dead_whatever_comes_with_them(status, lasting, server, remote, tmp_path):
    server.routes["/a"] = answer(PNG, f"{status} {SECRET.decode()}")
    outcome = remote(seconds=LONG).get(server.url("/a"))
    assert (outcome.status, outcome.lasting, outcome.path) == (FetchStatus.DEAD, lasting, None)
    assert outcome.reason == f"The server answered with status {status}."
    assert not kept(tmp_path)


def test_default_port_is_not_told_to_the_server(server, remote, monkeypatch):
    monkeypatch.setitem(DEFAULT_PORTS, "http", server.port)
    server.routes["/a"] = answer(PNG)
    assert remote(seconds=LONG).get("http://pictures.example/a").status is FetchStatus.FETCHED
    assert b"\r\nHost: pictures.example\r\n" in server.requests[0]


# ---- what a hostile one gives


def png_bomb(side):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (side // 8 + 1)) if side < 10_000 else b"", 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp_bomb():
    """An extended WebP whose canvas is 16,384 x 16,384."""
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16383).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


HEAD = answer(b"", length=False)
PNG_HEAD = PNG[:40]
DEAD, TOO_LARGE, NOT_A_PICTURE = FetchStatus.DEAD, FetchStatus.TOO_LARGE, FetchStatus.NOT_A_PICTURE
CHUNKED = answer(b"", "200 OK", "Transfer-Encoding: chunked", length=False)
BAD_ANSWERS = {
    # no end
    "endless body": (again_and_again(bytes(65536), first=HEAD + PNG_HEAD), TOO_LARGE),
    "endless body under a small length": (
        again_and_again(bytes(999), first=answer(length=50) + PNG_HEAD),
        NOT_A_PICTURE,
    ),
    "endless body under a negative length": (
        again_and_again(bytes(65536), first=answer(length=-1) + PNG_HEAD),
        TOO_LARGE,
    ),
    "endless chunks": (
        again_and_again(
            b"4000\r\n" + bytes(0x4000) + b"\r\n", first=CHUNKED + b"28\r\n" + PNG_HEAD + b"\r\n"
        ),
        TOO_LARGE,
    ),
    "endless chunks of one byte": (
        again_and_again(b"1\r\n\x00\r\n" * 9999, first=CHUNKED + b"28\r\n" + PNG_HEAD + b"\r\n"),
        TOO_LARGE,
    ),
    "one endless chunk": (
        again_and_again(bytes(65536), first=CHUNKED + b"f" * 12 + b"\r\n" + PNG_HEAD),
        TOO_LARGE,
    ),
    "a chunk of -1 bytes": (again_and_again(bytes(65536), first=CHUNKED + b"-1\r\n" + PNG_HEAD), TOO_LARGE),
    "a chunk of -5 bytes": (again_and_again(bytes(65536), first=CHUNKED + b"-5\r\n"), DEAD),
    "an endless chunk size": (again_and_again(b"0" * 65536, first=CHUNKED), DEAD),
    "an endless trailer": (
        again_and_again(b"X: y\r\n" * 9999, first=CHUNKED + b"28\r\n" + PNG_HEAD + b"\r\n0\r\n"),
        TOO_LARGE,
    ),
    "endless page": (again_and_again((b"<html>" + SECRET) * 999, first=HEAD), NOT_A_PICTURE),
    "endless headers": (again_and_again(b"X-A: " + SECRET + b"\r\n", first=b"HTTP/1.1 200 OK\r\n"), DEAD),
    "one endless header": (again_and_again(b"a" * 65536, first=b"HTTP/1.1 200 OK\r\nX-A: "), DEAD),
    "an endless status": (again_and_again(b"1" * 65536), DEAD),
    "endless interim answers": (again_and_again(b"HTTP/1.1 100 Continue\r\n\r\n" * 999), DEAD),
    # too much
    "a large body": (answer(PNG + bytes(300_000)), TOO_LARGE),
    "a large length": (silence_after(answer(length=300_001)), TOO_LARGE),
    "an absurd length": (silence_after(answer(length="9" * 60)), TOO_LARGE),
    "many headers": (answer(PNG, "200 OK", *(f"X-{i}: 1" for i in range(200))), DEAD),
    "large headers": (answer(PNG, "200 OK", *(f"X-{i}: {'a' * 4000}" for i in range(20))), DEAD),
    "a PNG of 16 million pixels": (answer(png_bomb(4096)), TOO_LARGE),
    "a PNG of 10^10 pixels": (answer(png_bomb(100_000)), TOO_LARGE),
    "a WebP of 268 million pixels": (answer(webp_bomb()), TOO_LARGE),
    "a GIF of 4 billion pixels": (
        answer(b"GIF89a\xff\xff\xff\xff" + encoded("GIF")[10:]),
        TOO_LARGE,
    ),
    # too little
    "nothing": (b"", DEAD),
    "half a status": (b"HTTP/1.1 2", DEAD),
    "half of the headers": (b"HTTP/1.1 200 OK\r\nContent-Le", DEAD),
    "no body": (answer(), DEAD),
    "a body shorter than its length": (answer(PNG, length=len(PNG) + 1), DEAD),
    "chunks that break off": (CHUNKED + b"28\r\n" + PNG_HEAD, DEAD),
    "half a PNG": (answer(PNG[: len(PNG) // 2]), NOT_A_PICTURE),
    "half a JPEG": (answer(encoded("JPEG", 64)[:900]), NOT_A_PICTURE),
    # another kind
    "no HTTP": (b"220 " + SECRET + b" ESMTP\r\n", DEAD),
    "HTTP/0.9": (PNG, DEAD),
    "HTTP/2": (b"HTTP/2 200\r\n\r\n" + PNG, DEAD),
    "a page that says it is a picture": (
        answer(b"<html>" + SECRET, "200 OK", "Content-Type: image/jpeg"),
        NOT_A_PICTURE,
    ),
    "SVG": (
        answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "200 OK", "Content-Type: image/svg+xml"),
        NOT_A_PICTURE,
    ),
    "BMP": (answer(encoded("BMP")), NOT_A_PICTURE),
    "TIFF": (answer(encoded("TIFF")), NOT_A_PICTURE),
    "PNG's first bytes only": (answer(b"\x89PNG\r\n\x1a\n" + SECRET * 50), NOT_A_PICTURE),
    "a gzip bomb": (
        answer(gzip.compress(PNG + bytes(5_000_000)), "200 OK", "Content-Encoding: gzip"),
        NOT_A_PICTURE,
    ),
    "a deflate bomb": (
        answer(zlib.compress(PNG + bytes(5_000_000)), "200 OK", "Content-Encoding: deflate"),
        NOT_A_PICTURE,
    ),
    "gzip in transfer": (
        answer(gzip.compress(PNG), "200 OK", "Transfer-Encoding: gzip, chunked"),
        NOT_A_PICTURE,
    ),
}
SLOW_ANSWERS = {
    "silence": silence_after(b""),
    "silence after the headers": silence_after(answer(length=100_000) + PNG_HEAD),
    "slow status": again_and_again(b"H", 0.05, first=b"HTTP/1.1 200 "),
    "slow headers": again_and_again(b"a", 0.05, first=b"HTTP/1.1 200 OK\r\nX-A: "),
    "slow body": again_and_again(b"a", 0.05, first=answer(length=100_000) + PNG_HEAD),
    "slow chunks": again_and_again(b"1\r\na\r\n", 0.05, first=CHUNKED),
    "slow interim answers": again_and_again(b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_hostile_answer_gives_no_picture(kind, server, remote, tmp_path):
    """Where a size ends it, it ends at once: the time that it may take is far longer."""
    server.routes["/a"], status = BAD_ANSWERS[kind]
    began = time.monotonic()
    outcome = remote(seconds=20).get(server.url("/a"))
    assert time.monotonic() - began < LONG
    assert (outcome.status, outcome.path, outcome.sha256) == (status, None, "")
    assert outcome.reason.endswith(".") and "\n" not in outcome.reason
    assert not kept(tmp_path)
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or SECRET not in path.read_bytes()


@pytest.mark.parametrize("kind", SLOW_ANSWERS)
def test_slow_answer_is_dead_when_its_time_is_over(kind, server, remote):
    """A byte comes often enough for every time-out of a socket."""
    server.routes["/a"] = SLOW_ANSWERS[kind]
    began = time.monotonic()
    outcome = remote().get(server.url("/a"))
    assert SECONDS <= time.monotonic() - began < LONG
    assert (outcome.status, outcome.lasting) == (DEAD, False) and "0.5 seconds" in outcome.reason


def test_limits_are_reached_by_the_largest_picture_and_not_by_a_byte_or_pixel_more(server, remote):
    data = encoded(side=20)
    for path, extra in (("/most", 0), ("/more", 1)):
        server.routes[path] = answer(data + bytes(extra), length=False)
    images = remote(seconds=LONG, max_bytes=len(data), max_pixels=400)
    assert images.get(server.url("/most")).status is FetchStatus.FETCHED
    assert images.get(server.url("/more")).status is FetchStatus.TOO_LARGE
    images = remote(seconds=LONG, max_pixels=399)
    server.routes["/wide"] = answer(data)
    assert images.get(server.url("/wide")).status is FetchStatus.TOO_LARGE


def test_animation_is_its_first_picture(server, remote):
    frames = [Image.new("P", (8, 8), value) for value in range(200)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    server.routes["/a"] = answer(stream.getvalue())
    fetched = remote(seconds=LONG, max_pixels=64).get(server.url("/a"))
    assert fetched.status is FetchStatus.FETCHED and decode(fetched.path).shape == (8, 8, 3)


# ---- redirects


@pytest.mark.parametrize(
    ("status", "location"),
    [
        ("301 Moved", "/b"),
        ("302 Found", "b"),
        ("303 See", "//{}/b"),
        ("307 Same", "http://{}/b"),
        ("308 Same", "?../b"),
        ("302 Found", "/b#fragment"),
    ],
)
def test_redirects_are_followed(status, location, server, remote):
    server.routes["/a"] = redirect(location.format(server.host), status)
    server.routes["/b"] = server.routes["/a?../b"] = answer(PNG)
    fetched = remote(seconds=LONG).get(server.url("/a"))
    assert (fetched.status, fetched.url) == (FetchStatus.FETCHED, server.url("/a"))


def test_five_redirects_and_no_more(server, remote):
    for number in range(9):
        server.routes[f"/{number}"] = redirect(f"/{number - 1}") if number else answer(PNG)
    server.routes["/loop"] = redirect("/loop")
    images = remote(seconds=LONG)
    assert images.get(server.url("/5")).status is FetchStatus.FETCHED
    assert images.get(server.url("/6")).status is FetchStatus.DEAD
    assert images.get(server.url("/loop")).status is FetchStatus.DEAD
    assert server.count("/loop") == 6


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/",
        "http://127.0.0.1/",
        "http://127.0.0.2:{port}/a",
        "//169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "https://192.168.0.1/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://127.0.0.1%00.example.com/",
        "http://localhost:{port}/",
        "http://user@127.0.0.1:{port}/a",
        "http://10.\t0.0.1/",
        "http://127.0.0.1:{port}\\@example.com/",
        "file:///etc/passwd",
        "ftp://127.0.0.1:{port}/a",
        "gopher://127.0.0.1:{port}/_x",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)",
        "//[",
        "http://" + "a" * 9000,
        "http://127.0.0.1:99999/",
        "http://secret-of-the-server.internal/",
    ],
)
def test_redirect_to_where_nothing_is_fetched_is_blocked(location, server, remote, connections):
    server.routes["/a"] = redirect(location.format(port=server.port))
    outcome = remote(seconds=LONG).get(server.url("/a"))
    assert outcome.status is FetchStatus.BLOCKED and "secret" not in outcome.reason
    assert outcome.reason.startswith("It leads on, and not to where pictures are fetched from: ")
    assert connections == [("127.0.0.1", server.port)] and len(server.requests) == 1


def test_time_is_counted_over_all_redirects(server, remote):
    for number in range(5):
        server.routes[f"/{number}"] = lambda connection, to=number + 1: time.sleep(0.15) or redirect(f"/{to}")
    server.routes["/5"] = answer(PNG)
    outcome = remote().get(server.url("/0"))
    assert outcome.status is FetchStatus.DEAD and "0.5 seconds" in outcome.reason


# ---- names


def test_name_is_looked_up_once_a_hop_so_rebinding_finds_nobody(server, remote, connections):
    """First answer as wanted, every later one private: pinned to the first, and blocked when asked anew."""
    asked = []

    def rebinding(host, port):
        asked.append((host, port))
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    server.routes["/a"] = answer(PNG)
    server.routes["/b"] = redirect(server.url("/a", "pictures.example"))
    assert (
        remote(seconds=LONG, resolve=rebinding).get(server.url("/a", "pictures.example")).status
        is FetchStatus.FETCHED
    )
    assert asked == [("pictures.example", server.port)]
    asked.clear()
    outcome = remote(seconds=LONG, resolve=rebinding).get(server.url("/b", "pictures.example"))
    assert outcome.status is FetchStatus.BLOCKED and len(asked) == 2
    assert connections == [("127.0.0.1", server.port)] * 2


def test_addresses_are_tried_in_turn(server, remote, connections):
    server.routes["/a"] = answer(PNG)
    images = remote(
        seconds=LONG,
        resolve=lambda host, port: ["127.0.0.2", "127.0.0.2", "127.0.0.1"],
        allowed=[f"127.0.0.2:{server.port}"],
    )
    assert images.get(server.url("/a", "pictures.example")).status is FetchStatus.FETCHED
    assert connections == [("127.0.0.2", server.port), ("127.0.0.1", server.port)]


def test_name_without_address_and_slow_name_server_are_dead(server, remote):
    def unknown(host, port):
        raise socket.gaierror(socket.EAI_NONAME, SECRET.decode())

    outcome = remote(resolve=unknown).get("http://gone.example.com/")
    assert (outcome.status, outcome.lasting) == (FetchStatus.DEAD, False) and "name" in outcome.reason
    never = threading.Event()
    began = time.monotonic()
    outcome = remote(resolve=lambda host, port: never.wait(20)).get("http://slow.example.com/")
    never.set()
    assert outcome.status is FetchStatus.DEAD and "0.5 seconds" in outcome.reason
    assert time.monotonic() - began < LONG


def test_closed_port_is_dead(server, remote):
    server.close()
    outcome = remote(seconds=LONG, allowed=["127.0.0.1:9"]).get("http://127.0.0.1:9/a.png")
    assert (outcome.status, outcome.lasting) == (FetchStatus.DEAD, False)


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for pictures.example, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate, and is not here")
    folder = tmp_path_factory.mktemp("certificate")
    names = ["-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example"]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-nodes", "-days", "2", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*new, *names, *files], check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Server(context)
    server.routes["/a"] = answer(PNG)
    yield server
    server.close()


def test_certificate_nobody_vouches_for_is_refused(tls_server, remote):
    images = remote(seconds=LONG, allowed=[tls_server.host])
    outcome = images.get(tls_server.url("/a", "pictures.example", "https"))
    assert outcome.status is FetchStatus.DEAD and "certificate" in outcome.reason
    assert not tls_server.requests


def test_certificate_is_checked_for_the_name_and_not_the_address(
    tls_server, server, remote, certificate, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    images = remote(seconds=LONG, allowed=[tls_server.host])
    assert images.get(tls_server.url("/a", "pictures.example", "https")).status is FetchStatus.FETCHED
    for name in ("others.example", "127.0.0.1"):
        outcome = images.get(tls_server.url("/a", name, "https"))
        assert outcome.status is FetchStatus.DEAD and "certificate" in outcome.reason
    assert len(tls_server.requests) == 1

    # what is endless or slow is so inside TLS, too
    tls_server.routes |= {"/endless": BAD_ANSWERS["endless body"][0], "/slow": SLOW_ANSWERS["slow headers"]}
    images = remote(allowed=[tls_server.host])
    for path, status in (("/endless", TOO_LARGE), ("/slow", DEAD)):
        assert images.get(tls_server.url(path, "pictures.example", "https")).status is status

    # and from https to http is followed
    server.routes["/b"] = answer(PNG)
    tls_server.routes["/b"] = redirect(server.url("/b"))
    assert images.get(tls_server.url("/b", "pictures.example", "https")).status is FetchStatus.FETCHED


def test_slow_handshake_is_dead_in_time(remote):
    """A record of 16 KB is announced, and comes a byte at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"

        def accept():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                again_and_again(b"\x00", 0.05, first=b"\x16\x03\x03\x40\x00")(connection)

        threading.Thread(target=accept, daemon=True).start()
        began = time.monotonic()
        outcome = remote(allowed=[host]).get(f"https://{host}/a")
    assert outcome.status is FetchStatus.DEAD and time.monotonic() - began < LONG


# ---- the cache


def test_picture_is_fetched_once_for_good(server, remote, tmp_path):
    server.routes["/a"] = server.routes["/b"] = answer(PNG)
    images = remote(seconds=LONG, retry_after=timedelta(0), retry_lasting_after=timedelta(0))
    assert images.known(server.url("/a")) is None and not server.requests
    first = images.get(server.url("/a"))
    again = remote(retry_after=timedelta(0), retry_lasting_after=timedelta(0))
    assert (
        images.get(server.url("/a")) == again.get(server.url("/a")) == again.known(server.url("/a")) == first
    )
    assert server.count("/a") == 1
    images.get(server.url("/b"))
    assert len(kept(tmp_path)) == 1 and images.bytes() == len(PNG)


def test_those_who_ask_at_once_share_one_request(server, remote):
    server.routes["/a"] = lambda connection: time.sleep(0.2) or answer(PNG)
    images = remote(seconds=LONG)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(images.get, [server.url("/a")] * 8))
    assert server.count("/a") == 1 and len(set(found)) == 1 and found[0].path.is_file()


@pytest.mark.parametrize("algorithm", ["md5", "sha256", "sha512"])
def test_picture_that_is_not_the_tables_is_kept_and_told(algorithm, server, remote):
    server.routes["/a"] = answer(PNG)
    right, wrong = hashlib.new(algorithm, PNG).hexdigest(), hashlib.new(algorithm, b"old").hexdigest()
    images = remote(seconds=LONG)
    for _ in range(2):
        changed = images.get(server.url("/a"), wrong)
        assert changed.status is FetchStatus.CHANGED and changed.path.read_bytes() == PNG
    assert images.known(server.url("/a")).status is FetchStatus.FETCHED  # nothing is expected by who asks now
    assert images.known(server.url("/a"), right.upper()).status is FetchStatus.FETCHED
    assert server.count("/a") == 1
    assert [outcome.status for outcome in images.history(server.url("/a"))] == [FetchStatus.FETCHED]


def test_what_an_earlier_version_compared_with_another_table_is_compared_anew(server, remote, tmp_path):
    server.routes["/a"] = answer(PNG)
    images = remote(seconds=LONG)
    fetched = images.get(server.url("/a"))
    with sqlite3.connect(next(tmp_path.rglob("outcomes.sqlite"))) as table:
        table.execute("UPDATE outcomes SET status = 'changed'")
    assert images.get(server.url("/a")) == fetched
    images.clean(0)
    assert images.known(server.url("/a")).status is FetchStatus.FETCHED


@pytest.mark.parametrize("expected", ["abc", "-6170412563017281475", "z" * 64, "é" * 32, "md5:" + "0" * 32])
def test_what_is_no_digest_is_refused(expected, server, remote):
    with pytest.raises(InputError, match="is no digest of a picture's bytes; give md5, sha256, sha512"):
        remote().get(server.url("/a"), expected)
    assert not server.requests


def test_dead_address_is_asked_again_when_its_time_has_come(server, remote):
    url = server.url("/a")
    server.routes["/a"] = answer(b"", "503 Busy")
    patient = remote(seconds=LONG)
    assert patient.get(url).status is patient.get(url).status is FetchStatus.DEAD
    assert server.count("/a") == 1
    server.routes["/a"] = answer(b"", "410 Gone")
    eager = remote(seconds=LONG, retry_after=timedelta(0))
    assert eager.get(url).lasting and eager.get(url).lasting
    assert server.count("/a") == 2
    server.routes["/a"] = answer(PNG)
    assert remote(seconds=LONG, retry_lasting_after=timedelta(0)).get(url).status is FetchStatus.FETCHED
    assert patient.get(url).status is FetchStatus.FETCHED and server.count("/a") == 3
    history = patient.history(url)
    assert [(outcome.status, outcome.lasting) for outcome in history] == [
        (FetchStatus.DEAD, False),
        (FetchStatus.DEAD, True),
        (FetchStatus.FETCHED, True),
    ]
    assert history[0].time < history[1].time < history[2].time


@pytest.mark.parametrize("harm", [b"", PNG[:-1], encoded(value=1), None])
def test_harmed_file_is_never_given_out(harm, server, remote, tmp_path):
    server.routes["/a"] = answer(PNG)
    images, url = remote(seconds=LONG), server.url("/a")
    path = images.get(url).path
    path.unlink() if harm is None else path.write_bytes(harm)
    known = images.known(url)
    assert (known.path, known.sha256) == (None, hashlib.sha256(PNG).hexdigest()) and "left" in known.reason
    assert not kept(tmp_path)
    assert images.get(url).path.read_bytes() == PNG and server.count("/a") == 2


KILLED = """
import os, sys
from pathlib import Path
from audit.corpus.addresses import DEFAULT_PORTS
from audit.corpus.cache import FetchedPictures
cache = FetchedPictures(Path(sys.argv[1]))
setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), 9))
cache.put(Path(sys.argv[3]).read_bytes())
"""


@pytest.mark.parametrize("instant", ["fsync", "replace"])
def test_killed_writer_leaves_nothing_that_counts(instant, tmp_path, server, remote):
    (tmp_path / "a.png").write_bytes(PNG)
    arguments = [str(tmp_path / "cache"), instant, str(tmp_path / "a.png")]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments]).returncode == -9
    images, left_over = remote(seconds=LONG), list((tmp_path / "cache" / "incoming").iterdir())
    assert len(left_over) == 1 and not kept(tmp_path) and images.bytes() == len(PNG)
    server.routes["/a"] = answer(PNG)
    assert images.get(server.url("/a")).path.read_bytes() == PNG
    assert images.clean(2 * len(PNG)) == 0 and left_over[0].exists()  # its writer may still be at work
    os.utime(left_over[0], (0, 0))
    assert images.clean(len(PNG)) == len(PNG)
    assert not left_over[0].exists() and len(kept(tmp_path)) == 1


def test_clean_up_removes_what_was_not_used_for_longest_and_keeps_outcomes(server, remote):
    pictures = [encoded("PNG", 20, value) for value in range(4)]
    images, urls = remote(seconds=LONG), [server.url(f"/{number}") for number in range(4)]
    for number, data in enumerate(pictures):
        server.routes[f"/{number}"] = answer(data)
        os.utime(images.get(urls[number]).path, (1000 + number, 1000 + number))
    assert images.known(urls[0]).path  # used just now
    freed = images.clean(len(pictures[0]) + len(pictures[3]))
    assert freed == len(pictures[1]) + len(pictures[2])
    assert images.bytes() == len(pictures[0]) + len(pictures[3])
    known = [images.known(url) for url in urls]
    assert [outcome.path is None for outcome in known] == [False, True, True, False]
    assert {outcome.status for outcome in known} == {FetchStatus.FETCHED}
    assert images.get(urls[1]).path and server.count("/1") == 2 and server.count("/0") == 1


def test_full_disk_is_one_sentence_and_no_outcome(server, remote, monkeypatch, tmp_path):
    server.routes["/a"] = answer(PNG)
    images = remote(seconds=LONG)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(InputError, match="cannot be written to \\(No space left on device\\)"):
            images.get(server.url("/a"))
    assert images.known(server.url("/a")) is None and images.bytes() == 0
    assert images.get(server.url("/a")).status is FetchStatus.FETCHED


@pytest.mark.parametrize("fault", ["a file", "no table", "another version"])
def test_unusable_cache_is_one_sentence(fault, tmp_path):
    folder = tmp_path / "cache"
    if fault == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        if fault == "no table":
            (folder / "outcomes.sqlite").write_bytes(b"no database at all " * 99)
        else:
            sqlite3.connect(folder / "outcomes.sqlite").execute("PRAGMA user_version = 7")
    with pytest.raises(InputError) as caught:
        FetchedPictures(folder)
    assert str(folder) in str(caught.value) and "another folder" in str(caught.value)


# ---- many at once


def test_many_come_as_they_arrive_each_once(server, remote):
    for number in range(6):
        server.routes[f"/{number}"] = answer(encoded(value=number))
    late = threading.Event()
    server.routes["/late"] = lambda connection: late.wait(20) and answer(PNG)
    server.routes["/gone"] = answer(b"", "404 Gone")
    images, counted = remote(seconds=20), []
    images.get(server.url("/5"))
    urls = [server.url(f"/{name}") for name in ("late", 0, 1, 2, "gone", 3, 4, 1, 5)] + ["file:///etc/passwd"]
    digests = {server.url("/3"): "0" * 32}
    found = []
    for outcome in images.get_many(urls, expected=digests, progress=lambda *place: counted.append(place)):
        found.append(outcome)
        if len(found) == 8:
            late.set()
    assert [outcome.url for outcome in (found[0], found[-1])] == [server.url("/5"), server.url("/late")]
    assert sorted(outcome.url for outcome in found) == sorted(set(urls))
    assert counted == [(place, 9) for place in range(1, 10)]
    statuses = {outcome.url.rpartition("/")[2]: outcome.status for outcome in found}
    assert statuses["gone"] is FetchStatus.DEAD and statuses["passwd"] is FetchStatus.BLOCKED
    assert statuses["3"] is FetchStatus.CHANGED
    assert all(server.count(f"/{number}") == 1 for number in range(6))


def test_hosts_and_everybody_together_have_their_limits(server, remote):
    names = [f"{name}.example.com" for name in "abcd"]
    for number in range(16):
        server.routes[f"/{number}"] = lambda connection: time.sleep(0.05) or answer(PNG)
    images = remote(seconds=LONG, connections=5, connections_per_host=2)
    urls = [server.url(f"/{number}", names[0]) for number in range(4)]
    assert {outcome.status for outcome in images.get_many(urls)} == {FetchStatus.FETCHED}
    assert server.most_open == 2
    server.most_open = 0
    urls = [server.url(f"/{number}", names[number % 4]) for number in range(4, 16)]
    assert {outcome.status for outcome in images.get_many(urls)} == {FetchStatus.FETCHED}
    assert 3 <= server.most_open <= 5
    server.most_open = 0
    urls = [server.url(f"/{number}?", "e.example.com") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert {outcome.status for outcome in pool.map(images.get, urls)} == {FetchStatus.FETCHED}
    assert server.most_open == 2
    server.most_open = 0
    urls = [server.url(f"/{number}?", f"{number}.example.com") for number in range(6, 15)]
    with ThreadPoolExecutor(9) as pool:
        assert {outcome.status for outcome in pool.map(images.get, urls)} == {FetchStatus.FETCHED}
    assert 3 <= server.most_open <= 5


def test_waiting_for_a_turn_is_not_counted_as_time(server, remote):
    for number in range(4):
        server.routes[f"/{number}"] = lambda connection: time.sleep(0.3) or answer(encoded())
    urls = [server.url(f"/{number}") for number in range(4)]
    images = remote(connections=1)
    with ThreadPoolExecutor(4) as pool:
        assert {outcome.status for outcome in pool.map(images.get, urls)} == {FetchStatus.FETCHED}


def test_many_can_be_stopped_and_gone_on_with(server, remote):
    for number in range(30):
        server.routes[f"/{number}"] = lambda connection: time.sleep(0.02) or answer(PNG)
    urls = [server.url(f"/{number}") for number in range(30)]
    images, came = remote(seconds=LONG), []
    with pytest.raises(Cancelled):
        for outcome in images.get_many(urls, cancelled=lambda: len(came) >= 3):
            came.append(outcome)
    assert 3 <= len(came) < 30
    assert len(list(images.get_many(urls))) == 30
    assert all(server.count(f"/{number}") == 1 for number in range(30))


def test_each_status_has_its_sentence():
    sentences = {status.sentence for status in FetchStatus}
    assert len(sentences) == len(FetchStatus) and all(text.endswith(".") for text in sentences)
    assert json.dumps(FetchStatus.TOO_LARGE) == '"too large"'
