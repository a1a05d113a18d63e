"""A run to review, written as the worker writes one, with pictures that stand in for generated ones: no model runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from audit.images import png_bytes, sha256
from audit.records import Neighbour, PictureKind, caption_id
from audit.runs.folder import RunFolder
from audit.runs.verdicts import NEAREST, PICTURES


class Decided(NamedTuple):
    """One caption of the run."""

    caption: str
    image: np.ndarray
    """(H, W, 3) in [0, 1]."""
    verdict: str
    near: tuple[Neighbour, ...]
    """The nearest first; it is the one that decided."""
    template_id: str | None = None
    distance: float = 100.0


def write(folder: Path, rows: Sequence[Decided]) -> RunFolder:
    """Make the run."""
    description = {"model": "none", "model_sha256": "0" * 64, "seeds": [0], "scores": ["dcs"], "noise": "cpu"}
    run = RunFolder.create(folder, description | {"guidance": 7.5, "captions": "c", "dtype": "float32"})
    captions = [row.caption for row in rows]
    ids = [caption_id(caption) for caption in captions]
    count = len(rows)
    scored = {"caption_id": ids, "caption": captions, "dcs": np.linspace(3, 1, count)}
    run.append(
        {
            "scores": pa.table(scored | {"seed": [0] * count}),
            "captions": pa.table(scored | {"occurrences": [1] * count, "tokens": [3] * count}),
        },
        0,
    )
    decided = pd.DataFrame(
        {
            "caption_id": ids,
            "caption": captions,
            "verdict": [row.verdict for row in rows],
            "seed": [0] * count,
            "neighbour_id": [row.near[0].image_id if row.near else None for row in rows],
            "template_id": [row.template_id for row in rows],
            "mv_distance": [row.distance for row in rows],
        }
    )
    table = pa.Table.from_pandas(decided, preserve_index=False)
    nearest = [
        [{name: getattr(each, name) for name in NEAREST.value_type.names} for each in row.near]
        for row in rows
    ]
    table = table.append_column("neighbours", pa.array(nearest, NEAREST))
    pngs = [png_bytes(row.image) for row in rows]
    pictures = {
        "caption_id": ids,
        "kind": [PictureKind.SAMPLE.value] * count,
        "seed": [0] * count,
        "image": pngs,
        "sha256": [sha256(png) for png in pngs],
    }
    for name in ("verdicts", "pictures"):
        (folder / name).mkdir(exist_ok=True)
    run.append({"verdicts": table, "pictures": pa.table(pictures, PICTURES)}, 0)
    return run
