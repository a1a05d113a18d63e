"""The verdict on one caption, by METHOD's thresholds alone (Webster 2023, section 4).

TV (a template came back) is looked at first, then MV (the caption's own training image), then RV (another
training image). A distance also has to be less than half of what a picture of one colour reaches: of faint training
images the thresholds alone would take any blank picture for a copy. N says that every check was made and none holds;
where one could not be made and none holds, it is U. The thresholds are relaxed on purpose: people confirm or reject
each verdict.

Pieces that stand elsewhere than in their training image (PV) are looked for where that is asked for and none of the
others holds: that takes as long as generating the samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from audit.errors import InputError
from audit.images import resize
from audit.records import (
    NEARER,
    Check,
    CheckStatus,
    Neighbour,
    Sample,
    Template,
    TemplateHit,
    Verdict,
    VerdictKind,
    limit,
)
from audit.verbatim.distances import blank_sse, masked_sse, sse
from audit.verbatim.masks import check_mask

NOT_LOOKED_FOR = Check(
    VerdictKind.PV,
    CheckStatus.NOT_AVAILABLE,
    0.0,
    note="Moved pieces were not looked for: another check holds already.",
)
NO_LIBRARY = "There is no template library of this index; make one with `python -m audit templates INDEX`."


@dataclass(frozen=True)
class Thresholds:
    """SSE over 256x256x3 below which a check holds, if it is also below half of what a picture of one colour reaches."""

    template: float = 2500.0
    matching: float = 2500.0
    retrieved: float = 3000.0


def decide(
    samples: Sequence[Sample],
    *,
    own: Mapping[str, np.ndarray | None],
    own_duplicates: Collection[str],
    neighbours_per_sample: Sequence[Sequence[Neighbour]] | None,
    templates: Sequence[Template] | None,
    templates_gap: str = "",
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Decide whether any of a caption's samples is a copy.

    Parameters
    ----------
    samples
        Full-length samples of one caption, one a seed. A check holds if it holds for any of them.
    own
        The caption's own training images by name, (H, W, 3): several where they share the caption, None for
        one that could not be opened, none at all where it is not known.
    own_duplicates
        Names of their exact copies; like themselves they don't count as retrieved.
    neighbours_per_sample
        For each sample its retrieved images, re-ranked: one without ``sse`` could not be opened. None without
        an index.
    templates
        The template library; None without one.
    templates_gap
        Why templates of the training set may be missing in it, in a sentence: then none of them holding does
        not say that no template came back.

    Returns
    -------
    Verdict
        With all three checks, whatever decided; `with_pieces` adds one.
    """
    if not samples:
        raise InputError("No sample was given; generate at least one before asking for a verdict.")
    thresholds = thresholds or Thresholds()
    stack = np.stack([resize(sample.image) for sample in samples])
    template_check, hits = _check_templates(samples, stack, templates, templates_gap, thresholds.template)
    matching_check = _check_own(samples, stack, own, thresholds.matching)
    excluded = {*own, *own_duplicates}
    retrieved_check = _check_retrieved(samples, neighbours_per_sample, excluded, thresholds.retrieved)
    checks = (template_check, matching_check, retrieved_check)
    holding = next((check for check in checks if check.holds), None)
    if holding is not None:
        return _verdict_of(holding, checks, hits, samples, stack, templates or ())
    nearest = min(
        (check for check in (matching_check, retrieved_check) if check.distance is not None),
        key=lambda check: check.distance or 0.0,
        default=None,
    )
    return Verdict(
        **_no_copy(checks, len(samples)),
        seed=nearest.seed if nearest else None,
        sse=nearest.distance if nearest else None,
        masked_sse=template_check.distance,
        neighbour_id=nearest.image_id if nearest else None,
    )


def with_pieces(verdict: Verdict, check: Check | None, samples: int) -> Verdict:
    """A verdict with the check for moved pieces (`audit.runs.pieces.Pieces.check`); None where a copy was found before.

    Parameters
    ----------
    samples
        How many pictures were looked through.
    """
    if check is None:
        return replace(verdict, checks=(*verdict.checks, NOT_LOOKED_FOR))
    checks = (*verdict.checks, check)
    if not check.holds:
        return replace(verdict, **_no_copy(checks, samples))
    return replace(
        verdict,
        kind=VerdictKind.PV,
        reason=_reason_holding(check, samples),
        checks=checks,
        seed=check.seed,
        sse=None,
        neighbour_id=check.image_id,
        threshold=check.threshold,
    )


def _no_copy(checks: tuple[Check, ...], samples: int) -> dict[str, Any]:
    """Kind, reason and checks of a verdict where none of these holds."""
    complete = all(check.status is CheckStatus.CHECKED for check in checks)
    return {
        "kind": VerdictKind.N if complete else VerdictKind.U,
        "reason": _reason_not(checks, samples, complete),
        "checks": checks,
    }


