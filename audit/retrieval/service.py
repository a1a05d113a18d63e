"""A training set behind a running clip-retrieval back end (Beaumont 2022), searched over HTTP by vectors of our own.

What filters and re-ranks there by default (safety, violence, deduplication, aesthetics) is switched off in so many
words with every query: in this trade the duplicates are the evidence. `ServiceIndex.ask` gives what was sent beside
what came back.

What such a service cannot tell: which captions it has, whether a search is exact (the back end's own index decides),
with which embedder its vectors were made, and what its pictures are called where its metadata has no ``image_id``.
It returns the columns that it was started for (``--columns_to_return``); for attribution and exact duplicates it
needs ``image_id, author, licence, source, sha256`` among them.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from socket import SHUT_RDWR, socket
from threading import Lock, Timer
from typing import Any

import numpy as np
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Url, parse_url

from audit.corpus.hashes import digest
from audit.corpus.reader import Row, row_of
from audit.corpus.stored import Root, within
from audit.errors import InputError
from audit.records import Neighbour, readable
from audit.retrieval.base import fitting, neighbour

KNN = "/knn-service"
METADATA = "/metadata"
INDICES = "/indices-list"
SECONDS = 60.0
"""For one answer, from the first byte sent to the last received: an index of billions on disk takes seconds."""
CONNECT_SECONDS = 10.0
MAX_BYTES = 64 * 2**20
"""Of one answer: the back end puts each picture that it has at hand into it, in base64."""
SLACK = 0.05
"""By how much an inner product may exceed 1: quantised vectors are not exactly of unit norm."""
REMEMBERED = 100_000
"""Rows kept of what was answered, to name them again; the least recently used goes first."""
MOST_ROWS = 2**40
SAMPLED = 16
"""Rows that stand for all in the hash of an index."""


@dataclass(frozen=True)
class Sent:
    """One query, as the back end got it; a vector stands as the sha256 of its float32 values."""

    address: str
    indice_name: str
    num_images: int
    num_result_ids: int
    embedding_sha256: str
    modality: str = "image"
    deduplicate: bool = False
    use_safety_model: bool = False
    use_violence_detector: bool = False
    use_mclip: bool = False
    aesthetic_score: str = ""
    aesthetic_weight: str = ""

    def body(self, vector: np.ndarray) -> dict[str, Any]:
        """The JSON of the request: all fields but the address and the hash, and the query itself."""
        fields = asdict(self)
        del fields["address"], fields["embedding_sha256"]
        return fields | {"embedding_input": vector.tolist()}


@dataclass(frozen=True)
class Answer:
    """What was asked and what came back."""

    sent: Sent
    neighbours: list[Neighbour]
    """Most similar first; fewer than asked for where the back end's approximate index found no more."""


