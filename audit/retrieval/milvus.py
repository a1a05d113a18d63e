"""A training set in Milvus (Wang et al. 2021): a cluster by address, or Milvus Lite embedded, a ``NAME.db`` folder.

::

    COLLECTION        one entity a training picture: its vector, and its row's columns
    COLLECTION_about  one entity: which embedder, how many pictures, how far a build has come

A picture's key is the hash of its name, so that a build that was interrupted writes nothing twice. Names, captions and
files are looked up by their hashes and compared afterwards: no text of theirs ever stands in an expression.

Milvus Lite serves one process at a time, and looks at each entity's key in every search: its time grows with the
set. While it is open it listens on a loopback port that asks for no password.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from audit.corpus.hashes import digest
from audit.corpus.reader import Row, row_of
from audit.corpus.roots import mark_built, root_of
from audit.corpus.stored import Root, within
from audit.errors import InputError
from audit.records import Neighbour, caption_id, readable
from audit.retrieval.base import fitting, neighbour

if TYPE_CHECKING:
    from pymilvus import MilvusClient

LITE = ".db"
COLLECTION = "training_images"
TEXTS = ("image_id", "image_path", "member", "caption", "title", "keywords", "author", "licence")
TEXTS += ("source", "url", "family", "sha256", "md5")
HASHES = {"caption_id": 16, "sha256_id": 16}
"""Looked up through an inverted index; the number of hex digits."""
KEY = 32
"""Hex digits of the hash that stands for a picture's name: by chance no two of billions are equal."""
MAX_TEXT = 65_535
"""Bytes of a text that Milvus holds."""
MAX_NEIGHBOURS = 16_384
"""That Milvus gives to one search or query."""
BATCH = 500
TOGETHER = 32
"""Vectors searched for in one request: an answer has to stay below the 64 MB that a cluster sends."""
EXACT = 1_000_000
"""Pictures up to which every vector is compared with."""
GRAPH = {"M": 32, "efConstruction": 200}
"""HNSW (Malkov and Yashunin 2018) for more."""
BREADTH = 400
"""Candidates that a search of the graph keeps, or four for each neighbour asked for."""
SECONDS = 60.0

Progress = Callable[[int], None]


@dataclass(frozen=True)
class About:
    """What a collection holds, and how far its build has come."""

    embedder: str | None
    embedder_sha256: str | None
    dimensions: int
    source: str
    """The folder that ``image_path`` starts from, as seen from where the build ran."""
    count: int
    """Pictures written so far."""
    sha256: str
    """Over the names and files of these, in order, as `audit.retrieval.index.Index.sha256`."""
    finished: bool

    @property
    def told(self) -> bytes:
        """All of it, as the companion keeps it."""
        return json.dumps(vars(self)).encode()


def build(
    parts: Iterable[tuple[Sequence[Row], np.ndarray]],
    uri: str,
    collection: str = COLLECTION,
    *,
    source: Path,
    embedder_name: str | None,
    embedder_sha256: str | None,
    token: str = "",
    index_type: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a training set into a collection, and return the number of its pictures.

    An interrupted build goes on where it was; a finished one is only compared.

    Parameters
    ----------
    parts
        Rows and their (n, dimensions) unit vectors, in an order that stays the same (`sliced` makes them of an index).
    uri
        ``http://HOST:PORT`` of a cluster, or a path ``NAME.db`` for Milvus Lite.
    source
        Folder of the pictures; paths are stored as seen from there.
    index_type
        ``FLAT`` compares with every vector, ``HNSW`` with few; FLAT up to `EXACT` pictures by default.

    Raises
    ------
    InputError
        If Milvus is not installed or not to be reached, the collection holds another training set, two rows have one
        name, or a row does not fit.
    """
    if index_type not in (None, "FLAT", "HNSW"):
        raise InputError(f"There is no index of type {index_type!r} here; take FLAT or HNSW.")
    with _Connection(uri, collection, token, create=True) as milvus:
        return _Build(milvus, Path(source), embedder_name, embedder_sha256).run(parts, index_type, progress)


def sliced(rows: Sequence[Row], vectors: np.ndarray) -> Iterator[tuple[Sequence[Row], np.ndarray]]:
    """An index's rows and vectors in parts."""
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH], vectors[start : start + BATCH]


