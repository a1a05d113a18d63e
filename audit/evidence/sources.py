"""Where an exhibit comes from: a run, its training set and the labels of people, read once for many captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.dataset as dataset

from audit.corpus.remote import hashes_of
from audit.errors import InputError
from audit.evidence.people import NO_PEOPLE, Label, People
from audit.images import to_uint8
from audit.records import Neighbour, Picture, PictureKind, Template

if TYPE_CHECKING:
    from audit.corpus.reader import Row
    from audit.scores.calibration import Calibration


@dataclass(frozen=True)
class TrainingImage:
    """A picture of the training set, with whom it is owed to; or of its collection, kept from training."""

    row: Row
    trained: bool
    """False for one that the model was never trained on."""
    equal_files: tuple[str, ...]
    """Other training images whose files are the same."""
    image: np.ndarray | None
    """(H, W, 3) uint8 as it is stored; None where it cannot be opened."""
    hidden: bool = False
    """Whether it is not to be shown."""
    hashes: tuple[str, ...] = ()
    """sha256 of its file: as the training set has it, and of the bytes that are here where that is another."""


@dataclass(frozen=True)
class Whole:
    """What all exhibits of a run have in common."""

    run: dict[str, Any]
    sampling: dict[str, Any]
    """``verdicts.json``."""
    counts: dict[str, int]
    """Captions by verdict."""
    scored: int
    retrieved: int
    """Training images retrieved for each picture."""
    index: dict[str, Any]
    calibration: Calibration | None
    calibration_sha256: str | None
    pieces_rate: float | None
    """Share of ordinary captions whose surest moved piece counts; None where none were looked for."""
    library_named: bool
    """Whether the template library is another than the index's own."""


@dataclass(frozen=True)
class Source:
    """Everything that the exhibit of one caption is made of."""

    whole: Whole
    row: dict[str, Any]
    """Of the run's tables ``captions`` and ``verdicts``."""
    sample: Picture
    one_step: Picture
    pieces: Picture | None
    """The moved pieces that the verdict rests on, outlined."""
    training: TrainingImage | None
    """What the verdict names; None where nothing was compared."""
    template: Template | None
    """The template that the verdict names, or of whose family the training image is."""
    neighbours: tuple[tuple[Neighbour, TrainingImage | None], ...]
    labels: tuple[Label, ...]


