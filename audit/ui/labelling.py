"""One item after the other under the eyes of a person: the labelling view, and what it says back.

The view keeps the next items decoded and its answers in an outbox, so that nobody waits for the server. It says which
pictures it has, and gets those that it has not: an answer costs a few hundred kilobytes at most, once a picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from audit.ui.comparison import NO_MASK

HERE = Path(__file__).parent
AHEAD = 6
"""Items that the view has besides the one it shows."""
AT_ONCE = 3_000_000
"""Characters of pictures in one message; the first item's are sent whatever they take."""
MAX_ANSWERS = 500
"""Of one message: a tab that had no connection for an hour."""
ANSWER_ID = re.compile(r"[0-9a-f]{32}")
ACTIONS = ("label", "adjudicate", "skip", "undo", "flag", "unflag", "mask")

_component = component(
    "verbatim_labelling",
    css=(HERE / "labelling.css").read_text(encoding="utf-8"),
    js="\n".join(
        (HERE / name).read_text(encoding="utf-8")
        for name in ("labelling_panes.js", "labelling_mask.js", "labelling.js")
    ),
)


@dataclass(frozen=True)
class Candidate:
    """A training image or a template that the generated picture may be a copy of.

    Pictures are named by keys; `labelling` asks for those that the browser has not.
    """

    image_id: str
    kind: str
    """``own``, ``other`` or ``template``."""
    words: str
    """What it is, in a few words."""
    caption: str = ""
    attribution: str = ""
    picture: str | None = None
    no_picture: str = ""
    """Why there is no picture."""
    template_id: str | None = None
    mask_version: str | None = None
    mask: str | None = None
    mask_note: str = ""
    mask_by: str = ""
    """Who saved that version; empty where the mask is the one that was found."""
    mask_found: str | None = None
    """The mask as it was found, where a person has edited it since."""
    masked_with: str | None = None
    """The template's picture, which is measured under the mask."""


@dataclass(frozen=True)
class Told:
    """An answer that an adjudicator sees."""

    who: str
    label: str
    image_id: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """One item as it is shown."""

    id: str
    caption: str
    why: str
    seed: int | str
    generated: str | None
    no_picture: str
    """Why there is no generated picture."""
    candidates: tuple[Candidate, ...]
    told: tuple[str, ...] = ()
    """What the machine and others said, where that is shown before one answers."""
    both: tuple[Told, ...] = ()
    """The answers that differ, for an adjudicator."""
    flag: str | None = None
    """One's own note on it, empty where the mark has none; None without a mark."""

    def needed(self) -> list[str]:
        """Of its pictures, those that are shown first before the others."""
        sides = [
            key
            for candidate in self.candidates
            for key in (
                candidate.picture,
                candidate.mask,
                candidate.masked_with if candidate.mask else None,
                candidate.mask_found,
            )
        ]
        return [key for key in dict.fromkeys([self.generated, *sides]) if key]


@dataclass(frozen=True)
class Label:
    """One of the answers and the key that gives it."""

    key: str
    label: str
    title: str
    help: str


@dataclass(frozen=True)
class Ack:
    """What became of an answer."""

    stored: bool
    message: str = ""
    """Why it was not stored, and what to do."""
    item_id: str | None = None
    """The item that was taken back."""
    reveal: str = ""
    """What the machine and others say, now that one has answered."""


@dataclass(frozen=True)
class Example:
    """Two pictures beside each other, and why they are labelled as they are."""

    words: str
    pictures: tuple[str, str]
    alts: tuple[str, str]


@dataclass(frozen=True)
class Section:
    """A part of the guidelines."""

    title: str
    blocks: tuple[str | list[str], ...]
    """Paragraphs, and lists as lists."""
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far one is."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Sent:
    """What the view says: checked as anything from outside is."""

    answers: tuple[dict[str, Any], ...] = ()
    """In the order in which they were given; each has ``answer_id`` and ``action``."""
    have: frozenset[str] = frozenset()
    """Keys of the pictures that it has."""
    editing: str = ""
    """The template whose mask is being edited."""


def sent(key: str) -> Sent:
    """What the view of this key said last."""
    state = st.session_state.get(key) or {}
    message, editing = state.get("sent"), state.get("editing")
    message = message if isinstance(message, Mapping) else {}
    answers, have = message.get("outbox"), message.get("have")
    return Sent(
        tuple(filter(_is_answer, answers[:MAX_ANSWERS])) if isinstance(answers, list) else (),
        frozenset(name for name in have if isinstance(name, str)) if isinstance(have, list) else frozenset(),
        editing if isinstance(editing, str) else "",
    )


def _is_answer(entry: object) -> bool:
    return (
        isinstance(entry, Mapping)
        and entry.get("action") in ACTIONS
        and isinstance(entry.get("answer_id"), str)
        and ANSWER_ID.fullmatch(entry["answer_id"]) is not None
    )


@dataclass(frozen=True)
class Work:
    """What the view shows and says."""

    session: str
    """Of whom and of which queue the outbox is: answers of another person are never sent in this one's name."""
    who: str
    """Whose view it is: they edit a mask further that they saved last, and else start from the one that was found."""
    items: Sequence[Shown]
    labels: Sequence[Label]
    acks: Mapping[str, Ack]
    progress: Progress
    nothing: str
    """What to do where no item is left."""
    may_label: bool
    blur: bool
    preparing: bool = False
    """Whether more items are on their way: the view asks again."""
    guidelines: Sequence[Section] = ()
    differences: Mapping[str, str] = field(default_factory=dict)
    """Template -> key of the picture that thresholds are taken of (`levels`)."""

    def needed(self) -> list[str]:
        """Of all pictures, in the order in which they are needed."""
        keys = [key for item in self.items for key in item.needed()]
        keys += list(self.differences.values())
        keys += [
            key for section in self.guidelines for example in section.examples for key in example.pictures
        ]
        return list(dict.fromkeys(keys))


def labelling(work: Work, picture: Callable[[str], str], *, key: str) -> None:
    """Show the view; `sent` reads what it says.

    Parameters
    ----------
    picture
        The ``data:`` address of a key's picture.
    """
    have = sent(key).have
    first = set(work.items[0].needed()) if work.items else set()
    pictures: dict[str, str] = {}
    size = 0
    for name in work.needed():
        if name in have:
            continue
        if size > AT_ONCE and name not in first:
            break
        pictures[name] = picture(name)
        size += len(pictures[name])
    _component(
        data={
            "session": work.session,
            "who": work.who,
            "items": [_plain(item) for item in work.items],
            "labels": [vars(label) for label in work.labels],
            "acks": {answer_id: vars(ack) for answer_id, ack in work.acks.items()},
            "progress": vars(work.progress),
            "nothing": work.nothing,
            "may_label": work.may_label,
            "blur": work.blur,
            "preparing": work.preparing,
            "no_mask": NO_MASK,
            "guidelines": [
                {
                    "title": section.title,
                    "blocks": list(section.blocks),
                    "examples": [vars(example) for example in section.examples],
                }
                for section in work.guidelines
            ],
            "differences": dict(work.differences),
            "pictures": pictures,
        },
        key=key,
        on_sent_change=_nothing,
        on_editing_change=_nothing,
    )


def _nothing() -> None:
    """What was said is read before the view is shown again."""


def _plain(item: Shown) -> dict[str, Any]:
    return vars(item) | {
        "candidates": [vars(candidate) for candidate in item.candidates],
        "both": [vars(told) for told in item.both],
    }
