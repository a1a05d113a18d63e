"""What a page shows, as query parameters: a link opens the same view again.

Everything read here came from outside: a value that is not allowed is left out and told in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from urllib.parse import urlencode

from audit.errors import InputError
from audit.records import VerdictKind
from audit.review.events import EventKind
from audit.runs.jobs import NAME
from audit.settings import settings

MODES = ("side", "swipe", "blink", "onion", "difference", "masked")
"""Ways of comparing two pictures, in the order of the keys 1 to 6."""
OVERLAYS = ("none", "dcs", "ecs")
MAX_SEED = 2**31 - 1
MAX_SEEDS = 8
MAX_STEPS = 100
MAX_GUIDANCE = 30.0
MAX_LENGTH = 8_000
"""Longest query string written: beyond it browsers and proxies differ."""
IMAGE_ID = re.compile(r"[^\x00-\x1f]{1,300}")
"""Also names of templates and families, which are called after an image; blanks and slashes come from files' names."""
CLUSTER_ID = re.compile(rf"(exact|near|template)-{IMAGE_ID.pattern}")
WHO = re.compile(r"[^\x00-\x1f]{1,80}")
WORDS = re.compile(r"[^\x00-\x1f]{1,200}")
MODEL_NAME = re.compile(r"[^\x00-\x1f]{1,400}")


@dataclass(frozen=True)
class Lab:
    """State of the prompt lab."""

    captions: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 16
    guidance: float = 7.5
    chosen: int = 0
    """Which of the captions is looked at in detail."""
    neighbour: str = ""
    """Image id of the training image compared with; empty: the one that decided."""
    sample: int | None = None
    """Seed of the sample compared; None: the one that decided."""
    mode: str = "side"
    overlay: str = "none"
    opacity: int = 60
    pieces: bool = False
    """Whether moved pieces are looked for too."""


@dataclass(frozen=True)
class Search:
    """State of the training-set page."""

    query: str = ""
    like: str = ""
    """Image id whose likenesses are shown."""
    view: str = "pictures"
    """``pictures`` or ``families``."""
    family: str = ""
    page: int = 1


@dataclass(frozen=True)
class Found:
    """State of the results page."""

    run: str = ""
    search: str = ""
    verdict: str = ""
    """A verdict, ``none``, or empty for all."""
    sort: str = "dcs"
    order: str = "down"
    """``down`` or ``up``."""
    above: bool = False
    """Whether only captions above the threshold are shown."""
    threshold: float | None = None
    """Of the score that is sorted by; None: one in a hundred ordinary captions exceeds it."""
    view: str = "table"
    """``table`` or ``gallery``."""
    other: str = ""
    """The run compared with."""
    page: int = 1


