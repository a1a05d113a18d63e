"""What surrounds the model, without it: captions a second and memory of `score` on a target that costs nothing.

``python tests/measures/throughput.py [--captions 2000000]``, as JSON; each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SMALL = 10_000
WORDS = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=2_000_000)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(one(asked.only)))
        return
    sizes = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, "--only", str(size)], check=True, capture_output=True, text=True
            ).stdout
        )
        for size in (SMALL, asked.captions)
    ]
    growth = sizes[1]["largest_memory_mb"] - sizes[0]["largest_memory_mb"]
    print(json.dumps({"runs": sizes, "memory_growth_mb": growth}, indent=2))


def one(count: int) -> dict[str, float]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from audit.runs.run import score

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "captions.parquet"
        words, chance = [f"word{number}" for number in range(WORDS)], random.Random(0)
        with pq.ParquetWriter(source, pa.schema([("caption", pa.string())])) as writer:
            for first in range(0, count, 20_000):
                rows = min(20_000, count - first)
                texts = [" ".join(chance.choices(words, k=chance.randint(3, 14))) for _ in range(rows)]
                writer.write_table(pa.table({"caption": texts}))
        began = time.perf_counter()
        report = score(free_target(), source, Path(folder) / "run", batch=256)
        seconds = time.perf_counter() - began
    return {
        "captions": report["captions"],
        "seconds": round(seconds, 1),
        "captions_per_second": round(report["captions"] / seconds),
        "largest_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def free_target():
    """Answers with what it already has: everything but the model is real."""
    import torch

    from audit.targets.one_step import Unconditional

    condition, denoised = torch.zeros(4096, 1, 1), torch.zeros(4096, 1, 2, 2)
    target = SimpleNamespace(
        name="free",
        sha256="0" * 64,
        latent_shape=(1, 2, 2),
        image_size=16,
        sigma_max=14.6,
        prediction="epsilon",
        device=torch.device("cpu"),
        dtype=torch.float32,
        noise_source="cpu",
        max_tokens=77,
        tokens=lambda captions: [len(text) for text in captions],
        encode=lambda captions: condition[: len(captions)],
        noise=lambda seeds: torch.ones(len(seeds), 1, 2, 2),
        denoise=lambda x, sigma, condition: denoised[: len(x)],
    )
    target.unconditional = Unconditional(target)
    return target


if __name__ == "__main__":
    main()
