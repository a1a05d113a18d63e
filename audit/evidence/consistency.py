"""Whether the files of an exhibit say the same: ``exhibit.json`` against its pictures, its own numbers, and the report.

A manifest can be made anew by whoever changes a file; that all of the rest still agrees is harder to arrange.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from audit.errors import InputError
from audit.evidence import html, report
from audit.evidence.document import document
from audit.evidence.facts import (
    DIFFERENCE,
    EXHIBIT,
    FORMAT,
    GENERATED,
    MASK,
    MASKED_DIFFERENCE,
    TEMPLATE,
    TRAINING,
    VERIFYING,
    VERSION,
    agrees,
    holds,
    measure,
)
from audit.evidence.manifest import MANIFEST, SIGNATURE, Change, Finding
from audit.evidence.people import CONFIRMED, Compared, Label, agreement
from audit.evidence.pixels import compared, difference
from audit.evidence.rendering import rendered_with
from audit.evidence.untrusted import read_json, read_picture
from audit.images import sha256, to_uint8
from audit.records import VerdictKind, caption_id, limit

WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
"""What reading a file raises that is no exhibit's, however well it is hashed."""
KNOWN = (EXHIBIT, report.REPORT, html.REPORT, MANIFEST, SIGNATURE)


def read_facts(data: bytes) -> dict[str, Any]:
    """``exhibit.json``; InputError where it is none of this version's."""
    facts = read_json(data, EXHIBIT)
    if facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise InputError(
            f"{EXHIBIT} is no exhibit of this version of Verbatim; check it with the one that made it."
        )
    return facts


def contradictions(files: Mapping[str, bytes]) -> tuple[list[Finding], list[str]]:
    """What in the files of an exhibit does not agree, and sentences about what could not be checked."""
    try:
        facts = read_facts(files[EXHIBIT])
    except InputError as error:
        return [Finding(EXHIBIT, Change.DAMAGED, str(error))], []
    try:
        found = [*_pictures(facts, files)]
        if found:  # the report is not set of pictures that cannot be read
            return found, []
        found = [*_numbers(facts, files), *_verdict(facts)]
        rendered, unchecked = _report(facts, files)
    except InputError as error:
        return [Finding(EXHIBIT, Change.INCONSISTENT, str(error))], []
    except WRONG:
        return [Finding(EXHIBIT, Change.DAMAGED, f"{EXHIBIT} lacks something that every exhibit says.")], []
    return [*found, *rendered], unchecked


def inconsistent(file: str, sentence: str) -> Finding:
    return Finding(file, Change.INCONSISTENT, sentence)


def _pictures(facts: Mapping[str, Any], files: Mapping[str, bytes]) -> Iterator[Finding]:
    """Pictures against what ``exhibit.json`` says of each."""
    told = facts["pictures"]
    for name in sorted(files.keys() - told.keys() - set(KNOWN)):
        yield inconsistent(name, f"{EXHIBIT} does not know the file {name}.")
    for name, each in told.items():
        if name not in files:
            yield Finding(name, Change.MISSING, f"{EXHIBIT} tells of {name}, which is not there.")
            continue
        if sha256(files[name]) != each["sha256"]:
            yield inconsistent(name, f"{name} is not the picture whose hash {EXHIBIT} states.")
            continue
        try:
            height, width = read_picture(files[name], name).shape[:2]
        except InputError as error:
            yield Finding(name, Change.DAMAGED, str(error))
            continue
        if (width, height) != (each["width"], each["height"]):
            yield inconsistent(name, f"{name} has {width} x {height} points, not what {EXHIBIT} states.")
    training = facts["training_image"]
    if (TRAINING in told) != bool(training and training["copied"]):
        yield inconsistent(EXHIBIT, f"{EXHIBIT} does not say truly whether the training image was copied.")