@dataclass(frozen=True)
class Repeated:
    """State of the duplicates page."""

    run: str = ""
    """The run that is joined; empty: none."""
    by: str = "score"
    """What counts as memorised in the chart: ``score`` or ``verdict``."""
    kind: str = ""
    """``exact``, ``near``, ``template`` or empty for all."""
    sort: str = "occurrences"
    cluster: str = ""
    page: int = 1


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds as people write them: ``0, 1, 2`` or ``0-3`` or both.

    Raises
    ------
    InputError
        If there is none, too many, or one that is not a whole number from 0 to 2147483647.
    """
    seeds: list[int] = []
    for part in re.split(r"[,;\s]+", text.strip()):
        match = re.fullmatch(r"(\d{1,10})(?:[-–](\d{1,10}))?", part, re.ASCII)
        if not match or int(match[2] or match[1]) > MAX_SEED:
            raise InputError(
                f"{part[:20]!r} is no seed; write whole numbers such as 0, 1, 2 or a range such as 0-3."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MAX_SEEDS:
            raise InputError(
                f"The range {part} holds no seed or more than {MAX_SEEDS}; write for instance 0-3."
            )
        seeds.extend(range(first, last + 1))
    seeds = list(dict.fromkeys(seeds))
    if len(seeds) > MAX_SEEDS:
        raise InputError(
            f"{len(seeds)} seeds are more than the {MAX_SEEDS} of this page; more belong into a run."
        )
    return tuple(seeds)


def seeds_text(seeds: Sequence[int]) -> str:
    """The shortest text that `parse_seeds` reads as these seeds."""
    if len(seeds) > 2 and all(seed == seeds[0] + place for place, seed in enumerate(seeds)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(str(seed) for seed in seeds)


def check_captions(lines: Sequence[str]) -> tuple[str, ...]:
    """Captions as they are given, blanks included, without empty and repeated ones.

    Raises
    ------
    InputError
        If none is left, there are too many, or one is too long.
    """
    limits = settings()
    captions = tuple(dict.fromkeys(line for line in lines if line.strip()))
    if not captions:
        raise InputError("There is no caption yet; write one, or pick one from the training set.")
    if len(captions) > limits.max_captions:
        raise InputError(
            f"{len(captions)} captions are more than the {limits.max_captions} that this page takes at once; "
            "score a longer list with `python -m audit score FILE --out RUN`."
        )
    for caption in captions:
        if len(caption) > limits.max_caption_chars:
            raise InputError(
                f"A caption has {len(caption):,} characters; the limit is {limits.max_caption_chars:,}. "
                f"It begins with “{caption[:40]}…”; shorten it."
            )
    return captions


def read_lab(params: Mapping[str, Sequence[str]]) -> tuple[Lab, list[str]]:
    """State of the prompt lab from query parameters, and a sentence for each one that was left out."""
    state, problems = Lab(), []

    def read(name, convert):
        nonlocal state
        values = params.get(name)
        if values:
            try:
                state = replace(state, **convert(values))
            except InputError as error:
                problems.append(str(error))
            except (ValueError, OverflowError):
                problems.append(
                    f"The link's {name}={values[-1][:40]!r} is not allowed here and was left out."
                )

    read("caption", lambda values: {"captions": check_captions(values)})
    read("seeds", lambda values: {"seeds": parse_seeds(values[-1])})
    read("steps", lambda values: {"steps": _number(values[-1], int, 1, MAX_STEPS)})
    read("guidance", lambda values: {"guidance": _number(values[-1], float, 0.0, MAX_GUIDANCE)})
    read("chosen", lambda values: {"chosen": _number(values[-1], int, 1, max(1, len(state.captions))) - 1})
    read("neighbour", lambda values: {"neighbour": _matching(values[-1], IMAGE_ID)})
    read("sample", lambda values: {"sample": _one_of(int(values[-1]), state.seeds)})
    read("mode", lambda values: {"mode": _one_of(values[-1], MODES)})
    read("overlay", lambda values: {"overlay": _one_of(values[-1], OVERLAYS)})
    read("opacity", lambda values: {"opacity": _number(values[-1], int, 0, 100)})
    read("pieces", lambda values: {"pieces": _one_of(values[-1], ("1",)) == "1"})
    return state, problems


def write_lab(state: Lab) -> dict[str, str | list[str]]:
    """Query parameters of a state; what is as usual is left out."""
    usual = Lab()
    params: dict[str, str | list[str]] = {}
    if state.captions:
        params["caption"] = list(state.captions)
    if state.seeds != usual.seeds:
        params["seeds"] = seeds_text(state.seeds)
    if state.chosen:
        params["chosen"] = str(state.chosen + 1)
    if state.guidance != usual.guidance:
        params["guidance"] = f"{state.guidance:g}"
    if state.pieces:
        params["pieces"] = "1"
    for name in ("steps", "neighbour", "sample", "mode", "overlay", "opacity"):
        value = getattr(state, name)
        if value != getattr(usual, name):
            params[name] = str(value)
    return params


def length(params: Mapping[str, str | Sequence[str]]) -> int:
    """Characters that the parameters take in an address."""
    return len(urlencode(params, doseq=True))


def read_search(params: Mapping[str, Sequence[str]]) -> tuple[Search, list[str]]:
    """State of the training-set page from query parameters, and a sentence for each one that was left out."""
    return _read(
        Search(),
        params,
        {
            "query": lambda text: check_captions([text])[0].strip(),
            "like": lambda text: _matching(text, IMAGE_ID),
            "view": lambda text: _one_of(text, ("pictures", "families")),
            "family": lambda text: _matching(text, IMAGE_ID),
            "page": lambda text: _number(text, int, 1, 1_000_000),
        },
    )


VERDICTS = ("", *(kind.value for kind in VerdictKind), "none")
SORTS = ("dcs", "magnitude", "ecs", "ecs_g1", "caption", "occurrences", "tokens")


def read_found(params: Mapping[str, Sequence[str]]) -> tuple[Found, list[str]]:
    """State of the results page from query parameters, and a sentence for each one that was left out."""
    return _read(
        Found(),
        params,
        {
            "run": lambda text: _matching(text, NAME),
            "search": lambda text: check_captions([text])[0],
            "verdict": lambda text: _one_of(text, VERDICTS),
            "sort": lambda text: _one_of(text, SORTS),
            "order": lambda text: _one_of(text, ("down", "up")),
            "above": lambda text: _one_of(text, ("True", "False")) == "True",
            "threshold": lambda text: _number(text, float, -1e9, 1e9),
            "view": lambda text: _one_of(text, ("table", "gallery")),
            "other": lambda text: _matching(text, NAME),
            "page": lambda text: _number(text, int, 1, 100_000_000),
        },
    )


@dataclass(frozen=True)
class Library:
    """What the templates page shows."""

    run: str = ""
    template: str = ""
    page: int = 1


def read_library(params: Mapping[str, Sequence[str]]) -> tuple[Library, list[str]]:
    """State of the templates page from query parameters, and a sentence for each one that was left out."""
    return _read(
        Library(),
        params,
        {
            "run": lambda text: _matching(text, NAME),
            "template": lambda text: _matching(text, IMAGE_ID),
            "page": lambda text: _number(text, int, 1, 1_000_000),
        },
    )


TASKS = ("label", "decide")


@dataclass(frozen=True)
class Reviewed:
    """State of the review page."""

    queue: str = ""
    """Empty: a queue is chosen."""
    task: str = "label"
    """``label``, or ``decide`` where people disagree."""


def read_reviewed(params: Mapping[str, Sequence[str]]) -> tuple[Reviewed, list[str]]:
    """State of the review page from query parameters, and a sentence for each one that was left out."""
    return _read(
        Reviewed(),
        params,
        {
            "queue": lambda text: _matching(text, NAME),
            "task": lambda text: _one_of(text, TASKS),
        },
    )


@dataclass(frozen=True)
class Agreed:
    """State of the agreement page."""

    queue: str = ""
    """Empty: all of them."""
    by: str = "item"
    """``item``: each caption counts once; ``cluster``: each cluster."""


def read_agreed(params: Mapping[str, Sequence[str]]) -> tuple[Agreed, list[str]]:
    """State of the agreement page from query parameters, and a sentence for each one that was left out."""
    return _read(
        Agreed(),
        params,
        {
            "queue": lambda text: _matching(text, NAME),
            "by": lambda text: _one_of(text, ("item", "cluster")),
        },
    )


@dataclass(frozen=True)
class Trail:
    """State of the audit trail's page."""

    kind: str = ""
    """Empty: whatever was done."""
    who: str = ""
    """Empty: everybody."""
    words: str = ""
    since: str = ""
    """A day, ISO 8601; empty: from the first."""
    page: int = 1


