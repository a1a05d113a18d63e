"""What happened, in order: each event is chained by hash to the one before it.

An event's hash is the sha256 of its canonical JSON: all fields but the hash itself, keys in order, no blanks, ASCII
alone. Whoever has the events can compute the chain again with any JSON library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from audit.errors import InputError

LABELS = ("MV", "RV", "TV", "PV", "N")
"""What a person may say of a generated picture: the machine's verdicts without U."""
START = "0" * 64
"""What the first event follows, and the hash of an empty chain."""
LARGEST_BODY = 1_000_000
"""Bytes of an event's body."""
LARGEST_NAME = 500
"""Characters of a subject."""


class EventKind(StrEnum):
    """What an event says."""

    QUEUED = "queued"
    """Captions were put into a queue."""
    LABELLED = "labelled"
    UNDONE = "undone"
    """The event named in the body does not hold any more."""
    SKIPPED = "skipped"
    REOPENED = "reopened"
    """Somebody asked for what they had skipped."""
    FLAGGED = "flagged"
    UNFLAGGED = "unflagged"
    ADJUDICATED = "adjudicated"
    IMPORTED = "imported"
    """A label that was given elsewhere; the body's ``annotator`` gave it."""
    REFERENCE = "reference"
    """A part of a file of the reference's ground truth, kept as it came in."""
    MASK_SAVED = "mask_saved"
    REMOVED_FROM_VIEW = "removed_from_view"
    """The picture with the subject as sha256 is not shown any more; its hash and its labels stay."""
    RESTORED_TO_VIEW = "restored_to_view"
    ROLE_GIVEN = "role_given"
    MODEL_LOADED = "model_loaded"
    RUN_STARTED = "run_started"
    VIEWED = "viewed"
    EXPORTED = "exported"
    GUEST = "guest"
    """A link for somebody without a name was made, used or withdrawn."""


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    number: int
    """From 1, without a gap."""
    kind: EventKind
    who: str
    when: str
    """The store's own clock: ISO 8601, UTC, microseconds."""
    subject: str
    """What it is about: an item, a picture's sha256, a run ..."""
    body: dict[str, Any]
    previous: str
    """sha256 of the event before; 64 zeros for the first."""
    sha256: str


@dataclass(frozen=True)
class Root:
    """The end of a chain: kept elsewhere, it shows later whether the first ``count`` events are still the same."""

    count: int
    sha256: str


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written."""

    number: int
    """The first event concerned; 0 where it is no single one."""
    sentence: str


def canonical(content: Mapping[str, Any]) -> str:
    """JSON in the one form that is hashed.

    Raises
    ------
    InputError
        If something in it has no form in JSON, or is no number.
    """
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"An event cannot hold this ({error}); give texts, numbers and lists.") from error


def body_text(body: Mapping[str, Any]) -> str:
    """An event's body as it is stored; InputError where it is too large."""
    text = canonical(body)
    if len(text) > LARGEST_BODY:
        raise InputError(
            f"An event of {len(text):,} bytes is too large; {LARGEST_BODY:,} are taken at most: name a file's hash instead."
        )
    return text


def chained(number: int, kind: str, who: str, when: str, subject: str, body: str, previous: str) -> str:
    """sha256 of an event's canonical JSON, of which `body` is a part already.

    Equal to hashing ``canonical`` of all fields at once, without reading what is stored as JSON again.
    """
    text = (
        f'{{"body":{body},"kind":{_text(kind)},"number":{number},"previous":{_text(previous)},'
        f'"subject":{_text(subject)},"when":{_text(when)},"who":{_text(who)}}}'
    )
    return hashlib.sha256(text.encode("ascii", "backslashreplace")).hexdigest()


_text = json.encoder.encode_basestring_ascii


def check_name(name: str, what: str) -> str:
    """A text that stands in a column: no control characters, not too long, the same for any database."""
    if not name or len(name) > LARGEST_NAME or not name.isprintable():
        raise InputError(
            f"{name[:80]!r} is no name of {what}; give 1 to {LARGEST_NAME} characters without line breaks."
        )
    return name