class _Build:
    def __init__(
        self, milvus: _Connection, source: Path, embedder_name: str | None, embedder_sha256: str | None
    ):
        self._milvus = milvus
        self._source = Path(os.path.abspath(source))
        self._embedder = (embedder_name, embedder_sha256)
        self._digest = hashlib.sha256()
        self._done = 0
        self._dimensions = 0

    def run(
        self,
        parts: Iterable[tuple[Sequence[Row], np.ndarray]],
        index_type: str | None,
        progress: Progress | None,
    ) -> int:
        before = self._milvus.about()
        self._check_embedder(before)
        for rows, vectors in _batches(parts):
            self._take(rows, vectors, before)
            if progress:
                progress(self._done)
        if not self._done:
            raise InputError("There is no picture to write into Milvus; give a training set that has some.")
        if before is not None and before.count > self._done:
            raise self._other(before)
        if before is None or not before.finished:
            self._finish(index_type)
        return self._done

    def _check_embedder(self, before: About | None) -> None:
        if before and (before.embedder_sha256 or before.embedder) != (self._embedder[1] or self._embedder[0]):
            raise InputError(
                f"The collection {self._milvus.name} holds vectors of the embedder {before.embedder}, not of "
                f"{self._embedder[0]}; give another collection."
            )

    def _take(self, rows: Sequence[Row], vectors: np.ndarray, before: About | None) -> None:
        """Write a batch that is not there yet; compare the names of one that is."""
        self._check(rows, vectors)
        if before is None and not self._done:
            self._milvus.create(self._dimensions)
        for row in rows:
            line = f"{row.image_id} {row.sha256 or row.path.name}"
            self._digest.update(("\n" * bool(self._done) + line).encode("utf-8", "surrogatepass"))
            self._done += 1
            if before and self._done == before.count and self._digest.hexdigest() != before.sha256:
                raise self._other(before)
        if before and before.finished:
            if self._done > before.count:
                raise self._other(before)
        elif before is None or self._done > before.count:
            self._milvus.upsert(list(map(self._entity, rows, vectors)))
            self._milvus.put(self._about(finished=False))

    def _check(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        self._dimensions = self._dimensions or vectors.shape[1]
        if len(rows) != len(vectors) or vectors.shape[1:] != (self._dimensions,):
            raise InputError(
                f"{len(rows)} rows came with vectors of shape {vectors.shape}; give one of {self._dimensions} "
                "dimensions for each row."
            )
        if not np.isfinite(vectors).all():
            raise InputError("A vector holds values that are no numbers; embed the pictures again.")

    def _entity(self, row: Row, vector: np.ndarray) -> dict[str, Any]:
        values = {name: readable(getattr(row, name)) for name in TEXTS if name != "image_path"}
        values["image_path"] = self._path(row)
        for name, text in values.items():
            if len(text.encode()) > MAX_TEXT:
                raise InputError(
                    f"The {name} of {row.image_id[:80]} has more than the {MAX_TEXT:,} bytes that Milvus holds; "
                    "shorten it."
                )
        values |= {"caption_id": caption_id(row.caption), "sha256_id": _hash(row.sha256, HASHES["sha256_id"])}
        return values | {"image_key": _hash(row.image_id, KEY), "vector": vector}

    def _path(self, row: Row) -> str:
        if row.path == Path():
            return ""
        path = Path(os.path.abspath(row.path))
        if not path.is_relative_to(self._source):
            raise InputError(
                f"The picture {path} does not lie in {self._source}; give the folder of the training set."
            )
        return str(path.relative_to(self._source))

    def _about(self, *, finished: bool) -> About:
        name, sha256 = self._embedder
        digest = self._digest.hexdigest()
        return About(name, sha256, self._dimensions, str(self._source), self._done, digest, finished)

    def _finish(self, index_type: str | None) -> None:
        """Index what was written, and count it."""
        self._milvus.flush()
        self._milvus.index(index_type or ("FLAT" if self._done <= EXACT else "HNSW"))
        self._milvus.load()
        found = self._milvus.count()
        if found != self._done:
            raise InputError(
                f"Of {self._done:,} pictures {found:,} are in the collection {self._milvus.name}: others share their "
                "names; give each picture its own image_id, and build another collection."
            )
        about = self._about(finished=True)
        self._milvus.put(about)
        mark_built(about.told, self._source)

    def _other(self, before: About) -> InputError:
        return InputError(
            f"The collection {self._milvus.name} holds {before.count:,} pictures of another training set; give "
            "another collection, or drop this one."
        )


class MilvusIndex:
    """An opened collection; `MilvusIndex.open` makes one, and `close` lets Milvus Lite go."""

    folder: Path | None = None
    rows: Sequence[Row] | None = None
    """Billions are not listed, and in no order."""

    def __init__(self, milvus: _Connection, about: About, index_type: str, root: Root | None):
        self.name = milvus.name
        self.dimensions = about.dimensions
        self.embedder_name = about.embedder
        self.embedder_sha256 = about.embedder_sha256
        self.sha256 = about.sha256
        """Hex sha256 over the names and files of its pictures, in order."""
        self.index_type = index_type
        self._milvus = milvus
        self._count = about.count
        self._root = root

    @classmethod
    def open(cls, uri: str, collection: str = COLLECTION, *, token: str = "") -> MilvusIndex:
        """Open a collection that `build` wrote, after counting it.

        Its pictures are opened where they were if it was written from here, else below the folder that the settings
        name (`audit.corpus.roots`).

        Raises
        ------
        InputError
            If Milvus is not installed or not to be reached, there is no such collection, or it is not finished, or
            holds another number of pictures than it says.
        """
        milvus = _Connection(uri, collection, token, create=False)
        try:
            about = milvus.about()
            if about is None and not milvus.exists():
                raise InputError(f"There is no collection {milvus.name}; build it, or give its name.")
            if about is None or not about.finished:
                raise InputError(f"The collection {milvus.name} is not finished; run the same build again.")
            milvus.load()
            found = milvus.count()
            if found != about.count:
                raise InputError(
                    f"The collection {milvus.name} holds {found:,} pictures where {about.count:,} were written; "
                    "build it again."
                )
            return cls(milvus, about, milvus.index_type(), root_of(about.told, Path(about.source)))
        except BaseException:
            milvus.close()
            raise

    def __enter__(self) -> MilvusIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the last one to a ``.db`` lets other processes open it."""
        self._milvus.close()

    def __len__(self) -> int:
        return self._count

    def __contains__(self, image_id: object) -> bool:
        """Whether it holds a picture of this name."""
        return isinstance(image_id, str) and self._named(image_id) is not None

    @property
    def exact(self) -> bool:
        """Whether a search compares with every vector."""
        return self.index_type == "FLAT"

    @property
    def described(self) -> str:
        """How it searches, in words."""
        if self.exact:
            return "Milvus: compares with every vector (FLAT)"
        return f"Milvus: approximate ({self.index_type}), with the vectors themselves compared"

    @property
    def provenance(self) -> dict[str, object]:
        """For a run or an exhibit: where was searched, and how."""
        told = {"engine": "milvus", "address": self.name, "images": self._count, "sha256": self.sha256}
        return told | {"index_type": self.index_type, "exact": self.exact}

    def search(self, vectors: np.ndarray, k: int) -> list[list[Neighbour]]:
        """The `k` nearest for each of (n, dimensions) unit vectors, nearest first; or all there are."""
        vectors = fitting(vectors, self)
        if not np.isfinite(vectors).all():
            raise InputError(
                "A vector to search for holds values that are no numbers; embed the picture again."
            )
        if not 1 <= k <= MAX_NEIGHBOURS:
            raise InputError(f"{k} neighbours were asked for; Milvus gives from 1 to {MAX_NEIGHBOURS:,}.")
        params = {"ef": max(BREADTH, 4 * k)} if self.index_type == "HNSW" else {}
        found = []
        for start in range(0, len(vectors), TOGETHER):
            found += self._milvus.search(vectors[start : start + TOGETHER], min(k, self._count), params)
        return [
            [
                neighbour(self._row(hit["entity"]), float(hit["distance"]), rank)
                for rank, hit in enumerate(hits)
            ]
            for hits in found
        ]

    def row(self, image_id: str) -> Row:
        """The row of one training picture."""
        row = self._named(image_id)
        if row is None:
            raise InputError(f"The training set has no picture {image_id!r}; take a name from a search.")
        return row

    def by_caption(self, text: str) -> list[Row]:
        """Rows whose caption is exactly `text`: none, or several where captions repeat."""
        rows = map(self._row, self._milvus.where("caption_id", caption_id(text)))
        return [row for row in rows if row.caption == text]

    def duplicates(self, image_id: str) -> set[str]:
        """Names of the other pictures whose files are equal, byte for byte, to this one's."""
        row = self._named(image_id)
        if row is None or not digest(row.sha256):
            return set()
        rows = map(self._row, self._milvus.where("sha256_id", _hash(row.sha256, HASHES["sha256_id"])))
        return {same.image_id for same in rows if same.sha256 == row.sha256} - {image_id}

    def _named(self, image_id: str) -> Row | None:
        values = self._milvus.get(_hash(image_id, KEY))
        return self._row(values) if values and values["image_id"] == image_id else None

    def _row(self, values: dict[str, Any]) -> Row:
        path = within(self._root, values["image_path"])
        return row_of(values, image_id=values["image_id"], path=path, member=values["member"])


class _Connection:
    """One collection and its companion; every failure is told as one sentence."""

    def __init__(self, uri: str, collection: str, token: str, *, create: bool):
        if not re.fullmatch(r"[A-Za-z_]\w{0,200}", collection, re.ASCII):
            raise InputError(
                f"{collection[:80]!r} is no name of a collection; take letters, digits and underscores."
            )
        uri = checked_uri(uri)
        self.lite = uri.endswith(LITE)
        self.name = f"{uri} ({collection})"
        self._collection = collection
        self._companion = f"{collection}_about"
        self._client = _connect(uri, token, create=create)
        self._file = uri if self.lite else None

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()
        if self._file is not None:
            _release(self._file)
            self._file = None

    def exists(self) -> bool:
        """Whether a build has begun: its companion is made before the collection itself."""
        return self._do("has_collection", self._companion)

    def create(self, dimensions: int) -> None:
        """Make both collections, or the one that an interrupted build has not made."""
        if not self.exists():
            if self._do("has_collection", self._collection):
                raise InputError(f"The collection {self.name} is none of this program's; give another name.")
            self._create_companion()
        if not self._do("has_collection", self._collection):
            self._create_collection(dimensions)

    def _create_collection(self, dimensions: int) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("image_key", DataType.VARCHAR, is_primary=True, max_length=KEY)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimensions)
        for name in TEXTS:
            schema.add_field(name, DataType.VARCHAR, max_length=MAX_TEXT)
        for name, digits in HASHES.items():
            schema.add_field(name, DataType.VARCHAR, max_length=digits)
        self._do("create_collection", self._collection, schema=schema, consistency_level="Strong")

    def _create_companion(self) -> None:
        from pymilvus import DataType, MilvusClient

        about = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        about.add_field("number", DataType.INT64, is_primary=True)
        # a collection has to have a vector
        about.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
        about.add_field("about", DataType.VARCHAR, max_length=MAX_TEXT)
        index = MilvusClient.prepare_index_params("vector", index_type="FLAT", metric_type="IP")
        self._do(
            "create_collection", self._companion, schema=about, index_params=index, consistency_level="Strong"
        )

    def upsert(self, entities: list[dict[str, Any]]) -> None:
        self._do("upsert", self._collection, entities)

    def put(self, about: About) -> None:
        self._do(
            "upsert", self._companion, [{"number": 0, "vector": [0.0, 1.0], "about": about.told.decode()}]
        )

    def about(self) -> About | None:
        """What was written last; None before the first part."""
        if not self.exists():
            return None
        self._do("load_collection", self._companion)
        found = self._do("get", self._companion, ids=[0], output_fields=["about"])
        try:
            return About(**json.loads(found[0]["about"])) if found else None
        except (ValueError, TypeError) as error:
            raise InputError(f"The collection {self.name} is damaged; build another one.") from error

    def flush(self) -> None:
        self._do("flush", self._collection)

    def index(self, index_type: str) -> None:
        from pymilvus import MilvusClient

        if "vector" in self._do("list_indexes", self._collection):
            return
        params = MilvusClient.prepare_index_params()
        built = GRAPH if index_type == "HNSW" else {}
        params.add_index("vector", index_type=index_type, metric_type="IP", params=built)
        for name in HASHES:
            params.add_index(name, index_type="INVERTED")
        # the graph of a large set takes hours
        self._do("create_index", self._collection, params, timeout=None)

    def load(self) -> None:
        self._do("load_collection", self._collection, timeout=None)

    def index_type(self) -> str:
        return str(self._do("describe_index", self._collection, "vector")["index_type"])

    def count(self) -> int:
        # a cluster's statistics count what was written twice as two
        return int(self._do("query", self._collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def search(self, vectors: np.ndarray, k: int, params: dict[str, int]) -> list[list[dict[str, Any]]]:
        return self._do(
            "search",
            self._collection,
            list(vectors),
            limit=k,
            anns_field="vector",
            output_fields=list(TEXTS),
            search_params={"metric_type": "IP", "params": params},
        )

    def get(self, key: str) -> dict[str, Any] | None:
        found = self._do("get", self._collection, ids=[key], output_fields=list(TEXTS))
        return found[0] if found else None

    def where(self, field: str, value: str) -> Iterator[dict[str, Any]]:
        """All rows with this hash, however many."""
        assert re.fullmatch(r"[0-9a-f]+", value)
        asked = {"filter": f'{field} == "{value}"', "output_fields": list(TEXTS)}
        found = self._do("query", self._collection, limit=MAX_NEIGHBOURS, **asked)
        if len(found) < MAX_NEIGHBOURS:
            yield from found
            return
        # an iterator asks several times, even for one row
        more = self._do("query_iterator", self._collection, **asked)
        while batch := self._told(more.next):
            yield from batch
        more.close()

    def _do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", SECONDS)
        return self._told(lambda: getattr(self._client, name)(*args, **kwargs))

    def _told(self, ask: Callable[[], Any]) -> Any:
        from pymilvus.exceptions import MilvusException

        try:
            return ask()
        except MilvusException as error:
            reason = " ".join(str(error.message).split())[:200]
            raise InputError(
                f"Milvus failed at {self.name} ({reason}); mend that there and try again."
            ) from error


_OPEN: Counter[str] = Counter()
"""Connections of this process to each file of Milvus Lite: the last one ends its server."""
_LOCK = Lock()


def checked_uri(uri: str) -> str:
    """The address of a cluster, or the whole path of a file of Milvus Lite.

    Raises
    ------
    InputError
        If it is neither, or holds a password, which would end up in records.
    """
    url = urlsplit(uri.strip())
    if url.scheme in ("http", "https") and url.hostname:
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise InputError(
                f"The address of Milvus at {url.hostname} holds a user name or a query, which would end up in records; "
                "give http://HOST:PORT, and the password as a token."
            )
        return uri.strip().rstrip("/")
    if "://" in uri or not uri.endswith(LITE):
        raise InputError(f"{uri[:200]!r} is no Milvus; give http://HOST:PORT, or a path NAME{LITE}.")
    return os.path.abspath(Path(uri).expanduser())


def _connect(uri: str, token: str, *, create: bool) -> MilvusClient:
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError as error:
        raise InputError(
            "The engine Milvus needs the package pymilvus; install it with `pip install -e '.[milvus]'`."
        ) from error
    # they print their own accounts, with the stack, beside the exception
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if uri.endswith(LITE):
        return _open_file(uri, create=create)
    try:
        return MilvusClient(uri, token=token, timeout=10)
    except MilvusException as error:
        raise InputError(f"There is no Milvus at {uri}, or it refuses the token; start it first.") from error


def _open_file(uri: str, *, create: bool) -> MilvusClient:
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    path = Path(uri)
    if not create and not path.is_dir():
        raise InputError(f"There is no {path} of Milvus Lite; build it first.")
    if path.is_file():
        raise InputError(f"{path} was written by Milvus Lite before version 3; build it again elsewhere.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK:
        try:
            client = MilvusClient(uri)
        except MilvusException as error:
            raise InputError(
                f"{path} cannot be opened by Milvus Lite: it is not installed (`pip install -e '.[milvus]'`), or another "
                "process has it open; for several, run `milvus-lite server` and give its address."
            ) from error
        _OPEN[uri] += 1
        return client


def _release(uri: str) -> None:
    from milvus_lite.server_manager import server_manager_instance

    with _LOCK:
        _OPEN[uri] -= 1
        if not _OPEN[uri]:
            server_manager_instance.release_server(uri)


def _batches(
    parts: Iterable[tuple[Sequence[Row], np.ndarray]],
) -> Iterator[tuple[Sequence[Row], np.ndarray]]:
    """Parts of at most `BATCH` rows."""
    for rows, vectors in parts:
        if len(rows) <= BATCH:
            yield rows, np.asarray(vectors, np.float32)
        else:
            yield from ((rows, np.asarray(vectors, np.float32)) for rows, vectors in sliced(rows, vectors))


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
