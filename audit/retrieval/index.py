"""A searchable training set on disk: a faiss index and the metadata of its rows, in clip-retrieval's layout.

::

    image.index                    faiss, inner product of unit vectors (or a folder with populated.index)
    metadata/metadata_<i>.parquet  row i of the index is row i of these files in order
    index.json                     ours: which embedder, how many rows, what was left out

A folder made by clip-retrieval itself has no ``index.json``: it opens, but nothing vouches for its embedder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audit.corpus.reader import CAPTION_NAMES, URL_NAMES, Row, RowError, pictures, read_corpus
from audit.errors import InputError
from audit.images import sha256
from audit.records import Neighbour
from audit.retrieval.embedding import LOCAL, Embedder

INFO = "index.json"
PROGRESS = "build.json"
VECTORS = "image.index"
PART = 512
"""Rows that an interrupted build loses at most."""
COLUMNS = (
    "image_id",
    "image_path",
    "caption",
    "title",
    "keywords",
    "author",
    "licence",
    "source",
    "url",
    "family",
    "sha256",
)

DESCRIBED = {"embedder": str, "embedder_sha256": str, "count": int, "source": str, "left_out": list}
"""What ``index.json`` has to say."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Built:
    """What a build took in and what it had to leave out."""

    count: int
    errors: list[RowError]