class ServiceIndex:
    """One of the indices of a clip-retrieval back end; `ServiceIndex.open` makes one."""

    exact: bool | None = None
    """Whether a search compares with every vector: this one does not say."""
    folder: Path | None = None
    rows: Sequence[Row] | None = None
    """It lies elsewhere, and lists nothing."""
    embedder_name: str | None = None
    embedder_sha256: str | None = None
    """What made its vectors it doesn't say."""

    def __init__(
        self,
        address: str,
        indice_name: str,
        *,
        dimensions: int,
        size: int,
        root: Root | None,
    ):
        self.address = address
        self.indice_name = indice_name
        self.name = f"{address} ({indice_name})"
        self.dimensions = dimensions
        self.size = size
        self._root = root
        self._seen: OrderedDict[str, tuple[int, Row]] = OrderedDict()
        self._lock = Lock()
        self._sha256: str | None = None

    @classmethod
    def open(
        cls,
        address: str,
        *,
        dimensions: int,
        indice_name: str | None = None,
        root: Root | None = None,
    ) -> ServiceIndex:
        """Ask a back end for its indices, their number of rows, and whether vectors of this length fit.

        Parameters
        ----------
        address
            ``http://HOST:PORT`` or ``https://...`` of the back end, typed by whoever runs this.
        dimensions
            Length of the vectors: the embedder's.
        indice_name
            Which of its indices; may be left out where it has one.
        root
            Folder here that its ``image_path`` starts from; without one its pictures come from their URLs only.

        Raises
        ------
        InputError
            If the address is none, nothing answers there, or it answers otherwise than a back end.
        """
        address = checked_address(address)
        names = indices(address)
        if indice_name is None and len(names) == 1:
            indice_name = names[0]
        if indice_name not in names:
            wanted = "several indices" if indice_name is None else f"no index {indice_name!r}"
            raise InputError(f"The service {address} has {wanted}; take one of: {_shown(names)}.")
        index = cls(
            address,
            indice_name,
            dimensions=dimensions,
            size=_count(address, indice_name),
            root=root,
        )
        index.search(np.eye(1, dimensions, dtype=np.float32), 1)
        return index

    def __len__(self) -> int:
        return self.size

    def __contains__(self, image_id: object) -> bool:
        """Whether a search has found a picture of this name before; it cannot be asked for."""
        with self._lock:
            return image_id in self._seen

    @property
    def described(self) -> str:
        """How it searches, in words."""
        return (
            "clip-retrieval service: by its own index, exact or approximate it does not say; its filters off"
        )

    @property
    def sha256(self) -> str:
        """Hex sha256 over its address, its size and `SAMPLED` of its rows: not over all that it holds."""
        if self._sha256 is None:
            # the back end orders its columns anew at each start
            told = json.dumps([self.address, self.indice_name, self.size, self._sample()], sort_keys=True)
            self._sha256 = hashlib.sha256(told.encode()).hexdigest()
        return self._sha256

    @property
    def provenance(self) -> dict[str, object]:
        """For a run or an exhibit: where was searched, and what holds for every query."""
        fields = asdict(Sent(self.address, self.indice_name, 0, 0, ""))
        for name in ("num_images", "num_result_ids", "embedding_sha256"):
            del fields[name]
        return {
            "engine": "clip-retrieval",
            "images": self.size,
            "images_from": "asked row by row",
            "exact": self.exact,
        } | fields

    def search(self, vectors: np.ndarray, k: int) -> list[list[Neighbour]]:
        """The `k` nearest rows for each of (n, dimensions) unit vectors, most similar first."""
        return [answer.neighbours for answer in self.ask(vectors, k)]

    def ask(self, vectors: np.ndarray, k: int) -> list[Answer]:
        """`search`, with what was sent for each vector.

        Raises
        ------
        InputError
            If vectors or `k` are unfit, the service fails, or its answer is none: too long, too late, no list of
            rows, a row without ``id`` or twice, similarities that are no cosines or do not descend.
        """
        vectors = fitting(vectors, self)
        if not np.isfinite(vectors).all():
            raise InputError(
                "A vector to search for holds values that are no numbers; embed the picture again."
            )
        return [self._ask(vector, k) for vector in vectors]

    def row(self, image_id: str) -> Row:
        """A row that a search has found before; the service looks up no names."""
        with self._lock:
            if image_id in self._seen:
                self._seen.move_to_end(image_id)
                return self._seen[image_id][1]
        raise InputError(
            f"The service {self.name} finds pictures by vectors only, and {image_id[:80]!r} was in none of its "
            "answers so far; search for it first."
        )

    def by_caption(self, text: str) -> list[Row] | None:
        """None: the service looks up no captions."""
        return None

    def duplicates(self, image_id: str) -> set[str]:
        """Names of the pictures found so far whose files are equal, byte for byte, to this one's."""
        with self._lock:
            found = self._seen.get(image_id)
            if found is None or not digest(found[1].sha256):
                return set()
            same = {name for name, (_, row) in self._seen.items() if row.sha256 == found[1].sha256}
        return same - {image_id}

    def _sample(self) -> list[object]:
        """Rows spread evenly over it, with their places."""
        places = sorted({place * (self.size - 1) // (SAMPLED - 1) for place in range(SAMPLED)})
        rows = _json(self.address, METADATA, {"ids": places, "indice_name": self.indice_name})
        if not isinstance(rows, list) or [row.get("id") for row in rows if isinstance(row, dict)] != places:
            raise InputError(
                f"The service {self.name} does not give the rows that it is asked for; check its number of images."
            )
        return rows

    def _ask(self, vector: np.ndarray, k: int) -> Answer:
        if k < 1:
            raise InputError(f"{k} neighbours were asked for; ask for at least 1.")
        sent = Sent(self.address, self.indice_name, k, k, hashlib.sha256(vector.tobytes()).hexdigest())
        answer = self._checked(_json(self.address, KNN, sent.body(vector)), k)
        rows = [self._row(values) for values in answer]
        self._remember(rows, [values["id"] for values in answer])
        hits = zip(rows, answer, strict=True)
        return Answer(
            sent,
            [neighbour(row, float(values["similarity"]), rank) for rank, (row, values) in enumerate(hits)],
        )

    def _checked(self, answer: object, k: int) -> list[dict]:
        """The rows of an answer, once each of them is one."""
        if not isinstance(answer, list) or not all(isinstance(values, dict) for values in answer):
            raise self._unfit("no list of rows")
        if len(answer) > k:
            raise self._unfit(f"{len(answer)} rows where {k} were asked for")
        ids = [values.get("id") for values in answer]
        if not all(isinstance(place, int) and not isinstance(place, bool) for place in ids):
            raise self._unfit("a row without the number that names it")
        if not all(0 <= place < self.size for place in ids):
            raise self._unfit(f"a row beyond the {self.size:,} that it is said to hold")
        if len(set(ids)) < len(ids):
            raise self._unfit("one row twice")
        similarities = [values.get("similarity") for values in answer]
        if not all(type(value) in (int, float) and abs(value) <= 1 + SLACK for value in similarities):
            raise self._unfit("a similarity that is no cosine in [-1, 1]")
        if any(first < second for first, second in pairwise(similarities)):
            raise self._unfit("similarities that do not descend")
        return answer

    def _unfit(self, what: str) -> InputError:
        return InputError(
            f"The service {self.name} answered a search with {what}; give a clip-retrieval back end whose index "
            "holds inner products of unit vectors."
        )

    def _row(self, values: dict) -> Row:
        """A row, named as `audit.retrieval.index` names those of such a folder."""
        texts = {name: readable(value) for name, value in values.items() if isinstance(value, str)}
        path = texts.get("image_path", "")
        return row_of(
            values | texts,
            image_id=_named(values | texts) or Path(path).stem or str(values["id"]),
            path=within(self._root, path),
            member=texts.get("member", ""),
        )

    def _remember(self, rows: Sequence[Row], places: Sequence[int]) -> None:
        with self._lock:
            for place, row in zip(places, rows, strict=True):
                if self._seen.get(row.image_id, (place,))[0] != place:
                    raise InputError(
                        f"The service {self.name} has two rows named {row.image_id[:80]!r}; let it return a column "
                        "image_id that is different for each picture."
                    )
                self._seen[row.image_id] = place, row
                self._seen.move_to_end(row.image_id)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)


def checked_address(address: str) -> str:
    """The back end's address without what people paste along with it.

    Raises
    ------
    InputError
        If it is no http or https address of a host, or holds a password, a query or a fragment.
    """
    try:
        url = parse_url(address.strip())
    except HTTPError as error:
        raise InputError(f"{address[:200]!r} is no address; give http://HOST:PORT.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{address[:200]!r} is no address of a service; give http://HOST:PORT.")
    if url.auth or url.query is not None or url.fragment is not None:
        raise InputError(
            f"The address of the service at {url.host} holds a user name, a query or a fragment, which would end up "
            "in records; give http://HOST:PORT alone."
        )
    path = (url.path or "").rstrip("/").removesuffix(KNN)
    return Url(url.scheme, host=url.host, port=url.port, path=path or None).url


def indices(address: str) -> list[str]:
    """Names of the indices that a back end serves."""
    names = _json(address, INDICES)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"The service {address} lists no indices; give the address of a clip-retrieval back end."
        )
    return names