class Sources:
    """Opens a run with what it was compared with.

    Raises
    ------
    InputError
        If the run has no verdicts or no pictures, or if the index or the templates are not those of its verdicts.
    """

    def __init__(self, run: Path, index: str, templates: Path | None = None, people: People = NO_PEOPLE):
        # the processes that build exhibits take sources as they are: to them these imports would be seconds
        from audit.retrieval.engines import open_index
        from audit.retrieval.search import TOP, PictureCache
        from audit.runs.calibrate import find_calibration
        from audit.runs.compared import DESCRIPTION
        from audit.runs.evaluate import read_sampling
        from audit.runs.folder import RunFolder
        from audit.runs.pieces import FPR
        from audit.runs.results import Results
        from audit.runs.templates import library_of
        from audit.runs.verdicts import kept_out

        self.run = RunFolder.open(run)
        self.results = Results(self.run)
        if not self.results.decided:
            raise InputError(f"The run {run} has no verdicts yet; make them with `verdict`.")
        if not self.run.parts("pictures"):
            raise InputError(f"The run {run} kept no pictures; decide it anew with this version.")
        read_sampling(run)  # a sentence where it is missing or damaged
        sampling = json.loads((run / DESCRIPTION).read_text(encoding="utf-8"))
        self.index = open_index(index)
        self.library = library_of(index, templates)
        check_training_set(run, sampling, self.index, self.library)
        self.pictures = PictureCache()
        self.kept_out = {row.image_id: row for row in kept_out(self.index)}
        self.people = people
        description = self.run.description
        calibration = find_calibration(
            description["model_sha256"], description["guidance"], description["seeds"], description["noise"]
        )
        self.rows = self.run.table("verdicts").set_index("caption_id", drop=False)
        self.whole = Whole(
            run=description,
            sampling=sampling,
            counts=self.results.verdicts(),
            scored=self.run.count("captions"),
            retrieved=min(TOP, len(self.index)),
            index={"sha256": self.index.sha256, "images": len(self.index), "search": self.index.described},
            calibration=calibration,
            calibration_sha256=calibration and digest(calibration),
            pieces_rate=None if sampling.get("pieces_over") is None else FPR,
            library_named=templates is not None,
        )

    def with_people(self, people: People) -> Sources:
        """The same with other labels."""
        other = copy(self)
        other.people = people
        return other

    def chosen(self, verdicts: Sequence[str]) -> list[str]:
        """Captions with one of the verdicts, in the order in which they were decided."""
        return self.rows.loc[self.rows["verdict"].isin(verdicts), "caption_id"].tolist()

    def of(self, caption_ids: Sequence[str]) -> list[Source]:
        """The sources of some captions; InputError for one without a verdict or whose pictures are gone."""
        pictures = self.results.pictures(caption_ids)
        parts = dataset.dataset(self.run.parts("captions"))
        scored = parts.to_table(filter=dataset.field("caption_id").isin(list(caption_ids))).to_pylist()
        captions = {row["caption_id"]: row for row in scored}
        return [self._of(name, captions.get(name, {}), pictures) for name in caption_ids]

    def _of(
        self, caption_id: str, scored: dict[str, Any], pictures: dict[tuple[str, PictureKind], Picture]
    ) -> Source:
        if caption_id not in self.rows.index:
            raise InputError(
                f"The run {self.run.path} has no verdict on a caption {caption_id[:40]!r}; give the caption_id of one "
                "that was generated in full."
            )
        kept = [pictures.get((caption_id, kind)) for kind in (PictureKind.SAMPLE, PictureKind.ONE_STEP)]
        if kept[0] is None or kept[1] is None:
            raise InputError(f"The run {self.run.path} has no pictures of caption {caption_id}.")
        row = {**scored, **self.rows.loc[caption_id].to_dict()}
        image_id = text(row["neighbour_id"])
        neighbours = tuple(Neighbour(**each) for each in row.get("neighbours", ()))
        training = self._training(image_id, whole=True) if image_id else None
        template = self._template(text(row["template_id"]), image_id)
        origin = self._training(template.image_id) if template else None
        if training and origin and origin.hidden:  # differences could give the template's picture away
            training = replace(training, hidden=True)
        return Source(
            whole=self.whole,
            row=row,
            sample=kept[0],
            one_step=kept[1],
            pieces=pictures.get((caption_id, PictureKind.PIECES)),
            training=training,
            template=template,
            neighbours=tuple((each, self._training(each.image_id)) for each in neighbours),
            labels=tuple(self.people.of(caption_id, kept[0].sha256)),
        )

    def _training(self, image_id: str, whole: bool = False) -> TrainingImage | None:
        """A training image, as it is stored or at the size of comparison; None for one that the index has not."""
        trained = image_id in self.index
        row = self.index.row(image_id) if trained else self.kept_out.get(image_id)
        if row is None:
            return None
        image = self.pictures.get(row)
        if whole and image is not None:
            image = to_uint8(self.pictures.open(row))
        hashes = hashes_of(row)
        return TrainingImage(
            row=row,
            trained=trained,
            equal_files=tuple(sorted(self.index.duplicates(image_id))) if trained and whole else (),
            image=image,
            hidden=not self.people.hidden.isdisjoint(hashes),
            hashes=hashes,
        )

    def _template(self, template_id: str | None, image_id: str | None) -> Template | None:
        if self.library is None:
            return None
        if template_id is None:
            return self.library.of_image(image_id) if image_id else None
        return next((each for each in self.library.templates if each.template_id == template_id), None)


def check_training_set(run: Path, sampling: dict[str, Any], index: Any, library: Any) -> None:
    """InputError where an index and its templates are not those that the verdicts were made with."""
    have = {
        "training_images": len(index),
        "embedder_sha256": index.embedder_sha256 or sampling.get("embedder_sha256"),
        "templates_sha256": library.sha256 if library else None,
    }
    recorded = (sampling.get("training_set") or {}).get("sha256")  # an earlier version wrote none
    if recorded is not None and recorded != index.sha256:
        raise InputError(
            f"The verdicts of the run {run} were made with the index {recorded[:12]} and not {index.sha256[:12]}; give "
            "the index that they were made with."
        )
    for name, value in have.items():
        if sampling.get(name) != value:
            raise InputError(
                f"The verdicts of the run {run} were made with {name} {sampling.get(name)} and not {value}; give the "
                "index and the templates that they were made with."
            )


def digest(calibration: Calibration) -> str:
    """sha256 of a calibration's scores and what they were made with."""
    content = {
        name: getattr(calibration, name)
        for name in ("model_sha256", "guidance", "seeds", "captions", "noise")
    }
    values = {name: list(map(float, row)) for name, row in calibration.values.items()}
    return hashlib.sha256(json.dumps([content, values], sort_keys=True).encode()).hexdigest()


def text(value: object) -> str | None:
    """A cell of a table as text; None where it is empty."""
    return value if isinstance(value, str) and value else None
