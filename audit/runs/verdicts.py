"""Verdicts of a run: its captions generated in full, compared with the training set, and decided."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from audit.corpus.reader import TABLE, Row, read_corpus
from audit.errors import InputError
from audit.files import write_json
from audit.images import png_bytes, sha256
from audit.records import Neighbour, PictureKind, Sample, VerdictKind, caption_id
from audit.retrieval.rows import Rows
from audit.runs.batch_size import BatchSize
from audit.runs.compared import DESCRIPTION
from audit.runs.engine import LOCAL, Engine
from audit.runs.folder import Heart, Parts, RunFolder
from audit.runs.one_caption import OwnImage, Proof, decode, generate, judge, pictured
from audit.runs.results import Results
from audit.runs.scoring import PER_CAPTION, score_batch
from audit.runs.templates import library_of
from audit.scores.ecs import ecs_seeds
from audit.targets.one_step import one_step
from audit.verbatim.verdict import Thresholds

if TYPE_CHECKING:
    from audit.retrieval.base import TrainingIndex
    from audit.retrieval.search import Retriever
    from audit.runs.pieces import Pieces
    from audit.targets.base import Target
    from audit.verbatim.pieces import PieceIndex
    from audit.verbatim.templates import TemplateLibrary

RULE = "under its threshold, and under half of what one colour reaches"
"""What a distance has to be for a check to hold; changed with the code that decides."""
CHOSEN = "chosen.parquet"
"""Captions that wait for their verdict, in the order in which they are decided."""
BLOCK = 64
"""Captions that a worker gets together."""
ROWS = 32
"""Captions times seeds sampled together."""
HITS = pa.list_(pa.struct([("template_id", pa.string()), ("seed", pa.int64()), ("masked_sse", pa.float64())]))
"""Templates that agree with a caption's samples, as they stand in the table."""
NEAREST = pa.list_(
    pa.struct(
        [
            ("image_id", pa.string()),
            ("caption", pa.string()),
            ("similarity", pa.float64()),
            ("rank", pa.int64()),
            ("sse", pa.float64()),
            ("blank", pa.float64()),
            ("author", pa.string()),
            ("licence", pa.string()),
            ("source", pa.string()),
        ]
    )
)
"""Training images nearest to the sample that decided."""
KEPT = 20
"""So many of them."""
PICTURES = pa.schema(
    [
        ("caption_id", pa.string()),
        ("kind", pa.string()),
        ("seed", pa.int64()),
        ("image", pa.binary()),
        ("sha256", pa.string()),
    ]
)
NUMBERS = ("sse", "masked_sse", "threshold", "pv_score")


