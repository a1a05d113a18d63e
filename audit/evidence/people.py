"""What people said of a generated picture, and whether they agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.review.store import Store

ENOUGH = 2
"""People who have to agree for a verdict to count as confirmed."""
CONFIRMED, REJECTED, DISPUTED, ONE, NOBODY = "confirmed", "rejected", "disputed", "one person", "nobody"
"""What the labels amount to."""


@dataclass(frozen=True)
class Label:
    """What one person says now of one picture."""

    who: str
    label: str
    """MV, RV, TV, PV or N."""
    when: str
    adjudicated: bool
    """Whether it decides between others that disagree."""
    note: str
    event_sha256: str
    """Of the event in the label store's chain."""


@dataclass(frozen=True)
class People:
    """The labels of a store by caption and by the sha256 of the generated picture that was looked at."""

    labels: Mapping[tuple[str, str], Sequence[Label]]
    hidden: frozenset[str] = frozenset()
    """sha256 of training pictures that are not to be shown."""

    @classmethod
    def of_store(cls, store: Store) -> People:
        """For exhibits, which hold what people said whoever makes them."""
        from audit.review.replay import Replay

        with store.read() as base:
            now = Replay.of(base).table()
        labels = defaultdict(list)
        for row in now.to_dict("records"):
            label = Label(
                who=str(row["who"]),
                label=str(row["label"]),
                when=str(row["when"]),
                adjudicated=bool(row["adjudicated"]),
                note=row["note"] if isinstance(row["note"], str) else "",
                event_sha256=str(row["event_sha256"]),
            )
            labels[row["caption_id"], row["generated_sha256"]].append(label)
        return cls(dict(labels), frozenset(store.hidden()))

    def of(self, caption_id: str, generated_sha256: str) -> list[Label]:
        """Labels of one picture of one caption, in the order in which they were given."""
        return sorted(
            self.labels.get((caption_id, generated_sha256), ()), key=lambda label: (label.when, label.who)
        )


NO_PEOPLE = People({})


def agreement(labels: Sequence[Label], verdict: str) -> dict[str, Any]:
    """What labels amount to for a verdict: `outcome`, people on each side, and the decision where one was made.

    An adjudicator's decision counts over everything; else two people have to say what the verdict says.
    """
    decided = [label for label in labels if label.adjudicated]
    said = {label.who: label.label for label in labels if not label.adjudicated}
    same = sum(label == verdict for label in said.values())
    if decided:
        outcome = CONFIRMED if decided[-1].label == verdict else REJECTED
    elif not said:
        outcome = NOBODY
    elif 0 < same < len(said):
        outcome = DISPUTED
    elif same >= ENOUGH:
        outcome = CONFIRMED
    elif len(said) >= ENOUGH:
        outcome = REJECTED
    else:
        outcome = ONE
    return {
        "outcome": outcome,
        "people": len(said),
        "agree_with_verdict": same,
        "needed": ENOUGH,
        "adjudicated_by": decided[-1].who if decided else None,
    }
