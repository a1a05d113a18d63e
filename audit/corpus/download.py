"""One picture from the network: the address pinned, bytes, time and pixels capped, each redirect checked anew.

A host's name is looked up once for each hop; every address that comes back has to be public, and the connection goes
to one of just these, so that a second answer of the name server changes nothing. Requests carry no cookie and no
credentials, and go through no proxy, since that would look the name up again. What a server writes reaches nobody:
errors are sentences of ours.

From https to http is followed: nothing secret is sent, and half of such tables are http to begin with; whether the
picture is the one that was trained on is for its hash to say.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv6Address, ip_address
from typing import cast
from urllib.parse import urljoin

from PIL import Image

from audit.corpus.addresses import DEFAULT_PORTS, Address, Allowed, Blocked, Target, check, target
from audit.images import FORMATS, MAX_PIXELS, decode, unpacking

USER_AGENT = "Verbatim audit (training image check)"
REDIRECTS = 5
HEADER_BYTES = 65_536
"""All that may come before a picture's first byte, interim answers included."""
BLOCK = 65_536
SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}

Resolve = Callable[[str, int], list[str]]
"""Addresses of a host at a port, as text, at least one; raises socket.gaierror where there is none."""


class FetchStatus(StrEnum):
    """What came of asking for a picture."""

    FETCHED = "fetched"
    CHANGED = "changed"
    DEAD = "dead"
    BLOCKED = "blocked"
    TOO_LARGE = "too large"
    NOT_A_PICTURE = "not a picture"

    @property
    def sentence(self) -> str:
        """What it means, for people."""
        return SENTENCES[self]


SENTENCES = {
    FetchStatus.FETCHED: "The picture was fetched from its address.",
    FetchStatus.CHANGED: "A picture was fetched, but it is not the one that the training set's table describes.",
    FetchStatus.DEAD: "The address gives no picture any more, or gave none when it was asked.",
    FetchStatus.BLOCKED: "The address was not asked: it is not a safe public web address.",
    FetchStatus.TOO_LARGE: "The address gives more bytes or pixels than are fetched.",
    FetchStatus.NOT_A_PICTURE: "The address gives something that is no JPEG, PNG, WebP or GIF.",
}


class NotFetched(Exception):
    """Why there is no picture: a status, one sentence without a word of the server's, and whether it will last."""

    def __init__(self, status: FetchStatus, reason: str, *, lasting: bool = True):
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.lasting = lasting


@dataclass(frozen=True)
class Limits:
    """What one picture may take, and how hard servers are pressed."""

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    """A picture of so many takes 1.4 GB while it is decoded; no more are decoded at once (`audit.images.unpacking`)."""
    seconds: float = 15.0
    """For the whole of looking up, connecting, TLS, headers and body, redirects included; waiting for a turn is not."""
    connections: int = 8
    connections_per_host: int = 2


def resolve(host: str, port: int) -> list[str]:
    """The addresses that this machine's resolver knows for a host."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Downloader:
    """Asks for pictures, from as many threads as there are; `Limits` hold for all of them together."""

    def __init__(self, limits: Limits, allowed: Allowed = frozenset(), resolve: Resolve = resolve):
        self.limits = limits
        self.allowed = allowed
        self._resolve = resolve
        self._turns = _Turns(limits)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.sslsocket_class = _TlsWire
        return context

    def download(self, url: str) -> tuple[bytes, str]:
        """The bytes of a picture that can be decoded, just as they were sent, and their media type.

        Raises
        ------
        NotFetched
            If there is none to be had.
        """
        data = self._bytes(url)
        media_type = _media_type(data)
        with unpacking(data):
            _check_decodes(data, self.limits.max_pixels)
        return data, media_type

    def _bytes(self, url: str) -> bytes:
        left = self.limits.seconds
        for hop in range(REDIRECTS + 1):
            try:
                asked = target(url, self.allowed)
                with self._turns.turn(asked.host):
                    began = time.monotonic()
                    answer = self._ask(asked, began + left)
                    left -= time.monotonic() - began
            except Blocked as error:
                told = str(error)
                if hop:
                    told = f"It leads on, and not to where pictures are fetched from: {told[0].lower()}{told[1:]}"
                raise NotFetched(FetchStatus.BLOCKED, told) from error
            if isinstance(answer, bytes):
                return answer
            url = _joined(url, answer)
        raise NotFetched(FetchStatus.DEAD, f"It leads on more than {REDIRECTS} times.", lasting=False)

    def _ask(self, asked: Target, deadline: float) -> bytes | str:
        """The body of the answer, or where a redirect leads."""
        try:
            with contextlib.closing(self._connect(asked, deadline)) as wire:
                connection = _Connection(asked.host, asked.port)
                connection.default_port = DEFAULT_PORTS[asked.scheme]
                connection.sock = wire
                connection.request(
                    "GET", asked.path, headers={"User-Agent": USER_AGENT, "Connection": "close"}
                )
                with connection.getresponse() as response:
                    return _location(response) or self._body(response, wire)
        except TimeoutError as error:
            told = f"No whole answer came within {self.limits.seconds:g} seconds."
            raise NotFetched(FetchStatus.DEAD, told, lasting=False) from error
        except ssl.SSLCertVerificationError as error:
            told = "The server could not prove that it is this host (its certificate is not valid)."
            raise NotFetched(FetchStatus.DEAD, told, lasting=False) from error
        except Blocked:
            raise
        except (HTTPException, ValueError) as error:
            told = "The server's answer breaks the rules of HTTP, or breaks off."
            raise NotFetched(FetchStatus.DEAD, told, lasting=False) from error
        except OSError as error:
            told = "The connection could not be made, or broke."
            raise NotFetched(FetchStatus.DEAD, told, lasting=False) from error

    def _connect(self, asked: Target, deadline: float) -> _Wire:
        """A connection to one of the host's addresses, all of which have been checked."""
        addresses = [asked.address] if asked.address else self._addresses(asked, deadline)
        wire = _first_that_answers(addresses, asked.port, deadline)
        if asked.scheme == "https":
            wire.settimeout(_left(deadline))
            wire = cast(_TlsWire, self._tls.wrap_socket(wire, server_hostname=asked.host))
        wire.deadline = deadline
        wire.allowance = HEADER_BYTES
        return wire

    def _addresses(self, asked: Target, deadline: float) -> list[Address]:
        found: Future[list[str]] = Future()
        # the system's resolver has a patience of its own, and no call of it can be broken off
        threading.Thread(target=_settle, args=(found, self._resolve, asked), daemon=True).start()
        try:
            answers = found.result(_left(deadline))
        except (socket.gaierror, UnicodeError) as error:
            told = "The host has no address: its name is not known, or could not be looked up."
            raise NotFetched(FetchStatus.DEAD, told, lasting=False) from error
        addresses = list(dict.fromkeys(map(ip_address, answers)))
        check(addresses, asked.port, self.allowed)
        return addresses

    def _body(self, response: HTTPResponse, wire: _Wire) -> bytes:
        if response.status != 200:
            gone = response.status in (404, 410)
            raise NotFetched(
                FetchStatus.DEAD, f"The server answered with status {response.status}.", lasting=gone
            )
        if response.length is not None and response.length > self.limits.max_bytes:
            raise self._too_large()
        # chunks are announced in between; more than an eighth is no picture in chunks
        wire.allowance += self.limits.max_bytes + self.limits.max_bytes // 8
        data = bytearray()
        try:
            while block := response.read(BLOCK):
                data += block
                if len(data) > self.limits.max_bytes:
                    raise self._too_large()
                _media_type(data)
        except _AllowanceUsed as error:
            raise self._too_large() from error
        if response.length:
            raise HTTPException("The body is shorter than announced.")
        if not data:
            raise NotFetched(FetchStatus.DEAD, "The server's answer is empty.", lasting=False)
        return bytes(data)

    def _too_large(self) -> NotFetched:
        return NotFetched(
            FetchStatus.TOO_LARGE, f"The answer is larger than {self.limits.max_bytes:,} bytes."
        )