def decide_run(
    target: Target,
    run: Path,
    training_set: TrainingSet,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 16,
    top: int | None = 100,
    engine: Engine = LOCAL,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Decide a run's captions, or go on where an earlier call stopped; writes the table ``verdicts``.

    Parameters
    ----------
    top
        Only so many captions of the highest first score; None for all.

    Returns
    -------
    What was done, with counts, as it is printed.
    """
    folder = RunFolder.open(run)
    with folder.work("deciding") as heart:
        return decide_into(
            folder,
            heart,
            target,
            training_set,
            seeds=seeds,
            steps=steps,
            top=top,
            engine=engine,
            progress=progress,
        )


@dataclass(frozen=True)
class TrainingSet:
    """What samples are compared with."""

    retriever: Retriever
    library: TemplateLibrary | None
    windows: PieceIndex | None = None
    """Where moved pieces are looked for too."""
    again: Callable[[], TrainingSet] | None = None
    """Opens it: a worker in another process gets this instead of what is open here."""

    @classmethod
    def open(
        cls,
        index: str,
        templates: Path | None,
        *,
        device: str,
        offline: bool,
        pieces: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> TrainingSet:
        """An index with its template library, or that of another folder, and on request with windows for moved pieces.

        `progress` is told of the windows' making, with (done, all) pictures.
        """
        from audit.retrieval.search import Retriever
        from audit.runs.pieces import open_windows

        retriever = Retriever.open(index, device=device, offline=offline)
        return cls(
            retriever,
            library_of(index, templates),
            open_windows(retriever, progress) if pieces else None,
            partial(cls.open, index, templates, device=device, offline=offline, pieces=pieces),
        )

    def __reduce__(self) -> tuple[Callable[[], TrainingSet], tuple[()]]:
        if self.again is None:
            raise TypeError("This training set can be used in its own process only.")
        return self.again, ()


def decide_into(
    run: RunFolder,
    heart: Heart,
    target: Target,
    training_set: TrainingSet,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 16,
    top: int | None = 100,
    engine: Engine = LOCAL,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Decide the captions of a run that have no verdict yet; see `decide_run`."""
    asked = run.description
    if asked["model_sha256"] != target.sha256:
        raise InputError(
            f"The run {run.path} was scored with the model {asked['model']} "
            f"({asked['model_sha256'][:12]}), not with {target.name} ({target.sha256[:12]}); load that one."
        )
    if asked["noise"] != target.noise_source:
        raise InputError(
            f"The run {run.path} was scored with --noise {asked['noise']}, where a seed means other noise "
            f"than with {target.noise_source}; give the same."
        )
    guidance = asked["guidance"]
    describe(run, target, training_set, seeds=seeds, steps=steps, guidance=guidance)
    edges = [name for name in PER_CAPTION if name not in asked["scores"]]
    chosen, pending = choose(run, top)
    finished = chosen - pending

    def tell() -> None:
        if progress:
            progress(finished, chosen)
        heart.tell(finished, chosen, "deciding")

    make = partial(
        Decider,
        training_set=training_set,
        seeds=seeds,
        steps=steps,
        guidance=guidance,
        edges=edges,
        edge_seeds=ecs_seeds(asked["seeds"]),
    )
    with Parts(run) as parts:
        tell()
        for _, tables in engine.run(make, target, run.path / CHOSEN, [(0, pending)], BLOCK):
            parts.add(tables)
            finished += len(tables["verdicts"])
            tell()
    counts = Results(run).verdicts()
    return {
        "run": str(run.path),
        "captions": run.total,
        "decided_before": chosen - pending,
        "decided_now": pending,
        "not_looked_at": run.total - sum(counts.values()),
        "verdicts": {kind.value: counts.get(kind.value, 0) for kind in VerdictKind},
        "seeds": list(seeds),
        "steps": steps,
        "guidance": guidance,
        "training_images": len(training_set.retriever.index),
    }


def choose(run: RunFolder, top: int | None) -> tuple[int, int]:
    """Write those of the highest captions that have no verdict yet, highest first; how many are chosen, how many
    of them are written.
    """
    if not run.parts("captions"):
        raise InputError(f"The run {run.path} has no scored captions yet; go on with `score`.")
    return Results(run).undecided(top, run.path / CHOSEN)


class Decider:
    """The worker of the second stage: blocks of captions in, rows of the table ``verdicts`` out.

    Parameters
    ----------
    edges
        Edge scores that the captions have not got yet: four seeds of one step are little beside full samples.
    edge_seeds
        Of the edge scores.
    """

    def __init__(
        self,
        target: Target,
        *,
        training_set: TrainingSet,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        edges: Sequence[str] = (),
        edge_seeds: Sequence[int] = (0,),
    ):
        self.target = target
        self.retriever, self.library = training_set.retriever, training_set.library
        self.own = OwnImages(self.retriever)
        self.seeds, self.steps, self.guidance = tuple(seeds), steps, guidance
        self.edges, self.edge_seeds = tuple(edges), tuple(edge_seeds)
        self.pieces = calibrated_pieces(target, training_set, self.seeds, steps, guidance)
        self.size = BatchSize(max(1, ROWS // len(self.seeds)))

    def __call__(self, block: pa.RecordBatch) -> Iterator[dict[str, pa.Table]]:
        """Verdicts of one batch after another."""
        for _, decided in self.size.batches(block, self.decide):
            yield decided

    def decide(self, rows: pa.RecordBatch) -> dict[str, pa.Table]:
        captions = rows.column("caption").to_pylist()
        samples = generate(self.target, captions, self.seeds, self.steps, self.guidance)
        proofs = [
            judge(caption, each, self.retriever, self.library, self.own.find(caption, image_id), self.pieces)
            for caption, each, image_id in zip(captions, samples, image_ids(rows), strict=True)
        ]
        table = attributed(verdict_rows(proofs), self.retriever.index)
        if self.edges:
            found = score_batch(self.target, captions, self.edge_seeds, self.guidance, self.edges)
            table = table.assign(**found.per_caption)
        decided = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
        hits = [[asdict(hit) for hit in proof.verdict.template_hits] for proof in proofs]
        nearest = [
            [
                {name: getattr(each, name) for name in NEAREST.value_type.names}
                for each in shown(proof)[1][:KEPT]
            ]
            for proof in proofs
        ]
        decided = decided.append_column("template_hits", pa.array(hits, HITS))
        decided = decided.append_column("neighbours", pa.array(nearest, NEAREST))
        return {"verdicts": decided, "pictures": self.pictures(proofs)}

    def pictures(self, proofs: Sequence[Proof]) -> pa.Table:
        """For each caption the sample that decided, the one step from the same noise, and the pieces that were found."""
        samples = [shown(proof)[0] for proof in proofs]
        condition = self.target.encode([proof.caption for proof in proofs])
        step = one_step(self.target, condition, [sample.seed for sample in samples], self.guidance)
        kinds = {
            PictureKind.SAMPLE: [sample.image for sample in samples],
            PictureKind.ONE_STEP: decode(self.target, step.denoised),
        }
        rows = [
            {"caption_id": caption_id(proof.caption), "kind": kind.value, "seed": sample.seed, "image": png}
            for kind, images in kinds.items()
            for proof, sample, png in zip(proofs, samples, map(png_bytes, images), strict=True)
        ]
        for proof, sample in zip(proofs, samples, strict=True):
            if (found := self.outlined(proof, sample)) is not None:
                row = {"caption_id": caption_id(proof.caption), "kind": PictureKind.PIECES.value}
                rows.append(row | {"seed": sample.seed, "image": png_bytes(found)})
        return pa.Table.from_pylist([row | {"sha256": sha256(row["image"])} for row in rows], schema=PICTURES)

    def outlined(self, proof: Proof, sample: Sample) -> np.ndarray | None:
        """A sample and the training picture that share moved pieces; None where none were found."""
        if not proof.pieces:
            return None
        from audit.verbatim.overlay import overlay

        training = self.retriever.picture(proof.pieces[0].image_id)
        return None if training is None else overlay(sample.image, training, proof.pieces)


def shown(proof: Proof) -> tuple[Sample, tuple[Neighbour, ...]]:
    """The sample that decided, the first where none was compared with anything; and what was retrieved for it."""
    seeds = [sample.seed for sample in proof.samples]
    place = seeds.index(proof.verdict.seed) if proof.verdict.seed in seeds else 0
    return proof.samples[place], proof.neighbours[place]


def calibrated_pieces(
    target: Target, training_set: TrainingSet, seeds: Sequence[int], steps: int, guidance: float
) -> Pieces | None:
    """What looks for moved pieces in samples made so; None where they are not looked for."""
    from audit.runs.pieces import Pieces

    if training_set.windows is None:
        return None
    return Pieces.calibrated(
        training_set.windows, training_set.retriever, target.sha256, (seeds, steps, guidance)
    )


def attributed(verdicts: pd.DataFrame, index: TrainingIndex) -> pd.DataFrame:
    """Verdicts with caption, author, licence and source of the training image that decided, as far as they are known."""
    rows = {
        name: index.row(name) for name in set(verdicts["neighbour_id"].dropna().astype(str)) if name in index
    }

    def told(what: Callable[[Row], str]) -> pd.Series:
        texts = {name: what(row) for name, row in rows.items()}
        names = verdicts["neighbour_id"].tolist()
        return pd.Series([texts.get(name, "") for name in names], index=verdicts.index, dtype="string")

    return verdicts.assign(
        neighbour_caption=told(lambda row: row.caption),
        neighbour_author=told(lambda row: row.author),
        neighbour_licence=told(lambda row: row.licence),
        neighbour_source=told(lambda row: row.source or row.url),
    )


def describe(run: RunFolder, target: Target, training_set: TrainingSet, **parameters: Any) -> None:
    """Write how the run's verdicts are made; InputError where earlier ones were made otherwise."""
    retriever, library = training_set.retriever, training_set.library
    pieces = calibrated_pieces(
        target, training_set, parameters["seeds"], parameters["steps"], parameters["guidance"]
    )
    description = {
        **{
            key: list(value) if isinstance(value, (list, tuple)) else value
            for key, value in parameters.items()
        },
        "rule": RULE,
        "thresholds": asdict(Thresholds()),
        "dtype": str(target.dtype).removeprefix("torch."),
        "embedder_sha256": retriever.embedder.sha256,
        "training_images": len(retriever.index),
        "training_set": retriever.index.provenance,
        "templates": len(library.templates) if library else 0,
        "templates_sha256": library.sha256 if library else None,
        "pieces_over": pieces.calibration.threshold if pieces and pieces.calibration else None,
    }
    path = run.path / DESCRIPTION
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged; score into another folder.") from error
        for name, value in description.items():
            if before.get(name) != value:
                raise InputError(
                    f"Verdicts of the run {run.path} were made with {name} {before.get(name)} and not "
                    f"{value}; go on with the same, or score into another folder."
                )
    else:
        write_json(path, description)


def image_ids(rows: pa.RecordBatch) -> list[str | None]:
    """Each caption's own image as its file named it."""
    if "image_id" not in rows.schema.names:
        return [None] * len(rows)
    return [image_id or None for image_id in rows.column("image_id").to_pylist()]


class OwnImages:
    """Own images of captions: out of the index, or out of the collection that it was built from.

    The collection also holds pairs that were kept from training.
    """

    def __init__(self, retriever: Retriever):
        self.retriever = retriever
        self.kept_out = {row.image_id: row for row in kept_out(retriever.index)}
        self.by_caption: dict[str, list[Row]] = defaultdict(list)
        for row in self.kept_out.values():
            self.by_caption[row.caption].append(row)

    def find(self, caption: str, image_id: str | None = None) -> OwnImage | None:
        """The images of a caption, by name and by exactly its caption; None where there is none."""
        index = self.retriever.index
        rows = [*(index.by_caption(caption) or ()), *self.by_caption.get(caption, ())]
        if image_id is None:
            return pictured(rows, self.retriever)
        if image_id in index:
            return pictured([index.row(image_id), *rows], self.retriever)
        if image_id in self.kept_out:
            return pictured([self.kept_out[image_id], *rows], self.retriever)
        found = pictured(rows, self.retriever) or OwnImage({})
        return OwnImage({image_id: None} | found.pictures, found.duplicates)


def kept_out(index: TrainingIndex) -> list[Row]:
    """Rows of the table that an index was built from which were kept from training; none where it is not at hand."""
    root = index.rows.root if isinstance(index.rows, Rows) else None
    if root is None or not (root.folder / TABLE).is_file():
        return []
    try:
        return [row for row in read_corpus(root.folder).rows if not row.indexed]
    except InputError:
        return []


def verdict_rows(proofs: Sequence[Proof]) -> pd.DataFrame:
    """Rows of the table ``verdicts``: what was decided, and each check's numbers."""
    rows = []
    for proof in proofs:
        verdict = proof.verdict
        row = {
            "caption_id": caption_id(proof.caption),
            "caption": proof.caption,
            "verdict": verdict.kind.value,
            "reason": verdict.reason,
            "sse": verdict.sse,
            "masked_sse": verdict.masked_sse,
            "neighbour_id": verdict.neighbour_id,
            "template_id": verdict.template_id,
            "seed": verdict.seed,
            "threshold": verdict.threshold,
            "own_id": proof.own_id,
            "decided_by": verdict.decided_by,
        }
        for check in verdict.checks:
            kind = check.kind.value.lower()
            row |= {
                f"{kind}_status": check.status.value,
                f"{kind}_seed": check.seed,
                f"{kind}_image_id": check.image_id,
                f"{kind}_looked_at": check.looked_at,
            }
            if check.kind is VerdictKind.PV:
                row["pv_score"] = check.score
            else:
                row |= {f"{kind}_distance": check.distance, f"{kind}_blank": check.blank}
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in table.columns:
        if name.endswith("seed"):
            table[name] = table[name].astype("Int64")
        elif name in NUMBERS or name.endswith(("distance", "blank")):
            table[name] = table[name].astype("float64")
        elif not name.endswith("looked_at"):
            table[name] = table[name].astype("string")
    return table
