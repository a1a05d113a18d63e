"""What an export was asked for, and what people had said when it began: in its folder until it is whole.

A stopped export goes on with the labels that it began with, so that it ends as if it had not been stopped; only what was
removed from view meanwhile goes into none of the exhibits that were still to be made. The plan's sha256 names the export
in the register: it tells which exhibits belong together, whatever becomes of their list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit.errors import InputError
from audit.evidence.people import Label, People
from audit.evidence.register import canonical
from audit.files import replace_file
from audit.images import sha256

if TYPE_CHECKING:
    from audit.evidence.sources import Sources

UNFINISHED = ".unfinished-"
"""Before the name of what an export is still writing."""
PLAN = UNFINISHED + "export"


@dataclass(frozen=True)
class Plan:
    """One export."""

    asked: dict[str, Any]
    """Captions, run, and how exhibits are made: what another call has to ask for to go on with it."""
    people: People
    """Labels of its captions, and what was removed from view."""

    @classmethod
    def of(cls, sources: Sources, names: Sequence[str], **how: Any) -> Plan:
        whole = sources.whole
        asked = {
            "captions": sorted(names),
            "run": sources.run.path.name,
            "model_sha256": whole.run["model_sha256"],
            "verdicts": whole.counts,
            "scored": whole.scored,
            **how,
        }
        chosen = set(names)
        labels = {key: tuple(each) for key, each in sources.people.labels.items() if key[0] in chosen}
        return cls(asked, People(labels, sources.people.hidden))

    @classmethod
    def read(cls, data: bytes) -> Plan:
        """What `bytes` gives; InputError where it is nothing of that kind."""
        try:
            content = json.loads(data.decode("utf-8", "surrogatepass"))
            labels = {
                (caption_id, picture): tuple(Label(**label) for label in each)
                for caption_id, picture, each in content["labels"]
            }
            plan = cls(content["asked"], People(labels, frozenset(content["hidden"])))
            sound = bytes(plan) == data and all(isinstance(name, str) for name in plan.captions)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{PLAN} is damaged; export into another folder.") from error
        if not sound:
            raise InputError(f"{PLAN} is not as an export writes it; export into another folder.")
        return plan

    def __bytes__(self) -> bytes:
        labels = [[*key, [asdict(label) for label in each]] for key, each in self.people.labels.items()]
        return canonical(
            {"asked": self.asked, "labels": sorted(labels), "hidden": sorted(self.people.hidden)}
        )

    @property
    def captions(self) -> list[str]:
        return self.asked["captions"]

    @property
    def sha256(self) -> str:
        return sha256(bytes(self))


def begun(out: Path, now: Plan) -> Plan:
    """The plan that a stopped export left in a folder, if it asks for the same as `now`; else `now`, written there."""
    path = out / PLAN
    if path.is_file():
        before = Plan.read(path.read_bytes())
        if before.asked == now.asked:
            return before
    replace_file(path, lambda partial: partial.write_bytes(bytes(now)))
    return now
