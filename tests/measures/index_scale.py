"""An index of a million vectors: how long it takes to build, what it finds, how fast, in how much memory.

``python tests/measures/index_scale.py [--vectors 1000000] [--work FOLDER]`` writes 2,000 clusters of 512-dimensional unit
vectors, each of intrinsic dimension 32, as clip-retrieval would have left them; has ``audit index build`` make an index;
and searches it from a process that does nothing else, one query at a time. Queries are other vectors of the same clusters.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.retrieval.index import Index  # noqa: E402
from audit.retrieval.vectors import exact_neighbours  # noqa: E402

CLUSTERS, DIMENSIONS, INTRINSIC = 2000, 512, 32
PART = 100_000
QUERIES = 500
K = 10


def generated(count, seed):
    """(count, 512) float16 unit vectors, in any order of the same 2,000 clusters."""
    fixed = np.random.default_rng(0)
    centres = fixed.standard_normal((CLUSTERS, DIMENSIONS), np.float32)
    directions = fixed.standard_normal((CLUSTERS, INTRINSIC, DIMENSIONS), np.float32)
    rng = np.random.default_rng([1, seed])
    cluster = np.sort(rng.integers(0, CLUSTERS, count))
    place = rng.standard_normal((count, INTRINSIC), np.float32) / np.sqrt(INTRINSIC)
    vectors = centres[cluster]
    for number in np.unique(cluster):
        rows = cluster == number
        vectors[rows] += 0.5 * place[rows] @ directions[number]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[rng.permutation(count)].astype(np.float16)


def write(folder, count):
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, start in enumerate(range(0, count, PART)):
        size = min(PART, count - start)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", generated(size, number))
        places = range(start, start + size)
        columns = {
            "image_path": [f"{at // 10_000:05d}/{at:09d}.jpg" for at in places],
            "caption": [f"a picture of the number {at // 3}" for at in places],
            "url": [f"https://example.org/{at}.jpg" for at in places],
        }
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")


def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Anonymous")))


def search(folder, queries):
    """Opened and searched in a process of its own; everything measured there."""
    began = time.monotonic()
    index = Index.open(folder)
    opened = time.monotonic() - began
    vectors = np.load(queries).astype(np.float32)
    for query in vectors[:20]:
        index.search(query[None], K)
    seconds, found = [], []
    for query in vectors:
        began = time.perf_counter()
        hits = index.search(query[None], K)[0]
        seconds.append(time.perf_counter() - began)
        found.append([int(hit.image_id) for hit in hits])
    lookups = []
    for at in range(0, len(index), max(1, len(index) // 200)):
        began = time.perf_counter()
        index.by_caption(f"a picture of the number {at // 3}")
        lookups.append(time.perf_counter() - began)
    return {
        "found": found,
        "first_opening_s": round(opened, 1),
        "search_ms": milliseconds(seconds),
        "by_caption_ms": milliseconds(lookups),
        "anonymous_MB": round(anonymous() / 1e6),
        "searched": index.described,
    }


def milliseconds(seconds):
    return {
        name: round(1000 * float(np.quantile(seconds, q)), 2) for name, q in (("median", 0.5), ("p95", 0.95))
    }


def child(*arguments):
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--search", nargs=2, type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.search:
        print(json.dumps(search(*asked.search)))
        return
    work = asked.work or Path(tempfile.mkdtemp(prefix="index-scale-"))
    embeddings, index = work / "embeddings", work / "index"
    if not embeddings.exists():
        write(embeddings, asked.vectors)
    np.save(work / "queries.npy", generated(QUERIES, 1_000_000))
    command = [sys.executable, "-m", "audit", "index", "build", str(embeddings), "--out", str(index)]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    built = time.monotonic() - began
    queries = np.load(work / "queries.npy").astype(np.float32)
    stored = [
        np.load(path, mmap_mode="r") for path in sorted((embeddings / "img_emb").glob("*.npy"), key=number)
    ]
    exact = merged(stored, queries)
    measured = child("--search", index, work / "queries.npy")
    again = child("--search", index, work / "queries.npy")
    found = measured.pop("found")
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact.tolist(), strict=True)])
    print(
        json.dumps(
            {
                "vectors": asked.vectors,
                "queries": QUERIES,
                "build_s": round(built),
                "build_peak_resident_MB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
                "recall_at_10": round(float(recall), 4),
                **measured,
                "opening_s": again["first_opening_s"],
                "index_MB": round(
                    sum(path.stat().st_size for path in index.rglob("*") if path.is_file()) / 1e6
                ),
            },
            indent=2,
        )
    )
    if asked.work is None:
        shutil.rmtree(work)


def number(path):
    return int(path.stem.rpartition("_")[2])


def merged(parts, queries):
    """Places of the exact nearest over all parts."""
    places, scores, start = [], [], 0
    for part in parts:
        near = exact_neighbours(part, queries, K)
        places.append(near + start)
        scores.append(np.take_along_axis(queries @ np.asarray(part, np.float32).T, near, axis=1))
        start += len(part)
    order = np.argsort(-np.concatenate(scores, axis=1), axis=1)[:, :K]
    return np.take_along_axis(np.concatenate(places, axis=1), order, axis=1)


if __name__ == "__main__":
    main()
