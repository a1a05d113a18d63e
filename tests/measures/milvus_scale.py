"""The same interface over Milvus: how long a collection takes to build, what it finds, how fast, in how much memory.

``python tests/measures/milvus_scale.py [--vectors 100000] [--index FLAT|HNSW] [--uri URI] [--work FOLDER]``: the vectors and the
queries of ``index_scale.py``, by Milvus Lite in a file of its own unless another one is given; searched by a process
that does nothing else, one query at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from index_scale import DIMENSIONS, QUERIES, K, anonymous, generated, milliseconds  # noqa: E402

from audit.corpus.reader import Row  # noqa: E402
from audit.retrieval.milvus import TOGETHER, MilvusIndex, build, sliced  # noqa: E402
from audit.retrieval.search import TOP  # noqa: E402
from audit.retrieval.vectors import exact_neighbours  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--index", choices=["FLAT", "HNSW"])
    parser.add_argument("--uri")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--search", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.search:
        print(json.dumps(search(*asked.search)))
        return
    work = asked.work or Path(tempfile.mkdtemp(prefix="milvus-scale-"))
    print(
        json.dumps(measure(work, asked.uri or str(work / "scale.db"), asked.vectors, asked.index), indent=2)
    )
    if asked.work is None:
        shutil.rmtree(work)


def measure(work: Path, uri: str, count: int, index_type: str | None) -> dict[str, object]:
    vectors, queries = generated(count, 0), generated(QUERIES, 1_000_000)
    np.save(work / "queries.npy", queries)
    rows = [
        Row(str(at), Path(), f"a picture of the number {at // 3}", url=f"https://example.org/{at}.jpg")
        for at in range(count)
    ]
    began = time.monotonic()
    build(
        sliced(rows, vectors),
        uri,
        source=work,
        embedder_name=None,
        embedder_sha256=None,
        index_type=index_type,
    )
    built = time.monotonic() - began
    exact = exact_neighbours(vectors, queries.astype(np.float32), K).tolist()
    command = [sys.executable, __file__, "--search", uri, str(work / "queries.npy")]
    measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = measured.pop("found")
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact, strict=True)])
    sizes = [path.stat().st_size for path in Path(uri).rglob("*") if path.is_file()]
    return {
        "vectors": count,
        "dimensions": DIMENSIONS,
        "queries": QUERIES,
        "build_s": round(built, 1),
        "recall_at_10": round(float(recall), 4),
        **measured,
        "disk_MB": round(sum(sizes) / 1e6) if sizes else None,
    }


def search(uri: str, queries: str) -> dict[str, object]:
    """Opened and searched in a process of its own; everything measured there."""
    vectors = np.load(queries).astype(np.float32)
    began = time.monotonic()
    with MilvusIndex.open(uri) as index:
        opened = time.monotonic() - began
        index.search(vectors[:1], K)
        found, seconds = [], []
        for vector in vectors:
            began = time.perf_counter()
            hits = index.search(vector[None], K)[0]
            seconds.append(time.perf_counter() - began)
            found.append([int(hit.image_id) for hit in hits])
        hundred = [timed(lambda at=at: index.search(vectors[at : at + 1], TOP)) for at in range(100)]
        together = [
            timed(lambda at=at: index.search(vectors[at : at + TOGETHER], TOP)) / TOGETHER
            for at in range(0, len(vectors) - TOGETHER, TOGETHER)
        ]
        captions = [f"a picture of the number {at}" for at in range(100)]
        lookups = [timed(lambda text=text: index.by_caption(text)) for text in captions]
        return {
            "found": found,
            "searched": index.described,
            "opening_s": round(opened, 1),
            f"search_{K}_ms": milliseconds(seconds),
            f"search_{TOP}_ms": milliseconds(hundred),
            f"search_{TOP}_each_of_{TOGETHER}_together_ms": milliseconds(together),
            "by_caption_ms": milliseconds(lookups),
            "anonymous_MB": round(anonymous() / 1e6),
        }


def timed(do) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
