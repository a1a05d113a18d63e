"""A searchable training set on disk: a faiss index and the metadata of its rows, in clip-retrieval's layout.

::

    image.index                    faiss, inner product of unit vectors (or a folder with populated.index)
    vectors.npy                    ours: the vectors themselves in half precision, where the index is approximate
    metadata/metadata_<i>.parquet  row i of the index is row i of these files in order
    index.json                     ours: which embedder, how many rows, what was left out, how well it searches

A folder made by clip-retrieval itself has no ``index.json``, and its metadata may be ``.arrow``: it opens, but nothing vouches for its embedder.
`audit.retrieval.build` makes one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from audit.corpus.hashes import digest
from audit.corpus.reader import Row
from audit.corpus.roots import root_of
from audit.corpus.sources import METADATA, natural
from audit.errors import InputError
from audit.records import Neighbour
from audit.retrieval.base import fitting, neighbour
from audit.retrieval.rows import ARROW, Rows
from audit.retrieval.vectors import Vectors

INFO = "index.json"
PROGRESS = "build.json"
KINDS = (".parquet", ARROW)
"""Of files of metadata; the first that there are."""
LOCAL, COPY_DETECTION = "local-dir:", "sscd:"
"""How names of embedders begin that are paths: open_clip's of a folder, ours of a TorchScript file."""
DESCRIBED = {
    "embedder": str | None,
    "embedder_sha256": str | None,
    "count": int,
    "source": str,
    "left_out": int,
    "clusters": int | None,
    "recall_at_10": float,
}
"""What ``index.json`` has to say."""


class Index:
    """An opened index folder; `Index.open` makes one."""

    def __init__(self, folder: Path, vectors: Vectors, rows: Rows, info: dict):
        self.folder = folder
        self.embedder_name: str | None = _absolute_name(info.get("embedder"), folder)
        self.embedder_sha256: str | None = info.get("embedder_sha256")
        self.left_out: int = info.get("left_out", 0)
        """Training pictures that could not be used when it was built."""
        self.recall_at_10: float | None = info.get("recall_at_10")
        """Of the ten nearest by exact search, the share that it finds, as measured when it was built."""
        self.rows = rows
        self._vectors = vectors

    @classmethod
    def open(cls, folder: Path) -> Index:
        """Open an index folder after counting vectors, metadata rows and what ``index.json`` promises.

        Raises
        ------
        InputError
            If a part is missing or unreadable, the counts differ, or two rows have one name: a row would stand for
            another picture.
        """
        folder = Path(folder)
        if (folder / PROGRESS).is_file():
            raise InputError(f"The index {folder} is not finished; run the same index build again.")
        told, info = _read_info(folder)
        vectors = Vectors.open(folder, info.get("clusters"))
        # ours are numbered without zeros; autofaiss and clip-retrieval read theirs, vectors too, in order of names
        kept = (sorted((folder / METADATA).glob(f"*{kind}"), key=natural if info else None) for kind in KINDS)
        files = next(filter(None, kept), None)
        if files is None:
            raise InputError(f"{folder} has no {METADATA}/metadata_0.parquet; build the index again.")
        rows = Rows.open(files, root_of(told, folder / info.get("source", ""), folder))
        counts = {"vectors": len(vectors), "metadata rows": len(rows), INFO: info.get("count", len(rows))}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count:,} ({name})" for name, count in counts.items())
            raise InputError(f"The index {folder} does not match its metadata: {found}; build it again.")
        return cls(folder, vectors, rows, info)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """Its folder, for people."""
        return str(self.folder)

    @property
    def described(self) -> str:
        """How it searches, in words, with the recall measured when it was built."""
        if self._vectors.exact or self.recall_at_10 is None:
            return self._vectors.described
        return f"{self._vectors.described}; finds {self.recall_at_10:.1%} of the ten nearest"

    @property
    def provenance(self) -> dict[str, object]:
        """For a run or an exhibit: what was searched, and how."""
        return {
            "engine": "faiss",
            "images": len(self),
            "sha256": self.sha256,
            "exact": self._vectors.exact,
            "recall_at_10": self.recall_at_10,
        }

    @property
    def sha256(self) -> str:
        """Hex sha256 over the names and files of its pictures, in order."""
        return self.rows.sha256

    def __contains__(self, image_id: object) -> bool:
        """Whether it holds a picture of this name."""
        return isinstance(image_id, str) and bool(self.rows.find("image_id", image_id))

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        return self._vectors.dimensions

    def search(self, vectors: np.ndarray, k: int) -> list[list[Neighbour]]:
        """The `k` nearest rows for each of (n, dimensions) unit vectors, nearest first; or all there are."""
        vectors = fitting(vectors, self)
        if k < 1:
            raise InputError(f"{k} neighbours were asked for; ask for at least 1.")
        similarities, places = self._vectors.search(vectors, k)
        return [
            [
                neighbour(self.rows[int(place)], float(similarity), rank)
                for rank, (similarity, place) in enumerate(zip(*hits, strict=True))
                if 0 <= place < len(self.rows)
            ]
            for hits in zip(similarities, places, strict=True)
        ]

    def vectors(self) -> np.ndarray:
        """(n, dimensions), row for row: memory-mapped float16 where they are stored so, else float32."""
        return self._vectors.all()

    def row(self, image_id: str) -> Row:
        """The row of one training picture."""
        found = self.rows.find("image_id", image_id)
        if not found:
            raise InputError(f"The training set has no picture {image_id!r}; take a name from a search.")
        return self.rows[found[0]]

    def by_caption(self, text: str) -> list[Row]:
        """Rows whose caption is exactly `text`: none, or several where captions repeat."""
        return [self.rows[place] for place in self.rows.find("caption", text)]

    def duplicates(self, image_id: str) -> set[str]:
        """Names of the other pictures whose files are equal, byte for byte, to this one's."""
        found = self.rows.find("image_id", image_id)
        sha256 = self.rows[found[0]].sha256 if found else ""
        if not digest(sha256):
            return set()
        return {self.rows[place].image_id for place in self.rows.find("sha256", sha256)} - {image_id}


def _read_info(folder: Path) -> tuple[bytes, dict]:
    """What an index says of itself, as it stands there and as it is meant; nothing where it is not ours."""
    if not folder.is_dir():
        raise InputError(
            f"There is no index folder {folder}; build one with: index build SOURCE --out {folder}."
        )
    if not (folder / INFO).is_file():
        return b"", {}
    try:
        told = (folder / INFO).read_bytes()
        info = json.loads(told)
        described = {name: info[name] for name in DESCRIBED}
        kinds = (isinstance(described[name], kind) for name, kind in DESCRIBED.items())
        searched = described["clusters"] is None or described["clusters"] > 0
        if not all(kinds) or not searched or "\0" in described["source"]:
            raise TypeError
        return told, described
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / INFO} is damaged; build the index again.") from error


def relative_name(embedder: str, out: Path) -> str:
    """A path as seen from the index, so that both can be moved together."""
    kind, path = _split(embedder)
    return kind + os.path.relpath(Path(path).expanduser(), out) if kind else embedder


def _absolute_name(embedder: str | None, folder: Path) -> str | None:
    kind, path = _split(embedder or "")
    return kind + os.path.normpath(folder / path) if kind else embedder


def _split(embedder: str) -> tuple[str, str]:
    """How the name of a path begins, and the path; nothing and the name where it is none."""
    kind = next((kind for kind in (LOCAL, COPY_DETECTION) if embedder.startswith(kind)), "")
    return kind, embedder.removeprefix(kind)