def build(source: Path, out: Path, embedder: Embedder, progress: Progress | None = None) -> Built:
    """Embed the indexed pictures of the training set in `source` and write an index folder `out`.

    An interrupted build goes on where it was. Pictures that cannot be decoded are left out and listed.

    Raises
    ------
    InputError
        If `source` is no training set, nothing in it can be decoded, or `out` holds the build of another one.
    """
    corpus = read_corpus(source)
    rows = corpus.indexed()
    state = _build_state(out, _fingerprint(rows, embedder))
    for part in range(state["parts"], -(-len(rows) // PART)):
        errors: list[RowError] = []
        chunk = rows[part * PART : (part + 1) * PART]
        taken: list[Row] = []
        decoded = _noted(pictures(chunk, errors, progress=_shifted(progress, part * PART, len(rows))), taken)
        vectors = embedder.images(decoded)
        _write(out / "img_emb" / f"img_emb_{part}.npy", lambda path, v=vectors: _save_array(path, v))
        table = _metadata(taken, Path(source))
        _write(out / "metadata" / f"metadata_{part}.parquet", lambda path, t=table: pq.write_table(t, path))
        state["parts"] = part + 1
        state["errors"] += [[error.image_id, error.message] for error in errors]
        _write_json(out / PROGRESS, state)
    errors = corpus.errors + [RowError(*error) for error in state["errors"]]
    index = faiss.IndexFlatIP(embedder.dimensions)
    for part in range(state["parts"]):
        index.add(np.load(out / "img_emb" / f"img_emb_{part}.npy"))  # pyright: ignore[reportCallIssue]
    count = index.ntotal
    if not count:
        raise InputError(f"No picture in {source} can be decoded and indexed; {len(errors)} were left out.")
    _write(out / VECTORS, lambda path: faiss.write_index(index, str(path)))
    info = {
        "embedder": _relative_name(embedder.name, out),
        "embedder_sha256": embedder.sha256,
        "count": count,
        "dimensions": embedder.dimensions,
        "source": os.path.relpath(source, out),
        "left_out": [[error.image_id, error.message] for error in errors],
    }
    _write_json(out / INFO, info)
    # A flat index holds the vectors themselves; a second copy would only double the folder.
    shutil.rmtree(out / "img_emb")
    (out / PROGRESS).unlink()
    return Built(count, errors)


class Index:
    """An opened index folder; `Index.open` makes one."""

    def __init__(self, folder: Path, vectors: faiss.Index, rows: list[Row], info: dict):
        self.folder = folder
        self.embedder_name: str | None = _absolute_name(info["embedder"], folder) if info else None
        self.embedder_sha256: str | None = info.get("embedder_sha256")
        self.left_out: int = len(info.get("left_out", ()))
        """Training pictures that could not be decoded when it was built."""
        self.rows = rows
        self._vectors = vectors
        self._by_id = {row.image_id: row for row in rows}
        self._by_caption: dict[str, list[Row]] = defaultdict(list)
        self._by_sha256: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            self._by_caption[row.caption].append(row)
            if row.sha256:
                self._by_sha256[row.sha256].add(row.image_id)

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
        info = _read_info(folder)
        vectors = _read_vectors(folder)
        rows = _read_rows(folder, info)
        counts = {"vectors": vectors.ntotal, "metadata rows": len(rows), INFO: info.get("count", len(rows))}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count:,} ({name})" for name, count in counts.items())
            raise InputError(f"The index {folder} does not match its metadata: {found}; build it again.")
        twice = next(
            (name for name, times in Counter(row.image_id for row in rows).items() if times > 1), None
        )
        if twice is not None:
            raise InputError(
                f"The index {folder} has two rows named {twice[:80]}; give each picture its own image_id and "
                "build it again."
            )
        return cls(folder, vectors, rows, info)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def sha256(self) -> str:
        """Hex sha256 over the names and files of its pictures, in order."""
        lines = (f"{row.image_id} {row.sha256 or row.path.name}" for row in self.rows)
        return sha256("\n".join(lines).encode("utf-8", "surrogatepass"))

    def __contains__(self, image_id: object) -> bool:
        """Whether it holds a picture of this name."""
        return image_id in self._by_id

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        return self._vectors.d

    def search(self, vectors: np.ndarray, k: int) -> list[list[Neighbour]]:
        """The `k` nearest rows for each of (n, dimensions) unit vectors, nearest first; or all there are."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimensions:
            raise InputError(
                f"Vectors of shape {vectors.shape} do not fit the index {self.folder} of {self.dimensions} "
                "dimensions; use the embedder that it was built with."
            )
        if k < 1:
            raise InputError(f"{k} neighbours were asked for; ask for at least 1.")
        similarities, places = self._vectors.search(vectors, k)  # pyright: ignore[reportCallIssue]
        return [
            [
                neighbour(self.rows[place], float(similarity), rank)
                for rank, (similarity, place) in enumerate(zip(*hits, strict=True))
                if place >= 0
            ]
            for hits in zip(similarities, places, strict=True)
        ]

    def vectors(self) -> np.ndarray:
        """(n, dimensions) float32, row for row."""
        return self._vectors.reconstruct_n(0, len(self.rows))  # pyright: ignore[reportCallIssue]

    def row(self, image_id: str) -> Row:
        """The row of one training picture."""
        if image_id not in self._by_id:
            raise InputError(f"The training set has no picture {image_id!r}; take a name from a search.")
        return self._by_id[image_id]

    def by_caption(self, text: str) -> list[Row]:
        """Rows whose caption is exactly `text`: none, or several where captions repeat."""
        return list(self._by_caption.get(text, ()))

    def duplicates(self, image_id: str) -> set[str]:
        """Names of the other pictures whose files are equal, byte for byte, to this one's."""
        row = self._by_id.get(image_id)
        return self._by_sha256.get(row.sha256, set()) - {image_id} if row else set()


def neighbour(row: Row, similarity: float, rank: int) -> Neighbour:
    """A row as a search result, with its attribution."""
    return Neighbour(
        image_id=row.image_id,
        caption=row.caption,
        similarity=similarity,
        rank=rank,
        title=row.title,
        author=row.author,
        licence=row.licence,
        source=row.source or row.url,
        path=str(row.path),
    )


def _build_state(out: Path, fingerprint: str) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    for name in ("img_emb", "metadata"):
        (out / name).mkdir(exist_ok=True)
    if (out / PROGRESS).is_file():
        state = json.loads((out / PROGRESS).read_text(encoding="utf-8"))
        if state["fingerprint"] != fingerprint:
            raise InputError(
                f"{out} holds the unfinished index of another training set or embedder; name another folder."
            )
        return state
    if (out / INFO).is_file():
        raise InputError(f"{out} already holds an index; delete it or name another folder.")
    state = {"fingerprint": fingerprint, "parts": 0, "errors": []}
    _write_json(out / PROGRESS, state)
    return state


def _fingerprint(rows: Sequence[Row], embedder: Embedder) -> str:
    lines = [embedder.sha256, *(f"{row.image_id} {row.path.name} {row.caption}" for row in rows)]
    return sha256("\n".join(lines).encode("utf-8", "surrogatepass"))


def _noted(found: Iterable[tuple[Row, np.ndarray]], rows: list[Row]) -> Iterator[np.ndarray]:
    """The pictures, one at a time; the row of each is put into `rows`."""
    for row, picture in found:
        rows.append(row)
        yield picture


def _shifted(progress: Progress | None, start: int, total: int) -> Progress | None:
    return (lambda done, _: progress(start + done, total)) if progress else None


def _metadata(rows: Sequence[Row], source: Path) -> pa.Table:
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    for row in rows:
        for name in COLUMNS:
            columns[name].append(_cell(row, name, source))
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in COLUMNS]))