def read_trail(params: Mapping[str, Sequence[str]]) -> tuple[Trail, list[str]]:
    """State of the audit trail's page from query parameters, and a sentence for each one that was left out."""
    return _read(
        Trail(),
        params,
        {
            "kind": lambda text: EventKind(text).value,
            "who": lambda text: _matching(text, WHO),
            "words": lambda text: _matching(text, WORDS),
            "since": lambda text: date.fromisoformat(text).isoformat(),
            "page": lambda text: _number(text, int, 1, 100_000_000),
        },
    )


EXHIBIT = re.compile(r"[0-9a-f]{16}")
ROOT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shown:
    """State of the exhibits page."""

    export: str = ""
    """Empty: all exports are listed."""
    exhibit: str = ""
    """Empty: the export's exhibits are listed."""
    root: str = ""
    """Of the exhibit: a link shows that one and no other. Empty: whatever lies there."""
    mode: str = "swipe"
    page: int = 1


def read_shown(params: Mapping[str, Sequence[str]]) -> tuple[Shown, list[str]]:
    """State of the exhibits page from query parameters, and a sentence for each one that was left out."""
    return _read(
        Shown(),
        params,
        {
            "export": lambda text: _matching(text, NAME),
            "exhibit": lambda text: _matching(text, EXHIBIT),
            "root": lambda text: _matching(text, ROOT),
            "mode": lambda text: _one_of(text, MODES),
            "page": lambda text: _number(text, int, 1, 1_000_000),
        },
    )


KINDS = ("", "exact", "near", "template")
CLUSTER_SORTS = ("occurrences", "images", "captions", "multimodal", "image_only", "regurgitated")


def read_repeated(params: Mapping[str, Sequence[str]]) -> tuple[Repeated, list[str]]:
    """State of the duplicates page from query parameters, and a sentence for each one that was left out."""
    return _read(
        Repeated(),
        params,
        {
            "run": lambda text: _matching(text, NAME),
            "by": lambda text: _one_of(text, ("score", "verdict")),
            "kind": lambda text: _one_of(text, KINDS),
            "sort": lambda text: _one_of(text, CLUSTER_SORTS),
            "cluster": lambda text: _matching(text, CLUSTER_ID),
            "page": lambda text: _number(text, int, 1, 100_000_000),
        },
    )


def _read(state, params: Mapping[str, Sequence[str]], readers: Mapping) -> tuple:
    problems = []
    for name, convert in readers.items():
        if values := params.get(name):
            try:
                state = replace(state, **{name: convert(values[-1])})
            except (InputError, ValueError, OverflowError):
                problems.append(
                    f"The link's {name}={values[-1][:40]!r} is not allowed here and was left out."
                )
    return state, problems


def write(state: Search | Found | Repeated | Library | Reviewed | Agreed | Shown | Trail) -> dict[str, str]:
    """Query parameters of a state; what is as usual is left out."""
    usual = type(state)()
    return {
        each.name: str(value)
        for each in fields(state)
        if (value := getattr(state, each.name)) != getattr(usual, each.name)
    }


def read_model(params: Mapping[str, Sequence[str]]) -> str | None:
    """Name of the model that the link was made with; None where it names none, or nothing that could be a name."""
    values = params.get("model")
    return values[-1] if values and MODEL_NAME.fullmatch(values[-1]) else None


def _number(text: str, kind, least, most):
    value = kind(text)
    if not least <= value <= most:  # also false for nan
        raise ValueError(text)
    return value


def _one_of(value, allowed):
    if value not in allowed:
        raise ValueError(value)
    return value


def _matching(text: str, pattern: re.Pattern) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(text)
    return text
