"""What people said of a generated picture, and whether they agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from audit.records import VerdictKind

if TYPE_CHECKING:
    from audit.review.store import Store

ENOUGH = 2
"""People who have to agree for a verdict to count as confirmed."""
CONFIRMED, REJECTED, DISPUTED, ONE, NOBODY = "confirmed", "rejected", "disputed", "one person", "nobody"
"""What the labels amount to."""
COPIES = (VerdictKind.MV, VerdictKind.RV, VerdictKind.TV, VerdictKind.PV)


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
    image_id: str = ""
    """The training image that was compared with, and the sha256 of its file; empty where none is known, as is the template."""
    training_sha256: str = ""
    template_id: str = ""
    others_shown: bool = False
    """Whether they had been told what others and the program say."""
    blurred: bool = False
    """Whether the pictures were."""
    imported: bool = False
    """Whether it came in from elsewhere."""

    @property
    def counts(self) -> bool:
        """Whether somebody looked at the pictures, and said by themselves what they saw."""
        return not (self.others_shown or self.blurred)


@dataclass(frozen=True)
class Compared:
    """What a verdict says, and of which training image and template."""

    verdict: str
    image_id: str
    training_sha256: str
    template_id: str

    @classmethod
    def of(cls, verdict: Mapping[str, Any], training: Mapping[str, Any] | None) -> Compared:
        """By what ``exhibit.json`` says of the verdict and of the training image."""
        training = training or {}
        return cls(
            verdict["kind"],
            training.get("image_id") or "",
            training.get("sha256") or "",
            verdict["template_id"] or "",
        )

    def named_by(self, label: Label) -> bool:
        """Whether a label is about the same: that nothing is a copy names no picture, and is about all of them."""
        if self.verdict not in COPIES:
            return True
        if self.verdict == VerdictKind.TV and label.template_id:
            return label.template_id == self.template_id
        if label.training_sha256 and self.training_sha256:
            return label.training_sha256 == self.training_sha256
        return bool(label.image_id) and label.image_id == self.image_id

    def agrees(self, label: Label) -> bool:
        """Whether a label says what the verdict says, of the same picture."""
        return label.label == self.verdict and self.named_by(label)


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
                image_id=str(row["image_id"]),
                training_sha256=str(row["training_sha256"]),
                template_id=str(row["template_id"]),
                others_shown=bool(row["others_shown"]),
                blurred=bool(row["blurred"]),
                imported=bool(row["imported"]),
            )
            labels[row["caption_id"], row["generated_sha256"]].append(label)
        return cls(dict(labels), frozenset(store.hidden()))

    def of(self, caption_id: str, generated_sha256: str) -> list[Label]:
        """Labels of one picture of one caption, in the order in which they were given."""
        return sorted(
            self.labels.get((caption_id, generated_sha256), ()), key=lambda label: (label.when, label.who)
        )


NO_PEOPLE = People({})


def agreement(labels: Sequence[Label], compared: Compared) -> dict[str, Any]:
    """What labels amount to for a verdict: `outcome`, people on each side, and the decision where one was made.

    An adjudicator's decision counts over everything; else two people have to say what the verdict says, of the training
    image or the template that it names. Who was told before what others say counts nowhere, nor does who saw blurred
    pictures (`Label.counts`); how many answers those are is said too.
    """
    counted = [label for label in labels if label.counts]
    decided = [label for label in counted if label.adjudicated]
    said = {label.who: label for label in counted if not label.adjudicated}
    same = sum(map(compared.agrees, said.values()))
    if decided:
        outcome = CONFIRMED if compared.agrees(decided[-1]) else REJECTED
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
    weighed = [*said.values(), *decided[-1:]]
    return {
        "outcome": outcome,
        "people": len(said),
        "agree_with_verdict": same,
        "needed": ENOUGH,
        "adjudicated_by": decided[-1].who if decided else None,
        "of_another_picture": sum(
            each.label == compared.verdict and not compared.named_by(each) for each in weighed
        ),
        "imported": sum(each.imported for each in weighed),
        "not_counted": {
            "others_shown": sum(each.others_shown for each in labels),
            "blurred": sum(each.blurred and not each.others_shown for each in labels),
        },
    }
