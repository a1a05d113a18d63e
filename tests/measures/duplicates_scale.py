"""Near-duplicates among many embeddings: seconds, memory, and how well planted ones are found, as JSON.

``OMP_NUM_THREADS=2 python tests/measures/duplicates_scale.py [--vectors 100000]``. Embeddings alone decide, as where
no pictures are at hand. Unit vectors of a fixed generator: 2,000 clusters of intrinsic dimension 32 for likeness,
and in them pictures that are repeated 2 to 5,000 times with a little noise; a fifth of all are such copies. Precision and
recall are of pairs, and B-cubed (Bagga and Baldwin 1998), in which each copy counts once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from audit.corpus.duplicates import ALONE, same_pictures  # noqa: E402

CLUSTERS, INTRINSIC = 2_000, 32
SPREAD = 0.5
"""Of look-alikes around their cluster's centre."""
NOISE = (0.05, 0.2)
"""Length of what is added to a copy: cosines to the original from .999 down to .98."""
COPIES = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(clustered(asked.only), indent=2))
        return
    with tempfile.TemporaryDirectory() as name:
        vectors, original = generated(asked.vectors, asked.dimensions)
        np.save(Path(name) / "vectors.npy", vectors)
        np.save(Path(name) / "original.npy", original)
        # a process of its own: the generator takes more memory than what is measured
        subprocess.run([sys.executable, __file__, "--only", name], check=True)


def clustered(folder: Path) -> dict[str, object]:
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    original = np.load(folder / "original.npy")
    began = time.perf_counter()
    found = same_pictures([""] * len(vectors), vectors)
    seconds = time.perf_counter() - began
    label = np.arange(len(vectors))
    for cluster in found:
        label[cluster.members] = cluster.representative
    joint = label.astype(np.int64) * len(vectors) + original
    copied = np.bincount(original)[original] > 1
    return {
        "vectors": len(vectors),
        "dimensions": vectors.shape[1],
        "threads": faiss.omp_get_max_threads(),
        "cosine": ALONE,
        "seconds": round(seconds, 1),
        "largest_memory_mb": largest_memory() // 1024,
        "planted": {
            "clusters": int((np.bincount(original) > 1).sum()),
            "largest": int(np.bincount(original).max()),
            "vectors": int(copied.sum()),
            "pairs": pairs(original),
        },
        "found": {"clusters": len(found), "largest": len(found[0].members), "pairs": pairs(label)},
        "pairs": {
            "precision": round(pairs(joint) / pairs(label), 4),
            "recall": round(pairs(joint) / pairs(original), 4),
        },
        "b_cubed_of_copies": {
            "precision": round(float((size(joint) / size(label))[copied].mean()), 4),
            "recall": round(float((size(joint) / size(original))[copied].mean()), 4),
        },
    }


def generated(count: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, dimensions) float32 unit vectors, shuffled, and (count,) which original each is a copy of."""
    chance = np.random.default_rng(20261124)
    originals = round(count * (1 - COPIES))
    basis = chance.standard_normal((INTRINSIC, dimensions), dtype=np.float32) / np.sqrt(dimensions)
    centres = chance.standard_normal((CLUSTERS, INTRINSIC), dtype=np.float32)
    points = centres[chance.integers(CLUSTERS, size=originals)]
    points = points + SPREAD * chance.standard_normal(points.shape, dtype=np.float32)
    first = normalised(points @ basis)
    times = [
        min(5_000, count // 20),
        *(min(count // 20, round(1 + chance.pareto(1.0))) for _ in range(count)),
    ]
    total = np.cumsum(times)
    times = times[: int(np.searchsorted(total, count - originals))]
    of = np.repeat(np.arange(len(times)), times)
    of = np.concatenate([of, np.full(count - originals - len(of), len(times))])
    noise = normalised(chance.standard_normal((len(of), dimensions), dtype=np.float32))
    copies = normalised(first[of] + noise * chance.uniform(*NOISE, (len(of), 1)).astype(np.float32))
    order = chance.permutation(count)
    return np.concatenate([first, copies])[order], np.concatenate([np.arange(originals), of])[order]


def normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def largest_memory() -> int:
    """kB that this process had resident at most; getrusage would count what its parent had."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def size(labels: np.ndarray) -> np.ndarray:
    """For each label how often it occurs."""
    _, place, times = np.unique(labels, return_inverse=True, return_counts=True)
    return times[place]


def pairs(labels: np.ndarray) -> int:
    """Pairs of equal labels."""
    _, times = np.unique(labels, return_counts=True)
    return int((times * (times - 1) // 2).sum())


if __name__ == "__main__":
    main()