def _numbers(facts: Mapping[str, Any], files: Mapping[str, bytes]) -> Iterator[Finding]:
    """Distances and differences, computed again from the exhibit's own pictures."""

    def pixels(name: str) -> np.ndarray | None:
        return read_picture(files[name], name) if name in files else None

    generated, mask_picture = pixels(GENERATED), pixels(MASK)
    if generated is None:
        yield Finding(GENERATED, Change.MISSING, f"{GENERATED} is missing.")
        return
    mask = None if mask_picture is None else mask_picture[..., 0] > 0.5
    if mask is not None and not math.isclose(float(mask.mean()), facts["template"]["coverage"], abs_tol=1e-9):
        yield inconsistent(MASK, f"{MASK} covers another share of the picture than {EXHIBIT} states.")
    against = TEMPLATE if TEMPLATE in files else TRAINING
    other = pixels(against)
    if other is None:
        return
    one, two = compared(generated), compared(other)
    again = measure(one, two, mask, against)
    for name, value in facts["measured"].items():
        found = again[name]
        same = (
            agrees(value, found) if isinstance(value, float) and isinstance(found, float) else value == found
        )
        if not same:
            yield inconsistent(
                EXHIBIT, f"{EXHIBIT} states {value} as {name.replace('_', ' ')}; its pictures give {found}."
            )
    for name, pattern in ((DIFFERENCE, None), (MASKED_DIFFERENCE, mask)):
        shown = pixels(name)
        if shown is not None and not np.array_equal(to_uint8(shown), difference(one, two, pattern)):
            yield inconsistent(name, f"{name} is not the difference of {GENERATED} and {against}.")
    training = facts["training_image"]
    picture = pixels(TRAINING)
    if picture is not None and training["pixels_sha256"] != sha256(compared(picture).tobytes()):
        yield inconsistent(TRAINING, f"{TRAINING} is not the picture whose points {EXHIBIT} states.")


def _verdict(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """The verdict against the numbers that it rests on, and the claims against both."""
    kind, seed = facts["verdict"]["kind"], facts["sampling"]["seed_shown"]
    measured = facts["measured"]
    for check in facts["checks"]:
        threshold, score = check["threshold"], check["score"]
        most = None if threshold is None or score is not None else limit(threshold, check["blank"])
        if check["limit"] != most or check["holds"] != holds(check["distance"], most, score, threshold):
            yield inconsistent(
                EXHIBIT, f"{EXHIBIT} states a limit of the check {check['kind']} that is none."
            )
    deciding = [check for check in facts["checks"] if check["kind"] == kind]
    if kind in VERIFYING:
        if not deciding or not deciding[0]["holds"]:
            yield inconsistent(EXHIBIT, f"{EXHIBIT} states {kind}, and its check {kind} does not hold.")
        else:
            masked = kind == VerdictKind.TV
            found = measured["masked_distance" if masked else "distance"]
            if (
                deciding[0]["seed"] == seed
                and found is not None
                and not agrees(deciding[0]["distance"], found)
            ):
                yield inconsistent(
                    EXHIBIT,
                    f"{EXHIBIT} states a distance of {deciding[0]['distance']:,.2f} for {kind}; its pictures give "
                    f"{found:,.2f}.",
                )
    if kind == VerdictKind.PV and not any(check["holds"] for check in deciding):
        yield inconsistent(EXHIBIT, f"{EXHIBIT} states {kind}, and its check {kind} does not hold.")
    if kind in (VerdictKind.N, VerdictKind.U) and any(check["holds"] for check in facts["checks"]):
        yield inconsistent(EXHIBIT, f"{EXHIBIT} states {kind}, and one of its checks holds.")
    if facts["claims"]["verified"] != (kind in VERIFYING):
        yield inconsistent(EXHIBIT, f"{EXHIBIT} claims something else than its verdict {kind} says.")
    compared_with = Compared.of(facts["verdict"], facts["training_image"])
    people = agreement([Label(**label) for label in facts["labels"]], compared_with)
    confirmed = kind in VERIFYING and people["outcome"] == CONFIRMED
    if people != facts["agreement"] or facts["claims"]["confirmed"] != confirmed:
        yield inconsistent(EXHIBIT, f"{EXHIBIT} states an agreement that its labels do not give.")
    if facts["caption"]["id"] != caption_id(facts["caption"]["text"]):
        yield inconsistent(EXHIBIT, f"{EXHIBIT} states a caption of another name.")


def _report(facts: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[list[Finding], list[str]]:
    """The report set again from ``exhibit.json``: it has to be equal byte for byte, where the versions are."""
    made_with, here = facts["versions"]["exhibit"], rendered_with()
    told = document(facts)
    pictures = {name: files[name] for name in facts["pictures"]}
    for each in (told["pair"]["left"], told["pair"]["right"], *told["figures"]):
        if each["file"] is not None and each["file"] not in pictures:
            return [], [f"The report was not set again, since {each['file']} is missing."]
    other = ", ".join(f"{name} {made_with.get(name)}" for name in here if made_with.get(name) != here[name])
    found, unchecked = [], []
    if other:
        unchecked.append(
            f"Whether the report says what {EXHIBIT} says: it was made with {other}, and here are "
            f"{', '.join(f'{name} {number}' for name, number in here.items())}."
        )
    else:
        again = {html.REPORT: html.html(told, pictures), report.REPORT: report.pdf(told, pictures)}
        found = [
            inconsistent(name, f"{name} does not say what {EXHIBIT} says.")
            for name, data in again.items()
            if files.get(name) != data
        ]
    return found, unchecked
