"""Moved pieces behind verdicts: windows of a training set, and the score from which a piece counts.

A piece has no distance with a threshold of the field's own, as copies in place have (Webster 2023, section 4). Its
score counts from what the surest piece in samples of ordinary captions reaches: a calibrated score, and no *verified*
distance. Pieces by right, such as a frame that an author used in several pictures, are found too; people decide.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audit.errors import InputError
from audit.files import write_json
from audit.records import Check, CheckStatus, Sample, VerdictKind
from audit.scores.calibration import conformal_threshold, short
from audit.settings import DEMO, settings
from audit.verbatim.pieces import SCORING, Piece, PieceIndex, crops

if TYPE_CHECKING:
    from audit.retrieval.search import Retriever
    from audit.targets.base import Target

FPR = 0.01
"""Share of ordinary captions whose surest piece reaches the threshold."""
SAMPLED = 5_000
"""Training pictures whose windows tell what is rare; of a larger set, so many evenly spaced ones."""
SEARCHED, PER_CROP = 30, 10
"""Candidates by windows; and by embedding for each crop, where not all training pictures have their windows at hand."""


@dataclass(frozen=True)
class PieceCalibration:
    """What the surest moved piece reaches in samples of ordinary captions."""

    model_sha256: str
    index_sha256: str
    seeds: tuple[int, ...]
    """Of the samples of each caption; the surest piece of all of them counts."""
    steps: int
    guidance: float
    captions: int
    source: str
    """Where the captions came from."""
    values: tuple[float, ...]
    """(captions,) scores; 0 where no piece was found."""
    scoring: str = ""
    """`audit.verbatim.pieces.SCORING` of these scores."""

    @cached_property
    def threshold(self) -> float:
        """The score that a new ordinary caption's samples exceed with probability `FPR` at most."""
        return conformal_threshold(np.sort(np.asarray(self.values, float)), FPR)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self) | {"values": [short(value) for value in self.values]})

    @classmethod
    def load(cls, path: Path) -> PieceCalibration:
        """Read what `save` wrote."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: tuple(content[name]) for name in ("seeds", "values")}
            calibration = cls(**{**content, **lists})
            sound = len(calibration.values) == calibration.captions and np.isfinite(calibration.values).all()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"The file {path} is no calibration of moved pieces; write one with `calibrate --pieces`."
            ) from error
        if not sound:
            raise InputError(f"The calibration {path} is incomplete; calibrate anew.")
        return calibration


def pieces_folder() -> Path:
    """Windows of training sets, and calibrations on them."""
    return settings().data_dir / "pieces"


def default_path(model_sha256: str, index_sha256: str) -> Path:
    """Where `find_calibration` looks for the calibration of a model on a training set."""
    return pieces_folder() / f"{index_sha256[:16]}-{model_sha256[:16]}.json"


def find_calibration(model_sha256: str, index_sha256: str) -> PieceCalibration | None:
    """The calibration of a model on a training set, if it was made, of scores as they are made now."""
    for path in (default_path(model_sha256, index_sha256), DEMO / "pieces.json"):
        if path.is_file():
            found = PieceCalibration.load(path)
            if (found.model_sha256, found.index_sha256, found.scoring) == (
                model_sha256,
                index_sha256,
                SCORING,
            ):
                return found
    return None


Sampling = tuple[Sequence[int], int, float]
"""Seeds, steps and guidance of the samples that are looked through."""


def require_calibration(retriever: Retriever, model_sha256: str, sampling: Sampling) -> PieceCalibration:
    """The calibration of a model on a training set, for samples made so.

    Raises
    ------
    InputError
        If there is none, or it is of fewer samples a caption, of other sampling, or of too few captions.
    """
    calibration = find_calibration(model_sha256, retriever.index.sha256)
    if calibration is None:
        raise InputError(
            "How sure a moved piece has to be is not known for this model and training set; find out with "
            "`python -m audit calibrate MODEL --pieces --index INDEX`."
        )
    seeds, steps, guidance = sampling
    made = (calibration.steps, calibration.guidance)
    if len(seeds) > len(calibration.seeds) or (steps, guidance) != made:
        raise InputError(
            f"Moved pieces were calibrated on {len(calibration.seeds)} samples a caption of {made[0]} steps at "
            f"guidance {made[1]:g}, not on {len(seeds)} of {steps} steps at guidance {guidance:g}; use these or "
            "calibrate anew with `python -m audit calibrate MODEL --pieces`."
        )
    calibration.threshold  # raises where it is of too few captions  # noqa: B018
    return calibration


def open_windows(retriever: Retriever, progress: Callable[[int, int], None] | None = None) -> PieceIndex:
    """Windows of a training set: read where they were made before, else made now and kept in the data folder.

    Raises
    ------
    InputError
        If its rows are not at hand, as with a service, or its pictures are not.
    """
    index = retriever.index
    if index.rows is None:
        raise InputError(
            f"Moved pieces are looked for in an index folder, whose pictures can be read; {index.name} is a service."
        )
    path = pieces_folder() / f"{index.sha256[:16]}.npz"
    if path.is_file():
        return PieceIndex.load(path)
    rows = index.rows
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).round().astype(int))

    def pictures():
        for done, place in enumerate(places.tolist()):
            if progress:
                progress(done, len(places))
            pixels = retriever.pictures.get(rows[place])
            if pixels is not None:
                yield rows[place].image_id, pixels.astype(np.float32) / 255.0

    made = PieceIndex.build(pictures())
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return made


class Pieces:
    """Looks for moved pieces of training pictures in a caption's samples."""

    def __init__(
        self, windows: PieceIndex, retriever: Retriever, calibration: PieceCalibration | None = None
    ):
        self.windows = windows
        self.retriever = retriever
        self.calibration = calibration
        self.whole = len(windows.image_ids) >= len(retriever.index)

    @classmethod
    def calibrated(
        cls, windows: PieceIndex, retriever: Retriever, model_sha256: str, sampling: Sampling
    ) -> Pieces:
        """With the calibration of a model, for samples made so; InputError as `require_calibration`."""
        return cls(windows, retriever, require_calibration(retriever, model_sha256, sampling))

    def candidates(self, image: np.ndarray, nearest: Sequence[str]) -> list[str]:
        """Training pictures that a piece may come from: by windows, and by embedding where not all have theirs at hand."""
        found = list(nearest[:SEARCHED])
        if not self.whole:
            hits = self.retriever.by_images(crops(image), PER_CROP)
            found += [hit.image_id for hits_of_crop in hits for hit in hits_of_crop]
        return list(dict.fromkeys(found))

    def find(self, image: np.ndarray) -> tuple[list[Piece], int]:
        """Pieces that stand elsewhere or look otherwise than in their training picture, the surest first; one of each
        training picture. And how many of these were looked at.

        What stands in its own place as it was is the other checks' business.
        """
        query = self.windows.query(image)
        names = self.candidates(image, query.nearest)
        found = self.windows.find(image, names, self.retriever.picture, query)
        return [piece for piece in found if piece.kinds], len(names)

    def surest(self, samples: Sequence[Sample]) -> tuple[Sample, Piece | None, int]:
        """The surest piece of all samples with its sample, and how many pairs of a sample and a picture were looked at."""
        found = [(sample, *self.find(sample.image)) for sample in samples]
        looked_at = sum(count for *_, count in found)
        sample, pieces, _ = max(found, key=lambda each: each[1][0].score if each[1] else 0.0)
        return sample, pieces[0] if pieces else None, looked_at

    def check(self, samples: Sequence[Sample]) -> tuple[Check, tuple[Piece, ...]]:
        """The check behind a verdict of patch verbatim, with the pieces of the picture that decided, the surest first.

        There are none unless it holds.
        """
        assert self.calibration is not None, "a check needs a calibration"
        sample, piece, looked_at = self.surest(samples)
        threshold = self.calibration.threshold
        check = Check(
            VerdictKind.PV,
            CheckStatus.CHECKED,
            threshold,
            score=piece.score if piece else 0.0,
            seed=sample.seed if piece else None,
            image_id=piece.image_id if piece else None,
            holds=piece is not None and piece.score > threshold,
            looked_at=looked_at,
            note=f"{piece.area:.0%} of the picture, {' and '.join(piece.kinds)}." if piece else "",
        )
        if piece is None or not check.holds:
            return check, ()
        query = self.windows.query(sample.image)
        return check, (piece, *self.windows.others(sample.image, piece, self.retriever.picture, query))


def calibrate(
    target: Target,
    captions: Sequence[str],
    pieces: Pieces,
    *,
    source: str,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 16,
    guidance: float = 7.5,
    progress: Callable[[int, int], None] | None = None,
) -> PieceCalibration:
    """Generate ordinary captions in full and look for moved pieces in them."""
    from audit.runs.one_caption import ROWS, generate

    together, values = max(1, ROWS // len(seeds)), []
    for start in range(0, len(captions), together):
        for samples in generate(target, captions[start : start + together], seeds, steps, guidance):
            piece = pieces.surest(samples)[1]
            values.append(piece.score if piece else 0.0)
            if progress:
                progress(len(values), len(captions))
    return PieceCalibration(
        model_sha256=target.sha256,
        index_sha256=pieces.retriever.index.sha256,
        seeds=tuple(seeds),
        steps=steps,
        guidance=guidance,
        captions=len(values),
        source=source,
        values=tuple(values),
        scoring=SCORING,
    )
