"""The whole way of one caption: one step and its scores, then full samples, neighbours and verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from audit.errors import InputError
from audit.records import Neighbour, Sample, Score, Verdict, VerdictKind, caption_id
from audit.scores.dcs import dcs_heatmap
from audit.scores.ecs import consistent, ecs_heatmap, ecs_seeds
from audit.scores.magnitude import magnitude_heatmap
from audit.targets.one_step import OneStep, one_step
from audit.targets.sampler import sample

if TYPE_CHECKING:
    from torch import Tensor

    from audit.corpus.reader import Row
    from audit.retrieval.search import Retriever
    from audit.runs.pieces import Pieces
    from audit.targets.base import Target
    from audit.verbatim.pieces import Piece
    from audit.verbatim.templates import TemplateLibrary

Rows = TypeVar("Rows", "np.ndarray", "Tensor")
ROWS = 32
"""Captions times seeds denoised together."""


@dataclass(frozen=True)
class Proof:
    """Full samples of one caption, what is nearest to each in the training set, and the verdict."""

    caption: str
    samples: tuple[Sample, ...]
    """One a seed."""
    neighbours: tuple[tuple[Neighbour, ...], ...]
    """For each sample the training images retrieved for it, the smallest exact distance first."""
    verdict: Verdict
    own_id: str | None
    """The caption's own training image, where it is known; the nearest of them where they share the caption."""
    own_ids: frozenset[str]
    """All of them and their exact copies: none of these counts as retrieved."""
    pieces: tuple[Piece, ...] = ()
    """Of one training picture, in the sample that decided, where the verdict is PV."""


@dataclass(frozen=True)
class Look:
    """One denoising step of one caption."""

    caption: str
    seeds: tuple[int, ...]
    guidance: float
    pictures: np.ndarray
    """(seeds, H, W, 3) float32 in [0, 1]: one-step pictures at `guidance`."""
    scores: dict[str, Score]
    """``dcs`` and ``magnitude`` (means over the seeds; absent for zero terminal SNR), ``ecs``, ``ecs_g1``."""
    per_seed: dict[str, np.ndarray]
    """Name -> (seeds,) for ``dcs`` and ``magnitude``."""
    tokens: int
    truncated: bool
    """Whether the model sees only the start of the caption."""

    @property
    def caption_id(self) -> str:
        return caption_id(self.caption)


