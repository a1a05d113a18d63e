"""``exhibit.json``: every number, name and hash behind one exhibit, and the pictures that go with it."""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np

import audit
from audit.errors import InputError
from audit.evidence.people import CONFIRMED, Compared, agreement
from audit.evidence.pixels import compared, contact_sheet, difference, distance, masked_distance
from audit.evidence.regenerate import TOLERANCE
from audit.evidence.rendering import rendered_with
from audit.evidence.sources import Source, TrainingImage, Whole, text
from audit.evidence.words import ENGLISH
from audit.images import decode, png_bytes, sha256, to_uint8
from audit.records import Template, VerdictKind, limit
from audit.scores.calibration import conformal_threshold
from audit.verbatim.distances import blank_sse

FORMAT, VERSION = "verbatim exhibit", 2
EXHIBIT = "exhibit.json"
PICTURES = "pictures"
GENERATED, ONE_STEP, TRAINING, TEMPLATE, MASK, DIFFERENCE, MASKED_DIFFERENCE, PIECES, NEIGHBOURS = (
    f"{PICTURES}/{name}.png"
    for name in (
        "generated",
        "one-step",
        "training-image",
        "template",
        "mask",
        "difference",
        "masked-difference",
        "pieces",
        "neighbours",
    )
)
LARGEST = 1_024
"""Side in pixels from which on a training image is copied at the size of comparison only."""
THRESHOLDS = {VerdictKind.TV: "template", VerdictKind.MV: "matching", VerdictKind.RV: "retrieved"}
VERIFYING = tuple(THRESHOLDS)
"""Verdicts that say that a pixel distance is under its limit."""
FPR = 0.01
AGREES = (1e-5, 2e-3)
"""Relative and absolute difference that a distance may have to the run's, which sums in single precision."""