def _check_templates(
    samples: Sequence[Sample],
    stack: np.ndarray,
    templates: Sequence[Template] | None,
    gap: str,
    threshold: float,
) -> tuple[Check, tuple[TemplateHit, ...]]:
    if templates is None:
        return Check(VerdictKind.TV, CheckStatus.NOT_AVAILABLE, threshold, note=NO_LIBRARY), ()
    usable, refused = _usable(templates)
    missing = [f"{len(refused)} of {len(templates)} templates left out: {refused[0]}"] if refused else []
    missing += [gap] if gap else []
    status = CheckStatus.NOT_AVAILABLE if missing else CheckStatus.CHECKED
    note = " ".join(missing)
    if not usable:
        note = note or "The training set has no templates."
        return Check(VerdictKind.TV, status, threshold, note=note), ()
    with ThreadPoolExecutor() as pool:
        distances = np.stack(
            list(pool.map(lambda template: masked_sse(template.image, template.mask, stack), usable))
        )
    blanks = np.array(
        [
            blank_sse(template.image, template.mask) if near else np.inf
            for template, near in zip(usable, distances.min(axis=1) < threshold, strict=True)
        ]
    )
    place, sample = _smallest(distances, blanks, threshold)
    check = _measured(
        VerdictKind.TV,
        threshold,
        float(distances[place, sample]),
        float(blanks[place]) if np.isfinite(blanks[place]) else None,
        samples[sample].seed,
        usable[place].template_id,
        distances.size,
        note,
    )
    hits = tuple(
        TemplateHit(usable[place].template_id, samples[sample].seed, float(distances[place, sample]))
        for place, sample in np.argwhere(_holding(distances, blanks, threshold)).tolist()
    )
    return (check if check.holds else replace(check, status=status)), hits


def _usable(templates: Sequence[Template]) -> tuple[list[Template], list[str]]:
    usable, refused = [], []
    for template in templates:
        try:
            check_mask(template.image, template.mask)
        except InputError as error:
            refused.append(f"{template.template_id}: {error}")
        else:
            usable.append(template)
    return usable, refused


def _check_own(
    samples: Sequence[Sample], stack: np.ndarray, own: Mapping[str, np.ndarray | None], threshold: float
) -> Check:
    if not own:
        note = "The caption's own training image is not known."
        return Check(VerdictKind.MV, CheckStatus.NOT_AVAILABLE, threshold, note=note)
    opened = {name: resize(picture) for name, picture in own.items() if picture is not None}
    dead = [name for name in own if name not in opened]
    note = f"The caption's own training image {', '.join(dead)} could not be opened." if dead else ""
    if not opened:
        return Check(VerdictKind.MV, CheckStatus.DEAD_LINK, threshold, image_id=dead[0], note=note)
    distances = np.stack([sse(stack, picture) for picture in opened.values()])
    blanks = np.array([blank_sse(picture) for picture in opened.values()])
    place, sample = _smallest(distances, blanks, threshold)
    check = _measured(
        VerdictKind.MV,
        threshold,
        float(distances[place, sample]),
        float(blanks[place]),
        samples[sample].seed,
        list(opened)[place],
        distances.size,
        note,
    )
    return replace(check, status=CheckStatus.DEAD_LINK) if dead and not check.holds else check


def _check_retrieved(
    samples: Sequence[Sample],
    neighbours_per_sample: Sequence[Sequence[Neighbour]] | None,
    excluded: Collection[str],
    threshold: float,
) -> Check:
    if neighbours_per_sample is None:
        note = "There is no index of the training set."
        return Check(VerdictKind.RV, CheckStatus.NOT_AVAILABLE, threshold, note=note)
    if len(neighbours_per_sample) != len(samples):
        raise InputError(
            f"{len(neighbours_per_sample)} lists of neighbours were given for {len(samples)} samples; "
            "give one each."
        )
    others = [
        (neighbour, sample.seed)
        for sample, neighbours in zip(samples, neighbours_per_sample, strict=True)
        for neighbour in neighbours
        if neighbour.image_id not in excluded
    ]
    compared = [
        (neighbour.sse, seed, neighbour.image_id, neighbour.blank)
        for neighbour, seed in others
        if neighbour.sse is not None
    ]
    dead = len(others) - len(compared)
    note = f"{dead} of {len(others)} retrieved training images could not be opened." if dead else ""
    if not compared:
        status = CheckStatus.DEAD_LINK if dead else CheckStatus.CHECKED
        return Check(VerdictKind.RV, status, threshold, note=note or "No other training image was retrieved.")
    distance, seed, name, blank = min(
        compared, key=lambda each: (each[0] >= limit(threshold, each[3]), *each[:3])
    )
    check = _measured(VerdictKind.RV, threshold, distance, blank, seed, name, len(compared), note)
    return replace(check, status=CheckStatus.DEAD_LINK) if dead and not check.holds else check


