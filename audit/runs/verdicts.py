"""Verdicts of a run: its captions generated in full, compared with the training set, and decided."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from audit.corpus.reader import Row, read_corpus
from audit.errors import Cancelled, InputError
from audit.records import VerdictKind, caption_id
from audit.runs.folder import Heart, Parts, RunFolder, write_json
from audit.runs.one_caption import OwnImage, Proof, generate, judge, pictured
from audit.runs.scoring import NAMES

if TYPE_CHECKING:
    from audit.retrieval.search import Retriever
    from audit.targets.base import Target
    from audit.verbatim.templates import TemplateLibrary

DESCRIPTION = "verdicts.json"
ROWS = 32
"""Captions times seeds sampled together."""
NUMBERS = ("sse", "masked_sse", "threshold")


def decide_run(
    target: Target,
    run: Path,
    retriever: Retriever,
    library: TemplateLibrary | None,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 16,
    top: int | None = 100,
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
    if folder.description["model_sha256"] != target.sha256:
        raise InputError(
            f"The run {run} was scored with the model {folder.description['model']} "
            f"({folder.description['model_sha256'][:12]}), not with {target.name} ({target.sha256[:12]}); "
            "load that one."
        )
    if folder.description["noise"] != target.noise_source:
        raise InputError(
            f"The run {run} was scored with --noise {folder.description['noise']}, where a seed means other noise "
            f"than with {target.noise_source}; give the same."
        )
    guidance = folder.description["guidance"]
    with folder.owned(), Heart(folder, "deciding") as heart:
        describe(folder, target, retriever, library, seeds=seeds, steps=steps, guidance=guidance)
        folder.repair()
        chosen = highest(folder, top)
        done = folder.table("verdicts")
        pending = chosen.loc[~chosen["caption_id"].isin(done["caption_id"])] if len(done) else chosen
        finished = len(chosen) - len(pending)

        def tell() -> None:
            if progress:
                progress(finished, len(chosen))
            try:
                heart.tell(finished, len(chosen))
            except Cancelled:
                parts.write()
                raise

        parts = Parts(folder)
        tell()
        corpus = OwnImages(retriever)
        together = max(1, ROWS // len(seeds))
        for start in range(0, len(pending), together):
            rows = pending.iloc[start : start + together]
            captions = rows["caption"].tolist()
            samples = generate(target, captions, seeds, steps, guidance)
            proofs = [
                judge(caption, each, retriever, library, corpus.find(caption, image_id))
                for caption, each, image_id in zip(captions, samples, image_ids(rows), strict=True)
            ]
            decided = pa.Table.from_pandas(verdict_rows(proofs), preserve_index=False)
            parts.add({"verdicts": decided.replace_schema_metadata()})
            finished += len(rows)
            tell()
        parts.write()
        counts = Counter(folder.table("verdicts")["verdict"])
    return {
        "run": str(run),
        "captions": len(folder.captions()),
        "decided_before": len(chosen) - len(pending),
        "decided_now": len(pending),
        "not_looked_at": len(folder.captions()) - sum(counts.values()),
        "verdicts": {kind.value: counts[kind.value] for kind in VerdictKind},
        "seeds": list(seeds),
        "steps": steps,
        "guidance": guidance,
        "training_images": len(retriever.index),
    }


def describe(
    folder: RunFolder,
    target: Target,
    retriever: Retriever,
    library: TemplateLibrary | None,
    **parameters: Any,
) -> None:
    """Write how the run's verdicts are made; InputError where earlier ones were made otherwise."""
    description = {
        **{
            key: list(value) if isinstance(value, (list, tuple)) else value
            for key, value in parameters.items()
        },
        "dtype": str(target.dtype).removeprefix("torch."),
        "embedder_sha256": retriever.embedder.sha256,
        "training_images": len(retriever.index),
        "templates": len(library.templates) if library else 0,
        "templates_sha256": library.sha256 if library else None,
    }
    path = folder.path / DESCRIPTION
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in description.items():
            if before.get(name) != value:
                raise InputError(
                    f"Verdicts of the run {folder.path} were made with {name} {before.get(name)} and not "
                    f"{value}; go on with the same, or score into another folder."
                )
    else:
        write_json(path, description)


def highest(folder: RunFolder, top: int | None) -> pd.DataFrame:
    """The captions to decide, highest first score first."""
    scored = folder.table("captions")
    if scored.empty:
        raise InputError(f"The run {folder.path} has no scored captions yet; go on with `score`.")
    name = next(name for name in NAMES if name in scored.columns)
    scored[name] = scored[name].where(np.isfinite(scored[name]))  # what is no number comes last
    ordered = scored.sort_values([name, "caption_id"], ascending=[False, True], na_position="last")
    return ordered if top is None else ordered.head(top)


def image_ids(rows: pd.DataFrame) -> list[str | None]:
    """Each caption's own image as its file named it."""
    if "image_id" not in rows.columns:
        return [None] * len(rows)
    return [image_id or None for image_id in rows["image_id"]]


class OwnImages:
    """Own images of captions: out of the index, or out of the collection that it was built from.

    The collection also holds pairs that were kept from training.
    """

    def __init__(self, retriever: Retriever):
        self.retriever = retriever
        self.by_id = {row.image_id: row for row in retriever.index.rows}
        for row in collection(retriever.index.folder):
            self.by_id.setdefault(row.image_id, row)
        self.by_caption: dict[str, list[Row]] = defaultdict(list)
        for row in self.by_id.values():
            self.by_caption[row.caption].append(row)

    def find(self, caption: str, image_id: str | None = None) -> OwnImage | None:
        """The images of a caption, by name and by exactly its caption; None where there is none."""
        rows = self.by_caption.get(caption, [])
        if image_id is not None and image_id not in self.by_id:
            found = pictured(rows, self.retriever) or OwnImage({})
            return OwnImage({image_id: None} | found.pictures, found.duplicates)
        named = [] if image_id is None else [self.by_id[image_id]]
        return pictured([*named, *rows], self.retriever)


def collection(index: Path) -> list[Row]:
    """Rows of the collection that an index was built from; none where it is not at hand."""
    try:
        source = json.loads((index / "index.json").read_text(encoding="utf-8"))["source"]
        return read_corpus(index / source).rows
    except (OSError, ValueError, KeyError):
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
                f"{kind}_distance": check.distance,
                f"{kind}_seed": check.seed,
                f"{kind}_image_id": check.image_id,
                f"{kind}_looked_at": check.looked_at,
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in table.columns:
        if name.endswith("seed"):
            table[name] = table[name].astype("Int64")
        elif name in NUMBERS or name.endswith("distance"):
            table[name] = table[name].astype("float64")
        elif not name.endswith("looked_at"):
            table[name] = table[name].astype("string")
    return table