def gather(
    source: Source, *, copy: bool, licences: Collection[str] = (), language: str = ENGLISH
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What ``exhibit.json`` says of a caption, and the exhibit's pictures by name.

    Parameters
    ----------
    copy
        Whether training images may be copied; else their hashes and sources stand in their place, and nothing that
        they could be made of again.
    licences
        Only training images of one of these may be copied; of any where none is named.

    Raises
    ------
    InputError
        If the pictures do not give the distance that the run recorded: they are not those that were compared.
    """
    row, whole = source.row, source.whole
    kind = str(row["verdict"])
    training = source.training
    why_not = why_not_copied(source, kind, copy, licences)
    generated = compared(decode(source.sample.png, "the generated picture"))
    other = picture_compared(source, kind)
    mask = source.template.mask if source.template else None
    measured = measure(generated, other, mask, TEMPLATE if own_template(source, kind) else TRAINING)
    check_distances(row, kind, measured, source.sample.seed)

    pictures = {GENERATED: source.sample.png, ONE_STEP: source.one_step.png}
    if mask is not None:
        pictures[MASK] = png(np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1))
    if other is not None and training is not None and not why_not:
        pictures |= copied(training, generated, other, mask)
        if own_template(source, kind):
            pictures[TEMPLATE] = png(other)
    if source.pieces is not None and not why_not:
        pictures[PIECES] = source.pieces.png
    if copy and source.neighbours:
        pictures[NEIGHBOURS] = png(
            contact_sheet(
                [
                    near.image if near and not near.hidden and licensed(near, licences) else None
                    for _, near in source.neighbours
                ]
            )
        )
    checks = checks_of(row, whole)
    verdict = {
        "kind": kind,
        "reason": str(row["reason"]),
        "decided_by": str(row["decided_by"]),
        "rule": whole.sampling.get("rule"),
        "seed": plain(row["seed"]),
        "threshold": plain(row["threshold"]),
        "template_id": text(row["template_id"]),
    }
    told_of = training_of(training, pictures, why_not)
    people = agreement(source.labels, Compared.of(verdict, told_of))
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "verbatim": audit.__version__,
        "language": language,
        "caption": {
            "text": str(row["caption"]),
            "id": str(row["caption_id"]),
            "own_image_id": text(row.get("own_id")),
            "tokens": plain(row.get("tokens")),
            "truncated": plain(row.get("truncated")),
            "occurrences": plain(row.get("occurrences")),
        },
        "model": model_of(whole),
        "sampling": sampling_of(source),
        "verdict": verdict,
        "checks": checks,
        "measured": measured,
        "claims": claims_of(source, kind, people["outcome"]),
        "training_image": told_of,
        "template": template_of(source.template),
        "neighbours": [
            {
                **{name: value for name, value in asdict(near).items() if name in NEIGHBOUR_FIELDS},
                **(credits_of(found) if found else {}),
                **({"hidden": True} if found and found.hidden else {}),
            }
            for near, found in source.neighbours
        ],
        "scores": scores_of(row, whole),
        "calibration": calibration_of(whole),
        "chance": chance_of(source, kind, generated, checks),
        "denominators": denominators_of(source, checks),
        "training_set": whole.sampling.get("training_set"),
        "labels": [asdict(label) for label in source.labels],
        "agreement": people,
        "history": history_of(source),
        "pictures": described(pictures),
        "hashes": hashes_of(whole),
        "versions": versions_of(whole),
        "tolerance": TOLERANCE,
        "again": commands_of(source),
    }
    # as it is read again: what is made of it later has to come out the same
    return json.loads(json_bytes(clean(facts))), pictures


NEIGHBOUR_FIELDS = ("image_id", "caption", "similarity", "rank", "sse", "blank")
CREDITS = ("title", "author", "licence", "source", "url")


def json_bytes(facts: Mapping[str, Any]) -> bytes:
    """``exhibit.json``: sorted keys, two blanks an indent, UTF-8."""
    return (json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def png(pixels: np.ndarray) -> bytes:
    """PNG of (H, W, 3) uint8."""
    return png_bytes(pixels.astype(np.float32) / 255.0)


def why_not_copied(source: Source, kind: str, copy: bool, licences: Collection[str]) -> str | None:
    """Why the exhibit holds no training image, as a key of the texts; None where it holds one."""
    training = source.training
    if training is None:
        return "none"
    if not copy:
        return "asked"
    if training.hidden:
        return "hidden"
    # a template's picture is of a training image too, of which only the name is at hand
    if not licensed(training, licences) or (licences and own_template(source, kind)):
        return "licence"
    return "not_opened" if training.image is None else None


def licensed(training: TrainingImage, licences: Collection[str]) -> bool:
    """Whether the training set's records give a training image one of these licences; any will do where none is named."""
    return not licences or training.row.licence.strip().casefold() in {
        each.strip().casefold() for each in licences
    }


def own_template(source: Source, kind: str) -> bool:
    """Whether the template's picture is another than the training image that the exhibit shows."""
    if kind != VerdictKind.TV or source.template is None:
        return False
    training = source.training
    if training is None or training.image is None:
        return True
    return not np.array_equal(to_uint8(source.template.image), compared(training.image / np.float32(255)))


def picture_compared(source: Source, kind: str) -> np.ndarray | None:
    """What the generated picture was compared with, (256, 256, 3) uint8; None where it cannot be opened."""
    if kind == VerdictKind.TV and source.template is not None:
        return to_uint8(source.template.image)
    training = source.training
    if training is None or training.image is None:
        return None
    return compared(training.image.astype(np.float32) / 255.0)


def measure(
    generated: np.ndarray, other: np.ndarray | None, mask: np.ndarray | None, against: str
) -> dict[str, Any]:
    """Distances of two pictures (256, 256, 3) uint8, and what a picture of one colour would reach."""
    if other is None:
        return {
            "against": None,
            "distance": None,
            "masked_distance": None,
            "blank": None,
            "masked_blank": None,
        }
    image = other.astype(np.float32) / 255.0
    return {
        "against": against,
        "distance": distance(generated, other),
        "blank": float(blank_sse(image)),
        "masked_distance": None if mask is None else masked_distance(generated, other, mask),
        "masked_blank": None if mask is None else float(blank_sse(image, mask)),
    }


def check_distances(row: Mapping[str, Any], kind: str, measured: Mapping[str, Any], seed: int) -> None:
    """InputError where the pictures at hand do not give the distances on which the verdict rests."""
    pairs = [(row["sse"], measured["distance"])]
    if kind == VerdictKind.TV:
        pairs.append((row["masked_sse"], measured["masked_distance"]))
    if plain(row["seed"]) != seed:
        return
    for recorded, found in pairs:
        recorded = plain(recorded)
        if recorded is None or found is None:
            continue
        if not agrees(recorded, found):
            raise InputError(
                f"Caption {row['caption_id']}: the pictures at hand are {found:,.2f} apart, the run recorded "
                f"{recorded:,.2f}; the training set or the run was changed since."
            )


def agrees(recorded: float, found: float) -> bool:
    """Whether two distances differ by no more than single precision explains."""
    return math.isclose(recorded, found, rel_tol=AGREES[0], abs_tol=AGREES[1])


def copied(
    training: TrainingImage, generated: np.ndarray, other: np.ndarray, mask: np.ndarray | None
) -> dict[str, bytes]:
    """The training image and its differences to the generated picture."""
    image = training.image
    if image is None:
        return {}
    if max(image.shape[:2]) > LARGEST:
        image = compared(image.astype(np.float32) / 255.0)
    files = {TRAINING: png(image), DIFFERENCE: png(difference(generated, other))}
    if mask is not None:
        files[MASKED_DIFFERENCE] = png(difference(generated, other, mask))
    return files


def described(pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """Hash and size in pixels of each picture."""
    return {
        name: {
            "sha256": sha256(data),
            "width": int.from_bytes(data[16:20]),
            "height": int.from_bytes(data[20:24]),
        }
        for name, data in pictures.items()
    }


def model_of(whole: Whole) -> dict[str, Any]:
    run = whole.run
    return {
        "name": without_folder(run["model"]),
        **{
            name: run.get(name)
            for name in ("prediction", "sigma_max", "latent_shape", "device", "noise", "guidance")
        },
        "sha256": run["model_sha256"],
        "dtype": whole.sampling.get("dtype", run.get("dtype")),
    }


def sampling_of(source: Source) -> dict[str, Any]:
    sampling = source.whole.sampling
    return {
        "method": "heun",
        "steps": sampling["steps"],
        "guidance": sampling.get("guidance"),
        "seeds": sampling["seeds"],
        "seed_shown": source.sample.seed,
        "one_step_seeds": source.whole.run["seeds"],
        "compared_at": 256,
        "resized_by": "Pillow, bicubic, on 8-bit pictures",
    }


def checks_of(row: Mapping[str, Any], whole: Whole) -> list[dict[str, Any]]:
    """Every check that the run's table tells of, in its order."""
    checks = []
    for column in row:
        if not column.endswith("_status"):
            continue
        prefix = column.removesuffix("_status")
        name = THRESHOLDS.get(prefix.upper())  # type: ignore[call-overload]
        threshold = whole.sampling["thresholds"].get(name) if name else None
        found, blank, score = (plain(row.get(f"{prefix}_{each}")) for each in ("distance", "blank", "score"))
        if score is not None:  # of moved pieces: it has to be above
            threshold = whole.sampling.get("pieces_over")
        most = limit(threshold, blank) if threshold is not None and score is None else None
        checks.append(
            {
                "kind": prefix.upper(),
                "status": text(row[column]),
                "threshold": threshold,
                "distance": found,
                "blank": blank,
                "limit": most,
                "holds": holds(found, most, score, threshold),
                "seed": plain(row.get(f"{prefix}_seed")),
                "image_id": text(row.get(f"{prefix}_image_id")),
                "looked_at": plain(row.get(f"{prefix}_looked_at")),
                "score": score,
            }
        )
    return checks


def holds(distance: float | None, most: float | None, score: float | None, least: float | None) -> bool:
    """Whether a distance is under its limit, or the score of a moved piece above its threshold."""
    if score is not None:
        return least is not None and score > least
    return distance is not None and most is not None and distance < most


def claims_of(source: Source, kind: str, outcome: str) -> dict[str, bool]:
    """The three claims: near, a copy by pixels, and what people say. None follows from another."""
    name = text(source.row["neighbour_id"])
    return {
        "retrieved": any(near.image_id == name for near, _ in source.neighbours),
        "verified": kind in VERIFYING,
        "confirmed": kind in VERIFYING and outcome == CONFIRMED,
    }


def training_of(
    training: TrainingImage | None, pictures: Mapping[str, bytes], why_not: str | None
) -> dict[str, Any] | None:
    if training is None:
        return None
    row = training.row
    return {
        "image_id": row.image_id,
        "caption": row.caption,
        **credits_of(training),
        "trained": training.trained,
        "equal_files": list(training.equal_files),
        "width": None if training.image is None else training.image.shape[1],
        "height": None if training.image is None else training.image.shape[0],
        "pixels_sha256": None
        if training.image is None
        else sha256(compared(training.image.astype(np.float32) / 255.0).tobytes()),
        "copied": TRAINING in pictures,
        "not_copied_because": why_not,
    }


def credits_of(training: TrainingImage) -> dict[str, str]:
    """Whom a training image is owed to, and every hash of its file by which it may be removed from view later."""
    recorded, *bytes_here = training.hashes or ("",)
    return {
        **{name: getattr(training.row, name) for name in CREDITS},
        "sha256": recorded,
        **({"file_sha256": bytes_here[0]} if bytes_here else {}),
    }


def template_of(template: Template | None) -> dict[str, Any] | None:
    if template is None:
        return None
    return {
        "template_id": template.template_id,
        "image_id": template.image_id,
        "members": list(template.members),
        "coverage": float(template.mask.mean()),
    }


def scores_of(row: Mapping[str, Any], whole: Whole) -> dict[str, Any]:
    return {
        name: {
            "value": plain(row.get(name)),
            "percentile_among_ordinary": plain(row.get(f"{name}_percentile")),
        }
        for name in ("dcs", "magnitude", "ecs", "ecs_g1")
        if plain(row.get(name)) is not None
    }


def calibration_of(whole: Whole) -> dict[str, Any] | None:
    calibration = whole.calibration
    if calibration is None:
        return None
    return {
        "captions": calibration.captions,
        "source": calibration.source,
        "seeds": list(calibration.seeds),
        "guidance": calibration.guidance,
        "noise": calibration.noise,
        "sha256": whole.calibration_sha256,
        "thresholds_at_1pct": {
            name: conformal_threshold(values, FPR) if len(values) >= 99 else None
            for name, values in calibration.values.items()
        },
    }


def chance_of(
    source: Source, kind: str, generated: np.ndarray, checks: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is known of coincidence: of the score by calibration, of the distance by what else was near."""
    decided = next((check for check in checks if check["kind"] == kind and check["holds"]), None)
    measured = decided if decided is not None and decided["limit"] is not None else None
    return {
        "score": rarity(source),
        "share_of_limit": measured["distance"] / measured["limit"] if measured else None,
        "nearest_that_is_no_copy": nearest_other(source, kind, generated, measured["threshold"])
        if measured
        else None,
        "pieces_rate": source.whole.pieces_rate if kind == VerdictKind.PV else None,
    }


def nearest_other(source: Source, kind: str, generated: np.ndarray, threshold: float) -> float | None:
    """The smallest distance of a training image looked at that is no copy, measured as the verdict's own was.

    For a template that is the distance under its mask, and its family is left out.
    """
    template = source.template if kind == VerdictKind.TV else None
    others = []
    for near, found in source.neighbours:
        apart, blank = near.sse, near.blank
        if template is not None:
            if near.image_id in template.members or found is None or found.image is None:
                continue
            apart = masked_distance(generated, found.image, template.mask)
            if apart < threshold:
                blank = float(blank_sse(found.image.astype(np.float32) / 255.0, template.mask))
        if apart is not None and apart >= limit(threshold, blank):
            others.append(apart)
    return min(others, default=None)


def rarity(source: Source) -> dict[str, Any] | None:
    """How rare so high a first score is among ordinary captions; None without a calibration.

    The p-value of one of n + 1 exchangeable captions, ``(k + 1) / (n + 1)`` where k ordinary ones score as high
    (Vovk et al. 2005, chapter 2).
    """
    calibration = source.whole.calibration
    name = source.whole.run["scores"][0]
    value = plain(source.row.get(name))
    if calibration is None or value is None or name not in calibration.values:
        return None
    ordinary = calibration.values[name]
    above = int((ordinary >= value).sum())
    rate = (above + 1) / (len(ordinary) + 1)
    return {
        "name": name,
        "value": value,
        "ordinary_captions": len(ordinary),
        "as_high": above,
        "rate_at_most": rate,
        "expected_among_scored": rate * source.whole.scored,
    }


def denominators_of(source: Source, checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = source.whole
    seeds = len(whole.sampling["seeds"])
    decided = sum(whole.counts.values())
    return {
        "rows_read": whole.run.get("captions_rows"),
        "captions_scored": whole.scored,
        "captions_decided": decided,
        "verdicts": {name: whole.counts[name] for name in sorted(whole.counts)},
        "seeds_scored": len(whole.run["seeds"]),
        "seeds_generated": seeds,
        "pictures_generated": decided * seeds,
        "training_images": whole.index["images"],
        "templates": whole.sampling.get("templates"),
        "retrieved_per_picture": whole.retrieved,
        "neighbours_shown": len(source.neighbours),
        "comparisons_for_this_caption": sum(check["looked_at"] or 0 for check in checks),
    }


def history_of(source: Source) -> list[dict[str, Any]]:
    """What happened, in order, with times where they were recorded."""
    run, kind = source.whole.run, str(source.row["verdict"])
    events = [
        {"when": run.get("created"), "who": None, "what": "scored", "label": None},
        {"when": None, "who": None, "what": "decided", "label": kind},
    ]
    for label in source.labels:
        what = "adjudicated" if label.adjudicated else "labelled"
        what = what if label.counts else "not_counted"
        events.append({"when": label.when, "who": label.who, "what": what, "label": label.label})
    return events


def hashes_of(whole: Whole) -> dict[str, Any]:
    return {
        "model": whole.run["model_sha256"],
        "captions_file": whole.run.get("captions_sha256"),
        "embedder": whole.sampling.get("embedder_sha256"),
        "index": whole.index["sha256"],
        "templates": whole.sampling.get("templates_sha256"),
        "calibration": whole.calibration_sha256,
    }


def versions_of(whole: Whole) -> dict[str, Any]:
    return {
        "run": {"verbatim": whole.run.get("verbatim"), **whole.run.get("versions", {})},
        "exhibit": {
            **rendered_with(),
            "python": platform.python_version(),
            "numpy": version("numpy"),
        },
        "search": whole.index["search"],
    }


def commands_of(source: Source) -> dict[str, str]:
    """What to type: to check the exhibit, to make its picture again, and to make the whole run again."""
    run, sampling = source.whole.run, source.whole.sampling
    model = ["--model", without_folder(run["model"])]
    same = ["--dtype", str(sampling.get("dtype", run.get("dtype"))), "--noise", run["noise"]]
    few = ["--limit", str(run["limit"])] if run.get("limit") else []
    compared_with = [
        "--index",
        "INDEX",
        *(["--templates", "TEMPLATES"] if source.whole.library_named else []),
    ]
    pieces = [] if sampling.get("pieces_over") is None else ["--pieces"]
    name = str(source.row["caption_id"])
    top = str(sum(source.whole.counts.values()))
    return {
        "check": command("verify", name),
        "regenerate": command("verify", name, "--regenerate", *model, *same),
        "score": command(
            "score", without_folder(run.get("captions_source") or "CAPTIONS"), "--out", "RUN", *model,
            "--seeds", joined(run["seeds"]), "--scores", joined(run["scores"]),
            "--guidance", f"{run['guidance']:g}", *few, *same,
        ),
        "decide": command(
            "verdict", "RUN", *compared_with, *pieces, "--steps", str(sampling["steps"]),
            "--seeds", joined(sampling["seeds"]), "--top", top, *same,
        ),
        "export": command("exhibit", "RUN", "--caption", name, *compared_with, "--out", "DIR"),
    }  # fmt: skip


def command(*words: str) -> str:
    return shlex.join(["python", "-m", "audit", *words])


def joined(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))


def without_folder(place: str) -> str:
    """The last part of a path here, which says nothing to others; addresses and names of hubs as they are."""
    return PurePath(place).name if PurePath(place).is_absolute() else place


def plain(value: Any) -> Any:
    """A cell of a table as JSON has it; None for what is missing or no number."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return None if value != value or math.isinf(value) else value
    except TypeError:  # pandas' NA
        return None


def clean(content: Any) -> Any:
    """Content in which every number is one that JSON has."""
    if isinstance(content, Mapping):
        return {str(key): clean(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [clean(value) for value in content]
    return plain(content)