class _AllowanceUsed(HTTPException):
    """More bytes came than may come."""


class _Wire(socket.socket):
    """A socket on which every read ends at one deadline, and which gives no more than an allowance of bytes."""

    deadline: float
    allowance: int

    def recv_into(self, buffer, nbytes=0, flags=0) -> int:
        self.settimeout(_left(self.deadline))
        count = super().recv_into(buffer, nbytes, flags)
        self.allowance -= count
        if self.allowance < 0:
            raise _AllowanceUsed
        return count


class _TlsWire(_Wire, ssl.SSLSocket):
    """The same over TLS."""


class _Connection(HTTPConnection):
    """Speaks over the connection that it was given, and never makes one."""

    auto_open = 0


class _Turns:
    """Who may connect: so many at once, and so many to one host."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._taken: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self, host: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free(host))
            self._taken[host] += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken[host] -= 1
                self._taken += Counter()  # drops hosts at zero
                self._changed.notify_all()

    def _free(self, host: str) -> bool:
        return (
            self._taken.total() < self._limits.connections
            and self._taken[host] < self._limits.connections_per_host
        )


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _first_that_answers(addresses: list[Address], port: int, deadline: float) -> _Wire:
    """Each address has its share of the time that is left; the last one's error is raised."""
    *others, last = addresses
    for tried, address in enumerate(others):
        with contextlib.suppress(OSError):
            return _wire(address, port, _left(deadline) / (len(addresses) - tried))
    return _wire(last, port, _left(deadline))


def _wire(address: Address, port: int, seconds: float) -> _Wire:
    wire = _Wire(socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET)
    try:
        wire.settimeout(seconds)
        wire.connect((str(address), port))
    except BaseException:
        wire.close()
        raise
    return wire


def _settle(found: Future[list[str]], resolve: Resolve, asked: Target) -> None:
    try:
        found.set_result(resolve(asked.host, asked.port))
    except Exception as error:
        found.set_exception(error)


def _location(response: HTTPResponse) -> str | None:
    if response.status not in (301, 302, 303, 307, 308):
        return None
    return response.headers.get("Location", "").strip() or None


def _joined(url: str, location: str) -> str:
    """Where a redirect leads; raw bytes in it, which http.client gives as Latin-1, were meant as UTF-8."""
    with contextlib.suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError:
        return location


def _media_type(data: bytes | bytearray) -> str:
    """By the first bytes, whatever the server calls them; raises NotFetched where they begin no picture."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    for signature, media_type in SIGNATURES.items():
        if data.startswith(signature):
            return media_type
    raise NotFetched(FetchStatus.NOT_A_PICTURE, "What came is not a JPEG, PNG, WebP or GIF.")


def _check_decodes(data: bytes, max_pixels: int) -> None:
    """Raises NotFetched unless `audit.images.decode` can make a picture of no more than `max_pixels` of it."""
    limit = min(max_pixels, MAX_PIXELS)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            too_large = opened.width * opened.height > limit
        if not too_large:
            decode(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        too_large = True
    except Exception as error:  # decoders raise more kinds than they document on what was made to break them
        told = "What came is damaged and cannot be decoded."
        raise NotFetched(FetchStatus.NOT_A_PICTURE, told) from error
    if too_large:
        raise NotFetched(FetchStatus.TOO_LARGE, f"The picture has more than {limit:,} pixels.")