def _shown(names: Sequence[str]) -> str:
    """Names that are plain words, the first ten: an answer's text is not passed on."""
    plain = [name for name in names if re.fullmatch(r"[\w.-]{1,64}", name)]
    return ", ".join(plain[:10]) or "none has a plain name"


def _count(address: str, indice_name: str) -> int:
    """Number of rows of a back end's metadata, by doubling and halving: there is no request that tells it."""

    def there(place: int) -> bool:
        status, answer = _exchange(address, METADATA, {"ids": [place], "indice_name": indice_name})
        if status not in (200, 500):  # 500 is what it says to a row beyond the last
            raise _refused(address, METADATA, status)
        rows = _parsed(address, METADATA, answer) if status == 200 else []
        return (
            isinstance(rows, list)
            and len(rows) == 1
            and isinstance(rows[0], dict)
            and rows[0].get("id") == place
        )

    low, high = -1, 0
    while high < MOST_ROWS and there(high):
        low, high = high, 2 * high + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if there(middle) else (low, middle)
    # a failure by chance looks like a row beyond the last
    if low < 0 or high >= MOST_ROWS or there(high):
        raise InputError(f"The service {address} does not tell how many images it holds; start it again.")
    return high


def _json(address: str, path: str, body: dict | None = None) -> object:
    status, answer = _exchange(address, path, body)
    if status != 200:
        raise _refused(address, path, status)
    return _parsed(address, path, answer)