def look(
    target: Target,
    captions: Sequence[str],
    seeds: Sequence[int],
    guidance: float = 7.5,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Look]:
    """Denoise each caption once at each seed: pictures, scores and heatmaps.

    Guidance 1 needs no further evaluation of the model: it is the conditional branch. The edge scores look at
    their own four seeds (`ecs_seeds`), whatever is shown.

    Parameters
    ----------
    progress
        Called with (done, all) captions; what it raises ends the look.
    """
    condition = target.encode(captions)
    tokens = target.tokens(captions)
    edge_seeds = ecs_seeds(seeds)
    stepped = list(dict.fromkeys((*seeds, *edge_seeds)))
    shown, edged = len(seeds), [stepped.index(seed) for seed in edge_seeds]
    together = max(1, ROWS // len(stepped))
    looks = []
    for start in range(0, len(captions), together):
        if progress:
            progress(start, len(captions))
        rows = slice(start, start + together)
        repeated = condition[rows].repeat_interleave(len(stepped), dim=0)
        step = one_step(target, repeated, stepped * len(captions[rows]), guidance)
        pictures = by_caption(decode(target, step.denoised), len(stepped))
        bare = by_caption(step.conditional, len(stepped))[:, edged].flatten(0, 1)
        pictures_g1 = by_caption(decode(target, bare), len(edged))
        maps = {name: by_caption(table, len(stepped))[:, :shown] for name, table in heatmaps(step).items()}
        for row, caption in enumerate(captions[rows]):
            per_seed = {name: REDUCTIONS[name](table[row]) for name, table in maps.items()}
            scores = {
                name: Score(name, float(values.mean()), maps[name][row].mean(axis=0), tuple(seeds))
                for name, values in per_seed.items()
            }
            scores["ecs"] = edge_score("ecs", pictures[row, edged], edge_seeds)
            scores["ecs_g1"] = edge_score("ecs_g1", pictures_g1[row], edge_seeds)
            looks.append(
                Look(
                    caption=caption,
                    seeds=tuple(seeds),
                    guidance=guidance,
                    pictures=pictures[row, :shown],
                    scores=scores,
                    per_seed=per_seed,
                    tokens=tokens[start + row],
                    truncated=tokens[start + row] > target.max_tokens,
                )
            )
    return looks


def heatmaps(step: OneStep) -> dict[str, np.ndarray]:
    """Name -> (batch, h, w); none where sigma is infinite."""
    if math.isinf(step.sigma):
        return {}
    return {
        "dcs": dcs_heatmap(step.x, step.denoised).cpu().numpy(),
        "magnitude": magnitude_heatmap(step.conditional, step.unconditional, step.sigma).cpu().numpy(),
    }


REDUCTIONS = {
    "dcs": lambda maps: maps.mean(axis=(1, 2)),
    "magnitude": lambda maps: np.sqrt(np.square(maps).sum(axis=(1, 2))),
}
"""Score from heatmap, (seeds, h, w) -> (seeds,)."""


def edge_score(name: str, pictures: np.ndarray, seeds: Sequence[int]) -> Score:
    heatmap = ecs_heatmap(pictures)
    return Score(name, consistent(heatmap), heatmap, tuple(seeds))


def decode(target: Target, latents: Tensor) -> np.ndarray:
    """Pictures of the latents; InputError where the model gave something else than numbers."""
    pictures = target.decode(latents)
    if not (latents.isfinite().all() and np.isfinite(pictures).all()):
        raise InputError(
            f"The model {target.name} gives no numbers (NaN) in {str(target.dtype).removeprefix('torch.')}; "
            "load it with --dtype float32 or VERBATIM_DTYPE=float32."
        )
    return pictures


def by_caption(rows: Rows, seeds: int) -> Rows:
    """(captions * seeds, ...) as (captions, seeds, ...)."""
    return rows.reshape(-1, seeds, *rows.shape[1:])


def prove(
    target: Target,
    caption: str,
    retriever: Retriever,
    library: TemplateLibrary | None,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 16,
    guidance: float = 7.5,
    own: OwnImage | None = None,
    pieces: Pieces | None = None,
    progress: Callable[[int, int], None] | None = None,
    retrieved: Callable[[list[list[Neighbour]]], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Proof:
    """Generate a caption in full, find what is nearest in the training set, and decide.

    Parameters
    ----------
    own
        The caption's own training images; by default those of the index that have exactly this caption.
    pieces
        Looks for moved pieces too.
    progress
        Called with (done, all) as sampling goes on; retrieval and decision are the last of `all`.
    retrieved
        Told for each sample what is nearest by likeness, before any pixels are compared.
    cancelled
        Asked before each step, and while pictures are fetched that have an address only.
    """
    samples = generate(
        target, [caption], seeds, steps, guidance, progress=progress and ahead(progress), cancelled=cancelled
    )[0]
    own = own or own_image(caption, retriever)
    proof = judge(caption, samples, retriever, library, own, pieces, retrieved=retrieved, cancelled=cancelled)
    if progress:
        progress(steps + 1, steps + 1)
    return proof


def ahead(progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Progress of sampling, with one step more to come."""
    return lambda done, steps: progress(done, steps + 1)


def generate(
    target: Target,
    captions: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[list[Sample]]:
    """Full samples of captions together: for each caption one a seed."""
    condition = target.encode(captions).repeat_interleave(len(seeds), dim=0)
    latents = sample(
        target,
        condition,
        list(seeds) * len(captions),
        steps=steps,
        guidance=guidance,
        progress=progress,
        cancelled=cancelled,
    )
    images = by_caption(decode(target, latents), len(seeds))
    return [
        [Sample(image, seed, steps, guidance) for image, seed in zip(rows, seeds, strict=True)]
        for rows in images
    ]


@dataclass(frozen=True)
class OwnImage:
    """The image that belongs to a caption under audit, or all of them where they share the caption."""

    pictures: dict[str, np.ndarray | None]
    """Image id -> (256, 256, 3) float32 in [0, 1]; None where its file is missing or damaged."""
    duplicates: frozenset[str] = frozenset()
    """Training images that are equal to one of them, byte for byte."""


def own_image(caption: str, retriever: Retriever, image_id: str | None = None) -> OwnImage | None:
    """The training images of a caption, by name and by exactly its caption; None where there is none."""
    named = [] if image_id is None else [retriever.index.row(image_id)]
    return pictured([*named, *(retriever.index.by_caption(caption) or ())], retriever)


def pictured(rows: Sequence[Row], retriever: Retriever) -> OwnImage | None:
    """Rows of a training set as own images, with their exact copies in the index; None for no rows."""
    pictures: dict[str, np.ndarray | None] = {}
    for row in rows:
        pixels = retriever.pictures.get(row)
        pictures[row.image_id] = None if pixels is None else pixels.astype(np.float32) / 255.0
    duplicates = frozenset().union(*map(retriever.index.duplicates, pictures))
    return OwnImage(pictures, duplicates) if pictures else None


def judge(
    caption: str,
    samples: Sequence[Sample],
    retriever: Retriever,
    library: TemplateLibrary | None,
    own: OwnImage | None,
    pieces: Pieces | None = None,
    *,
    retrieved: Callable[[list[list[Neighbour]]], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Proof:
    """Retrieve for each sample, re-rank on exact pixels, and decide.

    Parameters
    ----------
    retrieved
        Told for each sample what is nearest by likeness, before any pixels are compared.
    cancelled
        Asked while pictures are fetched that have an address only.
    """
    from audit.retrieval.search import TOP
    from audit.verbatim.verdict import decide

    found = retriever.by_images([each.image for each in samples], TOP)
    if retrieved:
        retrieved(found)
    neighbours = [
        retriever.rerank(each.image, hits, cancelled=cancelled)
        for each, hits in zip(samples, found, strict=True)
    ]
    verdict = decide(
        samples,
        own=own.pictures if own else {},
        own_duplicates=own.duplicates if own else (),
        neighbours_per_sample=neighbours,
        templates=library.templates if library else None,
        templates_gap=library.gap(retriever.index.sha256, retriever.index) if library else "",
    )
    proof = Proof(
        caption=caption,
        samples=tuple(samples),
        neighbours=tuple(map(tuple, neighbours)),
        verdict=verdict,
        own_id=next(check.image_id for check in verdict.checks if check.kind is VerdictKind.MV),
        own_ids=frozenset(own.pictures) | own.duplicates if own else frozenset(),
    )
    return look_for_pieces(proof, pieces) if pieces else proof


def look_for_pieces(proof: Proof, pieces: Pieces) -> Proof:
    """A proof with the check for moved pieces, which is made where no copy was found."""
    from audit.verbatim.verdict import with_pieces

    copied = proof.verdict.kind not in (VerdictKind.N, VerdictKind.U)
    check, found = (None, ()) if copied else pieces.check(proof.samples)
    verdict = with_pieces(proof.verdict, check, len(proof.samples))
    return replace(proof, verdict=verdict, pieces=found)