def _cell(row: Row, name: str, source: Path) -> str:
    if name == "image_path":
        return os.path.relpath(row.path, source)
    if name == "sha256":
        return row.sha256 or sha256(row.path)
    return getattr(row, name)


def _read_info(folder: Path) -> dict:
    if not folder.is_dir():
        raise InputError(
            f"There is no index folder {folder}; build one with: index build SOURCE --out {folder}."
        )
    if not (folder / INFO).is_file():
        return {}
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        described = {name: info[name] for name in DESCRIBED}
        if not all(isinstance(described[name], kind) for name, kind in DESCRIBED.items()):
            raise TypeError
        return described
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / INFO} is damaged; build the index again.") from error


def _read_vectors(folder: Path) -> faiss.Index:
    path = folder / VECTORS
    path = path / "populated.index" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{folder} has no {VECTORS}; give an index folder.")
    try:
        return faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:  # a damaged file may promise any number of vectors
        raise InputError(f"{path} is not a readable faiss index; build it again.") from error


def _read_rows(folder: Path, info: dict) -> list[Row]:
    files = sorted((folder / "metadata").glob("metadata_*.parquet"), key=_number)
    if not files:
        raise InputError(f"{folder} has no metadata/metadata_0.parquet; build the index again.")
    root = Path(os.path.abspath(folder / info.get("source", "")))
    rows: list[Row] = []
    for path in files:
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not readable parquet; build the index again.") from error
        rows += [_row(values, root, len(rows) + i) for i, values in enumerate(table.to_pylist())]
    return rows


def _number(path: Path) -> int:
    """Parts in numeric order: as strings, part 10 would come before part 2 and rows would be mixed up."""
    digits = re.search(r"\d+", path.stem)
    return int(digits.group()) if digits else -1


def _row(values: dict, root: Path, place: int) -> Row:
    def text(*names: str) -> str:
        return next((str(values[name]) for name in names if values.get(name) is not None), "")

    path = text("image_path")
    return Row(
        image_id=text("image_id", "id") or Path(path).stem or str(place),
        path=_within(root, path),
        caption=text(*CAPTION_NAMES),
        url=text(*URL_NAMES),
        title=text("title"),
        keywords=text("keywords"),
        author=text("author"),
        licence=text("licence"),
        source=text("source"),
        family=text("family"),
        sha256=text("sha256"),
    )


def _within(root: Path, path: str) -> Path:
    """A picture's path, or one that no picture has where metadata points out of the training set's folder."""
    whole = Path(os.path.normpath(root / path))
    return whole if whole.is_relative_to(root) else Path()


def _relative_name(embedder: str, out: Path) -> str:
    """A folder as seen from the index, so that both can be moved together."""
    if not embedder.startswith(LOCAL):
        return embedder
    return LOCAL + os.path.relpath(Path(embedder.removeprefix(LOCAL)).expanduser(), out)


def _absolute_name(embedder: str, folder: Path) -> str:
    if not embedder.startswith(LOCAL):
        return embedder
    return LOCAL + os.path.normpath(folder / embedder.removeprefix(LOCAL))


def _save_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as stream:
        np.save(stream, array)


def _write_json(path: Path, value: dict) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name, then rename: a crash leaves the old file or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
