"""A whole audit as one piece of work: one step of all captions, then the dear part for those that score highest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit.runs.engine import LOCAL, Engine
from audit.runs.plan import Plan, plan, share
from audit.runs.run import open_run, read_captions_into, score_into
from audit.runs.verdicts import TrainingSet, decide_into

if TYPE_CHECKING:
    from audit.targets.base import Target


def audit_captions(
    target: Target,
    captions: str | Path,
    out: Path,
    training_set: TrainingSet | None,
    *,
    top: str = "1%",
    scores: Sequence[str] = ("dcs", "magnitude"),
    seeds: Sequence[int] = (0,),
    guidance: float = 7.5,
    limit: int | None = None,
    batch: int | None = None,
    sample_seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 16,
    engine: Engine = LOCAL,
    planned: Callable[[Plan], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score every caption; then edge scores, full samples, retrieval and verdicts for the highest.

    The run is held from beginning to end, and a stop at any time is one stop.

    Parameters
    ----------
    top
        How many captions go on to the second stage, as `share` reads it.
    planned
        Told what is still to be paid, once the captions are counted and before the next is scored.
    progress
        Called with (captions done, captions) of the present stage.
    """
    source, run = open_run(target, captions, out, scores=scores, seeds=seeds, guidance=guidance, limit=limit)
    with run.work("reading") as heart:
        read_captions_into(run, heart, source)
        chosen = share(top, run.total) if training_set else 0
        cost = plan(run.total, seeds=seeds, scores=scores, top=chosen, sample_seeds=sample_seeds, steps=steps)
        if planned:
            left = sum(stop - start for start, stop in run.missing())
            undecided = max(0, chosen - run.count("verdicts"))
            planned(
                plan(left, seeds=seeds, scores=scores, top=undecided, sample_seeds=sample_seeds, steps=steps)
            )
        scored = score_into(run, heart, target, batch=batch, engine=engine, progress=progress)
        decided = None
        if training_set and chosen:
            decided = decide_into(
                run,
                heart,
                target,
                training_set,
                seeds=sample_seeds,
                steps=steps,
                top=chosen,
                engine=engine,
                progress=progress,
            )
    return {
        "scored": scored,
        "decided": decided,
        "evaluations": cost.evaluations,
        "evaluations_of_full_sampling": cost.baseline,
    }
