"""Everything that the prompt lab shows of one caption, as files for `bundle.zip_bytes`."""

from __future__ import annotations

import datetime
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from audit import __version__
from audit.images import png_bytes, resize
from audit.ui.bundle import csv_bytes, json_bytes
from audit.ui.overlays import blend, difference, heat
from audit.ui.pictures import png
from audit.ui.scores import score_rows
from audit.ui.url import Lab, write_lab

if TYPE_CHECKING:
    from audit.records import Sample
    from audit.runs.one_caption import Look, Proof
    from audit.scores.calibration import Calibration
    from audit.targets.base import Target
    from audit.ui.bench import TrainingSet
    from audit.ui.lab import Near


def look_files(look: Look, calibration: Calibration | None, opacity: float) -> dict[str, bytes]:
    """One-step pictures, heatmaps and scores."""
    files = {}
    for seed, picture in zip(look.seeds, look.pictures, strict=True):
        files[f"one_step/seed_{seed}.png"] = png_bytes(picture)
    for name, score in look.scores.items():
        if score.heatmap is None:
            continue
        height, width = look.pictures.shape[1:3]
        coloured = heat(score.heatmap, height, width)
        files[f"heatmaps/{name}.png"] = png_bytes(coloured)
        files[f"heatmaps/{name}.csv"] = matrix_csv(score.heatmap)
        files[f"heatmaps/{name}_over_seed_{look.seeds[0]}.png"] = png_bytes(
            blend(look.pictures[0], coloured, opacity)
        )
    files["scores.csv"] = csv_bytes(score_rows([look], calibration))
    files["scores_per_seed.csv"] = csv_bytes(
        [
            {"seed": seed} | {name: float(values[place]) for name, values in look.per_seed.items()}
            for place, seed in enumerate(look.seeds)
        ]
    )
    if calibration is not None:
        files["ordinary_scores.csv"] = ordinary_csv(calibration)
    return files


def proof_files(
    proof: Proof, near: list[Near], have: TrainingSet, image_id: str, sample: Sample
) -> dict[str, bytes]:
    """Full samples, neighbours, the pair compared, and the checks."""
    files = {f"full_samples/seed_{each.seed}.png": png_bytes(each.image) for each in proof.samples}
    for rank, entry in enumerate(near, start=1):
        picture = have.picture(entry.neighbour.image_id)
        if picture is not None:
            files[f"neighbours/{rank:02}_{file_name(entry.neighbour.image_id)}.png"] = png_bytes(picture)
    files["neighbours.csv"] = csv_bytes(neighbour_rows(proof))
    files["checks.csv"] = csv_bytes([asdict(check) for check in proof.verdict.checks])
    picture, generated = have.picture(image_id), resize(sample.image)
    if picture is not None:
        files["comparison/generated.png"] = png_bytes(generated)
        files["comparison/training_image.png"] = png_bytes(picture)
        files["comparison/difference.png"] = png_bytes(difference(generated, picture))
    template = have.covering(image_id)
    if template is not None:
        files["comparison/template.png"] = png_bytes(template.image)
        files["comparison/mask.png"] = png(template.mask.astype(np.float32))
        files["comparison/masked_difference.png"] = png_bytes(
            difference(generated, template.image, template.mask)
        )
    return files


def facts(target: Target, look: Look, state: Lab, proof: Proof | None, have: TrainingSet | None) -> bytes:
    """What was asked of which model, and what was decided, as JSON."""
    return json_bytes(
        {
            "verbatim": __version__,
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "caption": look.caption,
            "caption_id": look.caption_id,
            "model": {
                "name": target.name,
                "sha256": target.sha256,
                "prediction": target.prediction,
                "sigma_max": target.sigma_max,
                "image_size": target.image_size,
                "device": str(target.device),
                "dtype": str(target.dtype),
            },
            "seeds": look.seeds,
            "steps": state.steps,
            "guidance": look.guidance,
            "tokens": look.tokens,
            "truncated": look.truncated,
            "scores": {name: score.value for name, score in look.scores.items()},
            "training_set": {"pictures": len(have.index), "embedder": have.index.embedder_name}
            if have
            else None,
            "own_training_image": proof.own_id if proof else None,
            "verdict": asdict(proof.verdict) if proof else None,
            "link": write_lab(state),
        }
    )


def file_name(image_id: str) -> str:
    """An image id as a file name: names come from the training set, so anything may stand in them."""
    return re.sub(r"[^\w\-]", "_", image_id, flags=re.ASCII)[:80]


def neighbour_rows(proof: Proof) -> list[dict[str, object]]:
    """A row for each sample and training image retrieved for it."""
    return [
        {
            "seed": sample.seed,
            **{name: value for name, value in asdict(neighbour).items() if name not in ("path", "member")},
        }
        for sample, neighbours in zip(proof.samples, proof.neighbours, strict=True)
        for neighbour in neighbours
    ]


def ordinary_csv(calibration: Calibration) -> bytes:
    """Sorted scores of the ordinary captions, one column a score."""
    columns = {name: [float(value) for value in values] for name, values in calibration.values.items()}
    count = max(map(len, columns.values()))
    return csv_bytes(
        [
            {name: values[row] if row < len(values) else "" for name, values in columns.items()}
            for row in range(count)
        ]
    )


def matrix_csv(values: np.ndarray) -> bytes:
    """A heatmap's values, one line a row."""
    return "\n".join(",".join(f"{value:.7g}" for value in row) for row in values).encode()
