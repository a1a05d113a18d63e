"""Pictures of a training set that knows only their addresses: from the cache, else safely from the network.

There is never a placeholder: either the bytes that an address gave, with the time and their sha256, or a status that
says why there are none.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from audit.corpus.addresses import allow_list
from audit.corpus.cache import Fetched, FetchedPictures
from audit.corpus.download import Downloader, FetchStatus, Limits, NotFetched, Resolve, resolve
from audit.corpus.hashes import ALGORITHMS, digest
from audit.errors import Cancelled, InputError

CHECK_SECONDS = 0.2
"""How often it is asked whether somebody stopped it."""
HERE = (FetchStatus.FETCHED, FetchStatus.CHANGED)


class RemoteImages:
    """Pictures by their addresses, for any number of threads; a context manager.

    Parameters
    ----------
    cache
        Folder in which pictures and outcomes are kept; made where it is missing.
    limits
        What one picture may take, and how hard servers are pressed.
    retry_after
        When an address that failed for a passing reason (no answer, an overloaded server) is asked again.
    retry_lasting_after
        The same for one that is gone (404, 410), is blocked, or gave too much or no picture.
    allowed_hosts
        Addresses with ports, such as ``10.0.0.7:8000`` for a mirror of one's own, that are asked although they are
        not public.
    resolve
        How a host's name is looked up.
    """

    def __init__(
        self,
        cache: Path,
        *,
        limits: Limits | None = None,
        retry_after: timedelta = timedelta(hours=1),
        retry_lasting_after: timedelta = timedelta(days=30),
        allowed_hosts: Iterable[str] = (),
        resolve: Resolve = resolve,
    ):
        self._limits = limits or Limits()
        self._retry_after = retry_after
        self._retry_lasting_after = retry_lasting_after
        self._downloader = Downloader(self._limits, allow_list(allowed_hosts), resolve)
        self._cache = FetchedPictures(cache)
        self._flights: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> RemoteImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the cache; what is still under way is lost."""
        self._cache.close()

    def get(self, url: str, expected: str | None = None) -> Fetched:
        """The picture at an address: from the cache, else the network, which is asked once for all that ask now.

        Parameters
        ----------
        expected
            What the training set's table says of the picture's bytes: md5, sha256 or sha512 in hex digits. LAION's
            integer column ``hash`` is none of these: it is made of the URL and the caption.

        Raises
        ------
        InputError
            If `expected` is no such digest, or the cache cannot be written to.
        """
        expected = _digest_of(expected)
        with self._lock:
            flight = self._flights.get(url)
            leads = flight is None
            if flight is None:
                flight = self._flights[url] = Future()
        if leads:
            try:
                self._bring_up_to_date(url)
                flight.set_result(None)
            except BaseException as error:
                flight.set_exception(error)
            finally:
                with self._lock:
                    del self._flights[url]
        flight.result()
        known = self.known(url, expected)
        assert known is not None
        return known

    def known(self, url: str, expected: str | None = None) -> Fetched | None:
        """What the cache knows of an address, however old; None where it was never asked. The network is not used."""
        expected = _digest_of(expected)
        outcome = self._cache.latest(url)
        if outcome is None or outcome.status not in HERE:
            return outcome
        found = self._cache.read(outcome.sha256)
        if found is None:
            gone = "It was fetched, but its bytes have left the cache since."
            return replace(outcome, status=FetchStatus.FETCHED, reason=gone)
        path, data = found
        return replace(_compared(outcome, data, expected), path=path)

    def current(self, url: str, expected: str | None = None) -> Fetched | None:
        """What the cache knows of an address; None where it should be asked, for the first time or again."""
        known = self.known(url, expected)
        if known is None or (known.status in HERE and known.path is None):
            return None
        patience = self._retry_lasting_after if known.lasting else self._retry_after
        asks_again = known.status not in HERE and datetime.now(UTC) - known.time >= patience
        return None if asks_again else known

    def get_many(
        self,
        urls: Sequence[str],
        *,
        expected: Mapping[str, str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Fetched]:
        """Each picture as soon as it is there, several asked for at a time: first those in the cache, in order.

        Parameters
        ----------
        urls
            One that occurs twice comes once.
        expected
            Digests by URL, as in `get`.
        progress
            Called with (pictures done, pictures).
        cancelled
            Asked several times a second.

        Raises
        ------
        Cancelled
            When `cancelled` says so; what is under way is finished, into the cache.
        """
        digests = {url: _digest_of(told) for url, told in (expected or {}).items()}
        wanted = list(dict.fromkeys(urls))
        places = itertools.count(1)

        def told(outcome: Fetched) -> Fetched:
            if progress:
                progress(next(places), len(wanted))
            return outcome

        def check() -> None:
            if cancelled is not None and cancelled():
                raise Cancelled("Stopped before every picture had come; those that did are kept.")

        queue = _ByHost(self._limits.connections_per_host)
        for url in wanted:
            check()
            if outcome := self.current(url, digests.get(url)):
                yield told(outcome)
            else:
                queue.put(url)
        pool = ThreadPoolExecutor(self._limits.connections)
        running: dict[Future[Fetched], str] = {}
        try:
            while True:
                while len(running) < self._limits.connections and (url := queue.take()) is not None:
                    running[pool.submit(self.get, url, digests.get(url))] = url
                if not running:
                    return
                finished, _ = wait(running, CHECK_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    queue.finished(running.pop(future))
                    yield told(future.result())
                check()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def history(self, url: str) -> list[Fetched]:
        """Every time an address was asked, oldest first: when it was alive, when dead, and with which bytes."""
        return self._cache.history(url)

    def bytes(self) -> int:
        """Disk that the pictures take."""
        return self._cache.bytes()

    def clean(self, quota: int) -> int:
        """Remove the pictures that were not asked for longest until the rest takes `quota` bytes; bytes set free.

        What came of asking is kept, and a picture that is asked for again is fetched again.
        """
        return self._cache.clean(quota)

    def _bring_up_to_date(self, url: str) -> None:
        if self.current(url):
            return
        try:
            data, media_type = self._downloader.download(url)
        except NotFetched as error:
            self._cache.record(
                Fetched(url, error.status, error.reason, datetime.now(UTC), lasting=error.lasting)
            )
            return
        name, status = self._cache.put(data), FetchStatus.FETCHED
        fetched = Fetched(url, status, status.sentence, datetime.now(UTC), name, len(data), media_type)
        # whether it is the one that a table describes is for who asks with that table
        self._cache.record(fetched)


class _ByHost:
    """Addresses that wait for their turn: hosts one after the other, each with no more than so many at a time."""

    def __init__(self, per_host: int):
        self._per_host = per_host
        self._waiting: dict[str, deque[str]] = {}
        self._running: Counter[str] = Counter()
        self._ready: deque[str] = deque()
        """Hosts with an address that may be asked now, each once."""

    def put(self, url: str) -> None:
        host = _host(url)
        if host not in self._waiting:
            self._waiting[host] = deque()
            self._ready.append(host)
        self._waiting[host].append(url)

    def take(self) -> str | None:
        if not self._ready:
            return None
        host = self._ready.popleft()
        url = self._waiting[host].popleft()
        self._running[host] += 1
        if self._waiting[host] and self._running[host] < self._per_host:
            self._ready.append(host)
        return url

    def finished(self, url: str) -> None:
        host = _host(url)
        if self._waiting[host] and self._running[host] == self._per_host:
            self._ready.append(host)
        self._running[host] -= 1


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def digests(described: Mapping[str, str]) -> dict[str, str]:
    """Those of a table's hashes by URL that are digests of bytes; others, and URLs without one, are left out."""
    return {url: known for url, told in described.items() if (known := digest(told))}


def _digest_of(expected: str | None) -> str | None:
    """A digest in lower-case hex, or None where there is none."""
    if not expected:
        return None
    found = digest(expected)
    if not found:
        raise InputError(
            f"{expected!r} is no digest of a picture's bytes; "
            f"give {', '.join(ALGORITHMS.values())} in hex digits, or none."
        )
    return found


def _compared(fetched: Fetched, data: bytes, expected: str | None) -> Fetched:
    """Whether the picture is the one that the table describes; fetched it is, where there is nothing to compare.

    Earlier versions recorded what came of comparing with the table that asked first.
    """
    same = (
        expected is None
        or hashlib.new(ALGORITHMS[len(expected)], data, usedforsecurity=False).hexdigest() == expected
    )
    status = FetchStatus.FETCHED if same else FetchStatus.CHANGED
    return replace(fetched, status=status, reason=status.sentence)
