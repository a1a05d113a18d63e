"""What ``audit duplicates`` does with many rows: seconds, memory, and how well planted repetitions are found, as JSON.

``OMP_NUM_THREADS=2 python tests/measures/duplicates_scale.py [--vectors 100000] [--pictures 5000]``. The whole command is
measured, from the files to the tables, twice:

- on embeddings alone, as where no pictures are at hand: unit vectors of a fixed generator, 2,000 clusters of intrinsic
  dimension 32 for likeness, and in them pictures that are repeated 2 to 5,000 times with a little noise; a fifth of all
  are such copies. Precision and recall are of pairs, and B-cubed (Bagga and Baldwin 1998), in which each copy counts once;
- on fewer rows with their pictures, which are decoded, compared and searched for template families: drawings of
  rectangles as JPEG of 256x256; a tenth of them in families of 8 that differ in one square, and a tenth copies of
  another quality. Their vectors are means of blocks with noise, in the place of a model's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS, INTRINSIC = 2_000, 32
SPREAD = 0.5
"""Of look-alikes around their cluster's centre."""
NOISE = (0.05, 0.2)
"""Length of what is added to a copy: cosines to the original from .999 down to .98."""
COPIES = 0.2
FAMILY = 8
"""Members of a template family."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--pictures", type=int, default=5_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        alone, drawn = Path(name) / "alone", Path(name) / "drawn"
        original = write_vectors(alone, asked.vectors, asked.dimensions)
        members, report = measured(alone)
        report |= {"planted": planted(original), **found_again(members, "near", original)}
        print(json.dumps(report, indent=2), flush=True)
        original, family = write_pictures(drawn, asked.pictures)
        members, report = measured(drawn)
        report |= {
            "near": found_again(members, "near", original),
            "template": found_again(members, "template", family),
        }
        print(json.dumps(report, indent=2))


def measured(source: Path) -> tuple[pd.DataFrame, dict[str, object]]:
    """The members that the command found, and what it took; in a process of its own."""
    out = source.with_name(f"{source.name}-out")
    began = time.perf_counter()
    command = subprocess.Popen(
        [sys.executable, "-m", "audit", "duplicates", str(source), "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(command.pid, 0)
    if status:
        raise SystemExit("The command failed.")
    told = json.loads((out / "duplicates.json").read_text(encoding="utf-8"))
    return pd.read_parquet(out / "duplicates.parquet"), {
        "rows": told["training_images"],
        "not_opened": told["not_opened"],
        "seconds": round(time.perf_counter() - began, 1),
        "largest_memory_mb": used.ru_maxrss // 1024,
        "clusters": told["clusters"],
    }


def planted(original: np.ndarray) -> dict[str, int]:
    times = np.bincount(original)
    return {"clusters": int((times > 1).sum()), "largest": int(times.max()), "pairs": pairs(original)}


def found_again(members: pd.DataFrame, kind: str, original: np.ndarray) -> dict[str, object]:
    """Of pairs and, B-cubed, of what was planted: `original` says for each row what it repeats."""
    label = np.arange(len(original))
    found = members[members["cluster_id"].str.startswith(f"{kind}-")]
    label[found["image_id"].to_numpy(int)] = found["representative"].to_numpy(int)
    joint = label.astype(np.int64) * len(label) + original
    copied = size(original) > 1
    return {
        "pairs": {
            "precision": round(pairs(joint) / pairs(label), 4),
            "recall": round(pairs(joint) / pairs(original), 4),
        },
        "b_cubed": {
            "precision": round(float((size(joint) / size(label))[copied].mean()), 4),
            "recall": round(float((size(joint) / size(original))[copied].mean()), 4),
        },
    }


def write_vectors(folder: Path, count: int, dimensions: int) -> np.ndarray:
    """Embeddings as clip-retrieval leaves them; (count,) of which each is a copy."""
    vectors, original = generated(count, dimensions)
    write(folder, vectors, {"caption": [f"a picture of the number {at}" for at in original]})
    return original


def write_pictures(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with their embeddings; (count,) of which each is a copy, and of which family, itself where of none."""
    chance = np.random.default_rng(20261127)
    (folder / "images").mkdir(parents=True)
    members, copies = count // 10, count // 10
    original, family = np.arange(count), np.arange(count)
    family[:members] -= np.arange(members) % FAMILY
    original[count - copies :] = members + np.arange(copies)
    pictures: dict[int, np.ndarray] = {}
    vectors = np.empty((count, 192), np.float32)
    for place in range(count):
        if original[place] != place:
            picture = pictures.pop(int(original[place]))
        elif family[place] != place:
            picture = pictures[int(family[place])].copy()
            picture[96:160, 96:160] = chance.integers(0, 256, 3)
        else:
            picture = drawing(chance)
        if place < members + copies:
            pictures[place] = picture
        quality = 80 if original[place] != place else 95
        Image.fromarray(picture).save(folder / "images" / f"{place}.jpg", quality=quality)
        blocks = picture.reshape(8, 32, 8, 32, 3).mean((1, 3)).ravel() / 255 - 0.5
        vectors[place] = blocks + 0.01 * chance.standard_normal(192)
    paths = [f"images/{place}.jpg" for place in range(count)]
    write(folder, normalised(vectors), {"image_path": paths, "caption": paths})
    return original, family


def drawing(chance: np.random.Generator) -> np.ndarray:
    """(256, 256, 3) uint8: rectangles on one colour."""
    picture = np.empty((256, 256, 3), np.uint8)
    picture[:] = chance.integers(0, 256, 3)
    for _ in range(12):
        top, left = chance.integers(0, 224, 2)
        height, width = chance.integers(16, 96, 2)
        picture[top : top + height, left : left + width] = chance.integers(0, 256, 3)
    return picture


def write(folder: Path, vectors: np.ndarray, columns: dict[str, list[str]]) -> None:
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", vectors.astype(np.float16))
    names = [str(at) for at in range(len(vectors))]
    pq.write_table(pa.table({"image_id": names, **columns}), folder / "metadata" / "metadata_0.parquet")


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