def _refused(address: str, path: str, status: int) -> InputError:
    return InputError(
        f"The service {address} answered {path} with HTTP {status}; check that it is a clip-retrieval back end, and "
        "that its index holds vectors of this length."
    )


def _parsed(address: str, path: str, answer: bytes) -> object:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"The service {address} answered {path} with something that is not JSON; give the address of a "
            "clip-retrieval back end."
        ) from error


def _exchange(address: str, path: str, body: dict | None) -> tuple[int, bytes]:
    """Status and body of one request, in at most `SECONDS` and `MAX_BYTES`; redirects are not followed."""
    url = parse_url(address)
    late: list[bool] = []
    try:
        with closing(_connection(url)) as connection:
            connection.connect()
            stream = connection.sock
            assert stream is not None
            stream.settimeout(SECONDS)
            # each byte in its time can still make hours
            watch = Timer(SECONDS, _cut, (stream, late))
            watch.start()
            try:
                status, answer = _reply(connection, (url.path or "") + path, body)
            finally:
                watch.cancel()
    except (HTTPError, HTTPException, OSError) as error:
        raise _unanswered(address, path, late) from error
    if late:
        raise _unanswered(address, path, late)
    if len(answer) > MAX_BYTES:
        raise InputError(
            f"The service {address} answered {path} with more than {MAX_BYTES // 2**20} MiB; ask for fewer neighbours, "
            "or start it without image_path among its columns_to_return."
        )
    return status, answer


def _reply(connection: HTTPConnection, path: str, body: dict | None) -> tuple[int, bytes]:
    """Status and body, the body broken off once it exceeds `MAX_BYTES`."""
    # an encoding would only be one more thing that can be a bomb
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(body, allow_nan=False).encode()
    method = "GET" if body is None else "POST"
    connection.request(method, path, data, headers, preload_content=False, decode_content=False)
    with closing(connection.getresponse()) as response:
        received = bytearray()
        for chunk in response.stream(65536, decode_content=False):
            received += chunk
            if len(received) > MAX_BYTES:
                break
        return response.status, bytes(received)


def _cut(stream: socket, late: list[bool]) -> None:
    late.append(True)
    with suppress(OSError):  # the other side may have gone by itself
        stream.shutdown(SHUT_RDWR)


def _unanswered(address: str, path: str, late: Sequence[bool]) -> InputError:
    if late:
        return InputError(
            f"The service {address} did not answer {path} within {SECONDS:g} seconds; look whether it is overloaded."
        )
    return InputError(f"The service {address} cannot be reached or broke off; start it, or mend the address.")


def _connection(url: Url) -> HTTPConnection:
    host = (url.host or "").strip("[]")
    if url.scheme == "https":
        context = ssl.create_default_context()
        return HTTPSConnection(host, url.port, timeout=CONNECT_SECONDS, ssl_context=context)
    return HTTPConnection(host, url.port, timeout=CONNECT_SECONDS)


def _named(values: dict) -> str:
    """The name that the metadata gives a row, if any; gaps in the back end's table come as NaN."""
    name = values.get("image_id")
    return "" if name is None or name != name else str(name)