def _holding(distances: np.ndarray, blanks: np.ndarray, threshold: float) -> np.ndarray:
    """Which of the distances (images, samples) say that a sample is a copy, as `audit.records.limit` does for one."""
    return distances < np.minimum(threshold, NEARER * blanks)[:, None]


def _smallest(distances: np.ndarray, blanks: np.ndarray, threshold: float) -> tuple[int, int]:
    """Image and sample of the smallest distance, (images, samples), that holds; of all where none does."""
    holds = _holding(distances, blanks, threshold)
    place, sample = divmod(
        int(np.where(holds | ~holds.any(), distances, np.inf).argmin()), distances.shape[1]
    )
    return place, sample


def _measured(
    kind: VerdictKind,
    threshold: float,
    distance: float,
    blank: float | None,
    seed: int,
    name: str | None,
    looked_at: int,
    note: str,
) -> Check:
    return Check(
        kind=kind,
        status=CheckStatus.CHECKED,
        threshold=threshold,
        distance=distance,
        blank=blank,
        seed=seed,
        image_id=name,
        holds=distance < limit(threshold, blank),
        looked_at=looked_at,
        note=note,
    )


def _verdict_of(
    check: Check,
    checks: tuple[Check, ...],
    hits: tuple[TemplateHit, ...],
    samples: Sequence[Sample],
    stack: np.ndarray,
    templates: Sequence[Template],
) -> Verdict:
    unmasked, image_id, template_id = check.distance, check.image_id, None
    if check.kind is VerdictKind.TV:
        template = next(template for template in templates if template.template_id == check.image_id)
        place = next(i for i, sample in enumerate(samples) if sample.seed == check.seed)
        unmasked = float(sse(stack[place], template.image))
        image_id, template_id = template.image_id or None, template.template_id
    return Verdict(
        kind=check.kind,
        reason=_reason_holding(check, len(samples)),
        checks=checks,
        seed=check.seed,
        sse=unmasked,
        masked_sse=checks[0].distance,
        neighbour_id=image_id,
        template_id=template_id,
        threshold=check.threshold,
        template_hits=hits,
    )


WHAT = {
    VerdictKind.TV: "a template of the training set but for its varying part",
    VerdictKind.MV: "the training image that this caption stands beside",
    VerdictKind.RV: "a training image that stands beside another caption",
}


def _reason_holding(check: Check, samples: int) -> str:
    if check.kind is VerdictKind.PV:
        return (
            f"A piece of the picture generated with seed {check.seed} agrees with a piece of training image "
            f"{check.image_id} that stands or looks otherwise there ({check.note.rstrip('.')}): it scores "
            f"{check.score:,.1f}, above the {check.threshold:,.1f} that one in a hundred ordinary captions reaches. "
            f"This is a calibrated score and no measured distance; {_pictures(samples)} generated, "
            f"{_comparisons(check.looked_at)} made for this check."
        )
    where = " under its mask" if check.kind is VerdictKind.TV else ""
    return (
        f"The picture generated with seed {check.seed} agrees with {WHAT[check.kind]} ({check.image_id}): "
        f"their distance{where} is {check.distance:,.0f}, below the threshold of {check.threshold:,.0f}; "
        f"{_pictures(samples)} generated, {_comparisons(check.looked_at)} made for this check."
    )


def _reason_not(checks: Sequence[Check], samples: int, complete: bool) -> str:
    found = "; ".join(_nearest(check) for check in checks if check.status is CheckStatus.CHECKED)
    if complete:
        unlooked = (
            "" if len(checks) > 3 else " Pieces that stand elsewhere in the picture were not looked for."
        )
        return f"None of {_pictures(samples)} generated agrees with a training image: {found}.{unlooked}"
    missing = " ".join(check.note for check in checks if check.status is not CheckStatus.CHECKED)
    held = f"what could be checked does not hold ({found})" if found else "nothing could be checked"
    return f"Undetermined, not cleared: {held}. Missing: {missing}"


def _nearest(check: Check) -> str:
    if check.kind is VerdictKind.PV:
        return (
            f"surest moved piece scores {check.score:,.1f} where over {check.threshold:,.1f} would count "
            f"({_comparisons(check.looked_at)})"
        )
    name = {VerdictKind.TV: "template", VerdictKind.MV: "own image", VerdictKind.RV: "retrieved image"}[
        check.kind
    ]
    if check.distance is None:
        return f"no {name} to compare with"
    if check.distance < check.threshold:
        return (
            f"nearest {name} at {check.distance:,.0f}, under {check.threshold:,.0f} but more than half of what a "
            f"picture of one colour would reach, {check.blank:,.0f}: no sign of a copy ({_comparisons(check.looked_at)})"
        )
    return (
        f"nearest {name} at {check.distance:,.0f} where under {check.threshold:,.0f} would count "
        f"({_comparisons(check.looked_at)})"
    )


def _comparisons(count: int) -> str:
    return f"{count:,} comparison" + ("s" if count != 1 else "")


def _pictures(count: int) -> str:
    return f"{count} picture" + ("s" if count != 1 else "")
